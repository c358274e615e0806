"""Checkpoints: what they hold, how many are kept, and what happens when they are damaged."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fmcnet.config import load_config
from fmcnet.distributed import DistributedContext
from fmcnet.errors import CheckpointError
from fmcnet.models.build import build_model
from fmcnet.models.card import ModelCard
from fmcnet.training import trainer as loop
from fmcnet.training.checkpointing import Checkpointer, checkpoints
from fmcnet.training.loggers import StepLogger, read_log
from fmcnet.training.run_folder import MAY_CHANGE
from fmcnet.training.selection import ModelSelection
from fmcnet.training.train_step import TrainStep
from tests.training.runs import draws, weights

SETTINGS = (
    "training.epochs=2",
    "training.steps_per_epoch=4",
    "training.checkpoint_every=2",
    "training.checkpoint_minutes=0",
    "training.keep=3",
    "training.select=val",
)


def train(data, out, *more, **options):
    options = {"progress": False, "terms": {"draws": draws}, **options}
    return loop.train(load_config("tiny", [*SETTINGS, *more]), data, out, **options)


def names(run):
    return [path.name for path in checkpoints(run)]


def assert_same_run(a, b):
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert read_log(a) == read_log(b)


class PowerCut(BaseException):
    """What nobody catches."""


class Stop:
    """A tracker that stops a training after a step, as a power cut would."""

    def __init__(self, step):
        self.step = step

    def log(self, step, values):
        if step == self.step:
            raise PowerCut("power cut")

    def close(self):
        pass


@pytest.fixture(scope="module")
def whole(tiny_sysu, tmp_path_factory):
    """A run that nobody touched: 8 steps."""
    out = tmp_path_factory.mktemp("state") / "whole"
    train(tiny_sysu, out)
    return out


@pytest.fixture(scope="module")
def cut(tiny_sysu, tmp_path_factory):
    """The same run cut off after step 7; checkpoints of 2, 4 and 6."""
    out = tmp_path_factory.mktemp("state") / "cut"
    with pytest.raises(PowerCut):
        train(tiny_sysu, out, "training.log_every=1", trackers=[Stop(7)])
    assert names(out) == ["step-000002", "step-000004", "step-000006"]
    return out


@pytest.fixture
def run(cut, tmp_path):
    return shutil.copytree(cut, tmp_path / "run")


def steps(run):
    return [int(name.removeprefix("step-")) for name in names(run)]


def test_by_steps(tiny_sysu, whole, tmp_path):
    """By time, and how many are kept: test_settings_that_may_change_on_resume_change_nothing."""
    assert steps(whole) == [4, 6, 8]
    train(tiny_sysu, tmp_path / "run", "training.checkpoint_every=100")
    assert steps(tmp_path / "run") == [8]
    assert_same_run(tmp_path / "run", whole)  # when they are written changes nothing


def test_what_a_checkpoint_holds(cut):
    folder = checkpoints(cut)[-1]
    stored, facts = load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text())
    trained = load_file(folder / "model.safetensors")
    card = json.loads((folder / "model.json").read_text())
    model = build_model(load_config("tiny", list(SETTINGS)).model, len(card["pids"]))
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    main = [p for name, p in trainable if ".judge_" not in name]
    judge = [p for name, p in trainable if ".judge_" in name]
    for name, players in (("main", main), ("judge", judge)):
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            found = [v for k, v in stored.items() if k.startswith(f"{name}.") and k.endswith(f".{moment}")]
            assert len(found) == len(players), (name, moment)
            assert moment == "step" or sum(v.numel() for v in found) == sum(p.numel() for p in players)
    assert trained.keys() == model.state_dict().keys()
    assert {key.split(".")[0] for key in stored} == {"main", "judge", "rank0"}
    assert stored["rank0.rng"].shape == torch.get_rng_state().shape
    assert (facts["step"], facts["steps"], facts["processes"], card["step"]) == (6, 8, 1, 6)
    assert facts["selection"]["step"] == 4
    assert set(facts["digests"]) == {"model.safetensors", "model.json", "state.safetensors"}
    assert "scaler" in facts


def flip(path):
    """Another digit in the last number of a JSON file, or another bit in the middle of a binary one."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    if path.name == "state.json":
        at = content.index(b'"step": 6') + 8
    content[at] ^= 1
    path.write_bytes(bytes(content))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def gone(path):
    path.unlink()


