"""Several real processes and one cache."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fmcnet import files
from fmcnet.data.cache import ImageCache, lock_path
from fmcnet.data.readers.sysu import read_sysu
from fmcnet.data.table import Table
from fmcnet.files import lock_file
from tests.data import trees

BUILDER = """
import hashlib, json, logging, sys, time
from pathlib import Path
logging.basicConfig(level=logging.INFO)
from fmcnet.data import images
from fmcnet.data.cache import ImageCache
from fmcnet.data.readers.sysu import read_sysu
root, folder, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
plain = images.resize
def slow(*arguments):
    time.sleep(pause)
    return plain(*arguments)
images.resize = slow
table = read_sysu(root)
print("ready", flush=True)
sys.stdin.readline()
made = ImageCache(table, 12, 6, folder=folder)
print(json.dumps([made.built, made.path.name, hashlib.sha256(made.images.tobytes()).hexdigest()]))
"""


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_sysu(trees.sysu(tmp_path / "data", images=1))


def start(table: Table, folder: Path, pause: float) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(table.root), str(folder), str(pause)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n", child.stderr.read()
    return child


def test_two_processes_build_one_cache(tmp_path: Path, table: Table) -> None:
    folder = tmp_path / "cache"
    children = [start(table, folder, 0.05) for _ in range(2)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=300) for child in children]
    built, names, pixels = zip(*(json.loads(out) for out, _ in outputs), strict=True)
    assert sorted(built) == [False, True]
    assert len(set(names)) == len(set(pixels)) == 1
    assert {p.suffix for p in folder.iterdir()} == {".npy", ".json"}
    assert len(list(folder.iterdir())) == 2
    waited = [err.count("waiting for it (its lock: ") for _, err in outputs]
    assert waited == [int(not b) for b in built]
    assert str(lock_path(folder / names[0])) in outputs[built.index(False)][1]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_killed_builder_frees_the_lock_and_the_next_one_cleans_up(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it asks whether the disk has room, also when the builder was of another machine, or a container."""
    folder = tmp_path / "cache"
    child = start(table, folder, 1000)
    child.stdin.write("go\n")
    child.stdin.flush()
    deadline = time.monotonic() + 300
    while not list(folder.glob(".*.tmp")):
        assert time.monotonic() < deadline
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert {p.suffix for p in folder.iterdir()} == {".tmp", ".lock"}
    [left] = folder.glob(".*.tmp")
    left.rename(re.sub(r"[0-9a-f]{8}-[0-9]+\.tmp$", "00000000-1.tmp", str(left)))
    found: list[Path] = []
    monkeypatch.setattr("fmcnet.data.cache.require_disk", lambda place, _: found.extend(place.glob(".*.tmp")))
    cache = ImageCache(table, 12, 6, folder=folder)
    assert cache.built
    assert found == []
    np.testing.assert_array_equal(cache.images, ImageCache(table, 12, 6, folder=tmp_path / "other").images)
    assert {p.suffix for p in folder.iterdir()} == {".npy", ".json"}


def test_a_lock_held_elsewhere(tmp_path: Path) -> None:
    target = tmp_path / "x.lock"
    with lock_file(target, optional=True) as first:
        assert first
        assert target.exists()
        code = (
            "import sys; from pathlib import Path; from filelock import Timeout\n"
            "from fmcnet.files import lock_file\n"
            "try:\n    with lock_file(Path(sys.argv[1]), optional=True): print('locked')\n"
            "except Timeout: print('taken')"
        )
        done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
        assert done.stdout.strip() == "taken", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "_acquire", refuse)
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(table, 12, 6, folder=tmp_path / "cache")
    assert cache.built
    assert cache.path is not None
    assert "cannot be locked ([Errno 37] No locks available)" in caplog.text
    assert not ImageCache(table, 12, 6, folder=tmp_path / "cache").built
