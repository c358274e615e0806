"""The backends of a gallery, chosen by its location, and the ranking that both share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fmcnet.errors import GalleryError
from fmcnet.retrieval.records import Hit, OpenOptions, Stored
from fmcnet.types import FloatArray

if TYPE_CHECKING:
    from fmcnet.retrieval.milvus_store import MilvusStore
    from fmcnet.retrieval.sqlite_store import SqliteStore

    Store: TypeAlias = SqliteStore | MilvusStore

SPARE = 16
"""Candidates asked for beyond `top`, to see ties at the end of the list."""
NEAR = 1e-5
"""Similarities of float32 sums that may be equal when computed exactly."""


def open_store(location: str | Path, options: OpenOptions) -> Store:
    """The store at a location: a folder, or milvus://host:port/name. Errors as of `Gallery`."""
    if str(location).startswith("milvus://"):
        from fmcnet.retrieval.milvus_store import MilvusStore

        return MilvusStore(str(location), options)
    if "://" in str(location):
        raise GalleryError(f"{location}: a gallery is a folder, or milvus://host:port/name")
    from fmcnet.retrieval.sqlite_store import SqliteStore

    return SqliteStore(Path(location), options)


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
