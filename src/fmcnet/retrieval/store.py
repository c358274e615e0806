"""What a gallery asks of the place that keeps it: one small protocol, two backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fmcnet.retrieval.records import (
    Added,
    Batch,
    Entry,
    GalleryInfo,
    Hit,
    OnDuplicate,
    Settings,
    Stored,
    Where,
)
from fmcnet.types import FloatArray

SPARE = 16
"""Candidates asked for beyond `top`, to see ties at the end of the list."""
NEAR = 1e-5
"""Similarities of float32 sums that may be equal when computed exactly."""


class Store(Protocol):
    """Keeps entries and their embeddings, and finds the most similar ones. Inputs are checked already.

    Attributes:
        location: a folder, or a cluster's address without a password. most: hits that a search can give.
    """

    location: str
    most: int

    @property
    def settings(self) -> Settings | None:
        """What the first add fixed; None before it."""

    def info(self) -> GalleryInfo:
        """The store in numbers."""

    def add(self, batch: Batch, model: str, on_duplicate: OnDuplicate) -> Added:
        """Add all of the batch or nothing; durable when it returns."""

    def search(self, queries: FloatArray, top: int, where: Where | None, exact: bool) -> list[list[Hit]]:
        """For each of (Q, D) unit queries its `top` most similar entries, best first, ties by id."""

    def fetch(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Entries and embeddings of those ids that are there."""

    def picture(self, entry_id: str) -> bytes | None:
        """The picture kept with an entry; None without one."""

    def count(self, where: Where | None) -> int:
        """How many entries match."""

    def cameras(self) -> set[str]:
        """The cameras that entries have."""

    def scan(self, where: Where | None, chunk: int) -> Iterator[list[Stored]]:
        """All that match, `chunk` at a time, in the order of their adding."""

    def update(self, ids: Sequence[str], change: Mapping[str, Any]) -> int:
        """Set attributes of `Entry` on the given entries, all or nothing; ids that are not there are an error."""

    def remove(self, where: Where) -> int:
        """Remove what matches, provably; how many it was."""

    def compact(self) -> None:
        """Give back the space of what was removed, and bring the index up to date."""

    def check(self) -> list[str]:
        """Read everything; what was wrong with the index and is repaired."""

    def close(self) -> None:
        """Let go of files and connections."""


def changed(entry: Entry, change: Mapping[str, Any]) -> Entry:
    """The entry with some attributes set."""
    return replace(entry, **change)


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
