"""Scores whose truth is known: two normal distributions, so that posterior and rates have formulas."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from fmcnet.errors import CheckpointError, DataError, FmcnetError
from fmcnet.inference.calibration import Calibration
from fmcnet.inference.fit_calibration import (
    BINS,
    ENOUGH_PAIRS,
    bins_of,
    calibration_error,
    edges,
    fit,
    held_out,
)
from fmcnet.types import Modality
from tests.inference import count

SAME, DIFFERENT, SPREAD = 0.55, 0.15, 0.14


def draw(same, different, seed=0):
    generator = np.random.default_rng(seed)
    return (
        count(generator.normal(SAME, SPREAD, same).clip(-1, 1)),
        count(generator.normal(DIFFERENT, SPREAD, different).clip(-1, 1)),
    )


def density(similarity, mean):
    """Of a normal distribution."""
    return np.exp(-0.5 * ((similarity - mean) / SPREAD) ** 2) / (SPREAD * np.sqrt(2 * np.pi))


def truth(similarity, prior):
    """P(same | similarity) by Bayes' rule."""
    one, two = density(similarity, SAME), density(similarity, DIFFERENT)
    return prior * one / (prior * one + (1 - prior) * two)


@pytest.fixture(scope="module")
def curve():
    return fit(*draw(20_000, 400_000))


@pytest.mark.parametrize(("prior", "worst"), [(0.5, 0.03), (0.1, 0.04), (0.9, 0.07), (0.01, 0.07)])
def test_the_posterior_is_found(curve, prior, worst):
    grid = np.linspace(-0.1, 0.8, 181)
    assert np.abs(curve.probability(grid, prior) - truth(grid, prior)).max() < worst
    assert np.abs(curve.probability(grid, prior) - truth(grid, prior)).mean() < 0.01


def test_the_smallest_prior_needs_no_warning(curve):
    with np.errstate(over="raise"):
        probability = curve.probability([-1.0, 1.0], 1e-320)
    evidence = np.exp(curve.evidence[[0, -1]])
    np.testing.assert_allclose(probability, 1e-320 * evidence, rtol=0.01, atol=1e-323)


def test_the_prior_is_bayes_rule(curve):
    grid = np.linspace(-1, 1, 41)
    even = curve.probability(grid, 0.5)
    odds = even / (1 - even) * (0.02 / 0.98)
    assert curve.probability(grid, 0.02) == pytest.approx(odds / (1 + odds))
    for prior in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(FmcnetError, match="a prior is a probability"):
            curve.probability(grid, prior)


def test_probabilities_never_descend_and_nothing_is_certain(curve):
    grid = np.linspace(-1.1, 1.1, 5001)
    found = curve.probability(grid, 0.5)
    assert (np.diff(found) >= 0).all()
    assert 0 < found.min() < 0.001
    assert 0.999 < found.max() < 1
    assert curve.probability(0.4, 0.5).shape == ()
    assert curve.probability(grid.reshape(3, -1), 0.5).shape == (3, 1667)
    with pytest.raises(DataError, match="NaN"):
        curve.probability([0.1, np.nan], 0.5)


@pytest.mark.parametrize("fmr", [0.5, 0.1, 0.01, 0.003, 0.001, 0.0001])
def test_thresholds_are_the_quantiles(curve, fmr):
    # four standard errors of a quantile: sqrt(p (1 - p) / n) / density
    expected = DIFFERENT - SPREAD * ndtri(fmr)
    error = np.sqrt(fmr * (1 - fmr) / 400_000) / density(expected, DIFFERENT)
    assert curve.at(fmr) == pytest.approx(expected, abs=4 * error + 2e-4)


