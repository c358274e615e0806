"""A gallery in a folder that may not be written: all that only reads works, the rest says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from fmcnet.errors import GalleryBusyError, GalleryError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.sqlite_connection import Connection
from tests.cli import run_command
from tests.retrieval.people import WHERES, Plain, add, answers, crops, entries

NOBODY = 65_534
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and file modes")


@pytest.fixture
def shelf():
    """A folder that any user can come to, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="fmcnet-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def lock_up(folder):
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def without_rights(work):
    """Run in another process, as a user who is not root, to whom modes do not apply."""
    child = os.fork()
    if not child:
        signal.alarm(120)  # never in the way of the other tests
        try:
            if os.getuid() == 0:
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def refused(work):
    with pytest.raises(GalleryError, match=r"cannot be written.*copy it.*read_only=True"):
        work()


@pytest.mark.parametrize("log", ["taken in", "left by a writer that was killed"])
def test_it_is_read_and_a_change_is_refused(shelf, small_graphs, log):
    plain = Plain()
    with Gallery(shelf / "g", index="hnsw", flush_rows=100) as gallery:
        add(gallery, crops(300), entries(300))
        plain.add(crops(300), entries(300))
        gallery.remove(Where(ids=["crop-00007"]))
        plain.remove(Where(ids=["crop-00007"]))
        if log != "taken in":  # what is not in the main file yet
            add(gallery, crops(40, seed=1), entries(40, first=300))
            plain.add(crops(40, seed=1), entries(40, first=300))
            shutil.copytree(shelf / "g", shelf / "copy")
    folder = shelf / "g" if log == "taken in" else shelf / "copy"
    assert (folder / "gallery.sqlite-wal").exists() == (log != "taken in")
    lock_up(folder)
    names = sorted(path.name for path in folder.iterdir())

    def read(place):
        with Gallery(place, read_only=True) as reader:
            for query in crops(2, seed=3):
                for where in WHERES:
                    answers(reader, plain, query, 6, where)
            assert reader.check() == []
            assert reader.info().entries == len(plain.rows)
            with pytest.raises(GalleryError, match="opened read-only"):
                reader.remove(Where(pids=[1]))
        shown = run_command("gallery", "info", str(place), "--json", code=None)
        assert json.loads(shown.stdout)["entries"] == len(plain.rows)

    def work():
        read(folder)
        refused(lambda: Gallery(folder))
        removal = run_command("gallery", "remove", str(folder), "--pid", "1", "--yes", code=None)
        assert (removal.exit_code, removal.exception.__class__) == (2, SystemExit)
        assert "read_only=True" in removal.output

    read(shutil.copytree(folder, shelf / "again"))  # what Python imports late, it may not read without rights
    without_rights(work)
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_log_that_cannot_be_taken_in_is_said(shelf):
    with Gallery(shelf / "g") as gallery:
        add(gallery, crops(30), entries(30))
        shutil.copytree(shelf / "g", shelf / "copy")
    (shelf / "copy/gallery.sqlite-shm").unlink()
    Gallery(shutil.copytree(shelf / "copy", shelf / "again"), read_only=True).close()
    lock_up(shelf / "copy")

    def work():
        with pytest.raises(GalleryError, match=r"left behind, and cannot be written.*copy it there"):
            Gallery(shelf / "copy", read_only=True)

    without_rights(work)


def test_what_another_writes_meanwhile_is_seen(tmp_path, monkeypatch):
    """A folder that is read-only to the reader alone: SQLite would make a log there, and is refused."""
    real = Connection._open

    def open_(database, how):
        if how == "mode=ro" and not (tmp_path / "g/gallery.sqlite-wal").exists():
            raise sqlite3.OperationalError("attempt to write a readonly database")
        real(database, how)

    monkeypatch.setattr(Connection, "_open", open_)
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(50), entries(50))
    with Gallery(tmp_path / "g", read_only=True) as reader:
        assert reader._store.database._unchanged is not None
        assert len(reader) == 50
        with Gallery(tmp_path / "g") as gallery:
            add(gallery, crops(20, seed=1), entries(20, first=100))
            assert len(reader) == 70  # while the log is there
        assert reader.search(crops(20, seed=1)[4], 1)[0].id == "crop-00104"
        with Gallery(tmp_path / "g") as gallery:
            gallery.remove(Where(ids=["crop-00104"]))
        assert reader._store.database._unchanged is None or len(reader) == 69
        assert reader.search(crops(20, seed=1)[4], 1)[0].id != "crop-00104"
        gone = list((tmp_path / "g").glob("gallery.sqlite-*"))  # a reader cannot take them along
        assert [path.unlink() for path in gone if path.stat().st_size == 0 or path.suffix.endswith("shm")]
    with Gallery(tmp_path / "g", read_only=True) as reader:
        assert reader._store.database._unchanged is not None
        with pytest.raises(GalleryBusyError, match="try again"), reader._store.database.reading():
            os.utime(tmp_path / "g/gallery.sqlite")
