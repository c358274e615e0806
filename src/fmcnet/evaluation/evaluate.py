"""From embeddings to CMC, mAP and mINP, for every protocol, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.errors import DataError, ProtocolError, first_of
from fmcnet.evaluation.protocols import Protocol, Trial
from fmcnet.evaluation.ranking import CHUNK_BYTES, Ranks, rank_trials
from fmcnet.evaluation.reranking import Extra, rank_with_extras
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.types import BoolArray, Embeddings, IntArray

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
MAX_UNMATCHED_NAMED = 5
"""Queries without a match that a summary names; `Evaluation.to_dict` names all."""
CURVE = 1000
"""Longest CMC curve kept."""


@dataclass(frozen=True)
class Scores:
    """The figures of one trial, fractions in 0..1.

    Attributes:
        rank1, rank5, rank10, rank20: share of counted queries with a true match among the first k (CMC).
        mAP: mean over counted queries of mean_k(k / rank_k), over all remaining gallery images.
        mINP: mean over counted queries of number of true matches / rank of the last one.
        queries: queries counted; a query with no true match left after the skip rule is not.
        gallery: gallery images of the trial.
        cmc: (C,) float64, the CMC curve from rank 1 to the largest of a first true match; C is 20 to `CURVE`.
    """

    rank1: float
    rank5: float
    rank10: float
    rank20: float
    mAP: float
    mINP: float
    queries: int
    gallery: int
    cmc: NDArray[np.float64] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, float]:
        """The six figures by name."""
        return {name: getattr(self, name) for name in METRICS}


@dataclass(frozen=True)
class Evaluation:
    """Trials of one protocol on one set of embeddings.

    Attributes:
        protocol: the protocol in one sentence.
        distance: "cosine" or "euclidean".
        precision: "float32" or "float64", the arithmetic of the similarities.
        trials: the scores, in order.
        unmatched: of each trial, the queries that have no true match in its gallery, and are not counted: names, or
            "row 7" (of the embeddings, from 0) of those without one.
        chance: the Rank-1 that a random order of each query's gallery expects, 0..1, mean over trials and counted
            queries. It is the same for both rules of counting: the first image decides.
        extras: names of what was applied beyond the plain ranking; empty for a plain figure.
        plain: with extras, the evaluation without them: never show one without the other.
    """

    protocol: str
    distance: str
    precision: str
    trials: tuple[Scores, ...]
    unmatched: tuple[tuple[str, ...], ...]
    chance: float
    extras: tuple[str, ...] = ()
    plain: Evaluation | None = None

    def __repr__(self) -> str:
        mean, trials = self.mean, len(self.trials)
        titles = {"Rank-1": "rank1", "mAP": "mAP", "mINP": "mINP"}
        figures = ", ".join(f"{title} {100 * mean[name]:.2f}" for title, name in titles.items())
        name, count = self.protocol.partition(":")[0], f"{trials} trial{'s' * (trials > 1)}"
        return f"<Evaluation {name}: {figures}; {count}>"

    @property
    def mean(self) -> dict[str, float]:
        """Mean over trials, by name."""
        return {name: float(np.mean([getattr(t, name) for t in self.trials])) for name in METRICS}

    @property
    def std(self) -> dict[str, float]:
        """Population standard deviation over trials (divided by their number), by name."""
        return {name: float(np.std([getattr(t, name) for t in self.trials])) for name in METRICS}

    def _unmatched_facts(self) -> tuple[list[int], list[int], list[str]]:
        """Of each trial the number of queries and of those without a match; the names of the latter, each once."""
        unmatched = [len(names) for names in self.unmatched]
        queries = [trial.queries + count for trial, count in zip(self.trials, unmatched, strict=True)]
        return queries, unmatched, list(dict.fromkeys(chain.from_iterable(self.unmatched)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: protocol, trials, mean, std, and further facts about the numbers."""
        queries, unmatched, unmatched_names = self._unmatched_facts()
        content: dict[str, Any] = {
            "protocol": self.protocol,
            "trials": [trial.to_dict() for trial in self.trials],
            "mean": self.mean,
            "std": self.std,
            "chance_rank1": self.chance,
            "distance": self.distance,
            "precision": self.precision,
            "queries": [trial.queries for trial in self.trials],
            "gallery": [trial.gallery for trial in self.trials],
            "extras": list(self.extras),
            "probes": queries,  # with those not counted; "probe" is 0.1.0's word for a query
            "unmatched": unmatched,
            "unmatched_probes": unmatched_names,
        }
        if self.plain is not None:
            content["plain"] = self.plain.to_dict()
        return content

    def summary(self) -> str:
        """A few lines of text: the protocol, mean and deviation in percent, with extras also the plain figures."""
        mean, std = self.mean, self.std
        figures = "  ".join(f"{name} {100 * mean[name]:.2f} ± {100 * std[name]:.2f}" for name in METRICS)
        lines = [self.protocol, f"  {' + '.join([self.distance, *self.extras])}: {figures}"]
        if self.plain is not None:
            lines.append(self.plain.summary().splitlines()[1])
        counted, gallery = ([getattr(t, name) for t in self.trials] for name in ("queries", "gallery"))
        lines.append(
            f"  chance Rank-1 {100 * self.chance:.2f}: {mean['rank1'] / self.chance:.1f} x; "
            f"{_range_text(counted)} queries counted, {_range_text(gallery)} images in the gallery"
        )
        if self.chance == 1:
            lines.append(
                "  every image that a query is compared with shows its identity, so these figures tell nothing: "
                "add other identities to the gallery"
            )
        queries, unmatched, names = self._unmatched_facts()
        if names:
            lines.append(
                f"  {_range_text(unmatched)} of {_range_text(queries)} queries have no match "
                f"in the gallery and are not counted: {first_of(names, MAX_UNMATCHED_NAMED)}"
            )
        return "\n".join(lines)


