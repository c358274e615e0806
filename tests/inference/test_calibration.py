"""A calibration travels with its weights and refuses others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fmcnet.errors import CheckpointError, DataError, FmcnetError
from fmcnet.inference.calibration import CALIBRATION, Calibration, Curve
from fmcnet.inference.encoder import Encoder, load
from fmcnet.inference.fit_calibration import calibration_lines, fit_calibration
from fmcnet.types import NO_PID, Embeddings, Modality
from tests.cli import run_command

V, I = Modality.VISIBLE, Modality.INFRARED  # noqa: E741


def people(identities=30, per=4, seed=0, cameras=True):
    """Embeddings scattered around a direction a person; infrared ones more widely."""
    generator = np.random.default_rng(seed)
    pid = np.repeat(np.arange(identities), 2 * per)
    modality = np.tile(np.repeat([0, 1], per), identities).astype(np.uint8)
    centres = generator.normal(size=(identities, 16))
    noise = generator.normal(size=(len(pid), 16)) * np.where(modality == 0, 0.6, 1.2)[:, None]
    n = len(pid)
    return Embeddings(
        (centres[pid] + noise).astype(np.float32),
        pid,
        np.tile(np.arange(2 * per), identities) if cameras else np.full(n, 7),
        modality,
        np.arange(1, n + 1),
        np.array([f"{at}.png" for at in range(n)]),
    )


@pytest.fixture(scope="module")
def calibration():
    return fit_calibration(people(), "abc", fmr=0.01, prior=0.3)


def test_every_direction_has_its_own_curve(calibration):
    assert set(calibration.curves) == {(V, V), (V, I), (I, V), (I, I)}
    assert calibration.curves[V, V].same == 30 * 6
    assert calibration.curves[V, I].same == calibration.curves[I, V].same == 30 * 16
    clean, noisy = (calibration.probability(0.8, kind, kind) for kind in (V, I))
    assert clean != noisy
    assert calibration.threshold(V, I) == calibration.threshold("visible", "infrared", fmr=0.01)
    assert calibration.threshold(V, I, fmr=0.1) < calibration.threshold(V, I)
    assert calibration.probability([0.1, 0.9], "infrared", "visible").shape == (2,)
    assert calibration.probability(0.7, "rgb", "IR") == calibration.probability(0.7, V, I)
    with pytest.raises(FmcnetError, match="unknown modality 'vis ible'"):
        calibration.threshold("vis ible", "ir")
    even = calibration.probability(0.7, V, I, prior=0.5)
    assert even > calibration.probability(0.7, V, I) == calibration.probability(0.7, V, I, prior=0.3)


def test_roles_make_the_two_cross_directions_differ():
    found = people()
    query, gallery = found.modality == 1, found.modality == 0
    one = fit_calibration(found, "abc", query_mask=query, gallery_mask=gallery)
    assert set(one.curves) == {(I, V)}
    assert one.covers("infrared", "visible")
    assert not one.covers(V, I)
    with pytest.raises(FmcnetError, match=r"visible-infrared is not calibrated \(only infrared-visible\)"):
        one.probability(0.5, V, I)


def test_pairs_of_one_camera_are_not_learnt_from():
    with pytest.raises(DataError, match="by two cameras"):
        fit_calibration(people(cameras=False), "abc")


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("roles", [False, True])
def test_pairs_of_unknown_cameras_are_counted_and_told(share, roles, caplog):
    found = people(24)
    generator = np.random.default_rng(0)
    camid = np.where(generator.random(len(found)) < share, -1, found.camid)
    found = Embeddings(found.features, found.pid, camid, found.modality, found.index, found.name)
    masks = {}
    if roles:
        masks = {name: generator.random(len(found)) < 0.8 for name in ("query_mask", "gallery_mask")}
    query, gallery = masks.get("query_mask", np.full(len(found), True)), masks.get("gallery_mask", camid > -2)
    expected = {"visible-visible": set(), "infrared-infrared": set()}
    for a in np.flatnonzero(query):
        for b in np.flatnonzero(
            gallery & (found.pid == found.pid[a]) & (found.modality == found.modality[a])
        ):
            if a != b and -1 in (camid[a], camid[b]):
                expected[("visible-visible", "infrared-infrared")[found.modality[a]]].add(frozenset((a, b)))
    fitted = fit_calibration(found, "abc", **masks)
    counts = {name: len(pairs) for name, pairs in expected.items()}
    assert fitted.source["unknown_camera"] == counts
    (record,) = caplog.records
    same = {kind: fitted.curves[kind, kind].same for kind in (V, I)}
    assert record.getMessage().startswith(
        f"{counts['visible-visible']} of {same[V]} visible-visible and {counts['infrared-infrared']} of {same[I]} "
        "infrared-infrared pairs of one person have an unknown camera and may be neighbouring frames"
    )
    if share == 1:
        assert counts == {"visible-visible": same[V], "infrared-infrared": same[I]}
    lines = list(calibration_lines(fitted))
    assert lines[0] == "learnt from 192 images of 24 identities"
    assert f"({counts['visible-visible']} of unknown camera)" in lines[1]


def test_known_cameras_are_no_reason_to_warn(calibration, caplog):
    assert not caplog.records
    assert "unknown_camera" not in calibration.source
    assert "unknown camera" not in " ".join(calibration_lines(calibration))


def test_the_pairs_that_are_missing_are_named():
    with pytest.raises(DataError, match=r"identities: 1\) make at most 3,600 pairs of one .* and 0 of two"):
        fit_calibration(people(1, 60), "abc")
    with pytest.raises(DataError, match=r"identities: 60\) make at most 0 pairs of one .* and 3,540 of two"):
        fit_calibration(people(60, 1, cameras=False), "abc")
    found = people(7, 4)  # 16 visible images of one person, 40 infrared ones of 40 persons
    pid = np.array([*[0] * 17, *range(1, 40)])
    modality = (np.arange(56) >= 16).astype(np.uint8)
    one = Embeddings(found.features, pid, np.arange(56), modality, found.index, found.name)
    with pytest.raises(DataError, match=r"make at most 16 pairs of one .* and 624 of two"):
        fit_calibration(one, "abc")


def test_pairs_of_one_identity_alone_leave_the_error_unknown():
    found = people(40, 1)
    found.pid[:12] = 0  # and one image a modality of every other one
    found.camid[12:] = 1
    lines = " ".join(calibration_lines(fit_calibration(found, "abc")))
    assert lines.count("too few identities with pairs to hold some out") == 2, lines


def test_unknown_or_zero_embeddings_are_refused():
    found = people()
    nobody = Embeddings.unlabelled(found.features, found.modality, found.name)
    with pytest.raises(DataError, match="240 embeddings have no identity"):
        fit_calibration(nobody, "abc")
    assert nobody.pid[0] == NO_PID
    features = found.features.copy()
    features[3] = 0
    with pytest.raises(DataError, match="all zeros"):
        fit_calibration(
            Embeddings(features, found.pid, found.camid, found.modality, found.index, found.name), "abc"
        )
    for wrong in ({"prior": 0.0}, {"prior": 1.0}, {"fmr": 0.0}, {"fmr": 2.0}):
        with pytest.raises(FmcnetError, match="prior must be between"):
            fit_calibration(found, "abc", **wrong)


def test_saved_and_read_back_for_the_same_weights_only(calibration, tmp_path):
    path = calibration.save(tmp_path / CALIBRATION)
    again = Calibration.load(path, model="abc")
    grid = np.linspace(-1, 1, 50)
    for pair in calibration.curves:
        assert again.probability(grid, *pair) == pytest.approx(calibration.probability(grid, *pair), abs=1e-6)
    assert (again.prior, again.fmr, again.held_out) == (0.3, 0.01, calibration.held_out)
    with pytest.raises(CheckpointError, match=r"another model \(digest abc, this one's is abd\)"):
        Calibration.load(path, model="abd")
    text = path.read_text()
    tree = json.loads(text)
    for damaged in (text[:-40], "[]", "{}", text.replace("visible-visible", "visible"), '{"format": 1}'):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|not a calibration"):
            Calibration.load(path)
    assert set(tree["held_out"]["visible-infrared"]) >= {"expected_calibration_error", "brier", "rates"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(prior="0.5"), r"prior = '0\.5': input should be a valid number"),
        (lambda t: t.update(prior=1), "prior = 1: input should be less than 1"),
        (lambda t: t.update(fmr=0), "fmr = 0: input should be greater than 0"),
        (lambda t: t.update(fmr=float("nan")), "fmr = nan: input should be"),
        (lambda t: t.pop("fmr"), "fmr: field required"),
        (lambda t: t.update(similarity="euclid"), "similarity = 'euclid': input should be 'cosine'"),
        (lambda t: t.update(model=7), "model = 7: input should be a valid string"),
        (lambda t: t.update(curves={}), r"curves = \{\}: dictionary should have at least 1 item"),
        (lambda t: t.update(held_out=[]), r"held_out = \[\]: input should be a valid dictionary"),
        (
            lambda t: t["curves"].update({"visible-thermal": {}}),
            "curves.visible-thermal.*: input should be 'visible-visible'",
        ),
        (
            lambda t: t["curves"].update({"visible-visible": 3}),
            "curves.visible-visible = 3: input should be a valid dictionary",
        ),
        (lambda t: t["curves"]["visible-visible"].pop("same"), "curves.visible-visible.same: field required"),
        (
            lambda t: t["curves"]["infrared-visible"]["threshold"].reverse(),
            "curves.infrared-visible.*threshold.* out of order",
        ),
    ],
)
def test_a_damaged_field_is_named_when_it_is_read(calibration, tmp_path, change, said):
    path = calibration.save(tmp_path / CALIBRATION)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(
        CheckpointError, match=f"{CALIBRATION} is (missing or )?damaged: {said}.*calibrate again"
    ):
        Calibration.load(path)


def test_errors_on_held_out_identities_are_small_when_there_are_many():
    """Learnt from some people, right about others: what is reported, against people never seen."""
    known, strangers = people(200, seed=1), people(200, seed=2)
    found = fit_calibration(known, "abc")
    from fmcnet.inference.fit_calibration import BINS, calibration_error, count_pairs, edges

    counts = count_pairs(strangers, V, I, fold=np.zeros(len(strangers), np.int64))[0, 0]
    centres = (edges()[:-1] + edges()[1:]) / 2
    assert len(centres) == BINS
    there = calibration_error(found.probability(centres, V, I), counts[1], counts[0], 0.5)
    assert there < 0.03
    assert found.held_out["visible-infrared"]["expected_calibration_error"] < 0.03


def run(*words, code=0):
    done = run_command(*words, code=None, terminal_width=200)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def trained(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "checkpoints"))
    return tmp_path / "run"


def test_the_command_keeps_it_with_the_weights(trained, tiny_sysu, tiny_onnx, tmp_path):
    shutil.copytree(tiny_onnx, trained / "onnx")
    encoder = load(trained, "cpu")
    assert not encoder.calibrated
    with pytest.raises(CheckpointError, match="fmcnet calibrate"):
        encoder.calibration  # noqa: B018
    said = json.loads(
        run("calibrate", trained, "--data", tiny_sysu, "--fmr", "0.05", "--json", "--device", "cpu")
    )
    assert said["source"]["identities"] == 12  # val and test: those trained on are left out
    assert said["fmr"] == 0.05
    encoder = load(trained, "cpu")
    assert encoder.calibrated
    assert (trained / "onnx" / CALIBRATION).read_text() == (trained / CALIBRATION).read_text()  # embeds alike
    assert encoder.calibration.threshold(I, V) == encoder.calibration.threshold(I, V, fmr=0.05)
    assert json.loads(run("info", trained, "--json"))["calibrated"] is True
    # The fp32 export embeds alike: the same calibration holds.
    assert Encoder.from_pretrained(tiny_onnx, calibration=trained / CALIBRATION).calibration.curves
    shown = run(
        "calibrate", tiny_onnx, "--data", tiny_sysu, "--split", "test", "--out", tmp_path / "c" / "x.json"
    )
    assert "held-out identities: expected calibration error" in shown
    assert "cannot be told from" in shown  # 0.001 of so few pairs
    # Other weights: refused.
    weights = bytearray((trained / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (trained / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(CheckpointError, match="was made for another model"):
        load(trained, "cpu").calibration  # noqa: B018


def test_a_csv_without_splits_and_cameras(trained, tiny_sysu, tmp_path, caplog):
    """All of its identities are learnt from, so none are called held out; a message names the CSV."""
    from fmcnet.data.readers import read_dataset
    from fmcnet.data.readers.csv import write_csv

    rows = read_dataset(tiny_sysu).select(split=("val", "test"))
    file = write_csv(rows, tmp_path / "labels.csv")
    table = [line.split(",") for line in file.read_text().splitlines()]
    kept = [table[0].index(name) for name in ("path", "pid", "modality")]
    file.write_text("\n".join(",".join(line[column] for column in kept) for line in table) + "\n")
    said = run("calibrate", trained, "--data", file, "--out", tmp_path / "c.json", "--fmr", "0.1")
    for taken in (file, trained / "model.safetensors"):
        before = taken.read_bytes()
        refused = run("calibrate", trained, "--data", file, "--out", taken, code=2)
        assert "exists and is no calibration: name another file" in " ".join(refused.split())
        assert taken.read_bytes() == before
    assert "held out for test" not in said + caplog.text
    assert "of 12 identities" in said
    assert "of unknown camera)" in said
    assert "held out for test" in run("calibrate", trained, "--data", file, "--split", "test") + caplog.text
    file.write_text(
        file.read_text().replace("modality", "modality,split", 1).replace("infrared", "infrared,test")
    )
    file.write_text(file.read_text().replace("visible\n", "visible,test\n"))
    assert f"{file} has no image of split train" in run(
        "project", trained, "--data", file, "--dim", "2", code=2
    )
    none = run("calibrate", trained, "--data", file, "--split", "train", code=2)
    assert f"{file} has no image to calibrate on" in none


def test_identities_trained_on_are_refused(trained, tiny_sysu):
    assert "trained on" in " ".join(
        run("calibrate", trained, "--data", tiny_sysu, "--split", "train", code=2).split()
    )
    assert "say auto" in run("calibrate", trained, "--data", tiny_sysu, "--split", "x", code=2)


def test_importing_it_does_not_import_torch():
    modules = "fmcnet.inference.calibration, fmcnet.inference.encoder"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("lowest", [0.00249, 0.00794, 0.1, 1 / 4557, 1e-9])
def test_the_lowest_rate_that_is_named_can_be_given(lowest):
    ends = np.array([-1.0, 1.0])
    curve = Curve(9, 4557, ends, ends, np.array([1.0, lowest]), ends, np.array([1.0, 0.5]))
    with pytest.raises(FmcnetError, match="is the lowest") as told:
        curve.at(lowest / 2)
    curve.at(float(re.search(r"persons: (\S+) is the lowest", str(told.value))[1]))
