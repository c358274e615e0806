"""Pairs, counted by matrix products, against pairs counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcnet.inference.fit_calibration import BINS, bins_of, count_pairs, edges, folds_of
from fmcnet.types import NO_CAMERA, Embeddings, Modality
from tests.inference import count


def slow(embeddings, query, gallery, fold, query_mask, gallery_mask):
    """(K, K, 2, BINS), pair by pair."""
    k = int(fold.max()) + 1
    counts = np.zeros((k, k, 2, BINS), dtype=np.int64)
    seen = set()
    for q in range(len(embeddings)):
        for g in range(len(embeddings)):
            roles_fit = query_mask[q] and gallery_mask[g]
            kinds_fit = embeddings.modality[q] == query.code and embeddings.modality[g] == gallery.code
            if not (roles_fit and kinds_fit) or q == g or (g, q) in seen:
                continue
            same = embeddings.pid[q] == embeddings.pid[g]
            camera = embeddings.camid[q]
            if same and camera == embeddings.camid[g] and camera != NO_CAMERA:
                continue
            if query is gallery:
                seen.add((q, g))
            x, y = (embeddings.features[at] / np.linalg.norm(embeddings.features[at]) for at in (q, g))
            counts[fold[q], fold[g], int(same), bins_of(x @ y)] += 1
    return counts


@st.composite
def labelled(draw):
    n = draw(st.integers(2, 14))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = generator.integers(-3, 4, (n, 3)).astype(np.float32)
    features[~features.any(axis=1)] = 1
    return Embeddings(
        features,
        generator.integers(0, 5, n),
        generator.integers(-1, 3, n),
        generator.integers(0, 2, n).astype(np.uint8),
        np.arange(1, n + 1),
        np.array([""] * n),
    ), [generator.random(n) < 0.7 for _ in range(2)]


@given(labelled(), st.sampled_from(list(Modality)), st.sampled_from(list(Modality)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_pairs_are_counted_as_one_by_one(data, query, gallery, masked):
    embeddings, masks = data
    masks = masks if masked else [np.ones(len(embeddings), dtype=bool)] * 2
    fold = folds_of(embeddings.pid, 3)
    found = count_pairs(embeddings, query, gallery, fold=fold, query_mask=masks[0], gallery_mask=masks[1])
    expected = slow(embeddings, query, gallery, fold, *masks)
    assert found.shape == expected.shape
    assert found.sum() == expected.sum()
    # A product on the edge of a bin may round into its neighbour: at most one bin apart, in each kind of pair.
    # In one modality a pair belongs to two folds in either order.
    found, expected = (c.sum(axis=(0, 1)) if query is gallery else c for c in (found, expected))
    assert np.abs(np.cumsum(found - expected, axis=-1))[..., 1:].sum() <= expected.sum()
    coarse = [c.reshape(*c.shape[:-1], 200, -1) for c in (np.roll(found, 50, -1), np.roll(expected, 50, -1))]
    assert np.array_equal(coarse[0].sum(-1), coarse[1].sum(-1))


def test_bins_cover_what_rounding_gives():
    similarity = np.array([-1.0, 1.0, 1.0000001, -1.0000001, 0.12345, 0.12344999])
    assert count(similarity).sum() == 6
    assert bins_of(similarity).tolist() == [0, BINS - 1, BINS - 1, 0, 11234, 11234]
    at = bins_of(np.array(0.30005))
    assert edges()[at] <= 0.30005 < edges()[at + 1]


@pytest.mark.parametrize("folds", [1, 2, 5])
def test_folds_part_identities_evenly(folds):
    pid = np.repeat(np.arange(100, 123), 3)
    fold = folds_of(pid, folds)
    for one in np.unique(pid):
        assert len(set(fold[pid == one])) == 1
    sizes = [len(set(pid[fold == f])) for f in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    assert np.array_equal(fold, folds_of(pid, folds))
