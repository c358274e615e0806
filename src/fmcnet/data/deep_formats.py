"""Images deeper than 8 bits that Pillow cuts to 8 bits or does not open: their stored values."""

from __future__ import annotations

import io
import re
import sys
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL import TiffImagePlugin as tiff

MOST_TIFF_VALUES = 2**27
_TIFF_KINDS = {1: ("u", "unsigned"), 2: ("i", "signed"), 3: ("f", "float")}
_TIFF_NUMBERS = frozenset({"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"})
_CUT = "truncated: the file ends before the last pixel"
_WIDE = re.compile(r"(RGB|RGBA|RGBX|LA|CMYK);16([BLN])")


def raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, by Pillow's name; "" where that is not known."""
    tiles: Any = getattr(image, "tile", None) or []
    if not tiles:
        return ""
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def lower_bytes(image: Image.Image) -> Image.Image | None:
    """The lower bytes of an image of several 16-bit channels, of which Pillow keeps the upper ones; None: others.

    The same bytes are decoded in the other byte order.
    """
    stream: Any = getattr(image, "fp", None)
    found = _WIDE.fullmatch(raw_mode(image))
    if found is None or stream is None:
        return None
    at = stream.tell()
    stream.seek(0)
    other = Image.open(io.BytesIO(stream.read()), formats=[str(image.format)])
    stream.seek(at)
    if found[1] == "LA":  # 32 bits a pixel: grey, its lower byte, alpha, its lower byte
        other._mode = "RGBA"
        wanted = "RGBA"
    else:
        swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[found[2]]
        wanted = f"{found[1]};16{swapped}"
    modes = [(wanted, *tile.args[1:]) if isinstance(tile.args, tuple) else wanted for tile in other.tile]
    other.tile = [tile._replace(args=args) for tile, args in zip(other.tile, modes, strict=True)]
    other.load()
    return other


def deep_ppm(image: Image.Image) -> NDArray[np.uint16] | None:
    """The values of a binary PGM or PPM deeper than 8 bits, which Pillow scales or cuts; None for all others."""
    stream: Any = getattr(image, "fp", None)
    tiles: Any = getattr(image, "tile", None) or []
    if image.format != "PPM" or stream is None or not tiles or tiles[0][0] not in ("raw", "ppm"):
        return None
    stream.seek(0)
    header = re.sub(rb"#.*", b"", stream.read(tiles[0][2])).split()
    if header[0] not in (b"P5", b"P6") or int(header[3]) < 256:
        return None
    width, height = image.size
    shape = (height, width, 3) if header[0] == b"P6" else (height, width)
    data = stream.read(2 * int(np.prod(shape)))
    if len(data) < 2 * int(np.prod(shape)):
        raise OSError(_CUT)
    return np.frombuffer(data, dtype=">u2").reshape(shape).astype(np.uint16)


def tiff_values(path: Path) -> tuple[NDArray[Any], Any]:
    """The values (H, W, C) of a TIFF in strips, stored as it is or deflated, and its tags."""
    with path.open("rb") as stream:
        header = stream.read(8)
        tags: Any = tiff.ImageFileDirectory_v2(header)
        stream.seek(tags.next)
        tags.load(stream)
        samples = int(tags.get(tiff.SAMPLESPERPIXEL, 1))
        bits = tuple(tags.get(tiff.BITSPERSAMPLE, (1,)))
        letter, word = _TIFF_KINDS.get(next(iter(tags.get(tiff.SAMPLEFORMAT, (1,)))), ("", "unknown"))
        kind = f"a TIFF of {samples} channels of {bits[0]}-bit {word} values"
        advice = "save it as 8- or 16-bit, uncompressed"
        number = f"{letter}{bits[0] // 8}"
        if number not in _TIFF_NUMBERS or bits[0] % 8 or len(set(bits)) != 1 or tiff.IMAGEWIDTH not in tags:
            raise ValueError(f"{kind}, which cannot be read: {advice}")
        stored = tags.get(tiff.COMPRESSION, 1) in (1, 8, 32946) and tags.get(tiff.PREDICTOR, 1) == 1
        if not stored or ExifTags.Base.TileOffsets in tags:
            raise ValueError(f"{kind}, in tiles or compressed, which cannot be read: {advice}")
        width, height = int(tags[tiff.IMAGEWIDTH]), int(tags[tiff.IMAGELENGTH])
        if not 0 < width * height * samples <= MOST_TIFF_VALUES:
            raise ValueError(f"{kind}, of {width} x {height} pixels, which is too large")
        order = "<" if header[:1] == b"I" else ">"
        values = np.frombuffer(_strips(stream, tags), dtype=f"{order}{number}")
    if values.size < height * width * samples:
        raise OSError(_CUT)
    values = values[: height * width * samples]
    if tags.get(tiff.PLANAR_CONFIGURATION, 1) == 2:
        return values.reshape(samples, height, width).transpose(1, 2, 0).astype(number), tags
    return values.reshape(height, width, samples).astype(number), tags


def _strips(stream: IO[bytes], tags: Any) -> bytes:
    parts = []
    for offset, count in zip(tags[tiff.STRIPOFFSETS], tags[tiff.STRIPBYTECOUNTS], strict=True):
        stream.seek(offset)
        part = stream.read(count)
        if len(part) < count:
            raise OSError(_CUT)
        try:
            parts.append(part if tags.get(tiff.COMPRESSION, 1) == 1 else zlib.decompress(part))
        except zlib.error as error:
            raise OSError(f"truncated or damaged: {error}") from error
    return b"".join(parts)
