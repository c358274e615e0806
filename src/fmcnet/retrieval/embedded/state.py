"""A process's view of the gallery: columns, embeddings and index, all by position.

The first embeddings lie in the index's file, mapped (`base`); those that came later are in memory (`tail`) and are
searched beside it, one by one. Nothing here reads or writes the database.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmcnet.retrieval.embedded.columns import Columns
from fmcnet.retrieval.embedded.graph import Graph
from fmcnet.retrieval.embedded.nearest import Codes, exact, merged
from fmcnet.retrieval.records import Entry
from fmcnet.types import BoolArray, FloatArray, IntArray

FEW = 20_000
"""Allowed rows up to which a search is exact whatever the index."""
WIDEST = 2048
"""Most rows taken from the graph to be filtered."""
CANDIDATES = 512
"""Rows that a search looks at in the graph of one modality; or two thirds as many in each of both."""
LOOKED_AT = 100
"""Rows that are compared one by one in the time that a graph takes for a candidate, about."""
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
        top = min(top, int(np.count_nonzero(mask)))
        if not top:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        found, rest = [], mask
        graph = None if only_exact else self.trusted
        if graph:
            rest = mask.copy()
            chosen = {part: mask[: graph.rows] & (graph.parts == part) for part in graph.sizes}
            many = [part for part, rows in chosen.items() if np.count_nonzero(rows) > FEW]
            candidates = CANDIDATES if len(many) == 1 else 2 * CANDIDATES // 3
            for part in many:
                answer = self._by_graph(graph, part, queries, top, chosen[part], candidates)
                if answer:
                    found.append(answer)
                    rest[: graph.rows] &= ~chosen[part]
        for codes, first in ((self.base, 0), (self.tail, len(self.base))):
            here = rest[first : first + len(codes)]
            count = int(np.count_nonzero(here))
            if count:
                similarity, row = exact(
                    codes, queries, min(top, count), None if count == len(codes) else here
                )
                found.append((similarity, row + first))
        return merged(found, top)

    def _by_graph(
        self, graph: Graph, part: int, queries: FloatArray, top: int, chosen: BoolArray, candidates: int
    ) -> tuple[FloatArray, IntArray] | None:
        """The best chosen rows of one part: those among its best rows of all; None where comparing all costs less.

        FAISS can filter inside the graph, but then loses nearly all when the chosen rows are far from the query: here
        it is seen that too few of the best rows are chosen ones, and all of them are compared. The smaller the share
        of chosen rows, the further down the list they go, where a graph misses more: it looks at more candidates.
        """
        count, rows = int(np.count_nonzero(chosen)), graph.sizes[part]
        candidates = int(candidates * (rows / count) ** 0.25)
        top = min(top, count)
        wide = top if count == rows else min(3 * top * rows // (2 * count), rows)
        similarity = np.full((len(queries), top), -np.inf, np.float32)
        row = np.full((len(queries), top), -1, np.int64)
        poor = np.arange(len(queries))
        while len(poor) and wide <= WIDEST and LOOKED_AT * max(wide, candidates) < count:
            near, place = graph.search(self.base, queries[poor], wide, part, candidates)
            near = np.where((place >= 0) & chosen[place], near, -np.inf).astype(np.float32)
            similarity[poor], row[poor] = merged([(near, np.where(np.isneginf(near), -1, place))], top)
            poor = poor[(row[poor] < 0).any(axis=1)]
            wide *= 4
        if len(poor) == len(queries):
            return None
        if len(poor):
            similarity[poor], row[poor] = exact(self.base[: graph.rows], queries[poor], top, chosen)
        return similarity, row
