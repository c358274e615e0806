"""Connections that trickle, lie or speak no HTTP: cut or refused, while others are served."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from tests.server.process import resident_mib, started, until_it_answers
from tests.server.service import files
from tests.server.wire import answer, connect, exchange

HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /v1/search HTTP/1.1\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=x\r\n"
ALLOWED = 32.0
"""MiB that the server may grow by, while and after it is tried."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that gives heads and bodies a second."""
    folder = tmp_path_factory.mktemp("wire")
    bounds = {"head_seconds": 1.0, "body_seconds": 1.0, "body_bytes": 100_000, "requests": 8, "wait": 0.0005}
    with started(folder, **bounds) as (process, address):
        until_it_answers(address)
        data = {"modality": "visible", "id": ["a", "b"]}
        assert httpx.post(f"{address}/v1/entries", files=files(1, 2), data=data).status_code == 201
        yield process, address
        served(address)
        process.terminate()
        assert process.wait(120) == 0
        assert "Traceback" not in "".join(process.said)


def served(address):
    """Somebody else's good request is answered."""
    reply = httpx.post(
        f"{address}/v1/search", files=files(1), data={"modality": "visible", "top": "1"}, timeout=120
    )
    assert reply.json()["hits"][0]["id"] == "a"
    assert httpx.get(f"{address}/v1/gallery").json()["entries"] == 2


@pytest.mark.parametrize("beginning", [b"", b"POST /v1/sea", POST, POST + b"X-Pad: " + b"x" * 3000])
def test_slow_heads_are_cut_without_a_word(server, beginning):
    _, address = server
    open_ = [connect(address) for _ in range(40)]
    for one in open_:
        one.sendall(beginning)
    served(address)
    assert {one.recv(1) for one in open_} == {b""}
    for one in open_:
        one.close()


def test_a_slow_second_head_is_cut_too(server):
    with connect(server[1]) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answer(connection)[0] == 200
        connection.sendall(b"GET /hea")
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "beginning",
    [POST + b"Content-Length: 9000\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n"],
)
def test_slow_bodies_are_cut_with_a_word(server, beginning):
    """Fewer than may be at work at once, so that others still are."""
    _, address = server
    open_ = [connect(address) for _ in range(6)]
    for one in open_:
        one.sendall(beginning)
    served(address)
    assert [answer(one)[0] for one in open_] == [408] * 6
    for one in open_:
        one.close()


def test_more_slow_bodies_than_may_be_at_work_keep_nobody_out_for_long(server):
    _, address = server
    open_ = [connect(address) for _ in range(30)]
    for one in open_:
        one.sendall(POST + b"Content-Length: 9000\r\n\r\n")
    statuses = [answer(one)[0] for one in open_]
    assert set(statuses) == {408, 503}
    served(address)
    for one in open_:
        one.close()


BROKEN = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an old version": b"GET / HTTP/0.9\r\n\r\n",
    "a long address": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: y\r\n" % n for n in range(90_000)) + b"\r\n",
    "a long header": POST + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
    "NUL in a header": POST + b"X: \0\r\n\r\n",
    "NUL in the address": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET /v1/gallery HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/gallery HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
    "another host": b"GET /v1/gallery HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length in words": POST + b"Content-Length: many\r\n\r\n",
    "a huge length": POST + b"Content-Length: 99999999999999999999999999\r\n\r\n",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
    "chunks without end": POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 200,
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both to an open route": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "a tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_no_request_is_refused(server, said):
    process, address = server
    before, _ = resident_mib(process.pid, forget_peak=True)
    for _ in range(5):
        status, body = exchange(address, BROKEN[said])
        assert status is None or 400 <= status < 500, body
        assert b"Traceback" not in body
    served(address)
    _, peak = resident_mib(process.pid)
    assert peak - before < ALLOWED
