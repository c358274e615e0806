"""What only the embedded gallery has: its files, its choice of index, float16, export."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fmcnet.errors import GalleryError, MissingDependencyError
from fmcnet.retrieval import Gallery, Where, faiss_index
from fmcnet.retrieval.faiss_index import FaissIndex, ModalityIndex
from tests.retrieval.people import MODEL, Plain, add, crops, entries, same


@pytest.mark.usefixtures("small_graphs")
def test_the_index_is_chosen_by_size_and_kept(tmp_path):
    plain = Plain()
    with Gallery(tmp_path / "g", hnsw_above=300, flush_rows=100) as gallery:
        for turn in range(5):
            vectors, rows = crops(100, seed=turn), entries(100, first=100 * turn)
            add(gallery, vectors, rows)
            plain.add(vectors, rows)
            assert gallery.info().index == ("exact" if turn < 3 else "hnsw")
        gallery.compact()
        assert gallery.info().unindexed == 0
    with Gallery(tmp_path / "g") as gallery:  # hnsw_above is remembered
        assert gallery.info().index == "hnsw"
        query = crops(1, seed=77)[0]
        same(gallery.search(query, 9, exact=True), plain.search(query, 9))
        same(gallery.search(query, 9), plain.search(query, 9))
    with Gallery(tmp_path / "g", index="exact") as gallery:
        assert gallery.info().index == "exact"
    with Gallery(tmp_path / "g", read_only=True) as gallery:
        assert gallery.info().index == "exact"


def test_searches_use_the_graph_only_when_many_rows_are_allowed(tmp_path, monkeypatch, small_graphs):
    calls = []
    real = ModalityIndex._search_graph
    monkeypatch.setattr(ModalityIndex, "_search_graph", lambda *a: calls.append(1) or real(*a))
    with Gallery(tmp_path / "g", index="hnsw", flush_rows=100) as gallery:
        add(gallery, crops(600), entries(600))
        query = crops(1, seed=3)[0]
        gallery.search(query)
        assert len(calls) == 2  # one for each modality
        gallery.search(query, where=Where(ids=[f"crop-{i:05d}" for i in range(20)]))
        gallery.search(query, exact=True)
        assert len(calls) == 2
        gallery.search(query, where=Where(modality="visible"))
        assert len(calls) == 3
        monkeypatch.setattr(faiss_index, "FEW", 20_000)
        gallery.search(query)
        assert len(calls) == 3


@pytest.mark.usefixtures("small_graphs")
def test_compacting_keeps_a_graph_that_is_still_right(tmp_path, monkeypatch):
    built = []
    real = FaissIndex.grow_graphs
    monkeypatch.setattr(FaissIndex, "grow_graphs", lambda self: built.append(self.graph_rows) or real(self))
    plain, query = Plain(), crops(1, seed=3)[0]
    with Gallery(tmp_path / "g", index="hnsw", flush_rows=100) as gallery:
        for first, count in ((0, 600), (600, 20)):
            add(gallery, crops(count, seed=first), entries(count, first=first))
            plain.add(crops(count, seed=first), entries(count, first=first))

        def compacted():
            built.clear()
            gallery.compact()
            assert gallery.info().unindexed == 0
            for kind in (None, "visible"):
                same(
                    gallery.search(query, 9, Where(modality=kind)),
                    plain.search(query, 9, Where(modality=kind)),
                )
            with Gallery(tmp_path / "g", read_only=True) as reader:
                same(reader.search(query, 9), plain.search(query, 9))
            return built

        assert compacted() == [600]  # completed
        assert compacted() == []
        gallery.update(
            ["crop-00005"], modality="infrared" if entries(6)[5].modality == "visible" else "visible"
        )
        plain.update(["crop-00005"], modality=gallery.get("crop-00005").modality)
        assert compacted() == [0]  # anew
        gallery.remove(Where(ids=["crop-00007"]))
        plain.remove(Where(ids=["crop-00007"]))
        assert compacted() == [0]
        assert compacted() == []


def test_float16_halves_the_files_and_hardly_moves_similarities(tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        with Gallery(tmp_path / dtype, dtype=dtype, flush_rows=10) as gallery:
            gallery.add(
                crops(800, 256), modality="visible", model=MODEL, ids=[f"{i:04d}" for i in range(800)]
            )
            hits = gallery.search(crops(1, 256, seed=2)[0], 10)
            gallery.compact()
            sizes[dtype] = gallery.info().bytes
            assert gallery.settings.dtype == dtype
            stored = gallery.embedding("0003")
            assert stored.dtype == np.float32
            np.testing.assert_allclose(stored, crops(800, 256)[3], atol=1e-3)
        if dtype == "float32":
            full = hits
    assert sizes["float16"] < 0.65 * sizes["float32"]
    assert [h.id for h in hits] == [h.id for h in full]
    assert [h.similarity for h in hits] == pytest.approx([h.similarity for h in full], abs=1e-3)
    with Gallery(tmp_path / "float16", dtype="float32") as gallery:  # fixed by the first add
        assert gallery.settings.dtype == "float16"


@pytest.mark.parametrize("sign", [1, -1])
def test_float16_similarities_beyond_one_are_equal_and_ordered_by_id(tmp_path, sign):
    """Rounded to float16 a vector is longer or shorter than 1: by up to 4e-5 here."""
    query = crops(1, 64, seed=1)[0]
    near = query + np.random.default_rng(0).normal(scale=1e-4, size=(600, 64))
    with Gallery(tmp_path / "g", dtype="float16", index="exact") as gallery:
        gallery.add(sign * near, modality="visible", model=MODEL, ids=[f"{i:04d}" for i in range(600)])
        every = gallery.search(query, 600)
        ends = [h.similarity for h in every].count(float(sign))
        assert 100 < ends < 600
        for top in (3, 600 - ends + 3):
            assert [h.id for h in gallery.search(query, top)] == [h.id for h in every[:top]]


def test_compaction_gives_space_back(tmp_path):
    with Gallery(tmp_path / "g", flush_rows=100) as gallery:
        add(gallery, crops(2000, 128), entries(2000))
        gallery.compact()
        before = gallery.info()
        gallery.remove(Where(ids=[f"crop-{i:05d}" for i in range(1600)]))
        assert gallery.info().removed == 1600
        gallery.compact()
        after = gallery.info()
        assert (after.entries, after.removed) == (400, 0)
        assert after.bytes < 0.4 * before.bytes


def test_export_to_npz(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        with pytest.raises(GalleryError, match="is empty"):
            gallery.export(tmp_path / "x.npz")
        rows = entries(50)
        add(gallery, crops(50), rows)
        assert gallery.export(tmp_path / "all.npz") == 50
        with np.load(tmp_path / "all.npz") as stored:
            np.testing.assert_allclose(stored["embedding"], crops(50), atol=1e-6)
            assert stored["id"].tolist() == [r.id for r in rows]
            assert stored["pid"].tolist() == [r.pid or "" for r in rows]
            assert stored["camera"].tolist() == [r.camera or "" for r in rows]
            assert [json.loads(t) for t in stored["tags"]] == [list(r.tags) for r in rows]
            assert str(stored["model"]) == MODEL
        assert gallery.export(tmp_path / "gate.npz", Where(cameras=["gate"])) == gallery.count(
            Where(cameras=["gate"])
        )
        assert gallery.export(tmp_path / "none.npz", Where(cameras=[])) == 0
        for bad in (tmp_path / "x.csv", tmp_path / "all.npz" / "x.npz"):
            with pytest.raises(GalleryError, match=r"must end in|cannot be written"):
                gallery.export(bad)


def test_export_to_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with Gallery(tmp_path / "g") as gallery:
        rows = entries(50)
        add(gallery, crops(50), rows)
        assert gallery.export(tmp_path / "all.parquet") == 50
    table = parquet.read_table(tmp_path / "all.parquet")
    for name in ("id", "pid", "camera", "time", "source", "track"):
        assert table[name].to_pylist() == [getattr(r, name) for r in rows]
    assert table["tags"].to_pylist() == [list(r.tags) for r in rows]
    assert table["modality"].to_pylist() == [str(r.modality) for r in rows]
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), crops(50), atol=1e-6)
    assert table.schema.metadata[b"fmcnet.models"] == MODEL.encode()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"fmcnet\[gallery\]"):
        Gallery(tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_an_unfinished_creation_is_finished(tmp_path):
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "gallery.sqlite").touch()
    (tmp_path / "g" / "writer.lock").touch()
    with pytest.raises(GalleryError, match="gallery"):
        Gallery(tmp_path / "g", read_only=True)
    with Gallery(tmp_path / "g") as gallery:
        add(gallery, crops(2), entries(2))
        assert len(gallery) == 2


@pytest.mark.parametrize("error", [OSError(28, "full"), MemoryError(), RuntimeError("Error in faiss")])
def test_an_index_that_cannot_be_written_does_not_undo_an_add(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    with Gallery(tmp_path / "g", index="hnsw", flush_rows=10) as gallery:
        with monkeypatch.context() as broken:
            broken.setattr(FaissIndex, "grow_graphs", fail)
            assert add(gallery, crops(50), entries(50)).added == 50
        assert len(gallery) == 50
        assert gallery.search(crops(50)[7], 1)[0].id == "crop-00007"


@pytest.mark.parametrize(
    "wrong",
    [
        {"flush_rows": 0}, {"flush_rows": "3"}, {"flush_rows": True},
        {"hnsw_above": -1}, {"hnsw_above": 2.5}, {"timeout": -1},
        {"timeout": float("inf")}, {"timeout": float("nan")}, {"timeout": "5"}, {"timeout": None},
    ],
)  # fmt: skip
def test_a_number_that_no_gallery_takes_makes_none(tmp_path, wrong):
    with pytest.raises(GalleryError, match=rf"{next(iter(wrong))}=.* must be"):
        Gallery(tmp_path / "g", **wrong)
    assert not (tmp_path / "g").exists()


def test_numbers_and_ids_of_other_types(tmp_path):
    with Gallery(tmp_path / "g", model="m", hnsw_above=np.int64(5), flush_rows=np.int32(3)) as gallery:
        gallery.add(np.eye(4), modality="visible", ids=list("abcd"))
        assert [hit.id for hit in gallery.search(np.eye(4)[2], top=np.int64(1))] == ["c"]
        gallery.add(np.random.default_rng(0).standard_normal((40, 4)), modality="visible")
        for top in (np.int64(2), np.int32(2)):
            assert len(gallery.search(np.eye(4)[2], top=top)) == 2
            assert len(gallery.search_groups(np.eye(4)[2], "track", top)) == 2
        for wrong in ("3", 2.0, True, None):
            with pytest.raises(GalleryError, match=r"top=.* must be a whole number"):
                gallery.search(np.eye(4)[2], top=wrong)
        for work in (gallery.get, gallery.embedding, gallery.thumbnail, gallery.__contains__):
            with pytest.raises(GalleryError, match="an id is a text, not b'a'"):
                work(b"a")
