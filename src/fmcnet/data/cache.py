"""The image cache: the images of a table, decoded once at one size and memory-mapped from one file.

NAME.npy holds the pixels, NAME.json describes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Generator, Iterable
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.images import decode_images
from fmcnet.data.pixels import NO_RANGE, Remarks, colour_notes
from fmcnet.data.table import Table
from fmcnet.errors import DataError
from fmcnet.files import file_state, lock_file, private_mode, write_atomically
from fmcnet.parsing import read_json

VERSION = 2
"""Part of every key: raise it when decoding or resizing changes."""
FORMAT = 2
"""Version of the .json file; a cache of another version is built again."""
BLOCK = 16 * 2**20
"""Bytes read at once for the checksum."""
MAX_BLOCKS = 256
"""Blocks in the checksum: a whole file of up to 4 GiB, evenly spread blocks of a larger one."""
BESIDE = ".fmcnet-cache"
"""The cache folder inside a dataset's folder with `data.cache: beside`."""
MEMORY_SHARE = 0.8
"""Largest share of the free memory for images that cannot be stored on disk."""
CGROUP = Path("/sys/fs/cgroup")
"""A Linux container's limits (version 2)."""
MEMINFO = Path("/proc/meminfo")

STEM = re.compile(r".+-\d+x\d+-[0-9a-f]{24}")
"""A cache's name: dataset, height x width, key."""
_LEFT_OVER = re.compile(rf"\.({STEM.pattern})\.(?:.+\.(?:tmp|building)|lock)")
"""Files of killed builders; `.building` is that of version 0.1.0."""

logger = logging.getLogger(__name__)


class ImageCache:
    """The images of a table, decoded and resized (Pillow's bilinear with antialiasing).

    - The file's name is a digest of the table's root, the size, `VERSION`, and the path and `file_state` of each
      image. A changed image gives another name, so a stale cache is never read. The new cache replaces that of the
      images as they were.
    - A .json beside the file holds its checksum, which is checked on opening. A damaged file is built again, with a
      warning.
    - Of several processes one builds, and the others wait and map the same file.
    - Doubtful images are logged each time, see `log_notes`.

    Args:
        table: the images; `images[i]` belongs to row i.
        height: H.
        width: W.
        folder: where to keep the file, as `data.cache` (`cache_folder`). Where it cannot be written or has no room,
            memory holds the images, and a warning is logged.
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
        folder: str | Path = "auto",
        progress: bool | None = None,
    ) -> None:
        if height < 1 or width < 1:
            raise DataError(f"the image size must be positive, got {height} x {width} (height x width)")
        self.table = table
        self.height, self.width = height, width
        self._progress = progress
        self._shape = (len(table), height, width, 3)
        self._bytes = int(np.prod(self._shape))
        folder = cache_folder(folder, table.root)
        target = cache_path(table, height, width, folder)
        self.path: Path | None = target
        self._notes: list[str] = []  # filled by `_decode`
        self.built = False
        self.images: NDArray[np.uint8]
        if not len(table):
            self._hold_in_memory()
            return
        try:
            self._open_or_build(target)
        except OSError as error:
            self._warn_or_raise(folder, error.strerror or str(error))
            self._hold_in_memory()
        log_notes(table, self.images, self._notes or _stored_notes(target))

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

    def _open_or_build(self, target: Path) -> None:
        """Map the file, or build it unless another process builds it first; OSError when it cannot be stored."""
        with contextlib.suppress(OSError, UnusableCacheError):
            self.images = open_cache(target, self._shape)
            return
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
            for file, cache in left_overs(target.parent) if locked else ():  # of killed builders
                if cache == target and file.suffix != ".lock":
                    file.unlink(missing_ok=True)
            require_disk(target.parent, self._bytes)
            root = str(self.table.root.resolve())
            # Like the key, but of the images' paths alone, so that it stays when images change.
            lines = [f"series {VERSION}", root, f"{self.height}x{self.width}", *self.table.path.tolist()]
            series = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]
            description = {"series": series, "root": root, "images": len(self.table), "notes": self._notes}
            with closing(self._decode()) as images:
                self.images = write_cache(target, self._shape, description, images)
            self.built = True
        for other in target.parent.glob(f"*-{self.height}x{self.width}-*.npy"):
            if other != target and (read_description(other) or {}).get("series") == series:
                remove_cache(other)

    def _decode(self) -> Generator[NDArray[np.uint8]]:
        remarks, size = Remarks(), (self.height, self.width)
        yield from decode_images(self.table, *size, remarks=remarks, progress=self._progress)
        self._notes[:] = remarks.lines(NO_RANGE)

    def _hold_in_memory(self) -> None:
        images = np.empty(self._shape, dtype=np.uint8)
        for row, image in enumerate(self._decode()):
            images[row] = image
        images.flags.writeable = False
        self.images, self.path, self.built = images, None, True

    def _warn_or_raise(self, folder: Path, reason: str) -> None:
        """Log why memory holds the images; raise where they do not fit there either."""
        count, need, free = len(self.table), self._bytes, free_memory()
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # every process of a job would hold its own
        if free is not None and need * processes > MEMORY_SHARE * free:
            raise DataError(
                f"{count} images at {self.height} x {self.width} take {mib(need)}: the image cache folder {folder} "
                f"cannot be used ({reason}), and only {mib(free)} of memory are free. Set data.cache or "
                f"FMCNET_CACHE to a folder with {mib(1.1 * need)} free, or make data.height and data.width smaller"
            )
        logger.warning(
            f"the image cache folder {folder} cannot be used ({reason}): holding {count} images ({mib(need)}) in "
            "memory; set data.cache or FMCNET_CACHE to a folder with room"
        )


def default_folder() -> Path:
    """`$FMCNET_CACHE`, else `~/.cache/fmcnet`."""
    folder = os.environ.get("FMCNET_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "fmcnet"


def cache_folder(setting: str | Path, root: Path) -> Path:
    """The folder that `data.cache` means: `default_folder()` for "auto", one in the dataset's folder for "beside"."""
    if setting == "auto":
        return default_folder()
    return root / BESIDE if setting == "beside" else Path(setting).expanduser()


