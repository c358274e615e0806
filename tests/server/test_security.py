"""The door: keys, hosts, pages of other sites, bodies that are too large or too slow, too much at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from fmcnet.errors import FmcnetError
from fmcnet.server.app import ROUTES
from fmcnet.server.keys import Key, Keys, hash_secret, new_key, read_keys
from fmcnet.server.limits import Limits
from fmcnet.server.run import ServeOptions, check_access, is_loopback
from fmcnet.server.security import CHANGES_NOTHING
from tests.server.service import KEYS, SECRETS, bearer, files, png, running

NEEDED = [
    ("GET", "/v1/gallery", "read"),
    ("GET", "/v1/entries", "read"),
    ("GET", "/v1/days", "read"),
    ("GET", "/v1/entries/crop-1", "read"),
    ("GET", "/v1/images/crop-1", "read"),
    ("GET", "/metrics", "read"),
    ("POST", "/v1/embed", "read"),
    ("POST", "/v1/search", "read"),
    ("POST", "/v1/entries", "write"),
    ("DELETE", "/v1/entries/crop-1", "admin"),
]
OPEN = ["/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/healthz", "/readyz", "/openapi.json"]


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with running(tmp_path_factory.mktemp("locked"), keys=KEYS) as one:
        yield one


def test_a_post_that_a_reader_may_send_is_a_route_that_has_no_other_method():
    for path in CHANGES_NOTHING:
        assert [route.methods for route in ROUTES if route.path == path] == [{"POST"}]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_what_no_route_is_known_for_needs_the_scope_to_write(locked, method):
    """A route that is added and not declared as reading is not open to readers."""
    assert ask(locked, method, "/v1/new", bearer("read")).status_code == 403
    assert ask(locked, method, "/v1/new", bearer("write")).status_code == 404
    assert ask(locked, method, "/new").status_code == 401
    assert ask(locked, method, "/new", bearer("read")).status_code == 403


def ask(serving, method, path, headers=None):
    body = {"files": files(1), "data": {"modality": "visible", "id": "crop-x"}} if method == "POST" else {}
    return serving.client.request(method, path, headers=headers, **body)


@pytest.mark.parametrize(("method", "path", "scope"), NEEDED)
def test_each_route_needs_its_scope(locked, method, path, scope):
    assert ask(locked, method, path).status_code == 401
    wrong = ask(locked, method, path, {"Authorization": "Bearer nobody-knows-this-secret"})
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
    for other in {"read", "write"} - {scope}:
        refused = ask(locked, method, path, bearer(other))
        assert refused.status_code == 403
        assert scope in refused.json()["error"]["what"]
    assert ask(locked, method, path, bearer(scope)).status_code not in (401, 403)
    assert ask(locked, method, path, {"X-API-Key": SECRETS["admin"]}).status_code not in (401, 403)


def test_the_page_and_health_are_open(locked):
    for path in OPEN:
        assert locked.client.get(path).status_code == 200, path


def test_replacing_needs_admin(locked):
    sent = {"files": files(1), "data": {"modality": "visible", "id": "r", "on_duplicate": "replace"}}
    assert locked.client.post("/v1/entries", headers=bearer("write"), **sent).status_code == 403
    assert locked.client.post("/v1/entries", headers=bearer("admin"), **sent).status_code == 201


def test_a_wrong_key_costs_no_body(locked):
    """The refusal comes before a byte of the body is read."""

    async def ask_in_vain():
        sent = []

        async def receive():
            raise AssertionError("the body was read")

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search", "query_string": b"",
            "headers": [(b"host", b"testserver"), (b"x-api-key", b"wrong")], "client": ("1.2.3.4", 5),
            "http_version": "1.1", "scheme": "http", "server": ("testserver", 80), "root_path": "",
        }  # fmt: skip
        await locked.client.app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask_in_vain()) == 401


def test_without_keys_only_this_machines_names_are_answered(tmp_path):
    with running(tmp_path) as one:
        for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "a b", "\u00e4".encode("latin-1")):
            reply = one.client.get("/v1/gallery", headers={"Host": host})
            assert reply.status_code == 403, host
        for host in ("localhost:8000", "127.0.0.1", "[::1]:9"):
            assert one.client.get("/v1/gallery", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_may_not_ask(locked):
    for origin in ("https://evil.example", "null", "http://localhost.evil", "http://localhost:99"):
        reply = locked.client.get("/v1/gallery", headers={"Origin": origin, **bearer("read")})
        assert reply.status_code == 403, origin
    same = locked.client.get("/v1/gallery", headers={"Origin": "http://localhost", **bearer("read")})
    assert same.status_code == 200


def test_every_answer_is_guarded_against_browsers_and_caches(locked):
    for path in ("/", "/v1/gallery", "/nothing"):
        headers = locked.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert len(headers["x-request-id"]) == 16
    assert locked.client.get("/v1/gallery").headers["cache-control"] == "no-store"


def test_large_bodies_are_cut(tmp_path):
    with running(tmp_path, limits=Limits(body_bytes=20_000, wait=0.001)) as one:
        reply = one.client.post("/v1/search", content=b"x" * 20_001)
        assert reply.status_code == 413

        def unannounced():
            for _ in range(30):
                yield b"x" * 1000

        assert one.client.post("/v1/search", content=unannounced()).status_code == 413
        assert one.client.get("/v1/gallery", headers={"Content-Length": "-1"}).status_code == 400


def test_slow_bodies_are_cut(tmp_path):
    with running(tmp_path, limits=Limits(body_seconds=0.05)) as one:

        async def trickle():
            sent = []

            async def receive():
                await asyncio.sleep(30)

            async def send(message):
                sent.append(message)

            scope = {
                "type": "http", "method": "POST", "path": "/v1/search", "query_string": b"",
                "headers": [(b"host", b"localhost")], "client": None,
            }  # fmt: skip
            await asyncio.wait_for(one.client.app(scope, receive, send), 20)
            return sent

        start, end = asyncio.run(trickle())
        assert start["status"] == 408
        assert (b"connection", b"close") in start["headers"]
        assert json.loads(end["body"])["error"]["where"] == "body"


def test_too_many_requests_are_told_to_come_back(tmp_path):
    with running(tmp_path, limits=Limits(requests=1, wait=0.001)) as one:
        engine, inside, go = one.service.encoder.backend, threading.Event(), threading.Event()

        def hold():
            inside.set()
            assert go.wait(60)

        engine.before = hold
        first = []
        asking = threading.Thread(target=lambda: first.append(one.search(1)))
        asking.start()
        assert inside.wait(60)
        refused = one.client.get("/v1/gallery")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert one.client.get("/healthz").status_code == 200
        go.set()
        asking.join(60)
        assert first[0].status_code == 200
        assert one.client.get("/v1/gallery").status_code == 200


def test_one_caller_leaves_room_for_others(tmp_path):
    with running(tmp_path, keys=KEYS, limits=Limits(requests=3, wait=0.001)) as one:
        one.client.headers.update(bearer("read"))
        inside, go = threading.Semaphore(0), threading.Event()

        def hold():
            inside.release()
            assert go.wait(60)

        one.service.encoder.backend.before = hold
        threads = [threading.Thread(target=one.search, args=[seed]) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        assert inside.acquire(timeout=60)
        deadline = time.monotonic() + 60
        while one.service.metrics.working._value.get() < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = one.client.get("/v1/gallery")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "2 requests of this caller are at work" in refused.json()["error"]["what"]
        assert one.client.get("/v1/gallery", headers=bearer("admin")).status_code == 200
        go.set()
        for thread in threads:
            thread.join(60)
        assert one.client.get("/v1/gallery").status_code == 200


def test_the_share_of_a_caller():
    limits = Limits(requests=16)
    assert (limits.share(others=True), limits.share(others=False)) == (8, 15)
    assert Limits(requests=1).share(others=False) == 1


def test_images_and_pixels_are_counted(tmp_path):
    with running(tmp_path, limits=Limits(images=2, pixels=2000, wait=0.001)) as one:
        assert one.search(1, 2).status_code == 200
        assert one.search(1, 2, 3).status_code == 413
        large = one.client.post(
            "/v1/search", files=[("images", ("b.png", png(1, (50, 41))))], data={"modality": "visible"}
        )
        assert large.status_code == 413
        assert "50 x 41" in large.json()["error"]["what"]
        assert one.search(1, top=10_000).status_code == 422


# ---- keys ----


def test_a_new_key_is_kept_as_a_hash(tmp_path):
    path = tmp_path / "keys.json"
    secret = new_key(path, "gate", ["write"])
    other = new_key(path, "desk", ["read", "admin"])
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    keys = read_keys(path, {})
    assert (keys.find(secret).name, keys.find(other).name, keys.find("x")) == ("gate", "desk", None)
    assert keys.find(secret).may("write")
    assert not keys.find(secret).may("read")
    assert keys.find(other).may("write")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: new_key(path, "gate", ["write"]) and new_key(path, "gate", ["read"]),
        lambda path: new_key(path, "a b", ["write"]),
        lambda path: new_key(path, "gate", ["everything"]),
        lambda path: new_key(path, "gate", []),
        lambda path: read_keys(path),
        lambda path: path.write_text("{") and read_keys(path),
        lambda path: (
            path.write_text('{"format": "fmcnet-keys-1", "keys": [{"name": "a"}]}') and read_keys(path)
        ),
        lambda path: read_keys(None, {"FMCNET_API_KEYS": "gate:read:short"}),
        lambda path: read_keys(None, {"FMCNET_API_KEYS": "gate"}),
        lambda path: read_keys(None, {"FMCNET_API_KEYS": "gate:read:пароль-пароль-пароль-"}),
        lambda path: Keys([Key("a", frozenset(["read"]), hash_secret("b"))] * 2),
    ],
)
def test_bad_keys_are_refused_in_words(tmp_path, make):
    with pytest.raises(FmcnetError):
        make(tmp_path / "keys.json")


def test_keys_of_the_environment():
    keys = read_keys(
        None, {"FMCNET_API_KEYS": "gate:write:a-secret:with-colons-of-20; desk:read,admin:" + "x" * 20}
    )
    assert keys.find("a-secret:with-colons-of-20").scopes == {"write"}
    assert keys.find("x" * 20).scopes == {"read", "admin"}


def test_no_key_is_needed_on_loopback_only(monkeypatch):
    monkeypatch.delenv("FMCNET_API_KEYS", raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert is_loopback(host)
        assert not check_access(ServeOptions("g", "m", host=host))
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org", "127.0.0.1.example.org"):
        assert not is_loopback(host)
        with pytest.raises(FmcnetError, match="API keys"):
            check_access(ServeOptions("g", "m", host=host))
    monkeypatch.setenv("FMCNET_API_KEYS", "gate:write:" + "x" * 20)
    assert check_access(ServeOptions("g", "m", host="0.0.0.0"))


def test_a_body_that_no_route_reads_ends_the_connection(locked):
    for path in ("/healthz", "/nothing"):
        assert locked.client.request("GET", path, content=b"x" * 10).headers["connection"] == "close"
        assert "connection" not in locked.client.get("/healthz").headers
