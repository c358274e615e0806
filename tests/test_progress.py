"""The line of long work: what matters stays at any width, and elsewhere than on a terminal an epoch has a line."""

from __future__ import annotations

import logging

import pytest

from fmcnet.config import load_config
from fmcnet.progress import Progress
from fmcnet.training.trainer import train

NOTE = "loss 29.18, 1234 images/s, 1.5 GiB"


@pytest.mark.parametrize(("columns", "shown"), [(56, "loss"), (80, NOTE[:20]), (120, NOTE), (170, NOTE)])
def test_step_share_and_time_left_stay_at_every_width(columns, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress("training", 8000, show=True) as bar:
        bar.advance(NOTE, count=2000)
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(part in last for part in ("training", "2000/8000", "25%", "left", shown)), last
    assert len(last.rstrip()) <= columns


def test_on_a_narrow_terminal_the_loss_stays_beside_hours_and_many_steps(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    with Progress("training", 120_000, show=True) as bar:
        bar.advance(NOTE, count=20_000)
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(part in last for part in ("20000/120000", "17%", "left loss 29.18")), last


def test_without_a_terminal_each_epoch_has_a_line_and_every_term_is_for_v(tiny_sysu, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "fmcnet")
    settings = [
        "training.epochs=2",
        "training.steps_per_epoch=1",
        "training.validate_every=0",
        "data.identities=3",
    ]
    train(load_config("tiny", [*settings, "model.width=4"]), tiny_sysu, tmp_path / "run", device="cpu")
    lines = [one.getMessage() for one in caplog.records if one.name == "fmcnet.progress"]
    first, second = (line for line in lines if line.startswith("training"))
    assert first.startswith("training 1/2, 50 %, 0:0")
    assert (first[-11:], second[-11:]) == (", epoch 1/2", ", epoch 2/2")
    assert ", loss " in first
    assert "id_shared" not in first
    terms = [one for one in caplog.records if one.levelno == logging.DEBUG and "step 2:" in one.getMessage()]
    assert "id_shared" in terms[0].getMessage()
