"""A gallery's folder as a whole: backup and restore, recovery of a damaged one, removal of an empty one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from fmcnet.errors import GalleryBusyError, GalleryDamagedError, GalleryError
from fmcnet.files import make_private, private_mode, put_in_place, take_from_others, to_disk, with_ending
from fmcnet.retrieval.entry_columns import EntryColumns
from fmcnet.retrieval.faiss_index import Codes
from fmcnet.retrieval.file_records import FileRecords
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.gallery_index import (
    BLOCK,
    IndexManifest,
    InvalidIndexError,
    block_crc,
    discard,
)
from fmcnet.retrieval.records import MADE_WITH, NONE, Entry, EntryBatch, from_micros
from fmcnet.retrieval.sqlite_connection import NAME, check_files, check_loss, read_last_generation
from fmcnet.retrieval.sqlite_database import CHUNK, Database
from fmcnet.retrieval.sqlite_store import CONTENTS, LOCK, RANGES, as_ranges, writer_lock
from fmcnet.types import FloatArray, Modality

OWN = (*CONTENTS, LOCK, ".*.tmp")
"""Patterns of the names of all of a gallery's files."""
WAIT = 30.0
"""Seconds to wait for a locked database."""
LEFT = {"gallery", "old", "database", "database-journal", LOCK}
"""What a killed copy leaves in `OUT.part`; that of an earlier version a database, too."""
LOST = "recovered-"
"""Prefix of the id of an entry whose own was lost."""
Value = TypeVar("Value")
Rescued = tuple[Entry, FloatArray, "bytes | None"]
"""An entry, its (D,) embedding and its thumbnail."""


def backup(location: str, out: str | Path) -> int:
    """Copy a gallery into a new folder, which is a gallery, too. Others may read and write meanwhile.

    Args:
        location: the gallery's folder.
        out: a folder that does not exist.

    Returns:
        How many entries it has: those at one moment of the copying.

    Raises:
        GalleryDamagedError: when the gallery is damaged.
        GalleryError: when `out` exists or cannot be written.
    """
    if "://" in location:
        raise GalleryError(f"{location}: back up a cluster with its own tools (milvus-backup)")
    folder, out = Path(location), Path(out)
    _check_new(out, folder)
    with _new_folder(out, folder) as new:
        entries = _copy(folder, new)
        new.rename(out)
    return entries


def restore(source: str | Path, folder: str | Path, *, replace: bool = False) -> int:
    """Make a gallery from a backup.

    Args:
        source: the backup; nothing in it is changed.
        folder: the gallery.
        replace: remove the gallery that is there, once the copy is whole. No process may have it open.

    Returns:
        How many entries it has.

    Raises:
        GalleryDamagedError: when the backup is damaged; the gallery stays as it was.
        GalleryError: when `folder` holds something, and is not to be replaced, or is in use.
    """
    source, folder = Path(source), Path(folder)
    if folder.is_symlink():  # replace what it leads to, not the link
        folder = folder.resolve()
    _check_outside(folder, source)
    _check_target(source, folder, replace)
    with Gallery(source, read_only=True):
        pass  # opening it checks that
    with _new_folder(folder, source) as new:
        entries = _copy(source, new)
        _check_target(source, folder, replace)
        if folder.exists():
            if in_use(folder / NAME):  # not before: it may cost a damaged gallery its write-ahead log
                raise GalleryBusyError(f"{folder} is in use: end the process that has it open")
            new.chmod(folder.stat().st_mode & 0o7777)
        put_in_place(new, folder, new.with_name("old"))
    return entries


@contextlib.contextmanager
def _new_folder(out: Path, folder: Path) -> Iterator[Path]:
    """An empty folder in `OUT.part`, for a gallery that is made of `folder` and then renamed to `out`.

    What a kill leaves in `OUT.part` is removed by the next call.
    """
    work = with_ending(out, ".part")
    with contextlib.ExitStack() as stack:
        try:
            work.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(work, os.W_OK):
                raise GalleryError(
                    f"{work} is needed for the copy and you may not write into it: move it away"
                )
            if foreign := {path.name for path in work.iterdir()} - LEFT:
                raise GalleryError(f"{work} is needed for the copy and holds {min(foreign)}: move it away")
            stack.enter_context(writer_lock(work, 0))
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            if (work / "old").is_dir() and not out.exists():
                (work / "old").rename(out)  # of a restore that was killed between its two renames
            for name in ("old", "gallery"):
                shutil.rmtree(work / name, ignore_errors=True)
            (work / "gallery").mkdir(mode=0o700)
            yield work / "gallery"
            to_disk(out.parent)
        except OSError as error:
            raise GalleryError(f"{out} cannot be written: {error.strerror or error}") from error
        except GalleryDamagedError as error:
            raise GalleryDamagedError(str(error).replace(str(work / "gallery"), str(folder))) from error


