"""The bootstrap over seeds and queries against a slow loop, and what its intervals must do."""

from __future__ import annotations

import numpy as np
import pytest

from fmcnet.errors import ProtocolError
from fmcnet.evaluation import protocols
from fmcnet.evaluation.evaluate import evaluate, query_scores
from fmcnet.experiments import results
from fmcnet.experiments.results import paired_interval
from fmcnet.types import Embeddings, Modality


def test_crossed_means_are_those_of_a_loop_over_what_was_drawn():
    table = np.random.default_rng(0).normal(size=(3, 7))
    fast = results._crossed_means(list(table), 40, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    seeds, queries = results._draw_counts(40, 3, rng), results._draw_counts(40, 7, rng)
    for draw in range(40):
        total, count = 0.0, 0
        for s in range(3):
            for q in range(7):
                for _ in range(seeds[draw, s] * queries[draw, q]):
                    total += table[s, q]
                    count += 1
        assert count == 21
        assert fast[draw] == pytest.approx(total / count)


@pytest.mark.parametrize("crossed", [True, False])
def test_interval_agrees_with_a_plain_loop_of_its_own_draws(crossed):
    """Another generator, a loop that copies rows: the quantiles agree up to the draws."""
    rng = np.random.default_rng(1)
    differences = [rng.normal(0.5 + 0.3 * s, 1.0, 60) for s in range(3)]
    found = paired_interval(differences, crossed=crossed, draws=6000)
    means = []
    for _ in range(3000):
        seeds = rng.integers(3, size=3)
        shared = rng.integers(60, size=60)
        values = []
        for s in seeds:
            rows = shared if crossed else rng.integers(60, size=60)
            values.append(differences[s][rows].mean())
        means.append(np.mean(values))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.mean == pytest.approx(np.mean([d.mean() for d in differences]))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)


def test_one_seed_is_the_bootstrap_over_queries_alone():
    d = np.random.default_rng(2).normal(1.0, 2.0, 500)
    found = paired_interval([d], draws=4000)
    half = 1.96 * d.std() / np.sqrt(500)
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.03)
    assert (found.seeds, found.queries, found.clear) == (1, 500, True)


def test_no_difference_is_not_clear_and_a_constant_one_is():
    zero = paired_interval([np.zeros(5)] * 3)
    assert (zero.mean, zero.low, zero.high, zero.clear) == (0, 0, 0, False)
    assert paired_interval([np.full(5, -2.0)] * 2).clear
    mixed = paired_interval([np.full(5, 1.0), np.full(5, -1.0), np.full(5, 1.0)])
    assert mixed.low == -1.0  # the same seed three times is a ninth of a chance and more
    assert not mixed.clear


def test_the_same_draws_every_time():
    d = [np.random.default_rng(3).normal(size=30)]
    assert paired_interval(d) == paired_interval(d)


def test_it_refuses_what_cannot_be_paired():
    with pytest.raises(ProtocolError, match="different numbers of queries"):
        paired_interval([np.zeros(3), np.zeros(4)])
    assert paired_interval([np.zeros(3), np.zeros(4)], crossed=False).queries == 3
    with pytest.raises(ProtocolError, match="nothing to compare"):
        paired_interval([])


@pytest.mark.parametrize(
    "protocol",
    [
        protocols.sysu(draw="seeded", trials=3),
        protocols.sysu(draw="seeded", trials=3, direction="v2i"),
        protocols.regdb("v2t"),
        protocols.llcm("b", "v2i", trials=3),
    ],
    ids=lambda p: p.name,
)
def test_query_scores_average_to_the_engines_figures(protocol):
    rng = np.random.default_rng(4)
    n = 240
    camid = rng.integers(1, 7, n)
    modality = np.isin(camid, (3, 6)).astype(np.uint8)
    pid = rng.integers(0, 8, n)
    features = rng.normal(size=(n, 6)).astype(np.float32) + 0.5 * np.eye(8, 6, dtype=np.float32)[pid]
    index = np.zeros(n, dtype=np.int64)
    for key in {(p, c) for p, c in zip(pid.tolist(), camid.tolist(), strict=True)}:
        rows = np.flatnonzero((pid == key[0]) & (camid == key[1]))
        index[rows] = np.arange(1, len(rows) + 1)
    e = Embeddings(features, pid, camid, modality, index, np.array([""] * n))
    found, whole = query_scores(e, protocol), evaluate(e, protocol)
    assert set(e.modality[found.row]) == {0 if protocol.query.modality is Modality.VISIBLE else 1}
    if len({t.queries for t in whole.trials}) == 1 and protocol.drawn == "gallery":
        assert found.ap.mean() == pytest.approx(whole.mean["mAP"])
        assert found.hit.mean() == pytest.approx(whole.mean["rank1"])
    assert ((found.ap > 0) & (found.ap <= 1)).all()
    assert ((found.hit >= 0) & (found.hit <= 1)).all()
