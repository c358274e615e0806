"""Which published column a report's evaluations stand in, and what is flagged."""

from __future__ import annotations

import json

import pytest

from fmcnet.evaluation.protocols import Protocol, custom, llcm, regdb, sysu
from fmcnet.experiments.compare import compare

MEAN = {"rank1": 0.5, "mAP": 0.25}
PERMUTATION = "rand_perm_cam.mat"


def written(folder, dataset: str, direction: str, protocol: Protocol, form: str):
    """A report of one evaluation: "now" as written today, "0.1.0" without settings, "reworded" by other sentences."""
    one = {
        "direction": direction,
        "protocol": "Another sentence." if form == "reworded" else protocol.sentence(),
        "settings": protocol.settings,
        "trials": [MEAN] * protocol.draw.trials,
        "mean": MEAN,
    }
    if form == "0.1.0":
        del one["settings"]
    run = {"selected_on": "last", "evaluations": [one]}
    folder.mkdir()
    (folder / "report.json").write_text(
        json.dumps({"dataset": {"name": dataset}, "splits": 10, "runs": {"a": run}})
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
        ("csv", "i2v", custom(name="csv, i2v"), None, None),
    ],
)
def test_the_column_and_the_flags_of_an_evaluation(
    tmp_path, dataset, direction, protocol, column, flags, form
):
    row = compare([written(tmp_path / "r", dataset, direction, protocol, form)]).rows[-1]
    if column is None:
        assert row.figures == {}
        assert [flag.partition(":")[0] for flag in row.flags] == ["not a published setting, left out"]
    else:
        assert row.figures == {column: (50.0, 25.0)}
        assert row.flags == flags
    assert compare([tmp_path / "r" / "report.json"]).rows[-1].figures == row.figures
