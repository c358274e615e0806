"""Pairs counted by similarity, and one direction's calibration learnt from the counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fmcnet.errors import DataError, FmcnetError
from fmcnet.types import NO_CAMERA, BoolArray, Embeddings, IntArray, Modality

BINS = 20_000
"""Of equal width over -1..1: similarities are told apart in steps of 0.0001."""

BLOCK = 2**22
"""Pairs compared at a time."""

FloatVector = NDArray[np.float64]


def edges() -> FloatVector:
    """(BINS + 1,) where bins begin and end; bin i holds edges[i] <= similarity < edges[i + 1]."""
    return np.linspace(-1.0, 1.0, BINS + 1)


def bins_of(similarity: NDArray[Any]) -> IntArray:
    """The bin of each similarity, of any shape; what rounding puts outside -1..1 goes to the ends."""
    place = np.floor((np.asarray(similarity, dtype=np.float64) + 1.0) * (BINS / 2))
    return np.clip(place, 0, BINS - 1).astype(np.int64)


def count(similarity: NDArray[Any]) -> IntArray:
    """(BINS,) how many similarities fall into each bin."""
    return np.bincount(bins_of(similarity).ravel(), minlength=BINS).astype(np.int64)


def folds_of(pid: IntArray, folds: int, seed: int = 0) -> IntArray:
    """(N,) 0..folds-1: a random, equal partition of the identities."""
    known, which = np.unique(pid, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(known))[which] % folds, dtype=np.int64)


def count_pairs(
    embeddings: Embeddings,
    query_modality: Modality,
    gallery_modality: Modality,
    *,
    fold: IntArray,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> IntArray:
    """Count the pairs of a query and a gallery image, by the folds of their identities.

    Left out are pairs of an image with itself and of one person seen by one camera, where it is known: neighbouring
    frames say nothing about recognising somebody elsewhere. Within a modality a pair counts once, not in both orders.

    Args:
        embeddings: (N,) of known identities, of any length but zero.
        fold: (N,) 0..K-1, one value an identity.
        query_mask, gallery_mask: (N,) which rows may be queries, gallery; None: all.

    Returns:
        (K, K, 2, BINS): by the query's fold, the gallery's fold, different (0) or same (1) person, and bin.
    """
    every = np.ones(len(embeddings), dtype=bool)
    mine = [every if mask is None else mask for mask in (query_mask, gallery_mask)]
    rows_q = np.flatnonzero(mine[0] & (embeddings.modality == query_modality.code))
    rows_g = np.flatnonzero(mine[1] & (embeddings.modality == gallery_modality.code))
    k = int(fold.max(initial=0)) + 1
    counts = np.zeros(k * k * 2 * BINS, dtype=np.int64)
    features = embeddings.features / np.linalg.norm(embeddings.features, axis=1, keepdims=True)
    both_ways = np.isin(rows_g, rows_q)  # these meet in both orders where the modality is one
    step = max(1, BLOCK // max(1, len(rows_g)))
    for start in range(0, len(rows_q), step):
        q = rows_q[start : start + step]
        same = embeddings.pid[q, None] == embeddings.pid[None, rows_g]
        camera = embeddings.camid[q, None]
        counted = ~(same & (camera == embeddings.camid[None, rows_g]) & (camera != NO_CAMERA))
        counted &= q[:, None] != rows_g[None]
        if query_modality is gallery_modality:
            reverse_too = both_ways[None] & np.isin(q, rows_g)[:, None]
            counted &= ~(reverse_too & (q[:, None] > rows_g[None]))
        key = (fold[q, None] * k + fold[None, rows_g]) * 2 + same
        flat = key * BINS + bins_of(features[q] @ features[rows_g].T)
        counts += np.bincount(flat[counted], minlength=len(counts))
    return counts.reshape(k, k, 2, BINS)


ENOUGH = 10
"""A false-match rate is offered where at least so many false matches make it up."""

MIN_PAIRS = 20
"""Fewer pairs of the same person, or of different ones, are not learnt from."""

A_DECADE = 10
"""Thresholds stored per factor of ten of the false-match rate."""

KNOTS = {
    "similarity": (1, -1.0, 1.0),
    "evidence": (1, -np.inf, np.inf),
    "false_match_rate": (-1, np.nextafter(0.0, 1.0), 1.0),
    "threshold": (1, -1.0, 1.0),
    "true_match_rate": (-1, 0.0, 1.0),
}
"""The vectors of a curve: whether they ascend (1) or descend (-1), smallest and largest value."""


@dataclass(frozen=True)
class Curve:
    """How similarities of one direction translate.

    Attributes:
        same, different: numbers of pairs it was learnt from.
        similarity: (K,) ascending knots. evidence: (K,) not descending, the natural logarithm of how much likelier
            such a similarity is for one person than for two; linear between knots, constant beyond.
        false_match_rate: (M,) descending from 1. threshold: (M,) ascending: pairs of two persons reach it that often.
        true_match_rate: (M,) how often pairs of one person reach it.
    """

    same: int
    different: int
    similarity: FloatVector
    evidence: FloatVector
    false_match_rate: FloatVector
    threshold: FloatVector
    true_match_rate: FloatVector

    def probability(self, similarity: ArrayLike, prior: float) -> FloatVector:
        """How probable it is that both images show one person, 0..1, of the shape given.

        Args:
            similarity: cosine, any shape.
            prior: how probable it is before the images are compared, 0 < prior < 1.
        """
        if not 0.0 < prior < 1.0:
            raise FmcnetError(f"a prior is a probability between 0 and 1, got {prior}")
        values = np.asarray(similarity, dtype=np.float64)
        if np.isnan(values).any():
            raise DataError("a similarity is NaN: there is no probability of it")
        log_odds = np.interp(values, self.similarity, self.evidence) + np.log(prior) - np.log1p(-prior)
        return np.asarray(1.0 / (1.0 + np.exp(-log_odds)))

    def at(self, fmr: float) -> float:
        """The similarity that pairs of two persons reach at the rate `fmr`; linear in its logarithm between knots.

        Raises:
            FmcnetError: for a rate that is none, or below what the pairs can tell.
        """
        lowest = float(self.false_match_rate[-1])
        if not 0.0 < fmr <= 1.0:
            raise FmcnetError(f"a false-match rate is above 0 and at most 1, got {fmr}")
        if fmr < lowest * (1 - 1e-9):
            raise FmcnetError(
                f"a false-match rate of {fmr:g} cannot be told from {self.different:,} pairs of different persons: "
                f"{lowest:.2g} is the lowest; calibrate on more identities"
            )
        return float(np.interp(-np.log(fmr), -np.log(self.false_match_rate), self.threshold))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "same": self.same,
            "different": self.different,
            **{name: [float(f"{v:.7g}") for v in getattr(self, name)] for name in KNOTS},
        }

    @staticmethod
    def from_dict(tree: dict[str, Any]) -> Curve:
        """What `to_dict` gave.

        Raises:
            ValueError, KeyError: naming the field that is wrong, or missing.
        """
        for name in ("same", "different"):
            if number(tree[name], name) < 1 or int(tree[name]) != tree[name]:
                raise ValueError(f"{name} = {tree[name]} is no number of pairs")
        vectors = {name: _knots(tree[name], name) for name in KNOTS}
        for one, other in (
            ("similarity", "evidence"),
            ("threshold", "false_match_rate"),
            ("threshold", "true_match_rate"),
        ):
            if len(vectors[one]) != len(vectors[other]):
                raise ValueError(f"{other} has {len(vectors[other])} knots and {one} {len(vectors[one])}")
        if vectors["false_match_rate"][0] != 1:
            raise ValueError(f"false_match_rate begins with {vectors['false_match_rate'][0]}, not with 1")
        return Curve(int(tree["same"]), int(tree["different"]), **vectors)


def number(value: Any, name: str) -> float:
    """A finite number out of JSON, where true and "1" are none.

    Raises:
        ValueError: naming the field.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        raise ValueError(f"{name} = {value!r:.60} is no number")
    return float(value)


