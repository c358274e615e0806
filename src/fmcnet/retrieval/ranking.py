"""The ranking of entries, and several crops of one person as one: of a query, and of a track or person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.errors import GalleryError
from fmcnet.retrieval.inputs import unit_vectors
from fmcnet.retrieval.records import Entry, Hit, HitGroup, Stored
from fmcnet.types import FloatArray, Modality

SPARE = 16
"""Candidates asked for beyond `top`, to see ties at the end of the list."""
NEAR = 1e-5
"""Similarities of float32 sums that may be equal when computed exactly."""


def ranked(query: FloatArray, stored: Sequence[Stored], top: int) -> list[Hit]:
    """The `top` most similar of some stored entries to a unit query (D,), best first, ties by id.

    Each similarity is a sum of its own in double precision, so equal embeddings have equal ones.
    """
    if not stored:
        return []
    vectors = np.stack([vector for _, vector in stored]).astype(np.float64)
    exact = (vectors * query.astype(np.float64)).sum(axis=1)
    similarity = np.clip(exact, -1.0, 1.0).astype(np.float32).tolist()
    order = sorted(range(len(stored)), key=lambda i: (-similarity[i], stored[i][0].id))
    return [Hit.of(stored[i][0], similarity[i]) for i in order[:top]]


def pool(embeddings: ArrayLike) -> FloatArray:
    """One unit vector (D,) of several (N, D): the mean of their unit vectors, renormalised.

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


def group(
    hits: Iterable[Hit], by: Literal["track", "pid"], *, modalities_apart: bool = False
) -> list[HitGroup]:
    """Hits (best first) that share a track or a pid together; groups by their best hit.

    Args:
        modalities_apart: visible and infrared hits of one track or pid are two groups.
    """
    if by not in ("track", "pid"):
        raise GalleryError(f"hits are grouped by 'track' or 'pid', not {by!r}")
    members: dict[object, list[Hit]] = {}
    for hit in hits:
        members.setdefault(_key(hit, by, modalities_apart), []).append(hit)
    return [
        HitGroup(getattr(best, by), best.similarity, (best, *rest), probability=best.probability)
        for best, *rest in members.values()
    ]


def rank_pooled(
    query: FloatArray, groups: Iterable[HitGroup], entries: Iterable[Stored], by: Literal["track", "pid"]
) -> list[HitGroup]:
    """Groups of one modality each, ranked by the similarity of the query to all their entries pooled.

    A group's embedding is the mean of its entries' unit embeddings, brought to unit length, as `pool` makes it. A
    group with no key is its one hit; one of which no entry is there any more is left out.

    Args:
        query: (D,), unit length. groups: of `group` with `modalities_apart`. entries: all that belong to them.
    """
    sums: dict[object, tuple[int, Any]] = {}
    for entry, vector in entries:
        key = _key(entry, by, apart=True)
        count, total = sums.get(key, (0, 0.0))
        sums[key] = count + 1, total + vector.astype(np.float64)
    found = []
    for one in groups:
        count, total = sums.get(_key(one.hits[0], by, apart=True), (0, 0.0))
        if one.key is None:
            found.append(replace(one, pooled=1))
        elif count:
            length = float(np.linalg.norm(total))
            cosine = float(np.dot(total, query.astype(np.float64))) / length if length > 1e-6 * count else 0.0
            found.append(replace(one, similarity=max(-1.0, min(cosine, 1.0)), pooled=count))
    return sorted(found, key=lambda one: (-one.similarity, one.hits[0].id))


def _key(one: Hit | Entry, by: str, apart: bool) -> tuple[object, str, Modality | None]:
    """What those have in common that are of one group."""
    value = getattr(one, by)
    return value, one.id if value is None else "", one.modality if apart else None
