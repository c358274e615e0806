"""Thumbnails of entries for the page: of crops, kept on request, or made of source files below one allowed folder."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from fmcnet.errors import FmcnetError
from fmcnet.files import private_mode, write_atomically
from fmcnet.parsing import read_text

OWNER = "gallery.txt"
READING = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No link put there meanwhile is followed, no pipe waited for."""
LARGEST_SOURCE = 64 * 2**20
"""Bytes of a source file that is shown."""


class KeptThumbnails:
    """Thumbnails of one gallery by entry id, one file each, named by the id's hash: no id can name another file.

    Raises:
        FmcnetError: when the folder cannot be used, or keeps another gallery's thumbnails.
    """

    def __init__(self, folder: Path, gallery: str) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = folder / OWNER
            if not owner.exists():
                if any(folder.iterdir()):
                    what = f"--keep-images {folder} holds other files"
                    raise FmcnetError(f"{what}: name an empty or a new folder")
                owner.write_text(gallery + "\n", encoding="utf-8")
            recorded = read_text(owner, most=2**16).strip()
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

    def path(self, entry_id: str) -> Path:
        """Where an entry's thumbnail is, if it is kept."""
        return self.folder / f"{hashlib.sha256(entry_id.encode('utf-8', 'surrogateescape')).hexdigest()}.jpg"

    def keep(self, entry_id: str, data: bytes) -> None:
        """Store a thumbnail, as `make_thumbnail` made it, over an earlier one.

        Raises:
            OSError: when the disk does not take it.
        """
        mode = private_mode(self.folder)
        write_atomically(self.path(entry_id), lambda target: target.write_bytes(data), mode, many=True)

    def read(self, entry_id: str) -> bytes | None:
        """A JPEG, or None."""
        try:
            return self.path(entry_id).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, ids: Iterable[str]) -> None:
        """Remove the thumbnails of these entries that are kept."""
        for entry_id in ids:
            self.path(entry_id).unlink(missing_ok=True)

    def sweep(self, ids: Iterable[str]) -> int:
        """Remove the thumbnails of all entries but `ids`, such as those that another program removed; how many."""
        names = {path.name for path in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.jpg", path.name)}
        if names:
            names -= {self.path(entry_id).name for entry_id in ids}
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        return len(names)


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
