"""TIFF files of depths and channel counts that Pillow does not open: float RGB, float64, two channels, uint32."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from PIL import TiffImagePlugin as tiff

_KINDS = {1: "u", 2: "i", 3: "f"}
_NAMES = {"u": "unsigned", "i": "signed", "f": "float"}
_SUPPORTED = {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
MOST_PIXELS = 2**27


class TiffImage(NamedTuple):
    """A decoded TIFF.

    Attributes:
        values: (H, W, C), as stored.
        alpha: whether the last channel is alpha.
        inverted: whether 0 is white.
        orientation: of EXIF, 1 to 8.
    """

    values: NDArray[Any]
    alpha: bool
    inverted: bool
    orientation: int


def is_tiff(head: bytes) -> bool:
    """Whether the first bytes are a TIFF's."""
    return head[:4] in (b"II*\0", b"MM\0*")


def read_tiff(path: Path) -> TiffImage:
    """The first page of a TIFF in strips, stored as it is or deflated.

    Raises:
        ValueError: for any other TIFF; the text has its depth and channels and what to do.
        OSError: when the file is truncated.
    """
    with path.open("rb") as stream:
        header = stream.read(8)
        tags: Any = tiff.ImageFileDirectory_v2(header)
        stream.seek(tags.next)
        tags.load(stream)
        samples = int(tags.get(tiff.SAMPLESPERPIXEL, 1))
        bits = tuple(tags.get(tiff.BITSPERSAMPLE, (1,)))
        kind = _KINDS.get(next(iter(tags.get(tiff.SAMPLEFORMAT, (1,)))), "")
        kind_of_file = f"a TIFF of {samples} channels of {bits[0]}-bit {_NAMES.get(kind, 'unknown')} values"
        advice = "save it as 8- or 16-bit, uncompressed"
        number = f"{kind}{bits[0] // 8}"
        if number not in _SUPPORTED or bits[0] % 8 or len(set(bits)) != 1 or tiff.IMAGEWIDTH not in tags:
            raise ValueError(f"{kind_of_file}, which cannot be read: {advice}")
        if (
            tags.get(tiff.COMPRESSION, 1) not in (1, 8, 32946)
            or tags.get(tiff.PREDICTOR, 1) != 1
            or ExifTags.Base.TileOffsets in tags
        ):
            raise ValueError(f"{kind_of_file}, in tiles or compressed, which cannot be read: {advice}")
        width, height = int(tags[tiff.IMAGEWIDTH]), int(tags[tiff.IMAGELENGTH])
        if not 0 < width * height * samples <= MOST_PIXELS:
            raise ValueError(f"{kind_of_file}, of {width} x {height} pixels, which is too large")
        planar = tags.get(tiff.PLANAR_CONFIGURATION, 1) == 2
        order = "<" if header[:1] == b"I" else ">"
        values = np.frombuffer(_strips(stream, tags), dtype=f"{order}{number}")
    shape = (samples, height, width) if planar else (height, width, samples)
    if values.size < height * width * samples:
        raise OSError("truncated: the file ends before the last pixel")
    values = values[: height * width * samples].reshape(shape)
    extra = tuple(tags.get(tiff.EXTRASAMPLES, ()))
    return TiffImage(
        (values.transpose(1, 2, 0) if planar else values).astype(number),
        alpha=samples in (2, 4) and extra[:1] in ((1,), (2,)),
        inverted=tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0,
        orientation=int(tags.get(ExifTags.Base.Orientation, 1)),
    )


def _strips(stream: IO[bytes], tags: Any) -> bytes:
    parts = []
    for offset, count in zip(tags[tiff.STRIPOFFSETS], tags[tiff.STRIPBYTECOUNTS], strict=True):
        stream.seek(offset)
        part = stream.read(count)
        if len(part) < count:
            raise OSError("truncated: the file ends before the last pixel")
        try:
            parts.append(part if tags.get(tiff.COMPRESSION, 1) == 1 else zlib.decompress(part))
        except zlib.error as error:
            raise OSError(f"truncated or damaged: {error}") from error
    return b"".join(parts)
