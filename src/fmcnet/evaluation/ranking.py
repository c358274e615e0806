"""Ranks of the true matches of every query, and ranked lists of the best answers, in blocks of bounded memory.

Ranks are counted, not sorted: the k-th best true match of a query has rank

    k + number of other identities' images that are at least as similar.

A tie therefore counts against the query, whatever the order of the gallery's rows: a model whose embeddings
collapse cannot score by luck of the order. Similarities that differ by less than the rounding of the
arithmetic (`Similarity.tie`) count as equal.

Which gallery images a query skips (the same-camera rule) is `SkipRule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.protocols import Protocol, Trial
from fmcnet.evaluation.similarity import Similarity
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.types import NO_PID, BoolArray, Embeddings, IntArray

CHUNK_BYTES = 32 * 2**20
"""Default bound of a block of similarities with its copies."""

COPIES = 4
"""Blocks of similarities alive at once, at most."""

LOADED = 4096
"""Gallery images that `ranked_lists` loads at once."""

SLICE = 64
"""Queries whose true matches are gathered at once. They are ordered by identity, so they share most of these."""

Compare: TypeAlias = Callable[[slice, slice | IntArray], Tensor]
"""Gives the similarities (q, g) of some loaded queries with some columns of the gallery, as a new tensor."""
Load: TypeAlias = Callable[[IntArray], Compare]
"""Loads the queries at some positions of the trial."""


@dataclass
class Ranks:
    """What ranking gives for each query of a trial; all arrays are (Q,)."""

    matches: NDArray[np.int64]  # true matches left after the skip rule; 0: the query is not counted
    first_image: NDArray[np.int64]  # rank of the best true match among images
    first_identity: NDArray[np.int64]  # its rank among identities, each at its best image
    ap: NDArray[np.float64]  # average precision
    inp: NDArray[np.float64]  # matches / rank of the last true match
    precision: str  # "float32" or "float64", the arithmetic of the similarities

    @staticmethod
    def empty(n: int, precision: str) -> Ranks:
        """Ranks of n queries, still to be filled."""
        counts, shares = np.zeros((3, n), dtype=np.int64), np.zeros((2, n))
        return Ranks(counts[0], counts[1], counts[2], shares[0], shares[1], precision)

    def first(self, cmc: str) -> NDArray[np.int64]:
        """(Q,) ranks of the best true match, as a CMC counts them: "identity" or "image"."""
        return self.first_identity if cmc == "identity" else self.first_image

    def fill(self, positions: IntArray, matches: Tensor, above: Tensor, identities_above: Tensor) -> None:
        """Write some queries.

        Args:
            positions: (q,) of the queries in the trial.
            matches: (q, K) similarities of the true matches left, best first, padded with -inf.
            above: (q, K) images of other identities at least as similar as the k-th best true match.
            identities_above: (q,) other identities with an image at least as similar as the best true match.
        """
        count = (matches > -torch.inf).sum(dim=1).cpu().numpy()
        order = np.arange(1, matches.shape[1] + 1)
        ranks = order + above.cpu().numpy()
        clamped = np.maximum(count, 1)
        self.matches[positions] = count
        self.first_image[positions] = ranks[:, 0]
        self.first_identity[positions] = 1 + identities_above.cpu().numpy()
        self.ap[positions] = np.where(order <= count[:, None], order / ranks, 0.0).sum(axis=1) / clamped
        last_rank = np.take_along_axis(ranks, clamped[:, None] - 1, axis=1)[:, 0]
        self.inp[positions] = np.where(count > 0, count / last_rank, 0.0)


def rank_trials(
    embeddings: Embeddings,
    trials: Sequence[Trial],
    skip: SkipRule,
    *,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
) -> list[Ranks]:
    """Rank the true matches of every query in every trial; all trials have the same queries.

    The trials share the similarities: each query meets each gallery image of any trial once.

    Returns:
        The ranks of each trial.
    """
    query = trials[0][0]
    gallery = np.unique(np.concatenate([gallery for _, gallery in trials]))
    gallery = gallery[np.argsort(embeddings.pid[gallery], kind="stable")]
    width = embeddings.features.shape[1]
    similarity = Similarity.prepare(
        embeddings, query, gallery, distance=distance, device=device, precision=precision
    )
    budget = max(1, chunk_bytes // (COPIES * (8 if similarity.precision == "float64" else 4)))
    images: Tensor | None = None
    if len(gallery) * width <= 4 * COPIES * budget:  # the whole gallery stays loaded
        images = similarity.load(embeddings, gallery)
        query_chunk, gallery_chunk = budget // len(gallery), len(gallery)
    else:
        query_chunk = max(64, min(4096, int(budget**0.5)))
        gallery_chunk = budget // max(min(query_chunk, len(query)), width)

    def load(positions: IntArray) -> Compare:
        loaded = similarity.load(embeddings, query[positions])

        def compare(some: slice, columns: slice | IntArray) -> Tensor:
            part = similarity.load(embeddings, gallery[columns]) if images is None else images[columns]
            return similarity.block(loaded[some], part)

        return compare

    ranking = _Ranking(embeddings, trials, gallery, skip, load, similarity.tie)
    return ranking.run(query_chunk, gallery_chunk, similarity.precision)


def rank_given(
    embeddings: Embeddings,
    trial: Trial,
    skip: SkipRule,
    similarities: Callable[[IntArray], NDArray[np.float64]],
    *,
    tie: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Ranks:
    """Rank a trial from similarities computed elsewhere (re-ranking, another model's scores).

    Given positions (q,) in the trial's query rows, `similarities` gives theirs (q, G), in the order of the trial's
    gallery rows; larger is more alike, and closer than `tie` is equal. The features are not used.
    """
    gallery = trial[1]
    order = np.argsort(embeddings.pid[gallery], kind="stable")

    def load(positions: IntArray) -> Compare:
        given = torch.from_numpy(np.ascontiguousarray(similarities(positions)[:, order]))
        return lambda some, columns: given[some, columns].clone()

    query_chunk = chunk_bytes // (COPIES * 8) // len(gallery)
    ranking = _Ranking(embeddings, [trial], gallery[order], skip, load, tie)
    return ranking.run(query_chunk, len(gallery))[0]


@dataclass(frozen=True)
class _Ranking:
    """Trials of equal queries; `gallery` (G,) holds the gallery rows of all trials, sorted by identity."""

    embeddings: Embeddings
    trials: Sequence[Trial]
    gallery: IntArray
    skip: SkipRule
    load: Load
    tie: float

    def run(self, query_chunk: int, gallery_chunk: int, precision: str = "float64") -> list[Ranks]:
        """The ranks of every trial, from blocks of at most `query_chunk` queries by about `gallery_chunk` images."""
        query, pid = self.trials[0][0], self.embeddings.pid
        in_trial = np.stack([np.isin(self.gallery, gallery) for _, gallery in self.trials])  # (T, G)
        spans = list(_spans(pid[self.gallery], max(1, gallery_chunk)))
        ranks = [Ranks.empty(len(query), precision) for _ in self.trials]
        # Ordered by identity, so that the queries of a block share their true matches.
        order = np.argsort(pid[query], kind="stable")
        for positions in np.split(order, range(max(1, query_chunk), len(order), max(1, query_chunk))):
            rows, compare = query[positions], self.load(positions)
            matches = self._true_matches(rows, compare, in_trial)
            counts = self._count_above(rows, compare, in_trial, spans, [best - self.tie for best in matches])
            for trial_ranks, best, (above, identities_above) in zip(ranks, matches, counts, strict=True):
                trial_ranks.fill(positions, best, above, identities_above)
        return ranks

    def _true_matches(self, rows: IntArray, compare: Compare, in_trial: BoolArray) -> list[Tensor]:
        """Similarities of the true matches in each trial, best first: (q, K >= 1), padded with -inf."""
        pid, query_pid = self.embeddings.pid[self.gallery], self.embeddings.pid[rows]
        first, end = (np.searchsorted(pid, query_pid, side=side) for side in ("left", "right"))
        columns = first[:, None] + np.arange(max(1, int((end - first).max())))  # (q, L)
        is_match = columns < end[:, None]
        columns = np.minimum(columns, len(pid) - 1)
        is_match &= ~self.skip.hidden(self.embeddings, rows[:, None], self.gallery[columns])
        parts = []
        for start in range(0, len(columns), SLICE):
            part = columns[start : start + SLICE]
            shared, inverse = np.unique(part, return_inverse=True)
            block = compare(slice(start, start + SLICE), shared)
            parts.append(block.gather(1, torch.from_numpy(inverse.reshape(part.shape)).to(block.device)))
        similarities = torch.cat(parts)
        matches = []
        for mask in in_trial:
            is_left = torch.from_numpy(is_match & mask[columns]).to(similarities.device)
            best = similarities.masked_fill(~is_left, -torch.inf).sort(dim=1, descending=True).values
            matches.append(best[:, : max(1, int(is_left.sum(dim=1).max()))].contiguous())
        return matches

    def _count_above(
        self, rows: IntArray, compare: Compare, in_trial: BoolArray, spans: list[slice], limits: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each trial what `_count` gives, of the whole gallery; `limits` (q, K) are of its true matches."""
        counts = [
            (torch.zeros_like(limit, dtype=torch.int64), torch.zeros_like(limit[:, 0], dtype=torch.int64))
            for limit in limits
        ]
        for span in spans:
            others = self._others(rows, compare, span)
            pid = self.embeddings.pid[self.gallery[span]]
            for (above, identities_above), limit, mask in zip(counts, limits, in_trial[:, span], strict=True):
                if mask.any():
                    columns = torch.from_numpy(np.flatnonzero(mask)).to(others.device)
                    images, identities = _count(others.index_select(1, columns), limit, pid[mask])
                    above += images
                    identities_above += identities
        return counts

    def _others(self, rows: IntArray, compare: Compare, span: slice) -> Tensor:
        """(q, g) similarities with a part of the gallery; -inf for the query's identity and what it skips."""
        part = self.gallery[span]
        block = compare(slice(None), span)
        excluded = self.embeddings.pid[rows][:, None] == self.embeddings.pid[part]
        if self.skip.hides_others:
            excluded |= self.skip.hidden(self.embeddings, rows[:, None], part)
        return block.masked_fill_(torch.from_numpy(excluded).to(block.device), -torch.inf)


def _spans(pid: IntArray, size: int) -> Iterator[slice]:
    """Columns of ascending identities in slices of about `size`; an identity is never split."""
    ends, start = _last_columns(pid) + 1, 0
    while start < len(pid):
        first, beyond = np.searchsorted(ends, (start, start + size), side="right")
        stop = int(ends[max(first, beyond - 1)])  # `first` alone: an identity larger than a block
        yield slice(start, stop)
        start = stop


def _last_columns(pid: IntArray) -> IntArray:
    """The last column of each identity in `pid` (g,), ascending; nobody known: each image is one of its own."""
    return np.append(np.flatnonzero((np.diff(pid) != 0) | (pid[:-1] == NO_PID)), len(pid) - 1)


def _count(others: Tensor, limits: Tensor, pid: IntArray) -> tuple[Tensor, Tensor]:
    """Images that reach each limit (q, K), and identities that reach the first (q,); sorts `others` (q, g) in place.

    `limits` descend, `pid` (g,) ascends.
    """
    reached = (others >= limits[:, :1]).view(torch.uint8).cumsum(dim=1, dtype=torch.int32)
    last = reached.index_select(1, torch.from_numpy(_last_columns(pid)).to(reached.device))
    identities = (last.diff(dim=1, prepend=last.new_zeros(len(last), 1)) > 0).sum(dim=1)
    if others.device.type == "cpu":
        others.numpy().sort(axis=1)  # 25 times as fast as PyTorch's
    else:
        others = others.sort(dim=1).values
    return others.shape[1] - torch.searchsorted(others, limits), identities


@dataclass(frozen=True)
class RankedList:
    """A query and its best answers."""

    query: int  # row of the query among the embeddings
    gallery: NDArray[np.int64]  # (k,) rows of the answers, best first
    similarity: NDArray[np.float64]  # (k,) cosine, or minus the Euclidean distance
    correct: NDArray[np.bool_]  # (k,) whether an answer shows the query's identity


def largest(values: NDArray[np.float64], k: int, last: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """(q, k) columns of the k largest values of each row, descending.

    Equal values keep the order of the columns, except that those marked in `last` (q, C) come after the others.
    """
    n = values.shape[1]
    k = min(k, n)
    kth = np.partition(values, n - k, axis=1)[:, n - k, None]
    count = int((values >= kth).sum(axis=1).max())
    candidates = np.broadcast_to(np.arange(n), values.shape)
    if count < n:
        candidates = np.sort(np.argpartition(values, n - count, axis=1)[:, n - count :], axis=1)
    keys: list[NDArray[Any]] = [candidates, -np.take_along_axis(values, candidates, axis=1)]
    if last is not None:
        keys.insert(1, np.take_along_axis(last, candidates, axis=1))
    order = np.lexsort(tuple(np.ascontiguousarray(key) for key in keys), axis=1)[:, :k]
    chosen: NDArray[np.int64] = np.take_along_axis(candidates, order, axis=1).astype(np.int64)
    return chosen


def ranked_lists(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    queries: Sequence[int] | NDArray[np.int64] | None = None,
    k: int = 10,
    distance: str = "cosine",
    query_mask: NDArray[np.bool_] | None = None,
    gallery_mask: NDArray[np.bool_] | None = None,
) -> list[RankedList]:
    """The best k gallery images of some queries in the first trial, for figures and for looking at mistakes.

    The other arguments are those of `evaluate`. All similarities of the queries are in memory at once.

    Args:
        queries: rows of `embeddings`, each a query of the protocol; None takes them all.
        k: length of a list; shorter where the skip rule leaves fewer.

    Returns:
        A list per query, in the order of `queries`. Among equal similarities wrong answers come first (a tie counts
        against the query), then the order of the rows. Similarities are cosine, or minus the Euclidean distance.

    Raises:
        ProtocolError: when a row is not a query, or k is below 1.
    """
    if k < 1:
        raise ProtocolError(f"a ranked list needs k of 1 or more, got {k}")
    query_rows, gallery = protocol.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask)[0]
    requested = query_rows if queries is None else np.asarray(queries, dtype=np.int64)
    invalid = np.flatnonzero(~np.isin(requested, query_rows))
    if len(invalid):
        raise ProtocolError(
            f"row {int(requested[invalid[0]])} is not a query of {protocol.name}: it takes "
            f"{protocol.query.describe()}"
        )
    if not len(requested):
        return []
    gallery, pid = np.sort(gallery), embeddings.pid
    similarity = Similarity.prepare(embeddings, requested, gallery, distance=distance)
    loaded = similarity.load(embeddings, requested)
    parts = np.split(gallery, range(LOADED, len(gallery), LOADED))
    blocks = [similarity.between(loaded, similarity.load(embeddings, part)) for part in parts]
    values = similarity.readable(torch.cat(blocks, dim=1).double().cpu().numpy())
    values[protocol.skip.hidden(embeddings, requested[:, None], gallery)] = -np.inf
    columns = largest(values, k, last=pid[gallery] == pid[requested][:, None])
    ranked: list[RankedList] = []
    for row, best, similarities in zip(requested.tolist(), columns, values, strict=True):
        left = best[similarities[best] > -np.inf]
        answers = gallery[left]
        ranked.append(RankedList(row, answers, similarities[left], pid[answers] == pid[row]))
    return ranked
