"""Who somebody is, by every door of a gallery: one person if and only if the same text; 0.1.0's numbers, too."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fmcnet.errors import GalleryError
from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval import Gallery, Where, searcher
from fmcnet.retrieval.backup import backup, recover, restore
from fmcnet.retrieval.gallery_index import FORMAT, IndexManifest
from fmcnet.retrieval.sqlite_connection import checksum
from fmcnet.retrieval.sqlite_database import Database
from tests.cli import run_command
from tests.retrieval import milvus_stand_in
from tests.retrieval.fakes import encoder, image

OLD = Path(__file__).parents[1] / "fixtures" / "v0.1.0" / "gallery"
RED, PINK, GREEN, BLUE, GREY = (250, 20, 20), (240, 90, 60), (20, 250, 20), (20, 20, 250), (200, 200, 90)


def as_json(*arguments):
    return json.loads(run_command(*arguments, "--json").stdout)


@pytest.fixture
def crops(tmp_path, monkeypatch):
    """Five images; `--model run`, whatever it is, is the colour encoder."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Encoder, "from_pretrained", staticmethod(lambda *_, **__: encoder(tmp_path)))
    monkeypatch.setattr(searcher, "shipped_models", dict)
    monkeypatch.chdir(tmp_path)
    for name, colour in zip("abcde", (RED, PINK, GREEN, BLUE, GREY), strict=True):
        image(*colour).save(f"{name}.png")
    return tmp_path


def table(name, *rows, header="path,pid,modality"):
    Path(name).write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return name


def who(gallery):
    with Gallery(gallery, read_only=True) as opened:
        return sorted((Path(entry.source).stem, entry.pid) for entry, _ in opened.scan())


def test_two_tables_name_people_alike(crops):
    first = table("1.csv", "a.png,anna,visible", "c.png,bob,visible")
    second = table("2.csv", "b.png,anna,visible", "d.png,carl,visible", "e.png,unknown,visible")
    for one in (first, second):
        assert as_json("index", "g", one, "--model", "run")["notes"] == []
    assert who("g") == [("a", "anna"), ("b", "anna"), ("c", "bob"), ("d", "carl"), ("e", None)]
    found = as_json("search", "g", "a.png", "--modality", "ir", "--group", "pid", "--html", "w.html")
    keys = [one["key"] for one in found["groups"]]
    assert keys[0] == "anna"
    assert sorted(map(str, keys)) == ["None", "anna", "bob", "carl"]
    assert [len(one["matches"]) for one in found["groups"] if one["key"] == "anna"] == [2]
    assert "person carl" in Path("w.html").read_text()
    assert as_json("gallery", "remove", "g", "--pid", "0", "--dry-run")["would_remove"] == 0
    assert as_json("gallery", "remove", "g", "--pid", " anna ", "--yes") == {"removed": 2, "entries": 3}
    assert who("g") == [("c", "bob"), ("d", "carl"), ("e", None)]
    as_json("gallery", "export", "g", "x.npz", "--pid", "carl", "--pid", "bob")
    with np.load("x.npz") as stored:
        assert stored["pid"].tolist() == ["bob", "carl"]
    with Gallery("g") as gallery:
        assert gallery.check() == []
        assert gallery.identities() == ["bob", "carl"]


def test_a_table_a_name_and_python_are_one_person(crops):
    for folder, name in (("p", "007_x.png"), ("q", "anna-2.png")):
        Path(folder).mkdir()
        shutil.copy("a.png", f"{folder}/{name}")
    as_json("index", "g", table("1.csv", "b.png,7,visible", "c.png,anna,ir"), "--model", "run")
    as_json("index", "g", "p", "--modality", "ir", "--pid-from-name", "^([0-9]+)_")
    as_json("index", "g", "q", "--modality", "ir", "--pid-from-name", "^([a-z]+)-")
    with Gallery("g") as gallery:
        for pid in (7, "7.0", np.float64(7), "Anna", "anna\u0020"):
            gallery.add(np.ones(3), modality="visible", pid=pid, model=gallery.settings.model)
        counts = {pid: gallery.count(Where(pids=[pid])) for pid in (7, "anna", "Anna")}
        assert counts == {7: 5, "anna": 3, "Anna": 1}
        gallery.update([next(iter(gallery.scan()))[0].id], pid="1e3")
        assert gallery.identities() == ["1e3", "7", "Anna", "anna"]
    with Gallery("g") as gallery:
        assert gallery.identities() == ["1e3", "7", "Anna", "anna"]
        assert gallery.count(Where(pids=[1000])) == 0


