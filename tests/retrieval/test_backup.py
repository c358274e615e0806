"""A backup is whole and consistent while others write, and becomes a working gallery again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading

import pytest

from fmcnet.errors import GalleryBusyError, GalleryDamagedError, GalleryError
from fmcnet.retrieval import Gallery, Where, backup
from fmcnet.retrieval.backup import restore
from tests.cli import run_command
from tests.retrieval.people import WHERES, Plain, add, answers, crops, entries

PART = 20


def fill(gallery, plain, part):
    """One batch, whole or not at all, with a thumbnail each."""
    vectors, rows = crops(PART, seed=part), entries(PART, seed=part, first=PART * part)
    add(gallery, vectors, rows, thumbnails=[f"thumbnail {row.id}".encode() for row in rows])
    plain.add(vectors, rows)


@pytest.fixture
def folder(tmp_path):
    with Gallery(tmp_path / "g", flush_rows=30) as gallery:
        for part in range(3):
            fill(gallery, Plain(), part)
    return tmp_path / "g"


def plain_of(parts):
    plain = Plain()
    for part in range(parts):
        plain.add(crops(PART, seed=part), entries(PART, seed=part, first=PART * part))
    return plain


def right(folder, plain):
    with Gallery(folder, read_only=True) as gallery:
        assert [entry for entry, _ in gallery.scan()] == [entry for entry, _ in plain.rows.values()]
        assert gallery.check() == []
        for where in WHERES[:4]:
            answers(gallery, plain, crops(1, seed=99)[0], 7, where)
        name = next(iter(plain.rows))
        assert gallery.thumbnail(name) == f"thumbnail {name}".encode()


def test_backups_while_another_adds_and_removes_hold_one_moment_each(folder, tmp_path):
    stop, faults = threading.Event(), []

    def write():
        try:
            with Gallery(folder, flush_rows=30, timeout=60) as gallery:
                for part in range(3, 400):
                    fill(gallery, Plain(), part)
                    with contextlib.suppress(GalleryBusyError):  # the backup reads: its log is emptied later
                        gallery.remove(Where(ids=[f"crop-{PART * part:05d}"]))
                    if stop.is_set():
                        return
        except BaseException as error:
            faults.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with Gallery(folder, read_only=True) as gallery:
            counts = [gallery.backup(tmp_path / f"backup-{n}") for n in range(4)]
    finally:
        stop.set()
        writer.join()
    assert not faults
    assert counts[-1] > counts[0] + PART
    for n, count in enumerate(counts):
        parts, unpaired = divmod(count - 60, PART - 1)  # 1: taken between an add and its removal
        assert unpaired in (0, 1)
        plain = plain_of(3 + parts)
        for part in range(3, 3 + parts - unpaired):
            plain.remove(Where(ids=[f"crop-{PART * part:05d}"]))
        right(tmp_path / f"backup-{n}", plain)


def test_a_restored_gallery_works_on(folder, tmp_path):
    plain = plain_of(3)
    (folder / "made-with.json").write_text('{"model": "fmcnet-lite"}')
    with Gallery(folder) as gallery:
        gallery.backup(tmp_path / "b")
        gallery.remove(Where(ids=["crop-00005"]))  # after the backup: it comes back
    assert restore(tmp_path / "b", tmp_path / "new") == 60
    right(tmp_path / "new", plain)
    assert (tmp_path / "new/made-with.json").read_text() == '{"model": "fmcnet-lite"}'
    with Gallery(tmp_path / "new", flush_rows=10) as gallery:
        fill(gallery, plain, 7)
        gallery.remove(Where(ids=["crop-00001"]))
        plain.remove(Where(ids=["crop-00001"]))
    right(tmp_path / "new", plain)
    right(tmp_path / "b", plain_of(3))
    names = set()
    for name in ("g", "b", "new"):
        with Gallery(tmp_path / name, read_only=True) as gallery:
            names.add(gallery._store.database.name())
    assert len(names) == 3  # the index of one is never taken for another's
    modes = {path.stat().st_mode & 0o777 for n in ("b", "new") for path in (tmp_path / n).glob("[!w]*")}
    assert modes == {0o600}
    assert {(tmp_path / n).stat().st_mode & 0o777 for n in ("b", "new")} == {0o700}


def test_identities_that_are_no_numbers_come_back(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        gallery.add(crops(2), modality="visible", ids=["a", "b"], pid=["P-07", "8"], model="m")
        gallery.backup(tmp_path / "b")
        about = gallery._store.database.get("gallery")
    restore(tmp_path / "b", tmp_path / "new")
    with Gallery(tmp_path / "new") as gallery:
        assert [entry.pid for entry, _ in gallery.scan()] == ["P-07", "8"]
        assert json.loads(gallery._store.database.get("gallery"))["format"] == json.loads(about)["format"]
        gallery.add(crops(1, seed=3), modality="visible", pid="P-09", model="m")


def test_a_gallery_is_replaced_only_when_said_and_not_in_use(folder, tmp_path):
    with Gallery(folder) as gallery:
        gallery.backup(tmp_path / "b")
        with pytest.raises(GalleryError, match="--replace"):
            restore(tmp_path / "b", folder)
        with pytest.raises(GalleryBusyError, match="in use"):
            restore(tmp_path / "b", folder, replace=True)
        gallery.remove(Where(ids=["crop-00005"]))
    (folder / "gallery.sqlite").write_bytes(b"damaged")
    folder.chmod(0o2770)
    restore(tmp_path / "b", folder, replace=True)
    right(folder, plain_of(3))
    assert folder.stat().st_mode & 0o7777 == 0o2770
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g"]
    (folder / "holiday.jpg").touch()
    with pytest.raises(GalleryError, match=r"holiday\.jpg"):
        restore(tmp_path / "b", folder, replace=True)
    with pytest.raises(GalleryError, match="the backup itself"):
        restore(tmp_path / "b", tmp_path / "b", replace=True)


def test_a_copy_says_nothing_of_modes_and_names_what_the_user_knows(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    backup.backup(str(folder), tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "restored")
    assert [record.message for record in caplog.records if "others could read" in record.message] == []
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "b").iterdir()} == {0o600}
    (tmp_path / "file").touch()
    with pytest.raises(GalleryError, match=f"{tmp_path}/file/r cannot be written: Not a directory"):
        backup.recover(folder, tmp_path / "file" / "r", "sha256:abc")


def test_a_folder_of_another_user_in_the_way_is_named(folder, tmp_path, monkeypatch):
    part, access = tmp_path / "b.part", os.access
    part.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != part and access(path, mode))
    with pytest.raises(
        GalleryError, match=r"b\.part is needed for the copy .* may not write into it: move it away"
    ):
        backup.backup(str(folder), tmp_path / "b")


def test_a_damaged_gallery_or_backup_is_refused_and_leaves_nothing(folder, tmp_path):
    with Gallery(folder) as gallery:
        gallery.backup(tmp_path / "b")
    for place in (folder, tmp_path / "b"):
        data = bytearray((place / "gallery.sqlite").read_bytes())
        data[data.index(b"thumbnail crop-00007")] ^= 1
        (place / "gallery.sqlite").write_bytes(data)
    with (
        pytest.raises(GalleryDamagedError, match=rf"{folder}/gallery\.sqlite is damaged.*row 8, thumbnail"),
        Gallery(folder) as gallery,
    ):
        gallery.backup(tmp_path / "again")
    with pytest.raises(GalleryDamagedError, match=rf"{tmp_path}/b/gallery\.sqlite is damaged"):
        restore(tmp_path / "b", folder, replace=True)
    with Gallery(folder) as gallery:
        assert len(gallery) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
@pytest.mark.parametrize("at", ["_copy_index", "make_private", "Database"])
def test_a_killed_backup_opens_as_nothing_and_the_next_takes_its_place(folder, tmp_path, monkeypatch, at):
    with Gallery(folder, read_only=True):
        pass  # what it imports late is there
    child = os.fork()
    if not child:
        real = getattr(backup, at)
        monkeypatch.setattr(backup, at, lambda *a, **k: (real(*a, **k), os._exit(9)))
        with contextlib.suppress(BaseException):
            backup.backup(str(folder), tmp_path / "b")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "b").exists()
    for path in (tmp_path / "b.part", tmp_path / "b.part/gallery"):
        with pytest.raises(GalleryError):
            Gallery(path)
    assert backup.backup(str(folder), tmp_path / "b") == 60
    right(tmp_path / "b", plain_of(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g"]


def test_what_a_killed_restore_left_is_removed_by_the_next(folder, tmp_path):
    """Killed after its second renaming: the gallery before it is still in the room."""
    assert backup.backup(str(folder), tmp_path / "b") == 60
    shutil.copytree(folder, tmp_path / "g.part" / "old")
    assert restore(tmp_path / "b", folder, replace=True) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g"]


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(backup, "to_disk", full)
    with pytest.raises(GalleryError, match="b cannot be written: No space left"):
        backup.backup(str(folder), tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_commands(folder, tmp_path):
    made = run_command("gallery", "backup", folder, tmp_path / "b", "--json")
    assert json.loads(made.stdout) == {"out": str(tmp_path / "b"), "entries": 60}
    again = run_command("gallery", "backup", folder, tmp_path / "b", code=2)
    assert "exists: name a new folder" in again.output
    back = run_command("gallery", "restore", tmp_path / "b", tmp_path / "new", "--json")
    assert json.loads(back.stdout) == {"gallery": str(tmp_path / "new"), "entries": 60}
    refused = run_command("gallery", "restore", tmp_path / "b", folder, code=2)
    assert "--replace" in refused.output
    run_command("gallery", "restore", tmp_path / "b", folder, "--replace")
    right(folder, plain_of(3))
    cluster = run_command("gallery", "restore", "milvus://h:1/n", tmp_path / "other", code=2)
    assert "no gallery" in cluster.output


def states(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("source", ["typo", "damaged", "full disk"])
def test_a_restore_that_fails_changes_nothing_of_a_gallery_that_waits_to_be_mended(
    folder, tmp_path, source, monkeypatch
):
    """Its database and a write-ahead log that is not its own would be merged by whoever opens it."""
    with Gallery(folder) as gallery:
        gallery.backup(tmp_path / "b")
    if source == "damaged":
        (tmp_path / "b" / "gallery.sqlite").write_bytes(b"x" * 9000)
    if source == "full disk":
        monkeypatch.setattr(backup, "_copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with Gallery(tmp_path / "other") as other:
        fill(other, Plain(), 9)
        shutil.copy(tmp_path / "other/gallery.sqlite-wal", folder)  # while it is open: closing removes it
    before = states(folder)
    assert before["gallery.sqlite-wal"]
    with pytest.raises(GalleryError):
        restore(tmp_path / ("typo" if source == "typo" else "b"), folder, replace=True)
    assert states(folder) == before
    (folder / "gallery.sqlite-wal").unlink()
    right(folder, plain_of(3))


def test_a_gallery_behind_a_link_is_replaced_itself(folder, tmp_path):
    with Gallery(folder) as gallery:
        gallery.backup(tmp_path / "b")
        gallery.remove(Where(ids=["crop-00005"]))
    (tmp_path / "link").symlink_to(folder)
    restore(tmp_path / "b", tmp_path / "link", replace=True)
    assert (tmp_path / "link").is_symlink()
    right(folder, plain_of(3))


def test_a_copy_that_was_ended_anywhere_is_removed_by_the_next(folder, tmp_path):
    (tmp_path / "b.part").mkdir()
    for name in ("database", "database-journal"):
        (tmp_path / "b.part" / name).write_bytes(b"unfinished")
    assert backup.backup(str(folder), tmp_path / "b") == 60
    right(tmp_path / "b", plain_of(3))


def test_a_new_folder_in_the_gallery_itself_is_refused(folder):
    with pytest.raises(GalleryError, match="lies in the gallery"):
        backup.backup(str(folder), folder / "b")
    with pytest.raises(GalleryError, match="lies in the gallery"):
        backup.recover(folder, folder / "b", "m")


def test_a_name_that_is_not_utf_8(folder, tmp_path):
    odd = tmp_path / os.fsdecode(b"g\xff")
    folder.rename(odd)
    assert backup.backup(str(odd), tmp_path / os.fsdecode(b"b\xff")) == 60
    right(odd, plain_of(3))
    run_command("gallery", "export", odd, tmp_path / os.fsdecode(b"x\xff.parquet"))


@pytest.mark.parametrize("name", ["gallery.sqlite-generation", "index.json", "gallery.sqlite-shm"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(folder, tmp_path, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for work in (
        lambda: Gallery(folder, read_only=True),
        lambda: backup.backup(str(folder), tmp_path / "b"),
        lambda: backup.recover(folder, tmp_path / "r", "m"),
    ):
        with pytest.raises(GalleryError, match="is a pipe or a device"):
            work()
