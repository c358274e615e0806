"""A gallery removed or replaced under a running service, and one that is served read-only."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from fmcnet.errors import GalleryReplacedError
from fmcnet.retrieval import Gallery, Where
from fmcnet.server.run import _can_write
from tests.server.service import DIGEST, KEYS, bearer, running


def other_gallery(folder, ids, model=DIGEST):
    with Gallery(folder, model=model) as gallery:
        gallery.add(np.eye(12)[: len(ids)], modality="visible", ids=ids, camera="new")


def ids_of(it):
    return sorted(entry["id"] for entry in it.client.get("/v1/entries").json()["entries"])


def test_the_service_goes_on_with_the_gallery_that_is_put_there(tmp_path):
    with running(tmp_path) as it:
        it.add(1, 2)
        place = tmp_path / "people.gallery"
        place.rename(tmp_path / "away")
        other_gallery(place, ["x", "y", "z"])
        assert ids_of(it) == ["x", "y", "z"]
        assert it.client.get("/readyz").status_code == 200
        assert it.client.get("/v1/gallery").json()["cameras"] == ["new"]
        assert {hit["id"] for hit in it.search(1).json()["hits"]} == {"x", "y", "z"}
        assert it.add(3).status_code == 201
        assert it.client.delete("/v1/entries/x").status_code == 200
        with Gallery(place, read_only=True) as now, Gallery(tmp_path / "away", read_only=True) as before:
            assert {entry.id for entry, _ in now.scan()} == {"y", "z", "crop-3"}
            assert {entry.id for entry, _ in before.scan()} == {"crop-1", "crop-2"}


def test_the_first_request_after_the_replacement_may_be_a_write(tmp_path):
    with running(tmp_path) as it:
        it.add(1)
        place = tmp_path / "people.gallery"
        shutil.rmtree(place)
        other_gallery(place, ["x"])
        assert it.add(2).json()["added"] == 1
        assert ids_of(it) == ["crop-2", "x"]


def test_a_gallery_that_is_gone_is_503_until_it_is_back(tmp_path):
    with running(tmp_path) as it:
        it.add(1)
        place = tmp_path / "people.gallery"
        place.rename(tmp_path / "away")
        for reply in (it.add(2), it.search(1), it.client.get("/v1/entries"), it.client.get("/v1/gallery")):
            assert reply.status_code == 503
            assert "was removed, or replaced" in reply.json()["error"]["what"]
            assert str(tmp_path) not in reply.text
        ready = it.client.get("/readyz")
        assert (ready.status_code, len(ready.json()["faults"])) == (503, 1)
        assert it.client.get("/healthz").status_code == 200
        assert not place.exists()
        other_gallery(place, ["x"], model="another model")
        assert it.search(1).status_code == 503
        place.rename(tmp_path / "of another model")
        (tmp_path / "away").rename(place)
        assert ids_of(it) == ["crop-1"]
        assert it.client.get("/readyz").status_code == 200


def test_an_open_gallery_says_that_it_was_replaced(tmp_path):
    place = tmp_path / "g"
    other_gallery(place, ["a"])
    with Gallery(place, model=DIGEST) as gallery, Gallery(place, read_only=True) as reader:
        gallery.add(np.ones((1, 12)), modality="visible", ids=["b"])
        place.rename(tmp_path / "away")
        for do in (
            lambda: len(reader),
            lambda: reader.search(np.ones(12)),
            lambda: list(gallery.scan()),
            lambda: gallery.add(np.ones((1, 12)), modality="visible", ids=["c"]),
            gallery.info,
            gallery.compact,
        ):
            with pytest.raises(
                GalleryReplacedError, match="was removed, or another gallery was put in its place"
            ):
                do()
        other_gallery(place, ["x"])
        before = {path.name for path in place.iterdir()}
        with pytest.raises(GalleryReplacedError):
            gallery.remove(Where(ids=["b"]))
    assert {path.name for path in place.iterdir()} == before  # closing wrote nothing there
    with Gallery(place, read_only=True) as now:
        assert [entry.id for entry, _ in now.scan()] == ["x"]


def test_a_write_into_files_that_go_meanwhile_is_not_acknowledged(tmp_path):
    place = tmp_path / "g"
    with Gallery(place, model=DIGEST) as gallery:
        gallery.add(np.ones((1, 12)), modality="visible", ids=["a"])
        flush_if_due = gallery._store.index.flush_if_due

        def go() -> None:  # after the commit
            place.rename(tmp_path / "away")
            gallery._store.index.flush_if_due = flush_if_due

        gallery._store.index.flush_if_due = go
        with pytest.raises(GalleryReplacedError):
            gallery.add(np.ones((1, 12)), modality="visible", ids=["b"])
        (tmp_path / "away").rename(place)
        assert "b" in gallery


def test_another_database_in_the_same_file_is_noticed(tmp_path):
    other_gallery(tmp_path / "g", ["a"])
    with Gallery(tmp_path / "g", read_only=True) as gallery, Gallery(tmp_path / "g") as writer:
        database = writer._store.database
        with database.writing():
            database.put("gallery", '{"format": 1, "name": "restored"}')
        with pytest.raises(GalleryReplacedError):
            list(gallery.scan())


def test_read_only_searches_and_refuses_the_rest(tmp_path):
    other_gallery(tmp_path / "people.gallery", ["x", "y"])
    with running(tmp_path, read_only=True, keys=KEYS) as it:
        it.client.headers.update(bearer("admin"))
        state = it.client.get("/v1/gallery").json()
        assert (state["read_only"], state["may"]) == (True, ["read"])
        assert it.search(1).json()["compared"] == 2
        for reply in (
            it.add(2),
            it.client.delete("/v1/entries/x"),
            it.client.put("/v1/new", json={}),
            it.client.delete("/v1/entries?camera=new&expect=2"),
        ):
            assert reply.status_code == 403
            assert "read-only" in reply.json()["error"]["what"]
        assert ids_of(it) == ["x", "y"]
        assert it.client.get("/readyz").status_code == 200


def test_a_gallery_that_cannot_be_written_is_served_read_only(tmp_path, monkeypatch):
    assert _can_write(str(tmp_path / "new"))
    assert _can_write("milvus://host:1/x")
    other_gallery(tmp_path / "g", ["x"])
    assert _can_write(str(tmp_path / "g"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    assert not _can_write(str(tmp_path / "g"))
