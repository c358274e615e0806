"""Are the probabilities and rates right for persons a calibration has not seen?"""

from __future__ import annotations

from typing import Any

import numpy as np

from fmcnet.errors import FmcnetError
from fmcnet.inference.calibration.counts import BINS, FloatVector, edges
from fmcnet.inference.calibration.curve import ENOUGH, MIN_PAIRS, fit
from fmcnet.types import IntArray

SHOWN = (1e-1, 1e-2, 1e-3, 1e-4)
PARTS = 15
"""Equal parts of 0..1 that the expected calibration error averages over (Guo et al., ICML 2017)."""


def calibration_error(
    probability: FloatVector, same: FloatVector, different: FloatVector, prior: float
) -> float:
    """Expected calibration error: how far probabilities lie from shares, in the mean over pairs.

    Args:
        probability: (N,) given to N groups of pairs.
        same, different: (N,) how many pairs of each group are of one person, of two.
        prior: the share of the former among all pairs that the error is for; the counts are weighted to it.

    Returns:
        0 (right) to 1.
    """
    same = prior * same / same.sum()
    different = (1 - prior) * different / different.sum()
    part = np.minimum((probability * PARTS).astype(np.int64), PARTS - 1)
    said = np.bincount(part, weights=probability * (same + different), minlength=PARTS)
    was = np.bincount(part, weights=same, minlength=PARTS)
    return float(np.abs(said - was).sum())


def held_out(counts: IntArray, prior: float) -> dict[str, Any] | None:
    """Learn from all folds of identities but one, look at that one; over all folds.

    Args:
        counts: (K, K, 2, BINS) of `count_pairs`. prior: of the calibration error.

    Returns:
        `folds`; `same`, `different` (pairs looked at); `expected_calibration_error`; `brier`: the mean squared error
        of the probabilities; and `rates`: for each false-match rate asked for, those found of false and of true
        matches. None where the pairs are too few.
    """
    k = len(counts)
    centres = (edges()[:-1] + edges()[1:]) / 2
    probability = np.zeros((k, BINS))
    seen = np.stack([counts[fold, fold] for fold in range(k)])  # (K, 2, BINS)
    reached = {rate: np.zeros(2, dtype=np.int64) for rate in SHOWN}
    for fold in range(k):
        others = [one for one in range(k) if one != fold]
        known = counts[np.ix_(others, others)].sum(axis=(0, 1))
        if known.sum(axis=1).min() < MIN_PAIRS:
            return None
        curve = fit(known[1], known[0])
        probability[fold] = curve.probability(centres, prior)
        for rate in list(reached):
            try:
                place = int(np.searchsorted(edges(), curve.at(rate) - 1e-9))
            except FmcnetError:
                del reached[rate]
                continue
            reached[rate] += seen[fold, :, place:].sum(axis=1)
    different, same = seen.sum(axis=(0, 2))
    if min(same, different) < MIN_PAIRS:
        return None
    p, d, s = probability.ravel(), seen[:, 0].ravel().astype(float), seen[:, 1].ravel().astype(float)
    brier = prior * ((1 - p) ** 2 * s).sum() / same + (1 - prior) * (p**2 * d).sum() / different
    return {
        "folds": k,
        "same": int(same),
        "different": int(different),
        "expected_calibration_error": calibration_error(p, s, d, prior),
        "brier": float(brier),
        "rates": {
            f"{rate:g}": {"false_match_rate": int(f) / int(different), "true_match_rate": int(t) / int(same)}
            for rate, (f, t) in reached.items()
            if rate * different >= ENOUGH
        },
    }
