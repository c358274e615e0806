"""The graph and what a state makes of it: each modality apart, filters of every kind, rows that no link leads to."""

from __future__ import annotations

import os
from pathlib import Path

import faiss
import numpy as np
import pytest

from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.embedded import state as state_module
from fmcnet.retrieval.embedded.columns import Columns
from fmcnet.retrieval.embedded.graph import ALONE, Graph
from fmcnet.retrieval.embedded.nearest import exact
from fmcnet.retrieval.embedded.state import State
from tests.retrieval.people import Plain, add, answers, crops, entries


def stated(codes, people, graph_rows=None):
    """A state with a graph over the first rows."""
    columns = Columns()
    columns.append(range(1, len(codes) + 1), people)
    rows = len(codes) if graph_rows is None else graph_rows
    parts = columns["modality"][:rows].copy()
    return State(0, columns, codes, Graph.empty(codes.dtype, codes.shape[1]).extended(codes[:rows], parts))


def recall(found, right):
    """Share of the right rows that were found."""
    pairs = zip(found.tolist(), right.tolist(), strict=True)
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs])


def links(graph):
    """Each link of the graph, of all levels: (from, to)."""
    hnsw = graph._index.hnsw
    to = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    start = np.repeat(np.arange(graph.rows), np.diff(faiss.vector_to_array(hnsw.offsets).astype(np.int64)))
    return start[to >= 0], to[to >= 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_graph_finds_nearly_all_with_and_without_filters(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(state_module, "FEW", 50)
    monkeypatch.setattr(state_module, "LOOKED_AT", 0)
    codes, people = crops(6000, 32, people=300).astype(dtype), entries(6000)
    parts = np.array([entry.modality.code for entry in people], np.uint8)
    graph = Graph.empty(codes.dtype, 32).extended(codes[:2500], parts[:2500]).extended(codes, parts)
    graph.save(tmp_path / "graph")
    for part in codes[::500]:
        assert part.tobytes()[:16] not in (tmp_path / "graph").read_bytes()
    graph = Graph.load(tmp_path / "graph")
    assert graph.rows == 6000
    assert (graph.parts % ALONE == parts).all()
    queries = crops(40, 32, people=300, seed=1)
    random = np.random.default_rng(0)
    columns = Columns()
    columns.append(range(1, 6001), people)
    state = State(0, columns, codes, graph)
    for kind in (parts < 9, parts == 0, parts == 1):
        for share in (1.0, 0.5, 0.1):
            mask = kind & (random.random(6000) <= share)
            found = state.search(queries, 20, mask, only_exact=False)[1]
            assert recall(found, exact(codes, queries, 20, mask)[1]) > 0.98
            assert mask[found].all()


def test_no_link_leads_from_one_modality_to_another(tmp_path):
    codes, people = crops(1500, 32), entries(1500)
    parts = np.array([entry.modality.code for entry in people], np.uint8)
    graph = Graph.empty(codes.dtype, 32)
    for rows in (1, 400, 401, 1500):
        graph.extended(codes[:rows], parts[:rows])
        start, to = links(graph)
        assert (parts[start] == parts[to]).all()
        assert graph.sizes == {k: n for k, n in enumerate(np.bincount(parts[:rows])) if n}
    assert len(start) > 10 * 1500
    query = crops(1, 32, seed=1)
    assert (parts[graph.search(codes, query, 30, 1, 512)[1]] == 1).all()


@pytest.mark.usefixtures("small_graphs")
def test_another_modality_that_is_all_nearer_does_not_hide_the_one_asked_for(monkeypatch):
    """The everyday case: an infrared query, visible entries, and every infrared entry nearer than any visible one."""
    random = np.random.default_rng(0)
    kinds = random.integers(2, size=3000)
    codes = crops(3000, 32, people=100) + 4.0 * np.eye(32, dtype=np.float32)[kinds]
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    people = [entry for entry in entries(9000) if entry.modality.code == 0][:3000]
    other = [entry for entry in entries(9000) if entry.modality.code == 1][:3000]
    people = [other[i] if kind else people[i] for i, kind in enumerate(kinds)]
    state = stated(codes, people)
    compared = []
    monkeypatch.setattr(state_module, "exact", lambda *a: compared.append(a) or exact(*a))
    query = codes[kinds == 1][:5]
    for kind in (0, 1):
        rows = state.search(query, 20, kinds == kind, only_exact=False)[1]
        assert (rows == exact(codes, query, 20, kinds == kind)[1]).all()
    assert not compared  # the graph alone


@pytest.mark.usefixtures("small_graphs")
def test_filters_that_follow_the_geometry_are_answered_right():
    """The allowed rows are all far from the query: the hardest filter for a graph."""
    codes = crops(5000, 32, people=10)
    state = stated(codes, entries(5000))
    query = codes[:1]
    for share in (0.7, 0.3, 0.05):
        far = (codes @ query[0]) < np.quantile(codes @ query[0], share)
        assert (state.search(query, 20, far, only_exact=False)[1] == exact(codes, query, 20, far)[1]).all()


@pytest.mark.usefixtures("small_graphs")
def test_a_state_searches_graph_base_and_tail_together():
    codes, people = crops(900, 32, people=60), entries(900)
    state = stated(codes[:700].copy(), people[:700], graph_rows=500)
    state.append(range(701, 901), people[700:], codes[700:])
    queries = crops(30, 32, people=60, seed=3)
    everything = np.ones(900, bool)
    right = exact(codes, queries, 10, None)[1]
    for only_exact in (False, True):
        assert (state.search(queries, 10, everything, only_exact=only_exact)[1] == right).all()
    gone = [1, 450, 650, 800]
    state.forget(gone)
    mask = state.columns.mask(None)
    right = exact(codes, queries, 10, mask)[1]
    for only_exact in (False, True):
        assert (state.search(queries, 10, mask, only_exact=only_exact)[1] == right).all()
    assert state.live == 896
    assert not state.tail[799 - 700].any()
    assert state.search(queries, 10, ~everything, only_exact=False)[1].shape == (30, 0)
    state.forget(list(range(1, 200)))
    assert state.trusted is None  # too many are gone for the graph to be good


@pytest.mark.usefixtures("small_graphs")
def test_rows_that_no_link_leads_to_are_found_all_the_same(monkeypatch):
    codes, people = crops(800, 32), entries(800)
    whole = stated(codes, people)
    hidden = np.arange(5, 800, 60)
    graph = whole.graph
    hnsw = graph._index.hnsw
    to = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    cut = np.isin(
        to, hidden
    )  # FAISS reads a row's links up to the first -1, so another is put in their place
    to[cut] = np.repeat(np.arange(800), np.diff(faiss.vector_to_array(hnsw.offsets).astype(np.int64)))[cut]
    lost = np.flatnonzero(~graph._reached())
    assert set(hidden) - {graph._entries[part][0] for part in (0, 1)} <= set(lost)
    graph.parts[lost] |= ALONE
    graph.sizes = graph._count()
    assert sum(graph.sizes.values()) == 800 - len(lost)
    everything = np.ones(800, bool)
    for query in codes[hidden]:
        assert (
            whole.search(query[None], 10, everything, only_exact=False)[1]
            == exact(codes, query[None], 10, None)[1]
        ).all()
    longer = np.concatenate([codes, crops(30, 32, seed=2)])
    kinds = np.array([entry.modality.code for entry in entries(830)], np.uint8)
    assert (graph.extended(longer, kinds).parts % ALONE == kinds).all()  # they keep their part


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_growing_a_graph_leaves_no_copy_of_the_embeddings_in_memory(dtype):
    codes = crops(500, 4096).astype(dtype)
    kinds = np.zeros(len(codes), np.uint8)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    graph = Graph.empty(codes.dtype, codes.shape[1]).extended(codes, kinds)
    before = resident()
    for _ in range(50):
        graph = graph.extended(codes, kinds)  # each time copied
    assert resident() - before < 5 * codes.nbytes
    assert graph.search(codes, codes[:1].astype(np.float32), 1, 0, 500)[1].tolist() == [[0]]


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
            for query in crops(400)[:9:3]:
                for asked in ("visible", "infrared"):
                    answers(gallery, plain, query, 12, Where(modality=asked))
