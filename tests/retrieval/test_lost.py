"""A gallery whose database was lost is refused, keeps its index, and gives back what the index knows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import datetime, timezone

import numpy as np
import pytest

from fmcnet import Gallery
from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.retrieval.backup import recover, restore
from tests.cli import run_command

SEEN = datetime(2026, 3, 1, 8, tzinfo=timezone.utc)
KILLED = """
import os, sys, numpy as np
from fmcnet import Gallery
rng = np.random.default_rng(0)
gallery = Gallery(sys.argv[1], model="m", flush_rows=1)
for part in range(10):
    x = rng.normal(size=(100, 16))
    gallery.add(x / np.linalg.norm(x, axis=1, keepdims=True), modality="visible", pid=part, camera=f"cam{part % 3}")
os._exit(0)  # as a kill: nothing is closed
"""


def unit(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Sixty entries, ten of them deleted."""
    with Gallery(tmp_path / "people.gallery", model="m", flush_rows=1) as gallery:
        gallery.add(
            unit(60), modality=["visible", "infrared"] * 30, ids=[f"crop-{i}" for i in range(60)],
            pid=list(range(60)),
            camera=["gate", None] * 30, track=[None, "t1"] * 30, time=SEEN, tags=[["hat", "bag"], []] * 30,
            source=[f"{i}.jpg" for i in range(60)],
        )  # fmt: skip
        from fmcnet import Where

        gallery.remove(Where(pids=list(range(10))))
    return tmp_path / "people.gallery"


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name.startswith(("index", "vec", "col"))
    }


