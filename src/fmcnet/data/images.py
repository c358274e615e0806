"""Load images of any format and depth as (H, W, 3) uint8, and list all that cannot be read."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import sys
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from PIL import TiffImagePlugin as tiff

from fmcnet.data.listing import AVIF_BRANDS, HEIC_BRANDS
from fmcnet.data.pixels import (
    DROPPED,
    FLAT_8,
    FULL_FRAME,
    OR_RANGE,
    PAGES,
    Pixels,
    Remarks,
    ValueRange,
    eight_bit_image,
    eight_bits_of_alpha,
)
from fmcnet.data.table import Table
from fmcnet.errors import DataError, fault_lines
from fmcnet.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 16
"""Threads that decode images at once."""
MIN_FRAME, MIN_TALL_FRAME = 100, 720
"""Least pixels of the shorter side of a frame: one that is wider than high (thermal: 160 x 120), and others."""

_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
REMARKS = "fmcnet.remarks"
"""Key of `Image.info`: kinds of `fmcnet.data.pixels` that a person should see."""
FAILURES = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
    RuntimeError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for files that are no image, or a damaged one."""

MOST_TIFF_VALUES = 2**27
_TIFF_KINDS = {1: ("u", "unsigned"), 2: ("i", "signed"), 3: ("f", "float")}
_TIFF_DTYPES = frozenset({"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"})
_TRUNCATED = "truncated: the file ends before the last pixel"
_WIDE_RAW_MODE = re.compile(r"(RGB|RGBA|RGBX|LA|CMYK);16([BLN])")


