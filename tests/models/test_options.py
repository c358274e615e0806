"""Options that are ours: earlier splits of the stems, unit-length parts of the descriptor, stripes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fmcnet.config import ModelConfig, load_config
from fmcnet.errors import CheckpointError, ConfigError
from fmcnet.models.build import build_model
from fmcnet.models.card import ModelCard
from fmcnet.models.checkpoint import load_pretrained_model, save_pretrained
from fmcnet.models.fmcnet import VARIANTS, FMCNet
from fmcnet.models.pretrained import load_pretrained
from fmcnet.training.trainer import train
from fmcnet.types import Modality
from tests.models.test_modules import batch, tiny, torchvision_names

FROZEN = {"frozen_blocks": 3, "pretrained": "imagenet"}


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def test_the_defaults_are_the_models_of_before():
    assert not [k for k in tiny().state_dict() if k.startswith("decomposition.stem_shared")]
    assert {k.split(".")[2] for k in tiny().state_dict() if ".stem_visible." in k} == {
        "conv1", "bn1", "layer1", "layer2",
    }  # fmt: skip


@pytest.mark.parametrize("stages", [1, 2])
def test_an_earlier_split_moves_blocks_to_the_part_that_both_share(stages):
    whole, early = tiny("base").decomposition, tiny("base", specific_stages=stages).decomposition
    assert numbers(early.stem_visible) + numbers(early.stem_shared) == numbers(whole.stem_visible)
    assert numbers(early) == numbers(whole) - numbers(early.stem_shared)
    visible, infrared = batch()
    model = tiny(specific_stages=stages).eval()
    out = model(visible, infrared)
    assert torch.allclose(model.embed(visible, Modality.VISIBLE), out.visible.embedding, atol=1e-5)
    assert torch.allclose(model.embed(infrared, Modality.INFRARED), out.infrared.embedding, atol=1e-5)


def test_an_earlier_split_computes_the_same_network():
    whole, early = tiny("base").eval(), tiny("base", specific_stages=1).eval()
    state = {k.replace("stem_shared", "stem_visible"): v for k, v in early.state_dict().items()}
    state |= {k.replace("stem_visible", "stem_infrared"): v for k, v in state.items() if "stem_visible" in k}
    whole.load_state_dict(state)
    visible, infrared = batch()
    for a, b in zip(whole(visible, infrared), early(visible, infrared), strict=True):
        assert torch.allclose(a.embedding, b.embedding, atol=1e-5)


def test_an_imagenet_file_fills_an_early_split(tmp_path):
    state = torchvision_names(tiny())
    torch.save(state, tmp_path / "resnet.pth")
    model = tiny(specific_stages=1)
    load_pretrained(model, str(tmp_path / "resnet.pth"), "resnet18")
    sfd = model.decomposition
    assert torch.equal(sfd.stem_infrared.conv1.weight, state["conv1.weight"])
    assert torch.equal(sfd.stem_shared.layer2[1].bn2.running_var, state["layer2.1.bn2.running_var"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_part_of_a_normalized_descriptor_has_unit_length(variant):
    plain, unit = tiny(variant).eval(), tiny(variant, descriptor="normalized").eval()
    unit.load_state_dict(plain.state_dict())
    visible, infrared = batch()
    for half, other in zip(plain(visible, infrared), unit(visible, infrared), strict=True):
        wanted = torch.cat([F.normalize(piece, dim=1) for piece in half.embedding.split(64, dim=1)], dim=1)
        assert torch.allclose(other.embedding, wanted, atol=1e-6)
        assert torch.equal(half.shared, other.shared)  # the losses see what they saw


def test_stripes_are_means_of_rows_of_the_maps_behind_each_block():
    model = tiny("base", frozen_stripes=2, standardized=True, **FROZEN).eval()
    tail = model.frozen
    x = torch.rand(2, 16, 8, 4)
    first = tail.layer3(x)  # (2, 32, 4, 2)
    second = tail.layer4(first)  # (2, 64, 4, 2)
    rows = [
        maps[:, :, half].mean(dim=(2, 3)) for maps in (first, second) for half in (slice(2), slice(2, None))
    ]
    assert torch.allclose(tail.stripes(x, 2), torch.cat(rows, dim=1), atol=1e-6)
    visible, infrared = batch()
    out = model(visible, infrared)
    assert out.infrared.embedding.shape == (4, 2 * (32 + 64) + 64)
    assert torch.allclose(model.embed(infrared, Modality.INFRARED), out.infrared.embedding, atol=1e-5)


def test_from_config_freezes_no_random_weights_and_loads_pretrained_ones_when_asked(tmp_path):
    settings = ["model.frozen_blocks=2", f"model.pretrained={tmp_path / 'w.safetensors'}"]
    config = load_config("tiny", settings)
    model = FMCNet.from_config(config, 3)
    assert all(parameter.requires_grad for parameter in model.decomposition.stem_visible.parameters())
    with pytest.raises(CheckpointError, match="no file or run"):
        FMCNet.from_config(config, 3, pretrained=True)
    state = {k: v + 1 for k, v in model.decomposition.stem_visible.state_dict().items()}
    state |= model.decomposition.shared.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    stem = FMCNet.from_config(config, 3, pretrained=True).decomposition.stem_infrared
    assert all(torch.equal(value, state[key]) for key, value in stem.state_dict().items())
    assert not stem.conv1.weight.requires_grad
    with pytest.raises(
        ConfigError, match="num_classes=0: give a whole number from 1, that of the training identities"
    ):
        FMCNet.from_config(config, 0)
    for wrong in (10.0, "10", None, True):
        with pytest.raises(ConfigError, match=rf"num_classes={wrong!r}: give a whole number"):
            FMCNet.from_config(config, wrong)
    assert FMCNet.from_config(config, np.int64(3)).variant == "full"


def test_both_builders_take_the_whole_settings_and_training_no_name(tmp_path):
    config = load_config("tiny")
    assert build_model(config, 3).variant == build_model(config.model, 3).variant == "full"
    builders = (
        lambda: train("tiny", tmp_path, tmp_path / "run"),
        lambda: build_model("tiny", 3),
        lambda: FMCNet.from_config("tiny", 3),
    )
    for build in builders:
        with pytest.raises(ConfigError, match="config is of type str: give what load_config returns"):
            build()


def test_a_model_is_built_from_settings_and_loaded_by_folder_or_name(tmp_path):
    config = load_config("tiny")
    torch.manual_seed(0)
    model = FMCNet.from_config(config, 5).eval()
    assert (model.variant, model.decomposition.classify_shared.linear.out_features) == ("full", 5)
    save_pretrained(model, ModelCard(config, (1, 2, 3, 4, 5), "made up", 0), tmp_path)
    again = FMCNet.from_pretrained(tmp_path)
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    shipped = FMCNet.from_pretrained("fmcnet-lite")
    assert shipped.variant == "base"
    with pytest.raises(CheckpointError, match="there is no model 'fmcnet-light'"):
        FMCNet.from_pretrained("fmcnet-light")


def test_a_trained_model_is_a_start_for_other_identities(tiny_run):
    """All its weights but the classifiers', whose identities are others."""
    trained, card = load_pretrained_model(tiny_run)
    model = build_model(card.config.model, card.classes)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    load_pretrained(model, str(tiny_run), card.config.model.arch)
    for key, value in model.state_dict().items():
        expected = (
            fresh[key] if key.endswith("linear.weight") and "classify" in key else trained.state_dict()[key]
        )
        assert torch.equal(value, expected), key
    assert not torch.equal(
        trained.decomposition.classify_shared.linear.weight,
        fresh["decomposition.classify_shared.linear.weight"],
    )


