"""A process's view of the gallery: columns, embeddings and index, all by position.

The first embeddings lie in the index's file, mapped (`base`); those that came later are in memory (`tail`) and are
searched beside it, one by one. Nothing here reads or writes the database.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmcnet.gallery.embedded.columns import Columns
from fmcnet.gallery.embedded.nearest import Codes, Graph, exact, merged
from fmcnet.gallery.records import Entry
from fmcnet.types import BoolArray, FloatArray, IntArray

FEW = 20_000
"""Allowed rows up to which a search is exact whatever the index."""
SELECTIVE = 0.05
"""Share of allowed rows up to which a search is exact whatever the index."""
WIDEST = 2048
"""Most rows taken from the graph to be filtered."""
MOST_DEAD = 0.25
"""Share of removed rows from which the graph is no longer trusted, until the gallery is compacted."""


class State:
    """What this process knows.

    Attributes:
        generation: of the database, up to which this is complete. columns: N rows. base: (B, D) mapped embeddings.
        graph: HNSW over the first rows of the base, or None. The embeddings of removed rows are zeros, or will be.
    """

    def __init__(self, generation: int, columns: Columns, base: Codes, graph: Graph | None) -> None:
        self.generation = generation
        self.columns = columns
        self.base = base
        self.graph = graph
        self._tail = np.empty((0, base.shape[1]), base.dtype)
        self._tail_rows = 0

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def tail(self) -> Codes:
        """(N - B, D) embeddings in memory."""
        return self._tail[: self._tail_rows]

    @property
    def live(self) -> int:
        """How many rows are not removed."""
        return int(np.count_nonzero(self.columns.alive))

    def append(self, seqs: Sequence[int], entries: Sequence[Entry], vectors: Codes) -> None:
        """Rows at the end."""
        needed = self._tail_rows + len(vectors)
        if needed > len(self._tail):
            grown = np.empty((max(needed, 2 * self._tail_rows, 256), self._tail.shape[1]), self._tail.dtype)
            grown[: self._tail_rows] = self.tail
            self._tail = grown
        self._tail[self._tail_rows : needed] = vectors
        self._tail_rows = needed
        self.columns.append(seqs, entries)

    def forget(self, seqs: Sequence[int]) -> IntArray:
        """Removed rows; their positions. Those of the base are the snapshot's to erase."""
        positions = self.columns.positions(seqs)
        self.columns.forget(positions)
        self._tail[positions[positions >= len(self.base)] - len(self.base)] = 0
        return positions

    def rebase(self, base: Codes, graph: Graph | None) -> None:
        """The base has taken in the tail."""
        self.base, self.graph = base, graph
        self._tail, self._tail_rows = np.empty((0, base.shape[1]), base.dtype), 0

    @property
    def trusted(self) -> Graph | None:
        """The graph, unless too many of its rows are removed."""
        if self.graph is None or not self.graph.rows:
            return None
        dead = np.count_nonzero(~self.columns.alive[: self.graph.rows])
        return self.graph if dead <= MOST_DEAD * self.graph.rows else None

    def search(
        self, queries: FloatArray, top: int, mask: BoolArray, *, only_exact: bool
    ) -> tuple[FloatArray, IntArray]:
        """The `top` most similar allowed rows of each of (Q, D) queries, best first.

        Returns:
            (Q, <= top) similarities and positions; position -1 where there are fewer rows.
        """
        allowed = int(np.count_nonzero(mask))
        top = min(top, allowed)
        if not top:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        graph = None if only_exact or allowed <= max(FEW, SELECTIVE * len(self)) else self.trusted
        chosen = None if allowed == len(self) else mask
        parts = []
        if graph:
            parts.append(self._by_graph(graph, queries, top, chosen))
        start = graph.rows if graph else 0
        for codes, first in ((self.base[start:], start), (self.tail, len(self.base))):
            if len(codes):
                part = None if chosen is None else chosen[first : first + len(codes)]
                similarity, row = exact(codes, queries, min(top, len(codes)), part)
                parts.append((similarity, np.where(row < 0, -1, row + first)))
        return merged(parts, top)

    def _by_graph(
        self, graph: Graph, queries: FloatArray, top: int, mask: BoolArray | None
    ) -> tuple[FloatArray, IntArray]:
        """The best allowed rows of the graph: among its best rows of all, or, where those are too few, exactly.

        FAISS can filter inside the graph, but then loses nearly all when the allowed rows are far from the query, as
        those of another modality may be.
        """
        if mask is None:
            return graph.search(self.base, queries, top)
        mask = mask[: graph.rows]
        allowed = int(np.count_nonzero(mask))
        top = min(top, allowed)
        if not top:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        wide = min(int(2 * top * graph.rows / allowed), max(WIDEST, 2 * top), graph.rows)
        similarity, row = graph.search(self.base, queries, wide)
        kept = np.where((row >= 0) & mask[row], similarity, -np.inf).astype(np.float32)
        found = merged([(kept, np.where(np.isneginf(kept), -1, row))], top)
        poor = np.flatnonzero((found[1] < 0).any(axis=1))
        if len(poor):
            found[0][poor], found[1][poor] = exact(self.base[: graph.rows], queries[poor], top, mask)
        return found
