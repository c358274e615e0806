"""Generated bad requests: never a 5xx, never a traceback, nothing lost. $FMCNET_BAD_INPUT sets how many (300)."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from fmcnet.server.limits import Limits
from tests.server.service import KEYS, bearer, encoded, picture, png, running

CASES = int(os.environ.get("FMCNET_BAD_INPUT", "300"))
LIMITS = Limits(body_bytes=60_000, pixels=10_000, images=4, top=30, wait=0.0005)
WORDS = [
    "", " ", ".", "..", "../../etc/passwd", "..%2f..%2fetc/passwd", "/etc/passwd", "\\\\host", "a\x00b", "\x7f",
    "'; DROP TABLE entries; --", "<script>alert(1)</script>", "NaN", "inf", "-1", "1e999", "0", "null", "[]", "{}",
    "9" * 40, "x" * 5000, "\u202e\u0000", "\U0001f600" * 80, "visible", "%00", "%ff", "None", "True", "2026-13-45",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-03-01T00:00:00", "1e400", "\r\nX-Evil: 1",
]  # fmt: skip
FIELDS = [
    "modality", "top", "camera", "track", "tag", "pid", "entry_modality", "since", "until", "min_probability", "fmr",
    "prior", "group", "id", "time", "source", "on_duplicate", "images", "unknown",
]  # fmt: skip


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG whose header promises what a few bytes cannot hold, or what no memory could."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(20_000))) + chunk(b"IEND", b"")


def broken_image(random):
    """Bytes that are no good image (or, after a flip, by chance still one)."""
    good = encoded(
        picture(int(random.integers(99))), str(random.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF"]))
    )
    kind = int(random.integers(9))
    if kind == 0:
        return good[: int(random.integers(len(good)))]
    if kind == 1:
        bad = bytearray(good)
        for at in random.integers(0, len(bad), int(random.integers(1, 40))):
            bad[at] = int(random.integers(256))
        return bytes(bad)
    if kind == 2:
        return random.bytes(int(random.integers(0, 3000)))
    if kind == 3:
        return bomb(int(random.integers(200, 2**31 - 1)), int(random.integers(200, 2**31 - 1)))
    if kind == 4:
        return encoded(Image.new("RGB", (int(random.integers(1, 4)), 400)))
    if kind == 5:
        return encoded(Image.new("1", (3000, 4 + int(random.integers(50)))))
    if kind == 6:
        return b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"
    if kind == 7:
        return encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file"


def word(random):
    return WORDS[int(random.integers(len(WORDS)))]


def form(random):
    """Fields and files, most of them wrong."""
    data = {"modality": "visible"} if random.random() < 0.7 else {}
    for _ in range(int(random.integers(0, 4))):
        data[FIELDS[int(random.integers(len(FIELDS)))]] = [
            word(random) for _ in range(int(random.integers(1, 4)))
        ]
    uploads = []
    for at in range(int(random.integers(0, 7))):
        good = random.random() < 0.4
        name = word(random) or "a.png"
        uploads.append(("images", (name, png(at) if good else broken_image(random), "image/png")))
    return {"data": data, "files": uploads or None}


def raw(random):
    """Bodies that are no form, or half of one."""
    content = [
        b"", b"{", b'{"images": [NaN]}', b"[" * 5000, b"--x\r\n", random.bytes(500), b"x" * 70_000, b"\xff\xfe" * 300,
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + png(1),
        b'--x\r\nContent-Disposition: form-data\r\n\r\nq\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="modality"\r\n\r\n\xff\xfe\r\n--x--\r\n',
        b"--x\r\n" + b"A: " + b"b" * 9000 + b"\r\n\r\n", b"a=b&modality=visible&images=zzz" * 20,
        b"".join(b'--x\r\nContent-Disposition: form-data; name="camera"\r\n\r\n\r\n' for _ in range(800)) + b"--x--",
    ][int(random.integers(14))]  # fmt: skip
    kinds = [
        "multipart/form-data; boundary=x", "multipart/form-data", "application/json", "text/plain", "",
        "multipart/form-data; boundary=" + "y" * 300, "application/x-www-form-urlencoded",
        "multipart/form-data; boundary",
        "multipart/form-data; charset=nonsense; boundary=x", "image/png",
    ]  # fmt: skip
    return {"content": content, "headers": {"Content-Type": kinds[int(random.integers(len(kinds)))]}}


def quoted(text):
    return text if "%" in text else quote(text, safe="/" if len(text) % 2 else "")


def request(random):
    """(method, path, what httpx takes)."""
    kind = int(random.integers(10))
    if kind < 6:
        path = ["/v1/search", "/v1/entries", "/v1/embed"][kind % 3]
        return "POST", path, form(random) if kind < 4 else raw(random)
    if kind == 6:
        folder = ["/v1/entries/", "/v1/images/", "/page/", "/"][int(random.integers(4))]
        return ["GET", "DELETE"][int(random.integers(2))], folder + quoted(word(random)), {}
    if kind == 7:
        names = ["track", "camera", "pid", "limit", "offset"]
        return (
            "GET",
            "/v1/entries",
            {"params": {names[int(random.integers(5))]: word(random) for _ in range(2)}},
        )
    if kind == 8:
        methods = ["PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "POST", "DELETE", "EVIL"]
        paths = [
            "/v1/search",
            "/v1/entries",
            "/",
            "/metrics",
            "/healthz",
            "/v1/gallery",
            "/v1",
            "//",
            "/openapi.json",
        ]
        return methods[int(random.integers(8))], paths[int(random.integers(9))], {}
    key = word(random).encode("utf-8").replace(b"\r\n", b"").replace(b"\x00", b"") or b"x"
    name = ["Authorization", "X-API-Key", "Origin", "Host", "Content-Length"][int(random.integers(5))]
    return "POST", "/v1/search", {**form(random), "headers": {name: key}, "wrong_key": True}


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "crops").mkdir()
    with running(folder, keys=KEYS, limits=LIMITS, keep=True, sources=folder / "crops") as one:
        one.client.headers.update(bearer("admin"))
        for seed in range(4):
            assert one.add(seed, id=f"keep-{seed}", camera="gate").status_code == 201
        yield one


def test_generated_bad_input(serving):
    statuses = {}
    for case in range(CASES):
        random = np.random.default_rng((2026, case))
        method, path, sent = request(random)
        wrong = sent.pop("wrong_key", False)
        if wrong and "Authorization" not in sent["headers"]:
            sent["headers"] = {"Authorization": "Bearer wrong", **sent["headers"]}
        reply = serving.client.request(method, path, **sent)
        told = f"case {case}: {method} {path} -> {reply.status_code} {reply.text[:300]}"
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        assert reply.status_code < 500, told
        assert "Traceback" not in reply.text, told
        assert "site-packages" not in reply.text, told
        assert not (wrong and reply.status_code < 400), told
        if reply.status_code >= 400 and method != "HEAD":
            error = reply.json()["error"]
            assert all(error[part] for part in ("what", "where", "do")), told
            assert error["status"] == reply.status_code, told
    assert {400, 401, 404, 405, 413, 422} <= statuses.keys()
    here = {entry.id for entry, _ in serving.service.gallery.scan()}
    assert {f"keep-{seed}" for seed in range(4)} <= here
    for seed in range(4):
        assert serving.search(seed, top=1).json()["hits"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert serving.service.gallery.check() == []
    assert serving.client.get("/readyz").status_code == 200
    inside = {path.name for path in serving.folder.iterdir()}
    assert inside <= {"people.gallery", "audit.jsonl", "kept", "crops", "calibration.json"}


def test_a_bomb_is_refused_by_its_header(serving, monkeypatch):
    """Not one pixel of it is decoded."""
    monkeypatch.setattr("fmcnet.server.uploads.to_rgb", lambda image: pytest.fail("decoded"))
    for data in (bomb(60_000, 60_000), bomb(101, 100)):
        reply = serving.client.post(
            "/v1/embed", files=[("images", ("b.png", data))], data={"modality": "visible"}
        )
        assert (reply.status_code, "pixels" in reply.json()["error"]["what"]) == (413, True)


def test_all_broken_images_are_named(serving):
    sent = [("images", (name, data)) for name, data in (("a", b""), ("b", png(1)), ("c", b"zz"))]
    error = serving.client.post("/v1/embed", files=sent, data={"modality": "visible"}).json()["error"]
    assert error["what"].startswith("2 of 3 images")
    assert "'a' is empty" in error["what"]
    assert "'c' is no image" in error["what"]


def test_an_upload_never_touches_the_disk(serving, monkeypatch):
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    large = encoded(Image.frombytes("RGB", (99, 99), np.random.default_rng(0).bytes(99 * 99 * 3)))
    assert len(large) > 25_000
    sent = {"files": [("images", ("a.png", large))], "data": {"modality": "visible"}}
    assert serving.client.post("/v1/embed", **sent).status_code == 200
    assert not rolled


def test_a_fault_of_the_service_is_told_without_its_insides(serving, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("/secret/path.py line 3")

    monkeypatch.setattr(serving.service.searcher, "answer", fail)
    reply = serving.search(1)
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.json()["error"]["do"]
