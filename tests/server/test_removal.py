"""Removing many at once: dry run, confirmation by number, audit log, thumbnails; and ids of every kind."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from urllib.parse import quote

import httpx2 as httpx
import pytest

from fmcnet.errors import GalleryError
from fmcnet.retrieval import Where
from fmcnet.server.thumbnails import thumbnail_name
from tests.server.process import started, until_it_answers
from tests.server.service import KEYS, bearer, files, running


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The folder of a service with eight crops of one camera each day in turn, with their thumbnails."""
    folder = tmp_path_factory.mktemp("eight")
    with running(folder, keys=KEYS, keep=True) as one:
        one.client.headers.update(bearer("admin"))
        for seed in range(8):
            reply = one.add(
                seed, camera="gate" if seed % 2 else "hall", pid=str(seed // 4), track=f"t{seed % 3}",
                time=f"2026-03-{seed + 1:02d}T08:00:00Z", tag=["hat"] if seed == 5 else ["bag"],
            )  # fmt: skip
            assert reply.status_code == 201, reply.text
    return folder


@contextlib.contextmanager
def serving_all(folder):
    with running(folder, keys=KEYS, keep=True) as one:
        one.client.headers.update(bearer("admin"))
        yield one


@pytest.fixture
def serving(eight, tmp_path):
    """A service of its own, with a copy of the eight crops."""
    shutil.copytree(eight, tmp_path / "eight")
    with serving_all(tmp_path / "eight") as one:
        yield one


@pytest.fixture(scope="module")
def refusing(eight, tmp_path_factory):
    """Another, for tests that change nothing."""
    folder = shutil.copytree(eight, tmp_path_factory.mktemp("refusing") / "eight")
    with serving_all(folder) as one:
        yield one


def remove(one, **asked):
    return one.client.delete("/v1/entries", params=asked)


def here(one):
    return sorted(entry.id for entry, _ in one.service.gallery.scan())


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        ({"pid": 1}, {4, 5, 6, 7}),
        ({"pid": [0, 1], "camera": "gate"}, {1, 3, 5, 7}),
        ({"camera": ["gate", "hall"], "until": "2026-03-03T09:00:00+01:00"}, {0, 1}),
        ({"since": "2026-03-07T08:00:00Z"}, {6, 7}),
        ({"since": "2026-03-02T00:00:00Z", "until": "2026-03-04T00:00:00Z"}, {1, 2}),
        ({"track": "t0", "modality": "visible"}, {0, 3, 6}),
        ({"tag": "hat"}, {5}),
        ({"id": ["crop-1", "crop-6", "gone"]}, {1, 6}),
        ({"id": ["crop-1", "crop-6"], "camera": "gate"}, {1}),
        ({"modality": "infrared"}, set()),
        ({"camera": "nowhere"}, set()),
    ],
)
def test_what_matches_all_conditions_goes_and_nothing_else(serving, asked, seeds):
    listed = serving.client.get("/v1/entries", params=asked).json()
    assert {one["id"] for one in listed["entries"]} == {f"crop-{seed}" for seed in seeds}
    said = remove(serving, **asked, dry_run=True)
    assert said.json() | {"notes": []} == {"matched": len(seeds), "removed": 0, "dry_run": True, "notes": []}
    assert len(here(serving)) == 8
    done = remove(serving, **asked, expect=len(seeds))
    assert done.json() | {"notes": []} == {
        "matched": len(seeds),
        "removed": len(seeds),
        "dry_run": False,
        "notes": [],
    }
    left = sorted(f"crop-{seed}" for seed in set(range(8)) - seeds)
    assert here(serving) == left
    gallery, kept = serving.service.gallery, serving.service.kept
    names = {thumbnail_name(one, gallery.embedding(one)) for one in left}
    assert {path.name for path in kept.folder.glob("*.jpg")} == names
    dry, wet = serving.log()[-2:]
    assert (dry["action"], dry["outcome"], dry["dry_run"], dry["removed"]) == ("remove", "done", True, 0)
    assert (wet["dry_run"], wet["removed"], wet["key"]) == (False, len(seeds), "admin")
    assert sorted(wet["ids"]) == sorted(f"crop-{seed}" for seed in seeds)
    many = ("id", "pid", "camera", "track", "tag")
    assert wet["where"].keys() == {f"{one}s" if one in many else one for one in asked}


@pytest.mark.parametrize(
    ("asked", "status", "where"),
    [
        ({}, 422, "query"),
        ({"dry_run": True}, 422, "query"),
        ({"expect": 8}, 422, "query"),
        ({"camera": "gate"}, 422, "expect"),
        ({"camera": "gate", "dry_run": False}, 422, "expect"),
        ({"camera": "gate", "expect": 3}, 409, "expect"),
        ({"camera": "gate", "expect": 5}, 409, "expect"),
        ({"camera": "gate", "expect": -1}, 422, "query.expect"),
        ({"pid": "unknown", "expect": 4}, 422, "query.pid.0"),
        ({"id": ["crop-1", "gone"], "expect": 2}, 409, "expect"),
        ({"since": "2026-03-01T00:00:00", "expect": 8}, 422, "query.since"),
        ({"since": "2026", "expect": 8}, 422, "query.since"),
        ({"until": "-1e3", "expect": 8}, 422, "query.until"),
        ({"modality": "thermal", "expect": 8}, 422, "query.modality"),
    ],
)
def test_a_removal_that_is_not_clear_removes_nothing(refusing, asked, status, where):
    reply = remove(refusing, **asked)
    assert (reply.status_code, reply.json()["error"]["where"]) == (status, where)
    assert len(here(refusing)) == 8


