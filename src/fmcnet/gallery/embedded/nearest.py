"""FAISS over embeddings that lie in one array (in memory or mapped from a file), without a copy of them.

Exact search is FAISS's flat index; the graph is its HNSW index, kept without the embeddings in it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.optional import require
from fmcnet.types import BoolArray, FloatArray, IntArray

Codes = NDArray[np.float32 | np.float16]
LINKS = 32
"""HNSW's M."""
EF_BUILD = 200
EF_SEARCH = 128


def faiss() -> Any:
    """The package; MissingDependencyError without it."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which instruction sets it tries
    return require("faiss", "gallery")


def empty_flat(dtype: np.dtype[Any], dimension: int) -> Any:
    """A FAISS flat index for inner products, of float32 or float16 values."""
    if dtype == np.float32:
        return faiss().IndexFlatIP(dimension)
    return faiss().IndexScalarQuantizer(
        dimension, faiss().ScalarQuantizer.QT_fp16, faiss().METRIC_INNER_PRODUCT
    )


def flat_over(codes: Codes) -> Any:
    """A FAISS flat index whose rows are `codes` itself (N, D), contiguous; keep `codes` as long as the index."""
    index = empty_flat(codes.dtype, codes.shape[1])
    index.is_trained = True
    start = faiss().swig_ptr(codes.view(np.uint8).reshape(-1))
    view = index.codes
    view.is_owned = False
    view.view_data = view.c_ptr = start
    view.view_size = view.c_size = codes.nbytes
    index.ntotal = len(codes)
    return index


def selector(mask: BoolArray) -> Any:
    """A FAISS selector of the rows where `mask` is true."""
    return faiss().IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def exact(codes: Codes, queries: FloatArray, top: int, mask: BoolArray | None) -> tuple[FloatArray, IntArray]:
    """The `top` largest inner products of each query (Q, D) with the rows of `codes` where `mask` is true.

    Returns:
        (Q, top) similarities, best first, and (Q, top) rows; row -1 where there are fewer.
    """
    if not len(codes):
        return np.full((len(queries), top), -np.inf, np.float32), np.full((len(queries), top), -1, np.int64)
    chosen = None if mask is None else faiss().SearchParameters(sel=selector(mask))
    similarity, row = flat_over(codes).search(queries, top, params=chosen)
    return similarity, row


class Graph:
    """HNSW over the first `rows` rows of the embeddings."""

    def __init__(self, index: Any) -> None:
        self._index = index

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
        return Graph(index)

    @staticmethod
    def load(path: Path) -> Graph:
        """Read what `save` wrote.

        Raises:
            RuntimeError: FAISS's, when the file is no such graph.
        """
        return Graph(faiss().read_index(str(path)))

    def save(self, path: Path) -> None:
        """Write the links, without the embeddings."""
        writer = faiss().FileIOWriter(str(path))
        faiss().write_index(self._index, writer, faiss().IO_FLAG_SKIP_STORAGE)
        del writer  # closes the file

    def extended(self, codes: Codes) -> Graph:
        """This graph, grown to cover all rows of `codes`; its old rows are the first ones of `codes`."""
        old = self.rows
        storage = empty_flat(codes.dtype, codes.shape[1])
        storage.is_trained = True
        if old:
            storage.add_sa_codes(codes[:old].view(np.uint8))
        self._attach(storage)
        for start in range(old, len(codes), 4096):
            self._index.add(np.ascontiguousarray(codes[start : start + 4096], dtype=np.float32))
        self._attach(flat_over(codes), codes)  # lets go of the copy
        return self

    def search(self, codes: Codes, queries: FloatArray, top: int) -> tuple[FloatArray, IntArray]:
        """As `exact` without a mask, nearly: about one in a hundred may be missed, most of them at the list's end."""
        self._attach(flat_over(codes[: self.rows]), codes)
        chosen = faiss().SearchParametersHNSW(efSearch=max(EF_SEARCH, 3 * top // 2))
        similarity, row = self._index.search(queries, min(top, self.rows), params=chosen)
        return similarity, row

    def _attach(self, storage: Any, codes: Codes | None = None) -> None:
        self._index.own_fields = False
        self._index.storage = storage
        self._kept = (storage, codes)  # FAISS keeps bare pointers


def merged(parts: list[tuple[FloatArray, IntArray]], top: int) -> tuple[FloatArray, IntArray]:
    """The `top` best of several answers for the same queries, best first."""
    similarity = np.concatenate([part[0] for part in parts], axis=1)
    row = np.concatenate([part[1] for part in parts], axis=1)
    similarity = np.where(row < 0, -np.inf, similarity).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(row, order, axis=1)
