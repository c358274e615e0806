"""Similarity: embeddings to unit vectors, several to one, and hits in their order, alone, by track or by person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.errors import GalleryError
from fmcnet.retrieval.records import Entry, Hit, HitGroup, Stored
from fmcnet.types import BoolArray, FloatArray, Modality

SPARE = 16
"""Candidates asked for beyond `top`, to see ties at the end of the list: an index compares in float32, where equal
embeddings may differ in the last bits."""
NEAR = 1e-5
"""Similarities of float32 sums that may be equal when computed exactly."""
SMALLEST = 1e-12
"""A vector whose values are all smaller is a zero vector."""


def unit_vectors(values: ArrayLike, names: Sequence[str] = (), what: str = "embedding") -> FloatArray:
    """(N, D) float32 of unit length.

    Args:
        values: (N, D) real numbers of any length; a single (D,) vector becomes (1, D).
        names: of the rows, for the message.
        what: noun for a row, for the message.

    Raises:
        GalleryError: for another shape, NaN, infinity and zero vectors.
    """
    plural = "queries" if what == "query" else f"{what}s"
    try:
        matrix = np.asarray(values)
        if matrix.dtype.kind not in "fiu":
            raise GalleryError(f"{plural} must be real numbers, got {matrix.dtype}")
        matrix = matrix.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor that has a gradient
        raise GalleryError(f"{plural} are not a matrix of numbers: {error}") from error
    if matrix.ndim == 1:
        matrix = matrix[None]
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise GalleryError(f"{plural} must have shape (N, D), got {np.shape(values)}")
    finite = np.isfinite(matrix).all(axis=1)
    largest = np.where(finite, np.abs(np.where(finite[:, None], matrix, 1.0)).max(axis=1), 1.0)
    zero = finite & (largest < SMALLEST)
    for bad, fault in ((~finite, "holds NaN or infinity"), (zero, "is a zero vector")):
        rows = np.flatnonzero(bad)
        if len(rows):
            row = int(rows[0])
            label = f" ('{names[row]}')" if row < len(names) else ""
            others = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
            raise GalleryError(
                f"{what} {row}{label} of {len(matrix)} {fault}{others}: check the model, or leave it out"
            )
    matrix /= largest[:, None]  # so that no square overflows
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)


def pool(embeddings: ArrayLike) -> FloatArray:
    """The mean of the unit vectors of several embeddings, brought to unit length.

    Args:
        embeddings: (N, D), or a single (D,).

    Returns:
        (D,) float32.

    Raises:
        GalleryError: for bad embeddings, or when they cancel out.
    """
    units = unit_vectors(embeddings)
    if not len(units):
        raise GalleryError("there is nothing to pool: give at least one embedding")
    mean = units.mean(axis=0, dtype=np.float64)
    if np.linalg.norm(mean) < 1e-6:
        raise GalleryError("the embeddings cancel out: they cannot be crops of one person")
    pooled: FloatArray = unit_vectors(mean)[0]
    return pooled


def ties_go_on(similarity: Sequence[float] | FloatArray, top: int) -> bool:
    """Whether further candidates may be as similar as the `top`-th of these (K,), which are best first."""
    return len(similarity) >= top and bool(is_near(np.asarray(similarity[-1:]), similarity[top - 1])[0])


def is_near(similarity: FloatArray, other: float) -> BoolArray:
    """(K,) which are as high as `other`, or nearly. Of float16 embeddings they may pass 1, which counts as 1."""
    near: BoolArray = np.clip(similarity, -1.0, 1.0) >= np.clip(other, -1.0, 1.0) - NEAR
    return near


def ranked(query: FloatArray, stored: Sequence[Stored], top: int) -> list[Hit]:
    """The most similar of some stored entries, best first, ties by id.

    Each similarity is a sum of its own in double precision, so equal embeddings have equal ones.

    Args:
        query: (D,), unit length.
        stored: entries and embeddings.
        top: at most so many hits.
    """
    if not stored:
        return []
    vectors = np.stack([vector for _, vector in stored]).astype(np.float64)
    exact = (vectors * query.astype(np.float64)).sum(axis=1)
    similarity = np.clip(exact, -1.0, 1.0).astype(np.float32).tolist()
    order = sorted(range(len(stored)), key=lambda i: (-similarity[i], stored[i][0].id))
    return [Hit(similarity=similarity[i], **vars(stored[i][0])) for i in order[:top]]


def group(
    hits: Iterable[Hit], by: Literal["track", "pid"], *, modalities_apart: bool = False
) -> list[HitGroup]:
    """Put hits that share a track or a pid together.

    Args:
        hits: best first.
        by: "track" or "pid"; a hit that has none is a group of its own.
        modalities_apart: visible and infrared hits of one track or pid are two groups.

    Returns:
        Groups ranked by their best hit.

    Raises:
        GalleryError: for another `by`.
    """
    if by not in ("track", "pid"):
        raise GalleryError(f"hits are grouped by 'track' or 'pid', not {by!r}")
    members: dict[object, list[Hit]] = {}
    for hit in hits:
        members.setdefault(_group_key(hit, by, modalities_apart), []).append(hit)
    return [
        HitGroup(getattr(best, by), best.similarity, (best, *rest), probability=best.probability)
        for best, *rest in members.values()
    ]


def rank_pooled(
    query: FloatArray, groups: Iterable[HitGroup], entries: Iterable[Stored], by: Literal["track", "pid"]
) -> list[HitGroup]:
    """Groups of one modality each, ranked by the similarity of the query to all their entries pooled.

    A group's embedding is the mean of its entries' unit embeddings, brought to unit length, as `pool` makes it. A
    group with no key is its one hit; a group whose entries were all removed is left out.

    Args:
        query: (D,), unit length.
        groups: of `group` with `modalities_apart`.
        entries: all that belong to them.
        by: what they are grouped by.
    """
    sums: dict[object, tuple[int, Any]] = {}
    for entry, vector in entries:
        key = _group_key(entry, by, apart=True)
        count, total = sums.get(key, (0, 0.0))
        sums[key] = count + 1, total + vector.astype(np.float64)
    results = []
    for hit_group in groups:
        count, total = sums.get(_group_key(hit_group.hits[0], by, apart=True), (0, 0.0))
        if hit_group.key is None:
            results.append(replace(hit_group, pooled=1))
        elif count:
            length = min(float(np.linalg.norm(total)) / count, 1.0)
            cosine = float(np.dot(total, query.astype(np.float64))) / count / length if length > 1e-6 else 0.0
            cosine = max(-1.0, min(cosine, 1.0))
            results.append(replace(hit_group, similarity=cosine, pooled=count, length=length))
    return sorted(results, key=lambda hit_group: (-hit_group.similarity, hit_group.hits[0].id))


def _group_key(item: Hit | Entry, by: str, apart: bool) -> tuple[object, str, Modality | None]:
    """The key that members of a group share."""
    value = getattr(item, by)
    return value, item.id if value is None else "", item.modality if apart else None