def test_a_dry_run_wins_over_a_confirmation(refusing):
    assert remove(refusing, camera="gate", expect=4, dry_run=True).json()["removed"] == 0
    assert len(here(refusing)) == 8


def test_only_admin_may(refusing):
    for scope in ("read", "write"):
        reply = refusing.client.delete(
            "/v1/entries", params={"camera": "gate", "expect": 4}, headers=bearer(scope)
        )
        assert reply.status_code == 403
    assert len(here(refusing)) == 8


# ---- ids ----

GOOD = [
    "a/b", "/a", "a//b", "a/", "...", "a..b", ".hidden/..x", "%2e%2e", "a%2Fb", "a?b=c#d", "a b+c", "\u00e9",
    "\U0001f600", "\\..\\a", "e" * 256, "'; --", '"',
]  # fmt: skip
BAD = [
    "",
    ".",
    "..",
    "a/../b",
    "../a",
    "a/.",
    "./a",
    "a\tb",
    "a\nb",
    "\x7f",
    "\x85",
    "a\u2028b",
    "\u202eabc",
    "a\u200bb",
    "a\0b",
    "e" * 257,
    "\u00e9" * 129,
]


def test_ids_that_are_taken_are_found_shown_and_removed(tmp_path):
    """Over a real connection: the tests' own client decodes an address twice."""
    with started(tmp_path) as (_, address), httpx.Client(base_url=address, timeout=120) as client:
        until_it_answers(address)
        for entry_id in GOOD:
            sent = {"files": files(1), "data": {"modality": "visible", "id": entry_id}}
            assert client.post("/v1/entries", **sent).json()["ids"] == [entry_id]
        listed = client.get("/v1/entries").json()["entries"]
        assert [one["id"] for one in listed] == GOOD
        for at, entry_id in enumerate(GOOD):
            path = quote(entry_id, safe="")
            assert client.get(f"/v1/entries/{path}").json()["id"] == entry_id
            assert client.get(f"/v1/images/{path}").status_code == 200
            assert client.delete(f"/v1/entries/{path}").json() == {
                "id": entry_id,
                "removed": 1,
                "notes": [],
            }
            assert client.get("/v1/gallery").json()["entries"] == len(GOOD) - at - 1


def test_other_ids_are_refused_at_every_door_with_the_same_reason(tmp_path):
    with running(tmp_path) as one:
        one.add(1, id=["b"])
        vector = one.service.gallery.embedding("b")
        for entry_id in BAD:
            with pytest.raises(GalleryError) as python:
                one.service.gallery.add(vector, modality="visible", ids=[entry_id], model="0123456789abcdef")
            added = one.add(2, id=[entry_id])
            assert added.status_code == 422, repr(entry_id)
            assert added.json()["error"]["what"] == str(python.value)
            path = quote(entry_id, safe="")
            if entry_id in (".", ".."):  # clients resolve these before they send them
                path = path.replace(".", "%2e")
            for method in ("GET", "DELETE"):
                reply = one.client.request(method, f"/v1/entries/{path}")
                assert reply.status_code in (404, 422), (method, entry_id)
                if reply.status_code == 422:
                    assert reply.json()["error"]["what"] in (str(python.value), "no condition is given")
            assert one.client.get(f"/v1/images/{path}").status_code in (404, 422)
        assert one.service.gallery.count(Where(ids=["b"])) == len(one.service.gallery) == 1


def test_what_comes_to_match_after_the_count_stays(serving, monkeypatch):
    gallery = serving.service.gallery
    counted = gallery.scan

    def scan(where=None, chunk=4096):
        found = list(counted(where, chunk))
        if where is not None and where.pids is not None and "late" not in gallery:
            gallery.add(
                gallery.embedding("crop-1"), modality="visible", ids=["late"], pid=0, model="0123456789abcdef"
            )
        return iter(found)

    monkeypatch.setattr(gallery, "scan", scan)
    told = remove(serving, pid=0, expect=4).json()
    assert (told["removed"], "late" in gallery) == (4, True)
    assert serving.log()[-1]["ids"] == [f"crop-{seed}" for seed in range(4)]


def test_a_form_without_files_is_refused_whatever_its_size(serving):
    reply = serving.client.post("/v1/search", data={"modality": "visible"})
    assert (reply.status_code, reply.json()["error"]["what"]) == (
        415,
        "the body is application/x-www-form-urlencoded",
    )