def test_a_threshold_keeps_its_rate_on_the_pairs_it_was_learnt_from():
    same, different = draw(500, 30_000, seed=3)
    curve = fit(same, different)
    for rate, threshold, found in zip(
        curve.false_match_rate, curve.threshold, curve.true_match_rate, strict=True
    ):
        at = int(np.rint((threshold + 1) * BINS / 2))
        assert edges()[at] == pytest.approx(threshold)
        assert different[at:].sum() <= rate * 30_000 + 1e-6
        assert at == 0 or different[at - 1 :].sum() > rate * 30_000 - 1e-6
        assert same[at:].sum() == found * 500


def test_rates_that_the_pairs_cannot_tell_are_refused(curve):
    assert curve.false_match_rate[-1] >= ENOUGH_PAIRS / 400_000
    with pytest.raises(FmcnetError, match="cannot be told from 400,000 pairs"):
        curve.at(1e-5)
    for rate in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(FmcnetError, match="above 0 and at most 1"):
            curve.at(rate)
    assert curve.at(1.0) == -1.0


@pytest.mark.parametrize("pairs", [(20, 20), (20, 100_000), (100_000, 25)])
def test_few_pairs_give_a_modest_curve(pairs):
    curve = fit(*draw(*pairs))
    assert (np.diff(curve.evidence) >= 0).all()
    assert (np.diff(curve.similarity) > 0).all()
    assert np.abs(curve.evidence).max() < np.log(2 * (max(pairs) + 1))
    ends = curve.probability([DIFFERENT - SPREAD, SAME + SPREAD], 0.5)
    assert ends[0] < 0.4
    assert ends[1] > 0.6


def test_perfectly_parted_scores_stay_finite():
    curve = fit(count(np.full(50, 0.9)), count(np.full(1000, 0.1)))
    found = curve.probability([-1, 0.1, 0.5, 0.9, 1], 0.5)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0] < 0.02
    assert found[-1] == pytest.approx(found[-2], abs=1e-5)
    assert found[-1] > 0.98
    assert found[1] < found[2] < found[3]


@pytest.fixture
def stored(curve, tmp_path):
    """A function that stores a curve's JSON in a calibration and reads it back."""

    def read(tree):
        path = Calibration("abc", {(Modality.VISIBLE, Modality.INFRARED): curve}).save(tmp_path / "c.json")
        calibration = json.loads(path.read_text())
        calibration["curves"]["visible-infrared"] = tree
        path.write_text(json.dumps(calibration))
        return Calibration.load(path).curves[Modality.VISIBLE, Modality.INFRARED]

    return read


def test_json_and_back(curve, stored):
    again = stored(curve.to_dict())
    grid = np.linspace(-1, 1, 100)
    assert again.probability(grid, 0.3) == pytest.approx(curve.probability(grid, 0.3), abs=1e-6)
    assert again.at(0.01) == pytest.approx(curve.at(0.01), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("evidence", lambda v: v[:1], r"similarity has \d+ knots and evidence 1"),
        ("true_match_rate", lambda v: v[1:], r"threshold has \d+ knots and true_match_rate \d+"),
        ("similarity", lambda v: [], r"similarity = \[\]: list should have at least 1 item"),
        ("similarity", lambda v: "0.1 0.2", "similarity = '0.1 0.2': input should be a valid list"),
        ("threshold", lambda v: [*v[:-1], float("nan")], r"threshold\.\d+ = nan: input should be"),
        (
            "evidence",
            lambda v: [float("-inf"), *v[1:]],
            r"evidence\.0 = -inf: input should be a finite number",
        ),
        ("evidence", lambda v: ["x", *v[1:]], r"evidence\.0 = 'x': input should be a valid number"),
        ("evidence", lambda v: v[::-1], "similarity and evidence are out of order"),
        ("similarity", lambda v: [v[1], v[0], *v[2:]], "similarity and evidence are out of order"),
        ("true_match_rate", lambda v: v[::-1], "true_match_rate are out of order"),
        ("false_match_rate", lambda v: v[::-1], "false_match_rate are out of order"),
        ("false_match_rate", lambda v: [*v[:-1], 0.0], r"false_match_rate\.\d+ = 0\.0: .* greater than 0"),
        ("false_match_rate", lambda v: [0.9, *v[1:]], "begins with 0.9, not with 1"),
        ("threshold", lambda v: [*v[:-1], 1.5], r"threshold\.\d+ = 1\.5: .* less than or equal to 1"),
        (
            "true_match_rate",
            lambda v: [1.25, *v[1:]],
            r"true_match_rate\.0 = 1\.25: .* less than or equal to 1",
        ),
        ("same", lambda v: True, "same = True: input should be a valid integer"),
        ("different", lambda v: -3, "different = -3: input should be greater than or equal to 1"),
        ("different", lambda v: 10**400, "an integer in it has more than 64 bits"),
        ("same", lambda v: 2.5, r"same = 2\.5: input should be a valid integer"),
    ],
)
def test_a_damaged_field_is_named(curve, stored, name, change, said):
    tree = curve.to_dict()
    with pytest.raises(CheckpointError, match=said):
        stored({**tree, name: change(tree[name])})
    del tree[name]
    with pytest.raises(CheckpointError, match=f"curves.visible-infrared.{name}: field required"):
        stored(tree)


