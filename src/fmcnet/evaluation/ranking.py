"""Ranks of the true matches of every query, and ranked lists of the best answers, in blocks of bounded memory.

Ranks are counted, not sorted: the k-th best true match of a query has rank

    k + number of other identities' images that are at least as similar.

A tie therefore counts against the query, whatever the order of the gallery's rows: a model whose embeddings
collapse cannot score by luck of the order. Similarities that differ by less than the rounding of the
arithmetic (`Similarity.tie`) count as equal.

Which gallery images a query skips (the same-camera rule) is `SkipRule` in `fmcnet.evaluation.protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.protocols import Protocol, SkipRule, Trial
from fmcnet.evaluation.similarity import Similarity
from fmcnet.types import BoolArray, Embeddings, IntArray

CHUNK_BYTES = 32 * 2**20
"""Default bound of a block of similarities with its copies."""

COPIES = 4
"""Blocks of similarities alive at once, at most."""

SLICE = 64
"""Queries whose true matches are gathered at once. They are ordered by identity, so they share most of these."""


@dataclass
class Ranks:
    """What ranking gives for each query of a trial; all arrays are (Q,).

    Attributes:
        matches: int64, true matches left after the skip rule; 0: the query is not counted.
        first_image: int64, rank of the best true match among images.
        first_identity: int64, its rank among identities, each at its best image.
        ap: float64, average precision.
        inp: float64, matches / rank of the last true match.
    """

    matches: NDArray[np.int64]
    first_image: NDArray[np.int64]
    first_identity: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]

    @staticmethod
    def empty(n: int) -> Ranks:
        """Ranks of n queries, still to be filled."""
        return Ranks(*np.zeros((3, n), dtype=np.int64), *np.zeros((2, n)))

    def first(self, cmc: str) -> NDArray[np.int64]:
        """(Q,) ranks of the best true match, as a CMC counts them: "identity" or "image"."""
        return self.first_identity if cmc == "identity" else self.first_image

    def fill(self, rows: IntArray, matches: IntArray, above: IntArray, identities_above: IntArray) -> None:
        """Write some queries.

        Args:
            rows: (q,) their positions.
            matches: (q,) number of true matches left.
            above: (q, K) images of other identities at least as similar as the k-th best true match; columns from
                `matches` on are ignored.
            identities_above: (q,) other identities with an image at least as similar as the best true match.
        """
        order = np.arange(1, above.shape[1] + 1)
        ranks = order + above
        clamped = np.maximum(matches, 1)
        self.matches[rows] = matches
        self.first_image[rows] = ranks[:, 0]
        self.first_identity[rows] = 1 + identities_above
        self.ap[rows] = np.where(order <= matches[:, None], order / ranks, 0.0).sum(axis=1) / clamped
        last_rank = np.take_along_axis(ranks, clamped[:, None] - 1, axis=1)[:, 0]
        self.inp[rows] = np.where(matches > 0, matches / last_rank, 0.0)


def rank_trials(
    embeddings: Embeddings,
    trials: Sequence[Trial],
    skip: SkipRule,
    *,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[list[Ranks], str]:
    """Rank the true matches of every query in every trial; all trials have the same queries.

    The trials share the similarities: each query meets each gallery image of any trial once.

    Returns:
        The ranks, a trial each, and the arithmetic used.
    """
    query = trials[0][0]
    gallery = np.unique(np.concatenate([gallery for _, gallery in trials]))
    width = embeddings.features.shape[1]
    similarity = Similarity.prepare(
        embeddings, query, gallery, distance=distance, device=device, precision=precision
    )
    budget = max(1, chunk_bytes // (COPIES * (8 if similarity.precision == "float64" else 4)))
    if len(gallery) * width <= 4 * COPIES * budget:  # the gallery stays loaded
        query_chunk, gallery_chunk = budget // len(gallery), len(gallery)
    else:
        query_chunk = max(64, min(4096, int(budget**0.5)))
        gallery_chunk = budget // max(min(query_chunk, len(query)), width)
    gallery = gallery[np.argsort(embeddings.pid[gallery], kind="stable")]
    blocks = _EmbeddingSimilarities(embeddings, similarity, query, gallery)
    ranking = _Ranking(embeddings, skip, trials, gallery, blocks, similarity.tie)
    return ranking.run(max(1, query_chunk), max(1, gallery_chunk)), similarity.precision


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

    Args:
        embeddings: identities, cameras; the features are not used.
        trial: (query rows, gallery rows).
        skip: the rule.
        similarities: given positions (q,) in the trial's query rows, their (q, G) similarities in the order of
            the trial's gallery rows; larger is more alike.
        tie: similarities closer than this are equal.
        chunk_bytes: bound of a block.
    """
    gallery = trial[1]
    order = np.argsort(embeddings.pid[gallery], kind="stable")
    ranking = _Ranking(
        embeddings, skip, [trial], gallery[order], _GivenSimilarities(similarities, order), tie
    )
    query_chunk = max(1, chunk_bytes // (COPIES * 8) // len(gallery))
    return ranking.run(query_chunk, len(gallery))[0]


class _EmbeddingSimilarities:
    """Similarities computed from embeddings; the last slice of the gallery stays loaded."""

    def __init__(
        self, embeddings: Embeddings, similarity: Similarity, query: IntArray, gallery: IntArray
    ) -> None:
        self.embeddings, self.similarity, self.query, self.gallery = embeddings, similarity, query, gallery
        self.loaded: tuple[slice, Tensor] | None = None

    def load(self, positions: IntArray) -> Tensor:
        """(q, D) queries by their positions."""
        return self.similarity.load(self.embeddings, self.query[positions])

    def block(self, query: Tensor, columns: slice | IntArray) -> Tensor:
        """(q, g) similarities of loaded queries with gallery images by their columns; the caller may change them."""
        if not isinstance(columns, slice):
            return self.similarity.block(query, self.similarity.load(self.embeddings, self.gallery[columns]))
        if self.loaded is None or self.loaded[0] != columns:
            self.loaded = columns, self.similarity.load(self.embeddings, self.gallery[columns])
        return self.similarity.block(query, self.loaded[1])


@dataclass(frozen=True)
class _GivenSimilarities:
    """Similarities computed elsewhere, a few queries at a time; `order` (G,) sorts the gallery's columns."""

    similarities: Callable[[IntArray], NDArray[np.float64]]
    order: IntArray

    def load(self, positions: IntArray) -> Tensor:
        """(q, G) similarities of queries by their positions."""
        return torch.from_numpy(np.ascontiguousarray(self.similarities(positions)[:, self.order]))

    def block(self, query: Tensor, columns: slice | IntArray) -> Tensor:
        return query[:, columns].clone()


class _RankCounter:
    """For each true match of some queries in a trial: how many other images are at least as similar.

    Args:
        matches: (q, K) similarities of the true matches, best first, padded with -inf.
        tie: similarities closer than this are equal.
    """

    def __init__(self, matches: Tensor, tie: float) -> None:
        self.num_matches = (matches > -torch.inf).sum(dim=1)
        self.thresholds = matches - tie
        self.images = torch.zeros(matches.shape, dtype=torch.int64, device=matches.device)
        self.identities = torch.zeros(len(matches), dtype=torch.int64, device=matches.device)

    def count(self, others: Tensor, pid: IntArray) -> None:
        """Count gallery images of other identities: their similarities (q, g), sorted in place, and `pid` (g,)."""
        self.identities += _count_identities(others, self.thresholds[:, :1], pid)
        self.images += others.shape[1] - torch.searchsorted(_sorted_rows(others), self.thresholds)


@dataclass(frozen=True)
class _Ranking:
    """Trials of equal queries; `gallery` (G,) holds the gallery rows of all trials, sorted by identity."""

    embeddings: Embeddings
    skip: SkipRule
    trials: Sequence[Trial]
    gallery: IntArray
    blocks: _EmbeddingSimilarities | _GivenSimilarities
    tie: float

    def run(self, query_chunk: int, gallery_chunk: int) -> list[Ranks]:
        """The ranks of every trial, from blocks of at most `query_chunk` queries by about `gallery_chunk` images."""
        query = self.trials[0][0]
        in_trial = np.stack([np.isin(self.gallery, gallery) for _, gallery in self.trials])  # (T, G)
        spans = list(_spans(self.embeddings.pid[self.gallery], gallery_chunk))
        ranks = [Ranks.empty(len(query)) for _ in self.trials]
        # Ordered by identity, so that the queries of a block share their true matches.
        order = np.argsort(self.embeddings.pid[query], kind="stable")
        for start in range(0, len(order), query_chunk):
            positions = order[start : start + query_chunk]
            for trial_ranks, counter in zip(
                ranks, self._count_ranks(positions, in_trial, spans), strict=True
            ):
                counts = (counter.num_matches, counter.images, counter.identities)
                trial_ranks.fill(positions, *(count.cpu().numpy() for count in counts))
        return ranks

    def _count_ranks(
        self, positions: IntArray, in_trial: BoolArray, spans: list[slice]
    ) -> list[_RankCounter]:
        """Compare the queries at some positions with the whole gallery, for each trial."""
        rows = self.trials[0][0][positions]
        loaded = self.blocks.load(positions)
        counts = [
            _RankCounter(matches, self.tie)
            for matches in self._true_match_similarities(rows, loaded, in_trial)
        ]
        for span in spans:
            block = self._other_similarities(rows, loaded, span)
            pid = self.embeddings.pid[self.gallery[span]]
            for counter, trial_mask in zip(counts, in_trial[:, span], strict=True):
                if trial_mask.any():
                    columns = torch.from_numpy(np.flatnonzero(trial_mask)).to(block.device)
                    counter.count(block.index_select(1, columns), pid[trial_mask])
        return counts

    def _true_match_similarities(self, rows: IntArray, loaded: Tensor, in_trial: BoolArray) -> list[Tensor]:
        """Similarities of the true matches in each trial, best first: (q, K >= 1), padded with -inf."""
        pid, query_pid = self.embeddings.pid[self.gallery], self.embeddings.pid[rows]
        first = np.searchsorted(pid, query_pid, side="left")
        end = np.searchsorted(pid, query_pid, side="right")
        columns = first[:, None] + np.arange(max(1, int((end - first).max())))  # (q, L)
        is_match = columns < end[:, None]
        columns = np.minimum(columns, len(pid) - 1)
        is_match &= ~self.skip.hidden(self.embeddings, rows[:, None], self.gallery[columns])
        similarities = self._gather(loaded, columns)
        trial_matches = []
        for trial_mask in in_trial:
            is_kept = torch.from_numpy(is_match & trial_mask[columns]).to(similarities.device)
            longest = max(1, int(is_kept.sum(dim=1).max()))
            best = similarities.masked_fill(~is_kept, -torch.inf).sort(dim=1, descending=True).values
            trial_matches.append(best[:, :longest].contiguous())
        return trial_matches

    def _gather(self, loaded: Tensor, columns: IntArray) -> Tensor:
        """(q, L) similarities of each query with its own gallery columns (q, L)."""
        parts = []
        for start in range(0, len(columns), SLICE):
            part = columns[start : start + SLICE]
            unique_columns, inverse = np.unique(part, return_inverse=True)
            block = self.blocks.block(loaded[start : start + SLICE], unique_columns)
            parts.append(block.gather(1, torch.from_numpy(inverse.reshape(part.shape)).to(block.device)))
        return torch.cat(parts)

    def _other_similarities(self, rows: IntArray, loaded: Tensor, span: slice) -> Tensor:
        """(q, g) similarities with a part of the gallery; -inf for the query's identity and what it skips."""
        part = self.gallery[span]
        block = self.blocks.block(loaded, span)
        excluded = self.embeddings.pid[rows][:, None] == self.embeddings.pid[part]
        if self.skip.hides_others:
            excluded |= self.skip.hidden(self.embeddings, rows[:, None], part)
        return block.masked_fill_(torch.from_numpy(excluded).to(block.device), -torch.inf)


def _spans(pid: IntArray, size: int) -> Iterator[slice]:
    """Columns of ascending identities in slices of about `size`; an identity is never split."""
    ends = np.append(np.flatnonzero(np.diff(pid)) + 1, len(pid))
    start = 0
    while start < len(pid):
        last = int(np.searchsorted(ends, start + size, side="right")) - 1
        if last < 0 or ends[last] <= start:  # one identity alone is larger than a block
            last = int(np.searchsorted(ends, start, side="right"))
        yield slice(start, int(ends[last]))
        start = int(ends[last])


def _sorted_rows(block: Tensor) -> Tensor:
    """Each row ascending, in place on a CPU, where NumPy sorts 25 times as fast as PyTorch."""
    if block.device.type == "cpu":
        block.numpy().sort(axis=1)
        return block
    return block.sort(dim=1).values


def _count_identities(others: Tensor, thresholds: Tensor, pid: IntArray) -> Tensor:
    """(q,) how many identities have an image among (q, G) that reaches (q, 1); `pid` (G,) is ascending."""
    reached = (others >= thresholds).view(torch.uint8).cumsum(dim=1, dtype=torch.int32)
    ends = np.append(np.flatnonzero(np.diff(pid)), len(pid) - 1)
    last = reached.index_select(1, torch.from_numpy(ends).to(reached.device))
    return (last.diff(dim=1, prepend=last.new_zeros(len(last), 1)) > 0).sum(dim=1)


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
        distance: "cosine" or "euclidean".
        query_mask: (N,) bool, which rows may be queries.
        gallery_mask: (N,) bool, which rows may be searched.
        chunk_bytes: bound of a block of similarities with its copies.

    Returns:
        A list per query, in the order of `queries`. Among equal similarities wrong answers come first (a tie counts
        against the query), then the order of the rows. Similarities are cosine, or minus the Euclidean distance.

    Raises:
        ProtocolError: when a row is not a query, the trial does not exist, or k is below 1.
    """
    if k < 1:
        raise ProtocolError(f"a ranked list needs k of 1 or more, got {k}")
    trials = protocol.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask)
    if not 0 <= trial < len(trials):
        raise ProtocolError(f"there is no trial {trial}: the protocol has {len(trials)}, counted from 0")
    query_rows, gallery = trials[trial]
    requested = query_rows if queries is None else np.asarray(queries, dtype=np.int64)
    invalid = np.flatnonzero(~np.isin(requested, query_rows))
    if len(invalid):
        raise ProtocolError(
            f"row {int(requested[invalid[0]])} is not a probe of {protocol.name}: it takes "
            f"{protocol.query.describe()}"
        )
    gallery = np.sort(gallery)
    similarity = Similarity.prepare(embeddings, requested, gallery, distance=distance)
    gallery_chunk = max(1024, chunk_bytes // (64 * embeddings.features.shape[1]))
    query_chunk = max(1, chunk_bytes // (64 * min(len(gallery), gallery_chunk)))
    ranked: list[RankedList] = []
    for start in range(0, len(requested), query_chunk):
        rows = requested[start : start + query_chunk]
        ranked += _best_answers(embeddings, similarity, protocol.skip, rows, gallery, k, gallery_chunk)
    return ranked


def _best_answers(
    embeddings: Embeddings,
    similarity: Similarity,
    skip: SkipRule,
    queries: IntArray,
    gallery: IntArray,
    k: int,
    gallery_chunk: int,
) -> list[RankedList]:
    """The best k answers to some queries, from blocks of `gallery_chunk` gallery images."""
    pid = embeddings.pid
    loaded = similarity.load(embeddings, queries)
    best = np.full((len(queries), 0), -np.inf)
    best_rows = np.full((len(queries), 0), -1, dtype=np.int64)
    for start in range(0, len(gallery), gallery_chunk):
        part = gallery[start : start + gallery_chunk]
        block = similarity.between(loaded, similarity.load(embeddings, part))
        values = similarity.readable(block.double().cpu().numpy())
        values[skip.hidden(embeddings, queries[:, None], part)] = -np.inf
        values = np.concatenate([best, values], axis=1)
        rows = np.concatenate([best_rows, np.broadcast_to(part, block.shape)], axis=1)
        columns = largest(values, k, last=pid[rows] == pid[queries][:, None])
        best = np.take_along_axis(values, columns, axis=1)
        best_rows = np.take_along_axis(rows, columns, axis=1)
    ranked = []
    for query, values, rows in zip(queries.tolist(), best, best_rows, strict=True):
        kept = values > -np.inf
        ranked.append(RankedList(query, rows[kept], values[kept], pid[rows[kept]] == pid[query]))
    return ranked
