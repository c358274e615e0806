"""Writers killed (-9) at random points: what was acknowledged is there, the rest is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmcnet.retrieval import Gallery
from fmcnet.retrieval.similarity import unit_vectors
from tests.retrieval.people import WHERES, Plain, answers, crops
from tests.retrieval.writer import apply

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FMCNET_KILLS", "20"))
"""More by FMCNET_KILLS=100."""


def kill_one(zygote, seed, notes, operations, after):
    """Start a writer; kill it some time after it has begun so many operations, however long those take here."""
    known = len(notes.read_bytes().splitlines())
    zygote.stdin.write(f"{seed}\n")
    zygote.stdin.flush()
    child = int(zygote.stdout.readline())
    while len(notes.read_bytes().splitlines()) - known < 2 * operations - 1:
        os.kill(child, 0)  # it is at work
        time.sleep(0.001)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(child, 0)
            time.sleep(0.001)


def equal(gallery, plain):
    """Every entry and answer is the dictionary's."""
    found = {entry.id: (entry, vector) for entry, vector in gallery.scan()}
    if {name: row[0] for name, row in found.items()} != {name: row[0] for name, row in plain.rows.items()}:
        return False
    if any(abs(vector - plain.rows[name][1]).max() > 1e-6 for name, (_, vector) in found.items()):
        return False
    for place, query in enumerate(crops(2, seed=5)):
        where = WHERES[place]
        answers(gallery, plain, query, 9, where)
    return True


def form(vector):
    """The first bytes of an embedding, as it is stored."""
    return unit_vectors(vector.astype("float32"))[0].tobytes()[:16]


def replay(notes, plain):
    """What was acknowledged, in the dictionary; the operation that was begun last, if it was not acknowledged."""
    pending = None
    for line in notes:
        word, operation = json.loads(line)
        pending = operation if word == "begun" else None
        if word == "done":
            apply(plain, operation)
    return pending


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.usefixtures("small_graphs")
def test_nothing_acknowledged_is_lost(tmp_path):
    folder, notes, plain = tmp_path / "g", tmp_path / "g.notes", Plain()
    draw = random.Random(0)
    notes.touch()
    removed = {}
    zygote = subprocess.Popen(
        [sys.executable, "-m", "tests.retrieval.writer", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    kinds, read = set(), 0
    try:
        for kill in range(KILLS):
            kill_one(zygote, kill, notes, draw.randrange(5), draw.uniform(0.0, 0.05))
            lines = notes.read_text().splitlines()[read:]
            read += len(lines)
            before = dict(plain.rows)
            pending = replay(lines, plain)
            with Gallery(folder, read_only=kill % 2 == 0 and bool(plain.rows)) as gallery:
                there = equal(gallery, plain)
                if pending and not there:
                    apply(plain, pending)
                    there = equal(gallery, plain)
                assert there, f"kill {kill}, pending {pending}"
            kinds |= {pending["kind"]} if pending else set()
            removed |= {
                f"{n} {kill}": v for n, (_, v) in before.items() if plain.rows.get(n, (0, None))[1] is not v
            }
    finally:
        zygote.kill()
        zygote.wait()
    with Gallery(folder) as gallery:
        assert gallery.check() == []
        assert equal(gallery, plain)
        if pending:
            gallery.compact()
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    assert read > 2 * KILLS  # they did get to work
    assert len(kinds) >= 2  # and were killed in the middle of it
    assert len(removed) > 20
    assert all(form(vector) in data for _, vector in plain.rows.values())  # they would be found
    assert not [name for name, vector in removed.items() if form(vector) in data]