ONWARD = [("model.safetensors", flip), ("state.safetensors", gone), ("state.json", cut_short)]
"""Of what was written otherwise, is missing and cannot be parsed, one trains on to the end."""


def stop_after_loading(monkeypatch):
    """A training ends when it has chosen a checkpoint, and names its step."""

    def load(_, facts, tensors):
        raise PowerCut(facts["step"])

    monkeypatch.setattr(Checkpointer, "_load_state", load)


@pytest.mark.parametrize("damage", [flip, cut_short, gone], ids=["flip", "short", "gone"])
@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "state.safetensors", "state.json"])
def test_a_damaged_newest_is_passed_over_for_the_one_before(
    tiny_sysu, whole, run, monkeypatch, caplog, file, damage
):
    caplog.set_level(logging.WARNING, "fmcnet")
    damage(run / "checkpoints" / "step-000006" / file)
    on = (file, damage) in ONWARD
    if on:
        assert train(tiny_sysu, run, resume=True).resumed_from == 4
        assert_same_run(run, whole)
    else:
        stop_after_loading(monkeypatch)
        with pytest.raises(PowerCut, match="4"):
            train(tiny_sysu, run, resume=True)
    [said] = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert "step-000006 is damaged" in said
    assert "going back to the one before, step-000004" in said


def in_the_way(path):
    path.unlink()
    path.mkdir()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [in_the_way, empty, "denied", "I/O"])
def test_a_newest_that_cannot_be_read_is_passed_over(tiny_sysu, run, monkeypatch, caplog, file, damage):
    newest = run / "checkpoints" / "step-000006"
    if callable(damage):
        damage(newest / file)
    else:
        number = {"denied": 13, "I/O": 5}[damage]
        opened = io.open

        def refuse(path, *args, **options):
            if str(path) == str(newest / file):
                raise OSError(number, os.strerror(number), str(path))
            return opened(path, *args, **options)

        monkeypatch.setattr(io, "open", refuse)

    stop_after_loading(monkeypatch)
    caplog.set_level(logging.WARNING, "fmcnet")
    with pytest.raises(PowerCut, match="4"):
        train(tiny_sysu, run, resume=True)
    [said] = [message for message in caplog.messages if "checkpoint" in message]
    word = "is damaged" if damage is empty else "cannot be read"
    assert f"step-000006 {word}" in said
    assert "going back to the one before, step-000004" in said


def test_an_unreadable_folder_of_checkpoints_is_not_taken_for_none(run):
    (run / "checkpoints").rename(run / "elsewhere")
    (run / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="checkpoints cannot be read: Not a directory"):
        checkpoints(run)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"config\.yaml is empty"),
        ("\0" * 50, r"config\.yaml is damaged"),
        ("training: [", r"config\.yaml is damaged"),
        ("training: 5", r"config\.yaml is damaged"),
        ("2026-13-45", r"config\.yaml holds no sections"),
        ("half", r"config\.yaml does not hold .*training\.epochs"),
        (None, r"config\.yaml is missing"),
    ],
)
def test_damaged_settings_of_a_run_are_named_as_that(tiny_sysu, run, content, match):
    stored = run / "config.yaml"
    whole = stored.read_text()
    stored.unlink()
    if content is not None:
        stored.write_text(whole[: whole.index("training:")] if content == "half" else content)
    with pytest.raises(CheckpointError, match=match) as caught:
        train(tiny_sysu, run, resume=True)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_two_damaged_ones(tiny_sysu, whole, run):
    for path in (run / "checkpoints" / "step-000006").iterdir():
        path.unlink()
    flip(run / "checkpoints" / "step-000004" / "state.safetensors")
    assert train(tiny_sysu, run, resume=True).resumed_from == 2
    assert_same_run(run, whole)