def load_image(path: str | Path, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Load an image as (H, W, 3) uint8, red-green-blue.

    - One channel (infrared) is repeated in three. Of two channels the second is alpha or is dropped, of four the
      fourth. The EXIF orientation is applied.
    - 8-bit values stay as they are. Deeper ones (16-bit, 32-bit, float) follow `fmcnet.data.pixels.eight_bits`.
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
            head = _read_head(path)
            if head[:4] in (b"II*\0", b"MM\0*"):
                return _from_tiff(path, value_range)
            if not register_heic(head):
                raise
            opened = Image.open(path)
        with opened as stored:
            return _to_rgb(stored, value_range)
    except FAILURES as error:
        raise DataError(f"cannot read the image {path}: {_failure_reason(path, error)}") from error


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Convert an image that Pillow opened or made to RGB, by the rules of `load_image` (DataError, too)."""
    try:
        return _to_rgb(image, value_range)
    except FAILURES as error:
        raise DataError(f"cannot read the image: {error or type(error).__name__}") from error


def resize(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """An image of mode RGB as (H, W, 3) uint8, resized bilinearly with antialiasing: how all model inputs are."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def is_full_frame(width: int, height: int) -> bool:
    """Whether a size is a camera's: wider than high from 100 pixels of height on, or 720 and more on both sides."""
    return min(width, height) >= (MIN_FRAME if width > 1.1 * height else MIN_TALL_FRAME)


def add_remarks(image: Image.Image, pixels: Pixels, name: str, remarks: Remarks) -> None:
    """Add what is doubtful about an image of mode RGB and its pixels (H, W, 3), of any size, to `remarks`."""
    for kind in image.info.get(REMARKS, ()):
        remarks.add(kind, name)
    if is_full_frame(*image.size):
        remarks.add(FULL_FRAME, name)
    if all(np.ptp(pixels[..., channel]) < 4 for channel in range(3)):
        remarks.add(FLAT_8, name)


def _to_rgb(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Separate alpha, map values deeper than 8 bits, and draw the image on black."""
    remarks = [PAGES] if _has_pages(image) else []
    values = _deep_values(image)
    upright = image if values is not None else ImageOps.exif_transpose(image)
    mode, tags = upright.mode, _tiff_tags(image)
    fourth_is_no_alpha = mode == "RGBA" and bool(tags) and tiff.EXTRASAMPLES not in tags
    if fourth_is_no_alpha or tags.get(tiff.SAMPLESPERPIXEL, 1) > len(image.getbands()):
        remarks.append(DROPPED)
    alpha: NDArray[np.uint8] | None = None
    if values is not None:
        if mode == "RGBA" or values.shape[2:] == (2,):
            alpha = None if fourth_is_no_alpha else _require_visible((values[..., -1] >> 8).astype(np.uint8))
            values = values[..., :-1]
        elif "transparency" in image.info:  # the value or colour of a 16-bit PNG
            shown = (values.reshape(*values.shape[:2], -1) != image.info["transparency"]).any(axis=-1)
            alpha = _require_visible(shown * np.uint8(255))
        inverted = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0
        colours = "CMYK" if mode == "CMYK" else "RGB"
        upright = eight_bit_image(values, value_range, remarks, colours, alpha=alpha, inverted=inverted)
    elif not fourth_is_no_alpha and (
        mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info
    ):
        upright = (upright.convert("LA") if mode == "La" else upright).convert("RGBA")
        alpha = _require_visible(np.asarray(upright.getchannel("A")))
    return _composite_on_black(upright, alpha, remarks)


def _tiff_tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", None) or {}


def _require_visible(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not alpha.any():
        raise ValueError("every pixel is transparent: save it without its alpha channel")
    return alpha


def _composite_on_black(
    image: Image.Image, alpha: NDArray[np.uint8] | None, remarks: list[str]
) -> Image.Image:
    """The image as RGB on black, with its remarks."""
    rgb = image.convert("RGB")
    if alpha is not None and alpha.min() < 255:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size), Image.fromarray(alpha))
    rgb.info.pop("transparency", None)
    rgb.info[REMARKS] = tuple(remarks)
    return rgb


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
    values, tags = _tiff_values(path)
    alpha = None
    if values.shape[2] in (2, 4) and tuple(tags.get(tiff.EXTRASAMPLES, ()))[:1] in ((1,), (2,)):
        alpha, values = _require_visible(eight_bits_of_alpha(values[..., -1])), values[..., :-1]
        if tags[tiff.EXTRASAMPLES][0] == 1:  # premultiplied: darkened already
            alpha = None
    channels = 3 if values.shape[2] >= 3 else 1
    remarks = [DROPPED] if values.shape[2] > channels else []
    inverted = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0
    shown = values[..., :channels]
    image = eight_bit_image(shown, value_range, remarks, alpha=alpha, inverted=inverted)
    rgb = _composite_on_black(image, alpha, remarks)
    rgb.getexif()[ExifTags.Base.Orientation] = int(tags.get(ExifTags.Base.Orientation, 1))
    return ImageOps.exif_transpose(rgb)


def _deep_values(image: Image.Image) -> NDArray[Any] | None:
    """Load an image; the values, (H, W) or (H, W, C) and upright, of one deeper than 8 bits, None of others."""
    values: NDArray[Any] | None = None
    stream: Any = getattr(image, "fp", None)
    if image.format == "TIFF":
        _correct_tiles(image)
        _check_planes(image)
    tiles: Any = getattr(image, "tile", None)
    if stream is not None and tiles:  # a file that is not decoded yet
        if image.format == "PPM" and tiles[0][0] in ("raw", "ppm", "ppm_plain"):
            values = _deep_ppm_values(image, stream, tiles[0][2])
        else:
            args = tiles[0][3]
            values = _wide_values(image, stream, str(args[0] if isinstance(args, tuple) and args else args))
    _load(image)
    tags = _tiff_tags(image)
    is_unsigned = tags.get(tiff.SAMPLEFORMAT, (1,))[0] == 1
    if values is None and (image.mode in _DEEP_MODES or (image.mode == "L" and not is_unsigned)):
        values = np.asarray(ImageOps.exif_transpose(image))
        if image.mode == "L":
            values = values.view(np.int8)
        if image.mode == "I" and is_unsigned and tags.get(tiff.BITSPERSAMPLE) == (32,):
            values = values.view(np.uint32)
    return values


def _correct_tiles(image: Any) -> None:
    """Correct what Pillow makes of a TIFF's header before the pixels are decoded."""
    tags = _tiff_tags(image)
    if not getattr(image, "tile", None):
        return
    if (
        tags.get(266) == 2 and max(tags.get(tiff.BITSPERSAMPLE, (1,))) > 8
    ):  # FillOrder, which Pillow heeds up to 8
        raise ValueError("the bits of its values are in reverse order (FillOrder 2): save it anew")
    if tags.get(tiff.PLANAR_CONFIGURATION) == 2 and tags.get(tiff.SAMPLESPERPIXEL, 1) == 1:
        tags[tiff.PLANAR_CONFIGURATION] = 1  # of one channel it means nothing, and Pillow cuts the raw mode
        image.tile = []
        image._setup()
    tile = image.tile[0]
    if tile[0] == "libtiff" and tile[3][0] in ("I;16BS", "I;32BS", "F;32BF"):
        # libtiff gives values in the machine's byte order
        image.tile = [tile._replace(args=(tile[3][0].replace("B", "N"), *tile[3][1:]))]


def _load(image: Image.Image) -> None:
    """Decode an image from its stream: by its file's name, Pillow maps a TIFF turned by 90 degrees in wrong rows."""
    name = getattr(image, "filename", "")
    if name:
        image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        if name:
            image.filename = name  # type: ignore[attr-defined]


def _check_planes(image: Image.Image) -> None:
    """Refuse a TIFF of several planes that Pillow cuts to 8 bits or garbles."""
    tags = _tiff_tags(image)
    if tags.get(tiff.PLANAR_CONFIGURATION) == 2 and (
        image.mode == "LA" or tags.get(tiff.BITSPERSAMPLE, (1,))[0] > 8
    ):
        raise ValueError(
            "a TIFF with channels in planes of their own, deeper than 8 bits or with alpha, which cannot be read: "
            "save it with PlanarConfiguration 1"
        )


def _wide_values(image: Image.Image, stream: IO[bytes], raw_mode: str) -> NDArray[Any] | None:
    """The values (H, W, C) of several 16-bit channels, of which Pillow keeps the upper bytes; None for others.

    Decoding the same file in the other byte order gives the lower bytes.
    """
    match = _WIDE_RAW_MODE.fullmatch(raw_mode)
    if match is None:
        return None
    position = stream.tell()
    stream.seek(0)
    again = Image.open(io.BytesIO(stream.read()), formats=[str(image.format)])
    stream.seek(position)
    if match[1] == "LA":
        again._mode = raw_mode = "RGBA"  # grey, its lower byte, alpha, its lower byte
    else:
        is_little = match[2] == "L" or (match[2] == "N" and sys.byteorder == "little")
        raw_mode = f"{match[1]};16{'B' if is_little else 'L'}"
    again.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in again.tile
    ]
    again.load()
    lower = np.asarray(ImageOps.exif_transpose(again)).astype(np.uint16)
    if match[1] == "LA":
        return lower[..., ::2] << 8 | lower[..., 1::2]
    _load(image)
    return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16) << 8 | lower


