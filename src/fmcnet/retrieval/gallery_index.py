"""The index of one process, in step with the database; and whether its files prove that the database lost entries.

Files that do not fit the database are not used. The log names what is missing, damaged or of another gallery, and it
is made again from the database: in memory by a reader, on disk by the next writer.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.retrieval.faiss_index import FaissIndex
from fmcnet.retrieval.index_files import FILES, FORMAT, IndexManifest, InvalidIndexError, discard
from fmcnet.retrieval.index_files import NAME as INDEX
from fmcnet.retrieval.records import GallerySettings, IndexChoice
from fmcnet.retrieval.sqlite_connection import NAME, Mark, mark_path, read_mark
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)

CHUNK = 4096
"""Rows read from the database at once."""
BEHIND = 16_384
"""Rows compared one by one beside a graph before it takes them in."""
SHARE = 0.05
"""Rows in memory only, as a share of those in the file, that are written to it."""


@dataclass
class GalleryIndex:
    """The index of one process over a gallery's folder.

    Attributes:
        state: what is searched; None until it is loaded. manifest: of the files it is based on, or None.
        faults: what was wrong with the files when they were loaded last, by name.
    """

    folder: Path
    database: Database
    choice: IndexChoice
    hnsw_above: int
    flush_rows: int
    state: FaissIndex | None = None
    manifest: IndexManifest | None = None
    faults: list[str] = field(default_factory=list)
    _unerased: list[int] = field(default_factory=list)

    # ---- reading; a transaction is open ----

    def sync(self, *, reload: bool = False) -> FaissIndex:
        """Catch up with the database; empty while the gallery has no settings. `reload`: read all files again."""
        settings = self.database.settings()
        generation = self.database.number("generation")
        if settings is None:
            if self.database.run("SELECT 1 FROM rows LIMIT 1"):
                raise self.database.damaged("'settings' is missing")
            return FaissIndex(1, "float32")
        state = None if reload else self.state
        if state is not None and state.generation == generation:
            return state
        if state is None or not self.database.number("floor") <= state.generation <= generation:
            state = self._load(settings, generation)
        self.state = None  # should catching up fail, the next use loads anew
        self._catch_up(state, generation)
        counts = self.database.counts()
        if counts is not None and counts[0] != state.live:
            raise self.database.damaged(f"{state.live:,} of {counts[0]:,} entries can be read")
        self.state = state
        return state

    def _load(self, settings: GallerySettings, generation: int) -> FaissIndex:
        self.faults, self._unerased = [], []
        for _ in range(5):
            try:
                return self._load_files(settings, generation)
            except InvalidIndexError as error:
                reason = str(error)
            if not self.replaced():
                break
        self.manifest = None
        if (self.folder / INDEX).exists():
            self.faults.append(reason)
            logger.warning("%s: %s; made anew", self.folder, reason)
        else:
            level = logging.DEBUG if generation <= 1 else logging.INFO  # the first write makes no files yet
            logger.log(level, "%s: %s; the index is made from the database", self.folder, reason)
        return FaissIndex(settings.dimension, settings.dtype)

    def _load_files(self, settings: GallerySettings, generation: int) -> FaissIndex:
        manifest = self.manifest = IndexManifest.read(self.folder)
        if manifest.gallery != self.database.name():
            raise InvalidIndexError(f"{INDEX} belongs to another gallery")
        if (manifest.dimension, manifest.dtype) != (settings.dimension, settings.dtype):
            raise InvalidIndexError(f"{INDEX} has another dimension or type")
        if not self.database.number("floor") <= manifest.generation <= generation:
            raise InvalidIndexError(
                f"{INDEX} is of generation {manifest.generation}, the database of {generation}"
            )
        codes, columns = manifest.verify(self.folder), manifest.load_columns(self.folder)
        if len(columns) != manifest.rows:
            raise InvalidIndexError(f"{manifest.columns} has {len(columns)} rows, not {manifest.rows}")
        index = FaissIndex(manifest.dimension, manifest.dtype, columns)
        index.generation = manifest.generation
        try:
            index.load(codes, self.folder / manifest.graph if manifest.graph else None)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InvalidIndexError(f"{manifest.graph} cannot be read ({error})") from error
        return index

    def _catch_up(self, state: FaissIndex, generation: int) -> None:
        columns = state.columns
        noted = dict(self.database.noted(state.generation))  # the last word on each row
        known = columns.existing(list(noted))
        if gone := [seq for seq in known if noted[seq]]:
            positions = state.forget(gone)
            self._unerased += positions[positions < state.saved].tolist()
        changed = [seq for seq in known if not noted[seq]]
        for seq, (entry, _) in self.database.stored(changed).items():
            columns.replace(seq, entry)
        last = int(columns.seq[-1]) if len(columns) else 0
        while rows := self.database.after(last, CHUNK):
            codes = np.stack([vector for _, vector in rows.values()]).astype(state.dtype)
            state.append(list(rows), [entry for entry, _ in rows.values()], codes)
            last = int(columns.seq[-1])
        state.generation = generation

    # ---- writing; the writer's lock is held ----

    def replaced(self) -> bool:
        """Another process has written the files since they were loaded."""
        found = IndexManifest.find(self.folder)
        return (found and found.columns) != (self.manifest and self.manifest.columns)

    def adopt(self) -> None:
        """Start from the files as they are now, and finish what a writer that died left undone."""
        if self.replaced():
            self.state = None
        with self.database.reading():
            self.sync()
        if self.state is None:
            return
        if self._unerased:
            self.erase(np.array(self._unerased, np.int64))
        if self.faults or (self.manifest and self.manifest.format != FORMAT):
            self.flush()
        elif self.manifest is not None:
            self.manifest.trim(self.folder)
        elif not (self.folder / INDEX).exists():
            discard(self.folder)

    def erase(self, positions: IntArray) -> None:
        """Overwrite removed rows in the files; where that fails the files go, for they can be made again."""
        state = self.state
        self._unerased = []
        if state is None or self.manifest is None:
            discard(self.folder)
            self.state = None  # its unsaved embeddings are read again, without the removed ones
            return
        try:
            self.manifest.erase(self.folder, positions[positions < self.manifest.rows])
            self.manifest.commit(self.folder, state)
        except (OSError, InvalidIndexError) as error:
            logger.warning("%s: the index cannot be rewritten (%s); it is removed", self.folder, error)
            discard(self.folder)
            self.manifest = self.state = None

    def flush_if_due(self) -> None:
        """Write to disk what grew too long to be kept in memory only."""
        state = self.state
        if state is None:
            return
        due = int(SHARE * state.saved)
        if state.graph_rows:
            due = min(due, BEHIND - (state.saved - state.graph_rows))
        if len(state) - state.saved >= max(self.flush_rows, due):
            self.flush()

    def flush(self, *, complete: bool = False) -> None:
        """Bring the files up to date; `complete`: the graphs, too. A failure is logged: the database has it all."""
        state = self.state
        if state is None:
            return
        try:
            manifest = self.manifest or IndexManifest(
                self.database.name(), state.generation, state.dimension, str(state.dtype)
            )
            manifest.append(self.folder, state.take_unsaved())
            wanted = self.choice == "hnsw" or (self.choice == "auto" and state.live > self.hnsw_above)
            missing = len(state) - state.graph_rows
            if wanted and missing and (complete or not state.graph_rows or missing >= BEHIND):
                state.grow_graphs()
                manifest.graph = None
            if not state.graph_rows:
                manifest.graph = None
            elif manifest.graph is None:
                manifest.put_graphs(self.folder, state)
            manifest.commit(self.folder, state)
            self.manifest, self.faults = manifest, []
            state.saved, state.unsaved = len(state), []
        except (OSError, MemoryError, RuntimeError, InvalidIndexError) as error:  # RuntimeError is FAISS's
            logger.warning("%s: the index cannot be written (%s); searches go on", self.folder, error)
            self.state = None  # the next use loads the files, or reads the database

    def compact(self, generation: int) -> None:
        """Write all files anew without the removed rows; the database was compacted before.

        Graphs are kept and completed where no row was removed or changed its modality; otherwise built anew.
        """
        state = self.state
        if state is None:
            return
        if state.clean:
            state.generation = generation
        else:
            self.manifest, self._unerased = None, []
            self.state = state = FaissIndex(state.dimension, str(state.dtype))
            with self.database.reading():
                self._catch_up(state, generation)
        self.flush(complete=True)


def check_loss(folder: Path, timeout: float) -> None:
    """Refuse a database that lost what its mark or the index knows, before a writer changes anything.

    Raises:
        GalleryDamagedError: says what was lost, and what to do.
    """
    mark, index = (
        read_mark(folder / NAME),
        IndexManifest.find(folder),
    )  # first: the database may only be newer
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
