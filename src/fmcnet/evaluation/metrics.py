"""CMC, mAP and mINP of trials, their mean and spread, and what they are metrics of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError, first_of
from fmcnet.evaluation.ranking import Ranks

NAMED = 5
"""Queries without a match that a summary names; `Evaluation.to_dict` names all."""
CURVE = 1000
"""Longest CMC curve kept."""
METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")


@dataclass(frozen=True)
class Scores:
    """The figures of one trial, fractions in 0..1.

    Attributes:
        rank1, rank5, rank10, rank20: share of counted queries with a true match among the first k (CMC).
        mAP: mean over counted queries of mean_k(k / rank_k), over all remaining gallery images.
        mINP: mean over counted queries of number of true matches / rank of the last one.
        queries: queries counted; a query with no true match left after the skip rule is not.
        gallery: gallery images of the trial.
        cmc: (min(longest rank, 1000),) float64, the CMC curve from rank 1.
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
        return {name: float(getattr(self, name)) for name in METRICS}


def scores(ranks: Ranks, cmc: str, gallery: int) -> Scores:
    """The figures of a trial.

    Args:
        ranks: of its queries.
        cmc: "identity" or "image".
        gallery: number of gallery images.

    Raises:
        ProtocolError: when no query has a true match.
    """
    counted = ranks.matches > 0
    n = int(counted.sum())
    if n == 0:
        raise ProtocolError(
            f"none of the {len(counted)} probes has a true match among the {gallery} gallery images after the skip "
            "rule: check that both sets hold the same identities, and the cameras"
        )
    first = (ranks.first_identity if cmc == "identity" else ranks.first_image)[counted]
    longest = max(20, min(int(first.max()), CURVE))
    curve = np.cumsum(np.bincount(np.minimum(first, longest + 1), minlength=longest + 2)[1 : longest + 1]) / n
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


@dataclass(frozen=True)
class Evaluation:
    """Trials of one protocol on one set of embeddings.

    Attributes:
        protocol: the protocol in one sentence.
        distance: "cosine" or "euclidean".
        precision: "float32" or "float64", the arithmetic of the similarities.
        trials: the scores, in order.
        extras: what was applied beyond the plain ranking, in words; empty for a plain figure.
        plain: with extras, the evaluation without them: never show one without the other.
        unmatched: of each trial, the queries that have no true match in its gallery, and are not counted: names, or
            "row 7" (of the embeddings, from 0) of those without one.
    """

    protocol: str
    distance: str
    precision: str
    trials: tuple[Scores, ...]
    extras: tuple[str, ...] = ()
    plain: Evaluation | None = None
    unmatched: tuple[tuple[str, ...], ...] = ()

    def __repr__(self) -> str:
        mean, many = self.mean, len(self.trials)
        figures = (
            f"Rank-1 {100 * mean['rank1']:.2f}, mAP {100 * mean['mAP']:.2f}, mINP {100 * mean['mINP']:.2f}"
        )
        return f"<Evaluation {self.protocol.partition(':')[0]}: {figures}; {many} trial{'s' * (many > 1)}>"

    @property
    def mean(self) -> dict[str, float]:
        """Mean over trials, by name."""
        return {name: float(np.mean([getattr(t, name) for t in self.trials])) for name in METRICS}

    @property
    def std(self) -> dict[str, float]:
        """Population standard deviation over trials (divided by their number), by name."""
        return {name: float(np.std([getattr(t, name) for t in self.trials])) for name in METRICS}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: protocol, trials, mean, std, and what else describes the numbers."""
        content: dict[str, Any] = {
            "protocol": self.protocol,
            "trials": [trial.to_dict() for trial in self.trials],
            "mean": self.mean,
            "std": self.std,
            "distance": self.distance,
            "precision": self.precision,
            "queries": [trial.queries for trial in self.trials],
            "gallery": [trial.gallery for trial in self.trials],
            "extras": list(self.extras),
            "probes": [trial.queries + lost for trial, lost in zip(self.trials, self._lost(), strict=True)],
            "unmatched": self._lost(),
            "unmatched_probes": list(self._unmatched_names()),
        }
        if self.plain is not None:
            content["plain"] = self.plain.to_dict()
        return content

    def summary(self) -> str:
        """A few lines for a person: the sentence, the mean and spread in percent, the plain figure beside extras."""
        mean, std = self.mean, self.std
        figures = "  ".join(f"{name} {100 * mean[name]:.2f} ± {100 * std[name]:.2f}" for name in METRICS)
        lines = [
            self.protocol,
            f"  {self.distance}" + "".join(f" + {e}" for e in self.extras) + f": {figures}",
        ]
        if self.plain is not None:
            lines.append(self.plain.summary().splitlines()[1])
        lost = self._lost()
        if any(lost):
            probes = sorted({trial.queries + n for trial, n in zip(self.trials, lost, strict=True)})
            shown = first_of(self._unmatched_names(), NAMED)
            lines.append(
                f"  {_span(lost)} of {_span(probes)} probes have no match in the gallery and are not counted: {shown}"
            )
        return "\n".join(lines)

    def _lost(self) -> list[int]:
        """How many queries of each trial have no match."""
        return [len(names) for names in self.unmatched] or [0] * len(self.trials)

    def _unmatched_names(self) -> tuple[str, ...]:
        """Queries without a match in any of the trials, each once, in the order of the embeddings."""
        return tuple(dict.fromkeys(name for names in self.unmatched for name in names))


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation over the trials of several, RegDB's ten splits (ten models) above all.

    Raises:
        ProtocolError: when there is none, or protocol, distance or extras differ.
    """
    if not evaluations:
        raise ProtocolError("no evaluation to pool")
    kinds = {(e.protocol, e.distance, e.extras) for e in evaluations}
    if len(kinds) > 1:
        said = " | ".join(sorted(f"{protocol} ({distance})" for protocol, distance, _ in kinds))
        raise ProtocolError(f"evaluations of different protocols cannot be pooled: {said}")
    first = evaluations[0]
    plains = [e.plain for e in evaluations if e.plain is not None]
    return Evaluation(
        protocol=first.protocol,
        distance=first.distance,
        precision=first.precision,
        trials=tuple(trial for e in evaluations for trial in e.trials),
        extras=first.extras,
        plain=pool(plains) if len(plains) == len(evaluations) else None,
        unmatched=tuple(names for e in evaluations for names in e.unmatched or ((),) * len(e.trials)),
    )
