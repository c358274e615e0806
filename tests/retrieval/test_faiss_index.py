"""The index in memory: exact search, a graph for each modality, filters, rows that a graph does not find."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fmcnet.retrieval import Gallery, Where, faiss_index, gallery_index
from fmcnet.retrieval.entry_columns import EntryColumns
from fmcnet.retrieval.faiss_index import FaissIndex, ModalityIndex, empty_flat, exact, merged
from tests.retrieval.people import Plain, add, answers, crops, entries


def slow(codes, query, top, mask):
    """Rows of the largest inner products, one by one."""
    scores = [(float(query.astype(np.float64) @ row.astype(np.float64)), i) for i, row in enumerate(codes)]
    return [i for _, i in sorted((pair for pair in scores if mask[pair[1]]), reverse=True)[:top]]


def right(codes, queries, top, mask):
    """(Q, top) rows by one matrix product."""
    scores = queries.astype(np.float64) @ codes.T.astype(np.float64)
    return np.argsort(np.where(mask, -scores, np.inf), axis=1, kind="stable")[:, :top]


def indexed(codes, people, graph_rows=None):
    """An index of all rows, with graphs over the first ones."""
    index = FaissIndex(codes.shape[1], str(codes.dtype))
    rows = len(codes) if graph_rows is None else graph_rows
    index.append(range(1, rows + 1), people[:rows], codes[:rows])
    index.grow_graphs()
    index.append(range(rows + 1, len(codes) + 1), people[rows:], codes[rows:])
    return index


def reloaded(index, codes, folder):
    """The index as another process reads it from files."""
    index.save_graphs(folder / "graph")
    index.columns.save(folder / "columns", len(index))
    again = FaissIndex(index.dimension, str(index.dtype), EntryColumns.load(folder / "columns"))
    again.load(codes, folder / "graph")
    return again


def recall(found, truth):
    """Share of the right rows that were found."""
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs])


@pytest.fixture
def comparisons(monkeypatch):
    """Counts the searches that compare one by one."""
    made = []
    monkeypatch.setattr(faiss_index, "exact", lambda *a: made.append(a) or exact(*a))
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_is_the_slow_answer(dtype):
    codes, queries = crops(300, 24).astype(dtype), crops(5, 24, seed=1)
    index = empty_flat(24, codes.dtype)
    index.add(codes.astype(np.float32))
    for mask in (np.ones(300, bool), np.arange(300) % 7 == 3):
        similarity, rows = exact(index, queries, 6, mask)
        for query, row in zip(queries, rows, strict=True):
            assert row.tolist() == slow(codes, query, 6, mask)
        assert (np.diff(similarity, axis=1) <= 0).all()
    assert (exact(index, queries, 6, np.arange(300) < 2)[1][:, 2:] == -1).all()


def test_merged_answers_are_the_best_of_all():
    a = (np.array([[0.9, 0.5, -np.inf]], np.float32), np.array([[4, 2, -1]]))
    b = (np.array([[0.8, 0.1]], np.float32), np.array([[9, 7]]))
    similarity, rows = merged([a, b], 3)
    assert rows.tolist() == [[4, 9, 2]]
    np.testing.assert_allclose(similarity, [[0.9, 0.8, 0.5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_graph_finds_nearly_all_with_and_without_filters(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(faiss_index, "FEW", 50)
    monkeypatch.setattr(faiss_index, "LOOKED_AT", 0)
    codes, people = crops(3000, 32, people=150).astype(dtype), entries(3000)
    parts = np.array([entry.modality.code for entry in people], np.uint8)
    index = indexed(codes, people, graph_rows=1250)
    index.grow_graphs()
    assert index.indexed > 0.99 * 3000
    again = reloaded(index, codes, tmp_path)
    for row in codes[::250]:
        assert row.tobytes()[:16] not in (tmp_path / "graph").read_bytes()
    queries = crops(40, 32, people=150, seed=1)
    random = np.random.default_rng(0)
    for one in (index, again):
        assert one.graph_rows == 3000
        for kind in (parts < 9, parts == 0, parts == 1):
            for share in (1.0, 0.5, 0.1):
                mask = kind & (random.random(3000) <= share)
                found = one.search(queries, 20, mask, only_exact=False)[1]
                assert recall(found, right(codes, queries, 20, mask)) > 0.98
                assert mask[found].all()


def test_each_graph_holds_the_rows_of_one_modality():
    codes, people = crops(1500, 32), entries(1500)
    parts = np.array([entry.modality.code for entry in people], np.uint8)
    index = indexed(codes, people, graph_rows=1)
    for rows in (400, 401, 1500):
        index.grow_graphs()
        first = len(index)
        index.append(range(first + 1, rows + 1), people[first:rows], codes[first:rows])
    index.grow_graphs()
    for code, part in enumerate(index.parts):
        assert (part.positions == np.flatnonzero(parts == code)).all()
        assert part.graph.ntotal == part.graph_rows == np.count_nonzero(parts == code)


@pytest.mark.usefixtures("small_graphs")
def test_another_modality_that_is_all_nearer_does_not_hide_the_one_asked_for(comparisons):
    """The everyday case: an infrared query, visible entries, and every infrared entry nearer than any visible one."""
    random = np.random.default_rng(0)
    kinds = random.integers(2, size=3000)
    codes = crops(3000, 32, people=100) + 4.0 * np.eye(32, dtype=np.float32)[kinds]
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    people = [entry for entry in entries(9000) if entry.modality.code == 0][:3000]
    other = [entry for entry in entries(9000) if entry.modality.code == 1][:3000]
    people = [other[i] if kind else people[i] for i, kind in enumerate(kinds)]
    index = indexed(codes, people)
    assert index.indexed == 3000
    query = codes[kinds == 1][:5]
    for kind in (0, 1):
        rows = index.search(query, 20, kinds == kind, only_exact=False)[1]
        assert (rows == right(codes, query, 20, kinds == kind)).all()
    assert not comparisons  # the graph alone


@pytest.mark.usefixtures("small_graphs")
def test_filters_that_follow_the_geometry_are_answered_right():
    """The allowed rows are all far from the query: the hardest filter for a graph."""
    codes = crops(5000, 32, people=10)
    index = indexed(codes, entries(5000))
    query = codes[:1]
    for share in (0.7, 0.3, 0.05):
        far = (codes @ query[0]) < np.quantile(codes @ query[0], share)
        found = index.search(query, 20, far, only_exact=False)[1]
        assert (found == right(codes, query, 20, far)).all()


@pytest.mark.usefixtures("small_graphs")
def test_graphs_and_the_rows_beside_them_are_searched_together(tmp_path):
    codes, people = crops(900, 32, people=60), entries(900)
    index = indexed(codes, people, graph_rows=500)
    queries = crops(30, 32, people=60, seed=3)
    everything = np.ones(900, bool)
    again = reloaded(index, codes, tmp_path)
    assert again.graph_rows == 500
    for only_exact in (False, True):
        for one in (index, again):
            found = one.search(queries, 10, everything, only_exact=only_exact)[1]
            assert (found == right(codes, queries, 10, everything)).all()
    gone = [1, 450, 650, 800]
    index.forget(gone)
    mask = index.columns.mask(None)
    for only_exact in (False, True):
        found = index.search(queries, 10, mask, only_exact=only_exact)[1]
        assert (found == right(codes, queries, 10, mask)).all()
    assert index.live == 896
    kept = index.codes_from(0)
    assert not kept[[row - 1 for row in gone]].any()
    assert np.array_equal(kept[index.columns.alive], codes[index.columns.alive])
    assert np.array_equal(index.codes_from(600), kept[600:])
    assert index.search(queries, 10, ~everything, only_exact=False)[1].shape == (30, 0)
    assert index.indexed
    index.forget(list(range(1, 200)))
    assert not index.indexed  # too many are gone for the graphs to be good


@pytest.mark.usefixtures("small_graphs")
def test_rows_that_a_graph_does_not_find_are_found_all_the_same(tmp_path):
    """Copies of one embedding link to each other, so a search for it does not see all of them."""
    codes, people = crops(2000, 32), entries(2000)
    codes[100:1100] = codes[100]
    index = indexed(codes, people)
    assert 500 < 2000 - index.indexed < 1100
    everything = np.ones(2000, bool)
    lost = [part.positions[: part.graph_rows][~part.reached] for part in index.parts]
    for one in (index, reloaded(index, codes, tmp_path)):
        found = one.search(codes[100:101], 1000, everything, only_exact=False)[1]
        assert set(found[0].tolist()) == set(range(100, 1100))
        for row in np.concatenate(lost)[::50].tolist():
            alone = everything.copy()
            alone[100:1100] = False
            alone[row] = True
            assert one.search(codes[row : row + 1], 1, alone, only_exact=False)[1].tolist() == [[row]]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_building_and_loading_graphs_leaves_no_copy_of_the_embeddings_in_memory(tmp_path, dtype):
    codes, people = crops(300, 4096).astype(dtype), entries(300)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    index = indexed(codes, people)
    reloaded(index, codes, tmp_path)
    before = resident()
    for _ in range(12):
        again = reloaded(indexed(codes, people), codes, tmp_path)
    assert resident() - before < 8 * codes.nbytes
    query = codes[:1].astype(np.float32)
    assert again.search(query, 1, np.ones(300, bool), only_exact=False)[1].tolist() == [[0]]


def test_a_modality_without_rows_has_no_graph():
    part = ModalityIndex(8, np.dtype(np.float32))
    part.grow(np.empty(0, bool))
    assert part.graph is None
    assert part.search(crops(2, 8), 3, np.empty(0, bool), 0) == []


@pytest.mark.usefixtures("small_graphs")
def test_an_entry_whose_modality_is_set_anew_is_found_under_the_new_one(tmp_path):
    plain = Plain()
    with Gallery(tmp_path / "g", index="hnsw", flush_rows=50) as gallery:
        add(gallery, crops(400), entries(400))
        plain.add(crops(400), entries(400))
        names = [f"crop-{i:05d}" for i in range(0, 90, 3)]
        for kind in ("visible", "infrared"):
            gallery.update(names, modality=kind)
            plain.update(names, modality=Where(modality=kind).modality)
            with Gallery(tmp_path / "g", read_only=True) as reader:
                for query in crops(400)[:9:3]:
                    for asked in ("visible", "infrared"):
                        for one in (gallery, reader):
                            answers(one, plain, query, 12, Where(modality=asked))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_left_of_a_person_is_found_after_removals_and_reopening(tmp_path, monkeypatch, dtype):
    """A graph leads to a crop past the person's others; removed ones must not end the way, nor stay in the file."""
    monkeypatch.setattr(faiss_index, "FEW", 100)
    monkeypatch.setattr(faiss_index, "LOOKED_AT", 1)
    monkeypatch.setattr(faiss_index, "EF_SEARCH", 64)
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 60)
    codes = rng.normal(size=(40, 16))[person] + 0.1 * rng.normal(size=(len(person), 16))
    ids = np.array([f"{row:05d}" for row in range(len(person))])
    left, removed = {*range(len(person))}, set[int]()

    def lost():
        with Gallery(tmp_path / "g", model="m") as gallery:
            thin = [row for row in sorted(left) if person[row] % 5 == 0]
            found = [gallery.search(codes[row], top=1)[0].id == ids[row] for row in thin]
            assert gallery.info().unindexed < 100
            assert gallery.check() == []
            return found.count(False)

    def stored():
        code = np.dtype(dtype).itemsize * 16
        data = next((tmp_path / "g").glob("vectors-*")).read_bytes()
        return {data[start : start + code] for start in range(0, len(data), code)}

    with Gallery(tmp_path / "g", model="m", dtype=dtype, index="hnsw") as gallery:
        gallery.add(codes, modality="visible", ids=ids)
        gallery.compact()
        kept = {ids[row]: gallery.embedding(ids[row]).astype(dtype).tobytes() for row in sorted(left)}
    for keep_from in (57, 58, 59):  # three, two and one of sixty stay of a fifth of the people
        gone = {row for row in left if person[row] % 5 == 0 and row % 60 < keep_from}
        with Gallery(tmp_path / "g", model="m") as gallery:
            gallery.remove(Where(ids=ids[sorted(gone)].tolist()))
        left, removed = left - gone, removed | gone
        assert lost() == 0, keep_from
        assert not stored() & {kept[ids[row]] for row in removed}
        assert {kept[ids[row]] for row in left} <= stored()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_rows_of_a_graph_are_removed_while_newer_ones_stay(tmp_path, dtype):
    """Nothing of the graph is left to search, and the newer rows stand in for the removed ones."""
    rng = np.random.default_rng(0)
    removed, newer = rng.normal(size=(20, 16)), rng.normal(size=(5, 16))
    with Gallery(tmp_path / "g", model="m", index="hnsw", dtype=dtype) as gallery:
        gallery.add(rng.normal(size=(300, 16)), modality="infrared")
        gallery.add(removed, ids=[f"old{row}" for row in range(20)], modality="visible")
        gallery.compact()
        stored = [gallery.embedding(f"old{row}").astype(dtype).tobytes() for row in range(20)]
        gallery.add(newer, ids=[f"new{row}" for row in range(5)], modality="visible")
        assert gallery.remove(Where(ids=[f"old{row}" for row in range(20)])) == 20
    with Gallery(tmp_path / "g", model="m") as gallery:
        assert [gallery.search(row, top=1, where=Where(modality="visible"))[0].id for row in newer] == [
            f"new{row}" for row in range(5)
        ]
        gallery.compact()
        assert gallery.check() == []
    data = b"".join(path.read_bytes() for path in (tmp_path / "g").iterdir() if path.is_file())
    assert not any(embedding in data for embedding in stored)


