"""What must hold for any embeddings: equality with the slow evaluator, invariances, degenerate inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.evaluate import evaluate, scores
from fmcnet.evaluation.protocols import custom
from fmcnet.evaluation.ranking import rank_given
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.types import NO_PID
from tests.evaluation.shared_golden import embeddings
from tests.reference.evaluation_slow import evaluate_slow, similarity_slow

RULES = [None, "same_identity_and_camera", "same_camera", ((3, 2), (1, 2))]
FIGURES = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
quick = settings(max_examples=25, deadline=None)


def made(seed, queries=14, gallery=23, people=6, width=5, cameras=(1, 2, 3)):
    """Random embeddings of two modalities, queries first; each camera is in both, some cameras are unknown."""
    random = np.random.default_rng(seed)
    n = queries + gallery
    pid = random.integers(0, people, n) * 7 + 3
    camid = random.choice([*cameras, -1], n)
    camid[: len(cameras)] = camid[-len(cameras) :] = cameras
    centres = random.standard_normal((people, width))
    features = centres[(pid - 3) // 7] + random.standard_normal((n, width))
    return embeddings(features, pid, camid, np.arange(n) < queries)


def scored(e, protocol, **options):
    """The figures, or None when no query counts."""
    try:
        return evaluate(e, protocol, **options).trials[0]
    except ProtocolError as error:
        if "none of the" in str(error):
            return None
        raise


def same(a, b, tolerance=1e-12):
    assert (a is None) == (b is None)
    if a is not None:
        for name in FIGURES:
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=tolerance), name
        assert a.queries == b.queries


@quick
@given(
    seed=st.integers(0, 10**6),
    rule=st.sampled_from(RULES),
    cmc=st.sampled_from(["image", "identity"]),
    distance=st.sampled_from(["cosine", "euclidean"]),
    chunk=st.sampled_from([64 * 2**20, 4000, 200]),
    gallery=st.sampled_from(["visible", None]),
)
def test_equal_to_the_slow_evaluator(seed, rule, cmc, distance, chunk, gallery):
    e = made(seed)
    protocol = custom("infrared", gallery, skip=rule, cmc=cmc)
    found = scored(e, protocol, distance=distance, chunk_bytes=chunk)
    query, searched = protocol.trials(e)[0]
    matrix = [[similarity_slow(e.features[q], e.features[g], distance) for g in searched] for q in query]
    itself = {(i, j) for i, q in enumerate(query) for j, g in enumerate(searched) if q == g}
    expected = evaluate_slow(
        matrix,
        e.pid[query],
        e.pid[searched],
        e.camid[query],
        e.camid[searched],
        SkipRule.of(rule),
        cmc,
        itself,
    )
    if expected is None:
        assert found is None
        return
    assert found is not None
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name


@quick
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES), cmc=st.sampled_from(["image", "identity"]))
def test_permuting_rows_changes_nothing(seed, rule, cmc):
    e = made(seed)
    order = np.random.default_rng(seed + 1).permutation(len(e))
    protocol = custom(skip=rule, cmc=cmc)
    same(scored(e, protocol), scored(e.take(order), protocol))


@quick
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES), cmc=st.sampled_from(["image", "identity"]))
def test_relabelling_identities_changes_nothing(seed, rule, cmc):
    e = made(seed)
    pids = np.unique(e.pid)
    labels = np.delete(np.arange(-500, 500), 499)  # -1 is nobody known
    new = np.random.default_rng(seed + 1).permutation(labels)[: len(pids)]
    renamed = embeddings(e.features, new[np.searchsorted(pids, e.pid)], e.camid, e.modality)
    protocol = custom(skip=rule, cmc=cmc)
    same(scored(e, protocol), scored(renamed, protocol))


@quick
@given(seed=st.integers(0, 10**6), cmc=st.sampled_from(["image", "identity"]))
def test_a_query_without_a_match_is_not_counted(seed, cmc):
    e = made(seed)
    stranger = embeddings(
        np.vstack([e.features, np.ones((1, 5))]), [*e.pid, 999], [*e.camid, 1], [*e.modality, 1]
    )
    same(scored(e, custom(cmc=cmc)), scored(stranger, custom(cmc=cmc)))


@quick
@given(seed=st.integers(0, 10**6), distance=st.sampled_from(["cosine", "euclidean"]))
def test_duplicating_a_gallery_image(seed, distance):
    """A copy of a gallery image never helps a query of another identity, and leaves identity CMC alone."""
    e = made(seed)
    row = int(np.random.default_rng(seed).choice(np.flatnonzero(e.modality == 0)))
    doubled = e.take(np.append(np.arange(len(e)), row))
    options = {"distance": distance}
    before, after = (scored(x, custom(cmc="identity"), **options) for x in (e, doubled))
    assert (before is None) == (after is None)
    if before is not None:
        for name in FIGURES[:4]:
            assert getattr(before, name) == getattr(after, name)
    others = np.flatnonzero((e.modality == 1) & (e.pid != e.pid[row]))
    queries = np.isin(np.arange(len(e)), others)
    if queries.any():
        plain = scored(e, custom(cmc="image"), query_mask=queries, **options)
        twice = scored(doubled, custom(cmc="image"), query_mask=np.append(queries, False), **options)
        assert (plain is None) == (twice is None)
        if plain is not None:
            assert all(getattr(twice, name) <= getattr(plain, name) + 1e-12 for name in FIGURES)


@quick
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES))
def test_a_monotone_change_of_similarity_changes_nothing(seed, rule):
    e = made(seed)
    random = np.random.default_rng(seed)
    trial = custom(skip=rule).trials(e)[0]
    matrix = random.integers(-20, 20, (len(trial[0]), len(trial[1]))).astype(np.float64)  # with ties
    ranks = [
        rank_given(e, trial, SkipRule.of(rule), lambda at, m=m: m[at])
        for m in (matrix, np.exp(matrix / 7), matrix**3 + 5)
    ]
    for other in ranks[1:]:
        for name in ("matches", "first_image", "first_identity", "ap", "inp"):
            counted = ranks[0].matches > 0
            assert (getattr(ranks[0], name)[counted] == getattr(other, name)[counted]).all()


@quick
@given(seed=st.integers(0, 10**6))
def test_scaling_an_embedding_does_not_change_cosine(seed):
    e = made(seed)
    scale = np.exp(np.random.default_rng(seed).uniform(-3, 3, (len(e), 1)))
    scaled = embeddings(e.features.astype(np.float64) * scale, e.pid, e.camid, e.modality)
    same(scored(e, custom()), scored(scaled, custom()))


def test_one_identity_scores_one():
    e = embeddings(np.random.default_rng(0).standard_normal((8, 3)), [4] * 8, [1] * 8, [1] * 4 + [0] * 4)
    found = evaluate(e, custom()).trials[0]
    assert all(getattr(found, name) == 1.0 for name in FIGURES)


def test_no_match_at_all_is_one_clear_error():
    e = embeddings(np.eye(4), [1, 2, 3, 4], [1] * 4, [1, 1, 0, 0])
    with pytest.raises(
        ProtocolError, match="none of the 2 queries has a true match among the 2 gallery images"
    ):
        evaluate(e, custom())


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("order", [1, -1])
def test_all_similarities_equal_is_the_worst_rank(distance, order):
    """A collapsed model: ties count against the query, whatever the order of the rows."""
    e = embeddings(np.ones((11, 3)), [5, *range(10)], [1] * 11, [1] + [0] * 10)
    found = evaluate(e.take(np.arange(11)[::order]), custom(cmc="identity"), distance=distance).trials[0]
    assert (found.rank1, found.rank5, found.rank10) == (0.0, 0.0, 1.0)
    assert found.mAP == found.mINP == pytest.approx(0.1)


def test_identical_images_tie_at_any_place_of_the_product():
    """Blocked products round differently at their edges; the tie band absorbs it, in float32 too."""
    random = np.random.default_rng(0)
    face = random.standard_normal(513)
    features = np.vstack([face + random.standard_normal(513), np.tile(face, (97, 1))])
    e = embeddings(features, [50, *range(97)], [1] * 98, [1] + [0] * 97)
    for precision in ("float32", "float64"):
        for distance in ("cosine", "euclidean"):
            found = evaluate(e, custom(), precision=precision, distance=distance).trials[0]
            assert found.mINP == pytest.approx(1 / 97), (precision, distance)


@pytest.mark.parametrize(
    ("precision", "distance"), [("float64", "cosine"), ("float64", "euclidean"), ("float32", "cosine")]
)
@pytest.mark.parametrize("dim", [1760, 2048])
@pytest.mark.parametrize("value", ["normal", "constant"])
def test_a_collapsed_model_of_many_values_scores_nothing(dim, value, precision, distance):
    """Products of equal embeddings differ with the product's shape, by more the more values are added."""
    generator = np.random.default_rng(0)
    face = generator.standard_normal(dim) if value == "normal" else np.full(dim, 0.3)
    pid = [*range(96), *np.repeat(range(96), 7)]
    features = np.tile(face, (len(pid), 1))
    features[::2] += distance == "euclidean"  # two places, so that one is not the centre of all
    pid = [number // 2 for number in pid]
    e = embeddings(features, pid, [1] * len(pid), [0] * 96 + [1] * (len(pid) - 96))
    for bound in (2**18, 2**25):
        found = evaluate(e, custom(), precision=precision, distance=distance, chunk_bytes=bound)
        assert (found.mean["rank1"], found.mean["rank20"]) == (0, 0)


def test_people_of_whom_nothing_is_known_are_not_one_identity():
    """Thirty strangers are nearer than the true match: it is the 31st identity, in blocks of any size."""
    features = [[1.0, 0.0], [1.0, 0.5], *[[1.0, 0.01 * k] for k in range(30)]]
    pid = [7, 7, *[NO_PID] * 30]
    e = embeddings(np.array(features), pid, [1] * 32, [1] + [0] * 31)
    protocol = custom(cmc="identity", distractors="unknown")
    for bound in (64, 2**25):
        found = evaluate(e, protocol, chunk_bytes=bound).trials[0]
        assert (found.rank20, found.mAP) == (0.0, pytest.approx(1 / 31))


def test_a_nan_embedding_names_its_row():
    features = np.ones((4, 2))
    features[2, 1] = np.nan
    with pytest.raises(DataError, match=r"row 2, pid 9"):
        embeddings(features, [1, 2, 9, 4], [1] * 4, [0, 1, 0, 1])


def test_a_zero_embedding_names_its_row_under_cosine_only():
    features = np.ones((4, 2))
    features[3] = 0
    e = embeddings(features, [1, 2, 1, 2], [1] * 4, [0, 0, 1, 1])
    with pytest.raises(DataError, match="embedding 3, pid 2, is all zeros"):
        evaluate(e, custom())
    assert evaluate(e, custom(), distance="euclidean").trials[0].queries == 2


@quick
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES), gallery=st.sampled_from(["visible", None]))
def test_chance_is_the_share_of_true_matches_among_what_is_compared(seed, rule, gallery):
    e, protocol = made(seed), custom(gallery=gallery, skip=rule)
    if scored(e, protocol) is None:
        return
    [(query, rows)] = protocol.trials(e)
    shares = []
    for row in query:
        others = rows[~protocol.skip.hidden(e, np.array([row]), rows)]
        if (e.pid[others] == e.pid[row]).any():
            shares.append((e.pid[others] == e.pid[row]).mean())
    assert evaluate(e, protocol).chance == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_embeddings_whose_squares_do_not_fit_are_refused(scale):
    """In float32 they overflow, or vanish: every figure was 0, or the queries had no match."""
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    pid, modality = np.arange(40) % 5, np.arange(40) // 5 % 2
    plain, scaled = (embeddings(f, pid, [1] * 40, modality) for f in (features, features * np.float32(scale)))
    for distance, text in (("cosine", "embedding 0, pid 0, has a length"), ("euclidean", "differ by up to")):
        expected = evaluate(plain, custom(), distance=distance)
        wide = evaluate(scaled, custom(), distance=distance, precision="float64")
        assert wide.mean == pytest.approx(expected.mean)
        with pytest.raises(DataError, match=text):
            evaluate(scaled, custom(), distance=distance, precision="float32")


