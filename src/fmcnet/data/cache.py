"""The image cache: the images of a table, decoded once at one size and memory-mapped from one file."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmcnet.data.cache_store import (
    PutImage,
    UnusableCacheError,
    free_memory,
    lock_path,
    mib,
    open_cache,
    read_description,
    remove_cache,
    remove_left_overs,
    require_disk,
    write_cache,
)
from fmcnet.data.colours import colour_notes
from fmcnet.data.images import decode_images, raise_unreadable
from fmcnet.data.table import Table
from fmcnet.errors import DataError
from fmcnet.files import file_state, lock_file

VERSION = 2
"""Part of every key: raise it when decoding or resizing changes."""

BESIDE = ".fmcnet-cache"
"""The folder inside a dataset's own that `data.cache: beside` means."""

MEMORY_SHARE = 0.8
"""Of the free memory: more than that is not taken for images when they cannot be stored."""

logger = logging.getLogger(__name__)


class ImageCache:
    """The images of a table, decoded and resized (Pillow's bilinear with antialiasing).

    - The file's name is a digest of the table's root, the size, `VERSION`, and the path and `file_state` of each
      image. A changed image gives another name, so a stale cache is never read. The new cache replaces that of the
      images as they were.
    - A .json beside the file holds its checksum, which is checked on opening. A damaged file is built again, with a
      warning.
    - Of several processes one builds, and the others wait and map the same file.
    - Images whose colours contradict their modality (`colour_notes`) are told.

    Args:
        table: the images; `images[i]` belongs to row i.
        height: H.
        width: W.
        folder: where to keep the file, see `cache_folder`; default `default_folder()`. Where it cannot be written or
            has no room, memory holds the images, and a warning is logged.
        progress: show a bar while building; None: only on a terminal.

    Attributes:
        images: (N, H, W, 3) uint8, read-only; memory-mapped, or an array where nothing could be written.
        path: the cache's file, None where the images are in memory.
        built: whether this object decoded the images.

    Raises:
        DataError: images cannot be read (one message lists them), or they fit neither the folder nor the memory.
    """

    def __init__(
        self,
        table: Table,
        height: int,
        width: int,
        *,
        folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> None:
        if height < 1 or width < 1:
            raise DataError(f"the image size must be positive, got {height} x {width} (height x width)")
        self.table = table
        self.height, self.width = height, width
        self._progress = progress
        self._shape = (len(table), height, width, 3)
        self._bytes = int(np.prod(self._shape))
        folder = Path(folder).expanduser() if folder is not None else default_folder()
        target = folder / f"{table.name}-{height}x{width}-{cache_key(table, height, width)}.npy"
        self.path: Path | None = target
        self.built = False
        self.images: NDArray[np.uint8]
        if not len(table):
            self._hold_in_memory()
            return
        try:
            self.images = open_cache(target, self._shape)
        except (OSError, UnusableCacheError):
            try:
                self._store(target)
            except OSError as error:
                self._warn_or_raise(folder, error.strerror or str(error))
                self._hold_in_memory()
        if os.environ.get("RANK", "0") == "0":  # every process of a job has the same images
            for note in colour_notes(table.modality, self.images.__getitem__, table.camid):
                logger.warning("%s: %s", table.root, note)

    def digest(self) -> str:
        """CRC-32 of the pixels, 8 hex digits: of all up to 4 GiB, else of an even spread of 10,000 images."""
        rows = np.arange(len(self.images))
        if self.images.nbytes > 4 * 2**30:
            rows = np.unique(np.linspace(0, len(rows) - 1, 10_000).astype(np.int64))
        value = 0
        for row in rows:
            value = zlib.crc32(self.images[row].data, value)
        return f"{value:08x}"

    def __len__(self) -> int:
        return len(self.images)

    def _store(self, target: Path) -> None:
        """Build the file, unless another process builds it first; OSError when it cannot be stored."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        waiting = "another process builds this image cache: waiting for it"
        with lock_file(lock_path(target), waiting=waiting, optional=True) as locked:
            try:
                self.images = open_cache(target, self._shape)
                return
            except FileNotFoundError:
                pass
            except UnusableCacheError as error:
                logger.warning("the image cache %s cannot be used (%s): building it again", target, error)
            if locked:
                remove_left_overs(target)
            require_disk(target.parent, self._bytes)
            root = str(self.table.root.resolve())
            # As the key, of the images' paths alone: it stays when images change.
            lines = [f"series {VERSION}", root, f"{self.height}x{self.width}", *self.table.path.tolist()]
            series = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]
            description = {"series": series, "root": root, "images": len(self.table)}
            self.images = write_cache(target, self._shape, description, self._fill)
            self.built = True
        for other in target.parent.glob(f"*-{self.height}x{self.width}-*.npy"):
            if other != target and (read_description(other) or {}).get("series") == series:
                remove_cache(other)

    def _hold_in_memory(self) -> None:
        images = np.empty(self._shape, dtype=np.uint8)
        self._fill(images.__setitem__)
        images.flags.writeable = False
        self.images, self.path, self.built = images, None, True

    def _warn_or_raise(self, folder: Path, reason: str) -> None:
        """Log why memory holds the images; raise where they do not fit there either."""
        count, need, room = len(self.table), self._bytes, free_memory()
        each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # every process of a job would hold its own
        if room is not None and need * each > MEMORY_SHARE * room:
            raise DataError(
                f"{count} images at {self.height} x {self.width} take {mib(need)}: the image cache folder {folder} "
                f"cannot be used ({reason}), and only {mib(room)} of memory are free. Set data.cache or "
                f"FMCNET_CACHE to a folder with {mib(1.1 * need)} free, or make data.height and data.width smaller"
            )
        logger.warning(
            f"the image cache folder {folder} cannot be used ({reason}): holding {count} images ({mib(need)}) in "
            "memory; set data.cache or FMCNET_CACHE to a folder with room"
        )

    def _fill(self, put: PutImage) -> None:
        """Decode every row and hand it to `put`."""

        def store(row: int, image: Image.Image) -> None:
            put(row, resize(image, self.height, self.width))

        raise_unreadable(self.table, decode_images(self.table, self._progress, "caching images", store))


def resize(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """An image at (H, W, 3) uint8, bilinear with antialiasing: the one resizing all of fmcnet uses."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def default_folder() -> Path:
    """`$FMCNET_CACHE`, else `~/.cache/fmcnet`."""
    given = os.environ.get("FMCNET_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "fmcnet"


def cache_folder(setting: str, root: Path) -> Path:
    """The folder that `data.cache` means.

    Args:
        setting: "auto" (`default_folder()`), "beside" (`.fmcnet-cache` in the dataset's folder), or a folder.
        root: the dataset's folder (`Table.root`).
    """
    if setting == "auto":
        return default_folder()
    return root / BESIDE if setting == "beside" else Path(setting).expanduser()


def cache_key(table: Table, height: int, width: int) -> str:
    """24 hex digits that change with the images (paths and `file_state`), their order and the size wanted."""
    digest = hashlib.sha256(f"{VERSION}\n{table.root.resolve()}\n{height}x{width}\n".encode())
    for path in table.full_paths():
        try:
            state = file_state(path)
        except OSError:
            state = "absent"
        digest.update(f"{path.as_posix()}\t{state}\n".encode())
    return digest.hexdigest()[:24]