@pytest.mark.parametrize("dimension", [16, 32])
@pytest.mark.parametrize("how", ["replaced", "removed and added"])
def test_graphs_that_grow_after_removals_find_all_when_reopened(tmp_path, monkeypatch, dimension, how):
    """The writer, whose memory had the removed rows, makes the links that others read."""
    for name, value in (("FEW", 100), ("LOOKED_AT", 1), ("EF_SEARCH", 64)):
        monkeypatch.setattr(faiss_index, name, value)
    monkeypatch.setattr(gallery_index, "BEHIND", 200)
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 60)
    codes = rng.normal(size=(40, dimension))[person] + 0.1 * rng.normal(size=(len(person), dimension))
    ids = np.array([f"{row:05d}" for row in range(len(person))])
    again = person % 5 == 0
    with Gallery(tmp_path / "g", model="m", index="hnsw", flush_rows=100) as gallery:
        gallery.add(codes, modality="visible", ids=ids)
        gallery.compact()
        if how != "replaced":
            gallery.remove(Where(ids=ids[again].tolist()))
        for rows in np.array_split(np.flatnonzero(again), 4):
            gallery.add(codes[rows], modality="visible", ids=ids[rows], on_duplicate="replace")
    with Gallery(tmp_path / "g", model="m") as gallery:
        assert gallery.info().unindexed < 400
        found = [gallery.search(codes[row], top=1)[0].id == ids[row] for row in np.flatnonzero(again)]
        assert found.count(False) == 0
