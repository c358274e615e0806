"""Whether a gallery's database lost entries, as its mark and the files of the index prove."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.retrieval.index_files import FILES, IndexManifest
from fmcnet.retrieval.index_files import NAME as INDEX
from fmcnet.retrieval.sqlite_connection import NAME, Mark, mark_path, read_mark
from fmcnet.retrieval.sqlite_database import Database


def check_loss(folder: Path, timeout: float) -> None:
    """Refuse a database that lost what its mark or the index knows, before a writer changes anything.

    Raises:
        GalleryDamagedError: says what was lost, and what to do.
    """
    mark = read_mark(folder / NAME)  # mark and index first: the database may only be newer
    index = IndexManifest.find(folder)
    newest = [one for one in (mark, index) if one is not None]
    proofs = _proofs(folder, mark is None, index is None)
    main = _in_main_file(folder, timeout)
    with contextlib.closing(Database(folder, read_only=True, timeout=timeout)) as database:
        with database.translated():
            if not database.tables():
                if (len(newest) < 2 and proofs) or any(one.generation for one in newest):
                    raise lost(folder, f"{NAME} is empty or missing", index)
                return
            name, generation = database.name(), database.number("generation")
        if main is not None and (main.gallery != name or main.generation > generation):
            raise database.damaged("its write-ahead log is another gallery's, or older")
        if any(one.gallery == name and one.generation > generation for one in newest):
            older = f"{NAME} is older than what was written last, so its write-ahead log was lost or damaged"
            raise lost(folder, older, index)
        if mark is not None and name not in {one.gallery for one in newest}:
            raise lost(folder, f"{NAME} is another gallery's", index)
        if index is not None and index.rows and name != index.gallery:
            raise lost(folder, f"{NAME} or {INDEX} is another gallery's", index)


def _in_main_file(folder: Path, timeout: float) -> Mark | None:
    """How far the database goes without its log, where it has one; None where that cannot be read."""
    with contextlib.suppress(GalleryError):
        database = Database(folder, read_only=True, timeout=timeout, without_log=True)
        with contextlib.closing(database), database.translated():
            if database.has_log and "pictures" in database.tables():
                return Mark(database.name(), database.number("generation"))
    return None


def _proofs(folder: Path, mark: bool = True, index: bool = True) -> list[Path]:
    """The mark and the files of the index that are there; a new gallery has none."""
    files = [path for name in FILES for path in sorted(folder.glob(name))] if index else []
    at = mark_path(folder / NAME)
    return [*files, *([at] if mark and at.exists() else [])]


def lost(folder: Path, what: str, index: IndexManifest | None) -> GalleryDamagedError:
    """The error of a gallery that lost entries."""
    rows = f", and the index has {index.rows:,} rows" if index is not None else ""
    recover = ""
    if index is not None or ((folder / NAME).is_file() and (folder / NAME).stat().st_size):
        recover = (
            f", or write what is left into a new gallery: fmcnet gallery recover {folder} NEW --model MODEL"
        )
    proofs = " and ".join(map(str, _proofs(folder)))
    return GalleryDamagedError(
        f"{folder} lost entries: {what}{rows}. Nothing was changed. Restore a backup (fmcnet gallery "
        f"restore){recover}. If this database is the one you want, delete {proofs}"
    )
