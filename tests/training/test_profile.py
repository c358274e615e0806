"""`--profile`: what it writes, that its numbers add up, and that it changes no result."""

from __future__ import annotations

import json
import re

import pytest

from fmcnet.config import load_config
from fmcnet.training import profile
from fmcnet.training.loggers import read_log
from fmcnet.training.trainer import train
from tests.cli import run_command

SETTINGS = ["model.variant=base", "training.validate_every=0", "training.epochs=1"]


@pytest.mark.parametrize("steps", [3, 5])  # it ends before the profile does, and after
def test_a_profiled_training_ends_with_the_same_weights(tiny_sysu, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(profile, "WARM", 1)
    monkeypatch.setattr(profile, "STEPS", 3)
    settings = [*SETTINGS, f"training.steps_per_epoch={steps}"]
    train(load_config("tiny", settings), tiny_sysu, tmp_path / "plain", progress=False)
    run = tmp_path / "run"
    command = [
        "train",
        "--config",
        "tiny",
        "--data",
        tiny_sysu,
        "--out",
        run,
        "--profile",
        "--json",
        *settings,
    ]
    result = run_command(*command, code=None)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == steps
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert read_log(run) == read_log(tmp_path / "plain")

    watched = min(profile.STEPS, steps - profile.WARM)
    trace = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    spans = [event["name"] for event in trace if event.get("cat") == "user_annotation"]
    for phase in profile.PHASES:
        assert spans.count(f"fmcnet: {phase}") == watched
    facts = json.loads((run / "profile" / "where.json").read_text())
    assert (facts["steps"], facts["device"]) == (watched, "cpu")
    assert list(facts["phases_ms"]) == list(profile.PHASES)
    spent = dict.fromkeys(profile.PHASES, 0.0)
    for event in trace:
        if event.get("cat") == "user_annotation" and event["name"].startswith("fmcnet: "):
            spent[event["name"].removeprefix("fmcnet: ")] += event["dur"] / 1e3 / watched
    for phase, row in facts["phases_ms"].items():
        assert row["host"] == pytest.approx(spent[phase], rel=0.05, abs=0.05)
    table = (run / "profile" / "where.md").read_text()
    assert f"({watched} steps, cpu)" in table
    assert "Self CPU" in table  # PyTorch's own table of the operations
    assert next(iter(facts["kernels_ms"])) in table
    shares = [float(share) for share in re.findall(r"([\d.]+) % \|$", table, flags=re.MULTILINE)]
    assert len(shares) == len(profile.PHASES)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert min(shares) >= 0


def test_a_training_too_short_for_a_profile_says_so(tiny_sysu, tmp_path, caplog):
    config = load_config("tiny", [*SETTINGS, "training.steps_per_epoch=3"])
    train(config, tiny_sysu, tmp_path / "run", progress=False, profile=True)
    assert "no profile: it takes more than 3 steps" in caplog.text
    assert not list((tmp_path / "run" / "profile").iterdir())
    assert (tmp_path / "run" / "model.safetensors").exists()
