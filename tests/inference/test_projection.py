"""Smaller embeddings: the map by its formulas, the file, and the model that it makes, on both engines."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.errors import CheckpointError, DataError, FmcnetError, GalleryError
from fmcnet.inference import fit_projection as project
from fmcnet.inference.backends import TorchBackend
from fmcnet.inference.encoder import Encoder, load
from fmcnet.inference.export import write
from fmcnet.inference.export.write import export
from fmcnet.inference.fit_projection import fit_projection, learnt_from, project_model
from fmcnet.inference.projection import PROJECTION_FORMAT, Projection
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS
from fmcnet.retrieval import Gallery, Searcher
from fmcnet.training import trainer as loop
from tests.cli import run_command


def people(persons=40, per=6, width=12, seed=0):
    """Descriptors that tell persons apart by their first values; the last ones vary more, at random."""
    generator = np.random.default_rng(seed)
    pid = generator.permutation(np.repeat(np.arange(persons) * 7, per))
    centres = {one: generator.normal(size=width) * (np.arange(width) < 4) for one in np.unique(pid)}
    noise = generator.normal(size=(len(pid), width)) * np.where(np.arange(width) < 4, 0.3, 1.5)
    return (np.stack([centres[one] for one in pid]) + noise + 0.5).astype(np.float32), pid


def slow_scatters(features, pid):
    """Mean, and the scatters within and between persons, one image at a time."""
    units = [row / np.sqrt((row**2).sum()) for row in features.astype(np.float64)]
    mean = sum(units) / len(units)
    within, between, total = (np.zeros((len(mean), len(mean))) for _ in range(3))
    for person in sorted(set(pid)):
        mine = [unit for unit, one in zip(units, pid, strict=True) if one == person]
        centre = sum(mine) / len(mine)
        between += np.outer(centre - mean, centre - mean) / len(set(pid))
        for one in mine:
            within += np.outer(one - centre, one - centre) / len(units)
            total += np.outer(one - mean, one - mean) / len(units)
    return mean, within, between, total


def test_the_discriminant_directions_are_those_of_the_formula():
    features, pid = people()
    found = fit_projection(features, pid, 5)
    mean, within, between, _ = slow_scatters(features, pid)
    even = (within + np.eye(12) * np.trace(within) / 12) / 2
    assert found.mean == pytest.approx(mean, abs=1e-6)
    ratios = np.sort(np.linalg.eigvals(np.linalg.inv(even) @ between).real)[::-1]
    for at in range(5):
        direction = found.matrix[:, at].astype(np.float64)
        ratio = (direction @ between @ direction) / (direction @ even @ direction)
        assert ratio == pytest.approx(ratios[at], rel=1e-3)
        length = np.sqrt(direction @ even @ direction)  # how much it counts
        assert length == pytest.approx(ratio / (1 + ratio), rel=1e-3)
        assert even @ direction * ratio == pytest.approx(between @ direction, abs=1e-5)


def test_pca_is_the_directions_of_largest_variance():
    features, pid = people()
    found = fit_projection(features, pid, 4, "pca")
    mean, _, _, total = slow_scatters(features, pid)
    _, values, vectors = np.linalg.svd(total)
    assert values[0] > values[3]
    for at in range(4):
        assert abs(found.matrix[:, at] @ vectors[at]) == pytest.approx(1, abs=1e-4)
    assert found.mean == pytest.approx(mean, abs=1e-6)


def test_it_tells_persons_apart_better_and_takes_any_length():
    features, pid = people()
    strangers, theirs = people(seed=1)
    map_ = fit_projection(features, pid, 4)

    def right(rows):
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        near = units @ units.T - 2 * np.eye(len(rows))
        return (theirs[near.argmax(axis=1)] == theirs).mean()

    assert right(map_(strangers)) > right(strangers) + 0.2
    assert right(map_(strangers)) > right(fit_projection(features, pid, 4, "pca")(strangers))
    assert map_(3 * strangers) == pytest.approx(map_(strangers), abs=1e-5)
    with pytest.raises(CheckpointError, match="takes descriptors of 12 values and the model gives 11"):
        map_(strangers[:, :11])


def test_what_cannot_be_learnt_is_refused():
    features, pid = people(persons=6)
    assert fit_projection(features, pid, 5).dim == 5
    with pytest.raises(DataError, match=r"6 persons: at most 5; --method pca"):
        fit_projection(features, pid, 6)
    assert fit_projection(features, pid, 12, "pca").dim == 12
    for dim in (0, 13):
        with pytest.raises(DataError, match="at most 12"):
            fit_projection(features, pid, dim, "pca")
    with pytest.raises(DataError, match="of 12 values, 3 images: at most 2"):
        fit_projection(features[:3], pid[:3], 3, "pca")
    with pytest.raises(DataError, match="one image only"):
        fit_projection(features, np.arange(len(pid)), 3)
    with pytest.raises(FmcnetError, match="say discriminant or pca"):
        fit_projection(features, pid, 3, "tsne")


def test_the_file_and_its_damage(tmp_path):
    features, pid = people()
    made = fit_projection(features, pid, 3)
    path = made.save(tmp_path / PROJECTION)
    again = Projection.load(path)
    assert np.array_equal(again(features), made(features))
    assert (again.method, again.facts) == (made.method, made.facts)
    assert {made.save(path).read_bytes() for _ in range(20)} == {
        path.read_bytes()
    }  # the model's digest is of bytes
    said, tensors = {"format": PROJECTION_FORMAT, "method": "pca"}, load_file(path)
    wrong = {
        "it is not of format": (tensors, {"method": "pca"}),
        "method is 'x'": (tensors, {**said, "method": "x"}),
        "matrix must hold finite": ({**tensors, "matrix": tensors["matrix"] * np.float32(np.nan)}, said),
        "mean must hold finite float32": ({**tensors, "mean": tensors["mean"].astype(np.float64)}, said),
        "are needed": ({**tensors, "matrix": tensors["matrix"][1:].copy()}, said),
    }
    for reason, (content, facts) in wrong.items():
        save_file(content, path, {"fmcnet": json.dumps(facts)})
        with pytest.raises(CheckpointError, match=reason):
            Projection.load(path)
    save_file({"mean": tensors["mean"]}, path, {"fmcnet": json.dumps(said)})
    with pytest.raises(CheckpointError, match="damaged"):
        Projection.load(path)
    path.write_bytes(b"\0" * 30)
    with pytest.raises(CheckpointError, match=f"{PROJECTION} is missing or damaged"):
        Projection.load(path)


@pytest.fixture(scope="module")
def projected(tmp_path_factory, tiny_run, tiny_sysu):
    """`tiny_run` projected to 7 values. Do not change it: copy it first."""
    _, folder = project_model(
        tiny_run, tiny_sysu, dim=7, out=tmp_path_factory.mktemp("p") / "p7", device="cpu", progress=False
    )
    return folder


def test_a_model_of_its_own_that_learnt_from_training_identities_only(projected, tiny_run, tiny_sysu):
    encoder, before = load(projected, "cpu"), load(tiny_run, "cpu")
    assert {path.name for path in projected.iterdir()} == {CARD, WEIGHTS, PROJECTION}
    assert encoder.digest != before.digest == encoder.projection.source
    table = read_dataset(tiny_sysu)
    train = table.take(np.isin(table.pid, before.card.pids))
    assert encoder.projection.facts["images"] == len(train)
    assert encoder.projection.facts["identities"] == before.card.classes
    expected = fit_projection(before.embed_table(train, progress=False).features, train.pid, 7)
    image = np.random.default_rng(0).integers(0, 256, (3, 50, 30, 3), dtype=np.uint8)
    there, whole = (one.encode(image, "ir", normalize=False).features for one in (encoder, before))
    assert there == pytest.approx(expected(whole), abs=1e-5)
    assert encoder.encode(image, "ir").features.shape == (3, 7)
    mirrored = encoder.encode(image, "ir", normalize=False, flip=True).features
    assert mirrored == pytest.approx(
        (there + encoder.encode(image[:, :, ::-1], "ir", normalize=False).features) / 2, abs=1e-5
    )


def test_an_export_is_traced_with_the_projection(projected, tiny_sysu, tmp_path, monkeypatch):
    """What the graph then gives: tests/export/test_export.py."""
    traced = []

    def trace(model, modality, height, width, path, projection):
        traced.append(projection.dim)
        raise CheckpointError("far enough")

    monkeypatch.setattr(write, "write_graph", trace)
    with pytest.raises(CheckpointError, match="far enough"):
        export(projected, data=tiny_sysu, out=tmp_path / "onnx", progress=False)
    assert traced == [7]


def test_a_gallery_does_not_mix_it_with_the_model_it_was_made_from(projected, tiny_run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (2, 50, 30, 3), dtype=np.uint8)
    with Gallery(tmp_path / "g") as gallery:
        Searcher(load(projected, "cpu"), gallery).add(list(image), "visible")
        assert gallery.settings.dimension == 7
        with pytest.raises(GalleryError, match="model"):
            Searcher(load(tiny_run, "cpu"), gallery).add(list(image), "visible")
        with pytest.raises(GalleryError, match="model"):
            Searcher(load(tiny_run, "cpu"), gallery).search(image[0], "infrared")


def run(*words, code=0):
    done = run_command(*words, code=None, terminal_width=200)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_the_command_and_its_mistakes(tiny_run, tiny_sysu, tmp_path, monkeypatch):
    make = ("project", tiny_run, "--data", tiny_sysu, "--device", "cpu")
    out = tmp_path / "made" / "p5"
    said = json.loads(
        run_command(*map(str, make), "--dim", "5", "--out", str(out), "--json", code=None).stdout
    )
    assert (said["dim"], said["method"], said["source"]) == (5, "discriminant", load(tiny_run, "cpu").digest)
    assert said["digest"] == load(out, "cpu").digest
    facts = json.loads(run("info", out, "--json"))
    assert facts["embedding"] == 5
    assert f"of model {said['source']}, discriminant" in facts["projected_from"]
    refused = run(*make, "--dim", "5", "--out", out, code=2)
    assert f"holds model {said['digest']} (model {said['source']} projected to 5 values)" in refused
    run(*make, "--dim", "4", "--method", "pca", "--out", out, "--overwrite")
    assert load(out, "cpu").projection.method == "pca"
    assert [path.name for path in out.parent.iterdir()] == ["p5"]
    (out / "report").mkdir()
    assert "holds report beside the model" in run(*make, "--dim", "4", "--out", out, "--overwrite", code=2)
    assert "projected to 4 values already" in run("project", out, "--data", tiny_sysu, "--dim", "2", code=2)
    assert "is no projected model" in run(*make, "--dim", "4", "--out", tiny_sysu, "--overwrite", code=2)
    assert "say --out FOLDER" in run("project", "fmcnet-generated", "--data", tiny_sysu, "--dim", "4", code=2)

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(project.shutil, "copy", full)
    assert "No space" in run(*make, "--dim", "4", "--out", tmp_path / "full", code=2)
    assert not (tmp_path / "full").exists()
    shutil.rmtree(out.parent)


def test_without_training_images_nothing_is_learnt(tiny_run, tiny_sysu):
    card, table = load(tiny_run, "cpu").card, read_dataset(tiny_sysu)
    assert set(learnt_from(card, table).pid) == set(card.pids)
    with pytest.raises(DataError, match="has no image of split train"):
        learnt_from(card, table.select(split="test"))


def test_a_projection_of_another_model_is_found_at_the_first_image(projected, tmp_path):
    shutil.copytree(projected, tmp_path / "m")
    features, pid = people()
    fit_projection(features, pid, 3).save(tmp_path / "m" / PROJECTION)
    with pytest.raises(CheckpointError, match="takes descriptors of 12 values"):
        Encoder.from_pretrained(tmp_path / "m", device="cpu").encode(np.zeros((8, 8, 3), np.uint8), "ir")


def test_a_discriminant_descriptor_is_learnt_at_the_end_of_training(tiny_sysu, tmp_path):
    run = tmp_path / "run"
    settings = ["model.descriptor=discriminant", "training.epochs=1"]
    loop.train(load_config("tiny", settings), tiny_sysu, run, progress=False)
    encoder = Encoder.from_pretrained(run)
    assert encoder.projection is not None
    table = read_dataset(tiny_sysu).select(split="train")
    table = table.take(np.isin(table.pid, encoder.card.pids))
    descriptors = (
        Encoder(TorchBackend(encoder.model, encoder.device), encoder.card).embed_table(table).features
    )
    width = 2 * encoder.model.decomposition.shared.dim
    persons = len(set(table.pid.tolist()))
    assert descriptors.shape[1] == width
    lengths = np.linalg.norm(descriptors.reshape(len(table), 2, -1), axis=2)
    weight = encoder.card.config.model.specific_weight
    assert weight == 0.25
    assert np.allclose(weight * lengths[:, 0], lengths[:, 1], atol=1e-4)  # each part was of unit length
    expected = fit_projection(descriptors, table.pid, min(width, persons - 1))(descriptors)
    found = encoder.embed_table(table).features
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 1 - 1e-5

    (run / PROJECTION).unlink()  # as if killed between the weights and it
    with pytest.raises(CheckpointError, match=r"projection\.safetensors, the last thing"):
        Encoder.from_pretrained(run)
    loop.train(load_config("tiny", settings), tiny_sysu, run, resume=True, progress=False)
    assert Encoder.from_pretrained(run).digest == encoder.digest


def test_a_projection_that_cannot_be_written_is_made_up_for_by_resuming(tiny_sysu, tmp_path, monkeypatch):
    config, run = (
        load_config("tiny", ["model.descriptor=discriminant", "training.epochs=1"]),
        tmp_path / "run",
    )

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Projection, "save", full)
        with pytest.raises(CheckpointError, match=r"No space left on device\. Nothing is lost: make room"):
            loop.train(config, tiny_sysu, run, progress=False)
    loop.train(config, tiny_sysu, run, resume=True, progress=False)
    assert Encoder.from_pretrained(run).projection is not None


def test_descriptors_that_do_not_differ_are_refused_plainly():
    same = np.tile(np.ones(8, np.float32), (20, 1))
    with pytest.raises(DataError, match="do not differ"):
        fit_projection(same, np.repeat(np.arange(5), 4), 3)


def test_a_calibration_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(CheckpointError, match="no calibration at"):
        Encoder.from_pretrained("fmcnet-generated", calibration=tmp_path / "typo.json")


def test_a_disk_that_takes_no_projection_is_an_os_error(tmp_path):
    learnt = fit_projection(
        np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32), np.arange(40) // 4, 3
    )
    with pytest.raises(OSError, match="No such file or directory"):
        learnt.save(tmp_path / "nowhere" / "projection.safetensors")
