"""Which published column a report's evaluations stand in, and what is flagged."""

from __future__ import annotations

import json

import pytest

from fmcnet.data.table import Record, Table
from fmcnet.evaluation.protocols import Protocol, custom, llcm, regdb, sysu
from fmcnet.experiments.compare import compare
from fmcnet.experiments.report import dataset_facts
from fmcnet.types import NO_PID, Modality

MEAN = {"rank1": 0.5, "mAP": 0.25}
PERMUTATION = "rand_perm_cam.mat"


def evaluated(direction: str, protocol: Protocol, form: str = "now", **more):
    """An evaluation: "now" as written today, "0.1.0" without settings, "reworded" by other sentences."""
    one = {
        "direction": direction,
        "protocol": "Another sentence." if form == "reworded" else protocol.sentence(),
        "settings": protocol.settings,
        "trials": [MEAN] * protocol.draw.trials,
        "mean": MEAN,
        **more,
    }
    if form == "0.1.0":
        del one["settings"]
    return one


def written(folder, dataset: str, *evaluations, run=(), data=(), **facts):
    """A report of these evaluations, with further facts of the run, of the dataset and of the report."""
    content = {"selected_on": "last", "evaluations": evaluations, **dict(run)}
    folder.mkdir()
    (folder / "report.json").write_text(
        json.dumps(
            {"dataset": {"name": dataset, **dict(data)}, "splits": 10, "runs": {"a": content}, **facts}
        )
    )
    return folder


@pytest.mark.parametrize("form", ["now", "0.1.0", "reworded"])
@pytest.mark.parametrize(
    ("dataset", "direction", "protocol", "column", "flags"),
    [
        ("sysu", "i2v", sysu(permutation=PERMUTATION), "sysu_all", ()),
        (
            "sysu",
            "i2v",
            sysu("indoor", permutation=PERMUTATION, trials=3),
            "sysu_indoor",
            ("3 of ten trials",),
        ),
        ("sysu", "i2v", sysu(draw="seeded"), "sysu_all", ("seeded gallery draw",)),
        ("sysu", "i2v", sysu(shots=10, permutation=PERMUTATION), None, None),
        ("sysu", "v2i", sysu(permutation=PERMUTATION, direction="v2i"), None, None),
        ("regdb", "v2i", regdb("v2t", "identity"), "regdb_v2t", ()),
        ("regdb", "i2v", regdb("t2v"), "regdb_t2v", ()),
        ("llcm", "v2i", llcm(), "llcm_v2i", ()),
        ("llcm", "i2v", llcm("a", "i2v", trials=2), "llcm_i2v", ("2 of ten trials",)),
        (
            "llcm",
            "i2v",
            llcm("b", "i2v"),
            "llcm_i2v",
            ("another reading of LLCM's protocol than the paper's",),
        ),
        ("llcm", "v2i", llcm("c"), "llcm_v2i", ("another reading of LLCM's protocol than the paper's",)),
        ("llcm", "custom", custom(name="reading a, official draw"), None, None),
    ],
)
def test_the_column_and_the_flags_of_an_evaluation(
    tmp_path, dataset, direction, protocol, column, flags, form
):
    row = compare([written(tmp_path / "r", dataset, evaluated(direction, protocol, form))]).rows[-1]
    if column is None:
        assert row.figures == {}
        assert [flag.partition(":")[0] for flag in row.flags] == ["not a published setting, left out"]
    else:
        assert row.figures == {column: (50.0, 25.0)}
        assert row.flags == flags
    assert compare([tmp_path / "r" / "report.json"]).rows[-1].figures == row.figures


LEFT_OUT = "another figure of this column, left out: "
OTHER = {"rank1": 0.75, "mAP": 0.5}
FLIPPED = {"mean": OTHER, "extras": ["flip"], "plain": evaluated("i2v", regdb("t2v"), "0.1.0")}


@pytest.mark.parametrize(
    ("dataset", "evaluations", "flags"),
    [
        (
            "sysu",
            [
                evaluated("i2v", sysu(draw="seeded"), mean=OTHER),
                evaluated("i2v", sysu(permutation=PERMUTATION)),
            ],
            (LEFT_OUT + "SYSU-MM01 all-search, single-shot (seeded gallery draw)",),
        ),
        (
            "llcm",
            [evaluated("v2i", llcm()), evaluated("v2i", llcm("c"), mean=OTHER)],
            (
                LEFT_OUT + "LLCM reading c (all against all), visible to infrared "
                "(another reading of LLCM's protocol than the paper's)",
            ),
        ),
        (
            "regdb",
            [evaluated("i2v", regdb("t2v"), **FLIPPED)],
            (LEFT_OUT + "RegDB thermal to visible (flip)",),
        ),
        (
            "regdb",
            [evaluated("i2v", regdb("t2v"), **FLIPPED), evaluated("i2v", regdb("t2v"))],
            (LEFT_OUT + "RegDB thermal to visible (flip)",),
        ),
        ("regdb", [evaluated("i2v", regdb("t2v")), evaluated("i2v", regdb("t2v", "identity"))], ()),
    ],
)
def test_the_published_figure_counts_and_others_of_its_column_are_named(
    tmp_path, dataset, evaluations, flags
):
    row = compare([written(tmp_path / "r", dataset, *evaluations)]).rows[-1]
    assert list(row.figures.values()) == [(50.0, 25.0)]
    assert row.flags == flags


