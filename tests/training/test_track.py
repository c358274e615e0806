"""Trackers: what they are given, over a stop and a resume, and what is said where one is missing."""

from __future__ import annotations

import importlib

import pytest

from fmcnet.config import load_config
from fmcnet.errors import ConfigError, MissingDependencyError
from fmcnet.training import trainer as loop
from fmcnet.training.loggers import WandB, check_trackers, read_log
from fmcnet.training.train_step import TrainStep
from fmcnet.training.trainer import train
from tests.cli import run_command


class Own:
    """Keeps what it is told."""

    def __init__(self):
        self.told, self.closed = [], 0

    def log(self, step, values):
        self.told.append((step, dict(values)))

    def close(self):
        self.closed += 1


SHORT = ["training.steps_per_epoch=2", "training.checkpoint_every=2"]  # 4 steps


def broken(monkeypatch, run, data, at, **options):
    """A training that ends before step `at` + 1 without a word."""
    step = TrainStep.step

    def stopping(self, batches, number):
        if number == at:
            raise RuntimeError("power cut")
        step(self, batches, number)

    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "step", stopping)
        with pytest.raises(RuntimeError, match="power cut"):
            train(load_config("tiny", SHORT), data, run, progress=False, **options)


def logged(run):
    """What the log says, as a tracker is told it."""
    keys = ("step", "validated_step", "epoch")
    return [
        (r.get("step") or r["validated_step"], {k: v for k, v in r.items() if k not in keys})
        for r in read_log(run)
    ]


def test_a_tracker_of_ones_own_is_told_what_the_log_says_over_a_stop_and_a_resume(
    tiny_sysu, tmp_path, monkeypatch
):
    own, run = Own(), tmp_path / "run"
    broken(monkeypatch, run, tiny_sysu, 2, trackers=[own])  # right after a checkpoint
    assert own.closed == 1
    train(load_config("tiny", SHORT), tiny_sysu, run, resume=True, progress=False, trackers=[own])
    assert own.told == logged(run)
    assert [step for step, values in own.told if "loss" in values] == [1, 2, 3, 4]
    assert [step for step, values in own.told if "mAP" in values] == [2, 4]
    assert own.closed == 2


def test_a_tracker_that_cannot_write_does_not_end_a_training(tiny_sysu, tmp_path, caplog):
    class Full(Own):
        def log(self, *_):
            raise OSError(28, "No space left on device")

        close = log

    own = Own()
    config = load_config("tiny", [*SHORT, "training.epochs=1"])
    train(config, tiny_sysu, tmp_path / "run", progress=False, trackers=[Full(), own])
    assert "Full: No space left on device" in caplog.text
    assert own.told == logged(tmp_path / "run")


@pytest.mark.parametrize("stop_at", [1, 3])
def test_tensorboard_holds_the_log_without_the_steps_that_a_resume_repeats(
    tiny_sysu, tmp_path, monkeypatch, stop_at
):
    """Killed before the first checkpoint, and after one."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    after = loop.Trainer._after_step

    def reading_every_step(self, done, *rest):
        self._write_log(done)
        after(self, done, *rest)

    monkeypatch.setattr(loop.Trainer, "_after_step", reading_every_step)
    broken(monkeypatch, run, tiny_sysu, stop_at, trackers=["tensorboard"])
    assert logged(run)[-1][0] == stop_at > stop_at // 2 * 2  # the last checkpoint: steps after it come again
    train(
        load_config("tiny", SHORT), tiny_sysu, run, resume=True, progress=False, trackers=["tensorboard"] * 2
    )
    shown = events.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    wanted = {}
    for step, values in logged(run):
        for name, value in values.items():
            wanted.setdefault(name.replace(" ", "_"), []).append((step, pytest.approx(value, rel=1e-6)))
    assert set(shown.Tags()["scalars"]) == set(wanted)
    for name, points in wanted.items():
        assert [(event.step, event.value) for event in shown.Scalars(name)] == points


def test_wandb_keeps_a_run_offline_and_a_resume_goes_on_in_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = set()
    for number in range(2):
        tracker = WandB(tmp_path / "run", load_config("tiny"))
        names.add((tracker._run.project, tracker._run.name, tracker._run.id))
        tracker.log(number + 1, {"loss": 0.123456 + number})
        tracker.close()
        newest = max((tmp_path / "run" / "wandb").glob("*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
        assert str(0.123456 + number).encode() in newest.read_bytes()
    assert len(names) == 1
    assert names.pop()[:2] == ("fmcnet", "run")


def test_an_unknown_tracker_is_refused_before_anything_is_written(tiny_sysu, tmp_path):
    command = [
        "train",
        "--config",
        "tiny",
        "--data",
        tiny_sysu,
        "--out",
        tmp_path / "run",
        "--track",
        "excel",
    ]
    result = run_command(*command, code=None)
    assert result.exit_code == 2
    assert "no tracker 'excel': choose of tensorboard, wandb" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no tracker 'excel'"):
        check_trackers(["tensorboard", "excel"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "track"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_names_the_extra(tiny_sysu, tmp_path, monkeypatch, name, extra):
    real = importlib.import_module

    def without(module, *rest):
        if module.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named '{module}'")
        return real(module, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingDependencyError, match=rf"needs {name}.*pip install 'fmcnet\[{extra}\]'"):
        train(load_config("tiny"), tiny_sysu, tmp_path / "run", progress=False, trackers=[name])
    assert not (tmp_path / "run").exists()
