"""kill -9 at any moment, then resume: the end is that of a run nobody touched, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from fmcnet.config import load_config
from fmcnet.models.checkpoint import weights_digest
from fmcnet.training import trainer as loop
from fmcnet.training.loggers import read_log
from tests import forked
from tests.training import runs

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork, /proc"),
    pytest.mark.slow,
]

SETTINGS = [
    "training.checkpoint_every=3",
    "training.epochs=4",
    "training.steps_per_epoch=5",
    "training.log_every=1",
]


def train(data, out, *more):
    options = {"resume": True, "device": "cpu", "progress": False, "terms": {"draws": runs.draws}}
    loop.train(load_config("tiny", [*SETTINGS, *more]), data, out, **options)


def reached(out):
    """The last step in a run's log; -1 before there is one."""
    steps = [record["step"] for record in read_log(out) if "step" in record]
    return max(steps, default=0) if (out / "log.jsonl").exists() else -1


def kill_at_random(data, folder, world, kills, more):
    whole, out = Path(folder, "whole"), Path(folder, "run")
    train(data, Path(folder, "warm"), *more, "training.epochs=1")  # imports what is needed
    assert forked.ends(forked.job(lambda: train(data, whole, *more), world)) == [0] * world
    chance, hits = random.Random(world), 0
    for number in range(kills):
        target = int(chance.uniform(number, number + 1) * 0.8 * reached(whole) / kills) - 1
        children, deadline = forked.job(lambda: train(data, out, *more), world), time.monotonic() + 60
        while reached(out) < target and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        for child in children:
            os.kill(child, signal.SIGKILL)
        hits += forked.ends(children) == [-signal.SIGKILL] * world
    assert hits > kills / 2, "too quick: it ended before it was killed"
    assert forked.ends(forked.job(lambda: train(data, out, *more), world)) == [0] * world
    assert runs.left_by(out) == runs.left_by(whole)


@pytest.mark.parametrize(
    ("world", "kills", "more"),
    [
        (1, 4, ["training.select=val"]),
        (2, 3, ["data.identities=3", "training.validate_every=2"]),
    ],
)
def test_killed_again_and_again_and_resumed(tiny_sysu, tmp_path, world, kills, more):
    forked.apart(kill_at_random, data=tiny_sysu, folder=tmp_path, world=world, kills=kills, more=more)


WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
TINY = ["training.steps_per_epoch=2", "training.checkpoint_every=1", "training.keep=1", "training.epochs=1"]
TINY += ["training.select=val", "data.images=4", "model.width=2"]


def at_every_write(run, do):
    """Call `do(what)` before this process makes, renames or removes anything below `run` (Python tells a hook)."""

    def hook(event, arguments):
        if not event.startswith(("os.", "open")):
            return
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event not in WRITES and not opens:
            return
        path = Path(str(arguments[0]))
        if event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # below an open folder, as rmtree does
            path = Path(f"/proc/self/fd/{arguments[1]}").readlink() / path
        if path.is_relative_to(run):
            do(f"{event} {path.relative_to(run)}")

    sys.addaudithook(hook)


def killed_before_every_write(data, folder):
    folder = Path(folder)
    train(data, folder / "warm", *TINY)
    out, writes = folder / "run", []

    def keep(what):
        """A copy of the run's folder: what kill -9 before this change would leave there."""
        writes.append(what)
        if out.exists():
            shutil.copytree(out, folder / str(len(writes)), symlinks=True)
        else:
            writes[-1] += " in no folder"

    def recording():
        at_every_write(out, keep)
        train(data, out, *TINY)
        (folder / "writes").write_text("\n".join(writes))

    assert forked.ends(forked.job(recording)) == [0]
    writes = (folder / "writes").read_text().splitlines()
    new, old = "checkpoints/.step-000002.tmp", "checkpoints/step-000001"
    for stage in ("os.rename .config.yaml", f"open {new}/state.json", f"os.rename {new}", f"os.rename {old}"):
        assert any(write.startswith(stage) for write in writes), (stage, writes)
    tried = set()
    for nth, write in enumerate(writes, 1):
        if "step-000001.tmp" in write or (write.startswith("os.remove") and write.endswith(".tmp")):
            continue  # as the second checkpoint; what was renamed away is removed once more
        killed = folder / f"{nth}"
        if (files := content(killed)) in tried:
            continue  # nothing was changed since
        tried.add(files)
        assert forked.ends(forked.job(lambda killed=killed: train(data, killed, *TINY))) == [0], write
        assert left(killed) == left(out), (nth, write)


def content(folder):
    """Names of all that is in a folder, with the bytes of its files."""
    return frozenset(
        (path.relative_to(folder), path.is_file() and path.read_bytes()) for path in folder.rglob("*")
    )


def left(folder):
    """Weights, log, checkpoints, and what is hidden: nothing half-written stays."""
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    hidden = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    return weights_digest(folder / "model.safetensors"), read_log(folder), kept, hidden


def test_killed_before_each_of_all_changes_it_makes_to_files(tiny_sysu, tmp_path):
    forked.apart(killed_before_every_write, data=tiny_sysu, folder=tmp_path)
