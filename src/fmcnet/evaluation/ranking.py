"""Ranks of the true matches of every query, and ranked lists of the best answers, in blocks of bounded memory.

Ranks are counted, not sorted: the k-th best true match of a query has rank

    k + number of other identities' images that are at least as similar.

A tie therefore counts against the query, whatever the order of the gallery's rows: a model whose embeddings
collapse cannot score by luck of the order. Similarities that differ by less than the rounding of the
arithmetic (`Similarity.tie`) count as equal.
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
"""Bound of a block of similarities with its copies, unless told otherwise."""

COPIES = 4
"""Blocks of similarities alive at once, at most."""

SLICE = 64
"""Queries whose true matches are compared at once. Ordered by identity, so many have few."""


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
        number = np.maximum(matches, 1)
        self.matches[rows] = matches
        self.first_image[rows] = ranks[:, 0]
        self.first_identity[rows] = 1 + identities_above
        self.ap[rows] = np.where(order <= matches[:, None], order / ranks, 0.0).sum(axis=1) / number
        last = np.take_along_axis(ranks, number[:, None] - 1, axis=1)[:, 0]
        self.inp[rows] = np.where(matches > 0, matches / last, 0.0)


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
        tall, wide = budget // len(gallery), len(gallery)
    else:
        tall = max(64, min(4096, int(budget**0.5)))
        wide = budget // max(min(tall, len(query)), width)
    gallery = gallery[np.argsort(embeddings.pid[gallery], kind="stable")]
    blocks = _Products(embeddings, similarity, query, gallery)
    ranking = _Ranking(embeddings, skip, trials, gallery, blocks, similarity.tie)
    return ranking.run(tall, wide), similarity.precision


def rank_given(
    embeddings: Embeddings,
    trial: Trial,
    skip: SkipRule,
    similarities: Callable[[IntArray], NDArray[np.float64]],
    *,
    tie: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Ranks:
    """Rank a trial from similarities that somebody else computes (re-ranking, another model's scores).

    Args:
        embeddings: identities, cameras; the features are not looked at.
        trial: (query rows, gallery rows).
        skip: the rule.
        similarities: given positions (q,) in the trial's query rows, their (q, G) similarities in the order of
            the trial's gallery rows; larger is more alike.
        tie: similarities closer than this are equal.
        chunk_bytes: bound of a block.
    """
    gallery = trial[1]
    order = np.argsort(embeddings.pid[gallery], kind="stable")
    ranking = _Ranking(embeddings, skip, [trial], gallery[order], _Given(similarities, order), tie)
    return ranking.run(chunk_bytes // (COPIES * 8) // len(gallery), len(gallery))[0]


class _Products:
    """Similarities computed from embeddings; the last slice of the gallery stays loaded."""

    def __init__(
        self, embeddings: Embeddings, similarity: Similarity, query: IntArray, gallery: IntArray
    ) -> None:
        self.embeddings, self.similarity, self.query, self.gallery = embeddings, similarity, query, gallery
        self.loaded: tuple[slice, Tensor] | None = None

    def load(self, at: IntArray) -> Tensor:
        """(q, D) queries by their positions."""
        return self.similarity.load(self.embeddings, self.query[at])

    def block(self, query: Tensor, columns: slice | IntArray) -> Tensor:
        """(q, g) similarities of loaded queries with gallery images by their columns, the caller's to change."""
        if not isinstance(columns, slice):
            return self.similarity.block(query, self.similarity.load(self.embeddings, self.gallery[columns]))
        if self.loaded is None or self.loaded[0] != columns:
            self.loaded = columns, self.similarity.load(self.embeddings, self.gallery[columns])
        return self.similarity.block(query, self.loaded[1])


@dataclass(frozen=True)
class _Given:
    """Similarities computed elsewhere, a few queries at a time; `order` (G,) sorts the gallery's columns."""

    similarities: Callable[[IntArray], NDArray[np.float64]]
    order: IntArray

    def load(self, at: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.similarities(at)[:, self.order]))

    def block(self, query: Tensor, columns: slice | IntArray) -> Tensor:
        return query[:, columns].clone()


