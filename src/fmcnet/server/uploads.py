"""Uploaded bytes to images: the header is looked at before a pixel is decoded. Runs in decoder processes."""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from fmcnet.data.images import FAILURES, REMARKS, register_heic, to_rgb
from fmcnet.data.listing import AVIF_BRANDS
from fmcnet.data.pixels import OR_RANGE, RANGE_FIELD, Remarks, ValueRange
from fmcnet.errors import DataError
from fmcnet.inference.image_input import make_thumbnail, read_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is taken, beside HEIC and AVIF where they can be read; others of Pillow's decoders are never started."""
SMALLEST = 4
"""Pixels of a side."""
MOST_SCANS = 30
"""Of a progressive JPEG. Encoders write about 10; each costs a pass over the whole image."""
BYTE = 8
"""Pixels that cost as much as a byte of JPEG may: thousands of empty segments take Pillow long."""
THUMBNAIL_SIZE = (512, 512)
"""Most width and height of a thumbnail, pixels."""
_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..[\x08\x0c](....)", re.DOTALL)
"""Begins the frame of a JPEG: its height and width."""


class Upload(NamedTuple):
    """An image file, the values that become 0 and 255, and whether to keep a thumbnail of it."""

    name: str
    data: bytes
    value_range: ValueRange | None = None
    keep: bool = False


class DecodedUpload(NamedTuple):
    """An upload's image.

    Attributes:
        pixels: (H, W, 3) uint8 of the model's input size.
        thumbnail: a JPEG to keep.
        source_pixels: how many pixels the upload had.
        remarks: kinds of `fmcnet.data.pixels` that a person should see.
    """

    pixels: NDArray[np.uint8]
    thumbnail: bytes | None
    source_pixels: int
    remarks: tuple[str, ...] = ()


class UploadError(Exception):
    """An image that is not taken: HTTP's status, what was wrong, and what helps."""

    def __init__(self, status: int, what: str, do: str) -> None:
        super().__init__(status, what, do)
        self.status, self.what, self.do = status, what, do


def _allowed_formats(data: bytes) -> tuple[str, ...]:
    """Pillow's decoders for these bytes; ValueError for HEIC or AVIF where a package is missing."""
    if data[4:8] == b"ftyp" and data[8:12] in AVIF_BRANDS and features.check("avif"):
        return ("AVIF",)
    return ("HEIF",) if register_heic(data[:64]) else FORMATS


def decode_cost(data: bytes) -> int:
    """Pixels times passes over them, or what the bytes cost, if that is more; very many for what is no JPEG or PNG.

    No decoder of Pillow is started: this runs in the service itself, and some headers take minutes to read.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return max(int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big"), len(data))
    if data[:2] != b"\xff\xd8":
        return 2**62
    sides = [struct.unpack(">HH", packed) for packed in _FRAME.findall(data)]
    pixels = max((height * width for height, width in sides), default=0)  # a preview may be in the header
    return max(pixels * data.count(b"\xff\xda"), BYTE * len(data))


def decode_upload(upload: Upload, most_pixels: int, size: tuple[int, int]) -> DecodedUpload:
    """What the service needs of one uploaded file; `size`: height and width of the model's input.

    Raises:
        UploadError: as `decode`.
    """
    image = decode(upload.data, upload.name, most_pixels, upload.value_range)
    remarks = Remarks()
    pixels = read_pixels(image, *size, remarks=remarks, name=upload.name)
    return DecodedUpload(
        pixels,
        make_thumbnail(image, size=THUMBNAIL_SIZE) if upload.keep else None,
        image.width * image.height,
        tuple(dict.fromkeys((*image.info[REMARKS], *remarks.kinds()))),
    )


def decode(data: bytes, name: str, most_pixels: int, value_range: ValueRange | None = None) -> Image.Image:
    """One image, mode RGB, upright, with nothing of its file's metadata; `most_pixels` by its header.

    Raises:
        UploadError: 413 for too many pixels, 422 for what is no image of `FORMATS`, is truncated or tiny.
    """
    if not data:
        raise _bad(name, "is empty (0 bytes)")
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MOST_SCANS:
        raise _bad(name, f"is a JPEG of {scans} scans, more than {MOST_SCANS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning of bombs: the limit here is the rule
            with Image.open(io.BytesIO(data), formats=_allowed_formats(data)) as source:
                width, height = source.size
                if width * height > most_pixels:
                    raise _large(name, f"{width} x {height} pixels, more than {most_pixels}")
                if min(width, height) < SMALLEST:
                    raise _bad(name, f"has {width} x {height} pixels: a crop needs {SMALLEST} or more a side")
                decoded = to_rgb(source, value_range)
    except Image.DecompressionBombError as error:
        raise _large(name, f"far more than {most_pixels} pixels: a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise _bad(name, f"is no image of {', '.join(FORMATS)}, HEIC, AVIF") from error
    except (*FAILURES, MemoryError, DataError, StopIteration) as error:  # the last cannot cross asyncio
        reason = str(error).removeprefix("cannot read the image: ").replace(OR_RANGE, f", or {RANGE_FIELD}")
        what = f"cannot be decoded ({reason or type(error).__name__})"
        if value_range is not None and " range " in reason:  # of the field, or the gallery's
            raise UploadError(
                422, f"image '{name}' {what}", f"{RANGE_FIELD}, one that fits this image"
            ) from error
        raise _bad(name, what) from error
    plain = Image.new("RGB", decoded.size)  # without EXIF, GPS, comments
    plain.paste(decoded)
    plain.info[REMARKS] = decoded.info[REMARKS]
    return plain


def _bad(name: str, reason: str) -> UploadError:
    return UploadError(422, f"image '{name}' {reason}", "send a whole JPEG or PNG of a person's crop")


def _large(name: str, pixels: str) -> UploadError:
    return UploadError(413, f"image '{name}' has {pixels}", "send the person's crop, made smaller")
