"""Is one method better than another? Paired differences with a bootstrap interval over seeds and queries.

Both methods answer the same queries in the same gallery draws, so each query gives a difference, and what makes a
query hard cancels. Training seeds and queries are drawn again with replacement, 2,000 times; the interval holds the
middle 95 percent of the means (percentile bootstrap, Efron and Tibshirani 1993, chapter 13; over two crossed
factors as Owen, "The pigeonhole bootstrap", 2007). With three seeds the same one is drawn three times in one draw of
nine: an interval from few seeds is coarse, and wider than what queries alone would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError

DRAWS = 2000
LEVEL = 0.95
FEWEST = 3
"""Seeds below which an interval says nothing about seeds, whatever it holds."""

Differences = Sequence[NDArray[np.float64]]


@dataclass(frozen=True)
class Paired:
    """A mean difference and its interval, in the unit of what was compared.

    Attributes:
        mean: over seeds of the mean over queries. low, high: ends of the 95 percent interval.
        seeds, queries: how many (the fewest queries of a seed).
    """

    mean: float
    low: float
    high: float
    seeds: int
    queries: int

    @property
    def clear(self) -> bool:
        """Whether the interval is clear of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float]:
        """For JSON; "enough": whether there are `FEWEST` seeds, without which "clear" is of these runs alone."""
        return {**asdict(self), "clear": self.clear, "enough": self.seeds >= FEWEST}


def too_few(seeds: int) -> str:
    """What to say beside figures of so many training seeds; "" where there are enough."""
    if seeds >= FEWEST:
        return ""
    return f"{seeds} training seed{'' if seeds == 1 else 's'}: nothing can be concluded about seeds"


def paired_interval(
    differences: Differences, *, crossed: bool = True, draws: int = DRAWS, seed: int = 0
) -> Paired:
    """The mean difference between two methods and its bootstrap interval.

    Args:
        differences: for each training seed (Q_s,) differences, one a query, in the same order of queries.
        crossed: all seeds have the same queries (one test set), which are then drawn once for all seeds; False:
            each seed has queries of its own (another test set), drawn for each.
        draws: of the bootstrap. seed: of the draws.

    Raises:
        ProtocolError: when there is nothing to compare, or crossed seeds differ in their number of queries.
    """
    counts = [len(one) for one in differences]
    if not counts or min(counts) == 0:
        raise ProtocolError("nothing to compare: no seed, or a seed without queries")
    if crossed and len(set(counts)) > 1:
        raise ProtocolError(f"the seeds have different numbers of queries ({counts}): not one test set")
    rng = np.random.default_rng(seed)
    means = _crossed(differences, draws, rng) if crossed else _nested(differences, draws, rng)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(np.mean([one.mean() for one in differences]))
    return Paired(mean, float(low), float(high), len(counts), min(counts))


def _times(draws: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, count): how often each of `count` things is taken in `count` takings with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)


def _crossed(differences: Differences, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(draws,) means; seeds and queries drawn independently of each other."""
    table = np.stack(differences)  # (S, Q)
    seeds = _times(draws, table.shape[0], rng)
    queries = _times(draws, table.shape[1], rng)
    return np.asarray(((seeds @ table) * queries).sum(axis=1) / table.size)


def _nested(differences: Differences, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(draws,) means; each drawn seed has its own queries drawn."""
    count = len(differences)
    picked = rng.integers(count, size=(draws, count))  # which seed stands in each place
    means = np.zeros((draws, count))
    for place in range(count):
        for s, one in enumerate(differences):
            rows = np.flatnonzero(picked[:, place] == s)
            means[rows, place] = _times(len(rows), len(one), rng) @ one / len(one)
    return np.asarray(means.mean(axis=1))
