"""FAISS over embeddings that lie in one array (in memory or mapped from a file), without a copy of them.

Exact search is FAISS's flat index; its HNSW index is in graph.py.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.optional import require
from fmcnet.types import BoolArray, FloatArray, IntArray

Codes = NDArray[np.float32 | np.float16]


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


def selector(mask: BoolArray, dtype: np.dtype[Any]) -> Any:
    """A FAISS selector of the rows where `mask` is true; of float32 rows it lets FAISS go straight to them."""
    if dtype == np.float32:
        return faiss().IDSelectorArray(np.flatnonzero(mask))
    return faiss().IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def exact(codes: Codes, queries: FloatArray, top: int, mask: BoolArray | None) -> tuple[FloatArray, IntArray]:
    """The `top` largest inner products of each query (Q, D) with the rows of `codes` where `mask` is true.

    Returns:
        (Q, top) similarities, best first, and (Q, top) rows; row -1 where there are fewer.
    """
    if not len(codes):
        return np.full((len(queries), top), -np.inf, np.float32), np.full((len(queries), top), -1, np.int64)
    chosen = None if mask is None else faiss().SearchParameters(sel=selector(mask, codes.dtype))
    similarity, row = flat_over(codes).search(queries, top, params=chosen)
    return similarity, row


def merged(parts: list[tuple[FloatArray, IntArray]], top: int) -> tuple[FloatArray, IntArray]:
    """The `top` best of several answers for the same queries, best first."""
    similarity = np.concatenate([part[0] for part in parts], axis=1)
    row = np.concatenate([part[1] for part in parts], axis=1)
    similarity = np.where(row < 0, -np.inf, similarity).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(row, order, axis=1)
