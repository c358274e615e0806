"""Image caches on disk: NAME.npy holds the pixels, NAME.json describes them; listing and pruning."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import DataError
from fmcnet.files import lock_file, private_mode, write_atomically
from fmcnet.parsing import read_json

FORMAT = 2
"""Of the .json file: a cache of another format is built again."""
BLOCK = 16 * 2**20
"""Bytes read at once for the checksum."""
MAX_BLOCKS = 256
"""Blocks in the checksum: a whole file of up to 4 GiB, evenly spread blocks of a larger one."""
CGROUP = Path("/sys/fs/cgroup")
"""A Linux container's limits (version 2)."""
MEMINFO = Path("/proc/meminfo")

_STEM = re.compile(r".+-\d+x\d+-[0-9a-f]{24}")
"""Dataset, height x width, key."""
_LEFT_OVER = re.compile(rf"\.({_STEM.pattern})\.(?:.+\.(?:tmp|building)|lock)")
"""Files of killed builders; `.building` is that of version 0.1.0."""

PutImage = Callable[[int, NDArray[np.uint8]], None]
"""Stores row i, an image (H, W, 3) uint8; several threads may call it."""


class UnusableCacheError(ValueError):
    """A cache exists and cannot be used; the text says why."""


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
            raise UnusableCacheError(f"its {name} should be {description.get(name)}, not {value}")
    try:
        checksum = _checksum(path)
    except OSError as error:
        raise UnusableCacheError(str(error)) from error
    if description.get("crc32") != checksum:
        raise UnusableCacheError(f"its checksum should be {description.get('crc32')}, not {checksum}")
    images = _map(path, shape)
    with contextlib.suppress(OSError):
        os.utime(path.with_suffix(".json"))
    return images


