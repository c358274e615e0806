"""Similarities of pairs as counts: how often pairs of one person, and of two, fall into each narrow bin.

All of calibration is a function of these counts, so that millions of pairs take no more memory than a few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.types import NO_CAMERA, BoolArray, Embeddings, IntArray, Modality

BINS = 20_000
"""Of equal width over -1..1: similarities are told apart in steps of 0.0001."""

BLOCK = 2**22
"""Pairs compared at a time."""

FloatVector = NDArray[np.float64]


def edges() -> FloatVector:
    """(BINS + 1,) where bins begin and end; bin i holds edges[i] <= similarity < edges[i + 1]."""
    return np.linspace(-1.0, 1.0, BINS + 1)


def bins_of(similarity: NDArray[Any]) -> IntArray:
    """The bin of each similarity, of any shape; what rounding puts outside -1..1 goes to the ends."""
    place = np.floor((np.asarray(similarity, dtype=np.float64) + 1.0) * (BINS / 2))
    return np.clip(place, 0, BINS - 1).astype(np.int64)


def count(similarity: NDArray[Any]) -> IntArray:
    """(BINS,) how many similarities fall into each bin."""
    return np.bincount(bins_of(similarity).ravel(), minlength=BINS).astype(np.int64)


def folds_of(pid: IntArray, folds: int, seed: int = 0) -> IntArray:
    """(N,) 0..folds-1: a random, equal partition of the identities."""
    known, which = np.unique(pid, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(known))[which] % folds, dtype=np.int64)


def count_pairs(
    embeddings: Embeddings,
    query_modality: Modality,
    gallery_modality: Modality,
    *,
    fold: IntArray,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> IntArray:
    """Count the pairs of a query and a gallery image, by the folds of their identities.

    Left out are pairs of an image with itself and of one person seen by one camera, where it is known: neighbouring
    frames say nothing about recognising somebody elsewhere. Within a modality a pair counts once, not in both orders.

    Args:
        embeddings: (N,) of known identities, of any length but zero.
        fold: (N,) 0..K-1, one value an identity.
        query_mask, gallery_mask: (N,) which rows may be queries, gallery; None: all.

    Returns:
        (K, K, 2, BINS): by the query's fold, the gallery's fold, different (0) or same (1) person, and bin.
    """
    every = np.ones(len(embeddings), dtype=bool)
    mine = [every if mask is None else mask for mask in (query_mask, gallery_mask)]
    rows_q = np.flatnonzero(mine[0] & (embeddings.modality == query_modality.code))
    rows_g = np.flatnonzero(mine[1] & (embeddings.modality == gallery_modality.code))
    k = int(fold.max(initial=0)) + 1
    counts = np.zeros(k * k * 2 * BINS, dtype=np.int64)
    features = embeddings.features / np.linalg.norm(embeddings.features, axis=1, keepdims=True)
    both_ways = np.isin(rows_g, rows_q)  # these meet in both orders where the modality is one
    step = max(1, BLOCK // max(1, len(rows_g)))
    for start in range(0, len(rows_q), step):
        q = rows_q[start : start + step]
        same = embeddings.pid[q, None] == embeddings.pid[None, rows_g]
        camera = embeddings.camid[q, None]
        counted = ~(same & (camera == embeddings.camid[None, rows_g]) & (camera != NO_CAMERA))
        counted &= q[:, None] != rows_g[None]
        if query_modality is gallery_modality:
            reverse_too = both_ways[None] & np.isin(q, rows_g)[:, None]
            counted &= ~(reverse_too & (q[:, None] > rows_g[None]))
        key = (fold[q, None] * k + fold[None, rows_g]) * 2 + same
        flat = key * BINS + bins_of(features[q] @ features[rows_g].T)
        counts += np.bincount(flat[counted], minlength=len(counts))
    return counts.reshape(k, k, 2, BINS)