@contextlib.contextmanager
def read_beside(one):
    """Another process reads the gallery meanwhile; the service waits for it for 50 ms."""
    one.service.gallery._store.database.run("PRAGMA busy_timeout=50")
    with contextlib.closing(sqlite3.connect(one.service.gallery.location + "/gallery.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM rows").fetchall()
        yield


def test_a_removal_beside_a_reader_is_logged_by_id(serving):
    with read_beside(serving):
        assert remove(serving, pid=0, expect=4).status_code == 503
        several = serving.log()[-1]
        assert serving.client.delete("/v1/entries/crop-4").status_code == 503
        single = serving.log()[-1]
    assert (several["outcome"], several["removed"]) == (single["outcome"], 4) == ("refused", 4)
    assert several["ids"] == [f"crop-{seed}" for seed in range(4)]
    assert (single["ids"], single["removed"]) == (["crop-4"], 1)
    assert here(serving) == [f"crop-{seed}" for seed in range(5, 8)]


def test_a_replacement_beside_a_reader_is_done_logged_and_kept(serving):
    """Only the log of the gallery may still hold the old entry, which a note tells."""
    gallery, kept = serving.service.gallery, serving.service.kept
    old = thumbnail_name("crop-1", gallery.embedding("crop-1"))
    with read_beside(serving):
        told = serving.add(9, 10, id=["crop-1", "new"], on_duplicate="replace", track="t9")
    assert (told.status_code, told.json()["added"], told.json()["replaced"]) == (201, 1, 1)
    assert "may hold what was replaced" in told.json()["notes"][0]
    last = serving.log()[-1]
    assert (last["outcome"], last["ids"], last["replaced"]) == ("done", ["crop-1", "new"], 1)
    assert {entry.track for entry in map(gallery.get, ("crop-1", "new"))} == {"t9"}
    assert kept.read(old) is None
    for entry_id in ("crop-1", "new"):
        assert kept.read(thumbnail_name(entry_id, gallery.embedding(entry_id))) is not None


def test_an_add_is_done_though_its_notes_cannot_be_made(serving, monkeypatch):
    def fail(*given, **options):
        raise GalleryError("secret words")

    monkeypatch.setattr("fmcnet.server.routes.gallery.add_notes", fail)
    told = serving.add(9)
    assert (told.status_code, told.json()["ids"]) == (201, ["crop-9"])
    assert told.json()["notes"] == ["the entries are added, but could not be compared with the others"]
    assert serving.log()[-1]["outcome"] == "done"


def test_kept_thumbnails_that_cannot_be_removed_are_told_and_hold_nothing_up(tmp_path):
    """Folders stand in their place, which no unlink removes, whoever runs the tests."""
    with running(tmp_path, keep=True) as one:
        one.add(*range(4), track="t")
        kept = [
            one.service.kept.folder / thumbnail_name(f"crop-{n}", one.service.gallery.embedding(f"crop-{n}"))
            for n in range(2)
        ]
        for path in kept:
            path.unlink()
            path.mkdir()
        assert one.client.get("/v1/images/crop-0").status_code == 404
        why = "the service's log says why, and it tries again every hour"
        note = f"1 of the kept thumbnails could not be removed; {why}"
        told = one.client.delete("/v1/entries/crop-0")
        assert (told.status_code, told.json()) == (200, {"id": "crop-0", "removed": 1, "notes": [note]})
        assert (one.log()[-1]["outcome"], one.log()[-1]["removed"]) == ("done", 1)
        replaced = one.add(5, id="crop-1", on_duplicate="replace", track="t")
        assert (replaced.status_code, replaced.json()["notes"]) == (201, [note])
        kept[0].rmdir()
        new = thumbnail_name("crop-1", one.service.gallery.embedding("crop-1"))
        (one.service.kept.folder / new).unlink()
        (one.service.kept.folder / new).mkdir()
        told = remove(one, track="t", expect=3)
        assert (told.status_code, told.json()["removed"], told.json()["notes"]) == (200, 3, [note])
        assert (one.log()[-1]["outcome"], one.log()[-1]["ids"]) == ("done", ["crop-2", "crop-3", "crop-1"])
        assert {path.name for path in one.service.kept.folder.glob("*.jpg")} == {kept[1].name, new}


def test_filters_that_no_entry_passes_and_near_spellings_are_told(tmp_path):
    with running(tmp_path) as it:
        assert it.add(1, camera="cam1").json()["notes"] == []
        assert it.client.get("/v1/entries?camera=cam1").json()["notes"] == []
        for address in ("/v1/entries?camera=Hall", "/v1/entries?camera=Hall&dry_run=true"):
            reply = it.client.get(address) if "dry" not in address else it.client.delete(address)
            assert reply.json()["notes"] == ["no entry has the camera 'Hall'; those that are: cam1"]
        near = it.client.delete("/v1/entries?camera=01&expect=0").json()
        assert (near["removed"], near["notes"]) == (0, ["no entry has the camera '01': did you mean 'cam1'?"])
        [note] = it.add(2, camera="01").json()["notes"]
        assert "the cameras '01', 'cam1' may be one" in note
        assert it.add(3, camera="gate").json()["notes"] == []
