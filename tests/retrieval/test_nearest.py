"""FAISS over arrays: exact is exact, the graph finds nearly all, with filters too; nothing is copied."""

from __future__ import annotations

import numpy as np
import pytest

from fmcnet.retrieval.embedded.nearest import exact, flat_over, merged
from tests.retrieval.people import crops


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


def test_merged_answers_are_the_best_of_all():
    a = (np.array([[0.9, 0.5, -np.inf]], np.float32), np.array([[4, 2, -1]]))
    b = (np.array([[0.8, 0.1]], np.float32), np.array([[9, 7]]))
    similarity, rows = merged([a, b], 3)
    assert rows.tolist() == [[4, 9, 2]]
    np.testing.assert_allclose(similarity, [[0.9, 0.8, 0.5]])
