"""A disk that is full, or cannot be written: on a small file system of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import subprocess
import sys

import pytest

from fmcnet.config import load_config
from fmcnet.errors import CheckpointError, DataError
from fmcnet.training import trainer as loop
from fmcnet.training.checkpointing import Checkpointer, checkpoints
from fmcnet.training.loggers import StepLogger, read_log
from tests.cli import run_command
from tests.training import runs

SETTINGS = [
    "model.variant=base",
    "training.epochs=2",
    "training.steps_per_epoch=4",
    "training.checkpoint_every=2",
    "training.log_every=1",
    "training.keep=3",
]


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of 64 KiB and how to change it: `resize("1m")`, or other options."""
    where = tmp_path / "disk"
    where.mkdir()
    if (
        not sys.platform.startswith("linux")
        or mount("-t", "tmpfs", "-o", "size=64k", "fmcnet", where).returncode
    ):
        pytest.skip("mounting a tmpfs is not permitted here")

    def options(text):
        done = mount("-o", f"remount,{text}", where)
        assert not done.returncode, done.stderr

    yield where, options
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "-l", where], check=True)


def train(data, out, *more, **options):
    return loop.train(load_config("tiny", [*SETTINGS, *more]), data, out, progress=False, **options)


@pytest.fixture(scope="module")
def whole(tiny_sysu, tmp_path_factory):
    out = tmp_path_factory.mktemp("full") / "whole"
    train(tiny_sysu, out)
    return out


