"""The backends of a gallery: one protocol, two implementations, chosen by the location."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fmcnet.errors import GalleryError
from fmcnet.retrieval.records import (
    Added,
    Dtype,
    EntryBatch,
    GalleryInfo,
    GallerySettings,
    Hit,
    IndexChoice,
    OnDuplicate,
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
    def settings(self) -> GallerySettings | None:
        """What the first add fixed; None before it."""

    def info(self) -> GalleryInfo:
        """The store in numbers."""

    def add(self, batch: EntryBatch, model: str, on_duplicate: OnDuplicate) -> Added:
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


def open_store(
    location: str | Path,
    *,
    read_only: bool,
    create: bool,
    timeout: float,
    index: IndexChoice | None,
    hnsw_above: int | None,
    dtype: Dtype,
    flush_rows: int,
) -> Store:
    """The store at a location; arguments and errors as of `Gallery`."""
    if index not in (None, "auto", "exact", "hnsw"):
        raise GalleryError(f"index is 'auto', 'exact' or 'hnsw', not {index!r}")
    if dtype not in ("float32", "float16"):
        raise GalleryError(f"dtype is 'float32' or 'float16', not {dtype!r}")
    if not timeout >= 0 or flush_rows < 1 or (hnsw_above is not None and hnsw_above < 0):
        raise GalleryError(
            f"timeout={timeout} and hnsw_above={hnsw_above} must not be negative, flush_rows={flush_rows} at least 1"
        )
    if str(location).startswith("milvus://"):
        from fmcnet.retrieval.milvus_store import MilvusStore

        return MilvusStore(
            str(location), read_only=read_only, create=create, timeout=timeout, index=index, dtype=dtype
        )
    if "://" in str(location):
        raise GalleryError(f"{location}: a gallery is a folder, or milvus://host:port/name")
    from fmcnet.retrieval.sqlite_store import EmbeddedStore

    return EmbeddedStore(
        Path(location),
        read_only=read_only,
        create=create,
        timeout=timeout,
        index=index,
        hnsw_above=hnsw_above,
        dtype=dtype,
        flush_rows=flush_rows,
    )
