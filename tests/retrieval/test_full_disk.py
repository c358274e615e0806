"""A disk that is full: the operation fails whole with a clear word, and all goes on when there is room again."""

from __future__ import annotations

import contextlib
import sys

import pytest

from fmcnet.errors import GalleryError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.sqlite_database import Database
from tests.retrieval.people import Plain, add, crops, entries, same
from tests.retrieval.test_removal import traces


@contextlib.contextmanager
def largest_file(size):
    """No file of this process grows beyond `size` bytes, as if the disk were full."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def right(gallery, plain):
    assert {e.id for e, _ in gallery.scan()} == set(plain.rows)
    query = crops(1, 64, seed=3)[0]
    same(gallery.search(query, 9), plain.search(query, 9))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("room", [500_000, 700_000, 1_000_000])
def test_what_was_acknowledged_before_is_kept(tmp_path, room):
    gallery, plain = Gallery(tmp_path / "g", flush_rows=100), Plain()
    done, word = 0, ""
    with largest_file(room):
        while not word:
            vectors, rows = crops(50, 64, seed=done), entries(50, first=50 * done)
            try:
                add(gallery, vectors, rows)
            except GalleryError as error:
                word = str(error)
            else:
                plain.add(vectors, rows)
                done += 1
    assert "gallery.sqlite" in word
    assert "is the disk full" in word
    assert done >= 1
    right(gallery, plain)
    add(gallery, crops(50, 64, seed=500), entries(50, first=9000))
    plain.add(crops(50, 64, seed=500), entries(50, first=9000))
    right(gallery, plain)
    gallery.close()
    with Gallery(tmp_path / "g") as gallery:
        right(gallery, plain)
        assert gallery.check() == []


def test_the_database_may_be_full_on_its_own(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(20), entries(20))
        database: Database = gallery._store.database
        pages = database.run("PRAGMA page_count")[0][0]
        database.run(f"PRAGMA max_page_count={pages + 1}")
        with pytest.raises(GalleryError, match="is the disk full"):
            add(gallery, crops(5000, seed=1), entries(5000, first=100))
        assert len(gallery) == 20
        database.run("PRAGMA max_page_count=1000000")
        assert add(gallery, crops(500, seed=1), entries(500, first=100)).added == 500


def test_an_index_that_cannot_be_written_is_no_loss(tmp_path, monkeypatch, caplog):
    """The rows are acknowledged, for the database has them; a removal drops the index rather than leave a trace."""
    from fmcnet.retrieval.gallery_index import IndexManifest

    def full(*_):
        raise OSError(28, "No space left on device")

    plain = Plain()
    gallery = Gallery(tmp_path / "g", flush_rows=50)
    add(gallery, crops(120, 64), entries(120))
    plain.add(crops(120, 64), entries(120))
    vector = gallery.embedding("crop-00007")
    with monkeypatch.context() as patched:
        patched.setattr(IndexManifest, "commit", full)
        add(gallery, crops(120, 64, seed=1), entries(120, first=200))
        plain.add(crops(120, 64, seed=1), entries(120, first=200))
        assert "No space left" in caplog.text
        right(gallery, plain)
        assert gallery.remove(Where(ids=["crop-00007"])) == plain.remove(Where(ids=["crop-00007"])) == 1
        assert traces(tmp_path / "g", vector) == set()
        right(gallery, plain)
    add(gallery, crops(60, 64, seed=2), entries(60, first=500))
    plain.add(crops(60, 64, seed=2), entries(60, first=500))
    right(gallery, plain)
    gallery.close()
    with Gallery(tmp_path / "g") as gallery:
        right(gallery, plain)
        assert gallery.check() == []
        assert traces(tmp_path / "g", vector) == set()
