"""Several readers and one writer at a time, over processes and threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fmcnet.errors import GalleryBusyError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.sqlite_store import writer_lock
from tests.retrieval.people import MODEL, add, crops, entries

ROOT = Path(__file__).parents[2]
WORK = """
import sys
from pathlib import Path
from fmcnet.retrieval import Gallery, Where
from tests.retrieval.people import add, crops, entries
folder, kind, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with Gallery(folder, read_only=kind == "reader", flush_rows=40, timeout=60) as gallery:
    print("ready", flush=True)
    if kind == "writer":
        for turn in range(25):
            start = first + 20 * turn
            add(gallery, crops(20, seed=start), entries(20, first=start))
            if turn % 5 == 4:
                assert gallery.remove(Where(ids=[f"crop-{start:05d}", f"crop-{start - 20:05d}"])) == 2
            if turn == 12:
                gallery.compact()
    else:
        query, seen = crops(1)[0], 0
        while not (folder.parent / "stop").exists():
            hits = gallery.search(query, 10)
            assert [(-h.similarity, h.id) for h in hits] == sorted((-h.similarity, h.id) for h in hits)
            assert hits[0].id == "anchor" and hits[0].similarity > 0.9999, hits
            seen += 1
        assert seen > 3
"""


def process(folder, kind, first=0):
    started = subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder), kind, str(first)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "ready\n", started.communicate()[1]
    return started


def test_two_writers_and_a_reader_at_once(tmp_path):
    folder = tmp_path / "g"
    with Gallery(folder) as gallery:
        gallery.add(crops(1), ids=["anchor"], modality="visible", model=MODEL)
    reader = process(folder, "reader")
    writers = [process(folder, "writer", first) for first in (0, 5000)]
    for writer in writers:
        assert writer.wait(timeout=300) == 0, writer.communicate()[1]
    (tmp_path / "stop").touch()
    assert reader.wait(timeout=300) == 0, reader.communicate()[1]
    for done in (*writers, reader):
        done.communicate()
    with Gallery(folder) as gallery:
        assert len(gallery) == 1 + 2 * (500 - 10)
        assert gallery.check() == []
        for first in (0, 5000):
            for vector, row in zip(crops(20, seed=first + 240), entries(20, first=first + 240), strict=True):
                assert gallery.search(vector, 1)[0].id == row.id


def test_a_second_writer_is_told_or_waits(tmp_path):
    with Gallery(tmp_path / "g", timeout=0.05) as gallery, Gallery(tmp_path / "g", timeout=60) as patient:
        add(gallery, crops(9), entries(9))
        with writer_lock(tmp_path / "g", 0):
            with pytest.raises(GalleryBusyError, match=r"being written by another process.*try again"):
                add(gallery, crops(1), entries(1, first=20))
            with pytest.raises(GalleryBusyError):
                gallery.remove(Where(ids=["crop-00001"]))
            assert len(gallery.search(crops(1)[0], 50)) == 9  # reading goes on
            with Gallery(tmp_path / "g") as newcomer:
                assert len(newcomer) == 9
            waiting = threading.Thread(target=lambda: add(patient, crops(1), entries(1, first=20)))
            waiting.start()
        waiting.join()
        assert "crop-00020" in gallery


def test_threads_share_a_gallery(tmp_path):
    faults = []
    with Gallery(tmp_path / "g", flush_rows=50) as gallery:
        add(gallery, crops(10), entries(10))

        def work(number):
            try:
                for turn in range(10):
                    start = 1000 * (number + 1) + 10 * turn
                    add(gallery, crops(10, seed=start), entries(10, first=start))
                    assert gallery.search(crops(10, seed=start)[3], 1)[0].id == f"crop-{start + 3:05d}"
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert len(gallery) == 410
        assert gallery.check() == []
