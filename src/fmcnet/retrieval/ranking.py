"""How hits are ranked: by similarity, equal ones by id; alone, by track or by person.

An index compares in float32, where equal embeddings may differ in the last bits. So a search takes more candidates
than asked for, and further ones while ties may go on. `ranked` compares those that may be among the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from fmcnet.errors import GalleryError
from fmcnet.retrieval.records import Entry, Hit, HitGroup, Stored
from fmcnet.types import BoolArray, FloatArray, Modality

SPARE = 16
"""Candidates asked for beyond `top`, to see ties at the end of the list."""
NEAR = 1e-5
"""Similarities of float32 sums that may be equal when computed exactly."""


def ties_go_on(similarity: Sequence[float] | FloatArray, top: int) -> bool:
    """Whether further candidates may be as similar as the `top`-th of these (K,), which are best first."""
    return len(similarity) >= top and bool(similarity[-1] >= similarity[top - 1] - NEAR)


def may_be_among(similarity: FloatArray, top: int) -> BoolArray:
    """(K,) which of these candidates, best first, may be among the `top` best."""
    if not len(similarity):
        return np.empty(0, np.bool_)
    among: BoolArray = similarity >= similarity[min(top, len(similarity)) - 1] - NEAR
    return among


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
        query: (D,), unit length.
        groups: of `group` with `modalities_apart`.
        entries: all that belong to them.
        by: what they are grouped by.
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