def _knots(values: Any, name: str) -> FloatVector:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} = {values!r:.60} is no list of knots")
    vector = np.array([number(value, f"{name}[{at}]") for at, value in enumerate(values)])
    sign, low, high = KNOTS[name]
    outside = np.flatnonzero((vector < low) | (vector > high))
    if len(outside):
        at = int(outside[0])
        raise ValueError(f"{name}[{at}] = {vector[at]} is not in {low:g}..{high:g}")
    back = np.flatnonzero(np.diff(sign * vector) < 0)
    if len(back):
        at = int(back[0]) + 1
        order = "descends" if sign > 0 else "ascends"
        raise ValueError(f"{name}[{at}] = {vector[at]}: knots out of order, it {order}")
    return vector


def fit(same: IntArray, different: IntArray) -> Curve:
    """The curve of counted similarities.

    Evidence: isotonic regression of "same or not", both sides weighing one half, over up to 64 groups of equal mass
    and, towards the ends, ever smaller ones; each step of it is a knot, with half a pair added on either side so that
    nothing is certain.

    Args:
        same, different: (BINS,) counts of pairs of one person, of two.

    Raises:
        DataError: with fewer than `MIN_PAIRS` of either.
    """
    total_same, total_different = int(same.sum()), int(different.sum())
    if min(total_same, total_different) < MIN_PAIRS:
        raise DataError(
            f"{total_same} pairs of one person and {total_different} of two are too few to learn from: "
            f"{MIN_PAIRS} of each are needed"
        )
    similarity, evidence = _evidence(same, different)
    rates, thresholds, found = _thresholds(same, different)
    return Curve(total_same, total_different, similarity, evidence, rates, thresholds, found)


