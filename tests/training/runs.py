"""What the tests of runs share: the command line in processes of its own, and what a run left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from fmcnet.models.checkpoint import weights_digest
from fmcnet.training.loggers import read_log
from tests import forked

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def draws(output, labels):
    """A loss that takes from the process's random numbers, which a resume must restore."""
    return (output.visible.shared * torch.rand_like(output.visible.shared)).mean()


def start(*arguments, processes=1):
    """Begin the `fmcnet` command, or a job of torchrun; standard output and error together."""
    if processes == 1:
        return forked.Running(*arguments, together=True)
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "fmcnet", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process, timeout=120):
    """Until `condition()` or the process ends; whether the condition came true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            return bool(condition())
        time.sleep(0.01)
    return True


def left_by(folder):
    """What two runs must have in common, bit for bit: the weights (as `fmcnet info` digests them), step, log."""
    folder = Path(folder)
    step = json.loads((folder / "model.json").read_text())["step"]
    return weights_digest(folder / "model.safetensors"), step, read_log(folder)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")
