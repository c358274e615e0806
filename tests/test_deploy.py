"""The files in deploy/: they name commands and options that exist, and the proxies work in front of a service.

nginx and Caddy run where they are installed; $FMCNET_NGINX and $FMCNET_CADDY name them elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
import typer
import yaml

from fmcnet.cli.app import app
from tests.server.process import started, until_it_answers
from tests.server.service import SECRETS, bearer, files

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = {
    name: yaml.safe_load((DEPLOY / f"{name}.yaml").read_text()) for name in ("compose", "compose.milvus")
}
NGINX = os.environ.get("FMCNET_NGINX") or shutil.which("nginx")
CADDY = os.environ.get("FMCNET_CADDY") or shutil.which("caddy")


def commands():
    """Every `fmcnet ...` of the files."""
    for path in DEPLOY.iterdir():
        text = path.read_text()
        for name in re.findall(r"^(?:CMD|    command:\s*)?\s*\[([^]]*\bfmcnet\b[^]]*)\]", text, re.MULTILINE):
            yield path.name, [word.strip(' "\n') for word in name.split(",")]
        for line in re.findall(r"(?:ExecStart=\S*/|: |exec fmcnet )(fmcnet (?:serve|keys|gallery) .*)", text):
            yield path.name, shlex.split(line)


def test_commands_and_options_exist():
    found = [
        (name, words)
        for name, words in commands()
        if "serve" in words or "gallery" in words or "keys" in words
    ]
    assert {name for name, _ in found} >= {
        "Dockerfile", "compose.yaml", "compose.milvus.yaml", "fmcnet.service", "fmcnet-expire.service",
    }  # fmt: skip
    for name, words in found:
        command, rest = typer.main.get_command(app), words[words.index("fmcnet") + 1 :]
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for one in command.params for option in one.opts}
        assert {word for word in rest if word.startswith("--")} <= known, (name, words)


def test_the_services_of_compose_may_do_little():
    one = COMPOSE["compose"]["services"]["fmcnet"]
    assert one["user"] == "10001:10001"
    assert f"--uid {one['user'].split(':')[0]} " in (DEPLOY / "Dockerfile").read_text()
    assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"])
    assert "no-new-privileges:true" in one["security_opt"]
    assert one["ports"] == ["127.0.0.1:8000:8000"]
    assert any(place.endswith(":/keys:ro") for place in one["volumes"])
    assert "healthz" in one["healthcheck"]["test"][-1]
    milvus = COMPOSE["compose.milvus"]["services"]["milvus"]
    assert "ports" not in milvus
    assert milvus["healthcheck"]["test"]
    for tree in COMPOSE.values():
        for service in tree["services"].values():
            places = [place.split(":")[0] for place in service.get("volumes", ())]
            assert {place for place in places if place[0] not in "./"} <= set(tree["volumes"])


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def proxy(command, port):
    """A proxy that listens."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert running.poll() is None, running.stdout.read()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait(20)


@contextlib.contextmanager
def behind_nginx(folder, upstream):
    """deploy/nginx.conf, without TLS and with short times."""
    port, text = free_port(), (DEPLOY / "nginx.conf").read_text()
    for old, new in {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} sndbuf=8k;",
        "127.0.0.1:8000": upstream,
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 20s": "client_body_timeout 1s",
        "send_timeout 20s": "send_timeout 1s",
    }.items():
        assert old in text
        text = text.replace(old, new)
    text = re.sub(r".*ssl_certificate.*\n", "", text)
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {places}\n{text} }}\n"
    )
    with proxy([NGINX, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")], port) as address:
        yield address


@contextlib.contextmanager
def behind_caddy(folder, upstream):
    """deploy/Caddyfile, without TLS and with short times."""
    port, text = free_port(), (DEPLOY / "Caddyfile").read_text()
    for old, new in {
        "people.example.org {": f"http://127.0.0.1:{port} {{",
        "127.0.0.1:8000": upstream,
        "read_header 10s": "read_header 1s",
        "read_body 20s": "read_body 1s",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "Caddyfile").write_text(text.replace("{\n", "{\n\tadmin off\n", 1))
    os.environ["XDG_DATA_HOME"] = os.environ["XDG_CONFIG_HOME"] = str(folder)
    command = [CADDY, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    with proxy(command, port) as address:
        yield address


PROXIES = [
    pytest.param(behind_nginx, marks=pytest.mark.skipif(not NGINX, reason="nginx is not installed")),
    pytest.param(behind_caddy, marks=pytest.mark.skipif(not CADDY, reason="Caddy is not installed")),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("served"), keys=SECRETS) as (_, address):
        until_it_answers(address)
        yield address.removeprefix("http://")


@pytest.mark.parametrize("behind", PROXIES)
def test_a_proxy_in_front(server, tmp_path, behind):
    form = {"files": files(1), "data": {"modality": "visible"}, "headers": bearer("read")}
    with behind(tmp_path, server) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/embed", **form).status_code == 200
        assert client.post("/v1/embed", **{**form, "headers": {}}).status_code == 401
        origin = {**bearer("read"), "Origin": address}
        assert client.post("/v1/embed", **{**form, "headers": origin}).status_code == 200
        large = client.post("/v1/embed", content=b"x" * 17_000_000, headers=bearer("read"))
        # The service answers before it has read all, and Caddy may not hear that.
        assert large.status_code in ((413,) if behind is behind_nginx else (413, 502))
        host, port = address.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(80)]
        for one in slow[:40]:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for one in slow[40:]:
            one.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nab")
        assert client.post("/v1/embed", **form).status_code == 200
        for one in slow:  # each is closed by the proxy within its time
            one.settimeout(15)
            with contextlib.suppress(ConnectionError):
                while one.recv(4096):
                    pass
            one.close()
        assert client.get("/healthz").status_code == 200


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_nginx_limits_the_rate_of_an_address(server, tmp_path):
    with behind_nginx(tmp_path, server) as address, httpx.Client(base_url=address, timeout=30) as client:
        with ThreadPoolExecutor(60) as pool:
            statuses = list(pool.map(lambda _: client.get("/healthz").status_code, range(60)))
        assert set(statuses) == {200, 429}


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_nginx_ends_a_connection_that_reads_no_answer(server, tmp_path):
    with behind_nginx(tmp_path, server) as address, socket.socket() as one:
        size = len(httpx.get(f"{address}/page/page.js").content)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = address.removeprefix("http://").split(":")
        one.connect((host, int(port)))
        one.sendall(b"GET /page/page.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        time.sleep(4.0)
        one.settimeout(10)
        got = 0
        with contextlib.suppress(ConnectionError):
            while part := one.recv(2**16):
                got += len(part)
        assert 0 < got < 10 * size
