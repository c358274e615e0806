"""The service below a path of a proxy, and who a proxy's word makes the caller."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import httpx2 as httpx
import pytest

from fmcnet.errors import FmcnetError
from fmcnet.server.app import OWN, check_root_path
from fmcnet.server.run import ServeOptions, check_access, is_proxy, parse_proxies
from tests.server.process import started, until_it_answers
from tests.server.service import KEYS, bearer, files, running


@contextmanager
def proxy(upstream, path, *, strips):
    """The address of a reverse proxy that serves `upstream` below `path`, and takes the path away if it `strips`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            if not self.path.startswith(path):
                self.send_error(404)
                return
            target = self.path.removeprefix(path) if strips else self.path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {**dict(self.headers.items()), "X-Forwarded-For": "203.0.113.9"}
            reply = httpx.request(self.command, upstream + target, headers=headers, content=body)
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_POST = do_DELETE = forward

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(its folder, the address of the process)."""
    folder = tmp_path_factory.mktemp("below")
    settings = {"root_path": "/reid", "proxies": ["127.0.0.1"]}
    with started(folder, settings=settings) as (_, address):
        assert address.endswith("/reid")
        origin = address.removesuffix("/reid")
        until_it_answers(origin)
        yield folder, origin


@pytest.mark.parametrize("strips", [True, False])
def test_page_and_routes_below_a_path(service, strips):
    folder, upstream = service
    with proxy(upstream, "/reid", strips=strips) as origin:
        page = f"{origin}/reid/"
        text = httpx.get(page).text
        found = re.findall(r'(?:src|href)="([^"#]+)"', text)
        assert len(found) == 3
        for name in found:
            assert not name.startswith("/")
            assert httpx.get(urljoin(page, name)).status_code == 200
        assert httpx.get(urljoin(page, "./v1/gallery")).json()["may"] == ["read", "write", "admin"]
        assert httpx.get(f"{page}openapi.json").json()["servers"] == [{"url": "/reid"}]
        asked = httpx.post(f"{page}v1/search", files=files(1), data={"modality": "visible"})
        assert asked.status_code == 200
        assert '"client": "203.0.113.9"' in (folder / "audit.jsonl").read_text().splitlines()[-1]
    script = httpx.get(f"{upstream}/page/service.js").text  # the one that asks
    assert "fetch(path, " in script  # relative ones: tests/server/test_page_files.py
    assert script.count("fetch(") == 1


def test_without_its_slash_the_page_moves_to_it(service):
    reply = httpx.get(f"{service[1]}/reid", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (307, "/reid/")


def test_a_path_that_is_not_taken_away_needs_keys_as_any(tmp_path):
    with running(tmp_path, keys=KEYS, root_path="/reid") as it:
        for path in ("/v1/gallery", "/reid/v1/gallery", "/reid/metrics"):
            assert it.client.get(path).status_code == 401
        assert it.client.delete("/reid/v1/entries/x", headers=bearer("write")).status_code == 403
        assert it.client.get("/reid/v1/gallery", headers=bearer("read")).status_code == 200
        assert it.client.get("/reid/reid/v1/gallery").status_code == 404
        assert it.client.get("/reidv1/gallery").status_code == 404


@pytest.mark.parametrize(
    ("peer", "sent", "client"),
    [
        ("10.0.0.2", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.2", "6.6.6.6, 198.51.100.7, 10.0.0.3", "198.51.100.7"),  # the caller itself sent the first
        ("10.9.0.2", "198.51.100.7", "10.9.0.2"),
        ("127.0.0.1", "198.51.100.7", "127.0.0.1"),
    ],
)
def test_forwarded_addresses_are_believed_from_named_proxies_only(tmp_path, peer, sent, client):
    with running(tmp_path, proxies=parse_proxies(["10.0.0.0/24"]), peer=peer) as it:
        it.client.post(
            "/v1/search", files=files(1), data={"modality": "visible"}, headers={"X-Forwarded-For": sent}
        )
        assert it.log()[-1]["client"] == client


def test_without_proxies_no_forwarded_address_is_believed(tmp_path):
    with started(tmp_path) as (_, address):
        until_it_answers(address)
        sent = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
        httpx.post(f"{address}/v1/search", files=files(1), data={"modality": "visible"}, headers=sent)
        assert '"client": "127.0.0.1"' in (tmp_path / "audit.jsonl").read_text().splitlines()[-1]


def test_proxies_are_addresses():
    found = parse_proxies(["127.0.0.1", "10.1.2.3/8", "[fd00::1]"])
    assert [str(one) for one in found] == ["127.0.0.1/32", "10.0.0.0/8", "fd00::1/128"]
    assert [is_proxy(host, found) for host in ("10.9.9.9", "fd00::1", "11.0.0.1", "")] == [
        True,
        True,
        False,
        False,
    ]
    for wrong in ("proxy.example", "*", "", "10.0.0.0/99"):
        with pytest.raises(FmcnetError, match="give the address"):
            check_access(ServeOptions("g", "m", proxies=(wrong,)))


def test_root_paths(tmp_path):
    assert [check_root_path(one) for one in ("", "/", "/reid", "/a/b.c/")] == ["", "", "/reid", "/a/b.c"]
    for wrong in ("reid", "/a//b", "/../a", "/a b", "http://x/a", "/a?b", "/v1", "/page/x"):
        with pytest.raises(FmcnetError, match="--root-path"):
            check_access(ServeOptions("g", "m", root_path=wrong))
    with running(tmp_path) as it:
        assert {path.split("/")[1] for path in it.client.get("/openapi.json").json()["paths"]} <= OWN
