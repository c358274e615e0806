"""What costs much is ended, refused or put behind the others; who only wants to search does not wait for it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import signal
import socket
import threading
import time

import httpx2 as httpx
import pytest
from PIL import Image

from fmcnet.server.limits import Limits
from fmcnet.server.uploads import MOST_SCANS, UploadError, decode
from tests.server.process import started, until_it_answers
from tests.server.service import KEYS, bearer, files, running
from tests.server.wire import connect

PATIENCE = 5.0
"""Seconds that an ordinary search may take beside the attacks; alone it takes some milliseconds."""


def heavy_jpeg(scans, size=4096):
    """A blank progressive JPEG, one short scan of which is repeated: each costs a pass over the whole image."""
    out = io.BytesIO()
    Image.new("RGB", (size, size)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    scan = min((data[a:b] for a, b in itertools.pairwise(starts[1:])), key=len)
    return data[: starts[1]] + scan * scans + b"\xff\xd9"


def blank(side=5000):
    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "PNG")
    return out.getvalue()


def embed(client, *images, **headers):
    sent = [("images", (f"{at}", data)) for at, data in enumerate(images)]
    return client.post("/v1/embed", files=sent, data={"modality": "visible"}, headers=headers)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("fmcnet.server.uploads.to_rgb", lambda *image: pytest.fail("decoded"))
    with pytest.raises(UploadError, match=f"1001 scans, more than {MOST_SCANS}"):
        decode(heavy_jpeg(1000, 512), "a", 25_000_000)


def test_a_header_that_is_slow_to_read_is_not_read_by_the_service():
    """Thousands of Exif segments: Pillow joins them one by one."""
    from fmcnet.server.uploads import decode_cost

    segment = b"\xff\xe1" + (8).to_bytes(2, "big") + b"Exif\0\0"
    heavy = b"\xff\xd8" + segment * 400_000 + b"\xff\xd9"
    begun = time.monotonic()
    assert decode_cost(heavy) >= len(heavy)
    assert time.monotonic() - begun < 1


def test_decoding_that_takes_too_long_is_ended_and_the_next_image_is_read(tmp_path):
    with running(tmp_path, limits=Limits(wait=0.001, decode_seconds=0.15)) as one:
        embed(one.client, heavy_jpeg(1, 64))  # the process has started
        start = time.monotonic()
        reply = embed(one.client, heavy_jpeg(MOST_SCANS - 5))
        assert time.monotonic() - start < 20
        assert reply.status_code == 422
        assert "took more than 0.15 s to decode" in reply.json()["error"]["what"]
        assert one.add(1).status_code == 201


def test_the_images_of_a_request_have_a_number_of_pixels_together(tmp_path):
    with running(tmp_path, limits=Limits(wait=0.001, pixels=10_000)) as one:
        reply = embed(one.client, *[blank(100)] * 12)
        assert reply.status_code == 413
        assert "more than 40000 pixels together" in reply.json()["error"]["what"]
        assert embed(one.client, *[blank(100)] * 4).status_code == 200


def test_callers_take_turns(tmp_path):
    """A caller with one image does not wait for the twenty of another."""
    with running(tmp_path, keys=KEYS, limits=Limits(wait=0.001, pixels=10**9)) as one:
        one.client.headers.update(bearer("write"))
        assert one.add(1).status_code == 201
        many = [blank(1500)] * 20
        ended = {}

        def large():
            ended["status"] = embed(one.client, *many, **bearer("admin")).status_code
            ended["large"] = time.monotonic()

        thread = threading.Thread(target=large)
        thread.start()
        time.sleep(0.1)
        small = one.client.post(
            "/v1/search", files=files(1), data={"modality": "visible"}, headers=bearer("read")
        )
        ended["small"] = time.monotonic()
        thread.join(120)
    assert (small.status_code, ended["status"]) == (200, 200)
    assert ended["small"] < ended["large"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("starving"), stop_seconds=3.0, answer_seconds=1.0) as (
        process,
        address,
    ):
        until_it_answers(address)
        sent = {"modality": "visible", "id": ["a", "b"]}
        assert httpx.post(f"{address}/v1/entries", files=files(1, 2), data=sent).status_code == 201
        yield process, address, tmp_path_factory


def search(address):
    start = time.monotonic()
    sent = {"modality": "visible", "top": "1"}
    reply = httpx.post(f"{address}/v1/search", files=files(1), data=sent, timeout=120)
    assert reply.json()["hits"][0]["id"] == "a"
    return time.monotonic() - start


def body_of(*images):
    """An /v1/embed request as bytes."""
    sent = [("images", (f"{at}", data)) for at, data in enumerate(images)]
    made = httpx.Request("POST", "http://127.0.0.1/v1/embed", files=sent, data={"modality": "visible"})
    body = made.read()
    head = [b"POST /v1/embed HTTP/1.1", *(name + b": " + value for name, value in made.headers.raw)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_ordinary_searches_go_on_beside_heavy_requests(server):
    _, address, _ = server
    search(address)
    attacks = [body_of(heavy_jpeg(1000)), body_of(heavy_jpeg(MOST_SCANS - 5)), body_of(*[blank()] * 64)]
    stop = threading.Event()

    def attack(data):
        while not stop.is_set():
            with contextlib.suppress(OSError), connect(address) as one:
                one.sendall(data)
                one.settimeout(5)
                one.recv(1000)

    threads = [threading.Thread(target=attack, args=[data], daemon=True) for data in attacks]
    for thread in threads:
        thread.start()
    took = [search(address) for _ in range(15)]
    stop.set()
    for thread in threads:
        thread.join(120)
    assert max(took) < PATIENCE


def many_segments(count=80_000):
    """A crop by its pixels and its bytes, whose header takes many seconds: Pillow joins the segments one by one."""
    out = io.BytesIO()
    Image.new("RGB", (64, 128)).save(out, "JPEG")
    segment = b"\xff\xe1" + (22).to_bytes(2, "big") + b"Exif\0\0" + bytes(14)
    return out.getvalue()[:2] + segment * count + out.getvalue()[2:]


def test_a_small_image_that_is_slow_does_not_hold_the_decoder_of_crops(server):
    _, address, _ = server
    search(address)
    with connect(address) as one:
        one.sendall(body_of(*[many_segments()] * 4))
        time.sleep(0.2)
        assert max(search(address) for _ in range(3)) < 2.0


def test_a_crop_that_is_slow_is_decoded_among_the_large_images(tmp_path, monkeypatch):
    monkeypatch.setattr("fmcnet.server.decoding.decode_cost", lambda data: 0)
    monkeypatch.setattr("fmcnet.server.decoding.CROP_SECONDS", 0.01)
    with running(tmp_path, limits=Limits(wait=0.001, decode_seconds=120.0)) as one:
        large, moved = one.service._decoders._large, []
        put = large.put
        monkeypatch.setattr(large, "put", lambda images: (moved.extend(images), put(images)))
        # long on any processor: the pool looks at its clock ten times a second
        assert embed(one.client, blank(40), many_segments(50_000)).status_code == 200
        assert "1" in [image.upload.name for image in moved]


def test_the_work_of_a_caller_who_left_is_dropped(server):
    _, address, _ = server
    for _ in range(4):
        with connect(address) as one:
            one.sendall(body_of(*[blank(2400)] * 16))
            time.sleep(0.2)
    for _ in range(600):
        if "fmcnet_requests_working 1.0" in httpx.get(f"{address}/metrics").text:
            break
        time.sleep(0.05)
    assert search(address) < PATIENCE


def test_an_answer_that_nobody_reads_is_ended(server):
    _, address, _ = server
    with connect(address) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with contextlib.suppress(OSError):
            for _ in range(2000):  # pipelined, until neither side takes more
                one.settimeout(2)
                one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20)
        time.sleep(2.5)
        one.settimeout(30)
        with contextlib.suppress(ConnectionError):  # cut, or closed in order after what was under way
            while one.recv(2**20):
                pass
    search(address)


def test_one_address_cannot_hold_all_connections(server):
    _, address, _ = server
    open_ = [connect(address) for _ in range(100)]
    try:
        ended = 0
        for one in open_:
            one.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                try:
                    ended += one.recv(1) == b""
                except ConnectionError:
                    ended += 1
        assert 30 <= ended < 100
    finally:
        for one in open_:
            one.close()
    time.sleep(0.2)
    search(address)


def test_a_stop_keeps_its_time_and_says_what_it_cut_off(server):
    process, address, _ = server
    held = [connect(address) for _ in range(12)]
    for one in held:  # some ten seconds of decoding
        one.sendall(body_of(*[blank(2400)] * 16))
    time.sleep(0.3)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - start < 3.0 + 2.0  # promised, and the system's end of the process
    said = "".join(process.said)
    assert "Traceback" not in said
    assert re.search(r"stopped: [1-9]\d* requests cut off", process.said[-1])
    for one in held:
        one.close()


def test_requests_that_are_refused_before_their_route_are_logged_within_a_bound(tmp_path):
    with running(tmp_path, keys=KEYS) as one:
        for _ in range(300):
            assert one.client.get("/v1/entries", headers={"X-API-Key": "wrong"}).status_code == 401
        assert one.add(1).status_code == 401
        lines = one.log()
    assert 1 <= len(lines) <= 100
    first = lines[0]
    assert (first["action"], first["outcome"], first["status"]) == ("request", "refused", 401)
    assert first["path"] == "/v1/entries"
    assert "wrong" not in json.dumps(lines)


def test_a_missing_scope_is_logged(tmp_path):
    with running(tmp_path, keys=KEYS) as one:
        assert one.client.delete("/v1/entries?pid=1", headers=bearer("read")).status_code == 403
        assert one.log()[-1]["status"] == 403


@pytest.mark.parametrize("host", ["127.0.0.2:8000", "[::1]:8000", "localhost:1"])
def test_every_name_of_this_machine_is_answered_without_keys(tmp_path, host):
    with running(tmp_path) as one:
        assert one.client.get("/v1/gallery", headers={"Host": host}).status_code == 200
        assert one.client.get("/v1/gallery", headers={"Host": "example.org"}).status_code == 403


@pytest.mark.parametrize("which", ["_crops", "_large"])
def test_decoder_processes_that_died_are_replaced(tmp_path, which):
    """As when the system runs out of memory and kills one that has nothing to do."""
    with running(tmp_path, limits=Limits(wait=0.001), own_decoders=True) as one:
        pool = getattr(one.service._decoders, which)._pool
        for pid in list(pool._pool_manager.worker_manager.workers):
            os.kill(pid, signal.SIGKILL)
        time.sleep(1.0)
        replies = [embed(one.client, blank(40 if which == "_crops" else 2000)).status_code for _ in range(3)]
        assert replies[1:] == [200, 200]
        assert replies[0] in (200, 503)
        assert one.client.get("/readyz").status_code == 200


def test_a_service_that_cannot_decode_says_so_at_its_start(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no process can be started")

    monkeypatch.setattr("fmcnet.server.decoding.ProcessPool.schedule", fails)
    with pytest.raises(Exception, match="no process can be started"), running(tmp_path):
        pass
