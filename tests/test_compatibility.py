"""What fmcnet 0.1.0 wrote still opens and gives the same answers (tests/fixtures/v0.1.0/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcnet import Embeddings, Encoder, Gallery, Where
from fmcnet.config import load_config
from fmcnet.errors import CheckpointError
from tests.cli import run_command

FOLDER = Path(__file__).parent / "fixtures" / "v0.1.0"
KINDS = ["visible", "visible", "infrared", "infrared"]


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as stored:
        return dict(stored)


@pytest.fixture
def folder(tmp_path):
    """A copy that may be written to."""
    return Path(shutil.copytree(FOLDER, tmp_path / "old"))


def images():
    return list(np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["run", "export"])
def test_a_model_gives_the_same_embeddings(name, expected):
    encoder = Encoder.from_pretrained(FOLDER / name)
    found = encoder.encode(images(), KINDS)
    np.testing.assert_allclose(found.features, expected[name], atol=2e-6)
    assert encoder.calibration.covers("infrared", "visible")


def test_the_gallery_answers_as_it_did_and_can_be_written_to(folder, expected):
    with Gallery(folder / "gallery") as gallery:
        assert len(gallery) == 12
        hits = gallery.search(expected["run"][2], top=30)
        assert [hit.id for hit in hits] == expected["ids"].tolist()
        np.testing.assert_allclose([hit.similarity for hit in hits], expected["similarity"], atol=2e-6)
        assert {entry.camera for entry, _ in gallery.scan()} == {"cam1", "cam3"}
        gallery.remove(Where(cameras=["cam1"]))
        left = len(gallery)
        assert left == 7
    with Gallery(folder / "gallery") as gallery:
        assert len(gallery) == left
        assert not gallery.check()


def test_the_settings_of_its_training_are_those_of_a_new_one():
    config = load_config(FOLDER / "run" / "config.yaml")
    assert config.losses.detach_targets
    assert config.training.fusion_lr_factor == 0.02


@pytest.mark.slow
def test_commands_read_what_it_wrote(folder):
    facts = json.loads(run_command("info", folder / "run", "--json").stdout)
    assert facts["finished"]
    assert facts["config"]["model"]["width"] == 2
    assert json.loads(run_command("gallery", "info", folder / "gallery", "--json").stdout)["entries"] == 12
    out = folder / "found.npz"
    for name, image in enumerate(images()):
        Image.fromarray(image).save(folder / f"{name}.png")
    for model in ("run", "export"):
        run_command("embed", folder / model, folder, "--modality", "visible", "--out", out)
        given = Encoder.from_pretrained(FOLDER / "run").encode(images(), "visible").features
        np.testing.assert_allclose(Embeddings.load(out).features, given, atol=2e-6)


def test_a_model_trained_with_a_setting_that_is_gone_still_works(folder, expected):
    """What mattered in training only keeps no finished model from being used; what changed its weights does."""
    card = folder / "run" / "model.json"
    tree = json.loads(card.read_text())
    tree["config"]["training"]["ema"] = 0.999
    tree["config"]["losses"]["ramp"] = 0.1
    card.write_text(json.dumps(tree))
    found = Encoder.from_pretrained(folder / "run").encode(images(), KINDS)
    np.testing.assert_allclose(found.features, expected["run"], atol=2e-6)
    tree["config"]["model"]["generator_norm"] = True
    card.write_text(json.dumps(tree))
    with pytest.raises(
        CheckpointError, match=r"model\.generator_norm = True: this setting of 0.1.0 was removed"
    ):
        Encoder.from_pretrained(folder / "run")


def test_the_old_name_of_the_retrieval_package_still_imports():
    with pytest.warns(DeprecationWarning, match=r"fmcnet\.retrieval"):
        from fmcnet.gallery import Gallery as old
    assert old is Gallery


def test_an_evaluation_of_an_older_report_is_replaced_by_one_of_the_same_protocol(tmp_path):
    """fmcnet 0.1.0 called a query a probe, also in the sentence by which a report knows a protocol."""
    from fmcnet.evaluation.protocols import sysu
    from fmcnet.experiments.report import _keep_other_protocols

    def facts(sentences):
        evaluations = [{"protocol": sentence, "distance": "cosine"} for sentence in sentences]
        return {"dataset": {}, "runs": {"run": {"digest": "1", "evaluations": evaluations}}}

    sentences = [sysu(mode, draw="seeded").sentence() for mode in ("all", "indoor")]
    old = [sentence.replace("camera-3 query skips", "camera-3 probe skips") for sentence in sentences]
    assert not set(old) & set(sentences)
    (tmp_path / "report.json").write_text(json.dumps(facts(old)), encoding="utf-8")
    new = facts(sentences[:1])
    _keep_other_protocols(new, tmp_path / "report.json")
    assert [one["protocol"] for one in new["runs"]["run"]["evaluations"]] == sentences