def _evidence(same: IntArray, different: IntArray) -> tuple[FloatVector, FloatVector]:
    from scipy.optimize import isotonic_regression

    n_same, n_different = int(same.sum()), int(different.sum())
    weight = (same / n_same + different / n_different) / 2
    bounds = _bounds(n_same, n_different)
    groups = len(bounds) + 1
    group = np.searchsorted(bounds, np.cumsum(weight) - weight / 2, side="right").astype(np.int64)
    centres = (edges()[:-1] + edges()[1:]) / 2

    def summed(values: NDArray[Any], of: IntArray, length: int) -> FloatVector:
        return np.bincount(of, weights=values, minlength=length).astype(np.float64)

    mass = summed(weight, group, groups)
    used = np.flatnonzero(mass > 0)
    share = summed(same / n_same / 2, group, groups)[used] / mass[used]
    blocks = isotonic_regression(share, weights=mass[used]).blocks  # starts of its steps, and the end
    step = np.repeat(np.arange(len(blocks) - 1), np.diff(blocks))
    of_bin = step[np.searchsorted(used, group).clip(max=len(used) - 1)]
    k = len(blocks) - 1
    s, d, m = (summed(v, of_bin, k) for v in (same, different, weight))
    knots = summed(weight * centres, of_bin, k) / m
    evidence = np.log((s + 0.5) / (n_same + 1)) - np.log((d + 0.5) / (n_different + 1))
    return knots, np.maximum.accumulate(evidence)


def _bounds(n_same: int, n_different: int) -> FloatVector:
    """Where groups end, as shares of all mass, ascending: equal parts, the first and the last halved while they hold
    `ENOUGH` pairs of the kind that is common there."""
    equal = int(np.clip(min(n_same, n_different) // MIN_PAIRS, 4, 64))
    low, high = (
        0.5 ** np.arange(1, max(1, int(np.log2(2 * n / equal / ENOUGH)) + 1)) / equal
        for n in (n_different, n_same)
    )
    return np.concatenate([low[::-1], np.arange(1, equal) / equal, 1 - high])


def _thresholds(same: IntArray, different: IntArray) -> tuple[FloatVector, FloatVector, FloatVector]:
    reached_different = np.append(
        np.cumsum(different[::-1])[::-1], 0
    )  # (BINS + 1,) pairs at or above each edge
    reached_same = np.append(np.cumsum(same[::-1])[::-1], 0)
    n = int(different.sum())
    decades = np.log10(max(n / ENOUGH, 1.0))
    rates = 10.0 ** (-np.arange(int(np.floor(decades * A_DECADE + 1e-9)) + 1) / A_DECADE)
    place = np.searchsorted(-reached_different, -np.floor(rates * n + 1e-6), side="left").clip(max=BINS)
    return rates, edges()[place], reached_same[place] / max(int(same.sum()), 1)
