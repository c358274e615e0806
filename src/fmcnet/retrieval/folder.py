"""The files in a gallery's folder: which are its own, whether it is in use, and how one without entries goes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from fmcnet.errors import GalleryError
from fmcnet.retrieval.index_files import FILES as INDEX_FILES
from fmcnet.retrieval.records import MADE_WITH
from fmcnet.retrieval.sqlite_connection import NAME
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.retrieval.sqlite_store import LOCK, writer_lock

OWN = (f"{NAME}*", LOCK, MADE_WITH, *INDEX_FILES, ".*.tmp")
"""Patterns of its files' names."""


def in_use(database: Path) -> bool:
    """Whether anybody has it open. A database that cannot be read is taken not to be."""
    if not os.access(database, os.R_OK | os.W_OK) or not database.is_file() or not database.stat().st_size:
        return False
    with contextlib.closing(sqlite3.connect(database, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=DELETE")  # which needs it alone
        except sqlite3.OperationalError as error:
            return "locked" in str(error)
        except sqlite3.Error:
            pass
    return False


def remove_empty(folder: Path, *, whole: bool) -> None:
    """Remove a gallery that never had an entry and that nobody has open; another stays.

    Args:
        folder: of the gallery. whole: remove the folder, too.
    """
    with contextlib.suppress(GalleryError, OSError):
        with writer_lock(folder, 0):
            with (
                contextlib.closing(Database(folder, read_only=True, timeout=0)) as database,
                database.translated(),
            ):
                if database.has_tables() and (database.settings() or database.number("generation")):
                    return
            if in_use(folder / NAME):
                return
            for path in [path for name in OWN for path in folder.glob(name)]:
                path.unlink(missing_ok=True)
        if whole:
            folder.rmdir()
