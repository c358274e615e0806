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
from fmcnet.config import load_config
from fmcnet.distributed import keep_freed_memory, mark_agreed, pick_device, seeded_generator, world_size
from fmcnet.errors import FmcnetError, Interrupted, MissingDependencyError, PrintedBy, require
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.protocols import custom
from fmcnet.experiments.evaluate_run import evaluate_run
from fmcnet.inference.encoder import load
from fmcnet.models.build import build_model
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import load_pretrained
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


@pytest.mark.parametrize("given", [{}, {"RANK": "0"}, {"MASTER_ADDR": "localhost"}])
def test_half_the_environment_of_a_job_is_one_line(monkeypatch, given, tiny_run, tiny_sysu):
    """WORLD_SIZE may be left over from a cluster's job."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FmcnetError, match=r"WORLD_SIZE=2 is set without .*: start with torchrun, or unset"):
        evaluate_run(tiny_run, tiny_sysu)
    monkeypatch.setenv("WORLD_SIZE", "")
    assert world_size() == 1


def test_a_job_embeds_what_one_process_would(monkeypatch, tiny_run, tiny_sysu, tmp_path):
    """The batch that was asked for, and unknown identities with a protocol of one's own."""
    asked = []
    monkeypatch.setattr("fmcnet.experiments.evaluate_run._embed_together", lambda *given: asked.append(given))
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    evaluate_run(tiny_run, tiny_sysu, ["evaluation.batch=3", "mode=all"], flip=True, device="cpu")
    evaluate_run(tiny_run, tiny_sysu, protocol=tmp_path / "p.yaml")
    batch = load_config("tiny").evaluation.batch
    assert asked == [
        ({tiny_run: 3}, tiny_sysu, False, True, "cpu", None),
        ({tiny_run: batch}, tiny_sysu, True, False, "auto", None),
    ]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_random_initialisation_is_told_once_in_a_job(monkeypatch, caplog, rank):
    monkeypatch.setenv("RANK", rank)
    config = load_config("tiny").model
    load_pretrained(build_model(config, 2), None, config.arch)
    assert ("RANDOM INITIALISATION" in caplog.text) is (rank == "0")


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
