"""The image caches of a folder: list them, and remove those not used for long."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from fmcnet.data.cache import STEM, iso_time, left_overs, lock_path, mib, read_description, remove_cache
from fmcnet.errors import DataError
from fmcnet.files import lock_file


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
        images = "no description, will be built again" if self.images is None else f"{self.images} images"
        root = f" of {self.root}" if self.root else ""
        return (
            f"  {self.name}: {images}{root}, {self.size}, {mib(self.bytes)}, made {self.made}, "
            f"last used {self.used}"
        )


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
    caches = [cache for path in paths if STEM.fullmatch(path.stem) and (cache := _stored_cache(path))]
    caches.sort(key=lambda cache: (cache.used, cache.name), reverse=True)
    return CacheFolder(folder, tuple(caches))


def prune_caches(folder: str | Path, age: timedelta) -> CacheFolder:
    """Remove the caches of a folder that were not opened for `age`, and what killed builders left.

    A cache that is being built stays. DataError: the folder is a file.
    """
    listed = list_caches(folder)
    now = datetime.now(timezone.utc)
    old = [cache for cache in listed.caches if now - datetime.fromisoformat(cache.used) >= age]
    removed = tuple(cache for cache in old if remove_cache(listed.folder / cache.name))
    kept = tuple(cache for cache in listed.caches if cache not in removed)
    left_files = left_overs(listed.folder) if listed.folder.is_dir() else []
    for file, cache in left_files:
        with contextlib.suppress(OSError), lock_file(lock_path(cache), optional=True) as locked:
            if locked and file.suffix != ".lock":
                file.unlink()
    return CacheFolder(listed.folder, kept, removed, sum(not file.exists() for file, _ in left_files))


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
        made=str(description.get("made") or iso_time(status.st_mtime)),
        used=iso_time(used),
    )
