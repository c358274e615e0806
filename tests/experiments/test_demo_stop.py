"""A demo that is terminated or killed takes its trainings with it."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.experiments.test_study import alive, spawned_by, wait_for
from tests.forked import Running


def long_demo(out):
    from fmcnet.experiments import demo

    demo.DEMO_SETTINGS["tiny"] = ("training.epochs=2000",)
    demo.run_demo(out, preset="tiny", quiet=True)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are listed in /proc")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_trainings_too(tmp_path, tiny_sysu, sent):
    out = tmp_path / "demo"
    shutil.copytree(tiny_sysu, out / "data")
    process = Running(call=[__name__, "long_demo", {"out": out}])
    try:
        end = time.monotonic() + 240
        logs = [out / name / "log.jsonl" for name in ("base", "full")]
        while not all(
            log.exists() and '"loss"' in log.read_text() for log in logs
        ):  # a training is under way
            assert process.poll() is None, process.said
            assert time.monotonic() < end
            time.sleep(0.1)
        trainings = spawned_by(process.pid)
        assert len(trainings) == 2
        process.send_signal(sent)
        process.communicate(timeout=120)
        assert process.returncode != 0
        if sent == signal.SIGKILL:
            wait_for(lambda: not any(alive(training) for training in trainings))
        assert not any(alive(training) for training in trainings)
        assert all(list((out / name / "checkpoints").glob("step-*")) for name in ("base", "full"))
    finally:
        process.kill()
