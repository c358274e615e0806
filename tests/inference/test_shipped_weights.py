"""The model that comes with the package: whole, small enough, what its card says, and it finds people."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.errors import FmcnetError
from fmcnet.evaluation import protocols
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.evaluate_model import evaluate_model
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.export.write import export
from fmcnet.inference.fit_calibration import calibrate_model
from fmcnet.inference.info import model_info
from fmcnet.models.shipped import find_model, shipped_models
from fmcnet.types import Modality

NAME = "fmcnet-generated"


def test_it_is_what_its_card_says():
    folder = shipped_models()[NAME]
    assert find_model(NAME) == folder
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12e6
    found = model_info(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"`{found['weights_sha256']}`" in text
    assert found["variant"] == "full"
    assert found["finished"]
    settings = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert load_config(settings, trained=True).model_dump(mode="json") == found["config"]


def test_it_finds_people_of_another_world_across_modalities(tiny_sysu):
    encoder = Encoder.from_pretrained(NAME, device="cpu", threads=1)
    table = read_dataset(tiny_sysu)
    people = table.select(split=("train", "val", "test"))  # nobody of this world was trained on
    embeddings = encoder.embed_table(people)
    for direction in ("i2v", "v2i"):
        protocol = protocols.sysu(draw="seeded", direction=direction)
        found = evaluate(embeddings, protocol)
        assert found.mean["rank1"] > 2 * found.chance, direction


def test_its_calibration_is_its_own_and_rises_with_similarity():
    calibration = Encoder.from_pretrained(NAME, device="cpu", threads=1).calibration
    for query in Modality:
        probability = calibration.probability(np.linspace(-1, 1, 41), query, query.other)
        assert (np.diff(probability) >= 0).all()
        assert probability[0] < 0.2 < 0.9 < probability[-1]
        assert calibration.covers(query, query.other)


def test_the_package_is_not_written_to(tiny_sysu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FmcnetError, match="say --out FILE"):
        calibrate_model(NAME, tiny_sysu, device="cpu", progress=False)
    with pytest.raises(FmcnetError, match="say --out FOLDER"):
        export(NAME)
    evaluate_model(NAME, read_dataset(tiny_sysu), device="cpu", progress=False)
    assert not (shipped_models()[NAME] / "embeddings").exists()
    assert not list(tmp_path.iterdir())


def test_people_of_a_like_dataset_who_may_have_been_trained_on_are_not_learnt_from(
    tiny_sysu, tmp_path, caplog
):
    calibration, path = calibrate_model(
        NAME, tiny_sysu, fmr=0.5, out=tmp_path / "c.json", device="cpu", progress=False
    )
    assert "say --split all" in caplog.text
    assert path.is_file()
    whole, _ = calibrate_model(
        NAME, tiny_sysu, split="all", fmr=0.5, out=tmp_path / "all.json", device="cpu", progress=False
    )
    pair = (Modality.INFRARED, Modality.VISIBLE)
    assert calibration.curves[pair].same < whole.curves[pair].same