def _range_text(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def evaluate(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
    extras: Sequence[Extra] = (),
) -> Evaluation:
    """Score embeddings under a protocol.

    Args:
        embeddings: each image once.
        protocol: see `protocols`.
        distance: "cosine" (of L2-normalised embeddings) or "euclidean" (of the embeddings as they are).
        device: "cpu", "cuda", ... (torch).
        precision: "float32", "float64", or "auto": float64 unless the product is large (`DOUBLE_BELOW`).
        chunk_bytes: bound of a block of similarities with its copies. It takes a few times as much beyond
            the embeddings, whatever their number (one identity with more images than fit goes over it).
        query_mask: (N,) bool, which rows may be queries.
        gallery_mask: (N,) bool, which rows may be searched.
        extras: `QueryExpansion` and `KReciprocal`, in the order of application; none by default.

    Returns:
        The scores of every trial. Ties count against the query (`ranking`). With extras, the evaluation names them
        and also holds the plain figures (`Evaluation.plain`).

    Raises:
        ProtocolError: when protocol and embeddings do not fit, or no query has a true match.
        DataError: when an embedding is all zeros and the distance is cosine.
    """
    if not isinstance(extras, Sequence) or not all(isinstance(extra, Extra) for extra in extras):
        raise ProtocolError(f"extras is {extras!r:.60}: give a list, as [KReciprocal()]")
    options: dict[str, Any] = {"distance": distance, "chunk_bytes": chunk_bytes}
    ranked = _rank(
        embeddings, protocol, query_mask, gallery_mask, device=device, precision=precision, **options
    )
    plain = Evaluation(
        protocol=protocol.sentence(),
        distance=distance,
        precision=ranked[-1][1].precision,
        trials=tuple(scores(ranks, protocol.cmc, len(gallery)) for (_, gallery), ranks in ranked),
        unmatched=tuple(
            tuple(str(embeddings.name[row]) or f"row {row}" for row in query[ranks.matches == 0].tolist())
            for (query, _), ranks in ranked
        ),
        chance=_chance(embeddings, protocol.skip, ranked),
    )
    if not extras:
        return plain
    trials = []
    for trial, _ in ranked:
        ranks = rank_with_extras(embeddings, trial, protocol.skip, extras, **options)
        trials.append(scores(ranks, protocol.cmc, len(trial[1])))
    return replace(plain, trials=tuple(trials), extras=tuple(e.describe() for e in extras), plain=plain)


def _chance(embeddings: Embeddings, skip: SkipRule, trials: Sequence[tuple[Trial, Ranks]]) -> float:
    """See `Evaluation.chance`."""
    means = []
    for (query, gallery), ranks in trials:
        step = max(1, CHUNK_BYTES // (4 * len(gallery)))
        remaining = [
            len(gallery) - skip.hidden(embeddings, query[start : start + step, None], gallery).sum(axis=1)
            for start in range(0, len(query), step)
        ]
        counted = ranks.matches > 0
        means.append((ranks.matches[counted] / np.concatenate(remaining)[counted]).mean())
    return float(np.mean(means))


def _rank(
    embeddings: Embeddings,
    protocol: Protocol,
    query_mask: BoolArray | None,
    gallery_mask: BoolArray | None,
    **options: Any,
) -> list[tuple[Trial, Ranks]]:
    """The trials of a protocol with their ranks; `options` are those of `rank_trials`."""
    if not isinstance(embeddings, Embeddings):
        raise DataError(
            f"embeddings is of type {type(embeddings).__name__}: give fmcnet.Embeddings, which know identity, camera "
            "and modality of each row"
        )
    if not isinstance(protocol, Protocol):
        raise ProtocolError(f"{protocol!r} is no protocol: give one of fmcnet.protocols, as protocols.sysu()")
    trials = protocol.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask)
    # Trials of equal queries share their similarities.
    groups = [[trial] for trial in trials] if protocol.drawn == "query" else [trials]
    ranks = [
        ranked for group in groups for ranked in rank_trials(embeddings, group, protocol.skip, **options)
    ]
    return list(zip(trials, ranks, strict=True))


def copies_note(features: NDArray[np.float32], of_query: BoolArray | None = None) -> str:
    """A sentence on rows of equal features, which are of one image; "" if there are none.

    Args:
        features: (N, D).
        of_query: (N,) the queries, of two sets: only rows that are in both count. None: one set.
    """
    if of_query is None:
        copies = len(features) - len(_row_hashes(features))
        finding = f"{copies} of {len(features)} rows have the features of another row"
    else:
        copies = len(_row_hashes(features[of_query]) & _row_hashes(features[~of_query]))
        finding = f"{copies} of the queries {'is' if copies == 1 else 'are'} in the gallery, too"
    consequence = "an image that is there twice can be its own match, which makes figures too good"
    return f"{finding}: {consequence}" if copies else ""


def _row_hashes(features: NDArray[np.float32]) -> set[int]:
    return {hash(row.tobytes()) for row in features}


def scores(ranks: Ranks, cmc: str, gallery: int) -> Scores:
    """The figures of a trial with a number of gallery images; `cmc` is "identity" or "image".

    Raises:
        ProtocolError: when no query has a true match.
    """
    counted = ranks.matches > 0
    n = int(counted.sum())
    if n == 0:
        raise ProtocolError(
            f"none of the {len(counted)} queries has a true match among the {gallery} gallery images after the skip "
            "rule: check that both sets hold the same identities, and the cameras"
        )
    first = ranks.first(cmc)[counted]
    longest = max(20, min(int(first.max()), CURVE))
    queries_by_rank = np.bincount(first[first <= longest], minlength=longest + 1)[1:]
    curve = np.cumsum(queries_by_rank) / n
    return Scores(
        rank1=float(curve[0]),
        rank5=float(curve[4]),
        rank10=float(curve[9]),
        rank20=float(curve[19]),
        mAP=float(ranks.ap[counted].mean()),
        mINP=float(ranks.inp[counted].mean()),
        queries=n,
        gallery=gallery,
        cmc=curve,
    )


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation over the trials of several, RegDB's ten splits (ten models) above all.

    Raises:
        ProtocolError: when there is none, or protocol, distance or extras differ.
    """
    if not evaluations:
        raise ProtocolError("no evaluation to pool")
    settings = {(e.protocol, e.distance, e.extras) for e in evaluations}
    if len(settings) > 1:
        descriptions = " | ".join(sorted(f"{protocol} ({distance})" for protocol, distance, _ in settings))
        raise ProtocolError(f"evaluations of different protocols cannot be pooled: {descriptions}")
    plains = [e.plain for e in evaluations if e.plain is not None]
    return replace(
        evaluations[0],
        trials=tuple(trial for e in evaluations for trial in e.trials),
        plain=pool(plains) if len(plains) == len(evaluations) else None,
        unmatched=tuple(names for e in evaluations for names in e.unmatched),
        chance=float(np.mean([e.chance for e in evaluations])),
    )


@dataclass(frozen=True)
class QueryScores:
    """Scores of the queries that are counted in at least one trial, in ascending order of row."""

    row: IntArray  # (Q,) position among the embeddings
    ap: NDArray[np.float64]  # (Q,) average precision 0..1, mean over the trials that count the query
    hit: NDArray[np.float64]  # (Q,) share of those trials whose first answer is right, 0..1


def query_scores(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    distance: str = "cosine",
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> QueryScores:
    """Rank every query in every trial and average over its trials.

    Two models on the same images have the same queries and gallery draws, so their scores pair up. Where each
    query is counted in every trial, as in all public protocols, the means are the mAP and Rank-1.

    Arguments and errors as `evaluate`.
    """
    trials = _rank(embeddings, protocol, query_mask, gallery_mask, distance=distance)
    times, ap, hit = np.zeros((3, len(embeddings)))
    for (query, _), ranks in trials:
        counted = ranks.matches > 0
        times[query] += counted
        ap[query] += np.where(counted, ranks.ap, 0.0)
        hit[query] += counted & (ranks.first(protocol.cmc) == 1)
    rows = np.flatnonzero(times)
    return QueryScores(rows, ap[rows] / times[rows], hit[rows] / times[rows])