def test_near_spellings_are_told(crops):
    first = table("1.csv", "a.png,Anna,visible", "b.png,anna,visible", "c.png,07,visible", "d.png,7,visible")
    notes = as_json("index", "g", first, "--model", "run")["notes"]
    near = "the identities 'Anna', 'anna' may be one person: they are taken as 2"
    assert notes == ["the identities '07', '7' are read as one person", near]
    assert as_json("index", "g", table("2.csv", "e.png,bob,visible"))["notes"] == []
    Path("f").mkdir()
    shutil.copy("e.png", "f/ANNA.png")
    other = as_json("index", "g", "f", "--modality", "ir", "--pid-from-name", "([A-Z]+)")
    assert "the identities 'ANNA', 'Anna', 'anna' may be one person: they are taken as 3" in other["notes"]
    asked = ("gallery", "remove", "g", "--dry-run", "--pid")
    assert as_json(*asked, "BOB")["notes"] == ["no entry has the identity 'BOB': did you mean 'bob'?"]
    (note,) = as_json(*asked, "anna")["notes"]
    assert note == "entries of the identity 'ANNA', 'Anna' do not pass the filter, which may be 'anna', too"
    assert "notes" not in as_json(*asked, "bob")


def of_numbers(report):
    return [note for note in report["notes"] if note.startswith("the numbers")]


def test_numbers_of_another_dataset_are_told(crops):
    for folder in ("sysu", "regdb"):
        Path(folder).mkdir()
        for name in "abc":
            shutil.copy(f"{name}.png", folder)
    day, night = (
        table(f"{name}/t.csv", *(f"{one[0]}.png,{one[1:]},visible" for one in rows))
        for name, rows in (("sysu", ("a3", "b4")), ("regdb", ("a3", "b5", "canna")))
    )
    assert as_json("index", "g", day, "--model", "run")["notes"] == []
    (note,) = of_numbers(as_json("index", "g", night))
    assert note.startswith(f"the numbers 3 are persons of the gallery already, as of {crops}/sysu/a.png")
    table(day, "a.png,3,visible", "b.png,4,visible", "c.png,4,ir")
    again = as_json("index", "g", day)
    assert (again["added"], of_numbers(again)) == (1, [])  # the same folder goes on
    mended = as_json("index", "g", night, "--pid-prefix", "regdb-", "--existing", "update")
    assert (mended["updated"], of_numbers(mended)) == (3, [])
    with Gallery("g") as gallery:
        assert gallery.identities() == ["3", "4", "regdb-3", "regdb-5", "regdb-anna"]
        assert gallery.count(Where(pids=[3])) == 1


def test_tracks_of_another_recording_are_told(crops):
    def listed(folder, *rows):
        path = Path(folder, "t.csv")
        path.parent.mkdir(exist_ok=True, parents=True)
        for name in "abc":
            shutil.copy(f"{name}.png", folder)
        path.write_text("\n".join(["path,modality,track", *rows, ""]))
        return path

    def of_tracks(report):
        return [note for note in report["notes"] if note.startswith("the tracks")]

    monday = listed("monday", "a.png,visible,gate/8", "b.png,visible,gate/2")
    tuesday = listed("tuesday", "a.png,visible,gate/8", "b.png,visible,gate/1")
    assert of_tracks(as_json("index", "g", monday, "--model", "run")) == []
    (note,) = of_tracks(as_json("index", "g", tuesday))
    start = f"the tracks gate/8 are in the gallery already, as of {crops}/monday/a.png, and are taken"
    assert note.startswith(start)
    assert of_tracks(as_json("index", "g", monday)) == []
    listed("wednesday/north", "a.png,visible,yard/1")
    root = table("wednesday/t.csv", "north/a.png,visible,yard/1", header="path,modality,track")
    assert as_json("index", "g", root)["added"] == 1
    listed("wednesday/south", "b.png,visible,yard/1")
    table(root, "north/a.png,visible,yard/1", "south/b.png,visible,yard/1", header="path,modality,track")
    again = as_json("index", "g", root)
    assert (again["added"], of_tracks(again)) == (1, [])  # the same folder goes on


def of_mixed(report):
    return [note for note in report["notes"] if note.startswith("tracks of several")]


