"""Rows are configurations; each distinct one is one run, whatever number of rows shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fmcnet.config import load_config, shipped
from fmcnet.data.readers import read_dataset
from fmcnet.errors import ConfigError, FmcnetError
from fmcnet.experiments.rows import STUDIES, Study, TableRow, parse_rows, select_studies
from fmcnet.experiments.study import StudyOptions, data_digest, plan_runs, run_digest


@pytest.fixture(scope="module")
def table(tiny_sysu):
    return read_dataset(tiny_sysu)


def options(config="tiny", name="all", **settings):
    return StudyOptions(name, Path("study"), config=config, **settings)


def run_of(runs, key):
    """The one run that shows a row."""
    (run,) = (run for run in runs if key in run.rows)
    return run


def planned(table, name="all", seeds=(0,), **settings):
    return plan_runs(
        select_studies(name), options(name=name, seeds=seeds, **settings), dict.fromkeys(seeds, table)
    )


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
    for study in select_studies("all"):
        for row in study.rows:
            assert options(config).row_config(row, 3).training.seed == 3


def test_what_rows_are_equal_is_done_once(table):
    runs = planned(table)
    for same in [("full", "md-all", "fmc-all", "fmcnet"), ("sfd", "fmc-none"), ("base", "base-tuned")]:
        assert len({run_of(runs, key).name for key in same}) == 1
    assert len({run.digest for run in runs}) == len(runs) == len({run.name for run in runs})
    rows = [key for study in STUDIES.values() for key in (row.key for row in study.rows)]
    assert len(runs) == 18 < len(rows)
    assert sorted(key for run in runs for key in run.rows) == sorted(set(rows))


def test_a_run_has_one_name_whichever_study_asks_for_it(table):
    names = {
        run_of(planned(table, name), key).name for name, key in (("table2", "full"), ("table4", "fmc-all"))
    }
    assert len(names) == 1
    assert names.pop().startswith("full-seed0-")


def test_seeds_settings_and_data_make_other_runs(table, tmp_path):
    one = planned(table, "table2")
    assert len(planned(table, "table2", seeds=(0, 1))) == 8
    other = planned(table, "table2", overrides=("training.lr=0.001",))
    assert not {run.digest for run in one} & {run.digest for run in other}
    assert data_digest(table) == data_digest(table)
    moved = replace(table, root=tmp_path)  # the same names, another world
    (tmp_path / "generated.json").write_text('{"seed": 1}')
    assert data_digest(moved) != data_digest(table)


def test_a_finished_run_keeps_the_digest_of_the_version_that_trained_it():
    """Digests that the study of commit d35020e wrote; a setting that goes or comes at its default changes none."""
    wanted = {
        "base": "b198856e5b3710c7", "full": "8454a61dd09d39b5", "agw-caj": "8576f6f9756b7c5b",
        "fmcnet-plus": "5803dc39b2e3ee67",
    }  # fmt: skip
    then = {"agw-caj": ("losses.wrt=3",)}  # weights at that commit
    rows = {
        row.key: replace(
            row,
            overrides=(
                *row.overrides,
                "model.arch=resnet18",
                "model.specific_weight=0.5",
                *then.get(row.key, ()),
            ),
        )
        for study in STUDIES.values()
        for row in study.rows
    }
    for key, digest in wanted.items():
        assert run_digest(options(budget=2).row_config(rows[key], 1), "0123456789abcdef") == digest


def test_all_rows_have_one_budget(table):
    for steps, shape in ((20, (4, 5)), (7, (1, 7)), (5, (1, 5))):
        for run in planned(table, budget=steps):
            assert (run.config.training.epochs, run.config.training.steps_per_epoch) == shape
    images = {r.config.data.identities * r.config.data.images for r in planned(table)}
    assert len(images) == 1
    with pytest.raises(ConfigError, match="a budget of 0 steps"):
        options(budget=0).row_config()


def test_both_directions_are_judged_and_a_rows_settings_win(table):
    runs = planned(table, "table2", overrides=("model.variant=full", "training.lr=0.5"))
    assert {run.config.evaluation.direction for run in runs} == {"both"}
    assert [run.config.model.variant for run in runs] == ["base", "sfd", "fmc", "full"]
    assert {run.config.training.lr for run in runs} == {0.5}


def test_agw_has_its_features_and_its_loss():
    config = options("generated").row_config(select_studies("baselines")[0].row("agw"))
    model = config.model
    assert (model.normalization, model.pooling, model.neck) == ("none", "gem", True)
    assert config.losses.wrt == 12
    assert config.model.variant == "base"
    assert load_config("generated").losses.wrt == 0


def test_faults_of_a_row_name_the_setting(table):
    study = Study("odd", "odd", (TableRow("odd", "odd", ("model.variant=huge",)),), ())
    with pytest.raises(ConfigError, match=r"model\.variant"):
        plan_runs((study,), options(seeds=(0,)), {0: table})
    with pytest.raises(FmcnetError, match="unknown study 'table9': choose table2"):
        select_studies("table9")


def test_only_some_rows():
    study = STUDIES["baselines"].only(("fmcnet", "agw", "base"))
    assert [row.key for row in study.rows] == ["agw", "fmcnet"]
    assert study.pairs == (("fmcnet", "agw"),)
    assert STUDIES["table2"].only(()) == STUDIES["table2"]
    assert parse_rows("base, full") == ("base", "full")
    with pytest.raises(FmcnetError, match="--rows bas: no such row; there are base, sfd"):
        parse_rows("bas")
