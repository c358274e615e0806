"""What one file of a gallery says against another: refused in one line, and nothing is changed or deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

import pytest

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.backup import recover
from fmcnet.retrieval.sqlite_database import Database
from tests.retrieval.people import add, crops, entries
from tests.retrieval.test_read_only import shelf, without_rights  # noqa: F401

DATABASE = "gallery.sqlite"
ROWS = 50


def killed(folder, seed=0):
    """Fifty entries, the last ten in the write-ahead log and in no index file; as a kill leaves them."""
    kept = folder.with_name(f"{folder.name}.killed")
    with Gallery(folder, flush_rows=40) as gallery:
        add(gallery, crops(40, seed=seed), entries(40, seed=seed))
        gallery._store.database.truncate_log()
        add(gallery, crops(10, seed=seed + 1), entries(10, seed=seed + 1, first=40))
        shutil.copytree(folder, kept)
    return kept


@pytest.fixture
def folder(tmp_path):
    return killed(tmp_path / "g")


@pytest.fixture
def closed(tmp_path):
    with Gallery(tmp_path / "c", flush_rows=10) as gallery:
        add(gallery, crops(ROWS), entries(ROWS), thumbnails=[b"thumbnail"] * ROWS)
    return tmp_path / "c"


def contents(folder):
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(("-shm", "lock"))
    }


def refused(folder, match):
    """By readers and writers, twice, without a change."""
    before = contents(folder)
    for read_only in (True, False, True):
        with pytest.raises(GalleryDamagedError, match=match) as found:
            Gallery(folder, read_only=read_only)
        assert "\n" not in str(found.value)
    after = contents(folder)
    for name in (f"{DATABASE}-wal", DATABASE):  # an empty log may come
        if not before.get(name):
            before.pop(name, None), after.pop(name, None)
    assert after == before


def test_the_gallery_of_these_tests_is_whole(folder):
    with Gallery(folder) as gallery:
        assert len(gallery) == ROWS


@pytest.mark.parametrize("how", ["missing", "empty", "byte", "cut"])
def test_a_damaged_log_is_refused_though_no_index_file_is_newer(folder, tmp_path, how):
    log = folder / f"{DATABASE}-wal"
    data = bytearray(log.read_bytes())
    data[len(data) - 32_768 - 10] ^= 1  # in the header of the last page
    log.write_bytes({"missing": b"", "empty": b"", "byte": data, "cut": data[:-1000]}[how])
    if how == "missing":
        log.unlink()
    refused(folder, r"lost entries: gallery\.sqlite is older than what was written last.*gallery recover")
    found = recover(folder, tmp_path / "new", "sha256:abc")
    assert (found.entries, found.renamed) == (40, 0)
    (folder / "index.json").unlink()
    (folder / f"{DATABASE}-generation").unlink()
    with Gallery(folder) as gallery:  # wanted as it is
        assert len(gallery) == 40


def test_an_emptied_database_keeps_its_log(folder):
    (folder / DATABASE).write_bytes(b"")
    refused(folder, "it is empty or missing, and its write-ahead log is not")


def test_a_log_or_database_of_another_gallery_is_refused(folder, tmp_path):
    other = killed(tmp_path / "other", seed=5)
    log, strange = folder / f"{DATABASE}-wal", other / f"{DATABASE}-wal"
    own = log.read_bytes()
    shutil.copy(strange, log)
    refused(folder, "write-ahead log is another gallery's")
    log.write_bytes(own)
    shutil.copy(other / DATABASE, folder / DATABASE)
    refused(folder, "write-ahead log is another gallery's")
    shutil.copy(strange, log)
    refused(folder, r"gallery\.sqlite is another gallery's")


def raw(folder, statement):
    """Change the database past every rule, as damage does."""
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_hidden_row_ends_a_scan_an_export_and_an_index_building(closed, tmp_path):
    raw(closed, "DELETE FROM rows WHERE seq = 17")
    with Gallery(closed, read_only=True) as gallery:
        assert len(gallery) == ROWS  # the index knows it
        with pytest.raises(GalleryDamagedError, match="row 17 is missing"):
            list(gallery.scan())
        with pytest.raises(GalleryDamagedError, match="row 17 is missing"):
            gallery.export(tmp_path / "all.npz")
        with pytest.raises(GalleryDamagedError, match="49 entries and 49 thumbnails"):
            gallery.check()
    assert not (tmp_path / "all.npz").exists()
    (closed / "index.json").unlink()
    for read_only in (True, False):
        with pytest.raises(GalleryDamagedError, match="49 of 50 entries can be read"):
            Gallery(closed, read_only=read_only)


def test_what_is_removed_during_a_scan_is_no_damage(closed):
    with Gallery(closed, read_only=True) as reader, Gallery(closed) as gallery:
        scan = reader.scan(chunk=10)
        first = next(scan)[0].id
        gallery.remove(Where(ids=["crop-00030", first]))
        gallery.compact()
        assert len(list(scan)) == ROWS - 2


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("DROP TABLE meta", "no such table: meta"),
        ("DROP TABLE vectors", "no such table: vectors"),
        ("DELETE FROM meta WHERE key = 'settings'", "'settings' is missing"),
        ("DELETE FROM meta WHERE key = 'gallery'", "'gallery' is missing"),
        ("DELETE FROM meta WHERE key = 'generation'", "'generation' is missing"),
        ("UPDATE meta SET value = 5 WHERE key = 'gallery'", "checksum of 'gallery'"),
        (
            "INSERT INTO rows SELECT 99, 'x', NULL, 0, NULL, NULL, NULL, NULL, NULL, 0",
            "checksum of row 99|51 of 50",
        ),
    ],
)
def test_a_lost_table_or_setting_is_named(closed, statement, match):
    raw(closed, statement)
    (closed / "index.json").unlink()
    for read_only in (True, False):
        with pytest.raises(GalleryDamagedError, match=match):
            Gallery(closed, read_only=read_only)


def test_a_missing_thumbnail_is_damage_where_every_entry_has_one(closed):
    raw(closed, "DELETE FROM pictures WHERE seq = 3")
    with Gallery(closed, read_only=True) as gallery:
        assert gallery.thumbnail("crop-00001") == b"thumbnail"
        with pytest.raises(GalleryDamagedError, match="the thumbnail of row 3 is missing"):
            gallery.thumbnail("crop-00002")
        with pytest.raises(GalleryDamagedError):
            gallery.check()


def test_an_id_that_leads_to_another_row_is_damage(closed):
    path = closed / DATABASE
    good = path.read_bytes()
    places = [place for place in range(len(good)) if good.startswith(b"crop-00049", place)]
    assert len(places) >= 2  # in the row, and in the table's index of ids
    for place in places:
        path.write_bytes(good[:place] + b"crop-0004x" + good[place + 10 :])
        with Gallery(closed, read_only=True) as gallery:
            with pytest.raises(GalleryDamagedError):
                gallery.get("crop-0004x" if "crop-0004x" in _indexed_ids(path) else "crop-00049")
            with pytest.raises(GalleryDamagedError):
                gallery.check()


def _indexed_ids(path):
    connection = sqlite3.connect(path)
    found = {row[0] for row in connection.execute("SELECT id FROM rows ORDER BY id")}
    connection.close()
    return found


NAMES = (
    DATABASE,
    f"{DATABASE}-wal",
    f"{DATABASE}-generation",
    "index.json",
    "vectors-",
    "columns-",
    "writer.lock",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_the_place_of_a_file(folder, name):
    path = next(path for path in folder.iterdir() if path.name.startswith(name))
    path.unlink()
    (path / "inside").mkdir(parents=True)
    if name in (DATABASE, f"{DATABASE}-wal"):
        for read_only in (True, False):
            with pytest.raises(GalleryError, match=f"{path.name} is a folder, and should be a file"):
                Gallery(folder, read_only=read_only)
    else:
        with Gallery(folder, read_only=True) as gallery:
            assert len(gallery) == ROWS
        refused = name == "writer.lock"
        expected = (
            pytest.raises(GalleryError, match="cannot be written") if refused else contextlib.nullcontext()
        )
        with expected, Gallery(folder) as gallery:
            add(gallery, crops(1), entries(1, first=99))
            gallery.remove(Where(ids=["crop-00099"]))
            gallery.compact()
            gallery.check()
            assert len(gallery) == ROWS
    assert (path / "inside").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "writer.lock"])
def test_a_file_that_may_not_be_read_is_named(shelf, name):  # noqa: F811
    Gallery(shelf / "warm").close()
    folder = killed(shelf / "g")
    if name == f"{DATABASE}-wal":
        (folder / f"{DATABASE}-shm").unlink(missing_ok=True)
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65_534, 65_534)
    path = next(path for path in folder.iterdir() if path.name.startswith(name))
    path.chmod(0)

    def work():
        refused = name in (DATABASE, f"{DATABASE}-wal")
        expected = pytest.raises(GalleryError, match=f"{path} cannot be read: Permission denied")
        with expected if refused else contextlib.nullcontext(), Gallery(folder, read_only=True) as gallery:
            assert len(gallery) == ROWS

    without_rights(work)


def in_main_file(folder):
    """How many entries are safe from a loss of the log."""
    with contextlib.closing(Database(folder, read_only=True, timeout=1, without_log=True)) as database:
        return database.run("SELECT count(*) FROM rows")[0][0]


def test_large_entries_do_not_wait_for_many(tmp_path):
    with Gallery(tmp_path / "g", flush_rows=10**6) as gallery:
        for part in range(8):  # 5 MB
            add(gallery, crops(10, 16_384, seed=part), entries(10, first=10 * part))
        assert in_main_file(tmp_path / "g") >= 40


def test_a_lost_log_costs_little_and_nothing_after_close(tmp_path):
    with Gallery(tmp_path / "g", flush_rows=10**6) as gallery:
        for part in range(25):
            add(gallery, crops(40, seed=part), entries(40, first=40 * part))
            assert in_main_file(tmp_path / "g") >= 40 * (part + 1) - 256
        with Gallery(tmp_path / "g", read_only=True) as reader:
            gallery.close()
            assert in_main_file(tmp_path / "g") == len(reader) == 1000