def test_hand_made_ranks():
    """One query, identities A (query's), B, C: ranking B A B C A by image; B A C by identity."""
    e = embeddings(
        [[0.0], [1], [2], [3], [4], [5]], [1, 2, 1, 2, 3, 1], [1, 2, 2, 2, 2, 2], [1, 0, 0, 0, 0, 0]
    )
    found = evaluate(e, custom(cmc="identity"), distance="euclidean").trials[0]
    assert found.mAP == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert found.mINP == pytest.approx(2 / 5)
    assert (found.rank1, found.rank5) == (0.0, 1.0)
    assert found.cmc[:3].tolist() == [0.0, 1.0, 1.0]
    far = e.take(np.array([0, 1, 3, 4, 5]))  # without the near match: B B C A
    assert evaluate(far, custom(cmc="image"), distance="euclidean").trials[0].cmc[:4].tolist() == [0, 0, 0, 1]
    assert evaluate(far, custom(cmc="identity"), distance="euclidean").trials[0].cmc[:3].tolist() == [0, 0, 1]


def test_scores_of_no_counted_query_raise():
    e = made(0)
    trial = custom().trials(e)[0]
    ranks = rank_given(e, trial, SkipRule(), lambda at: np.zeros((len(at), len(trial[1]))))
    ranks.matches[:] = 0
    with pytest.raises(ProtocolError, match="none of the"):
        scores(ranks, "image", 3)
