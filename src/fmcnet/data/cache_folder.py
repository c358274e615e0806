"""The caches of a folder: which there are, and removing those nobody uses any more."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from fmcnet.data.cache_file import NAMES, facts_path, read_facts, remove_stored, sweep
from fmcnet.data.room import mib
from fmcnet.errors import ConfigError, DataError


@dataclass(frozen=True)
class Entry:
    """A cache on disk.

    Attributes:
        name: of its .npy file.
        images: how many; None where its .json is missing (it will be built again).
        size: "height x width", in pixels.
        bytes: on disk.
        root: the dataset's folder; "" where the .json is missing.
        made, used: ISO 8601, UTC; when it was built and last opened.
    """

    name: str
    images: int | None
    size: str
    bytes: int
    root: str
    made: str
    used: str


@dataclass(frozen=True)
class Listing:
    """What `look` found and `prune` did: the caches that are there, those removed, left-over files removed."""

    folder: Path
    caches: tuple[Entry, ...]
    removed: tuple[Entry, ...] = ()
    temporaries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """For people."""
        total = mib(sum(entry.bytes for entry in self.caches))
        count = "1 image cache" if len(self.caches) == 1 else f"{len(self.caches)} image caches"
        lines = [f"{count}, {total}, in {self.folder}"]
        lines += [_line(entry) for entry in self.caches]
        if self.removed:
            freed = mib(sum(entry.bytes for entry in self.removed))
            lines += [f"removed {len(self.removed)}, {freed}:", *(_line(entry) for entry in self.removed)]
        if self.temporaries:
            lines.append(f"removed {self.temporaries} files that killed builders left")
        return lines


def look(folder: str | Path) -> Listing:
    """The caches of a folder, the one used last first; other files in it are not looked at.

    Raises:
        DataError: when the folder is a file.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: give the folder that holds the image caches")
    paths = folder.glob("*.npy") if folder.is_dir() else ()
    entries = [entry for path in paths if NAMES.fullmatch(path.stem) and (entry := _entry(path))]
    return Listing(folder, tuple(sorted(entries, key=lambda entry: (entry.used, entry.name), reverse=True)))


def prune(folder: str | Path, age: timedelta) -> Listing:
    """Remove the caches of a folder that were not opened for `age`, and what killed builders left.

    Whoever has one open keeps it (POSIX); one that is being built stays.

    Raises:
        DataError: when the folder is a file.
    """
    found = look(folder)
    limit = datetime.fromtimestamp(time.time(), timezone.utc) - age
    old = [entry for entry in found.caches if datetime.fromisoformat(entry.used) <= limit]
    removed = tuple(entry for entry in old if remove_stored(found.folder / entry.name))
    kept = tuple(entry for entry in found.caches if entry not in removed)
    left = sweep(found.folder) if found.folder.is_dir() else 0
    return Listing(found.folder, kept, removed, left)


def parse_age(text: str) -> timedelta:
    """ "30d" or "12h" as a duration.

    Raises:
        ConfigError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,5})([dh])", text.strip())
    if match is None:
        raise ConfigError(f"'{text}' is no duration: write days or hours, as 30d or 12h")
    return timedelta(days=int(match[1])) if match[2] == "d" else timedelta(hours=int(match[1]))


def _entry(path: Path) -> Entry | None:
    facts = read_facts(path) or {}
    height, _, width = path.stem.rsplit("-", 2)[1].partition("x")
    try:
        status = path.stat()
        used = facts_path(path).stat().st_mtime if facts else status.st_mtime
    except OSError:  # removed by another process just now
        return None
    made = str(facts.get("made") or _time(status.st_mtime))
    images = facts.get("images")
    return Entry(
        name=path.name,
        images=images if isinstance(images, int) else None,
        size=f"{height} x {width}",
        bytes=status.st_size,
        root=str(facts.get("root", "")),
        made=made,
        used=_time(used),
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _line(entry: Entry) -> str:
    what = "no description, will be built again" if entry.images is None else f"{entry.images} images"
    root = f" of {entry.root}" if entry.root else ""
    size = f"{entry.size}, {mib(entry.bytes)}"
    return f"  {entry.name}: {what}{root}, {size}, made {entry.made}, last used {entry.used}"
