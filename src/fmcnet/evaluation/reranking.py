"""Re-ranking and query expansion: opt-in, named, and never shown without the plain figure.

Both use the other images of a trial, which a plain evaluation does not; k-reciprocal re-ranking also uses the other
queries. Published tables that used them do not compare with tables that did not.

k-reciprocal re-ranking is sparse and chunked: the N x N distances of queries and gallery are never held, only each
image's nearest neighbours and its encoding (a few dozen numbers). tests/reference/reranking_slow.py computes the same
with full matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.protocols import Trial
from fmcnet.evaluation.ranking import CHUNK_BYTES, Ranks, largest, rank_given
from fmcnet.evaluation.similarity import Similarity
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.types import BoolArray, Embeddings, IntArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class KReciprocal:
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017), with the paper's default numbers."""

    k1: int = 20  # neighbours that must be mutual
    k2: int = 6  # neighbours over which the encoding is averaged
    weight: float = 0.3  # lambda, the share of the original distance in the final one

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.weight <= 1:
            raise ProtocolError(f"k-reciprocal re-ranking needs k1, k2 >= 1 and a weight in 0..1, got {self}")

    def describe(self) -> str:
        """How reports name it."""
        return f"k-reciprocal re-ranking (k1={self.k1}, k2={self.k2}, lambda={self.weight:g})"