def _deep_ppm_values(image: Image.Image, stream: IO[bytes], header_size: int) -> NDArray[np.uint16] | None:
    """The values of a PGM or PPM deeper than 8 bits, which Pillow scales or cuts; None for all others."""
    stream.seek(0)
    header = re.sub(rb"#.*", b"", stream.read(header_size)).split()
    if header[0] not in (b"P2", b"P3", b"P5", b"P6") or int(header[3]) < 256:
        return None
    shape = (image.height, image.width, *[3] * (header[0] in (b"P3", b"P6")))
    if header[0] in (b"P2", b"P3"):
        texts = re.sub(rb"#[^\r\n]*", b"", stream.read()).split()[: math.prod(shape)]
        if len(texts) < math.prod(shape):
            raise OSError(_TRUNCATED)
        _load(image)  # Pillow refuses values that are none, below 0 or above the header's
        return np.array(list(map(int, texts)), np.uint16).reshape(shape)
    data = stream.read(2 * math.prod(shape))
    if len(data) < 2 * math.prod(shape):
        raise OSError(_TRUNCATED)
    return np.frombuffer(data, dtype=">u2").reshape(shape).astype(np.uint16)


def _tiff_values(path: Path) -> tuple[NDArray[Any], Any]:
    """The values (H, W, C) of a TIFF in strips, stored as it is or deflated, and its tags."""
    with path.open("rb") as stream:
        header = stream.read(8)
        tags: Any = tiff.ImageFileDirectory_v2(header)
        stream.seek(tags.next)
        tags.load(stream)
        samples = int(tags.get(tiff.SAMPLESPERPIXEL, 1))
        bits = tuple(tags.get(tiff.BITSPERSAMPLE, (1,)))
        kind = next(iter(tags.get(tiff.SAMPLEFORMAT, (1,))))
        type_letter, type_name = _TIFF_KINDS.get(kind, ("", "unknown"))
        description = f"a TIFF of {samples} channels of {bits[0]}-bit {type_name} values"
        advice = "save it as 8- or 16-bit, uncompressed"
        dtype = f"{type_letter}{bits[0] // 8}"
        if dtype not in _TIFF_DTYPES or bits[0] % 8 or len(set(bits)) != 1 or tiff.IMAGEWIDTH not in tags:
            raise ValueError(f"{description}, which cannot be read: {advice}")
        is_plain = tags.get(tiff.COMPRESSION, 1) in (1, 8, 32946) and tags.get(tiff.PREDICTOR, 1) == 1
        if not is_plain or ExifTags.Base.TileOffsets in tags:
            raise ValueError(f"{description}, in tiles or compressed, which cannot be read: {advice}")
        width, height = int(tags[tiff.IMAGEWIDTH]), int(tags[tiff.IMAGELENGTH])
        if not 0 < width * height * samples <= MOST_TIFF_VALUES:
            raise ValueError(f"{description}, of {width} x {height} pixels, which is too large")
        byte_order = "<" if header[:1] == b"I" else ">"
        values = np.frombuffer(_read_strips(stream, tags), dtype=f"{byte_order}{dtype}")
    if values.size < height * width * samples:
        raise OSError(_TRUNCATED)
    values = values[: height * width * samples]
    if tags.get(tiff.PLANAR_CONFIGURATION, 1) == 2:
        return values.reshape(samples, height, width).transpose(1, 2, 0).astype(dtype), tags
    return values.reshape(height, width, samples).astype(dtype), tags


