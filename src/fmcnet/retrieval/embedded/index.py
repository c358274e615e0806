"""Keeps the index in step with the database: load or make anew, catch up, write back, erase.

The database is always right. Whatever of the index's files is missing, damaged, behind or of another gallery is noted
in the log by name and made again from the database, in memory by a reader, on disk by the next writer.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from fmcnet.retrieval.embedded.columns import Columns
from fmcnet.retrieval.embedded.database import Database
from fmcnet.retrieval.embedded.graph import Graph
from fmcnet.retrieval.embedded.nearest import Codes
from fmcnet.retrieval.embedded.snapshot import BLOCK, NAME, DoubtError, Snapshot, discard
from fmcnet.retrieval.embedded.state import State
from fmcnet.retrieval.records import IndexChoice, Settings
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)

CHUNK = 4096
"""Rows read from the database at once."""
BEHIND = 16_384
"""Rows that may lack in the graph, and are compared one by one, before they are taken in."""
SHARE = 0.05
"""Of the rows in the file: so many in memory only are written to it."""


class Index:
    """The index of one process.

    Attributes:
        state: what is searched; None before the first add is known. snapshot: the files it is based on, or None.
        faults: what was found wrong with the files since they were last loaded, by name.
    """

    def __init__(
        self, folder: Path, database: Database, choice: IndexChoice, hnsw_above: int, flush_rows: int
    ) -> None:
        self.folder = folder
        self.database = database
        self.choice = choice
        self.hnsw_above = hnsw_above
        self.flush_rows = flush_rows
        self.state: State | None = None
        self.snapshot: Snapshot | None = None
        self.faults: list[str] = []
        self._unerased: list[int] = []
        self._mended = np.empty(0, np.int64)

    # ---- reading; a transaction is open ----

    def sync(self) -> State | None:
        """Catch up with the database; None while the gallery is empty of settings."""
        settings = self.database.settings()
        if settings is None:
            return None
        generation = self.database.number("generation")
        state = self.state
        if state is not None and state.generation == generation:
            return state
        if state is None or self.database.number("floor") > state.generation or state.generation > generation:
            state = self._load(settings, generation)
        self.state = None  # should catching up fail, it is begun anew
        self._catch_up(state, generation)
        self.state = state
        return state

    def reload(self) -> None:
        """Read the files again, all of their bytes."""
        settings = self.database.settings()
        self.state = None
        if settings is not None:
            generation = self.database.number("generation")
            state = self._load(settings, generation, full=True)
            self._catch_up(state, generation)
            self.state = state

    def _load(self, settings: Settings, generation: int, *, full: bool = False) -> State:
        self.faults, self._unerased, self._mended = [], [], np.empty(0, np.int64)
        for _ in range(5):
            try:
                return self._load_files(settings, generation, full=full)
            except DoubtError as error:
                reason = str(error)
            if not self.replaced():
                break
        self.snapshot = None
        if (self.folder / NAME).exists():
            self._fault(reason, "made anew")
        else:
            new = generation <= 1  # after its first write a gallery has no index yet
            level = logging.DEBUG if new else logging.INFO
            logger.log(level, "%s: %s; the index is made from the database", self.folder, reason)
        empty = np.empty((0, settings.dimension), settings.dtype)
        return State(-1, Columns(), empty, None)

    def _load_files(self, settings: Settings, generation: int, *, full: bool) -> State:
        snapshot = self.snapshot = Snapshot.read(self.folder)
        if snapshot.gallery != self.database.name():
            raise DoubtError("index.json belongs to another gallery")
        if (snapshot.dimension, snapshot.dtype) != (settings.dimension, settings.dtype):
            raise DoubtError("index.json has another dimension or type")
        if not self.database.number("floor") <= snapshot.generation <= generation:
            raise DoubtError(
                f"index.json is of generation {snapshot.generation}, the database of {generation}"
            )
        columns = snapshot.load_columns(self.folder)
        codes = snapshot.map(self.folder)
        for block in snapshot.bad_blocks(self.folder, codes, full=full):
            self._mend(columns, codes, block)
        graph = None
        try:
            graph = snapshot.load_graph(self.folder, full=full)
        except DoubtError as error:
            if self.replaced():
                raise
            snapshot.graph = None
            self._fault(str(error), "made anew by the next writer, searches are exact until then")
        return State(snapshot.generation, columns, codes, graph)

    def _mend(self, columns: Columns, codes: Codes, block: int) -> None:
        """Take a block of embeddings from the database."""
        span = np.arange(block * BLOCK, min((block + 1) * BLOCK, len(codes)))
        known = set(self.database.present(columns.seq[span].tolist()))
        stored = self.database.stored(sorted(known))
        for position in span.tolist():
            seq = int(columns.seq[position])
            codes[position] = stored[seq][1] if seq in known else 0
        self._mended = np.concatenate([self._mended, span])
        name = self.snapshot.vectors if self.snapshot else ""
        self._fault(f"{name}, rows {span[0]} to {span[-1]}: checksum differs", "taken from the database")

    def _fault(self, what: str, done: str) -> None:
        self.faults.append(what)
        logger.warning("%s: %s; %s", self.folder, what, done)

    def _catch_up(self, state: State, generation: int) -> None:
        columns = state.columns
        gone: list[int] = []
        moved: list[int] = []
        for seq, is_gone in self.database.noted(state.generation):
            position = int(columns.positions([seq])[0])
            if position < len(columns) and columns.seq[position] == seq:
                (gone if is_gone else moved).append(seq)
        if gone:
            positions = state.forget(sorted(set(gone)))
            self._unerased += positions[positions < len(state.base)].tolist()
        moved = sorted(set(moved) - set(gone))
        for seq, (entry, _) in self.database.stored(moved).items():
            columns.set(seq, entry)
        last = int(columns.seq[-1]) if len(columns) else 0
        while rows := self.database.after(last, CHUNK):
            vectors = np.stack([vector for _, vector in rows.values()]).astype(state.base.dtype)
            state.append(list(rows), [entry for entry, _ in rows.values()], vectors)
            last = int(columns.seq[-1])
        state.generation = generation

    # ---- writing; the writer's lock is held ----

    def replaced(self) -> bool:
        """Another process has written the files since they were loaded."""
        try:
            current: str | None = Snapshot.read(self.folder).columns
        except DoubtError:
            current = None
        return current != (self.snapshot.columns if self.snapshot else None)

    def adopt(self) -> None:
        """Start from the files as they are now, and finish what a writer that died left undone."""
        if self.replaced():
            self.state = None
        with self.database.reading():
            state = self.sync()
        if state is None:
            return
        if self._unerased:
            self.erase(np.array(self._unerased, np.int64))
        if self.faults:
            self.flush()
        elif self.snapshot is not None:
            self.snapshot.trim(self.folder)
        elif not (self.folder / NAME).exists():
            discard(self.folder)

    def erase(self, positions: IntArray) -> None:
        """Overwrite removed rows in the files; where that fails the files go, for they can be made again."""
        state = self.state
        self._unerased = []
        if state is None or self.snapshot is None:
            discard(self.folder)
            self.state = None  # it holds them still; the database does not
            return
        positions = positions[positions < self.snapshot.rows]
        zeros = np.zeros((len(positions), state.base.shape[1]), state.base.dtype)
        if len(positions):
            state.base[positions] = zeros
        try:
            self.snapshot.overwrite(self.folder, positions, zeros)
            self.snapshot.commit(self.folder, state.columns, state.generation)
        except OSError as error:
            logger.warning("%s: the index cannot be rewritten (%s); it is removed", self.folder, error)
            discard(self.folder)
            self.snapshot = self.state = None

    def keep_up(self) -> None:
        """Write to disk what grew too long to be kept in memory only."""
        state = self.state
        if state is None:
            return
        due = int(SHARE * len(state.base))
        if state.graph:
            due = min(due, BEHIND - (len(state.base) - state.graph.rows))
        if len(state.tail) >= max(self.flush_rows, due):
            self.flush()

    def flush(self, *, complete: bool = False) -> None:
        """Bring the files up to date; `complete`: the graph, too. A failure is logged: the database has it all."""
        state = self.state
        if state is None:
            return
        try:
            self._flush(state, complete=complete)
        except (OSError, MemoryError, RuntimeError, DoubtError) as error:  # the last is FAISS's
            logger.warning("%s: the index cannot be written (%s); searches go on", self.folder, error)
            self.state = None  # the next use loads what is there

    def _flush(self, state: State, *, complete: bool) -> None:
        snapshot = self.snapshot
        if snapshot is None:
            kind = str(state.base.dtype)
            snapshot = Snapshot.new(self.database.name(), state.generation, state.base.shape[1], kind)
            snapshot.append(self.folder, state.base)
        elif len(self._mended):
            snapshot.overwrite(self.folder, self._mended, state.base[self._mended])
        snapshot.append(self.folder, state.tail)
        base = snapshot.map(self.folder)
        graph, grown = self._grow(state, base, complete=complete)
        if graph is not None and (grown or snapshot.graph is None):
            snapshot.put_graph(self.folder, graph)
        snapshot.commit(self.folder, state.columns, state.generation)
        self.snapshot, self.faults, self._mended = snapshot, [], np.empty(0, np.int64)
        state.rebase(base, graph)

    def _grow(self, state: State, base: Codes, *, complete: bool) -> tuple[Graph | None, bool]:
        """The graph as it should be over the base, a part for each modality, and whether it changed."""
        graph = state.graph
        wanted = self.choice == "hnsw" or (self.choice == "auto" and state.live > self.hnsw_above)
        rows = graph.rows if graph else 0
        missing = len(base) - rows
        late = graph is None or complete or missing >= BEHIND
        if not (wanted and missing and late):
            return graph, False
        kinds = state.columns["modality"][: len(base)].astype(np.uint8)
        return (graph or Graph.empty(base.dtype, base.shape[1])).extended(base, kinds), True

    def compact(self, generation: int) -> None:
        """Write all files anew without the removed rows; the database was compacted before.

        A graph is kept and completed where no row was removed, lost or changed its modality; otherwise made anew.
        """
        state = self.state
        if state is None:
            return
        keep = state.columns.alive
        codes = np.concatenate([state.base[keep[: len(state.base)]], state.tail[keep[len(state.base) :]]])
        graph, kinds = state.graph, state.columns["modality"]
        if graph is not None and not (keep.all() and np.array_equal(graph.parts, kinds[: graph.rows])):
            graph = None  # rows moved, or are not where the graph has them
        fresh = State(generation, state.columns.compacted(), codes, graph)
        self.state, self.snapshot, self._unerased = fresh, None, []
        self.flush(complete=True)
