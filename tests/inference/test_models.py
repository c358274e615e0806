"""Which model is meant, what computes it, and what names it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fmcnet.errors import CheckpointError, FmcnetError
from fmcnet.inference.encoder import Encoder, load
from fmcnet.models import shipped
from fmcnet.models.card import CARD, model_digest
from fmcnet.models.shipped import shipped_models


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "checkpoints"))
    return tmp_path / "run"


def test_a_shipped_model_is_found_by_its_name(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    assert shipped_models() == {}
    with pytest.raises(CheckpointError, match="no model is shipped"):
        load("demo")
    (tmp_path / "weights" / "empty").mkdir(parents=True)
    for name in ("night", "demo"):
        shutil.copytree(tiny_run, tmp_path / "weights" / name)
    assert list(shipped_models()) == ["demo", "night"]
    image = np.full((40, 20, 3), 90, np.uint8)
    expected = load(tiny_run, "cpu").encode(image, "visible").features
    assert np.array_equal(
        Encoder.from_pretrained("demo", device="cpu").encode(image, "visible").features, expected
    )
    with pytest.raises(CheckpointError, match=r"there is no model 'dema'.*demo, night"):
        load("dema")
    (tmp_path / "night").mkdir()
    with pytest.raises(CheckpointError, match=r"night holds no model\.json"):
        load("night")  # a folder of that name is meant


def test_the_shipped_folder_is_in_the_package():
    assert shipped.WEIGHTS_FOLDER.name == "weights"
    assert (shipped.WEIGHTS_FOLDER.parent / "__init__.py").is_file()


def test_load_is_from_pretrained(tiny_run):
    one, two = load(tiny_run, "cpu"), Encoder.from_pretrained(tiny_run, device="cpu")
    assert one.digest == two.digest
    assert one.folder == two.folder == tiny_run
    assert one.backend.name == "torch"


def test_the_digest_is_of_weights_architecture_and_size_alone(run):
    digest = model_digest(run)
    card = json.loads((run / CARD).read_text())
    card["config"]["training"]["lr"] = 1.0
    card["step"] = 12345
    (run / CARD).write_text(json.dumps(dict(reversed(card.items()))))
    assert model_digest(run) == digest == load(run, "cpu").digest
    card["config"]["data"]["height"] += 16
    (run / CARD).write_text(json.dumps(card))
    taller = model_digest(run)
    card["config"]["model"]["descriptor"] = "normalized"
    (run / CARD).write_text(json.dumps(card))
    assert len({digest, taller, model_digest(run)}) == 3
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(bytes(weights))
    assert model_digest(run) not in (digest, taller)
    (run / CARD).write_text("{}")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        model_digest(run)


def test_the_runtime_is_what_the_folder_holds(run, tiny_onnx, monkeypatch):
    assert load(tiny_onnx).backend.name == "onnxruntime"
    with pytest.raises(CheckpointError, match="no model for onnxruntime"):
        Encoder.from_pretrained(run, runtime="onnxruntime")
    with pytest.raises(CheckpointError, match="no model for torch"):
        Encoder.from_pretrained(tiny_onnx, runtime="torch")
    for path in tiny_onnx.iterdir():
        if path.name not in (CARD, "calibration.json"):
            shutil.copy(path, run / path.name)
    assert Encoder.from_pretrained(run).backend.name == "torch"
    assert Encoder.from_pretrained(run, runtime="onnxruntime").backend.name == "onnxruntime"
    monkeypatch.setattr("fmcnet.inference.backends._importable", lambda module: False)
    assert Encoder.from_pretrained(run).backend.name == "onnxruntime"
    with pytest.raises(FmcnetError, match="say auto, torch or onnxruntime"):
        Encoder.from_pretrained(run, runtime="tensorrt")


def test_weights_that_are_not_those_that_were_written_are_told(run, caplog):
    load(run, "cpu")
    assert "it is damaged" not in caplog.text
    weights = run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 64  # one bit of a value
    weights.write_bytes(content)
    load(run, "cpu")
    assert f"{weights} is not the file that model.json was written with" in caplog.text
