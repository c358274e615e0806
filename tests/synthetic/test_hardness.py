"""The handcrafted matcher of benchmarks/ that measures how hard the generated benchmark is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fmcnet.synthetic.image import ImageKey, render_image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from handcrafted import handcrafted_features, rank1


def rendered(pids: range, cam: int, infrared: bool, index: int) -> np.ndarray:
    images = [render_image(ImageKey(0, "sysu", pid, cam, infrared, index), 128, 64) for pid in pids]
    return np.stack([i if i.ndim == 3 else np.repeat(i[..., None], 3, axis=2) for i in images])


def test_features_are_unit_rows_and_deterministic() -> None:
    images = rendered(range(1, 4), 1, False, 1)
    features = handcrafted_features(images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-4)
    assert np.array_equal(features, handcrafted_features(images))


def test_rank1_on_a_hand_made_case() -> None:
    """Two identities; camera 1 queries. One query is right, one is wrong; its own camera is never met."""
    gallery = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    query = np.array([[1.0, 0.0], [1.0, 0.1]], dtype=np.float32)
    pid = np.array([1, 2], dtype=np.int64)
    one = np.ones(2, dtype=np.int64)
    got, chance = rank1(query, gallery, pid, np.array([1, 2, 2]), one, np.array([2, 2, 1]))
    assert (got, chance) == (50.0, 50.0)


def test_across_modalities_is_much_harder_than_within() -> None:
    pids = range(1, 61)
    pid = np.array(pids)
    visible = handcrafted_features(rendered(pids, 4, False, 1))
    again = handcrafted_features(rendered(pids, 5, False, 1))
    infrared = handcrafted_features(rendered(pids, 6, True, 1))
    four, five, six = (np.full(60, c) for c in (4, 5, 6))
    within, chance = rank1(visible, again, pid, pid, four, five, draws=1)
    across, _ = rank1(infrared, again, pid, pid, six, five, draws=1)
    assert within > 3.0 * across
    assert within > 8.0 * chance