HEADER = "path,modality,camera,track,pid"


@pytest.mark.parametrize(
    ("rows", "held"),
    [
        (("visible,gate,1,anna", "visible,door,1,ben"), "1 (cameras door, gate; identities anna, ben)"),
        (("visible,gate,1,", "visible,door,1,"), "1 (cameras door, gate)"),
        (("visible,gate,1,anna", "visible,door,1,"), "1 (cameras door, gate)"),
        (("visible,gate,1,anna", "visible,gate,1,ben"), "1 (identities anna, ben)"),
        (("visible,gate,1,07", "visible,door,1,7"), None),  # followed over cameras
        (("visible,gate,1,anna", "visible,,1,"), None),
        (("visible,gate,1,anna", "ir,door,1,ben"), None),  # pooled apart
        (("visible,gate,,anna", "visible,door,,ben"), None),
    ],
)
def test_a_track_of_several_cameras_or_identities_is_told(crops, rows, held):
    lines = [f"{name}.png,{row}" for name, row in zip("ab", rows, strict=True)]
    end = (
        "; a search by track answers each as one: unless that is meant, give tracks names of their own, as gate/1, "
        "and repeat with --existing update"
    )
    expected = [] if held is None else [f"tracks of several cameras or identities: {held}{end}"]
    for name, tables in (("at once", [lines]), ("one by one", [[line] for line in lines])):
        for number, rows_of_table in enumerate(tables):
            listed = table(f"{number}.csv", *rows_of_table, header=HEADER)
            report = as_json("index", name, listed, "--model", "run")
        assert of_mixed(report) == expected, name
        found = as_json("search", name, "a.png", "--modality", "ir", "--group", "track")
        said = (
            []
            if held is None
            else [f"tracks of several cameras or identities: {held}; each is answered as one"]
        )
        assert of_mixed(found) == said, name
        assert of_mixed(as_json("search", name, "a.png", "--modality", "ir")) == []


def test_a_cluster_tells_of_tracks_and_numbers_of_earlier_entries(crops, monkeypatch):
    milvus_stand_in.install(monkeypatch)
    gallery = "milvus://localhost:19530/people"
    for name in "abc":
        Path(name).mkdir()
        shutil.copy(f"{name}.png", name)
    first = table("a/t.csv", "a.png,visible,gate,1,7", header=HEADER)
    assert as_json("index", gallery, first, "--model", "run")["notes"] == []
    second = table("b/t.csv", "b.png,visible,gate,1,8", header=HEADER)
    notes = as_json("index", gallery, second, "--model", "run")["notes"]
    assert [note.partition(";")[0] for note in notes] == [
        "tracks of several cameras or identities: 1 (identities 7, 8)"
    ]
    third = table("c/t.csv", "c.png,visible,gate,2,7", header=HEADER)
    (note,) = as_json("index", gallery, third, "--model", "run")["notes"]
    assert note.startswith("the numbers 7 are persons of the gallery already")


def test_many_mixed_tracks_are_one_note_and_are_mended(crops):
    Path("other").mkdir()
    for name in "abcde":
        shutil.copy(f"{name}.png", "other")
    table("1.csv", *(f"{name}.png,visible,gate,{name}," for name in "abcde"), header=HEADER)
    rows = [f"{name}.png,visible,door,{{}}{name}," for name in "abcd"]
    listed = table("other/2.csv", *(row.format("") for row in rows), header=HEADER)
    assert as_json("index", "g", "1.csv", "--model", "run")["notes"] == []
    notes = as_json("index", "g", listed)["notes"]
    (note,) = [note for note in notes if note.startswith(("tracks", "the tracks"))]  # one note for a track
    assert (
        "a (cameras door, gate), b (cameras door, gate), c (cameras door, gate) and 1 more; a search by track"
        in note
    )
    table("other/2.csv", *(row.format("door/") for row in rows), header=HEADER)
    assert as_json("index", "g", listed, "--existing", "update")["updated"] == 4
    found = as_json("search", "g", "a.png", "--modality", "ir", "--group", "track")
    assert of_mixed(found) == []


