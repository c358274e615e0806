"""A gallery in a folder of one machine: every operation under one rule of locking and durability.

Reading: a transaction of the database, the index brought up to it. Writing: the writer's lock, the index adopted as
it is on disk, one transaction, then the index. What a call confirms is in the database, on disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import Timeout

from fmcnet.data.pixels import ValueRange, check_range
from fmcnet.errors import DataError, GalleryBusyError, GalleryDamagedError, GalleryError, GalleryReplacedError
from fmcnet.files import lock_file, make_private, take_from_others, with_ending
from fmcnet.parsing import read_json
from fmcnet.retrieval.entry_columns import DayCount, count_days
from fmcnet.retrieval.faiss_index import FaissIndex, faiss
from fmcnet.retrieval.file_records import FileRecords
from fmcnet.retrieval.gallery_index import GalleryIndex, IndexManifest
from fmcnet.retrieval.inputs import check_new, check_settings, check_there
from fmcnet.retrieval.records import (
    MADE_WITH,
    NONE,
    Added,
    EntryBatch,
    GalleryInfo,
    GallerySettings,
    Hit,
    IndexChoice,
    OnDuplicate,
    OpenOptions,
    Stored,
    Where,
    from_micros,
)
from fmcnet.retrieval.similarity import ranked
from fmcnet.retrieval.sqlite_connection import (
    INDEX_FILES,
    NAME,
    check_files,
    check_loss,
    lost,
    not_writable,
)
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.types import BoolArray, FloatArray

logger = logging.getLogger(__name__)

LOCK = "writer.lock"
CONTENTS = (f"{NAME}*", MADE_WITH, *INDEX_FILES)
"""Name patterns of the files that hold the gallery's data."""
HNSW_ABOVE = 100_000
"""Entries above which a new gallery uses a graph."""
RANGES = "ranges"
"""Key of `meta`: JSON of the value ranges."""
LOG_ROWS = 256
"""New entries after which the log is brought into the main file; at the latest after 4 MB (sqlite_connection.py)."""


@contextlib.contextmanager
def writer_lock(folder: Path, timeout: float) -> Iterator[None]:
    """Hold the writer's lock; GalleryBusyError when another process still writes after `timeout` seconds."""
    with contextlib.ExitStack() as stack:
        try:
            if not (folder / LOCK).exists():
                make_private(folder / LOCK)
            stack.enter_context(lock_file(folder / LOCK, timeout=timeout))
        except Timeout as error:
            raise GalleryBusyError(
                f"{folder} is being written by another process, for longer than {timeout:g} s: try again, or give a "
                "longer timeout"
            ) from error
        except OSError as error:
            raise not_writable(folder, error.strerror) from error
        yield


def as_ranges(values: Any) -> tuple[ValueRange | None, ...]:
    """Value ranges as JSON has them; none where they are not that."""
    with contextlib.suppress(TypeError, DataError):
        return tuple(None if value is None else check_range(value) for value in values)
    return ()


