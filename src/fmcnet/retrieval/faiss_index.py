"""A gallery's index in memory: the embeddings of each modality in FAISS indexes.

A position is a row's place in the order of adding. Removed rows keep theirs until the gallery is compacted. Each
modality has a flat index, and an HNSW graph over its first rows. A graph never links rows of different modalities:
otherwise a search for one would be lost among rows of the query's own modality, which are all nearer.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import require
from fmcnet.parsing import read_npz
from fmcnet.retrieval.entry_columns import EntryColumns
from fmcnet.retrieval.records import Entry
from fmcnet.retrieval.similarity import SPARE, is_near, ties_go_on
from fmcnet.types import BoolArray, FloatArray, IntArray, Modality

Codes = NDArray[np.float32 | np.float16]
Nearest = tuple[FloatArray, IntArray]
"""(Q, K) similarities, best first, and (Q, K) rows; row -1 where there are fewer."""

STORAGE = {"float32": "Flat", "float16": "SQfp16"}
"""Names in FAISS's index factory."""
LINKS = 32
"""HNSW's M."""
EF_BUILD = 200
FEW = 20_000
"""Allowed rows of a modality up to which a search is exact whatever the index."""
WIDEST = 2048
"""Most rows taken from the graph to be filtered."""
EF_SEARCH = 512
"""HNSW's efSearch in one modality; two thirds of it in each of both."""
LOOKED_AT = 100
"""Rows compared one by one in about the time that a graph takes for one candidate."""
MOST_DEAD = 0.25
"""Share of removed rows from which a graph is not used, until the gallery is compacted."""
SELF_SEARCH = {"k": 8, "ef": 64}
"""A row that such a search for its own embedding misses is compared one by one."""


def faiss() -> Any:
    """The package; MissingDependencyError without it."""
    if "faiss" not in sys.modules:  # to set a level empties the caches of all loggers
        logger = logging.getLogger("faiss.loader")
        logger.setLevel(logging.WARNING)  # it reports the instruction sets it tries
    return require("faiss", "gallery")


def empty_flat(dimension: int, dtype: np.dtype[Any]) -> Any:
    """A FAISS index that compares all rows, for inner products of float32 or float16 values."""
    return faiss().index_factory(dimension, STORAGE[dtype.name], faiss().METRIC_INNER_PRODUCT)


def exact(index: Any, queries: FloatArray, top: int, mask: BoolArray) -> Nearest:
    """The `top` largest inner products of (Q, D) queries with the rows of a flat index where `mask` is true."""
    rows = np.flatnonzero(mask)
    if len(rows) == len(mask):
        return index.search(queries, top)  # type: ignore[no-any-return]
    if int(rows[-1]) - int(rows[0]) < len(rows):  # FAISS searches a range as if it were all
        selector = faiss().IDSelectorRange(int(rows[0]), int(rows[-1]) + 1)
    elif index.sa_code_size() == 4 * index.d:  # of float32 rows it reads only those listed
        selector = faiss().IDSelectorArray(rows)
    else:
        selector = faiss().IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    return index.search(queries, top, params=faiss().SearchParameters(sel=selector))  # type: ignore[no-any-return]


def merged(parts: Sequence[Nearest], top: int) -> Nearest:
    """The `top` best of several answers for the same queries."""
    similarity = np.concatenate([part[0] for part in parts], axis=1)
    row = np.concatenate([part[1] for part in parts], axis=1)
    similarity = np.where(row < 0, -np.inf, similarity).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(row, order, axis=1)


