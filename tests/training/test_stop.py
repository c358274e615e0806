"""Ctrl-C, SIGTERM and mistakes, by the command line: what is said, by whom, and that the command said goes on."""

from __future__ import annotations

import shlex
import signal
import sys

import pytest

from tests import forked
from tests.cli import run_command
from tests.training import runs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="POSIX signals, /proc")

LONG = ["training.checkpoint_every=1000", "training.log_every=1"]  # and else as `tiny_run`: 10 steps


def train(data, out, processes=1):
    batch = ["data.identities=3"] if processes == 2 else []
    return ["train", "--config", "tiny", "--data", data, "--out", out, "--device", "cpu", *LONG, *batch]


def said_command(said, processes=1):
    """What follows `fmcnet` in the command that was said."""
    words = shlex.split(said[said.index("Go on with") :].splitlines()[1])
    start = ["torchrun", "--nproc-per-node", "2", "-m", "fmcnet"] if processes == 2 else ["fmcnet"]
    assert words[: len(start)] == start
    return words[len(start) :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "processes"),
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGTERM, None, 2)],
)
def test_a_stopped_training_says_the_command_that_goes_on(
    tiny_sysu, tiny_run, tmp_path, number, code, processes
):
    """Two processes are a job of torchrun, and go on in processes that have its environment."""
    out = tmp_path / "a run"  # the command is one to paste: names with spaces are quoted
    process = runs.start(*train(tiny_sysu, out, processes), processes=processes)
    assert runs.wait_for(lambda: len(runs.read_log(out)) > 1, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    if code is not None:  # torchrun has a code of its own
        assert process.returncode == code, said
        assert "Traceback" not in said
    assert said.count("fmcnet: interrupted: stopped after step") == 1, said
    [step] = [int(p.name.removeprefix("step-")) for p in (out / "checkpoints").iterdir()]
    assert 1 < step < 10
    again = said_command(said, processes)
    if processes == 1 and number == signal.SIGTERM:  # going on is the same as after Ctrl-C
        return
    assert max(record.get("step", 0) for record in runs.read_log(out)) == step
    whole = tiny_run
    if processes == 1:
        told = run_command(*again).output
    else:
        code, told = forked.fmcnet(*again)
        assert code == 0, told
        whole = tmp_path / "whole"
        code, said = forked.fmcnet(*train(tiny_sysu, whole, 2))
        assert code == 0, said
    assert f"(from {step})" in told
    assert [r["step"] for r in runs.read_log(out) if "step" in r] == list(range(1, 11))
    assert runs.left_by(out) == runs.left_by(whole)


def test_a_mistake_that_rank_0_alone_finds_ends_the_job_with_one_message(tiny_sysu, tmp_path):
    """Whether the run folder may be used is looked up by rank 0; the other waits for it, and leaves with it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    code, said = forked.fmcnet(*train(tiny_sysu, tmp_path / "mine", 2), timeout=60)
    assert (code, said.count("exists and is not an fmcnet run")) == (2, 1), said
    assert "Connection closed" not in said
    assert "Traceback" not in said


def test_a_fault_in_the_settings_is_said_once_and_a_run_folder_that_cannot_be_made(tiny_sysu, tmp_path):
    code, said = forked.fmcnet(*train(tiny_sysu, tmp_path / "out", 2), "training.lr=-1", timeout=60)
    assert (code, said.count("1 fault in")) == (2, 1), said
    (tmp_path / "file").write_text("")
    code, said = forked.fmcnet(*train(tiny_sysu, tmp_path / "file" / "out", 2), timeout=60)
    assert (code, said.count("cannot be written: Not a directory")) == (2, 1), said


def test_ctrl_c_before_the_first_step_says_the_command_too(tiny_sysu, tmp_path, monkeypatch):

    from fmcnet.training import trainer as loop

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "read_dataset", interrupted)
    arguments = list(map(str, train(tiny_sysu, tmp_path / "out")))
    monkeypatch.setattr(sys, "argv", ["fmcnet", *arguments])
    done = run_command(*arguments, code=None)
    assert done.exit_code == 130
    assert f"  {shlex.join(['fmcnet', *arguments, '--resume'])}" in done.stderr
    assert not (tmp_path / "out").exists()