def _map(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UnusableCacheError(str(error)) from error
    if images.shape != shape or images.dtype != np.uint8:
        raise UnusableCacheError(f"it holds {images.dtype} {images.shape}")
    return images


def write_cache(
    path: Path, shape: tuple[int, ...], description: dict[str, Any], fill: Callable[[PutImage], None]
) -> NDArray[np.uint8]:
    """Write NAME.npy and then NAME.json, each under a temporary name until it is whole.

    Images go to the file one by one, so memory holds only those being decoded.

    Args:
        path: the .npy file.
        shape: (N, H, W, 3).
        description: further entries of the .json.
        fill: stores every image with the function that it is given.

    Raises:
        OSError: the disk is full, cannot be written or does not hold what was written.
    """
    image_size = int(np.prod(shape[1:]))
    turn = threading.Lock()
    content = {"version": FORMAT, "key": path.stem[-24:], "shape": list(shape)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            start = stream.tell()

            def put(row: int, image: NDArray[np.uint8]) -> None:
                with turn:
                    stream.seek(start + row * image_size)
                    stream.write(np.ascontiguousarray(image).data)

            fill(put)
        content.update(bytes=temporary.stat().st_size, made=_iso(time.time()), crc32=_checksum(temporary))

    mode = private_mode(path.parent)
    write_atomically(path, write, mode)
    try:
        text = json.dumps(content | description, indent=1)
        write_atomically(path.with_suffix(".json"), lambda to: to.write_text(text, encoding="utf-8"), mode)
        return _map(path, shape)
    except UnusableCacheError as error:
        raise OSError(f"{path} does not hold what was written: {error}") from error
    except OSError:
        path.unlink(missing_ok=True)
        raise


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


def remove_left_overs(path: Path) -> None:
    """Remove what a killed builder of this cache left; the caller holds the lock."""
    for file, cache in _left_overs(path.parent):
        if cache == path and file.suffix != ".lock":
            file.unlink(missing_ok=True)


def _left_overs(folder: Path) -> list[tuple[Path, Path]]:
    """Each temporary and lock file, and its cache."""
    matches = ((path, _LEFT_OVER.fullmatch(path.name)) for path in folder.iterdir())
    return [(path, folder / f"{match[1]}.npy") for path, match in matches if match]


@dataclass(frozen=True)
class StoredCache:
    """A cache on disk."""

    name: str  # of its .npy file
    images: int | None  # how many; None where its .json is missing (it will be built again)
    size: str  # "height x width", in pixels
    bytes: int  # on disk
    root: str  # the dataset's folder; "" where the .json is missing
    made: str  # ISO 8601, UTC; when it was built
    used: str  # ISO 8601, UTC; when it was last opened

    def __str__(self) -> str:
        what = "no description, will be built again" if self.images is None else f"{self.images} images"
        root = f" of {self.root}" if self.root else ""
        return f"  {self.name}: {what}{root}, {self.size}, {mib(self.bytes)}, made {self.made}, last used {self.used}"


@dataclass(frozen=True)
class CacheFolder:
    """The caches of a folder, those just removed, and the number of left-over files just removed."""

    folder: Path
    caches: tuple[StoredCache, ...]
    removed: tuple[StoredCache, ...] = ()
    temporaries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """Everything as text."""
        count = "1 image cache" if len(self.caches) == 1 else f"{len(self.caches)} image caches"
        lines = [f"{count}, {mib(sum(cache.bytes for cache in self.caches))}, in {self.folder}"]
        lines += map(str, self.caches)
        if self.removed:
            freed = mib(sum(cache.bytes for cache in self.removed))
            lines += [f"removed {len(self.removed)}, {freed}:", *map(str, self.removed)]
        if self.temporaries:
            lines.append(f"removed {self.temporaries} files that killed builders left")
        return lines


def list_caches(folder: str | Path) -> CacheFolder:
    """List the caches of a folder, last used first; other files are ignored; DataError: it is a file."""
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: give the folder that holds the image caches")
    paths = folder.glob("*.npy") if folder.is_dir() else ()
    caches = [cache for path in paths if _STEM.fullmatch(path.stem) and (cache := _stored_cache(path))]
    caches.sort(key=lambda cache: (cache.used, cache.name), reverse=True)
    return CacheFolder(folder, tuple(caches))


def prune_caches(folder: str | Path, age: timedelta) -> CacheFolder:
    """Remove the caches of a folder that were not opened for `age`, and what killed builders left.

    A cache that is being built stays. DataError: the folder is a file.
    """
    found = list_caches(folder)
    now = datetime.now(timezone.utc)
    old = [cache for cache in found.caches if now - datetime.fromisoformat(cache.used) >= age]
    removed = tuple(cache for cache in old if remove_cache(found.folder / cache.name))
    kept = tuple(cache for cache in found.caches if cache not in removed)
    left = _left_overs(found.folder) if found.folder.is_dir() else []
    for path in {cache for _, cache in left}:
        with contextlib.suppress(OSError), lock_file(lock_path(path), optional=True) as locked:
            if locked:
                remove_left_overs(path)
    return CacheFolder(found.folder, kept, removed, sum(not file.exists() for file, _ in left))


def _stored_cache(path: Path) -> StoredCache | None:
    """The description of a cache; None where another process removed it just now."""
    description = read_description(path) or {}
    try:
        status = path.stat()
        used = path.with_suffix(".json").stat().st_mtime if description else status.st_mtime
    except OSError:
        return None
    images = description.get("images")
    return StoredCache(
        name=path.name,
        images=images if isinstance(images, int) else None,
        size=path.stem.rsplit("-", 2)[1].replace("x", " x "),
        bytes=status.st_size,
        root=str(description.get("root", "")),
        made=str(description.get("made") or _iso(status.st_mtime)),
        used=_iso(used),
    )


def _iso(seconds: float) -> str:
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
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.stat", "anon")
    available = _number(MEMINFO, "MemAvailable:")
    rooms = [] if limit is None else [max(0, limit - (used or 0))]
    return min(rooms + ([] if available is None else [available * 1024]), default=None)


def _number(path: Path, key: str = "") -> int | None:
    """The number after a key in a file of the system, or its first word; None where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = path.read_text(encoding="ascii").split()
        return int(words[words.index(key) + 1 if key else 0])
    return None
