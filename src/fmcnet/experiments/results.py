"""Results of a study: figures by row, paired differences with bootstrap intervals, the order of the rows.

Two methods answer the same queries in the same gallery draws, so each query gives a difference, and its difficulty
cancels. Training seeds and queries are resampled with replacement, 2,000 times. The interval holds the
middle 95 percent of the means (percentile bootstrap, Efron and Tibshirani 1993, chapter 13; over two crossed
factors as Owen, "The pigeonhole bootstrap", 2007). With three seeds, one draw in nine takes the same seed three
times: an interval from few seeds is coarse, and wider than queries alone would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.check import TITLES
from fmcnet.errors import DataError, ProtocolError
from fmcnet.experiments.compare import protocol_flags
from fmcnet.experiments.rows import DIRECTION_NAMES, Study, TableRow
from fmcnet.experiments.runs import StudyRun

COMPARED_METRICS = {"rank1": ("Rank-1", "hit"), "mAP": ("mAP", "ap")}
"""Metrics that are compared in pairs: title, and the column of `queries.npz` with its value for each query."""

Runs = Mapping[str, Mapping[int, StudyRun]]
"""Finished runs by a row's key, then by seed."""

DRAWS = 2000
INTERVAL_LEVEL = 0.95
MIN_SEEDS = 3
"""Fewest seeds for a statement about seeds."""

Differences = Sequence[NDArray[np.float64]]


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference and its 95 percent interval, in the unit of the compared values."""

    mean: float  # over seeds of the mean over queries
    low: float
    high: float
    seeds: int
    queries: int  # of the seed that has fewest

    @property
    def clear(self) -> bool:
        """Whether the interval is clear of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float]:
        """For JSON; "enough": whether there are `MIN_SEEDS` seeds. Otherwise "clear" holds for these runs only."""
        return {**asdict(self), "clear": self.clear, "enough": self.seeds >= MIN_SEEDS}


def too_few(seeds: int) -> str:
    """Warning for figures of few training seeds; "" if there are enough."""
    if seeds >= MIN_SEEDS:
        return ""
    return f"{seeds} training seed{'' if seeds == 1 else 's'}: nothing can be concluded about seeds"


def paired_interval(
    differences: Differences, *, crossed: bool = True, draws: int = DRAWS
) -> PairedDifference:
    """The mean difference between two methods and its bootstrap interval.

    Args:
        differences: for each training seed (Q_s,) differences, one per query, in the same order of queries.
        crossed: all seeds have the same queries (one test set), which are then drawn once for all seeds; False:
            each seed has queries of its own (another test set), drawn for each.
        draws: number of bootstrap draws; they are the same in each call.

    Returns:
        The mean difference with its 95 percent interval.

    Raises:
        ProtocolError: without seeds or queries, or when crossed seeds differ in their number of queries.
    """
    query_counts = [len(seed_differences) for seed_differences in differences]
    if not query_counts or min(query_counts) == 0:
        raise ProtocolError("nothing to compare: no seed, or a seed without queries")
    if crossed and len(set(query_counts)) > 1:
        raise ProtocolError(f"the seeds have different numbers of queries ({query_counts}): not one test set")
    rng = np.random.default_rng(0)
    means = _crossed_means(differences, draws, rng) if crossed else _nested_means(differences, draws, rng)
    low, high = np.quantile(means, [(1 - INTERVAL_LEVEL) / 2, 1 - (1 - INTERVAL_LEVEL) / 2])
    mean = float(np.mean([seed_differences.mean() for seed_differences in differences]))
    return PairedDifference(mean, float(low), float(high), len(query_counts), min(query_counts))


def _draw_counts(draws: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, count): how often each of `count` items is drawn in `count` draws with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)