def cache_key(table: Table, height: int, width: int) -> str:
    """24 hex digits that change with the images (paths and `file_state`), their order and the size."""
    digest = hashlib.sha256(f"{VERSION}\n{table.root.resolve()}\n{height}x{width}\n".encode())
    for path in table.full_paths():
        try:
            state = file_state(path)
        except OSError:
            state = "absent"
        digest.update(f"{path.as_posix()}\t{state}\n".encode())
    return digest.hexdigest()[:24]


def cache_path(table: Table, height: int, width: int, folder: Path) -> Path:
    """The cache of a table's images in a folder."""
    return folder / f"{table.name}-{height}x{width}-{cache_key(table, height, width)}.npy"


def log_notes(table: Table, images: NDArray[np.uint8], notes: Iterable[str]) -> None:
    """Log the notes made when a table's images were decoded, and `colour_notes`; once for all processes of a job."""
    if os.environ.get("RANK", "0") == "0":
        for note in (*notes, *colour_notes(table.modality, images.__getitem__, table.camid)):
            logger.warning("%s: %s", table.origin, note)


def log_cached_notes(table: Table, height: int, width: int, folder: str | Path) -> None:
    """`log_notes` of images that are not needed themselves, where they are cached; arguments as of `ImageCache`."""
    path = cache_path(table, height, width, cache_folder(folder, table.root))
    with contextlib.suppress(UnusableCacheError):
        log_notes(table, _memory_map(path, (len(table), height, width, 3)), _stored_notes(path))


def _stored_notes(path: Path) -> list[str]:
    """The notes of a cache; none where an earlier version wrote it."""
    notes = (read_description(path) or {}).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


class UnusableCacheError(ValueError):
    """A cache exists and cannot be used; the message gives the reason."""


