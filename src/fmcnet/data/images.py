"""Load images of any format and depth as (H, W, 3) uint8, and list all that cannot be read."""

from __future__ import annotations

import logging
import os
import struct
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from PIL import TiffImagePlugin as tiff

from fmcnet.data.deep_formats import deep_ppm, lower_bytes, raw_mode, tiff_values
from fmcnet.data.listing import AVIF_BRANDS, HEIC_BRANDS
from fmcnet.data.table import Table
from fmcnet.data.value_range import (
    DROPPED,
    NO_RANGE,
    PAGES,
    Remarks,
    ValueRange,
    eight_bits,
    eight_bits_of_alpha,
)
from fmcnet.errors import DataError, fault_lines
from fmcnet.progress import Progress

MOST_THREADS = 16
"""That decode images at once."""

logger = logging.getLogger(__name__)

_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
REMARKS = "fmcnet.remarks"
"""Key of `Image.info`: kinds of `fmcnet.data.value_range` that a person should see."""
FAILURES = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
    RuntimeError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for files that are no image, or a damaged one."""


def load_image(path: str | Path, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Load an image as (H, W, 3) uint8, red-green-blue.

    - One channel (infrared) is repeated in three. Of two channels the second is alpha or is dropped, of four the
      fourth. The EXIF orientation is applied.
    - 8-bit values stay as they are. Deeper ones (16-bit, 32-bit, float) follow `fmcnet.data.value_range.eight_bits`.
    - Transparent pixels become black, half-transparent ones are darkened by their alpha.
    - Of several pages or frames the first is read.

    Args:
        path: the file; its content decides the format, not its suffix.
        value_range: the values that become 0 and 255, of images deeper than 8 bits; 8-bit images ignore it.

    Raises:
        DataError: when the file is absent, empty, truncated, no image, nearly constant (deeper than 8 bits) or
            wholly transparent; the message gives the reason.
    """
    return np.asarray(open_rgb(path, value_range))


def open_rgb(path: str | Path, value_range: ValueRange | None = None) -> Image.Image:
    """Load an image like `load_image`, as a Pillow image of mode RGB; `info[REMARKS]` holds what is doubtful."""
    path = Path(path)
    try:
        try:
            opened = Image.open(path)
        except UnidentifiedImageError:
            head = _head(path)
            if head[:4] in (b"II*\0", b"MM\0*"):
                return _from_tiff(path, value_range)
            if not register_heic(head):
                raise
            opened = Image.open(path)
        with opened as stored:
            return _to_rgb(stored, value_range)
    except FAILURES as error:
        raise DataError(f"cannot read the image {path}: {_reason(path, error)}") from error


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Convert an image that Pillow opened or made to RGB, by the rules of `load_image` (DataError, too)."""
    try:
        return _to_rgb(image, value_range)
    except FAILURES as error:
        raise DataError(f"cannot read the image: {error or type(error).__name__}") from error


def resize(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image, bilinear with antialiasing: the only resizing of model inputs.

    Args:
        image: of mode RGB.
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _to_rgb(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    remarks = [PAGES] if _has_pages(image) else []
    counts, lower = deep_ppm(image), lower_bytes(image)
    pair = raw_mode(image).startswith("LA;16")
    image.load()
    tags: Any = getattr(image, "tag_v2", None) or {}
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    fourth_is_no_alpha = mode == "RGBA" and bool(tags) and tiff.EXTRASAMPLES not in tags
    if fourth_is_no_alpha:
        remarks.append(DROPPED)
    alpha: NDArray[np.uint8] | None = None
    if counts is not None:
        upright = _eight_bit_image(counts, value_range, remarks)
    elif lower is not None:
        below = np.asarray(ImageOps.exif_transpose(lower))
        values = np.asarray(upright).astype(np.uint16) << 8
        if pair:  # Pillow's mode is LA or RGBA
            values, below = values[..., [0, -1]], below[..., [1, 3]]
        values |= below
        if pair or mode == "RGBA":
            alpha = None if fourth_is_no_alpha else _visible((values[..., -1] >> 8).astype(np.uint8))
            values = values[..., 0] if pair else values[..., :-1]
        upright = _eight_bit_image(values, value_range, remarks, "CMYK" if mode == "CMYK" else "RGB")
    elif mode in _DEEP_MODES:
        values = np.asarray(upright)
        unsigned = tags.get(tiff.SAMPLEFORMAT, (1,))[0] == 1
        if mode == "I" and tags.get(tiff.BITSPERSAMPLE) == (32,) and unsigned:
            values = values.view(np.uint32)
        inverted = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0
        upright = _eight_bit_image(values, value_range, remarks, inverted=inverted)
    elif not fourth_is_no_alpha and (
        mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info
    ):
        upright = (upright.convert("LA") if mode == "La" else upright).convert("RGBA")
        alpha = _visible(np.asarray(upright.getchannel("A")))
    return _blacken(upright, alpha, remarks)


def _eight_bit_image(
    values: NDArray[Any],
    value_range: ValueRange | None,
    remarks: list[str],
    mode: str = "RGB",
    *,
    inverted: bool = False,
) -> Image.Image:
    """An image of values (H, W) or (H, W, C) of any depth; `remarks` gets the kind of a doubtful one."""
    if values.dtype != np.uint8:
        values, remark = eight_bits(values, value_range)
        remarks += [remark] if remark else []
    values = 255 - values if inverted else values
    height, width = values.shape[:2]
    return Image.frombytes("L" if values.ndim == 2 else mode, (width, height), values.tobytes())


def _visible(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not alpha.any():
        raise ValueError("every pixel is transparent: save it without its alpha channel")
    return alpha


def _blacken(image: Image.Image, alpha: NDArray[np.uint8] | None, remarks: list[str]) -> Image.Image:
    """The image as RGB on black, with its remarks."""
    done = image.convert("RGB")
    if alpha is not None and alpha.min() < 255:
        done = Image.composite(done, Image.new("RGB", done.size), Image.fromarray(alpha))
    done.info.pop("transparency", None)
    done.info[REMARKS] = tuple(remarks)
    return done


def _has_pages(image: Image.Image) -> bool:
    """More than one page or frame; the previews in a camera's JPEG (MPO) are none."""
    if image.format in (None, "MPO", "JPEG"):
        return False
    try:
        return int(getattr(image, "n_frames", 1)) > 1
    except FAILURES:  # damaged after the first page
        return False
    finally:
        if image.format == "TIFF":
            image.seek(0)


