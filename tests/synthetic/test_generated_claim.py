"""One process at a time generates into a folder; the other says so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fmcnet.errors import DataError
from fmcnet.synthetic import generate
from fmcnet.synthetic.generate import LOCK, MANIFEST

HOLD = """
import sys
from pathlib import Path
from fmcnet.files import lock_file
from fmcnet.synthetic.generate import LOCK
with lock_file(Path(sys.argv[1]) / LOCK, optional=True):
    print("held", flush=True)
    sys.stdin.read()
"""
COMMAND = [sys.executable, "-m", "fmcnet", "data", "generate", "--preset", "tiny", "--workers", "1", "--out"]


def test_while_another_process_generates_it_is_refused_and_touches_nothing(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match="another process is generating into"):
        generate("sysu", "tiny", 0, root, workers=1)
    assert [path.name for path in root.iterdir()] == [LOCK]
    holder.communicate("")
    assert list(root.iterdir()) == []


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / LOCK).touch()
    made = generate("sysu", "tiny", 0, tmp_path, workers=1, train_ids=2, val_ids=2, test_ids=2)
    assert made.written == made.images
    assert not (tmp_path / LOCK).exists()


def test_of_two_at_once_one_wins(tmp_path):
    root = tmp_path / "d"
    both = [
        subprocess.Popen([*COMMAND, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate() for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes
    for code, (_, error) in zip(codes, told, strict=True):
        assert "Traceback" not in error
        assert code == 0 or (code == 2 and "another process is generating into" in error)
    assert json.loads((root / MANIFEST).read_text())["complete"] is True
    assert not (root / LOCK).exists()
    assert generate("sysu", "tiny", 0, root, workers=1).written == 0
