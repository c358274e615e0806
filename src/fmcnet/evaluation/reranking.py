"""k-reciprocal re-ranking.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.

Sparse and chunked: the N x N distances of probes and gallery are never held, only each image's nearest neighbours
and its encoding (a few dozen numbers). tests/reference/reranking_slow.py computes the same with full matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.evaluation.nearest import largest
from fmcnet.evaluation.passes import CHUNK_BYTES
from fmcnet.types import IntArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Reranked:
    """The final distances of a trial, computed for some probes at a time.

    Attributes:
        images: (Q + G, D), probes first.
        queries: Q.
        farthest: (Q + G,) each image's largest squared distance.
        encoding: (Q + G, Q + G) sparse rows, the averaged encodings V.
        columns: the gallery's part of the encodings, by column: (Q + G, G) as CSC.
        weight: lambda.
    """

    images: Matrix
    queries: int
    farthest: Matrix
    encoding: Any
    columns: Any
    weight: float

    def distances(self, at: IntArray) -> Matrix:
        """(q, G) final distances of the probes at positions `at`: (1 - lambda) Jaccard + lambda original."""
        gallery = len(self.images) - self.queries
        original = squared_distances(self.images[at], self.images[self.queries :]) / self.farthest[at, None]
        final = np.empty((len(at), gallery))
        pointers, rows, values = self.columns.indptr, self.columns.indices, self.columns.data
        for position, probe in enumerate(at.tolist()):
            start, stop = self.encoding.indptr[probe], self.encoding.indptr[probe + 1]
            shared, own = self.encoding.indices[start:stop], self.encoding.data[start:stop]
            begin, length = pointers[shared], pointers[shared + 1] - pointers[shared]
            entries = np.repeat(begin - np.append(0, np.cumsum(length)[:-1]), length) + np.arange(
                length.sum()
            )
            smaller = np.minimum(values[entries], np.repeat(own, length))
            overlap = np.bincount(rows[entries], weights=smaller, minlength=gallery)
            final[position] = 1 - overlap / (2 - overlap)  # rows of V sum to 1: sum max = 2 - sum min
        return np.asarray((1 - self.weight) * final + self.weight * original)


def k_reciprocal(
    query: Matrix,
    gallery: Matrix,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Reranked:
    """Prepare the re-ranking of a trial.

    Args:
        query: (Q, D) float64 embeddings, of unit length for cosine.
        gallery: (G, D) float64.
        k1, k2, weight: see `extras.KReciprocal`.
        chunk_bytes: bound of a block of distances.
    """
    from scipy.sparse import csr_array

    images = np.concatenate([query, gallery])
    n = len(images)
    near, farthest = _neighbours(images, min(max(k1 + 1, k2), n), chunk_bytes)
    mutual = _mutual(near[:, : k1 + 1])
    narrow = _mutual(near[:, : int(np.around(k1 / 2)) + 1])
    parts = [_expand(i, mutual, narrow) for i in range(n)]
    sizes = np.array([len(part) for part in parts])
    columns = np.concatenate(parts)
    rows = np.repeat(np.arange(n), sizes)
    distance = np.empty(len(columns))
    step = max(1, chunk_bytes // (16 * images.shape[1]))
    for s in range(0, len(columns), step):
        difference = images[rows[s : s + step]] - images[columns[s : s + step]]
        distance[s : s + step] = np.einsum("nd,nd->n", difference, difference)
    close = np.exp(-distance / farthest[rows])
    close /= np.repeat(np.add.reduceat(close, np.append(0, np.cumsum(sizes)[:-1])), sizes)
    encoding = csr_array((close, (rows, columns)), shape=(n, n))
    if k2 > 1:
        few = near[:, :k2]
        average = csr_array(
            (np.full(few.size, 1 / few.shape[1]), (np.repeat(np.arange(n), few.shape[1]), few.ravel())),
            shape=(n, n),
        )
        encoding = csr_array(average @ encoding)
    return Reranked(images, len(query), farthest, encoding, encoding[len(query) :].tocsc(), weight)


def squared_distances(a: Matrix, b: Matrix) -> Matrix:
    """(A, B) squared Euclidean distances."""
    product: Matrix = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.maximum(product, 0)


def _neighbours(images: Matrix, k: int, chunk_bytes: int) -> tuple[IntArray, Matrix]:
    """(N, k) nearest images, the image itself first, ties by position; (N,) the largest squared distance."""
    near = np.empty((len(images), k), dtype=np.int64)
    farthest = np.empty(len(images))
    step = max(1, chunk_bytes // (48 * len(images)))
    for s in range(0, len(images), step):
        block = squared_distances(images[s : s + step], images)
        farthest[s : s + step] = block.max(axis=1)
        block[np.arange(len(block)), np.arange(s, s + len(block))] = -1.0
        near[s : s + step] = largest(-block, k)
    return near, np.where(farthest > 0, farthest, 1.0)


def _mutual(near: IntArray) -> list[IntArray]:
    """For every image, those of its neighbours that have it among theirs, nearest first."""
    n, k = near.shape
    own = np.repeat(np.arange(n), k)
    pairs = own * n + near.ravel()
    both = np.isin(near.ravel() * n + own, pairs).reshape(n, k)
    return [row[keep] for row, keep in zip(near, both, strict=True)]


def _expand(i: int, mutual: list[IntArray], narrow: list[IntArray]) -> IntArray:
    """R*(i, k1): the reciprocal neighbours, joined by those of a neighbour that overlap by over two thirds."""
    base = mutual[i]
    members = set(base.tolist())
    extra = set(members)
    for candidate in base.tolist():
        group = narrow[candidate].tolist()
        if sum(g in members for g in group) > 2 / 3 * len(group):
            extra.update(group)
    return np.array(sorted(extra), dtype=np.int64)
