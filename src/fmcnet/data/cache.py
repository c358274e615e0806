"""Decode once, memory-map for ever: the images of a table at one size, in one file."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmcnet.data.images import in_threads, open_rgb, raise_unreadable
from fmcnet.data.table import Table
from fmcnet.errors import DataError

VERSION = 1
"""Part of every key: raise it when decoding or resizing changes."""

_log = logging.getLogger(__name__)


class ImageCache:
    """The images of a table, decoded and resized (Pillow's bilinear with antialiasing).

    The file's name is a digest of the table's root, the paths, sizes and modification times of the images,
    the size (H, W) and `VERSION`, so a stale cache is never read: a changed image has another name. It is built
    under a temporary name and moved into place, so a half-built one is never seen, by any process.

    Args:
        table: the images; `images[i]` belongs to row i.
        height: H.
        width: W.
        folder: where to keep the file; default `$FMCNET_CACHE`, else `~/.cache/fmcnet`. Where it cannot be
            written, the images are held in memory, and a warning is logged.
        workers: decoding threads.
        progress: show a bar while building; None: only on a terminal.

    Attributes:
        images: (N, H, W, 3) uint8, read-only; memory-mapped, or an array where nothing could be written.
        path: the cache's file, None where the images are in memory.
        built: whether this object decoded the images (False: they were there already).

    Raises:
        DataError: one message with all images that cannot be read.
    """

    images: NDArray[np.uint8]
    path: Path | None
    built: bool

    def __init__(
        self,
        table: Table,
        height: int,
        width: int,
        *,
        folder: str | Path | None = None,
        workers: int = 2,
        progress: bool | None = None,
    ) -> None:
        if height < 1 or width < 1:
            raise DataError(f"the image size must be positive, got {height} x {width} (height x width)")
        self.table = table
        self.height, self.width = height, width
        shape = (len(table), height, width, 3)
        folder = Path(folder).expanduser() if folder is not None else default_folder()
        target = folder / f"{table.name}-{height}x{width}-{cache_key(table, height, width)}.npy"
        stored = _open(target, shape) if len(table) else None
        self.built = stored is None
        if stored is not None:
            self.images, self.path = stored, target
            return
        temporary = _temporary(folder, shape) if len(table) else None
        if temporary is None:
            self.images, self.path = np.empty(shape, dtype=np.uint8), None
            self._fill(self.images, workers, progress)
            self.images.flags.writeable = False
            return
        try:
            mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            self._fill(mapped, workers, progress)
            mapped.flush()
            del mapped
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        self.images, self.path = np.load(target, mmap_mode="r"), target

    def __len__(self) -> int:
        return len(self.images)

    def _fill(self, out: NDArray[np.uint8], workers: int, progress: bool | None) -> None:
        """Decode every row into `out` (N, H, W, 3)."""

        def decode(row: int) -> str:
            path = self.table.full_path(row)
            try:
                image = open_rgb(path)
            except DataError as error:
                return str(error).removeprefix(f"cannot read the image {path}: ")
            out[row] = resize(image, self.height, self.width)
            return ""

        rows = range(len(self.table))
        outcomes = in_threads(decode, rows, workers, "caching images", progress)
        faults = [(str(self.table.path[row]), reason) for row, reason in enumerate(outcomes) if reason]
        raise_unreadable(self.table, faults)


def resize(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """An image at (H, W, 3) uint8, bilinear with antialiasing: the one resizing all of fmcnet uses."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def default_folder() -> Path:
    """`$FMCNET_CACHE`, else `~/.cache/fmcnet`."""
    given = os.environ.get("FMCNET_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "fmcnet"


def cache_key(table: Table, height: int, width: int) -> str:
    """24 hex digits that change with the images (paths, sizes, times), their order and the size wanted."""
    digest = hashlib.sha256(f"{VERSION}\n{table.root.resolve()}\n{height}x{width}\n".encode())
    for path in table.full_paths():
        try:
            status = path.stat()
            state = f"{status.st_size}\t{status.st_mtime_ns}"
        except OSError:
            state = "absent"
        digest.update(f"{path.as_posix()}\t{state}\n".encode())
    return digest.hexdigest()[:24]


def _open(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The stored array, None where there is none of that shape (a damaged file is built again)."""
    mode: Literal["r"] = "r"
    try:
        stored: NDArray[np.uint8] = np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError):
        return None
    return stored if stored.shape == shape and stored.dtype == np.uint8 else None


def _temporary(folder: Path, shape: tuple[int, ...]) -> Path | None:
    """An empty file of a new name in the folder, None (and a warning) where that cannot be written or fit."""
    need = int(np.prod(shape))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        status = os.statvfs(folder) if hasattr(os, "statvfs") else None
        if status is not None and status.f_bavail * status.f_frsize < need:
            raise OSError(f"{need / 2**20:.0f} MiB are needed, less is free")
        handle, name = tempfile.mkstemp(prefix=".building-", suffix=".npy", dir=folder)
        os.close(handle)
    except OSError as error:
        _log.warning(
            "the image cache folder %s cannot be used (%s): holding %d images (%.0f MiB) in memory; "
            "set FMCNET_CACHE to a folder with room",
            folder,
            error.strerror or error,
            shape[0],
            need / 2**20,
        )
        return None
    return Path(name)