@pytest.mark.parametrize(
    ("facts", "flags"),
    [
        ({"run": {"selected_on": "test"}}, ("selected on the test set",)),
        ({"stamp": "SELECTED ON THE TEST SET: optimistic."}, ("selected on the test set",)),
        ({"stamp": "NOT FINISHED and left out: split-02."}, ("NOT FINISHED and left out: split-02.",)),
        ({"stamp": ""}, ()),
        ({"run": {"trained_on": "llcm"}}, ("trained on another dataset (llcm)",)),
        ({"run": {"trained_on": "regdb"}}, ()),
    ],
)
def test_what_a_report_says_of_its_weights_is_flagged(tmp_path, facts, flags):
    one = evaluated("i2v", regdb("t2v"))
    assert compare([written(tmp_path / "r", "regdb", one, **facts)]).rows[-1].flags == flags


@pytest.mark.parametrize(
    ("counts", "flags"),
    [
        ({"identities": 206, "visible": 2060, "infrared": 2060}, ()),
        (
            {"identities": 103, "visible": 1030, "infrared": 2060},
            (
                "not RegDB's test set, so comparable with no published figure: 103 identities (published: 206), "
                "1,030 visible (published: 2,060)",
            ),
        ),
        (
            {"identities": 8, "generated": True},
            ("GENERATED data: not the published benchmark, comparable with no published row",),
        ),
    ],
)
def test_a_part_of_a_test_set_is_flagged(tmp_path, counts, flags):
    report = written(tmp_path / "r", "regdb", evaluated("i2v", regdb("t2v"))) / "report.json"
    facts = json.loads(report.read_text())
    facts["dataset"] |= counts
    report.write_text(json.dumps(facts))
    assert compare([report]).rows[-1].flags == flags


def test_nobody_is_no_identity_of_a_report(tmp_path):
    people = [Record(f"{row}.png", pid, Modality.VISIBLE) for row, pid in enumerate((4, 4, 9, NO_PID))]
    facts = dataset_facts(
        Table.from_records("csv", tmp_path, [*people, Record("i.png", 9, Modality.INFRARED)])
    )
    assert (facts["identities"], facts["visible"], facts["infrared"]) == (2, 4, 1)


def test_runs_on_data_of_ones_own_stand_side_by_side_without_published_rows(tmp_path):
    """Other test sets, and other protocols, have columns of their own."""
    one = evaluated("i2v", custom(name="csv, i2v"))
    better = {**one, "mean": {**MEAN, "rank1": 0.75}}
    for name, evaluation, fingerprint in (("a", one, "11"), ("b", better, "11"), ("c", one, "22")):
        data = {"root": "my/people", "fingerprint": fingerprint * 8}
        written(tmp_path / name, "csv", evaluation, data=data)
    found = compare([tmp_path / name for name in "abc"], tmp_path / "out")
    column, other = "csv, i2v, people 11111111", "csv, i2v, people 22222222"
    assert [row.where for row in found.rows] == ["this run"] * 3
    assert [{*row.figures} for row in found.rows] == [{column}, {column}, {other}]
    assert [row.figures[column][0] for row in found.rows[:2]] == [100 * MEAN["rank1"], 75]
    assert f"| {column} R1 | {column} mAP | {other} R1 |" in found.markdown
    assert all("Published figures" not in path.read_text() for path in found.paths)
    both = compare(
        [tmp_path / "a", written(tmp_path / "s", "sysu", evaluated("i2v", sysu(permutation=PERMUTATION)))]
    )
    assert len(both.rows) > 20
    assert column in both.rows[-2].figures


def test_runs_on_another_generated_benchmark_are_flagged(tmp_path):
    one = evaluated("i2v", sysu(permutation=PERMUTATION))
    for name, fingerprint in (("a", "11"), ("b", "22"), ("c", "11")):
        written(tmp_path / name, "sysu", one, data={"generated": True, "fingerprint": fingerprint})
    found = compare([tmp_path / name for name in "abc"])
    flag = f"another generated benchmark than that of {tmp_path / 'a'}"
    assert [flag in row.flags for row in found.rows[-3:]] == [False, True, False]