def open_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Check the .npy file of (N, H, W, 3) images and map it, read-only; the .json's time, of last use, becomes now.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableCacheError: the .json is missing or describes something else, or the file is cut or damaged.
    """
    size = path.stat().st_size
    description = read_description(path)
    if description is None:
        raise UnusableCacheError(f"{path.with_suffix('.json').name} is missing or cannot be read")
    expected = {"version": FORMAT, "key": path.stem[-24:], "shape": list(shape), "bytes": size}
    for name, value in expected.items():
        if description.get(name) != value:
            raise UnusableCacheError(f"its .json has {name} {description.get(name)}, not {value}")
    try:
        checksum = _checksum(path)
    except OSError as error:
        raise UnusableCacheError(str(error)) from error
    if description.get("crc32") != checksum:
        raise UnusableCacheError(f"its checksum should be {description.get('crc32')}, not {checksum}")
    images = _memory_map(path, shape)
    with contextlib.suppress(OSError):
        os.utime(path.with_suffix(".json"))
    return images


def _memory_map(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UnusableCacheError(str(error)) from error
    if images.shape != shape or images.dtype != np.uint8:
        raise UnusableCacheError(f"it holds {images.dtype} {images.shape}")
    return images


def write_cache(
    path: Path, shape: tuple[int, ...], description: dict[str, Any], images: Iterable[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Write NAME.npy and then NAME.json, each under a temporary name until it is whole.

    Images go to the file one by one, so memory never holds all of them. `description` holds further entries of the
    .json.

    Returns:
        (N, H, W, 3) uint8, mapped from the file, read-only.

    Raises:
        OSError: the disk is full, cannot be written or does not hold what was written.
    """
    facts: dict[str, Any] = {"version": FORMAT, "key": path.stem[-24:], "shape": list(shape)}
    mode = private_mode(path.parent)
    write_atomically(path, lambda file: facts.update(_write_images(file, shape, images)), mode)
    text = json.dumps(facts | description, indent=1)
    try:
        write_atomically(
            path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"), mode
        )
        return _memory_map(path, shape)
    except (OSError, UnusableCacheError) as error:
        for file in (path, path.with_suffix(".json")):
            with contextlib.suppress(OSError):  # report the first error, not this one
                file.unlink()
        if isinstance(error, OSError):
            raise
        raise OSError(f"{path} does not hold what was written: {error}") from error


def _write_images(file: Path, shape: tuple[int, ...], images: Iterable[NDArray[np.uint8]]) -> dict[str, Any]:
    """Write a .npy file, and describe it before it is renamed: an interrupted checksum then leaves no file."""
    with file.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for image in images:
            stream.write(np.ascontiguousarray(image).data)
    return {"bytes": file.stat().st_size, "made": iso_time(time.time()), "crc32": _checksum(file)}


def _checksum(path: Path) -> str:
    """CRC-32 of a file's blocks, 8 hex digits: it finds damage, not attacks, at 5 GB/s."""
    blocks = -(-path.stat().st_size // BLOCK)
    value = 0
    with path.open("rb") as stream:
        for block in np.linspace(0, blocks - 1, min(blocks, MAX_BLOCKS)).astype(np.int64).tolist():
            stream.seek(block * BLOCK)
            value = zlib.crc32(stream.read(BLOCK), value)
    return f"{value:08x}"


def read_description(path: Path) -> dict[str, Any] | None:
    """The content of the .json beside a .npy, None where it is missing or damaged."""
    try:
        description = read_json(path.with_suffix(".json"))
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) else None


def lock_path(path: Path) -> Path:
    """The lock file of a cache."""
    return path.with_name(f".{path.stem}.lock")


def remove_cache(path: Path) -> bool:
    """Remove a cache unless another process builds it; return whether it was removed.

    A process that has it open keeps it on POSIX; elsewhere the system refuses, and it stays.
    """
    with contextlib.suppress(OSError), lock_file(lock_path(path), optional=True) as locked:
        if locked:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
            return True
    return False


def left_overs(folder: Path) -> list[tuple[Path, Path]]:
    """Each temporary and lock file, and its cache."""
    matches = ((path, _LEFT_OVER.fullmatch(path.name)) for path in folder.iterdir())
    return [(path, folder / f"{match[1]}.npy") for path, match in matches if match]


def iso_time(seconds: float) -> str:
    """A time in seconds since 1970 as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def mib(size: float) -> str:
    """A number of bytes as text: "40 MiB", "0.3 MiB"."""
    return f"{size / 2**20:.{0 if size >= 10 * 2**20 else 1}f} MiB"


def require_disk(folder: Path, need: int) -> None:
    """Raise OSError (ENOSPC) unless a folder has room for `need` bytes, and 2 % and 1 MiB more."""
    need, free = need + need // 50 + 2**20, shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{mib(need)} are needed, {mib(free)} are free")


def free_memory() -> int | None:
    """Bytes that this process can take without swapping; None where the system does not report them."""
    limit, used = _read_number(CGROUP / "memory.max"), _read_number(CGROUP / "memory.stat", "anon")
    available = _read_number(MEMINFO, "MemAvailable:")
    candidates = [] if limit is None else [max(0, limit - (used or 0))]
    return min(candidates + ([] if available is None else [available * 1024]), default=None)


def _read_number(path: Path, key: str = "") -> int | None:
    """The number after `key` in a system file, without a key its first word; None if there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = path.read_text(encoding="ascii").split()
        return int(words[words.index(key) + 1 if key else 0])
    return None
