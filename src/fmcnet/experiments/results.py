"""From finished runs to the facts of a report: figures by row, paired differences, what orders otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import DataError
from fmcnet.experiments.jobs import Job, load_queries
from fmcnet.experiments.paired import Paired, paired_interval, too_few
from fmcnet.experiments.rows import DIRECTIONS, Row, Study

COLUMNS = {"rank1": "hit", "mAP": "ap"}
"""Metrics that are compared in pairs, and the column of `queries.npz` each is the mean of."""

Named = dict[tuple[str, int], str]


def study_facts(
    study: Study, names: Named, jobs: dict[str, Job], seeds: Sequence[int], *, crossed: bool
) -> dict[str, Any]:
    """What one table says; everything in percent.

    Args:
        study: the table. names: the run's name by (row's key, seed). jobs: by name.
        seeds: that were asked for; a row is shown with those that are finished.
        crossed: all seeds have one test set.
    """
    done = {
        (row.key, seed): jobs[names[row.key, seed]]
        for row in study.rows
        for seed in seeds
        if jobs[names[row.key, seed]].result() is not None
    }
    pairs = [
        compared
        for key, other in study.pairs
        for direction in DIRECTIONS
        if (compared := _compare(study, key, other, direction, done, seeds, crossed)) is not None
    ]
    return {
        "name": study.name,
        "title": study.title,
        "maps": study.maps,
        "rows": [_row_facts(row, done, seeds) for row in study.rows],
        "pairs": pairs,
        "order": [said for pair in pairs if (said := order_of(study, pair))],
    }


def _row_facts(row: Row, done: dict[tuple[str, int], Job], seeds: Sequence[int]) -> dict[str, Any]:
    results = {seed: done[row.key, seed].result() or {} for seed in seeds if (row.key, seed) in done}
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        each = [e for r in results.values() for e in r["evaluations"] if e["direction"] == direction]
        if not each:
            continue
        figures[direction] = {
            "protocol": each[0]["protocol"],
            "chance_rank1": 100 * float(np.mean([e["chance_rank1"] for e in each])),
            **{
                metric: _spread([100 * e["mean"][metric] for e in each])
                for metric in ("rank1", "rank10", "mAP", "mINP")
            },
        }
    return {
        "key": row.key,
        "title": row.title,
        "settings": list(row.overrides),
        "paper": list(row.paper) if row.paper else None,
        "source": row.source,
        "deviations": list(row.deviations),
        "runs": {str(seed): done[row.key, seed].name for seed in results},
        "missing": [seed for seed in seeds if seed not in results],
        "images_seen": sorted({r["images_seen"] for r in results.values()}),
        "figures": figures,
    }


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds (None from one seed)."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "seeds": values}


def _compare(
    study: Study,
    key: str,
    other: str,
    direction: str,
    done: dict[tuple[str, int], Job],
    seeds: Sequence[int],
    crossed: bool,
) -> dict[str, Any] | None:
    """The paired difference row minus other, percent points; None where no seed has both."""
    common = [seed for seed in seeds if (key, seed) in done and (other, seed) in done]
    if not common:
        return None
    found: dict[str, Paired] = {}
    both = [(load_queries(done[key, s].run), load_queries(done[other, s].run)) for s in common]
    for metric, column in COLUMNS.items():
        gaps = [query_gap(a[direction], b[direction], column) for a, b in both]
        found[metric] = paired_interval(gaps, crossed=crossed)
    return {
        "row": key,
        "other": other,
        "title": f"{study.row(key).title} minus {study.row(other).title}",
        "direction": direction,
        **{metric: paired.to_dict() for metric, paired in found.items()},
    }


def query_gap(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]], column: str) -> NDArray[np.float64]:
    """(Q,) differences a - b of one column, percent points, query by query.

    Raises:
        DataError: when the two runs answered different queries.
    """
    if not np.array_equal(a["row"], b["row"]):
        raise DataError("two runs of the study were judged on different queries: delete them and run again")
    return np.asarray(100 * (a[column] - b[column]), dtype=np.float64)


def order_of(study: Study, pair: dict[str, Any]) -> str:
    """A sentence on a pair that the paper orders too; "" where it orders alike, or has no figures.

    The paper's figures are infrared to visible (SYSU-MM01, all-search); its order is asked of both directions.
    """
    row, other = study.row(pair["row"]), study.row(pair["other"])
    if row.paper is None or other.paper is None:
        return ""
    faults = []
    for at, metric in enumerate(("rank1", "mAP")):
        theirs = row.paper[at] - other.paper[at]
        ours = pair[metric]
        if theirs * ours["mean"] > 0:
            continue
        sure = "the interval is clear of zero" if ours["clear"] else "the interval holds zero: undecided"
        if ours["mean"] == ours["low"] == ours["high"] == 0:
            sure = "equal to the last query: what the row adds changed nothing"
        elif not ours["enough"]:
            sure = too_few(ours["seeds"])
        faults.append(
            f"{'Rank-1' if metric == 'rank1' else metric} {ours['mean']:+.2f} "
            f"[{ours['low']:+.2f}, {ours['high']:+.2f}], the paper {theirs:+.2f} ({sure})"
        )
    if not faults:
        return ""
    return f"{pair['title']}, {DIRECTIONS[pair['direction']]}: {'; '.join(faults)}."