class ModalityIndex:
    """The embeddings of one modality.

    Attributes:
        positions: (M,) of its rows in the gallery, rising.
        flat: FAISS index of all rows.
        graph: HNSW over the first G rows, with `flat` as its storage, or None.
        reached: (G,) which rows of the graph a search in it finds.
    """

    def __init__(self, dimension: int, dtype: np.dtype[Any]) -> None:
        self.dimension, self.dtype = dimension, dtype
        self.positions = np.empty(0, np.int64)
        self.flat = empty_flat(dimension, dtype)
        self.graph: Any = None
        self.reached = np.empty(0, np.bool_)

    @property
    def graph_rows(self) -> int:
        """How many rows the graph covers."""
        return len(self.reached)

    def add(self, positions: IntArray, codes: Codes) -> None:
        """Append rows."""
        self.positions = np.concatenate([self.positions, positions])
        self.flat.add_sa_codes(np.ascontiguousarray(codes).view(np.uint8))

    def attach(self, graph: Any, reached: BoolArray) -> None:
        """Use a graph of the first rows that has no embeddings of its own."""
        self.graph, self.reached = graph, reached
        graph.storage, graph.own_fields = self.flat, True  # the graph frees it

    @property
    def codes(self) -> Codes:
        """(M, D) embeddings in the memory of `flat`, until rows are added."""
        size = len(self.positions) * self.dimension * self.dtype.itemsize
        memory = faiss().rev_swig_ptr(self.flat.codes.data(), size)
        return memory.view(self.dtype).reshape(-1, self.dimension)  # type: ignore[no-any-return]

    def stand_ins(self, rows: IntArray, alive: BoolArray) -> Codes:
        """(N, D) what takes the place of removed rows in a graph: of each the nearest row that is left.

        A search finds what lies behind a row by passing it, and passes no zeros. Zeros where no row is left.
        """
        if not alive.any():
            return np.zeros((len(rows), self.dimension), self.dtype)
        own, index = np.unique(self.codes[rows], axis=0, return_inverse=True)  # many may be copies of one
        found = self.search(own.astype(np.float32), 1, alive, SELF_SEARCH["ef"] if self.graph_rows else 0)
        nearest = merged(found, 1)[1][:, 0]
        return self.codes[np.searchsorted(self.positions, nearest)][index.ravel()]

    def grow(self, alive: BoolArray) -> None:
        """Take all rows into the graph, with `stand_ins` for those (M,) that are not alive."""
        first, total = self.graph_rows, len(self.positions)
        if first == total:
            return
        if len(removed := np.flatnonzero(~alive)):  # as a process sees them that opens the files later
            self.codes[removed] = self.stand_ins(removed, alive)
        if self.graph is None:
            description = f"HNSW{LINKS},{STORAGE[self.dtype.name]}"
            graph = faiss().index_factory(self.dimension, description, faiss().METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = EF_BUILD
            self.attach(graph, self.reached)
        new = self.codes[first:].astype(np.float32)
        self.flat.remove_ids(faiss().IDSelectorRange(first, total))
        self.graph.add(new)  # to `flat`, too
        self.reached = np.empty(self.graph.ntotal, np.bool_)
        params = faiss().SearchParametersHNSW(efSearch=SELF_SEARCH["ef"])
        for start in range(0, len(self.reached), 4096):
            rows = np.arange(start, min(start + 4096, len(self.reached)))
            neighbours = self.graph.search(
                self.codes[rows].astype(np.float32), SELF_SEARCH["k"], params=params
            )[1]
            self.reached[rows] = (neighbours == rows[:, None]).any(axis=1)

    def search(self, queries: FloatArray, top: int, mask: BoolArray, ef_search: int) -> list[Nearest]:
        """Answers that together hold the best of its rows, by position in the gallery.

        Args:
            queries: (Q, D), unit length.
            top: how many.
            mask: (M,) which of its rows to look at.
            ef_search: HNSW's efSearch; 0: compare all.
        """
        answers, by_graph = [], np.zeros(len(mask), np.bool_)
        by_graph[: self.graph_rows] = self.reached
        if ef_search and (mask & by_graph).any():
            answer = self._search_graph(queries, top, mask & by_graph, ef_search)
            if answer:
                answers.append(answer)
                mask = mask & ~by_graph
        if count := int(np.count_nonzero(mask)):
            answers.append(exact(self.flat, queries, min(top, count), mask))
        return [(similarity, np.where(row < 0, -1, self.positions[row])) for similarity, row in answers]

    def _search_graph(
        self, queries: FloatArray, top: int, chosen: BoolArray, ef_search: int
    ) -> Nearest | None:
        """The best chosen rows among the graph's best rows; None where comparing all costs less.

        FAISS can filter inside the graph, but misses nearly all rows where the chosen ones are far from the query.
        This search notices that too few of the best rows are chosen ones, and compares all of them. The smaller the
        share of chosen rows, the lower they rank, where a graph misses more: so it looks at more candidates.
        """
        count, reached = int(np.count_nonzero(chosen)), int(np.count_nonzero(self.reached))
        ef_search = int(ef_search * (reached / count) ** 0.25)
        top = min(top, count)
        limit = top if count == self.graph_rows else min(3 * top * reached // (2 * count), reached)
        similarity = np.full((len(queries), top), -np.inf, np.float32)
        row = np.full((len(queries), top), -1, np.int64)
        pending = np.arange(len(queries))
        while len(pending) and limit <= WIDEST and LOOKED_AT * max(limit, ef_search) < count:
            params = faiss().SearchParametersHNSW(efSearch=max(ef_search, 3 * limit // 2))
            scores, rows = self.graph.search(queries[pending], limit, params=params)
            scores = np.where((rows >= 0) & chosen[rows], scores, -np.inf).astype(np.float32)
            similarity[pending], row[pending] = merged(
                [(scores, np.where(np.isneginf(scores), -1, rows))], top
            )
            pending = pending[(row[pending] < 0).any(axis=1)]
            limit *= 4
        if len(pending) == len(queries):
            return None
        if len(pending):
            similarity[pending], row[pending] = exact(self.flat, queries[pending], top, chosen)
        return similarity, row


class FaissIndex:
    """A process's view of a gallery, by position. Nothing here reads or writes the database.

    A removed row keeps its position, and in memory its embedding, until the gallery is compacted or opened again.

    Attributes:
        columns: N rows.
        parts: one index a modality.
    """

    def __init__(self, dimension: int, dtype: str, columns: EntryColumns | None = None) -> None:
        self.columns = columns or EntryColumns()
        self.dimension, self.dtype = dimension, np.dtype(dtype)
        self.parts = [ModalityIndex(dimension, self.dtype) for _ in Modality]

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def live(self) -> int:
        """How many rows are not removed."""
        return int(np.count_nonzero(self.columns.alive))

    @property
    def graph_rows(self) -> int:
        """How many rows the graphs cover."""
        return sum(part.graph_rows for part in self.parts)

    @property
    def indexed(self) -> int:
        """How many rows that are not removed a search finds by a graph; 0: searches are exact."""
        alive = self.columns.alive
        graph_positions = (
            part.positions[: part.graph_rows][part.reached] for part in self.parts if self._usable(part)
        )
        return sum(int(np.count_nonzero(alive[positions])) for positions in graph_positions)

    def _usable(self, part: ModalityIndex) -> bool:
        """Whether there is a graph, and not too many of its rows are removed."""
        dead = np.count_nonzero(~self.columns.alive[part.positions[: part.graph_rows]])
        return part.graph_rows > 0 and bool(dead <= MOST_DEAD * part.graph_rows)

    def append(self, seqs: Sequence[int], entries: Sequence[Entry], codes: Codes) -> None:
        """Append rows."""
        first = len(self)
        self.columns.append(seqs, entries)
        self._add_to_parts(self.columns["modality"][first:], first, codes)

    def load(self, codes: Codes, graphs: Path | None) -> None:
        """Load the embeddings of all rows, and what `save_graphs` wrote.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: when `graphs` is no such file.
        """
        parts = self.columns["modality"].copy()
        if graphs is None:
            self._add_to_parts(parts, 0, codes)
            return
        stored = read_npz(graphs)
        saved = stored["parts"]
        if len(saved) > len(parts):
            raise ValueError(f"it covers {len(saved)} rows of {len(parts)}")
        parts[: len(saved)] = saved  # since then, entries may have changed their modality
        self._add_to_parts(parts, 0, codes)
        for code, part in enumerate(self.parts):
            if f"graph_{code}" in stored:
                graph = faiss().deserialize_index(stored.pop(f"graph_{code}"))
                part.attach(graph, stored[f"reached_{code}"])

    def _add_to_parts(self, parts: NDArray[np.generic], first: int, codes: Codes) -> None:
        for code, part in enumerate(self.parts):
            rows = np.flatnonzero(parts == code)
            part.add(first + rows, codes[rows])

    def forget(self, seqs: Sequence[int]) -> IntArray:
        """Mark rows as removed; returns positions, to erase in the embeddings' file."""
        positions = self.columns.positions(seqs)
        self.columns.forget(positions)
        return positions

    def codes_from(self, first: int) -> Codes:
        """(N - first, D) embeddings of the last rows; zeros for removed ones."""
        codes: Codes = np.zeros((len(self) - first, self.dimension), self.dtype)
        for part in self.parts:
            rows = np.flatnonzero(part.positions >= first)
            codes[part.positions[rows] - first] = part.codes[rows]
        codes[~self.columns.alive[first:]] = 0
        return codes

    def grow_graphs(self) -> None:
        """Take all rows into the graphs."""
        for part in self.parts:
            part.grow(self.columns.alive[part.positions])

    def stand_ins(self, positions: IntArray) -> Codes:
        """(N, D) what takes the place of removed rows in the embeddings' file: zeros outside of graphs."""
        codes: Codes = np.zeros((len(positions), self.dimension), self.dtype)
        for part in self.parts:
            of_part = np.flatnonzero(np.isin(positions, part.positions[: part.graph_rows]))
            if len(of_part):
                rows = np.searchsorted(part.positions, positions[of_part])
                codes[of_part] = part.stand_ins(rows, self.columns.alive[part.positions])
        return codes

    def removed_in_graphs(self) -> list[tuple[IntArray, ModalityIndex]]:
        """Positions of removed rows of graphs, by part."""
        graphs = [(part.positions[: part.graph_rows], part) for part in self.parts]
        return [(positions[~self.columns.alive[positions]], part) for positions, part in graphs]

    def save_graphs(self, path: Path) -> None:
        """Write the graphs' links, without the embeddings, and the modality under which each row is."""
        parts = np.zeros(len(self), np.uint8)
        arrays: dict[str, NDArray[np.generic]] = {"parts": parts}
        for code, part in enumerate(self.parts):
            parts[part.positions] = code
            if part.graph is not None:
                flags = faiss().IO_FLAG_SKIP_STORAGE
                arrays[f"graph_{code}"] = faiss().serialize_index(part.graph, flags)
                arrays[f"reached_{code}"] = part.reached
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    @property
    def clean(self) -> bool:
        """No row was removed, and each is in the index of its modality."""
        modalities = self.columns["modality"]
        in_place = all((modalities[part.positions] == code).all() for code, part in enumerate(self.parts))
        return in_place and bool(self.columns.alive.all())

    def search(self, queries: FloatArray, top: int, mask: BoolArray, *, only_exact: bool) -> Nearest:
        """The rows that are most similar to queries, by position.

        Args:
            queries: (Q, D), unit length.
            top: how many.
            mask: (N,) which rows to look at.
            only_exact: compare with all of them, whatever graphs there are.

        Returns:
            (Q, <= top) similarities and positions, best first.
        """
        top = min(top, int(np.count_nonzero(mask)))
        masks = [mask[part.positions] for part in self.parts]
        use_graph = [
            not only_exact
            and self._usable(part)
            and np.count_nonzero(allowed[: part.graph_rows] & part.reached) > FEW
            for part, allowed in zip(self.parts, masks, strict=True)
        ]
        ef_search = EF_SEARCH if sum(use_graph) == 1 else 2 * EF_SEARCH // 3
        results = [(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))]
        for part, allowed, by_graph in zip(self.parts, masks, use_graph, strict=True):
            results += part.search(queries, top, allowed, ef_search if by_graph else 0)
        return merged(results, top)

    def candidates(
        self, queries: FloatArray, top: int, mask: BoolArray, *, only_exact: bool
    ) -> list[IntArray]:
        """For each query the positions of all rows that may be among its `top` best; arguments as `search`.

        FAISS computes in float32, where equal embeddings may differ in the last bits: so more than `top`.
        """
        allowed, found = int(np.count_nonzero(mask)), list[IntArray]()
        nearest = zip(*self.search(queries, top + SPARE, mask, only_exact=only_exact), strict=True)
        for query, (similarity, rows) in zip(queries, nearest, strict=True):
            row_count = len(similarity)
            while row_count < allowed and ties_go_on(similarity, top):
                row_count = min(4 * row_count, allowed)
                wider = self.search(query[None], row_count, mask, only_exact=only_exact)
                similarity, rows = wider[0][0], wider[1][0]
                if len(similarity) < row_count:
                    break
            if len(rows):
                rows = rows[(rows >= 0) & is_near(similarity, similarity[min(top, len(rows)) - 1])]
            found.append(rows)
        return found