def _crossed_means(differences: Differences, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(draws,) means; seeds and queries drawn independently of each other."""
    table = np.stack(differences)  # (S, Q)
    seeds = _draw_counts(draws, table.shape[0], rng)
    queries = _draw_counts(draws, table.shape[1], rng)
    return np.asarray(((seeds @ table) * queries).sum(axis=1) / table.size)


def _nested_means(differences: Differences, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(draws,) means; each drawn seed has its own queries drawn."""
    count = len(differences)
    drawn_seeds = rng.integers(count, size=(draws, count))  # the seed at each position
    means = np.zeros((draws, count))
    for position in range(count):
        for s, seed_differences in enumerate(differences):
            rows = np.flatnonzero(drawn_seeds[:, position] == s)
            means[rows, position] = (
                _draw_counts(len(rows), len(seed_differences), rng) @ seed_differences / len(seed_differences)
            )
    return np.asarray(means.mean(axis=1))


def study_facts(study: Study, runs: Runs, seeds: Sequence[int], *, crossed: bool) -> dict[str, Any]:
    """The content of one table, in percent. A row is shown with the seeds whose runs are finished.

    `crossed`: all seeds have one test set.
    """
    pairs = []
    for row, other in study.pairs:
        if common_runs := [
            (runs[row][seed], runs[other][seed]) for seed in seeds if seed in runs[row].keys() & runs[other]
        ]:
            title = f"{study.row(row).title} minus {study.row(other).title}"
            for direction in DIRECTION_NAMES:
                differences = _compare(common_runs, direction, crossed)
                pairs.append(
                    {"row": row, "other": other, "title": title, "direction": direction, **differences}
                )
    return {
        "name": study.name,
        "title": study.title,
        "maps": study.maps,
        "rows": [_row_facts(row, runs[row.key], seeds) for row in study.rows],
        "pairs": pairs,
        "order": [sentence for pair in pairs if (sentence := order_of(study, pair))],
    }


def _row_facts(row: TableRow, runs: Mapping[int, StudyRun], seeds: Sequence[int]) -> dict[str, Any]:
    results = {seed: run.result() or {} for seed, run in runs.items()}
    figures: dict[str, Any] = {}
    for direction in DIRECTION_NAMES:
        evaluations = [e for r in results.values() for e in r["evaluations"] if e["direction"] == direction]
        if evaluations:
            title = evaluations[0]["protocol"].partition(" ")[0]
            benchmark = next((name for name, known in TITLES.items() if known == title), "")
            flags = [flag for e in evaluations for flag in protocol_flags(benchmark, e)]
            figures[direction] = {
                "protocol": evaluations[0]["protocol"],
                "flags": list(dict.fromkeys(flags)),
                "chance_rank1": 100 * float(np.mean([e["chance_rank1"] for e in evaluations])),
            }
            for metric in ("rank1", "rank10", "mAP", "mINP"):
                figures[direction][metric] = spread_of([100 * e["mean"][metric] for e in evaluations])
    return {
        "key": row.key,
        "title": row.title,
        "settings": list(row.overrides),
        "paper": list(row.paper) if row.paper else None,
        "source": row.source,
        "deviations": list(row.deviations),
        "runs": {str(seed): run.name for seed, run in runs.items()},
        "missing": [seed for seed in seeds if seed not in results],
        "images_seen": sorted({r["images_seen"] for r in results.values()}),
        "figures": figures,
    }


def spread_of(values: list[float]) -> dict[str, Any] | None:
    """Mean and sample standard deviation over seeds (None from one seed); None without any."""
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "seeds": values}


def _compare(
    pairs: Sequence[tuple[StudyRun, StudyRun]], direction: str, crossed: bool
) -> dict[str, dict[str, float]]:
    """The paired differences of the first runs minus the second, percent points, by metric."""
    queries = [(a.queries()[direction], b.queries()[direction]) for a, b in pairs]
    return {
        metric: paired_interval([query_gap(a, b, column) for a, b in queries], crossed=crossed).to_dict()
        for metric, (_, column) in COMPARED_METRICS.items()
    }


def query_gap(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]], column: str) -> NDArray[np.float64]:
    """(Q,) differences a - b of one column, percent points, query by query.

    Raises:
        DataError: when the two runs answered different queries.
    """
    if not np.array_equal(a["row"], b["row"]):
        raise DataError("two runs of the study were judged on different queries: delete them and run again")
    return np.asarray(100 * (a[column] - b[column]), dtype=np.float64)


def interval(one: Mapping[str, float]) -> str:
    """A paired difference as reports print it."""
    return f"{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def order_of(study: Study, pair: dict[str, Any]) -> str:
    """A sentence on a pair that the paper orders otherwise; "" for the same order, or without the paper's figures.

    The paper's figures are infrared to visible (SYSU-MM01, all-search); its order is compared in both directions.
    """
    row, other = study.row(pair["row"]), study.row(pair["other"])
    if row.paper is None or other.paper is None:
        return ""
    disagreements = []
    for (metric, (name, _)), paper, other_paper in zip(
        COMPARED_METRICS.items(), row.paper, other.paper, strict=True
    ):
        paper_difference, difference = paper - other_paper, pair[metric]
        if paper_difference * difference["mean"] <= 0:
            disagreements.append(
                f"{name} {interval(difference)}, the paper {paper_difference:+.2f} ({_certainty(difference)})"
            )
    titles = f"{pair['title']}, {DIRECTION_NAMES[pair['direction']]}"
    return f"{titles}: {'; '.join(disagreements)}." if disagreements else ""


def _certainty(difference: Mapping[str, Any]) -> str:
    """The conclusion that the interval of a paired difference allows."""
    if difference["mean"] == difference["low"] == difference["high"] == 0:
        return "equal to the last query: what the row adds changed nothing"
    if not difference["enough"]:
        return too_few(difference["seeds"])
    if difference["clear"]:
        return "the interval is clear of zero"
    return "the interval holds zero: undecided"
