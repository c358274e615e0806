"""FAISS over arrays: exact is exact, the graph finds nearly all, with filters too; nothing is copied."""

from __future__ import annotations

import numpy as np
import pytest

from fmcnet.gallery.embedded import state as state_module
from fmcnet.gallery.embedded.columns import Columns
from fmcnet.gallery.embedded.nearest import Graph, exact, flat_over, merged
from fmcnet.gallery.embedded.state import State
from tests.gallery.people import crops, entries


def slow(codes, query, top, mask=None):
    """Rows of the largest inner products, one by one."""
    scores = [(float(query.astype(np.float64) @ row.astype(np.float64)), i) for i, row in enumerate(codes)]
    allowed = [pair for pair in scores if mask is None or mask[pair[1]]]
    return [i for _, i in sorted(allowed, reverse=True)[:top]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_is_the_slow_answer(dtype):
    codes, queries = crops(300, 24).astype(dtype), crops(5, 24, seed=1)
    mask = np.arange(300) % 7 == 3
    for allowed in (None, mask):
        similarity, rows = exact(codes, queries, 6, allowed)
        for query, row in zip(queries, rows, strict=True):
            assert row.tolist() == slow(codes, query, 6, allowed)
        assert (np.diff(similarity, axis=1) <= 0).all()
    similarity, rows = exact(codes, queries, 6, np.arange(300) < 2)
    assert (rows[:, 2:] == -1).all()
    assert (exact(codes[:0], queries, 6, None)[1] == -1).all()


def test_a_flat_index_looks_into_the_array_itself():
    codes = crops(50, 16)
    index = flat_over(codes)
    target = crops(1, 16, seed=2)
    codes[33] = target[0]
    assert index.search(target, 1)[1][0, 0] == 33


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_graph_finds_nearly_all_with_and_without_filters(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(state_module, "FEW", 50)
    codes = crops(6000, 32, people=300).astype(dtype)
    graph = Graph.empty(codes.dtype, 32).extended(codes[:2500]).extended(codes)
    graph.save(tmp_path / "graph")
    for part in codes[::500]:
        assert part.tobytes()[:16] not in (tmp_path / "graph").read_bytes()
    graph = Graph.load(tmp_path / "graph")
    assert graph.rows == 6000
    queries = crops(40, 32, people=300, seed=1)
    random = np.random.default_rng(0)
    columns = Columns()
    columns.append(range(1, 6001), entries(6000))
    state = State(0, columns, codes, graph)
    for share in (1.0, 0.5, 0.1):
        mask = random.random(6000) <= share
        found = state.search(queries, 20, mask, only_exact=False)[1]
        right = exact(codes, queries, 20, mask)[1]
        recall = np.mean(
            [len(set(a) & set(b)) / 20 for a, b in zip(found.tolist(), right.tolist(), strict=True)]
        )
        assert recall > 0.98
        assert mask[found].all()


def test_filters_that_follow_the_geometry_keep_recall(monkeypatch):
    """The allowed rows are all far from the query: the hardest filter for a graph."""
    monkeypatch.setattr(state_module, "FEW", 50)
    codes, people = crops(5000, 32, people=10), entries(5000)
    columns = Columns()
    columns.append(range(1, 5001), people)
    state = State(0, columns, codes, Graph.empty(codes.dtype, 32).extended(codes))
    query = codes[:1]
    far = (codes @ query[0]) < np.quantile(codes @ query[0], 0.3)
    similarity, rows = state.search(query, 20, far, only_exact=False)
    right = exact(codes, query, 20, far)
    assert len(set(rows[0].tolist()) & set(right[1][0].tolist())) >= 19
    assert similarity.shape == (1, 20)


def test_a_state_searches_graph_base_and_tail_together(monkeypatch):
    monkeypatch.setattr(state_module, "FEW", 5)
    codes, people = crops(900, 32, people=60), entries(900)
    columns = Columns()
    columns.append(range(1, 701), people[:700])
    graph = Graph.empty(codes.dtype, 32).extended(codes[:500])
    state = State(0, columns, codes[:700].copy(), graph)
    state.append(range(701, 901), people[700:], codes[700:])
    queries = crops(30, 32, people=60, seed=3)
    everything = np.ones(900, bool)
    rows = state.search(queries, 10, everything, only_exact=False)[1]
    right = exact(codes, queries, 10, None)[1]
    assert (
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), right.tolist(), strict=True)])
        > 0.97
    )
    assert (state.search(queries, 10, everything, only_exact=True)[1] == right).all()
    gone = [1, 450, 650, 800]
    state.forget(gone)
    mask = state.columns.mask(None)
    expected = [slow(codes, query, 10, mask) for query in queries]
    assert state.search(queries, 10, mask, only_exact=True)[1].tolist() == expected
    assert state.live == 896
    assert not state.tail[799 - 700].any()
    assert state.search(queries, 10, ~everything, only_exact=False)[1].shape == (30, 0)
    state.forget(list(range(1, 200)))
    assert state.trusted is None  # too many are gone for the graph to be good


def test_merged_answers_are_the_best_of_all():
    a = (np.array([[0.9, 0.5, -np.inf]], np.float32), np.array([[4, 2, -1]]))
    b = (np.array([[0.8, 0.1]], np.float32), np.array([[9, 7]]))
    similarity, rows = merged([a, b], 3)
    assert rows.tolist() == [[4, 9, 2]]
    np.testing.assert_allclose(similarity, [[0.9, 0.8, 0.5]])
