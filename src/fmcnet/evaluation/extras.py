"""What changes figures without changing the model: opt-in, named, and never shown without the plain figure.

Both extras look at the other images of a trial, which a plain evaluation does not: k-reciprocal re-ranking even
at the other probes. Published tables that used them do not compare with tables that did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.nearest import largest
from fmcnet.evaluation.passes import CHUNK_BYTES, rank_given
from fmcnet.evaluation.protocols import Trial
from fmcnet.evaluation.ranking import Ranks
from fmcnet.evaluation.reranking import Reranked, k_reciprocal
from fmcnet.evaluation.rules import SkipRule
from fmcnet.evaluation.similarity import Similarity
from fmcnet.types import BoolArray, Embeddings, IntArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class KReciprocal:
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017), with the paper's default numbers.

    Attributes:
        k1: neighbours that must be mutual.
        k2: neighbours over which the encoding is averaged.
        weight: lambda, the share of the original distance in the final one.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.weight <= 1:
            raise ProtocolError(f"k-reciprocal re-ranking needs k1, k2 >= 1 and a weight in 0..1, got {self}")

    def describe(self) -> str:
        """How reports name it."""
        return f"k-reciprocal re-ranking (k1={self.k1}, k2={self.k2}, lambda={self.weight:g})"


@dataclass(frozen=True)
class QueryExpansion:
    """Replace a probe by the mean of itself and its k nearest gallery images (Chum et al., ICCV 2007).

    With `alpha` above 0 each neighbour is weighted by max(cosine, 0)**alpha (Radenovic et al., TPAMI 2019), the
    probe by 1. Embeddings are of unit length. Neighbours that a camera rule hides are left out; rules that would
    need the probe's identity are not used here, for that would look at the answer.
    """

    k: int = 5
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1 or self.alpha < 0:
            raise ProtocolError(f"query expansion needs k >= 1 and alpha >= 0, got {self}")

    def describe(self) -> str:
        """How reports name it."""
        kind = f"alpha {self.alpha:g}" if self.alpha > 0 else "average"
        return f"query expansion ({kind}, k={self.k})"

    def apply(self, query: Matrix, gallery: Matrix, hidden: BoolArray | None = None) -> Matrix:
        """(Q, D) expanded probes of unit length, from (Q, D) and (G, D) of unit length; `hidden` is (Q, G)."""
        values = query @ gallery.T
        if hidden is not None:
            values = np.where(hidden, -np.inf, values)
        near = largest(values, self.k)
        close = np.take_along_axis(values, near, axis=1)
        seen = close > -np.inf
        weight = np.where(
            seen, np.maximum(np.where(seen, close, 0), 0) ** self.alpha if self.alpha else 1.0, 0.0
        )
        total = query + np.einsum("qk,qkd->qd", weight, gallery[near])
        return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


Extra: TypeAlias = KReciprocal | QueryExpansion


def rank_with_extras(
    embeddings: Embeddings,
    trial: Trial,
    skip: SkipRule,
    extras: Sequence[Extra],
    *,
    distance: str = "cosine",
    chunk_bytes: int = CHUNK_BYTES,
) -> Ranks:
    """Rank one trial after the extras, in float64 on the CPU.

    Args:
        embeddings: all images.
        trial: (query rows, gallery rows).
        skip: the rule; it applies to the ranking, not to the neighbourhoods of re-ranking.
        extras: in the order of application; re-ranking last.
        distance: "cosine" or "euclidean"; query expansion needs cosine.
        chunk_bytes: bound of a block.

    Raises:
        ProtocolError: when extras and distance or their order do not fit.
    """
    if any(isinstance(extra, KReciprocal) for extra in extras[:-1]):
        raise ProtocolError(
            "re-ranking must be the last of the extras: it yields similarities, not embeddings"
        )
    if distance == "euclidean" and any(isinstance(extra, QueryExpansion) for extra in extras):
        raise ProtocolError("query expansion averages embeddings of unit length: use the cosine distance")
    query_rows, gallery_rows = trial
    rows = np.union1d(query_rows, gallery_rows)
    similarity = Similarity.prepare(embeddings, rows, distance=distance, precision="float64")
    query = similarity.load(embeddings, query_rows).numpy()
    gallery = similarity.load(embeddings, gallery_rows).numpy()
    size = max(1, chunk_bytes // (32 * len(gallery)))
    reranked: Reranked | None = None
    for extra in extras:
        if isinstance(extra, QueryExpansion):
            query = np.concatenate(
                [
                    extra.apply(
                        query[s : s + size],
                        gallery,
                        _hidden(embeddings, query_rows[s : s + size], trial, skip),
                    )
                    for s in range(0, len(query), size)
                ]
            )
        else:
            reranked = k_reciprocal(query, gallery, extra.k1, extra.k2, extra.weight, chunk_bytes=chunk_bytes)

    def similarities(at: IntArray) -> Matrix:
        if reranked is not None:
            return np.negative(reranked.distances(at))
        product: Matrix = query[at] @ gallery.T
        if distance == "euclidean":
            product -= 0.5 * np.einsum("gd,gd->g", gallery, gallery)
        return product

    return rank_given(embeddings, trial, skip, similarities, tie=similarity.tie, chunk_bytes=chunk_bytes)


def _hidden(embeddings: Embeddings, rows: IntArray, trial: Trial, skip: SkipRule) -> BoolArray:
    """(q, G) what a probe may not use as a neighbour: itself, and what a rule on cameras alone hides."""
    gallery = trial[1]
    hidden: BoolArray = rows[:, None] == gallery[None, :]
    if skip.kind in ("same_camera", "camera_pairs"):
        camid, pid = embeddings.camid, embeddings.pid
        hidden |= skip.mask(pid[rows], camid[rows], pid[gallery], camid[gallery])
    return hidden
