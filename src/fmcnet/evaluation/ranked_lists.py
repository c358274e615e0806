"""The k most similar images, in a defined order, in bounded memory: ranked lists, neighbours for the extras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.protocols import Protocol
from fmcnet.evaluation.ranking import CHUNK_BYTES
from fmcnet.evaluation.similarity import Similarity
from fmcnet.types import Embeddings


@dataclass(frozen=True)
class RankedList:
    """A query and its best answers.

    Attributes:
        query: row of the query among the embeddings.
        gallery: (k,) int64, rows of the answers, best first.
        similarity: (k,) float64, cosine, or minus the Euclidean distance.
        correct: (k,) bool, whether an answer shows the query's identity.
    """

    query: int
    gallery: NDArray[np.int64]
    similarity: NDArray[np.float64]
    correct: NDArray[np.bool_]


def largest(values: NDArray[np.float64], k: int, last: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """(q, k) columns of the k largest values of each row, descending.

    Equal values keep the order of the columns, except that those marked in `last` (q, C) come after the others.
    """
    n = values.shape[1]
    k = min(k, n)
    kth = np.partition(values, n - k, axis=1)[:, n - k, None]
    most = int((values >= kth).sum(axis=1).max())
    near = np.broadcast_to(np.arange(n), values.shape)
    if most < n:
        near = np.sort(np.argpartition(values, n - most, axis=1)[:, n - most :], axis=1)
    keys: list[NDArray[Any]] = [near, -np.take_along_axis(values, near, axis=1)]
    if last is not None:
        keys.insert(1, np.take_along_axis(last, near, axis=1))
    order = np.lexsort(tuple(np.ascontiguousarray(key) for key in keys), axis=1)[:, :k]
    chosen: NDArray[np.int64] = np.take_along_axis(near, order, axis=1).astype(np.int64)
    return chosen


def ranked_lists(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    queries: Sequence[int] | NDArray[np.int64] | None = None,
    k: int = 10,
    trial: int = 0,
    distance: str = "cosine",
    query_mask: NDArray[np.bool_] | None = None,
    gallery_mask: NDArray[np.bool_] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[RankedList]:
    """The best k gallery images of some queries, for figures and for looking at mistakes.

    Args:
        embeddings: all images.
        protocol: sets, draw and skip rule.
        queries: rows of `embeddings`, each a query of the protocol; None takes them all.
        k: length of a list; shorter where the skip rule leaves fewer.
        trial: which draw, from 0.
        distance, query_mask, gallery_mask, chunk_bytes: see `evaluate.evaluate`.

    Returns:
        A list per query, in the order asked for. Among equal similarities wrong answers come first (a tie counts
        against the query), then the order of the rows. Similarities are cosine, or minus the Euclidean distance.

    Raises:
        ProtocolError: when a row is not a query, the trial does not exist, or k is below 1.
    """
    if k < 1:
        raise ProtocolError(f"a ranked list needs k of 1 or more, got {k}")
    plan = protocol.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask)
    if not 0 <= trial < len(plan):
        raise ProtocolError(f"there is no trial {trial}: the protocol has {len(plan)}, counted from 0")
    probes, gallery = plan[trial]
    wanted = probes if queries is None else np.asarray(queries, dtype=np.int64)
    odd = np.flatnonzero(~np.isin(wanted, probes))
    if len(odd):
        raise ProtocolError(
            f"row {int(wanted[odd[0]])} is not a probe of {protocol.name}: it takes {protocol.query.describe()}"
        )
    gallery = np.sort(gallery)
    similarity = Similarity.prepare(embeddings, wanted, gallery, distance=distance)
    pid = embeddings.pid
    wide = max(1024, chunk_bytes // (64 * embeddings.features.shape[1]))
    size = max(1, chunk_bytes // (64 * min(len(gallery), wide)))
    found: list[RankedList] = []
    for rows in (wanted[s : s + size] for s in range(0, len(wanted), size)):
        loaded = similarity.load(embeddings, rows)
        best = np.full((len(rows), 0), -np.inf)
        where = np.full((len(rows), 0), -1, dtype=np.int64)
        for part in (gallery[s : s + wide] for s in range(0, len(gallery), wide)):
            block = similarity.between(loaded, similarity.load(embeddings, part))
            values = similarity.readable(block.double().cpu().numpy())
            values[protocol.skip.hidden(embeddings, rows[:, None], part)] = -np.inf
            values = np.concatenate([best, values], axis=1)
            places = np.concatenate([where, np.broadcast_to(part, block.shape)], axis=1)
            columns = largest(values, k, last=pid[places] == pid[rows][:, None])
            best = np.take_along_axis(values, columns, axis=1)
            where = np.take_along_axis(places, columns, axis=1)
        for row, values, places in zip(rows.tolist(), best, where, strict=True):
            kept = values > -np.inf
            found.append(RankedList(row, places[kept], values[kept], pid[places[kept]] == pid[row]))
    return found
