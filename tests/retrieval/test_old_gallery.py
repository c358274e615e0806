"""A gallery that fmcnet 0.1.0 made, graph included, can be read and written in its place."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.sqlite_store import writer_lock

MADE = Path(__file__).parent / "fixtures" / "gallery-0.1.0"
VECTORS = np.random.default_rng(0).standard_normal((21, 16))
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path):
    """A copy that may be written to."""
    return Path(shutil.copytree(MADE, tmp_path / "g"))


def ranking(query, rows):
    """Ids by similarity, by one matrix product."""
    return [f"crop-{i:02d}" for i in sorted(rows, key=lambda i: -float(VECTORS[i] @ VECTORS[query]))]


@pytest.mark.usefixtures("small_graphs")
def test_it_is_read_written_and_compacted(folder, caplog):
    left = set(range(20))
    with caplog.at_level(logging.WARNING, "fmcnet"):
        with Gallery(folder, read_only=True) as reader:
            assert [hit.id for hit in reader.search(VECTORS[3], 30)] == ranking(3, left)
            assert reader.thumbnail("crop-00") == b"picture"
            assert reader.get("crop-05").camera == "gate"
            assert reader.get("crop-05").tags == ("night",)
            assert reader.count(Where(modality="visible", pids=[1])) == 2
        assert list(folder.glob("graph-*.faiss"))  # a reader changes nothing
        with Gallery(folder) as gallery:
            info = gallery.info()
            assert (info.entries, info.index, info.unindexed) == (20, "hnsw", 0)
            assert not list(folder.glob("graph-*.faiss"))
            assert [hit.id for hit in gallery.search(VECTORS[3], 30)] == ranking(3, left)
            gallery.add(VECTORS[20], ids=["crop-20"], modality="infrared", model="digest")
            assert gallery.remove(Where(ids=["crop-07"])) == 1
            left = left - {7} | {20}
            assert [hit.id for hit in gallery.search(VECTORS[3], 30)] == ranking(3, left)
            gallery.compact()
            assert [hit.id for hit in gallery.search(VECTORS[4], 30)] == ranking(4, left)
            assert gallery.info().unindexed == 0
            assert gallery.check() == []
        with Gallery(folder) as again:
            assert [hit.id for hit in again.search(VECTORS[20], 30)] == ranking(20, left)
            assert again.info().index == "hnsw"
    assert caplog.text == ""


@pytest.mark.usefixtures("small_graphs")
def test_it_opens_beside_a_writer_and_gets_the_tables_it_lacks_with_the_first_change(folder):
    with Gallery(folder) as gallery:
        gallery.add(VECTORS[20], ids=["crop-20"], modality="infrared", model="digest")
    with contextlib.closing(sqlite3.connect(folder / "gallery.sqlite")) as database:
        database.execute("DROP TABLE files")
        database.execute("DROP TABLE removed")
        database.commit()
    with writer_lock(folder, 0), Gallery(folder, timeout=0.1) as beside:
        assert len(beside) == 21
    with Gallery(folder) as gallery:
        assert gallery.remove(Where(ids=["crop-20"])) == 1
        assert len(gallery) == 20
        assert gallery.check() == []