@pytest.mark.parametrize("how", ["emptied", "deleted"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_lost_database_is_refused_and_nothing_is_deleted(folder, how, read_only):
    before = files_of(folder)
    database = folder / "gallery.sqlite"
    database.write_bytes(b"") if how == "emptied" else database.unlink()
    for _ in range(2):
        with pytest.raises(GalleryDamagedError, match=r"lost entries.*60 rows.*fmcnet gallery recover"):
            Gallery(folder, model="m", read_only=read_only)
    assert files_of(folder) == before


@pytest.mark.parametrize("kept", ["gallery.sqlite-generation", "index.json", "vectors-*.bin"])
def test_files_that_were_all_emptied_are_no_new_gallery(folder, kept):
    for path in folder.iterdir():
        path.write_bytes(b"")
        if path.name not in ("gallery.sqlite", "writer.lock") and not path.match(kept):
            path.unlink()
    for read_only in (True, False):
        with pytest.raises(GalleryDamagedError, match=r"gallery\.sqlite is empty or missing"):
            Gallery(folder, read_only=read_only)
    assert list(folder.glob(kept))


@pytest.mark.parametrize("files", ["gallery.sqlite", "gallery.sqlite*"])
def test_the_database_of_another_gallery_beside_the_index_is_refused(folder, tmp_path, files):
    with Gallery(tmp_path / "other", model="m") as other:
        other.add(unit(5), modality="visible")
    before = files_of(folder)
    for path in folder.glob("gallery.sqlite*"):
        path.unlink()
    for path in (tmp_path / "other").glob(files):
        shutil.copy(path, folder)
    for read_only in (True, False):
        with pytest.raises(
            GalleryDamagedError, match=r"gallery\.sqlite (or index\.json )?is another gallery's"
        ):
            Gallery(folder, read_only=read_only)
    assert files_of(folder) == before


def test_a_lost_write_ahead_log_is_refused(tmp_path):
    folder = tmp_path / "people.gallery"
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=True, timeout=300)
    for log in folder.glob("*-wal"):
        log.unlink()
    for shared in folder.glob("*-shm"):
        shared.unlink()
    with pytest.raises(GalleryDamagedError, match="lost entries"):
        Gallery(folder, model="m")
    found = recover(folder, tmp_path / "new.gallery", "m")
    assert found.entries == 1000
    with Gallery(tmp_path / "new.gallery") as gallery:
        assert len(gallery) == 1000
        assert {entry.camera for entry, _ in gallery.scan()} == {"cam0", "cam1", "cam2"}


def test_what_the_index_knows_comes_back(folder, tmp_path):
    (folder / "gallery.sqlite").write_bytes(b"")
    found = recover(folder, tmp_path / "new.gallery", "m")
    assert (found.entries, found.renamed, found.damaged) == (50, 50, 0)
    with Gallery(tmp_path / "new.gallery") as gallery:
        entries = {entry.pid: entry for entry, _ in gallery.scan()}
        assert set(entries) == {str(pid) for pid in range(10, 60)}
        even, odd = entries["10"], entries["11"]
        assert (even.camera, even.track, even.tags, even.time) == ("gate", None, ("bag", "hat"), SEEN)
        assert (odd.camera, odd.track, odd.tags, str(odd.modality)) == (None, "t1", (), "infrared")
        assert even.id.startswith("recovered-")
        assert gallery.search(unit(60)[10], top=1)[0].pid == "10"


def test_ids_come_back_as_far_as_the_database_goes_and_damaged_rows_are_counted(folder, tmp_path):
    vectors = next(folder.glob("vectors-*"))
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    found = recover(folder, tmp_path / "new.gallery", "m")
    assert (found.entries, found.renamed, found.damaged) == (50, 0, 0)
    with Gallery(tmp_path / "new.gallery") as gallery:
        assert gallery.get("crop-12").source == "12.jpg"
        assert gallery.search(unit(60)[12], top=1)[0].id == "crop-12"
    (folder / "index.json").unlink()
    data = bytearray((folder / "gallery.sqlite").read_bytes())
    data[data.index(unit(60)[20].tobytes())] ^= 1
    (folder / "gallery.sqlite").write_bytes(data)
    found = recover(folder, tmp_path / "again.gallery", "m")  # of the database alone
    assert (found.entries, found.renamed, found.damaged) == (49, 0, 1)
    with Gallery(tmp_path / "again.gallery") as gallery:
        assert {entry.id for entry, _ in gallery.scan()} == {f"crop-{n}" for n in range(10, 60) if n != 20}


def test_what_was_removed_and_the_ranges_come_back_with_the_database_and_only_for_its_model(folder, tmp_path):
    with Gallery(folder) as gallery:
        gallery.replace_ranges([(15, 40)], len(gallery))
    with pytest.raises(GalleryError, match=r"was indexed with the model m, not other: give that one"):
        recover(folder, tmp_path / "wrong.gallery", "other")
    assert not (tmp_path / "wrong.gallery").exists()
    assert recover(folder, tmp_path / "new.gallery", "m").removals
    with Gallery(tmp_path / "new.gallery") as gallery:
        assert gallery.value_ranges == ((15.0, 40.0),)
        assert gallery.removed(["crop-3", "crop-9", "crop-10"]) == {"crop-3", "crop-9"}
    (folder / "gallery.sqlite").write_bytes(b"")
    assert not recover(folder, tmp_path / "index.gallery", "m").removals


@pytest.mark.parametrize(
    ("damage", "ranges", "thumbnails"),
    [
        ("UPDATE pictures SET picture = zeroblob(9) WHERE seq > 8", True, 2),
        ("UPDATE meta SET value = '[]' WHERE key = 'ranges'", False, 0),
        ("UPDATE meta SET value = '[]' WHERE key = 'counts'", True, None),
        (None, False, None),
    ],
)
def test_lost_ranges_and_thumbnails_are_named(tmp_path, damage, ranges, thumbnails):
    with Gallery(tmp_path / "g", model="m", flush_rows=1) as gallery:
        gallery.add(unit(10), modality="infrared", thumbnails=[b"thumbnail"] * 10, ranges=[(15, 40)])
    database = tmp_path / "g" / "gallery.sqlite"
    if damage is None:
        database.unlink()
    else:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(damage)
    found = recover(tmp_path / "g", tmp_path / "new", "m")
    assert (found.entries, found.ranges, found.thumbnails_lost) == (10, ranges, thumbnails)
    with Gallery(tmp_path / "new") as gallery:
        assert gallery.value_ranges == ((15.0, 40.0),) * ranges
    told = ("gallery", "recover", tmp_path / "g", tmp_path / "again", "--digest", "m", "--json")
    notes = " ".join(json.loads(run_command(*told).stdout)["notes"])
    assert ("fmcnet index --existing replace --range LOW:HIGH" in notes) != ranges
    assert ("thumbnails are lost" in notes) == (thumbnails != 0)
    assert ("2 thumbnails" in notes, "thumbnails are lost, if there were any" in notes) == (
        thumbnails == 2,
        thumbnails is None,
    )


def test_rows_damaged_in_the_index_are_counted_where_the_database_is_lost(folder, tmp_path):
    vectors = next(folder.glob("vectors-*"))
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    (folder / "gallery.sqlite").write_bytes(b"")
    found = recover(folder, tmp_path / "new.gallery", "m")
    assert (found.entries, found.renamed, found.damaged) == (0, 0, 50)


def test_mistakes(folder, tmp_path):
    with pytest.raises(GalleryError, match="exists: name a new folder"):
        recover(folder, folder, "m")
    (folder / "index.json").write_text("{")
    (folder / "gallery.sqlite").write_bytes(b"")
    with pytest.raises(GalleryDamagedError, match="its index cannot be read either"):
        recover(folder, tmp_path / "new.gallery", "m")


def test_an_index_without_rows_proves_no_loss(tmp_path):
    with Gallery(tmp_path / "new.gallery", model="m"):
        pass
    with Gallery(tmp_path / "new.gallery", model="m") as gallery:
        gallery.add(unit(2), modality="visible")
    with Gallery(tmp_path / "new.gallery", read_only=True) as gallery:
        assert len(gallery) == 2


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.name != "writer.lock"}


