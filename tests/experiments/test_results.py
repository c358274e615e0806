"""What a report makes of runs: figures, order, rows that are missing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fmcnet.config import Config
from fmcnet.errors import DataError
from fmcnet.experiments import study_report
from fmcnet.experiments.results import order_of, paired_interval, query_gap, study_facts
from fmcnet.experiments.rows import STUDIES
from fmcnet.experiments.runs import QUERIES, RESULT, StudyRun
from fmcnet.experiments.study_report import study_page

SEEDS = (0, 1)


def finished(folder, name, map_, seed):
    """A run whose probes have the given average precisions."""
    run = StudyRun(f"{name}-{seed}", "d", Config(), folder / "data", folder)
    run.folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    ap = np.clip(map_ + 0.05 * rng.normal(size=50), 0, 1)
    hit = (ap > 0.5).astype(float)
    arrays = {
        f"{d}_{k}": v for d in ("i2v", "v2i") for k, v in (("row", np.arange(50)), ("ap", ap), ("hit", hit))
    }
    np.savez(run.folder / QUERIES, **arrays)
    mean = {"rank1": hit.mean(), "rank10": 1.0, "mAP": ap.mean(), "mINP": 0.1}
    evaluations = [
        {"direction": d, "protocol": f"protocol {d}.", "chance_rank1": 0.02, "trials": [{}], "mean": mean}
        for d in ("i2v", "v2i")
    ]
    facts = {"digest": "d", "name": run.name, "images_seen": 640, "steps": 10, "evaluations": evaluations}
    (run.folder / RESULT).write_text(json.dumps(facts))
    return run


@pytest.fixture
def table2(tmp_path):
    """Base 30, + SFD 50, + FMC 40 (worse: not the paper's order), full 60; the last lacks seed 1."""
    runs = {
        key: {seed: finished(tmp_path, key, value, seed) for seed in SEEDS if (key, seed) != ("full", 1)}
        for key, value in (("base", 0.3), ("sfd", 0.5), ("fmc", 0.4), ("full", 0.6))
    }
    return study_facts(STUDIES["table2"], runs, SEEDS, crossed=True)


def test_figures_are_means_over_seeds_in_percent(table2):
    base = table2["rows"][0]
    assert base["figures"]["i2v"]["mAP"]["mean"] == pytest.approx(30, abs=2)
    assert base["figures"]["i2v"]["mAP"]["std"] == pytest.approx(
        np.std(base["figures"]["i2v"]["mAP"]["seeds"], ddof=1)
    )
    assert (base["missing"], table2["rows"][3]["missing"]) == ([], [1])
    assert table2["rows"][3]["figures"]["v2i"]["mAP"]["std"] is None


def test_pairs_take_the_seeds_that_both_rows_have(table2):
    by_rows = {(p["row"], p["other"], p["direction"]): p["mAP"] for p in table2["pairs"]}
    assert by_rows["sfd", "base", "i2v"]["mean"] == pytest.approx(20, abs=1)
    assert by_rows["sfd", "base", "i2v"]["seeds"] == 2
    assert by_rows["full", "fmc", "i2v"]["seeds"] == 1
    assert by_rows["fmc", "sfd", "v2i"]["clear"]


def test_what_orders_otherwise_is_said_and_nothing_else(table2):
    said = table2["order"]
    assert len(said) == 2  # + FMC under + SFD, both directions
    assert all(line.startswith("+ FMC (simple concatenation) minus + SFD") for line in said)
    assert "mAP -10.00 [" in said[0] or "mAP -9." in said[0]
    assert "the paper +3.49 (2 training seeds: nothing can be concluded about seeds)" in said[0]


def test_the_papers_own_losses_of_ground_are_its_order_too():
    """L_IC + L_FC stands BELOW without FMC in the paper: a loss of ours there is no deviation."""
    gap = {"mean": -1.0, "low": -2.0, "high": -0.5, "clear": True, "enough": True, "seeds": 3}
    pair = {
        "row": "fmc-ic-fc",
        "other": "fmc-none",
        "direction": "i2v",
        "title": "t",
        "rank1": gap,
        "mAP": gap,
    }
    assert order_of(STUDIES["table4"], pair) == ""
    gain = {"mean": 1.0, "low": -0.5, "high": 2.0, "clear": False, "enough": True, "seeds": 3}
    assert "undecided" in order_of(STUDIES["table4"], {**pair, "mAP": gain})
    none = {"mean": 0.0, "low": 0.0, "high": 0.0, "clear": False, "enough": True, "seeds": 3}
    assert "changed nothing" in order_of(STUDIES["table4"], {**pair, "mAP": none})


def test_three_seeds_are_needed_for_a_verdict():
    gap = {"mean": -1.0, "low": -2.0, "high": -0.5, "clear": True, "enough": True, "seeds": 3}
    pair = {"row": "sfd", "other": "base", "direction": "i2v", "title": "t", "rank1": gap, "mAP": gap}
    assert "the interval is clear of zero" in order_of(STUDIES["table2"], pair)
    for seeds in (1, 2):
        few = {**gap, "enough": False, "seeds": seeds}
        said = order_of(STUDIES["table2"], {**pair, "rank1": few, "mAP": few})
        assert "nothing can be concluded about seeds" in said
        assert "clear" not in said
    assert [paired_interval([np.ones(4)] * n).to_dict()["enough"] for n in (1, 2, 3, 4)] == [0, 0, 1, 1]


def test_different_queries_do_not_pair():
    a = {"row": np.arange(3), "ap": np.zeros(3)}
    assert (query_gap(a, {"row": np.arange(3), "ap": np.full(3, 0.5)}, "ap") == -50).all()
    with pytest.raises(DataError, match="different queries"):
        query_gap(a, {"row": np.arange(1, 4), "ap": np.zeros(3)}, "ap")


@pytest.mark.parametrize("comparable", [True, False])
def test_the_papers_figures_stand_beside_those_of_its_data_only(table2, comparable):
    facts = {
        "command": "fmcnet study table2", "written": "2026-01-01", "commit": "abc", "crossed": True,
        "versions": {"fmcnet": "0", "torch": "0"}, "seeds": [0, 1], "selected": ["last"], "steps": [10],
        "images_seen": [640],
        "failed": "", "studies": [table2], "runs": [], "pictures": {},
        "data": {"generated": not comparable, "name": "SYSU-MM01", "test_identities": 9, "train_identities": 9,
                 "comparable": comparable},
    }  # fmt: skip
    text = study_page(facts)
    assert ("paper mAP" in text) is comparable
    assert ("| 66.34 | 62.51 |" in text) is comparable
    assert ("GENERATED" in text) is not comparable
    assert "+ SFF (full) (1 of 2 seeds)" in text
    assert "**Orders otherwise than in the paper:**" in text
    assert text.count("nothing can be concluded about seeds") >= 4  # at the top, by both tables, in each line
    differences = [line for line in text.splitlines() if line.startswith("| +") and " minus " in line]
    assert differences
    assert not any("**" in line for line in differences)
    assert text.count("protocol i2v.") == 1


def test_another_protocol_than_the_published_one_is_named_beside_the_papers_figures(tmp_path):
    runs = {row.key: {0: finished(tmp_path, row.key, 0.3, 0)} for row in STUDIES["table2"].rows}
    settings = {"mode": "all", "shots": 1, "draw": "seeded"}
    for run in (found for of_row in runs.values() for found in of_row.values()):
        result = json.loads((run.folder / RESULT).read_text())
        for one in result["evaluations"]:
            one |= {"protocol": "SYSU-MM01 all-search: rules.", "settings": settings, "distance": "euclidean"}
        (run.folder / RESULT).write_text(json.dumps(result))
    found = study_facts(STUDIES["table2"], runs, (0,), crossed=True)
    flags = ["euclidean distance", "1 of ten trials", "seeded gallery draw"]
    assert found["rows"][0]["figures"]["i2v"]["flags"] == flags
    study = {**found, "maps": False, "statistics": None}
    told = "The paper's figures are of the published protocol; ours are not: 1 of ten trials, euclidean"
    assert any(part.startswith(told) for part in study_report._table(study, comparable=True))
    assert not any("ours are not" in part for part in study_report._table(study, comparable=False))
    [lines] = study_report._protocols({"studies": [study]})
    assert lines.count(" Not as published: euclidean distance, 1 of ten trials, seeded gallery draw.") == 2
