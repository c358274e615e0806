"""Copies of galleries, folder and cluster, either way: exact, resumable, and never into a gallery of others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fmcnet.errors import GalleryError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval import copy as copying
from fmcnet.retrieval.copy import copy_gallery
from tests.cli import run_command
from tests.retrieval import milvus_stand_in
from tests.retrieval.people import MODEL, add, crops, entries

CLUSTER = "milvus://localhost:19530/people"
N = 300


@pytest.fixture
def server(monkeypatch):
    return milvus_stand_in.install(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Entries with every kind of value, some removed, every third with a thumbnail. Do not change it."""
    at = tmp_path_factory.mktemp("copy") / "people.gallery"
    with Gallery(at, hnsw_above=10_000) as gallery:
        rows = entries(N)
        thumbnails = [f"thumbnail {i}".encode() if i % 3 == 0 else None for i in range(N)]
        add(gallery, crops(N), rows, thumbnails=thumbnails)
        gallery.remove(Where(ids=[rows[5].id, rows[200].id]))
    return at


def content(location):
    with Gallery(location, read_only=True) as gallery:
        return [(entry, vector.tobytes()) for entry, vector in gallery.scan(chunk=64)]


def test_to_a_cluster_and_back_is_the_same_bit_for_bit(folder, server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(copying, "BATCH", 64)
    there = copy_gallery(folder, CLUSTER)
    assert (there.copied, there.already_there, there.entries) == (N - 2, 0, N - 2)
    assert (there.thumbnails, there.thumbnails_left_out) == (0, 100)
    assert "thumbnails" in caplog.text
    monkeypatch.setattr(copying, "BATCH", 77)
    back = copy_gallery(CLUSTER, tmp_path / "back")
    assert (back.copied, back.entries, back.thumbnails_left_out) == (N - 2, N - 2, 0)
    assert content(tmp_path / "back") == content(CLUSTER) == content(folder)
    with Gallery(tmp_path / "back") as gallery:
        assert gallery.settings.model == MODEL
        assert gallery.check() == []


def test_a_folder_to_a_folder_keeps_thumbnails_and_the_note_of_the_model(folder, tmp_path):
    (folder / "made-with.json").write_text('{"model": "/models/a"}\n')
    found = copy_gallery(folder, tmp_path / "other")
    assert (found.thumbnails, found.thumbnails_left_out) == (100, 0)
    assert content(tmp_path / "other") == content(folder)
    with Gallery(tmp_path / "other") as gallery:
        assert gallery.thumbnail("crop-00003") == b"thumbnail 3"
        assert gallery.thumbnail("crop-00004") is None
    assert (tmp_path / "other" / "made-with.json").read_text() == '{"model": "/models/a"}\n'


def test_half_precision_stays(tmp_path, server):
    with Gallery(tmp_path / "half", dtype="float16") as gallery:
        add(gallery, crops(20), entries(20))
    copy_gallery(tmp_path / "half", tmp_path / "other")
    copy_gallery(tmp_path / "half", CLUSTER)
    with Gallery(tmp_path / "other") as gallery:
        assert gallery.settings.dtype == "float16"
    assert content(tmp_path / "other") == content(tmp_path / "half") == content(CLUSTER)
    with Gallery(tmp_path / "begun", dtype="float16") as gallery:
        add(gallery, crops(40)[:7], entries(40)[:7])
    with Gallery(tmp_path / "whole") as gallery:
        add(gallery, crops(40), entries(40))
    found = copy_gallery(tmp_path / "whole", tmp_path / "begun")
    assert (found.copied, found.already_there) == (33, 7)


def test_a_cluster_that_goes_away_is_a_line_and_the_same_call_continues(folder, server, monkeypatch):
    monkeypatch.setattr(copying, "BATCH", 100)
    server.fail_after = 2
    with pytest.raises(GalleryError, match="Milvus says: the server is gone"):
        copy_gallery(folder, CLUSTER)
    assert len(server.collections["people"]["rows"]) == 200
    server.fail_after = None
    found = copy_gallery(folder, CLUSTER)
    assert (found.copied, found.already_there, found.entries) == (98, 200, 298)
    assert content(CLUSTER) == content(folder)


def test_a_cluster_that_goes_away_while_it_is_read_is_a_line_and_the_same_call_continues(
    folder, server, tmp_path, monkeypatch
):
    copy_gallery(folder, CLUSTER)
    monkeypatch.setattr(copying, "BATCH", 64)
    server.fail_reads_after = server.reads + 5
    with pytest.raises(GalleryError, match="Milvus says: the server is gone"):
        copy_gallery(CLUSTER, tmp_path / "back")
    server.fail_reads_after = None
    found = copy_gallery(CLUSTER, tmp_path / "back")
    assert 0 < found.already_there < found.copied
    assert found.already_there + found.copied == found.entries == 298
    assert content(tmp_path / "back") == content(folder)


CODE = """
import sys, time
from fmcnet.retrieval import copy as copying
from fmcnet.retrieval.sqlite_store import SqliteStore
add = SqliteStore.add
def slow(*args):
    done = add(*args)
    print(done.added, flush=True)
    time.sleep(0.3)
    return done
SqliteStore.add = slow
copying.BATCH = 40
copying.copy_gallery(sys.argv[1], sys.argv[2], progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_started_again(folder, tmp_path):
    target = tmp_path / "other"
    copier = subprocess.Popen([sys.executable, "-c", CODE, folder, target], stdout=subprocess.PIPE, text=True)
    assert copier.stdout.readline() == copier.stdout.readline() == "40\n"
    time.sleep(0.01)
    os.kill(copier.pid, signal.SIGKILL)
    copier.wait()
    found = copy_gallery(folder, target)
    assert 80 <= found.already_there < N - 2
    assert found.copied == N - 2 - found.already_there
    assert content(target) == content(folder)
    again = copy_gallery(folder, target)
    assert (again.copied, again.already_there) == (0, N - 2)


def other_id(gallery):
    add(gallery, crops(1, seed=4), entries(1, first=9000))


def other_value(gallery):
    add(gallery, crops(N)[:1], entries(N)[:1])
    gallery.update([entries(1)[0].id], camera="elsewhere")


def other_embedding(gallery):
    add(gallery, crops(1, seed=4), entries(N)[:1])


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (other_id, "holds the entry 'crop-09000', which .* does not"),
        (other_value, "the entry 'crop-00000' of .* is another than that of"),
        (other_embedding, "the entry 'crop-00000' of .* is another than that of"),
    ],
)
def test_a_gallery_of_other_entries_is_refused_and_not_touched(fill, said, folder, tmp_path):
    with Gallery(tmp_path / "other") as gallery:
        fill(gallery)
    before = content(tmp_path / "other")
    with pytest.raises(GalleryError, match=said) as caught:
        copy_gallery(folder, tmp_path / "other")
    assert "\n" not in str(caught.value)
    assert content(tmp_path / "other") == before


def test_a_gallery_of_another_model_is_refused(folder, tmp_path):
    with Gallery(tmp_path / "other", model="another") as gallery:
        gallery.add(crops(1), modality="visible", ids=["crop-00000"])
    with pytest.raises(GalleryError, match="another"):
        copy_gallery(folder, tmp_path / "other")


def test_what_is_removed_from_the_source_meanwhile_does_not_stay_in_the_copy(folder, tmp_path, monkeypatch):
    source = tmp_path / "source"
    copy_gallery(folder, source)
    add_ = copying._copy_entries

    def removes(there, here, *args):
        done = add_(there, here, *args)
        with Gallery(source) as gallery:
            gallery.remove(Where(ids=["crop-00001"]))
        return done

    monkeypatch.setattr(copying, "_copy_entries", removes)
    with pytest.raises(GalleryError, match=r"holds the entry 'crop-00001', which .* does not"):
        copy_gallery(source, tmp_path / "other")


def test_the_same_gallery_an_empty_one_and_none_are_refused(folder, server, tmp_path):
    with pytest.raises(GalleryError, match="are the same gallery"):
        copy_gallery(folder, folder.parent / "x" / ".." / folder.name)
    copy_gallery(folder, CLUSTER)
    with pytest.raises(GalleryError, match="is the gallery itself"):
        copy_gallery(CLUSTER, CLUSTER.replace("//", "//me:secret@"))
    Gallery(tmp_path / "empty").close()
    with pytest.raises(GalleryError, match="is empty: there is nothing to copy"):
        copy_gallery(tmp_path / "empty", tmp_path / "other")
    with pytest.raises(GalleryError, match="there is no gallery at"):
        copy_gallery(f"{CLUSTER}2", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command(folder, server, tmp_path):
    words = ["gallery", "copy", folder, CLUSTER, "--index", "hnsw", "--json"]
    tree = json.loads(run_command(*words).stdout)
    assert tree == {
        "from": str(folder),
        "to": CLUSTER,
        "copied": 298,
        "already_there": 0,
        "entries": 298,
        "pictures": 0,
        "pictures_left_out": 100,
    }
    assert server.collections["people"]["index"] == "HNSW"
    printed = run_command("gallery", "copy", CLUSTER, tmp_path / "back").output
    assert f"to: {tmp_path / 'back'}" in printed
    assert "--index tree" in run_command("gallery", "copy", folder, CLUSTER, "--index", "tree", code=2).output


def test_a_copy_brings_nothing_back_that_was_removed_from_its_target(folder, tmp_path):
    copy_gallery(folder, tmp_path / "g")
    with Gallery(tmp_path / "g") as gallery:
        gallery.remove(Where(ids=["crop-00007", "crop-00010"]))
    with pytest.raises(GalleryError, match=r"2 entries of .* removed images of .*/g, and a copy would bring"):
        copy_gallery(folder, tmp_path / "g")
    with Gallery(tmp_path / "g") as gallery:
        assert len(gallery) == N - 4


def test_a_copy_takes_over_value_ranges_also_those_of_later(folder, tmp_path):
    copy_gallery(folder, tmp_path / "s")
    with Gallery(tmp_path / "s") as gallery:
        gallery.replace_ranges([(0, 100)], len(gallery))
    copy_gallery(tmp_path / "s", tmp_path / "t")
    with Gallery(tmp_path / "s") as gallery:
        gallery.add(crops(1), modality="infrared", model=MODEL, ranges=[(5, 9), None])
        assert gallery.value_ranges == ((0, 100), (5, 9), None)
    copy_gallery(tmp_path / "s", tmp_path / "t")
    with Gallery(tmp_path / "t") as gallery:
        assert gallery.value_ranges == ((0, 100), (5, 9), None)
        gallery.replace_ranges([(1, 2)], len(gallery) + 1)  # another process added one meanwhile
        assert gallery.value_ranges == ((0, 100), (5, 9), None)