def test_the_example_of_groups_and_steps():
    """That of `_fit_evidence`."""
    same, different = np.zeros((2, BINS), dtype=np.int64)
    bins = bins_of(np.array([0.0, 0.2, 0.4, 0.6, 0.8]) + 1e-9)
    same[bins], different[bins] = [0, 3, 4, 4, 9], [8, 2, 2, 8, 0]
    curve = fit(same, different)
    assert curve.similarity == pytest.approx([0.0, 0.461, 0.8], abs=1e-3)
    assert curve.evidence == pytest.approx(np.log([0.5 / 8.5, 11.5 / 12.5, 9.5 / 0.5]))


def test_the_calibration_error_by_hand():
    # Ten pairs said 0.9, of which 6 are same; ten said 0.2, of which 4 are: |9 - 6| + |2 - 4| over 20.
    error = calibration_error(np.array([0.9, 0.2]), np.array([6.0, 4.0]), np.array([4.0, 6.0]), 0.5)
    assert error == pytest.approx(0.25)
    assert calibration_error(np.array([0.6, 0.4]), np.array([6.0, 4.0]), np.array([4.0, 6.0]), 0.5) < 1e-12


def test_held_out_figures_are_of_pairs_not_learnt_from():
    """Folds alike: a small error, rates as asked. One fold unlike the others: the error shows."""
    k = 4
    counts = np.zeros((k, k, 2, BINS), dtype=np.int64)
    for q in range(k):
        for g in range(k):
            same, different = draw(4000 if q == g else 0, 40_000, seed=10 * q + g)
            counts[q, g] = different, same
    found = held_out(counts, 0.5)
    assert found["folds"] == k
    assert (found["same"], found["different"]) == (16_000, 160_000)
    assert found["expected_calibration_error"] < 0.015
    right = truth(np.random.default_rng(5).normal(SAME, SPREAD, 100_000), 0.5)
    wrong = truth(np.random.default_rng(6).normal(DIFFERENT, SPREAD, 100_000), 0.5)
    best = (np.mean((1 - right) ** 2) + np.mean(wrong**2)) / 2  # of the true posterior
    assert found["brier"] == pytest.approx(best, abs=0.003)
    assert set(found["rates"]) == {"0.1", "0.01", "0.001", "0.0001"}
    for rate, seen in found["rates"].items():
        assert seen["false_match_rate"] == pytest.approx(float(rate), rel=0.6)
        hits = ndtr((SAME - DIFFERENT) / SPREAD + ndtri(float(rate)))
        assert seen["true_match_rate"] == pytest.approx(hits, abs=0.05)
    counts[0] = counts[0][:, ::-1]  # the identities of fold 0 behave the other way round
    assert held_out(counts, 0.5)["expected_calibration_error"] > 0.15
    assert held_out(counts[:2, :2] // 4000, 0.5) is None
