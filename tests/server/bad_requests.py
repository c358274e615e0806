"""Bad requests, made by a seed: broken images and bombs, wrong fields, half forms, odd addresses, wrong keys."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from urllib.parse import quote

import numpy as np
from PIL import Image

from tests.server.service import bands, bearer, encoded, png

LIMITS = {
    "body_bytes": 200_000,
    "pixels": 10_000,
    "images": 4,
    "top": 30,
    "wait": 0.0005,
    "body_seconds": 1.0,
}
"""Of the service that they are sent to."""
WORDS = [
    "", " ", ".", "..", "../../etc/passwd", "..%2f..%2fetc/passwd", "/etc/passwd", "\\\\host", "a\x00b", "\x7f",
    "'; DROP TABLE entries; --", "<script>alert(1)</script>", "NaN", "inf", "-1", "1e999", "0", "null", "[]", "{}",
    "9" * 40, "x" * 5000, "\u202e\u0000", "\U0001f600" * 80, "visible", "%00", "%ff", "None", "True", "2026-13-45",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-03-01T00:00:00", "1e400", "\r\nX-Evil: 1",
    "2026", "a/../b",
]  # fmt: skip
FIELDS = [
    "modality", "top", "camera", "track", "tag", "pid", "entry_modality", "since", "until", "min_probability", "fmr",
    "prior", "group", "id", "time", "source", "on_duplicate", "images", "unknown",
    "cameras",
]  # fmt: skip


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png_of(width, height, *chunks):
    """A 1-bit PNG of few bytes: rows of zeros, as many as 20 MB hold."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(min(height * (width // 8 + 2), 20_000_000))))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + rows + chunk(b"IEND", b"")


@cache
def packed(size):
    """So many zeros."""
    return zlib.compress(bytes(size))


def bomb(random):
    """What would be large once unpacked: pixels, texts, colour profiles, frames."""
    zeros = packed(40_000_000)
    kind = int(random.integers(6))
    if kind == 0:  # more than any memory has
        return png_of(int(random.integers(200, 2**31 - 1)), int(random.integers(200, 2**31 - 1)))
    if kind == 1:  # whole, of 150 million pixels
        return png_of(12_500, 12_000)
    if kind == 2:
        return png_of(24, 48, chunk(b"zTXt", b"Comment\0\0" + zeros))
    if kind == 3:
        return png_of(24, 48, chunk(b"iCCP", b"profile\0\0" + zeros))
    if kind == 4:
        out = io.BytesIO()
        frames = [Image.new("P", (99, 99), at % 250) for at in range(40)]
        frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
        return out.getvalue().replace(struct.pack("<HH", 99, 99), struct.pack("<HH", 65_000, 65_000))
    return encoded(Image.new("1", (6000, 5000)), "TIFF", compression="group4")


def broken_image(random):
    """Bytes that are no good image (or, after a flip, by chance still one)."""
    good = encoded(bands(int(random.integers(99))), str(random.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF"])))
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
        return bomb(random)
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
    """Fields and files, most of them wrong; of every other form the files only."""
    data = {"modality": "visible"} if random.random() < 0.7 else {}
    for _ in range(int(random.integers(0, 4))):
        data[FIELDS[int(random.integers(len(FIELDS)))]] = [
            word(random) for _ in range(int(random.integers(1, 4)))
        ]
    most = 7
    if random.random() < 0.5:
        data, most = {"modality": "visible"}, 3
    uploads = []
    for at in range(int(random.integers(0, most))):
        good = random.random() < 0.4
        name = word(random) or "a.png"
        uploads.append(("images", (name, png(at) if good else broken_image(random), "image/png")))
    return {"data": data, "files": uploads or None}


def raw(random):
    """Bodies that are no form, or half of one."""
    content = [
        b"", b"{", b'{"images": [NaN]}', b"[" * 5000, b"--x\r\n", random.bytes(500), b"x" * 210_000,
        b"\xff\xfe" * 300,
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + png(1),
        b'--x\r\nContent-Disposition: form-data\r\n\r\nq\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="modality"\r\n\r\n\xff\xfe\r\n--x--\r\n',
        b"--x\r\n" + b"A: " + b"b" * 9000 + b"\r\n\r\n", b"a=b&modality=visible&images=zzz" * 20,
        b"".join(b'--x\r\nContent-Disposition: form-data; name="camera"\r\n\r\n\r\n' for _ in range(800)) + b"--x--",
        b'--x\r\nContent-Disposition: form-data; name="modality"; filename*=utf-8\'\'%ff%00\r\n\r\nq\r\n--x--\r\n',
        packed(10_000_000),
    ][int(random.integers(16))]  # fmt: skip
    kinds = [
        "multipart/form-data; boundary=x", "multipart/form-data", "application/json", "text/plain", "",
        "multipart/form-data; boundary=" + "y" * 300, "application/x-www-form-urlencoded",
        "multipart/form-data; boundary",
        "multipart/form-data; charset=nonsense; boundary=x", "image/png",
    ]  # fmt: skip
    headers = {"Content-Type": kinds[int(random.integers(len(kinds)))]}
    if random.random() < 0.1:
        headers["Content-Encoding"] = "deflate"
    return {"content": content, "headers": headers}


def quoted(text):
    return text if "%" in text else quote(text, safe="/" if len(text) % 2 else "")


def request(random):
    """(method, path, what httpx takes, whether a key is sent that may not)."""
    kind = int(random.integers(11))
    admin = bearer("admin")
    if kind < 6:
        path = ["/v1/search", "/v1/entries", "/v1/embed"][kind % 3]
        sent = form(random) if kind < 4 else raw(random)
        return "POST", path, {**sent, "headers": {**admin, **sent.get("headers", {})}}, False
    if kind == 6:
        folder = ["/v1/entries/", "/v1/images/", "/page/", "/"][int(random.integers(4))]
        return (
            ["GET", "DELETE"][int(random.integers(2))],
            folder + quoted(word(random)),
            {"headers": admin},
            False,
        )
    if kind == 7:
        names = ["track", "camera", "pid", "limit", "offset", "since", "expect", "dry_run", "cameras"]
        asked = {names[int(random.integers(9))]: word(random) for _ in range(2)}
        method = ["GET", "DELETE"][int(random.integers(2))]
        return method, "/v1/entries", {"params": asked, "headers": admin}, False
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
        path = paths[int(random.integers(9))]
        return methods[int(random.integers(8))], path, {"headers": admin}, False
    text = word(random).encode("utf-8").replace(b"\r\n", b"") or b"x"
    if kind == 9:
        name = ["Origin", "Host", "Content-Length"][int(random.integers(3))]
        return "POST", "/v1/search", {**form(random), "headers": {**admin, name: text}}, False
    name = ["Authorization", "X-API-Key"][int(random.integers(2))]
    method, path = [("POST", "/v1/entries"), ("DELETE", "/v1/entries/keep-0"), ("GET", "/metrics")][
        int(random.integers(3))
    ]
    wrong = [text, b"Bearer " + text, b"Bearer", b"Basic YTpi", bearer("read")["Authorization"].encode()[:-1]]
    sent = form(random) if method == "POST" else {}
    return method, path, {**sent, "headers": {name: wrong[int(random.integers(5))]}}, True