def _read_strips(stream: IO[bytes], tags: Any) -> bytes:
    parts = []
    for offset, count in zip(tags[tiff.STRIPOFFSETS], tags[tiff.STRIPBYTECOUNTS], strict=True):
        stream.seek(offset)
        part = stream.read(count)
        if len(part) < count:
            raise OSError(_TRUNCATED)
        try:
            parts.append(part if tags.get(tiff.COMPRESSION, 1) == 1 else zlib.decompress(part))
        except zlib.error as error:
            raise OSError(f"truncated or damaged: {error}") from error
    return b"".join(parts)


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


def _read_head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(64)


def decode_images(
    table: Table,
    height: int,
    width: int,
    *,
    remarks: Remarks | None = None,
    progress: bool | None = None,
) -> Generator[NDArray[np.uint8]]:
    """Decode and resize the images of a table, in its order; `remarks` gets the doubtful ones.

    Close the iterator where you leave it early: it holds threads and a progress bar.

    Yields:
        (H, W, 3) uint8, image after image, until the first that cannot be read.

    Raises:
        DataError: at the end; it lists all images that cannot be read.
    """
    faults: list[str] = []
    for path, image, reason in _decode_all(table, (height, width), "caching images", remarks, progress):
        if reason:
            faults.append(f"{path}: {reason}")
        elif image is not None and not faults:
            yield image
    if faults:
        where = f"of {table.file}" if table.file else f"under {table.root}"
        raise DataError(
            f"{len(faults)} of {len(table)} images {where} cannot be read:\n{fault_lines(faults)}\n"
            "Copy or download them again, or remove them."
        )


def unreadable_images(
    table: Table, remarks: Remarks | None = None, progress: bool | None = None
) -> list[tuple[str, str]]:
    """Decode every image of a table: (path, reason) of each that cannot be read, in its order; as `decode_images`."""
    decoded = _decode_all(table, None, "checking images", remarks, progress)
    return [(path, reason) for path, _, reason in decoded if reason]


def _decode_all(
    table: Table, size: tuple[int, int] | None, label: str, remarks: Remarks | None, progress: bool | None
) -> Iterator[tuple[str, Pixels | None, str]]:
    """(path, pixels (H, W, 3), fault or "") of each image; without a size there are no pixels."""

    def decode(path: str) -> tuple[str, Pixels | None, str]:
        try:
            image = open_rgb(table.root / path)
        except DataError as error:
            reason = str(error).removeprefix(f"cannot read the image {table.root / path}: ")
            return path, None, reason.replace(OR_RANGE, "")
        pixels = np.asarray(image) if size is None else resize(image, *size)
        if remarks is not None:
            add_remarks(image, pixels, path, remarks)
        return path, None if size is None else pixels, ""

    threads = min(MOST_THREADS, os.cpu_count() or 1)
    images = map_ahead(decode, table.path.tolist(), threads, 2 * threads)
    with closing(images), Progress(label, len(table), show=progress) as bar:
        for decoded in images:
            yield decoded
            bar.advance()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result]:
    """Results of a function in the order of the items; threads compute the next `ahead` while the caller uses one.

    Pillow releases the interpreter's lock while it decodes. Results that the caller has not taken are few.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        jobs = (pool.submit(function, item) for item in items)
        running = deque(islice(jobs, ahead))
        while running:
            result = running.popleft().result()
            running.extend(islice(jobs, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)  # a caller that stops early does not wait for queued images


def _failure_reason(path: Path, error: BaseException) -> str:
    """Why an image cannot be read."""
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    try:
        head = _read_head(path)
    except OSError as denied:
        return f"{denied.strerror}"
    if not head:
        return "the file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        is_text = head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
        return "a text file, not an image" if is_text else "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's rule
        return f"it is too large, more than {limit:,} pixels: cut the person out, or make it smaller"
    if "truncated" in str(error).lower() or "end of" in str(error).lower():
        return f"the file is truncated ({error})"
    if "MAX_TEXT" in str(error):
        return "its metadata have more text than Pillow reads: save it without them"
    return str(error) or type(error).__name__
