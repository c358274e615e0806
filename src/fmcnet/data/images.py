"""Images from disk: always (H, W, 3) uint8, and one message that lists all that cannot be read."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fmcnet.data.table import Table
from fmcnet.errors import DataError

MAX_LISTED = 20

_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8, red-green-blue.

    One-channel (infrared) images are repeated in three channels, the EXIF orientation is applied, alpha is
    dropped. Deep images (16-bit or float thermal) are stretched linearly, 0.5th to 99.5th percentile of the
    image to 0..255; those whose values fit 0..255 already are taken as they are.

    Raises:
        DataError: when the file is absent, empty, truncated or no image; says which.
    """
    return np.asarray(open_rgb(path))


def open_rgb(path: str | Path) -> Image.Image:
    """The same as a Pillow image of mode RGB, fully decoded.

    Raises:
        DataError: as `load_image`.
    """
    try:
        with Image.open(path) as stored:
            return _to_rgb(stored)
    except _FAILURES as error:
        raise DataError(f"cannot read the image {path}: {_reason(Path(path), error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow opened or made, by the rules of `load_image`: mode RGB, fully decoded.

    Raises:
        DataError: when it cannot be decoded; says why.
    """
    try:
        return _to_rgb(image)
    except _FAILURES as error:
        raise DataError(f"cannot read the image: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP_MODES:
        upright = _to_eight_bits(upright)
    return upright.convert("RGB")


def verify_images(table: Table, workers: int = 2, progress: bool | None = None) -> list[tuple[str, str]]:
    """Decode every image of a table; (path, reason) of each one that cannot be read, in the table's order.

    Args:
        table: the images.
        workers: decoding threads.
        progress: show a bar; None: only on a terminal.
    """
    outcomes = in_threads(_fault, table.full_paths(), workers, "checking images", progress)
    return [(str(table.path[row]), reason) for row, reason in enumerate(outcomes) if reason]


def require_readable(table: Table, workers: int = 2, progress: bool | None = None) -> None:
    """Decode every image of a table.

    Raises:
        DataError: one message with all unreadable images (the first 20 in full, and the total).
    """
    raise_unreadable(table, verify_images(table, workers, progress))


def raise_unreadable(table: Table, faults: Sequence[tuple[str, str]]) -> None:
    """Raise the error that lists these faults of a table's images, if there is one."""
    if not faults:
        return
    lines = "\n".join(f"  {path}: {reason}" for path, reason in faults[:MAX_LISTED])
    more = f"\n  ... and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    raise DataError(
        f"{len(faults)} of {len(table)} images under {table.root} cannot be read:\n{lines}{more}\n"
        "Copy or download them again, or remove them."
    )


def in_threads(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    workers: int,
    label: str,
    progress: bool | None = None,
) -> Iterator[_Result]:
    """`map` over threads (Pillow decodes without the interpreter's lock), with a bar on a terminal."""
    show = sys.stderr.isatty() if progress is None else progress
    with ThreadPoolExecutor(max(1, workers)) as pool:
        outcomes = pool.map(work, items)
        if not show:
            yield from outcomes
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(outcomes, label, total=len(items), console=Console(stderr=True), transient=True)


def _fault(path: Path) -> str:
    try:
        open_rgb(path)
    except DataError as error:
        return str(error).removeprefix(f"cannot read the image {path}: ")
    return ""


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite values")
    if values.min() < 0 or values.max() > 255:
        low, high = np.percentile(values, (0.5, 99.5))
        if high <= low:
            low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1)
        values = (values - low) * (255 / (high - low))
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))


def _reason(path: Path, error: BaseException) -> str:
    """Why an image cannot be read, in a person's words."""
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as denied:
        return f"{denied.strerror}"
    if not size:
        return "the file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        text = head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
        return "a text file, not an image" if text else "not an image in a known format"
    if "truncated" in str(error).lower() or "end of" in str(error).lower():
        return f"the file is truncated ({error})"
    return str(error) or type(error).__name__