@dataclass(frozen=True)
class QueryExpansion:
    """Replace a query by the mean of itself and its k nearest gallery images (Chum et al., ICCV 2007).

    Embeddings are of unit length. Neighbours that a camera rule hides are left out; rules that would need the
    query's identity are not used here, since that would leak the answer.
    """

    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ProtocolError(f"query expansion needs k >= 1, got {self}")

    def describe(self) -> str:
        """How reports name it."""
        return f"query expansion (average, k={self.k})"

    def apply(self, query: Matrix, gallery: Matrix, hidden: BoolArray) -> Matrix:
        """(Q, D) expanded queries of unit length, from (Q, D) and (G, D) of unit length; `hidden` is (Q, G)."""
        values = np.where(hidden, -np.inf, query @ gallery.T)
        neighbours = largest(values, self.k)
        is_seen = (np.take_along_axis(values, neighbours, axis=1) > -np.inf).astype(np.float64)
        total = query + np.einsum("qk,qkd->qd", is_seen, gallery[neighbours])
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

    Re-ranking must be the last of the extras, and query expansion needs the cosine distance. The skip rule applies to
    the ranking, not to the neighbourhoods of re-ranking.

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
    similarity = Similarity.prepare(
        embeddings, query_rows, gallery_rows, distance=distance, precision="float64"
    )
    query = similarity.load(embeddings, query_rows).numpy()
    gallery = similarity.load(embeddings, gallery_rows).numpy()
    chunk = max(1, chunk_bytes // (32 * len(gallery)))
    # A rule that needs the query's identity hides no neighbour: that would leak the answer.
    rule = skip if skip.hides_others else SkipRule()
    reranked: Callable[[IntArray], Matrix] | None = None
    for extra in extras:
        if isinstance(extra, QueryExpansion):
            parts = []
            for start in range(0, len(query), chunk):
                hidden = rule.hidden(embeddings, query_rows[start : start + chunk, None], gallery_rows)
                parts.append(extra.apply(query[start : start + chunk], gallery, hidden))
            query = np.concatenate(parts)
        else:
            reranked = k_reciprocal(query, gallery, extra, chunk_bytes=chunk_bytes)

    def similarities(positions: IntArray) -> Matrix:
        return query[positions] @ gallery.T if reranked is None else -reranked(positions)

    tie = similarity.tie if reranked is None else float(4 * np.finfo(np.float64).eps)  # of distances 0..1
    return rank_given(embeddings, trial, skip, similarities, tie=tie, chunk_bytes=chunk_bytes)


def k_reciprocal(
    query: Matrix, gallery: Matrix, rule: KReciprocal, *, chunk_bytes: int = CHUNK_BYTES
) -> Callable[[IntArray], Matrix]:
    """Prepare the re-ranking of a trial.

    Args:
        query: (Q, D) float64 embeddings, of unit length for cosine.
        gallery: (G, D) float64.
        rule: its numbers.
        chunk_bytes: bound of a block of distances.

    Returns:
        A function from positions (q,) of queries to their final distances (q, G): (1 - lambda) Jaccard + lambda
        original. Only the queries asked for are computed.
    """
    from scipy.sparse import csr_array

    images = np.concatenate([query, gallery])
    n = len(images)
    neighbours, farthest = _nearest_neighbours(images, min(max(rule.k1 + 1, rule.k2), n), chunk_bytes)
    mutual = _mutual_neighbours(neighbours[:, : rule.k1 + 1])
    narrow = _mutual_neighbours(neighbours[:, : int(np.around(rule.k1 / 2)) + 1])
    groups = [_expand_reciprocal(i, mutual, narrow) for i in range(n)]
    encoding = _encode(images, farthest, groups, chunk_bytes)
    if rule.k2 > 1:
        nearest = neighbours[:, : rule.k2]
        rows = np.repeat(np.arange(n), nearest.shape[1])
        share = np.full(nearest.size, 1 / nearest.shape[1])
        encoding = csr_array(csr_array((share, (rows, nearest.ravel())), shape=(n, n)) @ encoding)
    of_gallery = encoding[len(query) :].tocsc()

    def distances(positions: IntArray) -> Matrix:
        original = squared_distances(query[positions], gallery)
        original /= farthest[positions, None]
        jaccard = np.empty_like(original)
        for row, position in enumerate(positions.tolist()):
            # The overlap of two encodings is the sum of their smaller entries; only columns of both count.
            entries = slice(*encoding.indptr[position : position + 2])
            shared = of_gallery[:, encoding.indices[entries]]
            own = np.repeat(encoding.data[entries], np.diff(shared.indptr))
            overlap = np.bincount(shared.indices, np.minimum(shared.data, own), original.shape[1])
            jaccard[row] = 1 - overlap / (2 - overlap)  # rows sum to 1: sum of maxima = 2 - that of minima
        return np.asarray((1 - rule.weight) * jaccard + rule.weight * original)

    return distances


def _encode(images: Matrix, farthest: Matrix, groups: list[IntArray], chunk_bytes: int) -> Any:
    """(N, N) sparse rows of sum 1: how near the members of an image's group are to it."""
    from scipy.sparse import csr_array

    n, sizes, columns = len(images), np.array([len(group) for group in groups]), np.concatenate(groups)
    rows = np.repeat(np.arange(n), sizes)
    distance = np.empty(len(columns))
    step = max(1, chunk_bytes // (16 * images.shape[1]))
    for start in range(0, len(columns), step):
        difference = images[rows[start : start + step]] - images[columns[start : start + step]]
        distance[start : start + step] = np.einsum("nd,nd->n", difference, difference)
    values = np.exp(-distance / farthest[rows])
    values /= np.repeat(np.add.reduceat(values, np.cumsum(sizes) - sizes), sizes)
    return csr_array((values, (rows, columns)), shape=(n, n))


def squared_distances(a: Matrix, b: Matrix) -> Matrix:
    """(A, B) squared Euclidean distances."""
    product: Matrix = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.maximum(product, 0)


def _nearest_neighbours(images: Matrix, k: int, chunk_bytes: int) -> tuple[IntArray, Matrix]:
    """(N, k) nearest images, the image itself first, ties by position; (N,) the largest squared distance."""
    neighbours = np.empty((len(images), k), dtype=np.int64)
    farthest = np.empty(len(images))
    step = max(1, chunk_bytes // (48 * len(images)))
    for start in range(0, len(images), step):
        block = squared_distances(images[start : start + step], images)
        farthest[start : start + step] = block.max(axis=1)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -1.0
        neighbours[start : start + step] = largest(-block, k)
    return neighbours, np.where(farthest > 0, farthest, 1.0)


def _mutual_neighbours(neighbours: IntArray) -> list[IntArray]:
    """For every image, those of its neighbours that have it among theirs, nearest first."""
    n, k = neighbours.shape
    images = np.repeat(np.arange(n), k)
    pairs = images * n + neighbours.ravel()
    is_mutual = np.isin(neighbours.ravel() * n + images, pairs).reshape(n, k)
    return [row[keep] for row, keep in zip(neighbours, is_mutual, strict=True)]


def _expand_reciprocal(i: int, mutual: list[IntArray], narrow: list[IntArray]) -> IntArray:
    """R*(i, k1): the reciprocal neighbours, joined by those of a neighbour that overlap by over two thirds."""
    base = mutual[i]
    members = set(base.tolist())
    extra = set(members)
    for candidate in base.tolist():
        group = narrow[candidate].tolist()
        if sum(g in members for g in group) > 2 / 3 * len(group):
            extra.update(group)
    return np.array(sorted(extra), dtype=np.int64)
