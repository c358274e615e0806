"""Thumbnails of entries for the page: of crops, kept on request, or made of source files below one allowed folder."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fmcnet.errors import FmcnetError
from fmcnet.files import private_mode, remove_left, write_atomically
from fmcnet.parsing import read_text
from fmcnet.types import FloatArray

logger = logging.getLogger(__name__)

OWNER = "gallery.txt"
THUMBNAIL = re.compile(r"[0-9a-f]{64}\.jpg")
READING = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No link put there meanwhile is followed, no pipe waited for."""
LARGEST_SOURCE = 64 * 2**20
"""Bytes of a source file that is shown."""


def thumbnail_name(entry_id: str, embedding: FloatArray) -> str:
    """The name of an entry's thumbnail, made of id and (D,) embedding: another entry of the same id has another.

    In half precision a new embedding is equal to the stored one, whatever the gallery's dtype.
    """
    data = entry_id.encode("utf-8", "surrogateescape") + embedding.astype(np.float16).tobytes()
    return f"{hashlib.sha256(data).hexdigest()}.jpg"


class KeptThumbnails:
    """Thumbnails of one gallery's entries, one file each, by `thumbnail_name`.

    Attributes:
        fresh: names of those kept since the last `find_others` began, which may not have seen their entries.

    Raises:
        FmcnetError: when the folder cannot be used, or keeps another gallery's thumbnails.
    """

    def __init__(self, folder: Path, gallery: str) -> None:
        self.folder = folder
        self.fresh = set[str]()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = folder / OWNER
            if not owner.exists():
                if any(folder.iterdir()):
                    what = f"--keep-images {folder} holds other files"
                    raise FmcnetError(f"{what}: name an empty or a new folder")
                owner.write_text(gallery + "\n", encoding="utf-8")
            recorded = read_text(owner, most=2**16).strip().partition("\n")[0]
        except OSError as error:
            raise FmcnetError(f"--keep-images {folder} cannot be used: {error.strerror}") from error
        except ValueError as error:
            what = f"{owner} is damaged: {error}"
            raise FmcnetError(f"{what}; it names the gallery whose thumbnails are here: {gallery}") from error
        if recorded != gallery:
            raise FmcnetError(
                f"--keep-images {folder} keeps the thumbnails of {recorded:.300}, not of {gallery}; if the gallery "
                f"was moved, write its new place into {owner}"
            )
        remove_left(folder)

    def claim(self, gallery: str, entries: int, names: Iterable[str]) -> None:
        """Note the unique name of the gallery: where a disk is missing, another one is made at the same place.

        Args:
            gallery: its unique name, which a restore changes.
            entries: of it.
            names: of their thumbnails; read only where another name was noted, up to the first that is kept.

        Raises:
            FmcnetError: all thumbnails are of another gallery; or no name was noted, and this one has no entries.
        """
        owner = self.folder / OWNER
        try:
            place, _, noted = read_text(owner, most=2**16).strip().partition("\n")
            kept = self._kept()
            if kept and noted != gallery and (kept.isdisjoint(names) if noted else not entries):
                raise FmcnetError(
                    f"{self.folder} keeps {len(kept)} thumbnails of another gallery that was at {place}: is its disk "
                    "missing? If not, remove them"
                )
            if noted != gallery:
                mode = private_mode(self.folder)
                write_atomically(
                    owner, lambda target: target.write_text(f"{place}\n{gallery}\n", "utf-8"), mode
                )
        except OSError as error:
            raise FmcnetError(f"--keep-images {self.folder} cannot be used: {error.strerror}") from error

    def keep(self, name: str, data: bytes) -> None:
        """Store a thumbnail, as `make_thumbnail` made it.

        Raises:
            OSError: when the disk does not take it.
        """
        self.fresh.add(name)
        mode = private_mode(self.folder)
        write_atomically(self.folder / name, lambda target: target.write_bytes(data), mode, many=True)

    def read(self, name: str) -> bytes | None:
        """A JPEG, or None."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.error("a kept thumbnail cannot be read: %s", error)
            return None

    def remove(self, names: Iterable[str]) -> int:
        """Remove those of these thumbnails that are kept; how many could not be removed, which is logged."""
        failures = list[OSError]()
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                failures.append(error)
        if failures:
            logger.error("%d kept thumbnails cannot be removed, the first: %s", len(failures), failures[0])
        return len(failures)

    def find_others(self, names: Iterable[str]) -> set[str]:
        """The names of all thumbnails but these, such as those of entries that another program removed."""
        self.fresh.clear()
        kept = self._kept()
        return kept - {*names} if kept else kept

    def _kept(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if THUMBNAIL.fullmatch(path.name)}


class SourceFolder:
    """The files that entries came from, as far as they lie below one folder.

    Args:
        root: the folder. A file's links are followed before its place is checked.

    Raises:
        FmcnetError: when there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FmcnetError(f"--show-sources {root} is no folder")
        self.root = root.resolve()

    def read(self, source: str) -> bytes | None:
        """A file's bytes, of which only a JPEG of the pixels may leave the machine; None: not below the root."""
        try:
            path = (self.root / source).resolve(strict=True)
            if not path.is_relative_to(self.root):
                return None
            descriptor = os.open(path, READING)
            with os.fdopen(descriptor, "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_SOURCE:
                    return None
                return stream.read(LARGEST_SOURCE)
        except (OSError, ValueError, RuntimeError):
            return None
