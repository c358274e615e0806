"""Rows are configurations; each distinct one is one run, whatever number of rows shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmcnet.config import load_config, shipped
from fmcnet.data.readers import read_dataset
from fmcnet.errors import ConfigError, FmcnetError
from fmcnet.experiments.plan import Settings, data_digest, make_plan
from fmcnet.experiments.rows import STUDIES, Row, Study, chosen
from fmcnet.experiments.study import parse_rows


@pytest.fixture(scope="module")
def table(tiny_sysu):
    return read_dataset(tiny_sysu)


def planned(table, name="all", seeds=(0,), **settings):
    return make_plan(chosen(name), Settings("tiny", **settings), seeds, lambda _: table)


def test_every_table_of_the_paper_is_there_with_its_figures():
    assert set(STUDIES) == {"table2", "table3", "table4", "figure4", "figure5", "baselines"}
    paper = {
        "table2": [(57.09, 53.11), (63.16, 58.83), (65.50, 62.32), (66.34, 62.51)],
        "table3": [(58.68, 54.33), (63.96, 58.64), (64.68, 59.34), (66.34, 62.51)],
        "table4": [(63.16, 58.83), (57.78, 55.56), (62.56, 58.40), (65.61, 62.17), (66.34, 62.51)],
    }
    for name, figures in paper.items():
        assert [row.paper for row in STUDIES[name].rows] == figures
        assert len(STUDIES[name].pairs) == len(figures) - 1
    for row in STUDIES["baselines"].rows:
        assert row.source


@pytest.mark.parametrize("config", shipped())
def test_every_row_fits_every_shipped_configuration(config):
    for study in chosen("all"):
        for row in study.rows:
            assert Settings(config).config(row, 3).training.seed == 3


def test_what_rows_are_equal_is_done_once(table):
    plan = planned(table)
    for same in [("full", "md-all", "fmc-all", "fmcnet"), ("sfd", "fmc-none"), ("base", "base-tuned")]:
        assert len({plan.names[key, 0] for key in same}) == 1
    assert len({run.digest for run in plan.runs}) == len(plan.runs) == len({run.name for run in plan.runs})
    rows = [key for study in STUDIES.values() for key in (row.key for row in study.rows)]
    assert len(plan.runs) == 18 < len(rows)
    assert sorted(key for run in plan.runs for key in run.rows) == sorted(set(rows))


def test_a_run_has_one_name_whichever_study_asks_for_it(table):
    names = {planned(table, name).names[key, 0] for name, key in (("table2", "full"), ("table4", "fmc-all"))}
    assert len(names) == 1
    assert names.pop().startswith("full-seed0-")


def test_seeds_settings_and_data_make_other_runs(table, tmp_path):
    one = planned(table, "table2")
    assert len(planned(table, "table2", seeds=(0, 1)).runs) == 8
    other = planned(table, "table2", overrides=("training.lr=0.001",))
    assert not {run.digest for run in one.runs} & {run.digest for run in other.runs}
    assert data_digest(table) == data_digest(table)
    moved = replace(table, root=tmp_path)  # the same names, another world
    (tmp_path / "generated.json").write_text('{"seed": 1}')
    assert data_digest(moved) != data_digest(table)


def test_all_rows_have_one_budget(table):
    for steps, shape in ((20, (4, 5)), (7, (1, 7)), (5, (1, 5))):
        for run in planned(table, budget=steps).runs:
            assert (run.config.training.epochs, run.config.training.steps_per_epoch) == shape
    images = {r.config.data.identities * r.config.data.images for r in planned(table).runs}
    assert len(images) == 1
    with pytest.raises(ConfigError, match="a budget of 0 steps"):
        Settings("tiny", budget=0).config()


def test_both_directions_are_judged_and_a_rows_settings_win(table):
    plan = planned(table, "table2", overrides=("model.variant=full", "training.lr=0.5"))
    assert {run.config.evaluation.direction for run in plan.runs} == {"both"}
    assert [run.config.model.variant for run in plan.runs] == ["base", "sfd", "fmc", "full"]
    assert {run.config.training.lr for run in plan.runs} == {0.5}


def test_agw_has_its_features_and_its_loss():
    config = Settings("generated").config(chosen("baselines")[0].row("agw"))
    model = config.model
    assert (model.normalization, model.pooling, model.neck) == ("none", "gem", True)
    assert config.losses.wrt == 3
    assert config.model.variant == "base"
    assert load_config("generated").losses.wrt == 0


def test_faults_of_a_row_name_the_setting(table):
    study = Study("odd", "odd", (Row("odd", "odd", ("model.variant=huge",)),), ())
    with pytest.raises(ConfigError, match=r"model\.variant"):
        make_plan((study,), Settings("tiny"), (0,), lambda _: table)
    with pytest.raises(FmcnetError, match="unknown study 'table9': choose table2"):
        chosen("table9")


def test_only_some_rows():
    study = STUDIES["baselines"].only(("fmcnet", "agw", "base"))
    assert [row.key for row in study.rows] == ["agw", "fmcnet"]
    assert study.pairs == (("fmcnet", "agw"),)
    assert STUDIES["table2"].only(()) == STUDIES["table2"]
    assert parse_rows("base, full") == ("base", "full")
    with pytest.raises(FmcnetError, match="--rows bas: no such row; there are base, sfd"):
        parse_rows("bas")
