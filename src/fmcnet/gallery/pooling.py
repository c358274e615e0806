"""Several crops of one person as one query, and hits of one track or person as one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.errors import GalleryError
from fmcnet.gallery.inputs import unit_vectors
from fmcnet.gallery.records import Group, Hit
from fmcnet.types import FloatArray


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


def pool_by(embeddings: ArrayLike, labels: Sequence[str]) -> dict[str, FloatArray]:
    """`pool` of the embeddings (N, D) of each label (a track, say), in the order of first appearance.

    Raises:
        GalleryError: as `pool`, or when there are not N labels.
    """
    units = unit_vectors(embeddings)
    if len(labels) != len(units):
        raise GalleryError(f"{len(labels)} labels for {len(units)} embeddings: give one each")
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return {label: pool(units[members]) for label, members in rows.items()}


def group(hits: Iterable[Hit], by: Literal["track", "pid"]) -> list[Group]:
    """Hits (best first) that share a track or a pid together; groups by their best hit."""
    if by not in ("track", "pid"):
        raise GalleryError(f"hits are grouped by 'track' or 'pid', not {by!r}")
    members: dict[tuple[object, str], list[Hit]] = {}
    for hit in hits:
        key = getattr(hit, by)
        members.setdefault((key, hit.id if key is None else ""), []).append(hit)
    return [Group(getattr(found[0], by), found[0].similarity, tuple(found)) for found in members.values()]