def noted_ranges(folder: Path) -> tuple[ValueRange | None, ...]:
    """The value ranges that versions before 0.2 noted in `MADE_WITH`; the database holds them now."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return as_ranges(read_json(folder / MADE_WITH)["ranges"])
    return ()


class SqliteStore:
    """A gallery in a folder; its methods are those of `Gallery`."""

    most = sys.maxsize

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        faiss()
        self.folder, self.location = folder, str(folder)
        self.read_only, self.timeout, self.dtype = options.read_only, options.timeout, options.dtype
        self._closed = False
        self._wrote = False
        self._kind_changed = False  # another kind of index than the files have was asked for
        self._log_due = False  # the log may hold what was removed
        self._in_log = 0  # entries added since the log was brought into the main file
        self._mutex = threading.RLock()
        check_files(folder)
        self._create_if_missing(options.create)
        check_loss(folder, self.timeout, IndexManifest.find(folder))
        self.database = Database(folder, read_only=self.read_only, timeout=self.timeout)
        try:
            with self.database.translated():
                if not self.database.tables() and not self.read_only:
                    with writer_lock(folder, self.timeout):
                        self.database.create()
                self.unique_name = self.database.name()
            self.files = FileRecords(self.database, self._reading, self._writing)
            choice, above = self._index_choice(options.index, options.hnsw_above)
            self.index = GalleryIndex(folder, self.database, choice, above, options.flush_rows)
            with self.database.reading():
                self.index.sync()
            if not self.read_only:
                self._finish_for_killed_writer()
        except BaseException:
            self.database.close()
            raise

    def _create_if_missing(self, create: bool) -> None:
        """Make the folder of a new gallery; refuse one that lost its database, or holds other files."""
        if (self.folder / NAME).exists():
            return
        if (manifest := IndexManifest.find(self.folder)) is not None and manifest.rows:
            raise lost(self.folder, f"{NAME} is empty or missing", manifest)
        if self.folder.exists() and not self.folder.is_dir():
            raise GalleryError(f"{self.folder} is a file; a gallery is a folder")
        if self.folder.is_dir() and any(path.name != LOCK for path in self.folder.iterdir()):
            raise GalleryError(
                f"{self.folder} holds no gallery ({NAME}), and is not empty: name another folder"
            )
        previous = with_ending(self.folder, ".part") / "old"
        if previous.is_dir():
            raise GalleryError(
                f"{self.folder} is missing, for a restore was killed: restore again, or move {previous} back here"
            )
        if self.read_only or not create:
            raise GalleryError(f"there is no gallery at {self.folder}: check the path, or add to it first")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private(self.folder / NAME)
        except OSError as error:
            raise GalleryError(f"{self.folder} cannot be made: {error.strerror}") from error

    def _finish_for_killed_writer(self) -> None:
        """Do what a writer that died left undone, unless another one writes now, which does it."""
        with contextlib.suppress(GalleryBusyError), writer_lock(self.folder, 0):
            self._restrict_permissions()
            self.index.adopt()
            self._finish_index()  # the index proves a loss, and saves entries from it
            self._empty_log_of_before()

    def _restrict_permissions(self) -> None:
        restricted = take_from_others(path for pattern in CONTENTS for path in self.folder.glob(pattern))
        if restricted:
            logger.info(
                "%s: others could read %d of its files, and cannot any more; to share them with a group: "
                "chmod g+s %s && chmod g+rw %s/*",
                self.folder,
                len(restricted),
                self.folder,
                self.folder,
            )

    def _index_choice(self, index: IndexChoice | None, hnsw_above: int | None) -> tuple[IndexChoice, int]:
        """The kind of index: as given, which is stored, or as stored."""
        with self.database.reading():
            stored = self.database.get("index")
        choice: IndexChoice
        choice, above = json.loads(stored) if isinstance(stored, str) else ("auto", HNSW_ABOVE)
        requested: tuple[IndexChoice, int] = (
            index or choice,
            above if hnsw_above is None else int(hnsw_above),
        )
        if requested != (choice, above) and not self.read_only:
            self._kind_changed = self._wrote = True
            with writer_lock(self.folder, self.timeout), self.database.writing():
                self.database.put("index", json.dumps(requested))
        return requested

    # ---- locking ----

    @contextlib.contextmanager
    def _reading(self) -> Iterator[FaissIndex]:
        with self._mutex:
            self._check_open()
            with self.database.reading():
                if self.database.name() != self.unique_name:
                    raise self._replaced_error()
                yield self.index.sync()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._mutex:
            self._check_open()
            if self.read_only:
                raise GalleryError(
                    f"{self.folder} was opened read-only: open it without read_only to change it"
                )
            with writer_lock(self.folder, self.timeout):
                self._check_open()
                self.database.create()  # an earlier version did not have all tables
                self.index.adopt()
                self._wrote = True
                if self._log_due:
                    self._empty_log_of_before()
                try:
                    yield
                except BaseException:
                    self.index.state = None  # the next use starts from the files and the database
                    raise
                self._check_open()  # what went into files that are gone is not acknowledged

    def _check_open(self) -> None:
        if self.database.replaced:
            raise self._replaced_error()
        if self._closed:
            raise GalleryError(f"the gallery {self.folder} was closed")

    def _replaced_error(self) -> GalleryReplacedError:
        return GalleryReplacedError(
            f"{self.folder} was removed, or another gallery was put in its place, since it was opened: open it again"
        )

    # ---- reading ----

    @property
    def settings(self) -> GallerySettings | None:
        """What the first add fixed."""
        with self._reading():
            return self.database.settings()

    def info(self) -> GalleryInfo:
        """The gallery in numbers."""
        with self._reading() as state:
            size = sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())
            settings = self.database.settings()
            indexed = 0 if self.index.choice == "exact" else state.indexed
            unsaved = int(np.count_nonzero(state.columns.alive[self.index.saved :]))
            behind = state.live - indexed if indexed else unsaved
            removed = self.database.run("SELECT count(*) FROM vectors")[0][0] - state.live
            kind, thumbnails = "hnsw" if indexed else "exact", self.database.thumbnails()
            return GalleryInfo(
                str(self.folder), state.live, settings, kind, behind, removed, size, thumbnails
            )

    def search(self, queries: FloatArray, top: int, where: Where | None, exact: bool) -> list[list[Hit]]:
        """For each of (Q, D) queries its best entries; similarities are computed anew from the database."""
        with self._reading() as state:
            mask, only_exact = self._mask(state, where), exact or self.index.choice == "exact"
            candidates = state.candidates(queries, top, mask, only_exact=only_exact)
            stored = (self.database.stored(state.columns.seq[rows].tolist()) for rows in candidates)
            return [
                ranked(query, list(found.values()), top) for query, found in zip(queries, stored, strict=True)
            ]

    def _mask(self, state: FaissIndex, where: Where | None) -> BoolArray:
        """(N,) which rows match."""
        ids = None if where is None else where.ids
        return state.columns.mask(where, None if ids is None else self.database.seqs(sorted(ids)).values())

    def fetch(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Entries and embeddings of those ids that are there."""
        with self._reading():
            seqs = self.database.seqs(ids)
            stored = self.database.stored(list(seqs.values()))
            return {name: stored[seq] for name, seq in seqs.items()}

    def thumbnail(self, entry_id: str) -> bytes | None:
        """The thumbnail kept with an entry."""
        with self._reading():
            seqs = self.database.seqs([entry_id])
            return self.database.thumbnail(seqs[entry_id]) if seqs else None

    @property
    def has_thumbnails(self) -> bool:
        """An entry has one."""
        with self._reading():
            return self.database.thumbnails() > 0

    def count(self, where: Where | None, by_track: bool = False) -> int:
        """How many match, or how many tracks of one modality do."""
        with self._reading() as state:
            mask = self._mask(state, where)
            if not by_track:
                return int(np.count_nonzero(mask))
            track, modality = (state.columns[n][mask].astype(np.int64) for n in ("track", "modality"))
            seen = np.zeros((len(state.columns.numbers["track"]), 2), np.bool_)
            seen[track[track >= 0], modality[track >= 0]] = True
            return int(np.count_nonzero(seen)) + int(np.count_nonzero(track < 0))

    def times(self) -> tuple[datetime, datetime] | None:
        """The first and the last of all entries."""
        with self._reading() as state:
            times = state.columns["time"][state.columns["time"] != NONE]
            return (from_micros(int(times.min())), from_micros(int(times.max()))) if len(times) else None

    def texts(self, name: Literal["camera", "pid", "track", "tags"]) -> set[str]:
        """The values of a column that entries have."""
        with self._reading() as state:
            return state.columns.texts(name)

    def days(self, where: Where | None, zone: tzinfo) -> tuple[DayCount, ...]:
        """How many of those that match each camera has on each day."""
        with self._reading() as state:
            columns, mask = state.columns, self._mask(state, where)
            codes, names = columns["camera"][mask], list(columns.numbers["camera"])
            return count_days(codes.astype(np.int64), names, columns["time"][mask].astype(np.int64), zone)

    def scan(self, where: Where | None, chunk: int) -> Iterator[list[Stored]]:
        """All that match; those removed meanwhile are left out."""
        with self._reading() as state:
            seqs = self._matching_seqs(state, where)
        for start in range(0, len(seqs), chunk):
            with self._reading() as state:
                existing = state.columns.existing(seqs[start : start + chunk])
                stored = self.database.stored(existing)  # all of them, or an error
            yield [stored[seq] for seq in existing]

    def _matching_seqs(self, state: FaissIndex, where: Where | None) -> list[int]:
        found: list[int] = state.columns.seq[self._mask(state, where)].tolist()
        return found

    # ---- writing ----

    def add(self, batch: EntryBatch, model: str, on_duplicate: OnDuplicate) -> Added:
        """All of the batch or nothing."""
        with self._writing():
            with self.database.writing():
                settings = self.database.settings()
                if settings is None:
                    settings = GallerySettings(batch.vectors.shape[1], model, self.dtype)
                    self.database.put("settings", json.dumps(vars(settings)))
                check_settings(settings, batch.vectors.shape[1], model, str(self.folder))
                ids = [entry.id for entry in batch.entries]
                existing = self.database.seqs(ids)
                if on_duplicate == "refuse":
                    check_new(existing, ids, self.location)
                skip, update = on_duplicate == "skip", on_duplicate == "update"
                rows = [row for row, name in enumerate(ids) if not (skip if name in existing else update)]
                entries = [batch.entries[row] for row in rows]
                if update:
                    stored = self.database.stored([existing[entry.id] for entry in entries])
                    entries = [entry.with_stored(stored[existing[entry.id]][0]) for entry in entries]
                vectors = batch.vectors[rows].astype(settings.dtype)
                thumbnails = [batch.thumbnails[row] for row in rows] if batch.thumbnails else []
                old = [] if skip else sorted(existing.values())
                self.database.delete(old)
                self.database.note(old, gone=True)
                self.database.insert(entries, vectors, thumbnails)
                self.files.forget_removed(entry.id for entry in entries)
                if entries:
                    self._put_ranges((*self.value_ranges(), *batch.ranges))
            added = Added(tuple(ids), len(entries) - len(old), len(old), len(ids) - len(entries))
            if old:
                try:
                    self.index.erase()
                    self._empty_log()
                except GalleryError as error:
                    error.added = added
                    raise
            self._in_log += len(entries)
            if self._in_log >= LOG_ROWS:
                self.database.shorten_log()
                self._in_log = 0
            self.index.flush_if_due()
            return added

    def update(self, ids: Sequence[str], change: Mapping[str, Any]) -> int:
        """Set attributes of entries, all or nothing."""
        with self._writing(), self.database.writing():
            seqs = self.database.seqs(ids)
            check_there(seqs, ids, self.location)
            if not seqs:
                return 0
            stored = self.database.stored(list(seqs.values()))
            for seq, (entry, _) in stored.items():
                self.database.rewrite(seq, replace(entry, **change))
            self.database.note(stored, gone=False)
            return len(stored)

    def value_ranges(self) -> tuple[ValueRange | None, ...]:
        """Of the database, else what an earlier version noted beside it."""
        with self._mutex:
            self._check_open()
            with self.database.reading():
                stored = self.database.get(RANGES)
        return as_ranges(json.loads(stored)) if isinstance(stored, str) else noted_ranges(self.folder)

    def _put_ranges(self, ranges: Iterable[ValueRange | None]) -> None:
        new = list(dict.fromkeys(ranges))
        if new != list(self.value_ranges()):
            self.database.put(RANGES, json.dumps(new))

    def replace_ranges(self, ranges: Sequence[ValueRange | None], entries: int) -> None:
        """Set the ranges, if there still are as many entries."""
        if list(dict.fromkeys(ranges)) == list(self.value_ranges()):
            return
        with self._writing(), self.database.writing():
            if self.database.run("SELECT COUNT(*) FROM rows")[0][0] == entries:
                self._put_ranges(ranges)

    def remove(self, where: Where, remember: bool = True) -> int:
        """Remove what matches from the database, its log and the index's files."""
        with self._writing():
            with self.database.writing():
                state = self.index.sync()
                seqs = self._matching_seqs(state, where)
                if seqs:
                    if remember:
                        # A camera may have written a newer image to the path of an entry that is removed by its age.
                        self.files.remember_removed(seqs, changed=where.until is None)
                    self.database.delete(seqs)
                    self.database.note(seqs, gone=True)
            if seqs:
                self.index.erase()
            self._empty_log()  # also of what a removal before could not
            return len(seqs)

    def _empty_log(self) -> None:
        self._log_due = True
        self.database.truncate_log()
        self._log_due = False

    def _empty_log_of_before(self) -> None:
        """Empty a log that may hold what was removed before; where it cannot be, the next change tries again."""
        try:
            self._empty_log()
        except GalleryDamagedError:
            raise
        except GalleryBusyError:  # a reader
            pass
        except GalleryError as error:  # a full disk; the change that follows tells its own success
            logger.warning("%s", error)

    def _finish_index(self) -> None:
        """Write the rows of the index that are only in memory, or all as another kind."""
        state = self.index.state
        if self._kind_changed or (state is not None and len(state) > self.index.saved):
            self.index.flush()
        self._kind_changed = False

    def compact(self) -> None:
        """Rewrite database and index without what was removed."""
        with self._writing():
            generation = self.database.compact()
            self.index.compact(generation)

    def check(self) -> list[str]:
        """Read and compare everything; what was wrong with the index's files, by name (a writer repairs it)."""
        with self._mutex:
            self._check_open()
            self.database.check()
            with self.database.reading():
                self.index.sync(reload=True)
            faults = list(self.index.faults)
            if faults and not self.read_only:
                with writer_lock(self.folder, self.timeout):
                    self.index.adopt()
            return faults

    def close(self) -> None:
        """Write the index, if this process added to the gallery; close the files."""
        with self._mutex:
            if self._closed:
                return
            try:
                if self._wrote and not self.database.replaced:
                    with contextlib.suppress(GalleryBusyError), writer_lock(self.folder, self.timeout):
                        self.index.adopt()
                        self._finish_index()
                        self.database.shorten_log()
            finally:
                self._closed = True
                with contextlib.suppress(sqlite3.Error):
                    self.database.close()