def _copy(folder: Path, new: Path) -> int:
    """Copy a gallery to an empty folder and read all of it; how many entries it has.

    The database has another name until it is whole, so nothing there opens as a gallery.
    """
    check_files(folder)
    check_loss(folder, WAIT, IndexManifest.find(folder))
    manifest = _copy_index(folder, new)  # first: the database may only be newer
    if (folder / MADE_WITH).is_file():
        shutil.copyfile(folder / MADE_WITH, new / MADE_WITH)
    unfinished = new / "database"
    make_private(unfinished)
    source = Database(folder, read_only=True, timeout=WAIT)
    try:
        with contextlib.closing(sqlite3.connect(unfinished)) as target, source.translated():
            try:
                source.connection.backup(target)
            except sqlite3.OperationalError as error:
                if "full" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    finally:
        source.close()
    unfinished.rename(new / NAME)
    take_from_others(new.iterdir())  # of the original, which was copied with the system's modes
    database = Database(new, read_only=False, timeout=WAIT)
    try:
        name = database.rename()
    finally:
        database.close()
    if manifest is not None:
        manifest.gallery = name
        manifest.write(new)
    with Gallery(new) as gallery:
        gallery.check()
        entries = len(gallery)
    (new / LOCK).unlink(missing_ok=True)
    mode = private_mode(new)
    for path in new.iterdir():
        path.chmod(mode)
        to_disk(path)
    to_disk(new)
    return entries


def _copy_index(folder: Path, out: Path) -> IndexManifest | None:
    """Copy the index's files; None, and no file, where they do not fit each other: they can be made again.

    A writer may replace them meanwhile, so this tries several times.
    """
    for _ in range(5):
        with contextlib.suppress(InvalidIndexError, OSError):
            manifest = IndexManifest.read(folder)
            for name in filter(
                None, (manifest.vectors if manifest.rows else "", manifest.columns, manifest.graph)
            ):
                shutil.copyfile(folder / name, out / name)
            manifest.verify(out)
            return manifest
        discard(out)
    return None