def test_only_the_owner_reads_what_holds_a_person_unless_the_folder_is_a_groups(tmp_path):
    old = os.umask(0o022)
    try:
        for name, mode, expected in (
            ("own", None, 0o600),
            ("plain", 0o755, 0o600),
            ("shared", 0o2770, 0o660),
        ):
            folder = tmp_path / name
            if mode is not None:
                folder.mkdir()
                folder.chmod(mode)
            with Gallery(folder, model="m", flush_rows=1) as gallery:
                gallery.add(unit(20), modality="visible")
                gallery.export(tmp_path / f"{name}.npz")
                assert modes(folder) == {expected}
                assert (folder / "writer.lock").stat().st_mode & 0o777 == expected
            if mode is None:
                assert folder.stat().st_mode & 0o777 == 0o700
            assert (tmp_path / f"{name}.npz").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


@pytest.mark.parametrize(("folder_mode", "before", "after"), [(0o755, 0o644, 0o600), (0o2770, 0o664, 0o660)])
def test_files_of_a_version_that_let_others_read_are_closed_to_them(folder, folder_mode, before, after):
    folder.chmod(folder_mode)
    for path in folder.iterdir():
        path.chmod(before)
    with Gallery(folder, read_only=True) as gallery:
        assert len(gallery) == 50
    assert modes(folder) == {before}
    with Gallery(folder) as gallery:
        assert modes(folder) == {after}
        gallery.check()


def test_an_identity_of_another_gallery_is_not_given_to_an_embedding(folder, tmp_path):
    """The database of one gallery beside the index of another: rows have equal numbers, not equal people."""
    with Gallery(tmp_path / "bob.gallery", model="m", flush_rows=1) as gallery:
        gallery.add(
            unit(60, seed=1), modality="visible", ids=[f"bob-{i}" for i in range(60)], pid=["bob"] * 60
        )
    for name in ("-wal", "-shm"):
        (folder / f"gallery.sqlite{name}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "bob.gallery" / "gallery.sqlite", folder)
    with pytest.raises(GalleryError):
        Gallery(folder)
    recover(folder, tmp_path / "out.gallery", model="m")
    with Gallery(tmp_path / "out.gallery", read_only=True) as out:
        of = {tuple(vector) for vector in unit(60, seed=1)}
        for entry, vector in out.scan():
            assert (entry.pid == "bob") == (tuple(vector) in of)


def test_a_copy_under_way_is_no_gallery(folder, tmp_path):
    with Gallery(folder) as gallery:
        gallery.backup(tmp_path / "backup")
    room = tmp_path / "x.gallery.part"
    room.mkdir()
    shutil.copytree(folder, room / "old")  # as a restore that was killed between its two renames
    with pytest.raises(GalleryError, match="a restore was killed"):
        Gallery(tmp_path / "x.gallery")
    restore(tmp_path / "backup", tmp_path / "x.gallery", replace=True)
    assert len(Gallery(tmp_path / "x.gallery", read_only=True)) == 50


def test_lost_changes_and_entries_are_counted(tmp_path):
    """Killed after ten adds, of which the index has those up to the last but one that it was due for."""
    folder = tmp_path / "people.gallery"
    killed = KILLED.replace("flush_rows=1", "flush_rows=250")
    subprocess.run([sys.executable, "-c", killed, str(folder)], check=True, timeout=300)
    data = (folder / "gallery.sqlite").read_bytes()
    for path in folder.glob("gallery.sqlite*"):
        if path.name != "gallery.sqlite-generation":
            path.write_bytes(b"") if path.name == "gallery.sqlite" else path.unlink()
    found = recover(folder, tmp_path / "emptied", "m")
    assert found.entries < 1000
    assert found.changes_lost == (1000 - found.entries) / 100
    with Gallery(tmp_path / "whole", model="m", flush_rows=10_000) as gallery:
        gallery.add(unit(400), modality="visible")
    database = tmp_path / "whole" / "gallery.sqlite"
    data = bytearray(database.read_bytes())
    for page in range(3, len(data) // 32_768):
        data[page * 32_768 : page * 32_768 + 64] = b"\xff" * 64
    database.write_bytes(bytes(data))
    (tmp_path / "whole" / "index.json").unlink(missing_ok=True)
    found = recover(tmp_path / "whole", tmp_path / "partial", "m")
    assert found.entries + found.damaged == 400
    assert found.damaged


def test_the_digest_is_enough_where_the_model_is_no_longer_at_hand(folder, tmp_path):
    out = tmp_path / "new"
    assert "--digest" in run_command("gallery", "recover", folder, out, code=2).output
    assert (
        "--digest m"
        in run_command("gallery", "recover", folder, out, "--model", "fmcnet-lite", code=2).output
    )
    (folder / "made-with.json").write_text('{"model": "fmcnet-generated"}')
    lost = shutil.copytree(folder, tmp_path / "lost")
    for path in lost.glob("gallery.sqlite*"):
        path.unlink()
    said = run_command("gallery", "recover", lost, out, "--model", "fmcnet-lite", code=2).output
    assert "was indexed with fmcnet-generated" in " ".join(said.split())
    result = run_command("gallery", "recover", folder, out, "--digest", "m", "--json")
    assert json.loads(result.stdout)["entries"] == 50
    assert not (tmp_path / "new.part").exists()


def test_a_recovery_that_is_ended_leaves_nothing(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fmcnet.retrieval.backup._take_records", stop)
    with pytest.raises(KeyboardInterrupt):
        recover(folder, tmp_path / "new", "m")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