@dataclass(frozen=True)
class _Ranking:
    """Trials of equal queries; `gallery` (G,) holds the gallery rows of any of them, sorted by identity."""

    embeddings: Embeddings
    skip: SkipRule
    trials: Sequence[Trial]
    gallery: IntArray
    blocks: _Products | _Given
    tie: float

    def run(self, tall: int, wide: int) -> list[Ranks]:
        """The ranks of every trial, from blocks of about `tall` queries by `wide` gallery images."""
        query, pid = self.trials[0][0], self.embeddings.pid[self.gallery]
        members = np.stack([np.isin(self.gallery, gallery) for _, gallery in self.trials])
        ranks = [Ranks.empty(len(query)) for _ in self.trials]
        spans = list(_spans(pid, max(1, wide)))
        # Few identities in a block: few matches.
        order = np.argsort(self.embeddings.pid[query], kind="stable")
        for start in range(0, len(order), max(1, tall)):
            at = order[start : start + max(1, tall)]
            loaded = self.blocks.load(at)
            matches = self._matches(query[at], loaded, members)
            above = [torch.zeros(m.shape, dtype=torch.int64, device=m.device) for m in matches]
            identities = [torch.zeros(len(at), dtype=torch.int64, device=m.device) for m in matches]
            for span in spans:
                block = self._others(query[at], loaded, span)
                for t, member in enumerate(members[:, span]):
                    if not member.any():
                        continue
                    reach = matches[t] - self.tie
                    columns = torch.from_numpy(np.flatnonzero(member)).to(block.device)
                    others = block.index_select(1, columns)
                    identities[t] += _count_identities(others, reach[:, :1], pid[span][member])
                    above[t] += others.shape[1] - torch.searchsorted(_sorted_rows(others), reach)
            for one, match, a, i in zip(ranks, matches, above, identities, strict=True):
                number = (match > -torch.inf).sum(dim=1)
                one.fill(at, number.cpu().numpy(), a.cpu().numpy(), i.cpu().numpy())
        return ranks

    def _matches(self, rows: IntArray, loaded: Tensor, members: BoolArray) -> list[Tensor]:
        """Similarities of the true matches in each trial, best first: (q, K >= 1), padded with -inf."""
        pid = self.embeddings.pid[self.gallery]
        first, last = (np.searchsorted(pid, self.embeddings.pid[rows], side=s) for s in ("left", "right"))
        columns = first[:, None] + np.arange(max(1, int((last - first).max())))  # (q, L)
        present = columns < last[:, None]
        columns = np.minimum(columns, len(pid) - 1)
        present &= ~self.skip.hidden(self.embeddings, rows[:, None], self.gallery[columns])
        parts = []
        for start in range(0, len(rows), SLICE):
            few = slice(start, start + SLICE)
            wanted, place = np.unique(columns[few], return_inverse=True)
            block = self.blocks.block(loaded[few], wanted)
            at = torch.from_numpy(place.reshape(columns[few].shape)).to(block.device)
            parts.append(block.gather(1, at))
        values = torch.cat(parts)
        found = []
        for member in members:
            kept = torch.from_numpy(present & member[columns]).to(values.device)
            most = max(1, int(kept.sum(dim=1).max()))
            best = values.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True).values
            found.append(best[:, :most].contiguous())
        return found

    def _others(self, rows: IntArray, loaded: Tensor, span: slice) -> Tensor:
        """(q, g) similarities with a part of the gallery; -inf for the query's identity and what it must not see."""
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
        fit = int(np.searchsorted(ends, start + size, side="right")) - 1
        if fit < 0 or ends[fit] <= start:  # one identity alone is larger than a block
            fit = int(np.searchsorted(ends, start, side="right"))
        yield slice(start, int(ends[fit]))
        start = int(ends[fit])


def _sorted_rows(block: Tensor) -> Tensor:
    """Each row ascending, in place on a CPU, where NumPy sorts 25 times as fast as PyTorch."""
    if block.device.type == "cpu":
        block.numpy().sort(axis=1)
        return block
    return block.sort(dim=1).values


def _count_identities(others: Tensor, reach: Tensor, pid: IntArray) -> Tensor:
    """(q,) how many identities have an image among (q, G) that reaches (q, 1); `pid` (G,) is ascending."""
    reached = (others >= reach).view(torch.uint8).cumsum(dim=1, dtype=torch.int32)
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