def _check_target(source: Path, folder: Path, replace: bool) -> None:
    """Refuse to restore over what is not to be lost."""
    if folder.exists() and not folder.is_dir():
        raise GalleryError(f"{folder} is a file; a gallery is a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if source.exists() and folder.samefile(source):
        raise GalleryError(f"{folder} is the backup itself: name another folder")
    foreign = [path.name for path in folder.iterdir() if not any(path.match(pattern) for pattern in OWN)]
    if foreign:
        raise GalleryError(
            f"{folder} holds {min(foreign)}, which is no file of a gallery: name another folder"
        )
    if not replace:
        raise GalleryError(
            f"{folder} is a gallery: name another folder, or give --replace to remove what it holds"
        )
    if folder.resolve() == Path.cwd():
        raise GalleryError(f"{folder} is the working folder: restore from another one")
    if folder.is_mount():
        raise GalleryError(f"{folder} is where a file system is mounted: name a folder below it")


def _check_new(out: Path, folder: Path) -> None:
    """Refuse a new folder that exists, or lies in the gallery that it is made of."""
    if out.exists():
        raise GalleryError(f"{out} exists: name a new folder")
    _check_outside(out, folder)


def _check_outside(out: Path, folder: Path) -> None:
    if folder.resolve() in out.resolve().parents:
        raise GalleryError(f"{out} lies in the gallery {folder}: name a folder beside it")


def in_use(database: Path) -> bool:
    """Whether a process has it open; False for a database that cannot be read.

    SQLite takes the write-ahead log into the database, or deletes it: call it where the gallery is to be removed.
    """
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

    A process that opens it in this very moment gets a GalleryReplacedError at its next call.

    Args:
        folder: of the gallery.
        whole: remove the folder, too.
    """
    with contextlib.suppress(GalleryError, OSError):
        with writer_lock(folder, 0):
            with (
                contextlib.closing(Database(folder, read_only=True, timeout=0)) as database,
                database.translated(),
            ):
                if "pictures" in database.tables() and (database.settings() or database.number("generation")):
                    return
            if in_use(folder / NAME):
                return
            for path in [path for pattern in OWN for path in folder.glob(pattern)]:
                path.unlink(missing_ok=True)
        if whole:
            folder.rmdir()


@dataclass(frozen=True)
class Recovered:
    """What `recover` found.

    Attributes:
        entries: written to the new gallery.
        renamed: those whose id and source were lost; they are "recovered-N".
        damaged: entries that neither the index nor the database gives back, as far as these tell.
        changes_lost: changes (of any number of entries) noted beside the database that neither holds.
        removals: the list of removed images, which `fmcnet index` leaves out, was read and taken over.
        ranges: so were the value ranges, if there were any; otherwise `Gallery.replace_ranges` sets them again.
        thumbnails_lost: those that the new gallery lacks; None: not known.
    """

    entries: int
    renamed: int
    damaged: int
    changes_lost: int
    removals: bool
    ranges: bool
    thumbnails_lost: int | None


def recover(folder: str | Path, out: str | Path, model: str) -> Recovered:
    """Write what can be read of a damaged gallery into a new one: of the index, and of the database.

    The index holds embeddings, modality, identity, camera, track, tags and time. Ids, sources, thumbnails and
    value ranges are in the database alone, and are taken from there as far as it goes, as are the records of files
    and of removed images. An entry whose deletion was lost with the database comes back.

    Args:
        folder: the damaged gallery; nothing in it is changed.
        out: the new gallery's folder.
        model: digest of the model that made the embeddings (`Encoder.digest`).

    Returns:
        What was found, in numbers.

    Raises:
        GalleryDamagedError: when neither index nor database can be read.
        GalleryError: when `out` is not to be written to, or the database says that another model was used.
    """
    folder, out = Path(folder), Path(out)
    _check_new(out, folder)
    check_files(folder)
    damaged, written, removed = set[int](), set[int](), set[int]()
    name, dtype = "", "float32"
    renamed = generation = kept = 0
    expected: int | None = None
    thumbnails_before: int | None = None
    had_no_ranges = False
    with _new_folder(out, folder) as new, contextlib.ExitStack() as stack:
        database = _open_readable(folder, stack)
        reason, mark = "", read_last_generation(folder / NAME)
        parts: list[Iterator[dict[int, Rescued]]] = []
        try:
            manifest = IndexManifest.read(folder)
            if _read(database, Database.name) not in (None, manifest.gallery):
                if mark is not None and mark.gallery != manifest.gallery:
                    raise InvalidIndexError("it belongs to another gallery")
                database = None
            codes, columns = manifest.map(folder), manifest.load_columns(folder)
            name, dtype, generation = manifest.gallery, manifest.dtype, manifest.generation
            noted = _read(database, lambda known: list(known.noted(manifest.generation))) or []
            removed = {seq for seq, is_gone in noted if is_gone} | set(columns.seq[~columns.alive].tolist())
            parts.append(_rows_of_index(manifest, codes, columns, database, damaged, removed))
        except InvalidIndexError as error:
            reason = str(error)
        if database is not None:
            settings = _read(database, Database.settings)
            with contextlib.suppress(GalleryError), database.reading():
                if database.number("generation") >= generation:
                    name, generation = database.name(), database.number("generation")
                    expected, _ = database.counts() or (None, 0)
                    thumbnails_before = database.thumbnails()
            if settings is not None and settings.model != model:
                raise GalleryError(
                    f"{folder} was indexed with the model {settings.model}, not {model}: give that one, or its "
                    f"digest (--digest {settings.model})"
                )
            with contextlib.suppress(GalleryError), database.translated():
                dtype = database.dtype
                parts.append(_rows_of_database(database, written, removed, damaged))
        if not parts:
            raise GalleryDamagedError(f"{folder}: its index cannot be read either: {reason}")
        gallery = stack.enter_context(
            Gallery(new, model=model, dtype="float16" if dtype == "float16" else "float32")
        )
        for rows in filter(None, itertools.chain(*parts)):
            written.update(rows)
            renamed += sum(entry.id == f"{LOST}{seq}" for seq, (entry, _, _) in rows.items())
            entries, vectors, thumbnails = zip(*rows.values(), strict=True)
            kept += sum(thumbnail is not None for thumbnail in thumbnails)
            batch = EntryBatch(entries, np.stack(vectors), thumbnails)
            gallery._store.add(batch, model, "refuse")  # Gallery.add refuses some ids that 0.1.0 took
        removals = database is not None and _take_records(gallery, database)
        if database is not None:
            with contextlib.suppress(GalleryError, ValueError), database.reading():
                stored = database.get(RANGES)
                had_no_ranges = stored is None and database.number("generation") >= generation
                gallery.replace_ranges(as_ranges(json.loads(str(stored))), len(gallery))
        if (folder / MADE_WITH).is_file():
            shutil.copyfile(folder / MADE_WITH, new / MADE_WITH)
        has_ranges = bool(gallery.value_ranges)  # also those that a version before 0.2 noted
        gallery.close()  # it is whole, and nobody has it open
        new.rename(out)
    lost = len(damaged - written) if expected is None else max(expected - len(written), 0)
    newer = max(mark.generation - generation, 0) if mark is not None and mark.gallery == name else 0
    thumbnails_lost = None if thumbnails_before is None else max(thumbnails_before - kept, 0)
    ranges = has_ranges or (had_no_ranges and not newer)
    return Recovered(len(written), renamed, lost, newer, removals, ranges, thumbnails_lost)


def _take_records(gallery: Gallery, database: Database) -> bool:
    """Copy the records of files and of removed images; False where they cannot be read."""
    if gallery.files is None:
        return False
    with contextlib.suppress(GalleryError), database.translated():
        gallery.files.take(FileRecords(database, database.reading, database.writing))
        return True
    return False


def _read(database: Database | None, value: Callable[[Database], Value]) -> Value | None:
    """What the database says, in one transaction; None where it cannot be read."""
    if database is not None:
        with contextlib.suppress(GalleryError), database.reading():
            return value(database)
    return None


def _open_readable(folder: Path, stack: contextlib.ExitStack) -> Database | None:
    """The database, where it can be read."""
    with contextlib.suppress(GalleryError):
        database = Database(folder, read_only=True, timeout=1.0)
        stack.callback(database.close)
        with database.translated():
            if database.tables():
                return database
    return None


def _rows_of_index(
    manifest: IndexManifest,
    codes: Codes,
    columns: EntryColumns,
    database: Database | None,
    damaged: set[int],
    removed: set[int],
) -> Iterator[dict[int, Rescued]]:
    """The rows whose embedding is intact, with what the database knows of them; others go into `damaged`."""
    blocks = [block_crc(codes, block) == crc for block, crc in enumerate(manifest.blocks)]
    alive = np.flatnonzero(columns.alive[: manifest.rows])
    intact = np.repeat(blocks, BLOCK)[alive] & (codes[alive] != 0).any(axis=1)
    damaged.update(columns.seq[alive[~intact]].tolist())
    rows = alive[intact]
    rows = rows[~np.isin(columns.seq[rows], list(removed))]
    texts = {name: list(columns.numbers[name]) for name in columns.numbers}
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        stored = {} if database is None else _read_rows(database, columns.seq[part].tolist(), set())
        rescued = {}
        for row in part.tolist():
            seq = int(columns.seq[row])
            entry, vector, thumbnail = stored.get(seq) or (_entry_at(columns, texts, row, seq), None, None)
            if vector is not None and not np.array_equal(vector, codes[row].astype(np.float32)):
                entry, thumbnail = _entry_at(columns, texts, row, seq), None  # not the row that was indexed
            rescued[seq] = entry, codes[row].astype(np.float32), thumbnail
        yield rescued


def _rows_of_database(
    database: Database, written: set[int], removed: set[int], damaged: set[int]
) -> Iterator[dict[int, Rescued]]:
    """The rows not in `written` or `removed`; unreadable ones go into `damaged`."""
    seq = 0
    with contextlib.suppress(GalleryError):
        while True:
            with database.reading():
                rows = database.run("SELECT seq FROM rows WHERE seq > ? ORDER BY seq LIMIT ?", (seq, CHUNK))
            seqs = [row[0] for row in rows]
            if not seqs or max(seqs) <= seq:
                return
            seq = max(seqs)
            remaining = [number for number in seqs if number not in written and number not in removed]
            yield _read_rows(database, remaining, damaged)


def _read_rows(database: Database, seqs: list[int], damaged: set[int]) -> dict[int, Rescued]:
    """The rows that the database still has whole; partial ones go into `damaged`."""
    rows: dict[int, Rescued] = {}
    for seq in seqs:
        stored = _read(database, partial(Database.stored, seqs=[seq]))
        if stored is None:
            damaged.add(seq)
        else:
            rows[seq] = *stored[seq], _read(database, partial(Database.thumbnail, seq=seq))
    return rows


def _entry_at(columns: EntryColumns, texts: dict[str, list[str]], row: int, seq: int) -> Entry:
    """An entry of the index's columns alone."""
    values = {name: int(cast(int, columns[name][row])) for name in ("modality", "time", *texts)}
    labels = {name: None if values[name] < 0 else texts[name][values[name]] for name in texts}
    return Entry(
        f"{LOST}{seq}",
        Modality.from_code(values["modality"]),
        pid=labels["pid"],
        camera=labels["camera"],
        time=None if values["time"] == NONE else from_micros(values["time"]),
        track=labels["track"],
        tags=tuple(json.loads(labels["tags"] or "[]")),
    )