def _from_tiff(path: Path, value_range: ValueRange | None) -> Image.Image:
    """The first page of a TIFF that Pillow does not open: float RGB, float64, two channels, uint32."""
    values, tags = tiff_values(path)
    alpha = None
    if values.shape[2] in (2, 4) and tuple(tags.get(tiff.EXTRASAMPLES, ()))[:1] in ((1,), (2,)):
        alpha, values = _visible(eight_bits_of_alpha(values[..., -1])), values[..., :-1]
    colour = values.shape[2] >= 3
    remarks = [DROPPED] if values.shape[2] > (3 if colour else 1) else []
    values = values[..., :3] if colour else values[..., 0]
    inverted = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0
    done = _blacken(_eight_bit_image(values, value_range, remarks, inverted=inverted), alpha, remarks)
    done.getexif()[ExifTags.Base.Orientation] = int(tags.get(ExifTags.Base.Orientation, 1))
    return ImageOps.exif_transpose(done)


def register_heic(head: bytes) -> bool:
    """Let Pillow read HEIC if the file is one, and return whether it is; ValueError where a package is missing."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in AVIF_BRANDS and features.check("avif"):
        raise ValueError("a damaged AVIF image")
    if brand in AVIF_BRANDS:
        raise ValueError("an AVIF image, which this Pillow cannot read: pip install 'fmcnet[heic]'")
    if brand not in HEIC_BRANDS:
        return False
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError(
            "a HEIC image, which needs the package pillow-heif: pip install 'fmcnet[heic]'"
        ) from error
    pillow_heif.register_heif_opener()
    return True


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(64)


def decode_images(
    table: Table, height: int, width: int, *, progress: bool | None = None
) -> Generator[NDArray[np.uint8]]:
    """Decode and resize the images of a table, in its order. Doubtful images are logged.

    Close the iterator where you leave it early: it holds threads and a progress bar.

    Args:
        table: the images.
        height: H, in pixels.
        width: W, in pixels.
        progress: show a bar; None: only on a terminal.

    Yields:
        (H, W, 3) uint8, image after image, until the first that cannot be read.

    Raises:
        DataError: at the end; it lists all images that cannot be read.
    """
    faults: list[str] = []
    for path, image, reason, _ in _decode_all(table, (height, width), "caching images", progress):
        if reason:
            faults.append(f"{path}: {reason}")
        elif image is not None and not faults:
            yield image
    if faults:
        lines = fault_lines(faults)
        raise DataError(
            f"{len(faults)} of {len(table)} images under {table.root} cannot be read:\n{lines}\n"
            "Copy or download them again, or remove them."
        )


def unreadable_images(table: Table, progress: bool | None = None) -> list[tuple[str, str]]:
    """Decode every image of a table. Doubtful images are logged.

    Args:
        table: the images.
        progress: show a bar; None: only on a terminal.

    Returns:
        (path, reason) of each image that cannot be read, in the table's order.
    """
    decoded = _decode_all(table, None, "checking images", progress)
    return [(path, reason) for path, _, reason, _ in decoded if reason]


class _Decoded(NamedTuple):
    path: str  # as in the table
    image: NDArray[np.uint8] | None  # (H, W, 3); None where it cannot be read, and where no size is given
    reason: str = ""  # why it cannot be read; "" where it can
    remarks: tuple[str, ...] = ()  # kinds of `fmcnet.data.value_range`


def _decode_all(
    table: Table, size: tuple[int, int] | None, label: str, progress: bool | None
) -> Iterator[_Decoded]:
    """Decode in threads, for Pillow releases the interpreter's lock. Few images are in memory at a time."""
    remarks = Remarks()
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, Progress(label, len(table), show=progress) as bar:
        jobs = (pool.submit(_decode_one, table.root, path, size) for path in table.path.tolist())
        running = deque(islice(jobs, 2 * threads))  # the jobs begun; those after them wait for the caller
        while running:
            decoded = running.popleft().result()
            running.extend(islice(jobs, 1))
            for kind in decoded.remarks:
                remarks.add(kind, decoded.path)
            yield decoded
            bar.advance()
    for line in remarks.lines(NO_RANGE):
        logger.warning("%s", line)


def _decode_one(root: Path, path: str, size: tuple[int, int] | None) -> _Decoded:
    try:
        image = open_rgb(root / path)
    except DataError as error:
        return _Decoded(path, None, str(error).removeprefix(f"cannot read the image {root / path}: "))
    return _Decoded(path, None if size is None else resize(image, *size), remarks=image.info[REMARKS])


def _reason(path: Path, error: BaseException) -> str:
    """Why an image cannot be read."""
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    try:
        head = _head(path)
    except OSError as denied:
        return f"{denied.strerror}"
    if not head:
        return "the file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        text = head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
        return "a text file, not an image" if text else "not an image in a known format"
    if "truncated" in str(error).lower() or "end of" in str(error).lower():
        return f"the file is truncated ({error})"
    return str(error) or type(error).__name__
