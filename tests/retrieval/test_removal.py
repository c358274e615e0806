"""After a removal no file of the gallery holds the embedding, in any form, whole or in part."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch

from fmcnet.errors import GalleryBusyError, GalleryError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.faiss_index import FaissIndex
from fmcnet.retrieval.gallery_index import GalleryIndex, IndexManifest
from fmcnet.retrieval.sqlite_connection import Connection
from fmcnet.retrieval.sqlite_database import Database
from tests.retrieval.people import MODEL, add, crops, entries

FORMS = (np.float32, np.float16)


def traces(folder, vector):
    """Files that hold 16 bytes of the vector at any of its places, as float32 or float16."""
    found = set()
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for form in FORMS:
            raw = vector.astype(form).tobytes()
            if any(raw[i : i + 16] in data for i in range(0, len(raw) - 15, 16)):
                found.add(path.name.split("-")[0])
    return found


def filled(folder, dtype, rows=900, dimension=64, **options):
    gallery = Gallery(folder, dtype=dtype, flush_rows=200, **options)
    vectors, metadata = crops(rows, dimension), entries(rows)
    for start in range(0, rows, 150):
        add(gallery, vectors[start : start + 150], metadata[start : start + 150])
    return gallery, {entry.id: vector for entry, vector in gallery.scan()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_no_trace_is_left(tmp_path, dtype, index):
    gallery, stored = filled(tmp_path / "g", dtype, index=index)
    doomed = ["crop-00000", "crop-00350", "crop-00700", "crop-00899"]  # the last one is not in the index yet
    assert {"vectors", "gallery.sqlite"} <= traces(tmp_path / "g", stored[doomed[1]])  # the search finds them
    assert traces(tmp_path / "g", stored[doomed[3]])
    assert gallery.remove(Where(ids=doomed)) == 4
    for name in doomed:
        assert traces(tmp_path / "g", stored[name]) == set()
    assert traces(tmp_path / "g", stored["crop-00351"])
    assert gallery.search(stored[doomed[1]], 1)[0].id != doomed[1]
    gallery.close()
    again = Gallery(tmp_path / "g")
    add(again, crops(5, 64, seed=8), entries(5, first=5000))
    again.compact()
    again.close()
    for name in doomed:
        assert traces(tmp_path / "g", stored[name]) == set()


def test_random_removals_and_replacements_leave_no_trace(tmp_path):
    """Many rounds, so that pages of the database are split, merged and used again."""
    random = np.random.default_rng(0)
    gallery, stored = filled(tmp_path / "g", "float32")
    alive, gone, made = dict(stored), {}, 900
    for step in range(12):
        names = [str(name) for name in random.choice(sorted(alive), 40, replace=False)]
        if step % 3 == 2:
            add(gallery, crops(40, 64, seed=step), [gallery.get(n) for n in names], on_duplicate="replace")
        else:
            gallery.remove(Where(ids=names))
        gone |= {f"{name} {step}": alive.pop(name) for name in names}
        rows = entries(60, first=made)
        made += 60
        add(gallery, crops(60, 64, seed=step + 50), rows)
        alive |= {row.id: gallery.embedding(row.id) for row in rows}
        if step == 7:
            gallery.close()
            gallery = Gallery(tmp_path / "g", flush_rows=200)
    data = b"".join(path.read_bytes() for path in (tmp_path / "g").iterdir())
    chunks = [vector.tobytes()[i : i + 16] for vector in gone.values() for i in (0, 112, 240)]
    assert not [chunk for chunk in chunks if chunk in data]
    assert all(vector.tobytes()[:16] in data for vector in list(alive.values())[:50])
    gallery.close()


def test_compaction_removes_all_metadata_too(tmp_path):
    gallery = Gallery(tmp_path / "g")
    ids = [f"person-of-interest-{i:03d}" for i in range(400)]
    gallery.add(
        crops(400), ids=ids, camera=[f"lens-{i:03d}" for i in range(400)], modality="visible", model=MODEL
    )
    gallery.remove(Where(ids=ids[100:300]))
    gallery.compact()
    gallery.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "g").iterdir())
    assert not [i for i in range(100, 300) if ids[i].encode() in data or f"lens-{i:03d}".encode() in data]
    assert all(ids[i].encode() in data for i in range(100))


def test_a_removal_that_a_reader_holds_up_says_so(tmp_path):
    gallery, stored = filled(tmp_path / "g", "float32", rows=300, timeout=0.1)
    reader = Gallery(tmp_path / "g", read_only=True)
    with reader._store.database.reading():
        reader._store.index.sync()
        with pytest.raises(GalleryBusyError, match=r"gone from all answers.*compact"):
            gallery.remove(Where(ids=["crop-00007"]))
    assert "crop-00007" not in gallery
    gallery.compact()
    assert traces(tmp_path / "g", stored["crop-00007"]) == set()
    reader.close()
    gallery.close()


def test_replacing_leaves_no_trace_of_the_old(tmp_path):
    gallery, stored = filled(tmp_path / "g", "float16", rows=300)
    new = crops(1, 64, seed=77)
    assert add(gallery, new, [gallery.get("crop-00011")], on_duplicate="replace").replaced == 1
    assert traces(tmp_path / "g", stored["crop-00011"]) == set()
    assert gallery.search(new[0], 1)[0].id == "crop-00011"
    gallery.close()


def test_a_log_that_a_reader_kept_is_emptied_by_the_next_try(tmp_path):
    with Gallery(tmp_path / "g", timeout=0.1) as gallery:
        add(gallery, crops(50), entries(50))
        vector = gallery.embedding("crop-00003")
        reader = sqlite3.connect(tmp_path / "g" / "gallery.sqlite")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM rows").fetchall()
        with pytest.raises(GalleryBusyError, match="write-ahead log may hold it"):
            gallery.remove(Where(ids=["crop-00003"]))
        assert traces(tmp_path / "g", vector)
        with pytest.raises(GalleryBusyError) as replaced:
            add(gallery, crops(1, seed=9), entries(1, first=5), on_duplicate="replace")
        assert (replaced.value.added.ids, replaced.value.added.replaced) == (("crop-00005",), 1)
        reader.close()
        assert gallery.remove(Where(ids=["crop-00003"])) == 0  # gone already; now from the log, too
        assert not traces(tmp_path / "g", vector)


def test_a_failed_index_write_brings_nothing_back(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Gallery(tmp_path / "g", flush_rows=1) as gallery:
        add(gallery, crops(50), entries(50))
        vector = gallery.embedding("crop-00004")
        with monkeypatch.context() as disk:
            disk.setattr(IndexManifest, "commit", full)
            gallery.remove(Where(ids=["crop-00003"]))
        gallery.remove(Where(ids=["crop-00004"]))
        add(gallery, crops(5, seed=8), entries(5, seed=8, first=100))
        assert not traces(tmp_path / "g", vector)
        assert gallery.check() == []
    assert not traces(tmp_path / "g", vector)


@pytest.mark.parametrize("fault", [MemoryError, KeyboardInterrupt])
def test_an_interrupted_reload_is_begun_anew(tmp_path, monkeypatch, fault):
    """Another process has compacted, so rows have other positions than the interrupted one knows."""
    folder = tmp_path / "g"
    with Gallery(folder, flush_rows=1) as gallery:
        add(gallery, crops(10, 64), entries(10))
        vector = gallery.embedding("crop-00008")
        with Gallery(folder, flush_rows=1) as other:
            other.remove(Where(ids=[f"crop-{i:05d}" for i in range(3)]))
            other.compact()

        def interrupted(*_):
            raise fault

        with monkeypatch.context() as once:
            once.setattr(FaissIndex, "load", interrupted)
            with pytest.raises(fault):
                gallery.search(vector, 1)
        assert gallery.search(vector, 1)[0].id == "crop-00008"
        assert gallery.remove(Where(ids=["crop-00008"])) == 1
        assert len(gallery) == 6
        assert traces(folder, vector) == set()
    with Gallery(folder) as gallery:
        assert len(gallery) == 6
        assert gallery.check() == []


def test_an_interrupted_erasing_is_done_by_the_next(tmp_path, monkeypatch):
    with Gallery(tmp_path / "g", flush_rows=1) as gallery:
        add(gallery, crops(10, 64), entries(10))
        vector = gallery.embedding("crop-00004")

        def interrupted(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as once:
            once.setattr(IndexManifest, "overwrite", interrupted)
            with pytest.raises(KeyboardInterrupt):
                gallery.remove(Where(ids=["crop-00004"]))
        gallery.remove(Where(ids=["crop-00005"]))
        assert traces(tmp_path / "g", vector) == set()


def test_an_interrupt_while_a_dead_writers_removal_is_finished_leaves_no_copy(tmp_path, monkeypatch):
    """In a graph the place of a removed row holds another's embedding, which goes with that one."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(40, 16))[np.repeat(np.arange(40), 20)] + 0.1 * rng.normal(size=(800, 16))
    gallery = Gallery(tmp_path / "g", model="m", index="hnsw")
    ids = gallery.add(codes, modality="visible").ids
    gallery.compact()
    embeddings = [gallery.embedding(name).tobytes() for name in ids]
    gallery.remove(Where(ids=ids[700:710]))
    [file] = (tmp_path / "g").glob("vectors-*")
    copied = embeddings.index(file.read_bytes()[700 * 64 :][:64])
    survivor = Gallery(tmp_path / "g", model="m")
    survivor.count()

    def dies(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as once:
        once.setattr(GalleryIndex, "erase", dies)
        with pytest.raises(RuntimeError, match="killed"):
            gallery.remove(Where(ids=[ids[copied]]))

    def interrupted(manifest, folder, positions, codes):
        with (folder / manifest.vectors).open("r+b") as stream:
            stream.seek(copied * manifest.row_bytes)
            stream.write(codes[positions.tolist().index(copied)].tobytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(IndexManifest, "overwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            survivor.remove(Where(ids=[ids[5]]))
    survivor.remove(Where(ids=[ids[5]]))
    survivor.close()
    assert traces(tmp_path / "g", np.frombuffer(embeddings[copied], np.float32)) == set()


def test_no_tags_are_no_condition_and_pids_are_texts_or_whole_numbers(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(5), entries(5))
        with pytest.raises(GalleryError, match="needs a condition"):
            gallery.remove(Where(tags=[]))
        assert len(gallery) == 5
    for bad in (1.5, True, b"1"):
        with pytest.raises(GalleryError, match="a text or a whole number"):
            Where(pids=[bad])
        assert Where(pids=[np.int64(3), "007", "Anna "]).pids == {"3", "7", "Anna"}
    for nobody in (-1, "unknown", "", None, float("nan")):
        with pytest.raises(GalleryError, match="nobody known"):
            Where(pids=[nobody])


def test_expire_counts_without_removing_and_takes_durations(tmp_path, monkeypatch):
    monkeypatch.setattr("fmcnet.retrieval.inputs.check_clock", lambda time, what: time)  # as in 0.1.0
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    times = [
        now - timedelta(days=40),
        now - timedelta(days=20),
        None,
        datetime(1969, 1, 1, tzinfo=timezone.utc),
    ]
    with Gallery(tmp_path / "g", model="m") as gallery:
        gallery.add(crops(4), modality="visible", ids=list("abcd"), time=times)
        assert gallery.expire("30d", now=now, dry_run=True) == 1
        assert gallery.expire(timedelta(days=10), now=now, dry_run=True) == 2
        assert len(gallery) == 4
        assert gallery.expire("30d", now=now) == 1
        assert [entry.id for entry, _ in gallery.scan()] == list("bcd")
    with Gallery(tmp_path / "g", read_only=True) as gallery:
        assert gallery.expire("10d", now=now, dry_run=True) == 1


@pytest.mark.parametrize("name", ["ids", "cameras", "tracks", "tags"])
@pytest.mark.parametrize("value", [1, None, 1.5, b"gate"])
def test_a_filter_of_what_is_no_text_is_refused(name, value):
    with pytest.raises(GalleryError, match=rf"Where\({name}=...\): .* is no text: give texts, as '1'"):
        Where(**{name: [value]})
    with pytest.raises(GalleryError, match=rf"Where\({name}=...\): '' names nothing: leave it out"):
        Where(**{name: ["gate", ""]})  # of an environment variable that is not set


@pytest.mark.parametrize("value", [5.0, 5, "gate", object(), [["gate"]]])
def test_a_filter_that_is_no_list_is_refused(value):
    with pytest.raises(GalleryError, match=r"Where\(cameras=.*\): give a list"):
        Where(cameras=value)


def test_what_is_no_filter_and_no_duration_is_refused(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(5), entries(5))
        for call in (gallery.count, gallery.days, gallery.remove, lambda where: list(gallery.scan(where))):
            with pytest.raises(GalleryError, match="give a Where"):
                call({"cameras": ["gate"]})
        for call in (gallery.search, gallery.search_each):
            with pytest.raises(GalleryError, match="give a Where"):
                call(crops(1), where="gate")
        with pytest.raises(GalleryError, match="give a Where"):
            gallery.export(tmp_path / "e.npz", ["gate"])
        with pytest.raises(GalleryError, match="needs a condition"):
            gallery.remove(None)
        with pytest.raises(GalleryError, match="keep=30: give a duration, as '30d'"):
            gallery.expire(30)
        with pytest.raises(GalleryError, match="are not a matrix of numbers"):
            gallery.add(torch.ones((1, 32), requires_grad=True), modality="visible", model=MODEL)
        assert len(gallery) == 5


def test_a_log_that_a_full_disk_keeps_stops_no_opening_and_a_removal_tells_its_own_success(
    tmp_path, monkeypatch, caplog
):
    run, full = Connection.run, ["TRUNCATE"]

    def fails(connection, statement, values=()):
        if any(word in statement for word in full):
            raise sqlite3.OperationalError("database or disk is full")
        return run(connection, statement, values)

    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(5), entries(5))
    monkeypatch.setattr(Connection, "run", fails)
    with Gallery(tmp_path / "g") as gallery:
        assert "the write-ahead log cannot be emptied" in caplog.text
        with pytest.raises(
            GalleryError, match="until then it may hold what was removed, which no answer shows"
        ):
            gallery.remove(Where(ids=["crop-00001"]))
        assert len(gallery) == 4
        with monkeypatch.context() as patch:
            patch.setattr(Database, "delete", lambda *_: fails(gallery, "TRUNCATE"))
            with pytest.raises(GalleryError, match="nothing of this operation was kept"):
                gallery.remove(Where(ids=["crop-00002"]))
        assert len(gallery) == 4
        full.clear()
    with Gallery(tmp_path / "g") as gallery:
        assert [entry.id for entry, _ in gallery.scan()] == [f"crop-0000{i}" for i in (0, 2, 3, 4)]
