"""The numbers of Figures 4 and 5 on features whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fmcnet.data.readers import read_dataset
from fmcnet.errors import DataError
from fmcnet.experiments.features import Features, collect, measure, probe, unit
from fmcnet.inference.encoder import load
from fmcnet.types import Modality

P, K, D = 10, 4, 32


def cloud(offset=0.0, noise=0.05, seed=0):
    """(P*K, D): one axis an identity, a common `offset` on the last axis."""
    x = np.repeat(np.eye(P, D), K, axis=0)
    x[:, -1] += offset
    return x + noise * np.random.default_rng(seed).normal(size=x.shape)


PID = np.repeat(np.arange(P), K)


def features(shared=(0.0, 0.0), specific=(2.0, -2.0), generated=None):
    generated = generated or (cloud(specific[1], seed=5), cloud(specific[0], seed=6))
    return Features(
        (PID, PID),
        (cloud(shared[0], seed=1), cloud(shared[1], seed=2)),
        (cloud(specific[0], seed=3), cloud(specific[1], seed=4)),
        generated,
    )


def test_what_the_paper_claims_gives_the_values_it_wants():
    found = measure(features())
    assert found["mixing"] == pytest.approx(1.0, abs=0.25)
    assert found["cross_ratio"] == pytest.approx(1.0, abs=0.05)
    assert found["probe_shared"] < 0.65
    assert found["probe_specific"] > 0.99
    assert found["shared_specific"] > found["specific_spread"]
    assert found["generated_rank"] == 1.0
    assert found["generated_first"] == 1.0
    assert found["generated_distance"] < 0.5 * found["between_centers"]
    # 4 right among 40: the first of them is expected at 41 / 5
    assert found["generated_chance"] == pytest.approx(41 / 5)


def test_modalities_that_fall_apart_show():
    found = measure(features(shared=(2.0, -2.0)))
    assert found["mixing"] == 0.0
    assert found["cross_ratio"] > 5
    assert found["probe_shared"] > 0.99


def test_generated_features_of_the_wrong_identity_show():
    rolled = [np.roll(cloud(o, seed=s), K, axis=0) for o, s in ((-2.0, 5), (2.0, 6))]
    found = measure(features(generated=tuple(rolled)))
    assert found["generated_first"] == 0.0
    assert found["generated_rank"] > 4
    assert found["generated_distance"] > 0.9 * found["between_centers"]


def test_generated_rank_against_a_loop():
    generated = (cloud(-2.0, 0.4, 7), cloud(2.0, 0.4, 8))
    f = features(generated=generated)
    ranks = []
    for source, target in ((0, 1), (1, 0)):
        fake, real = unit(generated[source]), unit(f.specific[target])
        for row in range(len(fake)):
            gaps = [np.linalg.norm(fake[row] - r) for r in real]
            best = min(g for g, who in zip(gaps, PID, strict=True) if who == PID[row])
            ranks.append(1 + sum(g <= best for g, who in zip(gaps, PID, strict=True) if who != PID[row]))
    assert measure(f)["generated_rank"] == pytest.approx(np.mean(ranks))
    assert measure(f)["generated_first"] == pytest.approx(np.mean(np.array(ranks) == 1))


def test_centre_distances_against_a_loop():
    f = features(specific=(0.8, 0.3))
    nearest, widest = [], []
    for m in (0, 1):
        sh, sp = unit(f.shared[m]), unit(f.specific[m])
        c_sh = [sh[p == PID].mean(0) for p in range(P)]
        c_sp = [sp[p == PID].mean(0) for p in range(P)]
        for c in c_sp:
            nearest.append(min(np.linalg.norm(c - other) for other in c_sh))
            widest.append(max(np.linalg.norm(c - other) for other in c_sp))
    found = measure(f)
    assert found["shared_specific"] == pytest.approx(np.mean(nearest))
    assert found["specific_spread"] == pytest.approx(np.mean(widest))


def test_the_probe_is_asked_about_people_it_has_not_seen():
    """Each identity has a mark of its own that gives its modality away: of no use for others."""
    rng = np.random.default_rng(9)
    marks = rng.normal(size=(2, P, 200))
    v, i = (marks[m][PID] + 0.01 * rng.normal(size=(P * K, 200)) for m in (0, 1))
    assert probe((v, i), (PID, PID), splits=10) == pytest.approx(0.5, abs=0.15)


def test_scale_does_not_matter():
    f = features()
    larger = replace(f, shared=tuple(7 * x for x in f.shared), specific=tuple(3 * x for x in f.specific))
    ours, theirs = measure(f), measure(larger)
    assert theirs == pytest.approx(ours)


def test_too_few_identities_are_refused():
    few = PID < 3
    f = features()
    cut = Features((PID[few], PID[few]), tuple(x[few] for x in f.shared), None, None)
    with pytest.raises(DataError, match="only 3 identities have both"):
        measure(cut)


def test_collected_features_are_the_models_own(tiny_run, tiny_sysu):
    encoder = load(tiny_run, "cpu")
    table = read_dataset(tiny_sysu).select(split="test")
    found = collect(encoder, table, batch=7, progress=False)
    for modality in Modality:
        m = modality.code
        rows = table.select(modality=modality)
        assert (found.pid[m] == rows.pid).all()
        parts = [torch.from_numpy(x[m]).float() for x in (found.shared, found.specific, found.generated)]
        with torch.inference_mode():
            fused = encoder.model.fusion.classify.neck(encoder.model.fusion(*parts)).numpy()
        fused[:, parts[0].shape[1] :] *= encoder.card.config.model.specific_weight
        embedded = encoder.embed_table(rows, progress=False).features
        assert np.allclose(fused, embedded, atol=1e-3)
    measured = measure(found)
    assert 0 <= measured["probe_shared"] <= 1
    assert measured["generated_rank"] >= 1


def test_only_some_images_are_collected(tiny_run, tiny_sysu):
    encoder, table = load(tiny_run, "cpu"), read_dataset(tiny_sysu).select(split="test")
    rows = np.concatenate([np.flatnonzero(table.modality == m.code)[1:6:2] for m in Modality])
    some, every = collect(encoder, table, rows, progress=False), collect(encoder, table, progress=False)
    for kind in ("pid", "shared", "specific", "generated"):
        for m in (0, 1):
            assert np.allclose(getattr(some, kind)[m], getattr(every, kind)[m][1:6:2], atol=1e-5)


def test_a_model_without_specific_features_has_the_shared_numbers_only():
    f = features()
    found = measure(Features(f.pid, f.shared, None, None))
    assert found["probe_specific"] is None
    assert found["generated_rank"] is None
    assert found["probe_shared"] == measure(f)["probe_shared"]