@pytest.mark.parametrize(
    ("pid", "words"),
    [
        ("unknown", "pid 'unknown' is nobody known"),
        ("-1", "is nobody known"),
        ("18446744073709551615", "too large: numbers go up to 9223372036854775807"),
        ("1.2E+11", "scientific notation"),
        ("a\u202eb", "U+202E"),
    ],
)
def test_what_is_no_identity_is_a_line_by_every_door(crops, pid, words):
    as_json("index", "g", table("1.csv", "a.png,3,visible", "b.png,,visible"), "--model", "run")
    for command in (("remove", "g", "--yes"), ("export", "g", "x.npz")):
        said = run_command("gallery", *command, "--pid", pid, code=2).output
        assert words in " ".join(said.split())
    with Gallery("g", read_only=True) as gallery:
        assert len(gallery) == 2
        with pytest.raises(GalleryError):
            Where(pids=[3, pid])


def test_a_gallery_of_0_1_0_is_read_searched_changed_and_exported(tmp_path, caplog):
    folder = Path(shutil.copytree(OLD, tmp_path / "g"))
    with np.load(OLD.parent / "expected.npz") as stored:
        query, ids = stored["run"][2], stored["ids"].tolist()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite-shm"}
    with caplog.at_level(logging.WARNING, "fmcnet"):
        with Gallery(folder, read_only=True) as gallery:
            assert gallery.identities() == ["1", "2", "3", "4"]
            assert [gallery.count(Where(pids=[pid])) for pid in (1, "02", 3, "4.0")] == [2, 3, 2, 5]
            assert [hit.id for hit in gallery.search(query, 30)] == ids
            groups = gallery.search_groups(query, "pid")
            assert {one.key: len(one.hits) for one in groups} == {"1": 2, "2": 3, "3": 2, "4": 5}
        assert not {
            n
            for n, data in before.items()
            if n.endswith(("json", "npz")) and data != (folder / n).read_bytes()
        }
        with Gallery(folder, model="0da0bd52dc9f5702") as gallery:
            gallery.add(query, modality="visible", pid=3)
            assert stored_format(folder) == 1
            gallery.add([query, query], modality="visible", pid=["anna", "0003"], ids=["new", "third"])
            assert stored_format(folder) == 3
            assert gallery.count(Where(pids=["3"])) == 4
            assert gallery.remove(Where(pids=[4])) == 5
            assert gallery.update(ids=["third"], pid="bob") == 1
            assert gallery.identities() == ["1", "2", "3", "anna", "bob"]
            gallery.compact()
        with Gallery(folder) as gallery:
            assert gallery.check() == []
            assert len(gallery) == 10
            found = {one.key: len(one.hits) for one in gallery.search_groups(query, "pid")}
            assert found == {"1": 2, "2": 3, "3": 3, "anna": 1, "bob": 1}
            assert gallery.export(tmp_path / "x.npz") == 10
    assert caplog.text == ""
    assert IndexManifest.read(folder).format == FORMAT
    with np.load(tmp_path / "x.npz") as stored:
        assert sorted(stored["pid"].tolist()) == ["1"] * 2 + ["2"] * 3 + ["3"] * 3 + ["anna", "bob"]


def stored_format(folder):
    with sqlite3.connect(folder / "gallery.sqlite") as connection:
        return json.loads(connection.execute("SELECT value FROM meta WHERE key = 'gallery'").fetchone()[0])[
            "format"
        ]


def test_a_failed_add_leaves_a_gallery_of_0_1_0_as_it_was(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(OLD, tmp_path / "g"))
    real = Database.insert

    def failing(self, *arguments):
        real(self, *arguments)
        raise OSError("no more")

    with Gallery(folder, model="0da0bd52dc9f5702") as gallery:
        monkeypatch.setattr(Database, "insert", failing)
        with pytest.raises(OSError, match="no more"):
            gallery.add(np.ones(32), modality="visible", pid="anna")
        monkeypatch.undo()
        assert (len(gallery), gallery.identities(), stored_format(folder)) == (12, ["1", "2", "3", "4"], 1)
        gallery.add(np.ones(32), modality="visible", pid="anna")
        assert (len(gallery), stored_format(folder)) == (13, 3)


def test_a_restored_gallery_with_names_is_still_one(tmp_path):
    with Gallery(tmp_path / "g", model="m") as gallery:
        gallery.add(np.ones(3), modality="visible", pid="anna")
    backup(str(tmp_path / "g"), tmp_path / "saved")
    restore(tmp_path / "saved", tmp_path / "h")
    assert stored_format(tmp_path / "h") == 3
    with Gallery(tmp_path / "h") as gallery:
        assert gallery.identities() == ["anna"]


