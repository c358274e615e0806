"""Uploaded bytes to images: the header is looked at before a pixel is decoded."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from fmcnet.data.depth import ValueRange
from fmcnet.data.images import to_rgb
from fmcnet.errors import DataError
from fmcnet.server.errors import Refusal

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is taken; others of Pillow's many decoders are never started."""
SMALLEST = 4
"""Pixels of a side."""
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, TypeError, OverflowError, IndexError, MemoryError)


def decode(data: bytes, name: str, most_pixels: int, value_range: ValueRange | None = None) -> Image.Image:
    """One image, mode RGB, upright, with nothing of its file's metadata.

    Args:
        data: the file. name: for messages. most_pixels: width times height, by the header.
        value_range: as `fmcnet.data.images.load_image`.

    Raises:
        Refusal: 413 for too many pixels, 422 for what is no image of `FORMATS`, is truncated or tiny.
    """
    if not data:
        raise _bad(name, "is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning of bombs: the limit here is the rule
            with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
                width, height = stored.size
                if width * height > most_pixels:
                    raise Refusal(
                        413,
                        f"image '{name}' has {width} x {height} pixels, more than {most_pixels}",
                        "images",
                        "send the person's crop, made smaller",
                    )
                if min(width, height) < SMALLEST:
                    raise _bad(name, f"has {width} x {height} pixels: a crop needs {SMALLEST} or more a side")
                decoded = to_rgb(stored, value_range)
    except Image.DecompressionBombError as error:
        raise Refusal(
            413,
            f"image '{name}' has far more than {most_pixels} pixels: a decompression bomb",
            "images",
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


def _bad(name: str, said: str) -> Refusal:
    return Refusal(422, f"image '{name}' {said}", "images", "send a whole JPEG or PNG of a person's crop")
