"""Uploaded bytes to images: the header is looked at before a pixel is decoded. Runs in decoder processes."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fmcnet.data.depth import ValueRange
from fmcnet.data.images import to_rgb
from fmcnet.errors import DataError
from fmcnet.inference.image_input import read_pixels
from fmcnet.retrieval.thumbnails import thumbnail

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is taken; others of Pillow's many decoders are never started."""
SMALLEST = 4
"""Pixels of a side."""
MOST_SCANS = 30
"""Of a progressive JPEG. Encoders write about 10; each costs a pass over the whole image."""
THUMBNAIL_SIZE = (512, 512)
"""Longest side of a kept picture, pixels."""
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, TypeError, OverflowError, IndexError, MemoryError)


class DecodeRules(NamedTuple):
    """What an upload must be, and what becomes of it.

    Attributes:
        pixels: most of one image, width times height, by its header.
        height, width: of the model's input.
        value_range: as `fmcnet.data.images.load_image`.
        keep: make a picture to keep.
    """

    pixels: int
    height: int
    width: int
    value_range: ValueRange | None = None
    keep: bool = False


class DecodedUpload(NamedTuple):
    """(H, W, 3) uint8 of the model's input size, a JPEG to keep, and how many pixels the upload had."""

    pixels: NDArray[np.uint8]
    picture: bytes | None
    source_pixels: int


class UploadError(Exception):
    """An image that is not taken: HTTP's status, what was wrong, and what helps."""

    def __init__(self, status: int, what: str, do: str) -> None:
        super().__init__(status, what, do)
        self.status, self.what, self.do = status, what, do


def decode_cost(data: bytes) -> int:
    """Pixels times passes over them, by the header alone; 0 for what is no image and will not be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
                scans = data.count(b"\xff\xda") if stored.format == "JPEG" else 1
                return stored.width * stored.height * scans
    except Exception:  # whatever it is: the decoder says it
        return 0


def decode_upload(data: bytes, name: str, rules: DecodeRules) -> DecodedUpload:
    """What the service needs of one uploaded file.

    Raises:
        UploadError: as `decode`.
    """
    image = decode(data, name, rules.pixels, rules.value_range)
    pixels = read_pixels(image, rules.height, rules.width)
    return DecodedUpload(
        pixels, thumbnail(image, size=THUMBNAIL_SIZE) if rules.keep else None, image.width * image.height
    )


def decode(data: bytes, name: str, most_pixels: int, value_range: ValueRange | None = None) -> Image.Image:
    """One image, mode RGB, upright, with nothing of its file's metadata.

    Args:
        data: the file. name: for messages. most_pixels: width times height, by the header.
        value_range: as `fmcnet.data.images.load_image`.

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
            with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
                width, height = stored.size
                if width * height > most_pixels:
                    raise UploadError(
                        413,
                        f"image '{name}' has {width} x {height} pixels, more than {most_pixels}",
                        "send the person's crop, made smaller",
                    )
                if min(width, height) < SMALLEST:
                    raise _bad(name, f"has {width} x {height} pixels: a crop needs {SMALLEST} or more a side")
                decoded = to_rgb(stored, value_range)
    except Image.DecompressionBombError as error:
        raise UploadError(
            413,
            f"image '{name}' has far more than {most_pixels} pixels: a decompression bomb",
            "send the person's crop, made smaller",
        ) from error
    except UnidentifiedImageError as error:
        raise _bad(name, f"is no image of {', '.join(FORMATS)}") from error
    except (*_FAILURES, DataError) as error:
        said = str(error).removeprefix("cannot read the image: ")
        raise _bad(name, f"cannot be decoded ({said or type(error).__name__})") from error
    plain = Image.new("RGB", decoded.size)  # without EXIF, GPS, comments
    plain.paste(decoded)
    return plain


def _bad(name: str, said: str) -> UploadError:
    return UploadError(422, f"image '{name}' {said}", "send a whole JPEG or PNG of a person's crop")
