"""Memory, devices and progress."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from fmcnet import progress
from fmcnet.cli.app import _fail
from fmcnet.distributed import keep_freed_memory, mark_agreed, pick_device, seeded_generator
from fmcnet.errors import FmcnetError, Interrupted, MissingDependencyError, PrintedBy, require
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.protocols import custom
from fmcnet.inference.encoder import load
from fmcnet.models.fmcnet import FMCNet
from fmcnet.types import Embeddings


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and glibc")
def test_memory_is_measured_and_freed_memory_kept_however_often_it_is_asked_for():
    """In a process of its own: it cannot be taken back."""
    code = """
import torch
from fmcnet.distributed import keep_freed_memory, resident_bytes
before = resident_bytes()
held = [torch.ones(2**22) for _ in range(4)]
assert 0 < before < resident_bytes() - 0.9 * 2**26
del held
for _ in range(3):
    keep_freed_memory()
    held = [torch.ones(2**22) for _ in range(4)]
    assert float(held[3].sum()) == 2**22
    del held
assert resident_bytes() > before + 0.9 * 2**26  # it still holds what it freed
print("well")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr


def test_elsewhere_than_on_linux_nothing_is_done(monkeypatch):
    import ctypes

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} was asked for"))
    keep_freed_memory()


def test_a_generators_state_follows_from_its_key_alone():
    def draw(*key):
        return float(torch.rand((), generator=seeded_generator(torch.device("cpu"), *key)))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [(a, b, c) for a in range(6) for b in range(6) for c in range(2)]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_what_is_not_there_is_named():
    with pytest.raises(MissingDependencyError, match=r"needs nosuchpackage, .*'fmcnet\[extra\]'"):
        require("nosuchpackage.inside", "extra")
    with pytest.raises(FmcnetError, match="device 'toaster' cannot be used here: "):
        pick_device("toaster")


@pytest.mark.parametrize("device", ["toaster", "cuda:77", torch.device("cuda", 77)])
def test_a_device_that_is_not_there_is_one_line_wherever_it_is_given(device, tiny_run):
    n = 4
    embeddings = Embeddings(
        np.eye(n, dtype=np.float32), *[np.arange(n) % 2] * 3, np.arange(n), np.full(n, "")
    )
    calls = [
        lambda: FMCNet.from_pretrained(tiny_run, device),
        lambda: load(tiny_run, device),
        lambda: evaluate(embeddings, custom(), device=device),
    ]
    for call in calls:
        with pytest.raises(FmcnetError, match=rf"device '{device}' cannot be used here: ") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_two_processes_are_not_put_on_one_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FmcnetError, match="would put all 2 processes on one GPU"):
        pick_device("cuda:0")


@pytest.mark.parametrize(
    ("error", "printing"),
    [
        (FmcnetError("no file"), [(0, 0), (2, 0)]),
        (OSError("no room"), [(0, 0), (2, 0)]),
        (mark_agreed(FmcnetError("no file")), [(0, 0)]),
        (Interrupted("stopped"), [(0, 0)]),
        (KeyboardInterrupt(), [(0, 0)]),
    ],
)
def test_one_process_prints_what_several_raise(error, printing, monkeypatch, capsys):
    """Of two machines with two processes each; an error of one process alone is printed by it."""
    ranks = [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert [each for each in ranks if prints(error, *each, monkeypatch, capsys)] == printing
    error.printed_by = PrintedBy.EACH
    assert all(prints(error, *each, monkeypatch, capsys) for each in ranks)


def prints(error, rank, local_rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(SystemExit):
        _fail("what went wrong", 2, error)
    return "what went wrong" in capsys.readouterr().err


@pytest.mark.parametrize("show", [None, True])
def test_progress_keeps_the_last_note_until_the_next(show, caplog, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    caplog.set_level(logging.INFO)
    with progress.Progress("training", 9, show=show) as bar:
        shown = []
        for note in ("loss 3.0", "", "", "loss 2.0", ""):
            bar.advance(note)
            if show:
                shown.append(bar._bar.tasks[0].fields["note"])
    if not show:
        shown = [record.getMessage().split(", ")[-1] for record in caplog.records]
    assert shown == ["loss 3.0"] * 3 + ["loss 2.0"] * 2


def test_progress_that_is_off_says_nothing(caplog, capfd, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    caplog.set_level(logging.INFO)
    with progress.Progress("training", 2, show=False) as bar:
        bar.advance("loss")
    assert caplog.text == ""
    assert "".join(capfd.readouterr()) == ""
