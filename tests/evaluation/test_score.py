"""Anyone's embeddings in an `.npz`: right reading, clear refusals."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.protocols import sysu
from fmcnet.evaluation.score import score_file
from fmcnet.types import Embeddings
from tests.cli import run_command
from tests.evaluation.shared_golden import CARRIED, PERMUTATION, SHARED, needs_shared
from tests.evaluation.test_protocols import benchmark


def arrays():
    e = benchmark([1, 2, 3, 4, 5, 6])
    return {"features": e.features, "pid": e.pid, "cam": e.camid, "index": e.index}


def save(tmp_path, **content):
    path = tmp_path / "e.npz"
    np.savez(path, **content)
    return path


@needs_shared
def test_the_json_has_the_promised_form():
    found = score_file(
        SHARED / "sysu_features.npz", "sysu", permutation=PERMUTATION, distance="euclidean"
    ).to_dict()
    assert {"protocol", "trials", "mean", "std"} <= set(found)
    names = {"rank1", "rank5", "rank10", "rank20", "mAP", "mINP"}
    assert all(set(trial) == names for trial in found["trials"])
    assert len(found["trials"]) == 10
    assert set(found["mean"]) == set(found["std"]) == names
    assert found["std"]["mAP"] == pytest.approx(np.std([t["mAP"] for t in found["trials"]]))
    assert json.loads(json.dumps(found)) == found
    beside = score_file(SHARED / "sysu_features.npz", "sysu", distance="euclidean").to_dict()
    assert beside == found  # the permutation lies beside the file


def test_given_sets_draw_nothing():
    for draw in ("official", "seeded"):
        found = score_file(CARRIED / "small.npz", "sysu", draw=draw)
        assert "as given" in found.protocol
        assert "seed" not in found.protocol
    assert "visible images searched in infrared" in score_file(CARRIED / "small.npz", "llcm").protocol


def test_two_forms_in_one_file_and_a_protocol_file_that_is_not_there_are_refused(tmp_path):
    path = save(tmp_path, **arrays(), query_features=np.eye(3))
    with pytest.raises(DataError, match=r"e\.npz holds features, and query_features or gallery_features"):
        score_file(path, "sysu")
    with pytest.raises(ProtocolError, match=r"there is no protocol file nope\.yaml"):
        score_file(save(tmp_path, **arrays()), "nope.yaml")


def test_chance_is_told_and_that_one_identity_tells_nothing(tmp_path):
    features = np.random.default_rng(0).normal(size=(12, 4))
    content = {"features": features, "pid": np.arange(12) % 3, "modality": np.arange(12) // 6}
    found = score_file(save(tmp_path, **content), "regdb")
    assert found.to_dict()["chance_rank1"] == found.chance == pytest.approx(1 / 3)
    assert f"chance Rank-1 33.33: {3 * found.mean['rank1']:.1f} x" in found.summary()
    assert "tell nothing" not in found.summary()
    assert "; 6 queries counted, 6 images in the gallery" in found.summary()
    alone = score_file(save(tmp_path, **{**content, "pid": np.full(12, 7)}), "regdb")
    assert (alone.mean["rank1"], alone.chance) == (1, 1)
    assert "so these figures tell nothing: add other identities" in alone.summary()


def test_modality_and_saved_embeddings(tmp_path):
    content = arrays()
    content["modality"] = np.isin(content["cam"], (3, 6))
    for protocol in ("sysu", "regdb", "llcm"):
        score_file(save(tmp_path, **content), protocol, draw="seeded")
    e = benchmark([1, 2, 3, 4, 5, 6])
    again = score_file(e.save(tmp_path / "saved.npz"), draw="seeded")
    assert again.to_dict() == score_file(save(tmp_path, **arrays()), draw="seeded").to_dict()


def without(name):
    return {k: v for k, v in arrays().items() if k != name}


def replaced(name, value):
    return {**arrays(), name: value}


def odd_row(value):
    features = arrays()["features"].astype(np.float64)
    features[17] = [0, value, *[0] * (features.shape[1] - 2)]
    return features


def given_sets(**changed):
    sets = {}
    for side, cam in (("query", 3), ("gallery", 4)):
        sets |= {f"{side}_features": np.eye(3), f"{side}_pid": np.arange(3), f"{side}_cam": np.full(3, cam)}
    return sets | changed


N = len(arrays()["pid"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (without("index"), "lacks the array index.*it holds features, pid, cam"),
        (without("features"), "lacks the array features"),
        ({"x": np.ones(3)}, "lacks the arrays features, pid, cam, index"),
        (replaced("pid", np.ones(3)), r"'pid' has shape \(3,\), but there are 54 embeddings"),
        (replaced("pid", np.full(N, 0.5)), "whole numbers"),
        (replaced("features", np.ones(N)), "'features' must be a matrix"),
        (replaced("features", np.array([["a"] * 2] * N)), "'features' must be a matrix of numbers"),
        (
            replaced("features", odd_row(np.nan)),
            "'features' holds NaN or infinity in 1 of 54 .* the first is row 17",
        ),
        (
            replaced("features", odd_row(-1e300)),
            r"1e\+300, which is too large for float32, .* row 17: scale all",
        ),
        (
            replaced("features", odd_row(1e-300)),
            "1e-300, which is too small for float32, .* row 17: scale all",
        ),
        (
            given_sets(gallery_features=np.diag([1, np.inf, 1])),
            "'gallery_features' holds NaN .* the first is row 1",
        ),
        (replaced("cam", np.full(N, 8)), "row 0 has camera 8, but sysu has cameras 1, 2, 3, 4, 5, 6"),
        (replaced("modality", np.full(N, 2)), "'modality' is 2 in row 0"),
        (replaced("modality", np.ones(N)), "'modality' is 1 in row 0, whose camera 4 is of the other"),
        ({"query_features": np.ones((2, 2))}, "lacks the arrays query_pid, query_cam"),
        (
            {
                f"{side}_{name}": value
                for side, width in (("query", 3), ("gallery", 4))
                for name, value in (("features", np.ones((2, width))), ("pid", [1, 2]), ("cam", [3, 4]))
            },
            "query_features has 3 columns, gallery_features 4",
        ),
    ],
)
def test_faults_are_named(tmp_path, content, text):
    with pytest.raises(DataError, match=text):
        score_file(save(tmp_path, **content), draw="seeded")


def test_files_and_options_are_named(tmp_path):
    with pytest.raises(DataError, match=r"is a folder: give an \.npz"):
        score_file(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        score_file(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="not a readable"):
        score_file(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "people.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        DataError, match=r"people\.parquet: score reads \.npz files: fmcnet gallery export GALLERY"
    ):
        score_file(tmp_path / "people.parquet")
    with pytest.raises(DataError, match="single array"):
        score_file(tmp_path / "one.npy")
    path = save(tmp_path, **arrays())
    with pytest.raises(ProtocolError, match="unknown protocol 'market'"):
        score_file(path, "market")
    with pytest.raises(ProtocolError, match="not in the dataset's archive"):
        score_file(path)
    with pytest.raises(ProtocolError, match="unknown distance 'dot'"):
        score_file(path, draw="seeded", distance="dot")
    with pytest.raises(ProtocolError, match="unknown precision"):
        evaluate(benchmark([3, 4]), sysu(draw="seeded"), precision="half")
    with pytest.raises(DataError, match="lacks the array modality"):
        score_file(path, "llcm")


def two_sets(query_cam=(3, 6, 3, 6), gallery_cam=(1, 2, 4, 5), **more):
    random = np.random.default_rng(0)
    features = {f"{side}_features": random.standard_normal((4, 3)) for side in ("query", "gallery")}
    pids = dict.fromkeys(("query_pid", "gallery_pid"), np.arange(4))
    return {
        **features,
        **pids,
        "query_cam": np.array(query_cam),
        "gallery_cam": np.array(gallery_cam),
        **more,
    }


def test_given_sets_are_held_against_the_direction(tmp_path):
    path = save(tmp_path, **two_sets())
    assert "infrared images searched in visible images" in score_file(path, "sysu").protocol
    with pytest.raises(
        DataError, match=r"4 of the 4 images of the query are infrared.*direction v2i of sysu"
    ):
        score_file(path, "sysu", direction="v2i")
    for direction in ("v2t", "t2v"):
        with pytest.raises(DataError, match="row 0 of query_cam has camera 3, but regdb has cameras 1, 2"):
            score_file(path, "regdb", direction=direction)
    assert "ours: the modalities, which the file does not tell" in score_file(path, "llcm").protocol
    mixed = save(tmp_path, **two_sets(gallery_cam=(1, 2, 6, 5)))
    with pytest.raises(DataError, match="1 of the 4 images of the gallery are infrared, the first in row 2"):
        score_file(mixed, "sysu")
    thermal = save(tmp_path, **two_sets((2, 2, 2, 2), (1, 1, 1, 1)))
    with pytest.raises(DataError, match="direction v2t of regdb takes visible"):
        score_file(thermal, "regdb")
    assert "the modalities" not in score_file(thermal, "regdb", direction="t2v").protocol
    told = save(tmp_path, **two_sets(query_modality=np.ones(4), gallery_modality=np.zeros(4)))
    with pytest.raises(DataError, match="direction v2i of llcm takes visible"):
        score_file(told, "llcm")
    assert "infrared images searched" in score_file(told, "llcm", direction="i2v").protocol
    contradiction = save(tmp_path, **two_sets(query_modality=np.zeros(4), gallery_modality=np.ones(4)))
    with pytest.raises(
        DataError, match="'query_modality' is 0 in row 0, whose camera 3 is of the other modality"
    ):
        score_file(contradiction, "sysu", direction="v2i")


def test_a_camera_of_the_protocol_without_an_image_is_told(tmp_path):
    assert "no image of camera" not in score_file(save(tmp_path, **arrays()), draw="seeded").protocol
    kept = ~np.isin(arrays()["cam"], (1, 5))
    part = save(tmp_path, **{name: array[kept] for name, array in arrays().items()})
    assert "ours: no image of camera 1, 5" in score_file(part, draw="seeded").protocol
    assert "ours: no image of camera 1." in score_file(part, draw="seeded", mode="indoor").protocol


def test_a_camera_rule_needs_the_cameras_of_both_sets(tmp_path, caplog):
    (tmp_path / "own.yaml").write_text("skip: same_camera\n")
    content = two_sets()
    content["gallery_cams"] = content.pop("gallery_cam")
    with pytest.raises(
        ProtocolError, match="own: no gallery image has a camera, so nothing would be skipped"
    ):
        score_file(save(tmp_path, **content), tmp_path / "own.yaml")
    assert "the array 'gallery_cams' is not read: name it gallery_cam" in caplog.text
    for protocol, options in (("sysu", {}), ("llcm", {"direction": "i2v"})):
        score_file(save(tmp_path, **two_sets()), protocol, **options)
        for side in ("query", "gallery"):
            unknown = save(tmp_path, **two_sets(**{f"{side}_cam": (-1,) * 4}))
            with pytest.raises(ProtocolError, match=f"no {side} image has a camera"):
                score_file(unknown, protocol, **options)


def test_other_data_does_not_pass_for_the_benchmark(tmp_path):
    told = save(tmp_path, **two_sets(query_modality=np.ones(4), gallery_modality=np.zeros(4)))
    found = score_file(told, "regdb", direction="t2v").protocol
    assert found.endswith("ours: the cameras 3, 4, 5, 6, which RegDB does not have.")
    one = {**arrays(), "modality": np.isin(arrays()["cam"], (3, 6))}
    assert (
        "the cameras 3, 4, 5, 6, which RegDB does not have"
        in score_file(save(tmp_path, **one), "regdb").protocol
    )
    for protocol in ("sysu", "llcm"):  # LLCM has nine
        assert "does not have" not in score_file(save(tmp_path, **one), protocol, draw="seeded").protocol
    many = np.r_[[12], one["cam"][1:]]
    found = score_file(save(tmp_path, **{**one, "cam": many}), draw="seeded").protocol
    assert "ours: the camera 12, which SYSU-MM01 does not have" in found


@pytest.mark.parametrize(
    ("protocol", "options", "text"),
    [
        ("sysu", {"mode": "indoor", "shots": 10}, "mode and shots would do nothing"),
        ("sysu", {"mode": "all"}, "mode would do nothing"),
        ("sysu", {"permutation": "rand_perm_cam.mat"}, "permutation would do nothing"),
        ("sysu", {"draw": "seeded", "strict": True}, "draw would do nothing"),
        ("sysu", {"reading": "b"}, "the sysu protocol has no reading"),
        ("sysu", {"cmc": "identity"}, "the sysu protocol has no cmc"),
        (
            "regdb",
            {"mode": "indoor", "shots": 10},
            r"the regdb protocol has no mode and no shots \(it has cmc\)",
        ),
        ("llcm", {"draw": "official", "strict": True}, "the llcm protocol has no draw"),
        ("llcm", {"reading": "b"}, "reading b, which draws otherwise than reading a, would do nothing"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, protocol, options, text):
    with pytest.raises(ProtocolError, match=text):
        score_file(save(tmp_path, **two_sets()), protocol, **options)


def test_the_modality_counts_on_regdb_where_cameras_contradict_it(tmp_path, caplog):
    one = {"features": np.eye(4), "pid": [1, 2, 1, 2], "cam": [1, 1, 2, 2], "modality": [0, 0, 1, 1]}
    assert score_file(save(tmp_path, **one), "regdb").mean
    assert caplog.messages == []
    text = "is 1 in row 0, whose camera 1 is of the other modality on regdb: the modality counts"
    assert score_file(save(tmp_path, **{**one, "modality": [1, 1, 0, 0]}), "regdb").mean
    assert caplog.messages == [f"{tmp_path / 'e.npz'}: 'modality' {text}"]
    sides = {"query": slice(2), "gallery": slice(2, 4)}
    two = {f"{side}_{name}": one[name][rows] for side, rows in sides.items() for name in one}
    assert score_file(save(tmp_path, **two), "regdb").mean
    agw = save(tmp_path, **{**two, "query_modality": [1, 1], "gallery_modality": [0, 0]})
    assert score_file(agw, "regdb", direction="t2v").mean
    assert f"'query_modality' {text}" in caplog.text
    with pytest.raises(DataError, match="images of the query are infrared"):
        score_file(agw, "regdb", direction="v2t")


def test_two_cameras_of_one_image_and_arrays_of_nearly_a_known_name_are_told(tmp_path, caplog):
    plain, sides = arrays(), two_sets()
    texts = plain["cam"].astype(str)
    others = ("id", "time", "frame", "idx", "pid_name", "paths")
    for camid in (plain["cam"], texts, plain["cam"][None]):
        extra = dict.fromkeys(others, texts)
        score_file(save(tmp_path, **plain, camid=camid, **extra), draw="seeded")
    extra = dict.fromkeys(("query_name", "gallery_names", "gallery_path"), np.arange(4))
    score_file(save(tmp_path, **sides, **extra), "sysu")
    assert caplog.text == ""
    with pytest.raises(DataError, match=r"e\.npz: cam and camid differ: leave one out"):
        score_file(save(tmp_path, **plain, camid=plain["cam"] + 1), draw="seeded")
    with pytest.raises(DataError, match="query_cam and query_camid differ"):
        score_file(save(tmp_path, **sides, query_camid=np.ones(4)), "sysu")
    content = {"features": np.eye(4), "pid": [1, 2, 1, 2], "camids": [1, 1, 2, 2], "modality": [0, 0, 1, 1]}
    score_file(save(tmp_path, **content, pid_names=["a", "b", "a", "b"]), "regdb")
    assert caplog.messages == [
        f"{tmp_path / 'e.npz'}: the array '{name}' is not read: name it {near}"
        for name, near in (("camids", "cam"), ("pid_names", "pid_name"))
    ]


def test_a_permutation_is_for_the_official_draw(tmp_path):
    with pytest.raises(ProtocolError, match="for the official draw"):
        score_file(save(tmp_path, **arrays()), draw="seeded", permutation=PERMUTATION)


def test_a_gallerys_export_and_words_are_read(tmp_path):
    plain = arrays()
    names = np.array(
        [f"{p:03}/{c}/{i:03}.png" for p, c, i in zip(plain["pid"], plain["cam"], plain["index"], strict=True)]
    )
    export = {
        "embedding": plain["features"],
        "pid": plain["pid"],
        "camera": np.array([f"cam{number}" for number in plain["cam"]]),
        "modality": np.where(np.isin(plain["cam"], (3, 6)), "infrared", "visible"),
        "source": names,
    }
    expected = score_file(save(tmp_path, **plain), draw="seeded").to_dict()
    found = score_file(save(tmp_path, **export), draw="seeded").to_dict()
    assert {k: found[k] for k in ("mean", "trials")} == {k: expected[k] for k in ("mean", "trials")}
    odd = {**export, "modality": np.full(N, "warm")}
    with pytest.raises(DataError, match="'modality' in row 0: unknown modality 'warm'"):
        score_file(save(tmp_path, **odd), draw="seeded")
    with pytest.raises(DataError, match="'cam' must hold whole numbers"):
        score_file(save(tmp_path, **{**export, "camera": np.full(N, "gate")}), draw="seeded")
    cameras = export["camera"].copy()
    cameras[7] = "yard"
    with pytest.raises(
        DataError, match=r"'cam' must hold whole numbers, as 3 or cam3, but is 'yard' in row 7$"
    ):
        score_file(save(tmp_path, **{**export, "camera": cameras}), draw="seeded")
    odd_index = np.where(np.arange(N) == 3, 0.5, plain["index"])
    with pytest.raises(DataError, match=r"e\.npz: 'index' is 0\.5 in row 3: give whole numbers"):
        score_file(save(tmp_path, **{**plain, "index": odd_index}), draw="seeded")


@pytest.mark.parametrize("shape", [(N,), (1, N), (N, 1)])
@pytest.mark.parametrize("kind", ["U", "S"])
def test_texts_of_every_array_are_read_as_bytes_and_as_rows_or_columns(tmp_path, shape, kind):
    plain = arrays()
    is_infrared = np.isin(plain["cam"], (3, 6))
    texts = {
        "pid": [f"{pid:04}" for pid in plain["pid"]],
        "cam": [f"cam{camera}" for camera in plain["cam"]],
        "modality": np.where(is_infrared, "infrared", "visible"),
        "name": [
            f"{c}/{p:04}/{i:04}.jpg"
            for p, c, i in zip(plain["pid"], plain["cam"], plain["index"], strict=True)
        ],
    }
    columns = {name: np.array(text, dtype=kind).reshape(shape) for name, text in texts.items()}
    expected = score_file(save(tmp_path, **plain), draw="seeded").trials
    assert score_file(save(tmp_path, features=plain["features"], **columns), draw="seeded").trials == expected
    words, numbers = {}, {}
    for side, rows in (("query", is_infrared), ("gallery", ~is_infrared)):
        features = {f"{side}_features": plain["features"][rows]}
        words |= features | {
            f"{side}_{name}": columns[name].ravel()[rows] for name in ("pid", "cam", "modality")
        }
        numbers |= features | {f"{side}_{name}": plain[name][rows] for name in ("pid", "cam")}
    assert score_file(save(tmp_path, **words)).trials == score_file(save(tmp_path, **numbers)).trials
    named = {name.replace("_cam", "_camera"): array for name, array in numbers.items()}
    assert score_file(save(tmp_path, **named)).trials == score_file(save(tmp_path, **numbers)).trials


def test_an_index_is_whole_numbers(tmp_path):
    e = benchmark([1, 3])
    for wrong, row in (
        (np.r_[1, 1.5, e.index[2:]], 1),
        (np.full(len(e), np.nan), 0),
    ):
        with pytest.raises(DataError, match=f"index is .* in row {row}: give whole numbers"):
            replace(e, index=wrong)
    with pytest.raises(DataError, match=r"index holds texts \('3' in row 0\): convert it with astype\(int\)"):
        replace(e, index=e.index.astype(str))
    with pytest.raises(DataError, match="index is 9223372036854775815 in row 0: give whole numbers"):
        replace(e, index=e.index.astype(np.uint64) + np.uint64(2**63 + 4))
    assert replace(e, index=e.index.astype(np.float32)).index.dtype == np.int64


@pytest.mark.parametrize("name", ["x.pt", "x.pkl", "x.mat"])
def test_files_of_other_programs_are_told_how_to_be_saved(tmp_path, name):
    if name == "x.pt":
        torch.save({"features": torch.ones(3)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"MATLAB 7.3" if name == "x.mat" else pickle.dumps(arrays()))
    for read in (score_file, Embeddings.load):
        with pytest.raises(
            DataError, match=rf"{name} is not a readable .npz file: .*: save the arrays with numpy.savez$"
        ):
            read(tmp_path / name)


def test_lists_where_arrays_are_meant_are_a_line(tmp_path):
    import fmcnet
    from fmcnet import protocols
    from fmcnet.data.table import Table

    e = benchmark([1, 2])
    with pytest.raises(DataError, match=r"embeddings is of type list: give fmcnet\.Embeddings"):
        fmcnet.evaluate([[0.0, 1.0]], protocols.custom())
    with pytest.raises(ProtocolError, match="'sysu' is no protocol"):
        fmcnet.evaluate(e, "sysu")
    with pytest.raises(DataError, match="'path' is of type list"):
        Table("mine", tmp_path, ["a.png"], *[np.zeros(1)] * 11)
    with pytest.raises(DataError, match="'pid' is of type list: give a NumPy array"):
        Embeddings(e.features, e.pid.tolist(), e.camid, e.modality, e.index, e.name)
    with pytest.raises(DataError, match="'features' is of type list"):
        Embeddings(e.features.tolist(), e.pid, e.camid, e.modality, e.index, e.name)
    with pytest.raises(DataError, match=r"a matrix .* of numbers, got <U2"):
        Embeddings(np.full((2, 2), "no"), *[np.zeros(2, np.int64)] * 4, np.full(2, ""))


def test_embeddings_and_evaluations_print_on_a_line():
    from fmcnet import evaluate, protocols

    e = benchmark([1, 2, 3, 4, 5, 6])
    infrared = int(e.modality.sum())
    assert repr(e) == (
        f"<Embeddings {N} x {e.features.shape[1]} {e.features.dtype}: {N - infrared} visible, {infrared} infrared, "
        "3 identities, 6 cameras>"
    )
    found = evaluate(e, protocols.sysu(draw="seeded"))
    assert repr(found) == (
        f"<Evaluation SYSU-MM01 all-search, single-shot: Rank-1 {100 * found.mean['rank1']:.2f}, mAP "
        f"{100 * found.mean['mAP']:.2f}, mINP {100 * found.mean['mINP']:.2f}; 10 trials>"
    )


def test_rows_that_are_there_twice_are_told(tmp_path, caplog):
    rng = np.random.default_rng(0)
    one = {
        "features": rng.normal(size=(6, 4)),
        "pid": np.array([1, 1, 2, 2, 3, 3]),
        "cam": np.arange(6) % 2 + 1,
    }
    np.savez(tmp_path / "one.npz", **one)
    score_file(tmp_path / "one.npz", "regdb")
    assert not caplog.records
    np.savez(tmp_path / "twice.npz", **{name: np.concatenate([a, a[:2]]) for name, a in one.items()})
    score_file(tmp_path / "twice.npz", "regdb")
    assert "2 of 8 rows have the features of another row" in caplog.text
    warnings = caplog.messages
    caplog.clear()
    sides = {f"{side}_{name}": one[name] for side in ("query", "gallery") for name in ("features", "pid")}
    np.savez(tmp_path / "sets.npz", **sides)
    score_file(tmp_path / "sets.npz", "regdb")
    assert "6 of the queries are in the gallery, too" in caplog.text
    said = run_command("score", tmp_path / "twice.npz", "--protocol", "regdb", "--json").stdout
    assert json.loads(said)["notes"] == warnings


def test_texts_in_a_file_are_drawn_as_the_numbers_that_they_sort_as(tmp_path):
    plain = arrays()
    texts = {**plain, "pid": np.array([f"id{pid:04d}" for pid in plain["pid"]])}
    for protocol, more in (("sysu", {}), ("llcm", {"modality": benchmark([1, 2, 3, 4, 5, 6]).modality})):
        draw = {"draw": "seeded"} if protocol == "sysu" else {}
        expected = score_file(save(tmp_path, **plain, **more), protocol, **draw).trials
        assert score_file(save(tmp_path, **texts, **more), protocol, **draw).trials == expected
    e = benchmark([1, 2, 3, 4, 5, 6])
    named = Embeddings(e.features, texts["pid"], e.camid, e.modality, e.index, e.name)
    saved = score_file(named.save(tmp_path / "saved.npz"), draw="seeded")
    assert saved.trials == score_file(save(tmp_path, **plain), draw="seeded").trials


def counted(visible, infrared, **more):
    """One set of so many images in LLCM's and RegDB's form, of two identities each."""
    n = visible + infrared
    random, modality = np.random.default_rng(0), (np.arange(n) >= visible).astype(int)
    rows = {"features": random.standard_normal((n, 2)), "pid": np.arange(n) // 2 % 600, "cam": modality + 1}
    return {**rows, "index": np.arange(n), "modality": modality, **more}


@pytest.mark.parametrize(
    ("protocol", "direction", "content", "text"),
    [
        ("regdb", "v2t", counted(2060, 2060), ""),
        ("regdb", "v2t", counted(2000, 2060), ""),  # a part of it
        ("regdb", "v2t", counted(4120, 4120), "4,120 visible query images, but RegDB's test set has 2,060"),
        ("regdb", "t2v", counted(9, 2070), "2,070 infrared query images, but RegDB's test set has 2,060"),
        ("llcm", "v2i", counted(8680, 40), ""),
        ("llcm", "v2i", counted(7166, 40), "7,166 visible query images, as many as LLCM's infrared test set"),
        ("llcm", "i2v", counted(40, 8680), "8,680 infrared query images, as many as LLCM's visible test set"),
    ],
)
def test_more_images_than_the_test_set_and_those_of_the_other_modality_are_told(
    tmp_path, caplog, protocol, direction, content, text
):
    score_file(save(tmp_path, **content), protocol, direction=direction)
    assert [text in message for message in caplog.messages] == [True] * bool(text)


def test_infrared_images_of_llcms_visible_camera_are_told(tmp_path, caplog):
    e = benchmark([1, 2, 3, 4, 5, 6], infrared=(5, 6))
    content = {"features": e.features, "pid": e.pid, "cam": e.camid, "index": e.index, "modality": e.modality}
    score_file(save(tmp_path, **content), "llcm")
    assert caplog.messages == []
    score_file(save(tmp_path, **{**content, "modality": 1 - e.modality}), "llcm")
    assert "9 infrared images of camera 3, where LLCM has none: check modality and cameras" in caplog.text


def test_a_gallery_that_was_drawn_before_is_told(tmp_path, caplog):
    path = save(tmp_path, **arrays())
    for shots in (1, 10):
        score_file(path, draw="seeded", shots=shots)
    assert caplog.messages == []
    once = (arrays()["index"] == 1) | np.isin(arrays()["cam"], (3, 6))
    path = save(tmp_path, **{name: array[once] for name, array in arrays().items()})
    score_file(path, draw="seeded", shots=10)
    assert caplog.messages == []
    score_file(path, draw="seeded")
    assert "no identity has two visible images of a camera, so all trials are the same" in caplog.text


def test_a_gallery_from_which_nothing_was_drawn_is_told(tmp_path, caplog):
    def sets(gallery):
        sizes = {"query": 4, "gallery": gallery}
        random = np.random.default_rng(1)
        features = {f"{side}_features": random.random((n, 2)) for side, n in sizes.items()}
        pids = {f"{side}_pid": np.arange(n) % 4 for side, n in sizes.items()}
        return {**features, **pids, "query_cam": [3, 6, 3, 6], "gallery_cam": np.full(gallery, 1)}

    score_file(save(tmp_path, **sets(301)), "sysu")
    assert caplog.messages == []
    score_file(save(tmp_path, **sets(6775)), "sysu")
    assert (
        "the gallery is every visible test image of SYSU-MM01, from which the protocol draws" in caplog.text
    )


def test_arrays_that_would_choose_rows_are_told_where_they_differ(tmp_path, caplog):
    n = len(arrays()["pid"])
    score_file(
        save(tmp_path, **arrays(), split=np.full(n, "test"), role=np.full((n, 1), b"query")), draw="seeded"
    )
    assert caplog.messages == []
    split, role = np.where(np.arange(n) < 9, "train", "test"), np.arange(n) % 2
    score_file(save(tmp_path, **arrays(), split=split, role=role), draw="seeded")
    assert [message.partition("e.npz: ")[2] for message in caplog.messages] == [
        f"the array '{name}' is not read, so every row counts: save only those that should"
        for name in ("role", "split")
    ]


def test_missing_arrays_are_named_before_a_missing_permutation(tmp_path):
    content = {f"{side}_feat": np.eye(3) for side in ("query", "gallery")}
    with pytest.raises(
        DataError, match=r"lacks the arrays features, pid, cam, index.*holds query_feat, gallery_feat"
    ):
        score_file(save(tmp_path, **content))


@pytest.mark.parametrize("dataset", ["SYSU-MM01", b"sysu", ["csv"], 3, "", []])
def test_a_dataset_that_embed_did_not_note_leaves_the_default_protocol(tmp_path, dataset):
    file = save(tmp_path, **arrays(), dataset=np.array(dataset))
    with pytest.raises(ProtocolError, match="official gallery draw"):
        score_file(file)


def test_a_dataset_that_embed_noted_gives_the_default_protocol(tmp_path):
    file = benchmark([1, 2, 3, 4, 5, 6]).save(tmp_path / "e.npz", "csv")
    assert score_file(file).protocol.startswith("csv, i2v: infrared images searched in visible images")
    assert score_file(file, draw="seeded", protocol="sysu").protocol.startswith("SYSU-MM01 all-search")


def test_images_without_identity_are_named_before_a_missing_draw(tmp_path):
    with pytest.raises(DataError, match="images have no identity and cannot be scored: embed a labelled"):
        score_file(save(tmp_path, **{**arrays(), "pid": np.full(len(arrays()["pid"]), -1)}))


@pytest.mark.parametrize(("kind", "first"), [("f2", 2_048), ("f4", 2**24), ("f8", 2**53)])
def test_identities_that_a_float_cannot_tell_apart_are_refused(tmp_path, kind, first):
    people = np.repeat(np.arange(first - 8, first), 2)
    more = {"features": np.eye(16), "modality": np.tile([0, 1], 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = score_file(save(tmp_path, **more, pid=people.astype(kind)), "csv")
    assert exact.mean == score_file(save(tmp_path, **more, pid=people), "csv").mean
    with pytest.raises(DataError, match=f"row 14 is {first}, but float.* save them as int64 or texts"):
        score_file(save(tmp_path, **more, pid=(people + 1).astype(kind)), "csv")