def size(path):
    """As a file system counts: in pages."""
    return sum(-(-file.stat().st_size // 4096) * 4 for file in path.rglob("*") if file.is_file())


def test_training_on_a_disk_that_fills_up_goes_on_and_resumes_when_there_is_room(
    tiny_sysu, whole, disk, caplog
):
    """Room for one checkpoint, not for two."""
    where, options = disk
    run, one = where / "run", size(checkpoints(whole)[0])
    options(f"size={one * 3 // 2}k")
    caplog.set_level(logging.WARNING, "fmcnet")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of step 8 .*No space left.*step-000002.*--resume"
    ):
        train(tiny_sysu, run)
    warned = [r.getMessage() for r in caplog.records if "training goes on" in r.getMessage()]
    assert [text.split(" could")[0] for text in warned] == [f"no checkpoint of step {n}" for n in (4, 6)]
    assert all("No space left on device" in text for text in warned)
    assert sorted(p.name for p in (run / "checkpoints").glob("*step*")) == ["step-000002"]
    options(f"size={size(whole) * 2}k")
    assert train(tiny_sysu, run, resume=True).resumed_from == 2
    assert runs.left_by(run) == runs.left_by(whole)


def test_by_the_command_line_the_model_that_does_not_fit_is_exit_code_2(tiny_sysu, whole, disk):
    """Room for the last checkpoint and half a model."""
    where, options = disk
    command = ["train", "--config", "tiny", "--data", tiny_sysu, "--out", where / "run", "--json", *SETTINGS]
    model = -(-(whole / "model.safetensors").stat().st_size // 1024)
    options(f"size={size(checkpoints(whole)[0]) + size(whole / 'checkpoints' / 'best') + model // 2 + 64}k")
    late = [*command, "training.checkpoint_every=100"]
    told = run_command(*late, code=2).output
    assert "the model could not be written" in told
    assert "No space left on device" in told
    assert [p.name for p in checkpoints(where / "run")] == ["step-000008"]
    options("size=64m")
    run_command(*late, "--resume")
    assert runs.left_by(where / "run") == runs.left_by(whole)


def test_best_weights_that_do_not_fit_end_the_training_which_then_goes_on(tiny_sysu, whole, disk, tmp_path):
    where, options = disk
    run, one = where / "run", size(checkpoints(whole)[0])
    selecting = ["training.select=val", "training.checkpoint_every=3", "training.checkpoint_minutes=0"]
    options(f"size={one + 64}k")
    with pytest.raises(CheckpointError, match=r"best weights so far, of step 4, .*No space left.*--resume"):
        train(tiny_sysu, run, *selecting)
    assert [p.name for p in checkpoints(run)] == ["step-000003"]
    options("size=64m")
    train(tiny_sysu, run, *selecting, resume=True)
    train(tiny_sysu, tmp_path / "whole", *selecting)
    assert runs.left_by(run) == runs.left_by(tmp_path / "whole")


def test_lines_of_the_log_wait_for_room(disk, caplog):
    where, options = disk
    log, records = (
        StepLogger(where, load_config("tiny"), 100),
        [{"step": n, "loss": "x" * 999} for n in range(100)],
    )
    log.open((), 0)
    for record in records[:90]:
        log.write([record], "step")
    assert 0 < caplog.text.count("its last steps wait for room") < 90
    assert read_log(where) == records[: len(read_log(where))]  # cut short, but nothing amiss in it
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    options("size=1m")
    log.write(records[90:], "step")
    assert read_log(where) == records
    log.close()


def test_no_checkpoint_gets_ahead_of_a_log_that_finds_no_room(
    tiny_sysu, whole, disk, tmp_path, caplog, monkeypatch
):
    """The log alone on the full disk: after step 3 nothing fits there any more."""
    where, options = disk
    run = tmp_path / "run"
    opened = StepLogger.open

    def elsewhere(self, trackers, first):
        opened(self, trackers, first)
        (where / "log.jsonl").write_bytes(b" " * 3300)  # before the first line: the page is full after a few
        log = run / "log.jsonl"
        log.unlink()
        log.symlink_to(where / "log.jsonl")
        self._stream = log.open("ab", buffering=0)

    class Fill:
        def log(self, step, values):
            if step == 3:
                with contextlib.suppress(OSError), (where / "film").open("wb", buffering=0) as film:
                    while True:
                        film.write(bytes(4096))

        def close(self):
            pass

    monkeypatch.setattr(StepLogger, "open", elsewhere)
    options("size=8k")  # a page of lines, one for the film
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 8 .*No space left"):
        train(tiny_sysu, run, trackers=[Fill()])
    assert "its last steps wait for room" in caplog.text
    last = max(int(p.name.removeprefix("step-")) for p in checkpoints(run))
    assert 2 <= last <= runs.read_log(run)[-1]["step"] < 8
    monkeypatch.undo()
    assert train(tiny_sysu, run, resume=True).resumed_from == last
    assert runs.left_by(run) == runs.left_by(whole)


@pytest.mark.parametrize("obstacle", ["read-only", "file"])
def test_a_folder_that_cannot_be_written_is_a_clear_error(tiny_sysu, disk, obstacle):
    """Root may write anywhere, but not onto a read-only file system, nor below a file."""
    where, options = disk
    out, reason = where / "run", "Read-only file system"
    if obstacle == "file":
        (where / "file").write_text("")
        out, reason = where / "file" / "run", "Not a directory"
    else:
        options("ro")
    with pytest.raises(DataError, match=f"{out} cannot be written: {reason}"):
        train(tiny_sysu, out)
    if obstacle == "read-only":
        told = run_command("train", "--config", "tiny", "--data", tiny_sysu, "--out", out, code=2).output
        assert f"cannot be written: {reason}" in told


def test_a_training_without_a_checkpoint_starts_anew(tiny_sysu, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    short = ["training.epochs=1", "training.steps_per_epoch=1"]
    monkeypatch.setattr(Checkpointer, "_write", full)
    with pytest.raises(CheckpointError, match="none yet: make room, then start anew with --resume"):
        train(tiny_sysu, tmp_path / "run", *short)
    monkeypatch.undo()
    assert train(tiny_sysu, tmp_path / "run", *short, resume=True).resumed_from == 0
