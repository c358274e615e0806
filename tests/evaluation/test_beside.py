"""What stands beside the figures: ranked lists, verification, and the extras."""

from __future__ import annotations

import numpy as np
import pytest

from fmcnet.errors import ProtocolError
from fmcnet.evaluation import ranking
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.protocols import custom
from fmcnet.evaluation.ranking import largest, ranked_lists
from fmcnet.evaluation.reranking import KReciprocal, QueryExpansion, k_reciprocal
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.evaluation.verification import verification
from tests.evaluation.shared_golden import embeddings
from tests.evaluation.test_properties import made
from tests.reference.evaluation_slow import evaluate_slow, similarity_slow, skips
from tests.reference.reranking_slow import rerank_slow


def clustered(seed=0, people=9, each=6, spread=0.6):
    random = np.random.default_rng(seed)
    pid = np.repeat(np.arange(people), each)
    features = random.standard_normal((people, 6))[pid] + spread * random.standard_normal((len(pid), 6))
    return embeddings(features, pid, random.integers(1, 4, len(pid)), np.arange(len(pid)) % 2)


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (7, 3, 1.0), (60, 40, 0.5)])
def test_reranking_equals_the_reference(k1, k2, weight):
    random = np.random.default_rng(k1)
    centres = random.standard_normal((7, 5))
    images = centres[random.integers(0, 7, 60)] + 0.4 * random.standard_normal((60, 5))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    query, gallery = images[:25], images[25:]
    slow = rerank_slow(query, gallery, k1, k2, weight)
    fast = k_reciprocal(query, gallery, KReciprocal(k1, k2, weight), chunk_bytes=10_000)
    at = np.array([3, 0, 24, 11])
    assert fast(at) == pytest.approx(slow[at], abs=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_reranked_figures_equal_the_reference(distance):
    e = clustered()
    protocol = custom(skip=[(1, 2)], cmc="identity")
    found = evaluate(e, protocol, distance=distance, extras=[KReciprocal(k1=6, k2=3)])
    q, g = protocol.trials(e)[0]
    images = e.features.astype(np.float64)
    if distance == "cosine":
        images /= np.linalg.norm(images, axis=1, keepdims=True)
    slow = evaluate_slow(
        -rerank_slow(images[q], images[g], 6, 3, 0.3), e.pid[q], e.pid[g], e.camid[q], e.camid[g],
        SkipRule.of([(1, 2)]), "identity",
    )  # fmt: skip
    for name, value in slow.items():
        assert getattr(found.trials[0], name) == pytest.approx(value, abs=1e-12)
    assert found.extras == ("k-reciprocal re-ranking (k1=6, k2=3, lambda=0.3)",)
    assert found.plain == evaluate(e, protocol, distance=distance)
    assert found.to_dict()["plain"]["extras"] == []
    assert "re-ranking" in found.summary()
    assert len(found.summary().splitlines()) == 4  # the last is chance


def test_query_expansion_by_hand():
    e = clustered(spread=1.2)
    protocol = custom(skip=[(1, 2)])
    found = evaluate(e, protocol, extras=[QueryExpansion(k=3)], chunk_bytes=2000)
    q, g = protocol.trials(e)[0]
    unit = e.features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    matrix = []
    for row in q:
        allowed = [c for c in g if (e.camid[row], e.camid[c]) != (1, 2)]
        near = sorted(allowed, key=lambda c: -unit[row] @ unit[c])[:3]
        grown = unit[row] + sum(unit[c] for c in near)
        matrix.append([similarity_slow(grown, unit[c], "cosine") for c in g])
    slow = evaluate_slow(
        matrix, e.pid[q], e.pid[g], e.camid[q], e.camid[g], SkipRule.of([(1, 2)]), "image"
    )  # fmt: skip
    for name, value in slow.items():
        assert getattr(found.trials[0], name) == pytest.approx(value, abs=1e-12)


def test_extras_refuse_what_does_not_fit():
    e = clustered()
    with pytest.raises(ProtocolError, match="must be the last"):
        evaluate(e, custom(), extras=[KReciprocal(), QueryExpansion()])
    with pytest.raises(ProtocolError, match="cosine distance"):
        evaluate(e, custom(), distance="euclidean", extras=[QueryExpansion()])
    with pytest.raises(ProtocolError, match="k1, k2 >= 1"):
        KReciprocal(k1=0)
    with pytest.raises(ProtocolError, match="k >= 1"):
        QueryExpansion(k=0)
    both = evaluate(e, custom(), extras=[QueryExpansion(k=2), KReciprocal(k1=6, k2=2)])
    assert len(both.extras) == 2


def test_largest_breaks_ties_in_the_order_of_columns():
    values = np.array([[1.0, 3, 3, 2, 3], [0, 0, 0, 0, 0]])
    assert largest(values, 3).tolist() == [[1, 2, 4], [0, 1, 2]]
    last = np.array([[False, True, False, False, False], [True, False, False, False, False]])
    assert largest(values, 3, last).tolist() == [[2, 4, 1], [1, 2, 3]]
    assert largest(values, 9).shape == (2, 5)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("loaded", [4096, 700])
def test_ranked_lists(distance, loaded, monkeypatch):
    monkeypatch.setattr(ranking, "LOADED", loaded)
    e = made(5, 8, 3000, people=40)
    rule = SkipRule.of("same_camera")
    lists = ranked_lists(e, custom(skip=rule), k=7, distance=distance)
    assert [r.query for r in lists] == list(range(8))
    for found in lists:
        q = found.query
        left = [g for g in range(8, len(e)) if not skips(rule, e.pid[q], e.camid[q], e.pid[g], e.camid[g])]
        scores = {g: similarity_slow(e.features[q], e.features[g], distance) for g in left}
        expected = sorted(left, key=lambda g: -scores[g])[:7]
        assert found.gallery.tolist() == expected
        assert found.similarity == pytest.approx([scores[g] for g in expected], abs=1e-6)
        assert found.correct.tolist() == [e.pid[g] == e.pid[q] for g in expected]
    one = ranked_lists(e, custom(skip=rule), queries=[4], k=1, distance=distance)
    assert len(one) == 1
    assert one[0].gallery.tolist() == lists[4].gallery[:1].tolist()


def test_ranked_lists_under_skip_ties_and_faults():
    e = embeddings(np.ones((5, 2)), [1, 1, 2, 3, 1], [1, 2, 2, 2, 1], [1, 0, 0, 0, 0])
    found = ranked_lists(e, custom(skip="same_camera"))[0]
    assert found.gallery.tolist() == [2, 3, 1]  # ties: wrong ones first; row 4 is skipped
    assert found.correct.tolist() == [False, False, True]
    with pytest.raises(ProtocolError, match="row 3 is not a query"):
        ranked_lists(e, custom(), queries=[3])
    with pytest.raises(ProtocolError, match="k of 1"):
        ranked_lists(e, custom(), k=0)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("rule", [None, "same_identity_and_camera", ((3, 2),)])
def test_verification_equals_counting(distance, rule):
    e = made(1, 40, 60, people=5)
    e = embeddings(np.round(e.features), e.pid, e.camid, e.modality)  # ties
    kept = np.flatnonzero(e.features.any(axis=1))
    e = e.take(kept)
    skip = SkipRule.of(rule)
    found = verification(e, custom(skip=skip), distance=distance, bins=20, chunk_bytes=64 * 1024)
    true, false = [], []
    for q in np.flatnonzero(e.modality == 1):
        for g in np.flatnonzero(e.modality == 0):
            if not skips(skip, e.pid[q], e.camid[q], e.pid[g], e.camid[g]):
                s = round(similarity_slow(e.features[q], e.features[g], distance), 9)
                (true if e.pid[q] == e.pid[g] else false).append(s)
    true, false = np.array(true), np.array(false)
    assert (found.positives, found.negatives) == (len(true), len(false))
    auc = ((true[:, None] > false).sum() + 0.5 * (true[:, None] == false).sum()) / len(true) / len(false)
    assert found.auc == pytest.approx(auc, abs=1e-12)
    for rate, value in found.true_match_rates.items():
        if rate * len(false) < 10:
            assert value is None
            continue
        reached = [(true >= t - 1e-9).mean() for t in true if (false >= t - 1e-9).mean() <= rate]
        assert value[0] == pytest.approx(max(reached, default=0.0), abs=1e-12)
    assert found.positive_histogram.sum() == len(true)
    assert found.negative_histogram.sum() == len(false)
    assert (np.diff(found.roc[0]) >= 0).all()
    assert (np.diff(found.roc[1]) >= 0).all()
    area = np.trapezoid(found.roc[1], found.roc[0]) if hasattr(np, "trapezoid") else None
    if area is not None:
        assert area == pytest.approx(found.auc, abs=0.02)
    said = found.to_dict()
    assert set(said["true_match_rate"]) == {"0.1", "0.01", "0.001", "0.0001"}


def test_verification_needs_both_kinds():
    e = embeddings(np.eye(4), [1, 1, 1, 1], [1] * 4, [1, 1, 0, 0])
    with pytest.raises(ProtocolError, match="4 true and 0 false pairs"):
        verification(e, custom())
    e = embeddings(np.eye(4), [1, 2, 3, 4], [1] * 4, [1, 1, 0, 0])
    with pytest.raises(ProtocolError, match="0 true and 4 false pairs"):
        verification(e, custom())


def test_verification_of_separated_people():
    e = clustered(spread=0.01)
    found = verification(e, custom())
    assert found.auc == 1.0
    assert found.true_match_rates[0.1][0] == 1.0


@pytest.mark.parametrize("extras", [KReciprocal(), [KReciprocal], "rerank", [1]])
def test_extras_that_are_no_list_of_them_are_refused(extras):
    with pytest.raises(ProtocolError, match=r"extras is .*: give a list, as \[KReciprocal\(\)\]"):
        evaluate(clustered(), custom(), extras=extras)
