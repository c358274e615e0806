"""Damaged files: the index is named and made anew, the database is named and refused; never a wrong answer."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fmcnet.errors import FmcnetError, GalleryDamagedError, GalleryError
from fmcnet.retrieval import Gallery, Where
from tests.retrieval.people import WHERES, Plain, add, answers, crops, entries, same


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A closed gallery with every kind of index file, and the dictionary."""
    folder = tmp_path_factory.mktemp("whole") / "g"
    plain = Plain()
    with Gallery(folder, index="hnsw", flush_rows=100) as gallery:
        vectors, rows = crops(400), entries(400)
        add(gallery, vectors, rows)
        plain.add(vectors, rows)
        gallery.remove(Where(ids=["crop-00300"]))
        plain.remove(Where(ids=["crop-00300"]))
        add(gallery, crops(30, seed=1), entries(30, first=2000))
        plain.add(crops(30, seed=1), entries(30, first=2000))
    return folder, plain


@pytest.fixture
def copy(whole, tmp_path, small_graphs):
    shutil.copytree(whole[0], tmp_path / "g")
    return tmp_path / "g"


def right(gallery, plain, queries=2):
    for query in crops(queries, seed=3):
        for where in WHERES[:5]:
            answers(gallery, plain, query, 6, where)


def damage(path, kind, seed=0):
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        for place in np.random.default_rng(seed).integers(len(data), size=3):
            data[place] ^= 0x55
    elif kind == "cut":
        del data[len(data) // 2 :]
    elif kind == "emptied":
        data.clear()
    elif kind == "foreign":
        data[:] = b"this is not it" * 9
    path.write_bytes(data)
    if kind == "missing":
        path.unlink()


@pytest.mark.parametrize("kind", ["flipped", "cut", "emptied", "foreign", "missing"])
@pytest.mark.parametrize("name", ["vectors-*", "columns-*", "graph-*", "index.json"])
def test_a_damaged_index_file_is_named_and_made_anew(copy, whole, caplog, name, kind):
    path = next(copy.glob(name))
    damage(path, kind)
    with caplog.at_level(logging.WARNING, "fmcnet"), Gallery(copy, read_only=True) as reader:
        right(reader, whole[1])
    if not (kind == "missing" and name == "index.json"):
        assert path.name in caplog.text
    with Gallery(copy) as writer:
        right(writer, whole[1])
        add(writer, crops(1, seed=44), entries(1, first=9000))
        writer.remove(Where(ids=["crop-09000"]))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fmcnet"), Gallery(copy) as again:
        right(again, whole[1])
        assert again.check() == []
    assert caplog.text == ""


def test_flips_anywhere_in_the_index_never_change_an_answer(copy, whole):
    for seed in range(12):
        for path in [p for p in copy.iterdir() if p.name[:3] in ("vec", "col", "gra", "ind")]:
            damage(path, "flipped", seed)
        with Gallery(copy, read_only=seed % 2 == 0) as gallery:
            right(gallery, whole[1], queries=1)


def test_damage_that_keeps_the_time_of_change_is_noticed(copy, whole, caplog):
    path = next(copy.glob("vectors-*"))
    status = path.stat()
    damage(path, "flipped")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with caplog.at_level(logging.WARNING, "fmcnet"), Gallery(copy, read_only=True) as gallery:
        assert "checksum differs" in caplog.text
        right(gallery, whole[1], queries=1)


def test_the_index_of_another_gallery_is_neither_used_nor_deleted(copy, whole, tmp_path):
    with Gallery(tmp_path / "other", flush_rows=10) as other:
        add(other, crops(50, seed=6), entries(50))
    for path in [p for p in copy.iterdir() if "sqlite" not in p.name]:
        path.unlink()
    for path in [p for p in (tmp_path / "other").iterdir() if "sqlite" not in p.name]:
        shutil.copy(path, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for read_only in (True, False):
        with pytest.raises(
            GalleryDamagedError, match=r"gallery\.sqlite or index\.json is another gallery's"
        ) as said:
            Gallery(copy, read_only=read_only)
    assert before.items() <= {path.name: path.read_bytes() for path in copy.iterdir()}.items()
    for path in str(said.value).partition("delete ")[2].split(" and "):
        Path(path).unlink()
    with Gallery(copy) as gallery:
        right(gallery, whole[1])


def test_an_index_older_than_the_database_catches_up(whole, tmp_path):
    folder, plain = tmp_path / "g", Plain()
    shutil.copytree(whole[0], folder)
    plain.rows = dict(whole[1].rows)
    files = {p.name: p.read_bytes() for p in folder.iterdir() if "sqlite" not in p.name}
    with Gallery(folder, flush_rows=5) as gallery:
        add(gallery, crops(40, seed=7), entries(40, first=3000))
        gallery.remove(Where(ids=["crop-00003", "crop-03001"]))
        gallery.update(["crop-00004"], camera="gate")
    plain.add(crops(40, seed=7), entries(40, first=3000))
    plain.remove(Where(ids=["crop-00003", "crop-03001"]))
    plain.update(["crop-00004"], camera="gate")
    for path in [p for p in folder.iterdir() if "sqlite" not in p.name]:
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with Gallery(folder, read_only=True) as gallery:
        right(gallery, plain)
    with Gallery(folder) as gallery:  # erases what the old index still had
        right(gallery, plain)
        assert crops(400)[3].tobytes()[:16] not in next(folder.glob("vectors-*")).read_bytes()


def test_flips_anywhere_in_the_database_are_refused_or_harmless(copy, whole):
    """Some 45 places over all pages: each answer is the right one, or an error that names the file."""
    path = copy / "gallery.sqlite"
    good = path.read_bytes()
    query = crops(1, seed=3)[0]
    expected = [(where, whole[1].search(query, 400, where)) for where in (None, WHERES[1])]
    places = np.random.default_rng(1).integers(len(good), size=30)
    in_a_row = good.index(expected[0][1][0][1].id.encode())
    others = [0, 18, 20, 60, 100, 105, 4096, *range(32_768, 32_800, 4)]
    refused = []
    for place in [in_a_row, *places.tolist(), *others]:
        data = bytearray(good)
        data[place] ^= 0x01 if place == in_a_row else 0xA5  # text stays text
        path.write_bytes(data)
        for index_too in (False, True):
            try:
                with Gallery(copy, read_only=True) as gallery:
                    if index_too:
                        gallery._store.index.manifest = None
                        gallery._store.index.state = None
                    for where, answer in expected:
                        same(gallery.search(query, 400, where), answer)
            except GalleryError as error:
                refused.append(str(error))
    assert len(refused) > 15
    assert all(str(copy) in text for text in refused)


def test_a_damaged_row_is_named_by_check_and_by_a_search(copy, whole):
    vector = whole[1].rows["crop-00042"][1].astype(np.float32)
    path = copy / "gallery.sqlite"
    data = bytearray(path.read_bytes())
    place = data.index(vector[8:16].tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with Gallery(copy) as gallery:
        same(gallery.search(-vector, 3), whole[1].search(-vector, 3))  # the row is not among the answers
        with pytest.raises(GalleryDamagedError, match=r"gallery\.sqlite is damaged.*crop-00042"):
            gallery.search(vector, 1)
        with pytest.raises(GalleryDamagedError, match="crop-00042"):
            gallery.check()
        with pytest.raises(GalleryDamagedError, match="crop-00042"):
            gallery.embedding("crop-00042")


def test_a_damaged_digest_of_a_removed_entry_is_named_by_check(copy):
    with contextlib.closing(sqlite3.connect(copy / "gallery.sqlite")) as database:
        [(digest,)] = database.execute("SELECT digest FROM removed").fetchall()
        for flipped in (0, len(digest) - 1):
            changed = bytearray(digest)
            changed[flipped] ^= 4
            database.execute("UPDATE removed SET digest = ?", (bytes(changed),))
            database.commit()
            with (
                Gallery(copy) as gallery,
                pytest.raises(GalleryDamagedError, match="checksum of a removed id"),
            ):
                gallery.check()
        database.execute("UPDATE removed SET digest = ?", (digest[:16],))  # as the first versions wrote it
        database.commit()
    with Gallery(copy) as gallery:
        assert gallery.check() == []
        assert gallery.removed(["crop-00300", "crop-00301"]) == {"crop-00300"}
        add(gallery, crops(1, seed=4), entries(1, first=300))
        assert gallery.removed(["crop-00300"]) == set()
        gallery.remove(Where(ids=["crop-00300"]))
        assert gallery.removed(["crop-00300"]) == {"crop-00300"}
        assert gallery.check() == []


@pytest.mark.parametrize("kind", ["emptied", "foreign", "cut"])
def test_a_destroyed_database_is_refused(copy, kind):
    damage(copy / "gallery.sqlite", kind)
    with pytest.raises(FmcnetError, match="gallery"), Gallery(copy, read_only=True) as gallery:
        gallery.search(crops(1)[0], 1200)


def test_a_newer_format_is_refused(copy, whole):
    with Gallery(copy) as gallery:
        database = gallery._store.database
        with database.writing():
            database.put("gallery", json.dumps({"format": 2, "name": "x"}))
    with pytest.raises(GalleryError, match="update fmcnet"):
        Gallery(copy)
