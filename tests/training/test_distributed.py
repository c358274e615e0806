"""Two processes under torchrun: the batch of one with twice the identities, gradients averaged, exact resume."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fmcnet.training.log import read_log

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun")


def torchrun(*arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "fmcnet",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_two_ranks_train_and_resume(tiny_sysu, tmp_path):
    settings = ["data.identities=3", "training.validate_every=0"]

    def train(out, *more):
        # A rank sometimes aborts when gloo shuts down; the run is judged by what it wrote.
        done = torchrun(
            "train",
            "--config",
            "tiny",
            "--data",
            tiny_sysu,
            "--out",
            out,
            "--device",
            "cpu",
            *settings,
            *more,
        )
        return done.stdout + done.stderr

    whole, run = tmp_path / "whole", tmp_path / "run"
    said = train(whole)
    assert (whole / "model.safetensors").exists(), said
    assert [r["step"] for r in read_log(whole)] == list(range(1, 11))
    train(run)
    (run / "model.safetensors").unlink()
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    said = train(run, "--resume")
    a, b = load_file(whole / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a), said
    assert read_log(run) == read_log(whole)


def test_averaged_gradients_are_the_mean(tmp_path):
    code = """
import torch, torch.distributed as dist
from fmcnet.parallel import agree, average_gradients
from fmcnet.runtime import runtime
with runtime("cpu") as place:
    p = [torch.nn.Parameter(torch.zeros(size)) for size in ((2, 3), (4,), (1,))]
    p[0].grad = torch.full((2, 3), float(place.rank)); p[1].grad = torch.arange(4.0) * (place.rank + 1)
    average_gradients(p, place.world)
    assert torch.equal(p[0].grad, torch.full((2, 3), 0.5)) and torch.equal(p[1].grad, torch.arange(4.0) * 1.5)
    assert p[2].grad is None and agree([place.rank == 1, False], place) == [True, False]
    open(f"{place.rank}.ok", "w").close()
"""
    (tmp_path / "check.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "check.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (tmp_path / "0.ok").exists(), done.stderr
    assert (tmp_path / "1.ok").exists(), done.stderr
