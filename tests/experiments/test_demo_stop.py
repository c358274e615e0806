"""A demo that is terminated takes its trainings with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import sys
from fmcnet.experiments.demo import run_demo
run_demo(sys.argv[1], preset="tiny", overrides=("training.epochs=2000",), quiet=True)
"""


def trainings(out: Path) -> list[str]:
    """Command lines of processes that train below `out`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and any(word.startswith(str(out).encode()) for word in words):
            found.append(str(path))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are listed in /proc")
def test_sigterm_ends_the_trainings_too(tmp_path):
    out = tmp_path / "demo"
    process = subprocess.Popen([sys.executable, "-c", CODE, str(out)], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 240
        while not all(list((out / name).glob("log.jsonl")) for name in ("base", "full")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        assert trainings(out)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode != 0
        assert not trainings(out)
        assert all(list((out / name / "checkpoints").glob("step-*")) for name in ("base", "full"))
    finally:
        process.kill()
