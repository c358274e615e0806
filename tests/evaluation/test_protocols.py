"""Protocols as data: what they select and draw, what they say, what they refuse."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.io import savemat

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.draws import find_permutation
from fmcnet.evaluation.evaluate import evaluate, pool
from fmcnet.evaluation.protocols import custom, llcm, regdb, sysu
from fmcnet.identities import identity_number
from fmcnet.types import NO_PID, Embeddings, Modality
from tests.evaluation.shared_golden import embeddings


def benchmark(cameras, per_camera=3, people=(2, 5, 9), infrared=(3, 6), seed=0):
    """A few images of every identity and camera, rows shuffled."""
    rows = [(p, c, i) for p in people for c in cameras for i in range(1, per_camera + 1)]
    generator = np.random.default_rng(seed)
    generator.shuffle(rows)
    pid, camid, index = np.array(rows).T
    features = generator.standard_normal((len(rows), 4))
    return embeddings(features, pid, camid, np.isin(camid, infrared), index)


def write_permutation(path, people=9, sizes=3, trials=10):
    generator = np.random.default_rng(1)
    cells = np.empty((6, 1), dtype=object)
    for camera in range(6):
        cells[camera, 0] = np.empty((people, 1), dtype=object)
        for pid in range(people):
            cells[camera, 0][pid, 0] = np.array(
                [generator.permutation(sizes) + 1 for _ in range(trials)], dtype=np.uint8
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"rand_perm_cam": cells})
    return path, cells


def test_official_draw_reads_a_file_of_the_same_structure(tmp_path):
    path, cells = write_permutation(tmp_path / "exp" / "rand_perm_cam.mat")
    e = benchmark([1, 2, 3, 4, 5, 6])
    protocol = sysu("all", 1, "official", find_permutation(tmp_path))
    trials = protocol.trials(e)
    assert find_permutation(tmp_path) == path
    assert len(trials) == 10
    for trial, (query, gallery) in enumerate(trials):
        assert (e.modality[query] == 1).all()
        assert len(query) == 3 * 2 * 3
        assert len(gallery) == 3 * 4
        for row in gallery:
            assert e.index[row] == cells[e.camid[row] - 1, 0][e.pid[row] - 1, 0][trial, 0]
    both = sysu("indoor", 10, "official", path).trials(e)
    assert all(len(gallery) == 3 * 2 * 3 for _, gallery in both)  # fewer than ten there: all of them
    back = sysu("all", 1, "official", path, direction="v2i")
    assert {int(c) for _, g in back.trials(e) for c in e.camid[g]} == {3, 6}
    assert "ours: the direction" in back.sentence()


def test_seeded_draw_is_pythons_random_over_sorted_names():
    e = benchmark([1, 2, 3, 4, 5, 6], per_camera=5)
    for trial, (_, gallery) in enumerate(sysu("all", 1, "seeded").trials(e)):
        random.seed(trial)
        expected = [
            random.choice(sorted(f"cam{c}/{p:04d}/{i:04d}.jpg" for i in range(1, 6)))
            for p in (2, 5, 9)
            for c in (1, 2, 4, 5)
        ]
        found = [f"cam{e.camid[r]}/{e.pid[r]:04d}/{e.index[r]:04d}.jpg" for r in gallery]
        assert found == expected


PEOPLE = (2, 5, 9, 10, 11, 30)


def with_pid(e, pid):
    return Embeddings(e.features, np.asarray(pid), e.camid, e.modality, e.index, e.name)


@pytest.mark.parametrize("protocol", [sysu(draw="seeded"), llcm("a"), llcm("b"), llcm("a", "i2v")])
def test_identities_given_as_texts_are_drawn_in_the_order_of_their_names(protocol, tmp_path):
    e = benchmark([1, 2, 3, 4, 5, 6], per_camera=5, people=PEOPLE)
    drawn = protocol.trials(e)
    texts = with_pid(e, [f"id{pid:04d}" for pid in e.pid])
    numbers = with_pid(e, [f"{pid:04d}" for pid in e.pid])
    mixed = with_pid(e, [f"{pid:04d}" if pid < 10 else f"a{pid}" for pid in e.pid])  # numbers come first
    loaded = Embeddings.load(texts.save(tmp_path / "e.npz"))
    taken = texts.take(np.arange(len(e)))
    for other in (texts, numbers, mixed, loaded, taken, replace(texts, features=-e.features)):
        for (query, gallery), (q, g) in zip(drawn, protocol.trials(other), strict=True):
            np.testing.assert_array_equal(query, q)
            np.testing.assert_array_equal(gallery, g)
    assert (replace(texts, pid=e.pid).pid_name == "").all()


@pytest.mark.parametrize("protocol", [sysu(draw="seeded"), llcm("a")])
def test_an_identity_whose_name_some_rows_lack_is_drawn_once(protocol):
    e = benchmark([1, 2, 3, 4, 5, 6], per_camera=5, people=PEOPLE)
    whole = with_pid(e, [f"id{pid:04d}" for pid in e.pid])
    some = replace(whole, pid_name=np.where(np.arange(len(e)) % 3 == 0, "", whole.pid_name))
    for (_, gallery), (_, other) in zip(protocol.trials(whole), protocol.trials(some), strict=True):
        np.testing.assert_array_equal(gallery, other)


def test_unknown_identities_among_texts_or_floats_are_unknown():
    rest = (np.ones(3), np.zeros(3, int), np.ones(3, int), np.full(3, ""))
    for pid in (np.array([np.nan, 1.0, 2.0]), np.array([float("nan"), "anna", "2"], dtype=object)):
        embeddings = Embeddings(np.eye(3, dtype=np.float32), pid, *rest)
        assert embeddings.pid[0] == NO_PID
        assert embeddings.pid_name[0] == ""
        assert (embeddings.pid[1:] != NO_PID).all()


def test_a_draw_by_numbers_that_stand_for_texts_is_told(caplog):
    e = benchmark([1, 2, 3, 4, 5, 6])
    sysu(draw="seeded").trials(with_pid(e, [f"id{pid}" for pid in e.pid]))
    assert not caplog.records
    sysu(draw="seeded").trials(with_pid(e, [identity_number(f"id{pid}") for pid in e.pid]))
    assert "in the order of these numbers, not of the names" in caplog.text


def test_a_missing_permutation_says_where_it_comes_from(tmp_path):
    with pytest.raises(ProtocolError, match="not in the dataset's archive"):
        find_permutation(tmp_path)
    with pytest.raises(ProtocolError, match=r"rand_perm_cam.mat.*seeded"):
        sysu()
    e = benchmark([1, 2, 3, 4, 5, 6])
    with pytest.raises(ProtocolError, match="does not exist"):
        sysu(permutation=tmp_path / "no.mat").trials(e)
    (tmp_path / "bad.mat").write_text("hello")
    with pytest.raises(ProtocolError, match="not a readable MATLAB file"):
        sysu(permutation=tmp_path / "bad.mat").trials(e)
    savemat(tmp_path / "other.mat", {"x": [1]})
    with pytest.raises(ProtocolError, match="no variable 'rand_perm_cam'; it holds x"):
        sysu(permutation=tmp_path / "other.mat").trials(e)


def test_a_permutation_of_other_data_is_refused(tmp_path):
    path, _ = write_permutation(tmp_path / "rand_perm_cam.mat", people=5)
    e = benchmark([1, 2, 3, 4, 5, 6])
    with pytest.raises(ProtocolError, match="no draw for trial 1, camera 1, identity 9"):
        sysu(permutation=path).trials(e)
    path, _ = write_permutation(tmp_path / "rand_perm_cam.mat", sizes=8)
    with pytest.raises(ProtocolError, match="hold only 3 images there"):
        sysu(permutation=path).trials(e)
    twice = embeddings(e.features, e.pid, e.camid, e.modality, np.ones(len(e)))
    with pytest.raises(ProtocolError, match="have the same pid"):
        sysu(draw="seeded").trials(twice)


def test_the_official_draw_needs_exactly_the_images_that_the_permutation_counts(tmp_path):
    path, cells = write_permutation(tmp_path / "rand_perm_cam.mat", sizes=8)
    e = benchmark([1, 2, 3, 4, 5, 6], per_camera=8)
    protocol = sysu(permutation=path)
    drawn = protocol.trials(e)
    there = (e.pid == 5) & (e.camid == 2)
    lost = e.take(~(there & (e.index == 4)))
    renumbered = replace(lost, index=lost.index - ((lost.pid == 5) & (lost.camid == 2) & (lost.index > 4)))
    copied = e.take(np.r_[np.flatnonzero(there)[:1], np.arange(len(e))])
    copied.index[0] = 9
    for wrong, count in ((lost, "only 7"), (renumbered, "only 7"), (copied, "9"), (e.take(~there), "only 0")):
        text = f"rand_perm_cam.mat counts 8 images of identity 5, camera 2, but the embeddings hold {count} images"
        with pytest.raises(ProtocolError, match=text):
            protocol.trials(wrong)
        assert len(sysu(draw="seeded").trials(wrong)) == 10
    for masked, left in ((there & (e.index == 4), 7), (there, 0)):
        text = f"the mask or roles leave {left} of the 8 images of identity 5, camera 2, and the official draw needs"
        with pytest.raises(ProtocolError, match=text):
            protocol.trials(e, gallery_mask=~masked)
    with pytest.raises(ProtocolError, match="'index' of identity 2, camera 1 is not 1 to 8"):
        protocol.trials(replace(e, index=e.index - 1))
    cells[0, 0][1, 0][3, 7] = cells[0, 0][1, 0][3, 6]
    savemat(tmp_path / "damaged.mat", {"rand_perm_cam": cells})
    with pytest.raises(ProtocolError, match="a row of identity 2, camera 1 does not hold 1 to 8"):
        sysu(permutation=tmp_path / "damaged.mat").trials(e)
    for part in (e.pid != 5, e.camid != 2):  # identities or cameras as a whole may be left out
        kept = e.take(part)
        for (_, whole), (_, gallery) in zip(drawn, protocol.trials(kept), strict=True):
            expected = whole[part[whole]]
            for label in ("pid", "camid", "index"):
                assert (getattr(kept, label)[gallery] == getattr(e, label)[expected]).all()


def test_sentences_name_draw_shots_skip_counting_and_direction(tmp_path):
    said = sysu("indoor", 1, "seeded").sentence()
    for part in ("indoor", "cameras 3, 6 searched in visible images of cameras 1, 2", "1 image", "seeds 0 to 9",
                 "10 trials", "camera-3 query skips every camera-2", "counts identities"):  # fmt: skip
        assert part in said
    assert "counts images" in regdb().sentence()
    assert "no image is skipped" in regdb().sentence()
    assert "visible images searched in infrared" in regdb("v2t").sentence()
    assert "reading b" in llcm("b").sentence()
    assert "draw is of the query set" in llcm("b", "v2i").sentence()
    assert all("\n" not in p.sentence() for p in (regdb(), llcm(), custom(), sysu(draw="seeded")))


def test_llcm_readings():
    e = benchmark([1, 2, 3], per_camera=4, infrared=())
    n = benchmark([1, 2], per_camera=4, infrared=(1, 2), seed=1)
    e = embeddings(
        np.vstack([e.features, n.features]), [*e.pid, *n.pid], [*e.camid, *n.camid], [*e.modality, *n.modality],
        [*e.index, *n.index],
    )  # fmt: skip
    sizes = {
        ("a", "v2i"): (36, 6, 10), ("a", "i2v"): (24, 9, 10), ("b", "i2v"): (24, 9, 10), ("b", "v2i"): (9, 24, 10),
        ("c", "v2i"): (36, 24, 1), ("c", "i2v"): (24, 36, 1),
    }  # fmt: skip
    for (reading, direction), (queries, gallery, trials) in sizes.items():
        plan = llcm(reading, direction).trials(e)
        assert len(plan) == trials
        assert {(len(q), len(g)) for q, g in plan} == {(queries, gallery)}, (reading, direction)
        assert len(evaluate(e, llcm(reading, direction)).trials) == trials
    assert [q.tolist() for _, q in llcm("a", "i2v").trials(e)] == [
        q.tolist() for q, _ in llcm("b", "v2i").trials(e)
    ]


def test_regdb_image_and_identity_counts_differ_beyond_rank_1_only():
    e = benchmark([1, 2], per_camera=10, people=range(30), infrared=(2,))
    image, identity = (evaluate(e, regdb(cmc=c)).trials[0] for c in ("image", "identity"))
    assert image.rank1 == identity.rank1
    assert image.mAP == identity.mAP
    assert image.rank5 < identity.rank5
    joined = pool([evaluate(e, regdb()) for _ in range(3)])
    assert len(joined.trials) == 3
    assert joined.std["rank1"] == 0.0
    with pytest.raises(ProtocolError, match="cannot be pooled"):
        pool([evaluate(e, regdb()), evaluate(e, regdb("t2v"))])


def test_ones_own_data_without_cameras(caplog):
    generator = np.random.default_rng(0)
    pid = generator.integers(0, 6, 60)
    modality = np.arange(60) % 2
    index = [int(((pid[:i] == pid[i]) & (modality[:i] == modality[i])).sum()) + 1 for i in range(60)]
    e = embeddings(generator.standard_normal((60, 3)), pid, [-1] * 60, modality, index)
    plain = evaluate(e, custom()).trials[0]
    for rule in ("same_camera", "same_identity_and_camera", [(-1, -1)]):
        with pytest.raises(ProtocolError, match="no query image has a camera, so nothing would be skipped"):
            evaluate(e, custom(skip=rule))
    few_cameras = replace(e, camid=np.r_[1, 2, [-1] * 58])
    for rule in ("same_camera", "same_identity_and_camera"):
        caplog.clear()
        assert evaluate(few_cameras, custom(skip=rule)).trials[0] == plain  # no camera, no camera rule
        assert "29 of 30 query images have no camera: the skip rule does not apply to them" in caplog.text
        assert "29 of 30 gallery images" in caplog.text
    few = custom(shots=1, trials=4, seed=7)
    assert {len(g) for _, g in few.trials(e)} == {6}
    assert len({tuple(g) for _, g in few.trials(e)}) > 1
    roles = np.arange(60) < 20
    query, gallery = custom().trials(e, query_mask=roles, gallery_mask=~roles)[0]
    assert (query < 20).all()
    assert (gallery >= 20).all()


@pytest.mark.parametrize("rule", ["same_camera", "same_identity_and_camera", [(3, 2)]])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_a_camera_rule_needs_cameras_in_both_sets(rule, side):
    e = benchmark([1, 2, 3, 4, 5, 6])
    without = (e.modality == 1) == (side == "query")
    text = f"no {side} image has a camera, so nothing would be skipped: give cameras"
    half = replace(e, camid=np.where(without, -1, e.camid))
    with pytest.raises(ProtocolError, match=text):
        custom(skip=rule).trials(half)
    mixed = {"query_mask": e.modality == 1, "gallery_mask": e.modality == 0}
    with pytest.raises(ProtocolError, match=text):
        custom(None, None, skip=rule).trials(half, **mixed)
    assert custom(skip=rule).trials(e)
    with pytest.raises(ProtocolError, match=text):
        llcm(direction="i2v").trials(half)


def test_pairs_of_cameras_fit_the_images():
    e = benchmark([1, 2, 3, 4, 5, 6])
    with pytest.raises(
        ProtocolError, match="no image to be evaluated is of camera 20: known are 1, 2, 3, 4, 5, 6"
    ):
        custom(skip=[(3, 2), (30, 20)]).trials(e)
    turned = (
        r"skip: no pair is \(query camera, gallery camera\): queries are of cameras 3, 6, gallery images of 1"
    )
    with pytest.raises(ProtocolError, match=turned):
        custom(skip=[(2, 3)]).trials(e)
    expected = evaluate(e, custom(skip=[(3, 2)])).trials
    assert evaluate(e, custom(skip=[(2, 3), (3, 2)])).trials == expected
    assert evaluate(e, custom(skip=np.array([[3.0, 2.0]]))).trials == expected
    assert custom(skip=[(3, 2)]).trials(
        e, query_mask=e.camid == 6
    )  # a subset to which the rule does not apply
    assert sysu(draw="seeded").trials(e.take((e.camid != 2) & (e.camid != 3)))


def test_an_image_is_never_its_own_match():
    e = embeddings(np.eye(3) + 0.01, [1, 1, 2], [1, 1, 1], [0, 0, 0])
    found = evaluate(e, custom("visible", "visible")).trials[0]
    assert found.queries == 2  # the third has no other image
    assert found.mAP < 1.0  # and the first two tie with identity 2, nobody finds himself


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: sysu("outdoor", draw="seeded"),
            "mode 'outdoor' is none of all, indoor: did you mean indoor",
        ),
        (lambda: sysu(shots=3, draw="seeded"), "number of shots 3 is none of 1, 10"),
        (lambda: sysu(draw="mine"), "draw 'mine'"),
        (lambda: sysu(draw="seeded", direction="t2v"), "direction 't2v'"),
        (lambda: sysu(permutation="x", trials=11), "ten trials"),
        (lambda: sysu(draw="seeded", trials=0), "at least one trial"),
        (lambda: regdb("i2v"), "direction 'i2v'"),
        (lambda: regdb(cmc="id"), "CMC rule 'id'"),
        (lambda: llcm("d"), "reading 'd'"),
        (
            lambda: custom("x-ray"),
            "query 'x-ray' is none of visible, infrared, both",
        ),
        (lambda: custom(trials=3), "without shots"),
        (lambda: custom(skip="camera"), "skip rule 'camera'"),
        (lambda: custom(shots="1"), "shots is '1': give a whole number"),
        (lambda: custom(shots=1.5), "shots is 1.5: give a whole number"),
        (lambda: custom(shots=1, trials=2.0), "trials is 2.0: give a whole number"),
        (lambda: custom(seed=1.5), "seed is 1.5: give a whole number"),
        (lambda: llcm(trials="3"), "trials is '3': give a whole number"),
        (lambda: sysu(permutation="x", trials="3"), "trials is '3': give a whole number"),
        (lambda: sysu(draw="seeded", seed=-1), "seed must be 0 or more, got -1"),
        (lambda: custom(junk=[1.5]), "junk: 1.5 is no identity"),
        (lambda: custom(junk=""), "junk: '' is no identity: write unknown for images without an identity"),
        (lambda: custom(distractors=["bob", None]), "distractors: None is no identity: write unknown"),
        (lambda: custom(junk=np.array([16.7])), "junk: .*16.7.* is no identity"),
        (lambda: custom(distractors=[["bob"]]), r"distractors: \['bob'\] is no identity"),
        (lambda: custom(distractors="7", junk=7), "identity 7 is a distractor and junk"),
        (lambda: custom(skip="camera_pairs"), "goes with a list"),
        (lambda: custom(skip=[(3.7, 2.9)]), r"skip is '\[\(3.7, 2.9\)\]': .* pairs .* of whole numbers"),
        (lambda: custom(skip=[3, 2]), r"skip is '\[3, 2\]': give a rule's name, or pairs"),
        (lambda: custom(skip=[("yard", "gate")]), "of whole numbers"),
        (lambda: custom(skip=3), "skip is '3': give a rule's name"),
        (lambda: custom(shots=0), "shots must be 1 or more"),
    ],
)
def test_unknown_options_are_named(make, text):
    with pytest.raises(ProtocolError, match=text):
        make()


def test_identities_are_texts_numbers_or_pairs_one_or_several():
    for junk, expected in (
        (None, ()),
        (np.array(16), ((16, "16"),)),
        ("16", ((16, "16"),)),
        ("0006", ((6, "0006"),)),
        (16, ((16, "16"),)),
        (np.array([16, 17]), ((16, "16"), (17, "17"))),
        (["staff", "staff"], ((identity_number("staff"), "staff"),)),
        (["unknown", -1], ((-1, "unknown"),)),
        ([(3, "carl")], ((3, "carl"),)),
    ):
        assert custom(junk=junk).junk == expected
        assert custom(distractors=junk).distractors == expected
    named = benchmark([1, 3])
    named = replace(named, pid=np.array(["anna", "staff", "bob"])[np.searchsorted([2, 5, 9], named.pid)])
    query, gallery = custom(distractors=["staff"], junk="bob").trials(named)[0]
    assert set(named.pid[query]) == {identity_number("anna")}
    assert set(named.pid[gallery]) == {identity_number("anna"), identity_number("staff")}
    for argument in ("junk", "distractors"):
        with pytest.raises(ProtocolError, match=f"{argument}: no image to be evaluated shows '99999'"):
            custom(**{argument: [99999]}).trials(named)


def test_both_modalities_and_numpys_numbers_are_taken():
    assert custom("both", "both") == custom(None, None)
    numbers = np.array([1, 4, 7])
    assert custom(shots=numbers[0], trials=numbers[1], seed=numbers[2]) == custom(shots=1, trials=4, seed=7)
    e = benchmark([1, 3])
    drawn = custom(shots=numbers[0], trials=numbers[1], seed=numbers[2]).trials(e)
    for (_, gallery), (_, expected) in zip(drawn, custom(shots=1, trials=4, seed=7).trials(e), strict=True):
        assert (gallery == expected).all()


def test_empty_sets_and_wrong_masks_are_named():
    e = benchmark([1, 2, 4])
    with pytest.raises(ProtocolError, match=r"no query image.*27 visible and 0 infrared.*cameras 1, 2, 4"):
        sysu(draw="seeded").trials(e)
    with pytest.raises(ProtocolError, match="the gallery mask must hold one bool"):
        custom("visible", "visible").trials(e, gallery_mask=np.ones(3, dtype=bool))
    nobody = np.zeros(len(e), dtype=bool)
    for side in ("query", "gallery"):
        with pytest.raises(
            ProtocolError,
            match=rf"no {side} image.*the column role \(the {side} mask\) lets none of these 27",
        ):
            custom("visible", "visible").trials(e, **{f"{side}_mask": nobody})
    with pytest.raises(ProtocolError, match=r"no query image.*; distractors and junk are left out"):
        custom("visible", "visible", distractors=np.unique(e.pid)).trials(e)


def test_queries_without_a_match_are_counted_and_named():
    made = benchmark((1, 3), people=(2, 5, 9))
    kept = made.take(~((made.pid == 5) & (made.modality == 0)))  # nobody saw 5 by day
    named = replace(kept, name=np.array([f"{p}/{i}.png" for p, i in zip(kept.pid, kept.index, strict=True)]))
    night, day = Modality.INFRARED, Modality.VISIBLE
    found = evaluate(named, custom(night, day))
    assert (found.trials[0].queries, found.to_dict()["probes"], found.to_dict()["unmatched"]) == (6, [9], [3])
    assert sorted(found.to_dict()["unmatched_probes"]) == ["5/1.png", "5/2.png", "5/3.png"]
    assert "3 of 9 queries have no match in the gallery and are not counted: 5/" in found.summary()
    assert pool([found, found]).to_dict()["unmatched"] == [3, 3]
    rows = np.flatnonzero((kept.pid == 5) & (kept.modality == 1))
    nameless = evaluate(replace(named, name=np.full(len(kept), "")), custom(night, day))
    assert nameless.unmatched == (tuple(f"row {row}" for row in rows),)
    whole = evaluate(made, custom(night, day))
    assert whole.to_dict()["unmatched"] == [0]
    assert "no match" not in whole.summary()


def test_the_index_of_the_guides_example_is_the_position_in_its_group():
    from fmcnet.data.table import positions
    from tests.test_readme import ROOT, blocks

    (example,) = blocks(ROOT / "docs" / "guides" / "evaluate.md", "python")
    names: dict = {}
    exec(example.partition("extras =")[0], names)
    shown = names["embeddings"]
    rows = np.array([f"{row:02}" for row in range(len(shown))])
    assert shown.index.tolist() == positions(rows, shown.modality, shown.camid, shown.pid).tolist()
