"""FAISS's HNSW over embeddings that lie in one array: in one index a graph for each part of the rows, without a copy.

Rows of different parts (modalities, in a gallery) are never linked, so a search in one part is not led astray by
another whose rows are all nearer to the query, as those of the query's own modality are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.retrieval.embedded.nearest import Codes, empty_flat, faiss, flat_over
from fmcnet.types import BoolArray, FloatArray, IntArray

LINKS = 32
"""HNSW's M."""
EF_BUILD = 200
ALONE = 128
"""Added to the part of a row that no search in the graph can reach."""
Parts = NDArray[np.uint8]


class Graph:
    """HNSW over the first `rows` rows of the embeddings.

    Attributes:
        parts: (rows,) part of each row, below `ALONE`; or `ALONE` and more for a row that cannot be reached.
        sizes: of each part, the number of rows that can be reached.
    """

    def __init__(self, index: Any, parts: Parts) -> None:
        self._index = index
        self.parts = parts
        self.sizes = self._count()
        self._entries: dict[int, tuple[int, int]] = {}

    @property
    def rows(self) -> int:
        """How many rows it covers."""
        return int(self._index.ntotal)

    @staticmethod
    def empty(dtype: np.dtype[Any], dimension: int) -> Graph:
        """A graph of no rows."""
        if dtype == np.float32:
            index = faiss().IndexHNSWFlat(dimension, LINKS, faiss().METRIC_INNER_PRODUCT)
        else:
            kind = faiss().ScalarQuantizer.QT_fp16
            index = faiss().IndexHNSWSQ(dimension, kind, LINKS, faiss().METRIC_INNER_PRODUCT)
            index.is_trained = True
        index.hnsw.efConstruction = EF_BUILD
        return Graph(index, np.empty(0, np.uint8))

    @staticmethod
    def load(path: Path) -> Graph:
        """Read what `save` wrote.

        Raises:
            RuntimeError: when the file is no such graph.
        """
        index = faiss().read_index(str(path))
        parts = np.fromfile(path, np.uint8, offset=max(path.stat().st_size - index.ntotal, 0))
        if len(parts) != index.ntotal:
            raise RuntimeError(f"{path} is too short")
        return Graph(index, parts)

    def save(self, path: Path) -> None:
        """Write the links, without the embeddings, and then a byte a row, its part."""
        writer = faiss().FileIOWriter(str(path))
        faiss().write_index(self._index, writer, faiss().IO_FLAG_SKIP_STORAGE)
        del writer  # closes the file
        with path.open("ab") as stream:
            stream.write(self.parts.tobytes())

    def extended(self, codes: Codes, parts: Parts) -> Graph:
        """This graph, grown to cover all rows of `codes`; its old rows are the first ones of `codes`.

        Args:
            codes: (N, D) embeddings. parts: (N,) below `ALONE`; those of old rows are not looked at.
        """
        old = self.rows
        storage = empty_flat(codes.dtype, codes.shape[1])
        storage.is_trained = True
        if old:
            storage.add_sa_codes(codes[:old].view(np.uint8))
        self._attach(storage)
        new = {part: old + np.flatnonzero(parts[old:] == part) for part in np.unique(parts[old:]).tolist()}
        for part, rows in new.items():
            self._enter(part)  # from there FAISS looks for neighbours, and finds only those of this part
            for start in range(0, len(rows), 4096):
                self._index.add(np.ascontiguousarray(codes[rows[start : start + 4096]], dtype=np.float32))
        place = np.empty(len(codes), np.int64)  # where FAISS numbered each row, part after part
        place[np.concatenate([np.arange(old), *new.values()])] = np.arange(len(codes))
        self._index.hnsw.permute_entries(faiss().swig_ptr(place))
        self._attach(flat_over(codes), codes)  # lets go of the copy
        self._entries.clear()
        self.parts = np.concatenate([self.parts & (ALONE - 1), parts[old:]])
        lost = ~self._reached()
        self.parts[lost] |= ALONE
        self.sizes = self._count()
        return self

    def search(
        self, codes: Codes, queries: FloatArray, top: int, part: int, candidates: int
    ) -> tuple[FloatArray, IntArray]:
        """The `top` largest inner products of each query with rows of one part, nearly.

        Args:
            candidates: HNSW's efSearch; the more, the fewer are missed, and the longer it takes. None is missed while
                they, or `top`, are no less than the part's rows.

        Returns:
            (Q, top) similarities, best first, and (Q, top) rows; row -1 where there are fewer.
        """
        self._attach(flat_over(codes[: self.rows]), codes)
        self._enter(part)
        chosen = faiss().SearchParametersHNSW(efSearch=max(candidates, 3 * top // 2))
        similarity, row = self._index.search(queries, top, params=chosen)
        return similarity, row

    def _count(self) -> dict[int, int]:
        sizes = np.bincount(self.parts, minlength=ALONE)[:ALONE]
        return {part: int(sizes[part]) for part in np.flatnonzero(sizes).tolist()}

    def _enter(self, part: int) -> None:
        """Let FAISS begin at one of the part's rows on the highest level; at none where it has no row yet."""
        hnsw = self._index.hnsw
        if part not in self._entries:
            levels = faiss().vector_to_array(hnsw.levels)
            members = np.flatnonzero(self.parts & (ALONE - 1) == part)
            start = int(members[np.argmax(levels[members])]) if len(members) else -1
            self._entries[part] = start, int(levels[start]) - 1 if len(members) else -1
        hnsw.entry_point, hnsw.max_level = self._entries[part]

    def _reached(self) -> BoolArray:
        """(rows,) whether a row can be reached from where a search in its part begins, on the lowest level."""
        hnsw = self._index.hnsw
        links = faiss().rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
        first = faiss().vector_to_array(hnsw.offsets).astype(np.int64)
        span = np.arange(hnsw.nb_neighbors(0))
        seen = np.zeros(self.rows, np.bool_)
        for part in np.unique(self.parts).tolist():
            self._enter(part)
            waiting = [np.array([hnsw.entry_point], np.int64)]
            seen[waiting[0]] = True
            while waiting:
                rows = waiting.pop()
                found = links[first[rows[:32_768], None] + span].ravel()
                if len(rows) > 32_768:
                    waiting.append(rows[32_768:])
                fresh = np.unique(found[found >= 0])
                fresh = fresh[~seen[fresh]]
                seen[fresh] = True
                if len(fresh):
                    waiting.append(fresh.astype(np.int64))
        return seen

    def _attach(self, storage: Any, codes: Codes | None = None) -> None:
        self._index.own_fields = False
        self._index.storage = storage
        storage.this.own(True)  # what is set so, SWIG leaves to FAISS, which is not to free it: nobody would
        self._kept = (storage, codes)  # FAISS keeps bare pointers