def test_all_damaged_is_one_clear_error(tiny_sysu, run):
    for folder in checkpoints(run):
        cut_short(folder / "state.safetensors")
    with pytest.raises(
        CheckpointError, match=r"step-000002 is damaged .*there is no other checkpoint"
    ) as raised:
        train(tiny_sysu, run, resume=True)
    assert "\n" not in str(raised.value)
    assert len(checkpoints(run)) == 3


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tiny_sysu, whole, run):
    """After going back to 4, one is written at 5 while the damaged 6 still lies there, and one only is kept."""
    flip(run / "checkpoints" / "step-000006" / "state.safetensors")
    every = ["training.keep=1", "training.checkpoint_every=5", "training.log_every=1"]
    with pytest.raises(PowerCut):
        train(tiny_sysu, run, *every, resume=True, trackers=[Stop(6)])
    assert names(run) == ["step-000005"]
    assert train(tiny_sysu, run, *every, resume=True).resumed_from == 5
    assert_same_run(run, whole)


def test_best_weights_are_kept_as_long_as_a_checkpoint_names_them(tiny_sysu, whole):
    named = {json.loads((p / "state.json").read_text())["selection"]["step"] for p in checkpoints(whole)}
    kept = {int(path.name.removeprefix("best-")) for path in (whole / "checkpoints").glob("best-*")}
    assert kept == named


@pytest.mark.parametrize("change", MAY_CHANGE)
def test_settings_that_may_change_on_resume_change_nothing(tiny_sysu, whole, run, tmp_path, change):
    other = {"training.checkpoint_minutes": "1e-6", "data.cache": str(tmp_path / "cache")}.get(change, "1")
    train(tiny_sysu, run, f"{change}={other}", resume=True)
    assert_same_run(run, whole)
    every_step = change in ("training.checkpoint_every", "training.checkpoint_minutes")
    assert steps(run) == ([8] if change == "training.keep" else [6, 7, 8] if every_step else [4, 6, 8])


@pytest.mark.parametrize("change", ["training.lr=0.5", "model.neck=false", "augment.flip=0.1"])
def test_other_settings_are_refused(tiny_sysu, run, change):
    with pytest.raises(CheckpointError, match=change.partition("=")[0].replace(".", r"\.")):
        train(tiny_sysu, run, change, resume=True)


@pytest.mark.parametrize("change", ["losses.md=0", "model.neck=false"])
def test_settings_that_are_not_the_checkpoints_are_refused(tiny_sysu, run, change):
    """Where config.yaml was written anew, as the message for a missing one says."""
    config = load_config(run / "config.yaml", [change])
    (run / "config.yaml").write_text(config.to_yaml())
    key = change.partition("=")[0]
    with pytest.raises(
        CheckpointError, match=rf"cannot be resumed exactly: .* {key} \(\S+ there, \S+ now\)\. Give"
    ):
        loop.train(config, tiny_sysu, run, resume=True, progress=False)


def test_the_scaler_comes_back(tmp_path):
    """No CPU trains in float16: the scaler of a GPU's training, put into a training here."""
    config = load_config("tiny", ["model.width=2", "training.validate_every=0"])
    ctx = DistributedContext(torch.device("cpu"))

    def checkpointer(train_step):
        card, log = ModelCard(config, (0, 1, 2, 3), "none", 3), StepLogger(tmp_path, config, 10)
        selection = ModelSelection(config, None, tmp_path, ctx)
        return Checkpointer(tmp_path, ctx, train_step, card, selection, log, {"steps": 10})

    first, second = (TrainStep(config, build_model(config.model, 4), ctx, 4, 10) for _ in range(2))
    for one in (first, second):
        one.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10, growth_interval=7)
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 2.0**7, "_growth_tracker": 5})
    checkpointer(first).save(3, must=True)
    assert checkpointer(second).restore() == 3
    assert second.scaler.state_dict() == first.scaler.state_dict()
    assert second.scaler.state_dict()["scale"] == 2.0**7


def test_a_checkpoint_whose_discriminators_trained_otherwise_is_refused_in_a_line(
    tiny_sysu, tmp_path, monkeypatch
):
    """As those of 0.1.0: its SGD or AdamW has other states, and to go on with them would not be exact."""
    made = Checkpointer.__init__

    def as_0_1_0(self, *parts):
        made(self, *parts[:-1], {key: value for key, value in parts[-1].items() if key != "discriminators"})

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "__init__", as_0_1_0)
        with pytest.raises(PowerCut):
            train(tiny_sysu, tmp_path / "run", trackers=[Stop(5)])
    with pytest.raises(CheckpointError, match="another optimiser of the discriminators") as caught:
        train(tiny_sysu, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
