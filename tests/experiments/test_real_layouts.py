"""The shipped configurations of the real datasets, dry: trees of their layouts with their numbers of identities.

Nothing of the configuration is changed but what makes a step heavy: image size, width, batch and number of steps.
"""

from __future__ import annotations

import pytest

from fmcnet.config import load_config
from fmcnet.data.loader import total_steps
from fmcnet.data.readers import read_dataset
from fmcnet.evaluation.evaluate_model import evaluate_model
from fmcnet.experiments.rows import select_studies
from fmcnet.experiments.study import StudyOptions, plan_runs
from fmcnet.training import trainer
from tests.data import trees

LIGHT = [
    "model.pretrained=null", "model.width=8", "data.height=32", "data.width=16", "data.identities=2", "data.images=2",
    "training.epochs=1", "training.steps_per_epoch=1", "evaluation.direction=both",
]  # fmt: skip
LABELS = {"sysu": (395, 96), "regdb": (206, 206), "llcm": (713, 351)}
"""Identities to train on (SYSU-MM01: train and val) and to test on."""
IDENTITIES = {
    "sysu": {"train": range(1, 297), "val": range(297, 396), "test": range(396, 492)},
    "regdb": {"train": range(206), "test": range(206, 412)},
    "llcm": {"train": range(1, 714), "test": range(714, 1065)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELS)
def test_a_configuration_trains_and_judges_on_its_layout(name, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "STATISTICS_BATCHES", 4)
    monkeypatch.setattr(trees, f"{name.upper()}_IDS", IDENTITIES[name])
    more = {"sysu": {"ids": IDENTITIES[name]}, "llcm": {"visible": (1,), "infrared": (2,)}}
    getattr(trees, name)(tmp_path / "data", images=1, **more.get(name, {}))
    config = load_config(name, LIGHT)
    table = read_dataset(tmp_path / "data", layout=config.data.layout)
    assert total_steps(load_config(name, ["model.pretrained=null"]), table) > 80
    summary = trainer.train(config, table, tmp_path / "run", device="cpu", progress=False)
    assert summary.identities == LABELS[name][0]
    judged = evaluate_model(tmp_path / "run", table, device="cpu", progress=False)
    assert len(set(judged.table.pid.tolist())) == LABELS[name][1]
    assert [one.direction for one in judged.evaluations] == ["i2v", "v2i"]
    assert judged.encoder.model.variant == "full"
    options = StudyOptions("all", tmp_path, config=name, seeds=(0,))
    runs = plan_runs(select_studies("all"), options, {0: table})
    assert len(runs) == 18
    assert {run.config.model.pretrained for run in runs} == {"imagenet"}
    assert {run.config.model.arch for run in runs} == {"resnet50"}