def test_what_the_index_of_0_1_0_knows_comes_back(tmp_path):
    folder = Path(shutil.copytree(OLD, tmp_path / "g"))
    for path in folder.glob("gallery.sqlite*"):
        path.write_bytes(b"")
    assert recover(folder, tmp_path / "new", "0da0bd52dc9f5702").entries == 12
    with Gallery(tmp_path / "new") as gallery:
        assert {pid: gallery.count(Where(pids=[pid])) for pid in gallery.identities()} == {
            "1": 2, "2": 3, "3": 2, "4": 5
        }  # fmt: skip


def test_a_gallery_of_a_later_format_is_refused(tmp_path):
    with Gallery(tmp_path / "g", model="m") as gallery:
        gallery.add(np.ones(3), modality="visible", pid="anna")
    with sqlite3.connect(tmp_path / "g" / "gallery.sqlite") as connection:
        (value,) = connection.execute("SELECT value FROM meta WHERE key = 'gallery'").fetchone()
        later = value.replace('"format": 3', '"format": 4')
        connection.execute(
            "UPDATE meta SET value = ?, crc = ? WHERE key = 'gallery'", (later, checksum("gallery", later))
        )
    with pytest.raises(GalleryError, match="has format 4, this fmcnet reads 1 and 3: update fmcnet"):
        Gallery(tmp_path / "g")


def test_the_old_identity_of_a_table_is_told_and_updated(crops):
    """0.1.0 numbered a table's names: the same command says so, and --existing update stores the names."""
    names = table("1.csv", "a.png,anna,visible", "b.png,bob,visible")
    as_json("index", "g", names, "--model", "run")
    with Gallery("g") as gallery:
        for number, name in enumerate(("anna", "bob")):
            gallery.update([entry.id for entry, _ in gallery.scan(Where(pids=[name]))], pid=number)
    told = as_json("index", "g", names)["differences"]
    assert [one.split(": ")[1] for one in told] == [
        "pid is 0 in the gallery, anna now",
        "pid is 1 in the gallery, bob now",
    ]
    assert as_json("index", "g", names, "--existing", "update")["updated"] == 2
    assert who("g") == [("a", "anna"), ("b", "bob")]


@pytest.mark.parametrize("gallery", ["g", "milvus://localhost:19530/people"])
@pytest.mark.parametrize("existing", ["update", "replace"])
def test_a_value_written_as_unknown_is_taken_back_and_an_empty_one_is_told(
    crops, monkeypatch, gallery, existing
):
    milvus_stand_in.install(monkeypatch)
    index = functools.partial(as_json, "index", gallery, "--model", "run")
    header = "path,pid,modality,{},track,time,tags"
    first = table("1.csv", "a.png,anna,visible,gate,t1,2026-03-01,x", header=header.format("camera"))
    index(first)

    def stored():
        with Gallery(gallery, read_only=True) as opened:
            [(entry, _)] = opened.scan()
        return entry.pid, entry.camera, entry.track, entry.time.year, entry.tags

    whole = ("anna", "gate", "t1", 2026, ("x",))
    empty = table("1.csv", "a.png,,visible,,,,", header=header.format("camera"))
    told = index(empty, "--existing", existing)
    assert stored() == whole
    assert (
        "5 values are stored where the table's cell is empty, the first camera gate of "
        f"{Path('a.png').resolve()}: they stay; a pid, camera or track that is written as unknown is removed by "
        "--existing update"
    ) in told["notes"]
    absent = table("1.csv", "a.png,visible", header="path,modality")
    assert not any("empty" in note for note in index(absent)["notes"])
    unknown = table("1.csv", "a.png,-1,visible,unknown,?,,", header=header.format("camid"))
    assert [one.split(": ")[1] for one in index(unknown)["differences"]] == [
        "camera is gate in the gallery, nothing now",
        "track is t1 in the gallery, nothing now",
        "pid is anna in the gallery, nothing now",
    ]
    assert stored() == whole
    made = index(unknown, "--existing", existing)
    assert made["updated"] + made["replaced"] == 1
    assert stored() == (None, None, None, 2026, ("x",))
    assert index(unknown)["differences"] == []
    named = index(unknown, "--camera", "roof", "--existing", existing)
    assert (named["differences"], stored()[1]) == ([], "roof")