def test_a_start_without_specific_tails_gives_them_its_shared_one():
    config = ModelConfig(arch="efficientnet_lite2", tail_blocks=2, dim=8)
    model = build_model(config, 3)
    load_pretrained(model, "fmcnet-lite", config.arch)
    lite = FMCNet.from_pretrained("fmcnet-lite").decomposition
    parts = model.decomposition
    for tail in (parts.shared, parts.specific_visible, parts.specific_infrared):
        found = tail.state_dict()
        same = {key: value for key, value in lite.shared.state_dict().items() if key.startswith("block")}
        assert same
        assert all(torch.equal(found[key], value) for key, value in same.items())
    for stem in (parts.stem_visible, parts.stem_infrared):
        assert all(
            torch.equal(stem.state_dict()[key], value)
            for key, value in lite.stem_visible.state_dict().items()
        )


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            ModelConfig(arch="resnet18", width=4),
            "is of efficientnet_lite2, not of resnet18: set model.arch=",
        ),
        (
            ModelConfig(arch="efficientnet_lite2"),
            "has other layers: set model.width=64 model.tail_blocks=2",
        ),  # a longer tail
    ],
)
def test_a_start_of_another_network_is_refused(config, told):
    model = build_model(config, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=told):
        load_pretrained(model, "fmcnet-lite", config.arch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_folder_of_the_name_hides_no_imagenet_weights(tmp_path, monkeypatch):
    (tmp_path / "imagenet").mkdir()
    monkeypatch.chdir(tmp_path)
    model = build_model(ModelConfig(arch="efficientnet_lite0", tail_blocks=2, variant="base"), 3)
    load_pretrained(model, "imagenet", "efficientnet_lite0")


@pytest.mark.parametrize(
    ("setting", "told"), [("specific_stages", "specific_stages=3"), ("single_stream", "single_stream=false")]
)
def test_a_start_that_would_leave_parts_random_is_refused(tiny_run, setting, told):
    card = load_pretrained_model(tiny_run)[1]
    base = {"variant": "base"} if setting == "single_stream" else {}
    changed = card.config.model.model_copy(
        update={setting: {"specific_stages": 1, "single_stream": True}[setting], **base}
    )
    if setting == "specific_stages" and card.config.model.specific_stages != 3:
        changed, told = card.config.model.model_copy(update={"specific_stages": 3}), "specific_stages="
    with pytest.raises(CheckpointError, match=told):
        load_pretrained(build_model(changed, 3), str(tiny_run), changed.arch)


def test_a_misspelled_start_names_what_there_is():
    model = build_model(ModelConfig(arch="resnet18", width=4), 3)
    with pytest.raises(
        CheckpointError, match=r"no file or run fmcnet-light\. .*fmcnet-generated, fmcnet-lite"
    ):
        load_pretrained(model, "fmcnet-light", "resnet18")


def test_frozen_stripes_keep_the_pretrained_tail_and_stand_beside_the_features(tmp_path):
    model = tiny("full", frozen_stripes=2, standardized=True, feature_weight=0.5, **FROZEN)
    source = {key: value.abs() / 8 for key, value in torchvision_names(model).items()}
    torch.save(source, tmp_path / "resnet.pth")
    load_pretrained(model, str(tmp_path / "resnet.pth"), "resnet18")
    assert torch.equal(model.frozen.layer4[0].conv1.weight, source["layer4.0.conv1.weight"])
    before = {key: value.clone() for key, value in model.frozen.state_dict().items()}
    visible, infrared = batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    model(visible, infrared).visible.shared_scores.sum().backward()
    optimizer.step()
    model.embed(visible, Modality.VISIBLE)  # in training mode: running statistics would move
    assert all(torch.equal(before[key], value) for key, value in model.frozen.state_dict().items())
    assert not torch.equal(
        model.frozen.layer4[0].conv1.weight, model.decomposition.shared.layer4[0].conv1.weight
    )
    model.eval()
    model.standard.mean += 0.25
    model.standard.std *= 2
    out = model(visible, infrared).infrared
    plain = tiny("full").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    features = plain(visible, infrared).infrared.embedding
    stem = model.decomposition.stem(model.preprocess(infrared), Modality.INFRARED)
    stripes = model.frozen.stripes(stem, 2)
    wanted = [F.normalize((part - 0.25) / 2) for part in (stripes, features)]
    assert out.embedding.shape[1] == 2 * (32 + 64) + 2 * 64
    assert torch.allclose(out.embedding, torch.cat([wanted[0], 0.5 * wanted[1]], dim=1), atol=1e-5)


def test_frozen_stripes_need_maps_that_are_not_trained_and_values_that_compare():
    for settings in (
        {},
        {"standardized": True},
        FROZEN,
    ):
        with pytest.raises(ValueError, match="frozen_stripes needs"):
            ModelConfig(frozen_stripes=2, **settings)
    with pytest.raises(ValueError, match="set frozen_stripes, too"):
        ModelConfig(feature_weight=0.5)
