"""How far a gallery's database goes, noted beside it after each change, so that loss of its log is noticed.

SQLite cannot tell: it takes a write-ahead log up to its first damaged page, and a missing one as an empty one.
"""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path
from typing import NamedTuple

from fmcnet.files import make_private

END = "-generation"
"""Of its name, after that of the database."""


class Mark(NamedTuple):
    """What is noted.

    Attributes:
        gallery: the database's name. generation: the newest that was written.
    """

    gallery: str
    generation: int


def read_mark(database: Path) -> Mark | None:
    """The mark beside a database; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        crc, body = mark_path(database).read_text(encoding="ascii").rstrip().split(" ", 1)
        if int(crc, 16) == zlib.crc32(body.encode()):
            gallery, generation = body.split()
            return Mark(gallery, int(generation))
    return None


def write_mark(database: Path, mark: Mark) -> None:
    """Write the mark in place, which a kill does not tear. It may be older than the database, never newer.

    So nothing waits for the disk, and an error is none of the writer's.
    """
    path = mark_path(database)
    body = f"{mark.gallery} {mark.generation:020d}"
    with contextlib.suppress(OSError):
        if not path.exists():
            make_private(path)
        with path.open("r+b") as stream:
            stream.write(f"{zlib.crc32(body.encode()):08x} {body}\n".encode())


def mark_path(database: Path) -> Path:
    """The file of the mark."""
    return database.with_name(f"{database.name}{END}")
