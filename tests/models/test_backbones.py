"""The interface `Backbone`: an architecture of your own, frozen blocks, published files and what does not fit."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fmcnet
import fmcnet.models.backbones as registry
from fmcnet.config import ModelConfig, load_config
from fmcnet.errors import CheckpointError, ConfigError
from fmcnet.models.backbones import Backbone, backbones, make_backbone, register_backbone, resnet
from fmcnet.models.build import build_model
from fmcnet.models.decomposition import Stem, Tail
from fmcnet.models.pretrained import load_pretrained

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
EXAMPLE = '''\
from torch import nn

from fmcnet import Backbone, build_model, load_config, register_backbone


class Plain(Backbone):
    """Five 3x3 convolutions with batch normalisation and ReLU."""

    depth = 5

    def __init__(self, width=64, last_stride=1):
        self.width, self.strides = width, (2, 2, 2, 2, last_stride)

    def channels(self, index):
        return self.width * 2**index

    def block(self, index):
        inputs = 3 if index == 0 else self.channels(index - 1)
        outputs = self.channels(index)
        return {
            f"conv{index}": nn.Conv2d(inputs, outputs, 3, self.strides[index], 1, bias=False),
            f"bn{index}": nn.BatchNorm2d(outputs),
            f"relu{index}": nn.ReLU(inplace=True),
        }


register_backbone("plain", Plain)
model = build_model(load_config(None, ["model.arch=plain", "model.width=8"]).model, classes=10)
'''


@pytest.fixture
def apart(monkeypatch):
    """What a test registers ends with the test."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_contributing_shows_this_example():
    assert f"```python\n{EXAMPLE}```" in CONTRIBUTING.read_text(encoding="utf-8")


def test_a_registered_backbone_trains_a_step(apart):
    torch.manual_seed(0)
    space = {"__name__": "example"}
    exec(compile(EXAMPLE, "CONTRIBUTING.md", "exec"), space)
    model = space["model"].train()
    assert model.variant == "full"
    assert model.decomposition.shared.dim == 8 * 2**4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = copy.deepcopy(model.state_dict())
    labels = torch.arange(4)
    out = model(torch.rand(4, 3, 64, 32), torch.rand(4, 3, 64, 32))
    loss = sum(
        F.cross_entropy(scores, labels)
        for half in out
        for scores in (half.shared_scores, half.specific_scores, half.generated_scores, half.fused_scores)
    )
    loss.backward()
    optimizer.step()
    for part in ("stem_visible", "stem_infrared", "shared", "specific_visible", "specific_infrared"):
        for name, parameter in model.decomposition.get_submodule(part).named_parameters():
            assert not torch.equal(parameter, before[f"decomposition.{part}.{name}"]), (part, name)


def test_a_registered_backbone_without_published_weights(apart):
    exec(compile(EXAMPLE, "CONTRIBUTING.md", "exec"), space := {"__name__": "example"})
    with pytest.raises(CheckpointError, match="Plain has no ImageNet weights") as caught:
        load_pretrained(space["model"], "imagenet", "plain")
    assert "model.pretrained" in one_line(caught)


@pytest.mark.parametrize("arch", ["resnet101", "deep"])
def test_another_resnet_has_no_source_of_imagenet_weights(apart, monkeypatch, arch):
    monkeypatch.setitem(resnet.DEPTHS, arch, (1, 1, 2, 1))
    register_backbone(arch, partial(resnet.ResNet, arch))
    model = build_model(ModelConfig(arch=arch, width=8), 3)
    assert isinstance(model.decomposition.stem_visible.layer1[0], resnet.Bottleneck)
    with pytest.raises(
        CheckpointError, match=f"model.pretrained=imagenet: {arch} has no ImageNet weights"
    ) as caught:
        load_pretrained(model, "imagenet", arch)
    assert "\n" not in str(caught.value)


def test_a_resnet_of_unknown_depth_is_one_line(apart):
    register_backbone("resnet99", partial(resnet.ResNet, "resnet99"))
    with pytest.raises(ConfigError, match=r"no ResNet 'resnet99': DEPTHS in .* has resnet10"):
        make_backbone("resnet99")


def test_an_own_source_of_weights_that_fails_is_one_line(apart):
    class Mine(resnet.ResNet):
        def imagenet(self):
            return {}["where"]

    register_backbone("mine", partial(Mine, "resnet18"))
    model = build_model(ModelConfig(arch="mine", width=8), 3)
    with pytest.raises(CheckpointError, match=r"the backbone mine gave no weights \(KeyError: 'where'\)"):
        load_pretrained(model, "imagenet", "mine")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda width, last_stride: nn.Linear(2, 2),
            "'mine': its function gives a Linear, not a fmcnet.Backbone",
        ),
        (lambda: None, r"'mine': its backbone cannot be made with width=64 and last_stride=1 \(TypeError"),
    ],
)
def test_a_function_that_gives_no_backbone_is_one_line(apart, make, said):
    register_backbone("mine", make)
    with pytest.raises(ConfigError, match=said):
        make_backbone("mine")


def test_these_are_shipped():
    names = {"resnet10", "resnet18", "resnet34", "resnet50", "efficientnet_lite0", "efficientnet_lite2"}
    assert set(registry.shipped()) == names


def test_a_shipped_backbone_is_one_new_file(tmp_path, monkeypatch):
    text = EXAMPLE[: EXAMPLE.index("register_backbone(")] + 'ARCHITECTURES = {"plain5": Plain}\n'
    (tmp_path / "plain.py").write_text(text.replace(", register_backbone", ""))
    monkeypatch.setattr(registry, "__path__", [*registry.__path__, str(tmp_path)])
    registry.shipped.cache_clear()
    try:
        assert build_model(ModelConfig(arch="plain5", width=8), 3).decomposition.shared.dim == 128
        assert {"plain5", "resnet50", "efficientnet_lite2"} <= set(backbones())
    finally:
        registry.shipped.cache_clear()
        sys.modules.pop("fmcnet.models.backbones.plain", None)


def test_two_files_with_one_architecture_are_refused(tmp_path, monkeypatch):
    (tmp_path / "again.py").write_text('ARCHITECTURES = {"resnet50": None}\n')
    monkeypatch.setattr(registry, "__path__", [*registry.__path__, str(tmp_path)])
    registry.shipped.cache_clear()
    try:
        with pytest.raises(ConfigError, match="'resnet50': rename this one"):
            registry.shipped()
    finally:
        registry.shipped.cache_clear()
        sys.modules.pop("fmcnet.models.backbones.again", None)


@pytest.mark.parametrize("make", [3, nn.Linear, None])
def test_what_is_no_backbone_is_refused_when_it_is_registered(apart, make):
    with pytest.raises(
        ConfigError, match=r"register_backbone\('mine'\): give a subclass of fmcnet.Backbone, or a"
    ):
        register_backbone("mine", make)


@pytest.mark.parametrize("name", sorted(registry.shipped()))
def test_the_name_of_a_shipped_backbone_is_refused(apart, name):
    with pytest.raises(
        ConfigError, match=f"'{name}' is an architecture of fmcnet: give the backbone another"
    ):
        register_backbone(name, lambda width, stride: make_backbone("resnet34", width, stride))


def test_a_registered_backbone_reads_a_file(apart, tmp_path):
    exec(compile(EXAMPLE, "CONTRIBUTING.md", "exec"), space := {"__name__": "example"})
    backbone = make_backbone("plain", 8)
    layers = {k: v for index in range(5) for k, v in backbone.block(index).items()}
    state = nn.ModuleDict(layers).state_dict()
    torch.save(state, tmp_path / "plain.pth")
    load_pretrained(space["model"], str(tmp_path / "plain.pth"), "plain")
    sfd = space["model"].decomposition
    assert torch.equal(sfd.stem_infrared.conv2.weight, state["conv2.weight"])
    assert torch.equal(sfd.specific_visible.conv4.weight, state["conv4.weight"])


def test_the_interface_is_public():
    assert fmcnet.Backbone is Backbone
    assert fmcnet.register_backbone is registry.register_backbone


def test_an_unknown_backbone_is_one_line_that_lists_the_names():
    with pytest.raises(ConfigError, match="no such backbone") as caught:
        build_model(ModelConfig(arch="resnet101"), 3)
    assert all(name in one_line(caught) for name in backbones())


@pytest.mark.parametrize("depth", [3, 0, None, "5"])
def test_a_backbone_without_a_block_for_the_tail_is_one_line(apart, depth):
    class Short(Backbone):
        def channels(self, index):
            return 4

        def block(self, index):
            return {f"conv{index}": nn.Conv2d(3 if index == 0 else 4, 4, 3, 2, 1)}

    Short.depth = depth
    register_backbone("short", lambda *_: Short())
    with pytest.raises(
        ConfigError, match=rf"'short': its backbone has depth={depth!r}: .* at least 4"
    ) as caught:
        build_model(ModelConfig(arch="short"), 3)
    one_line(caught)


@pytest.mark.parametrize("name", ["conv0", "pool", "maps", "train"])
def test_two_layers_of_one_name_are_refused(name):
    class Same(Backbone):
        depth = 5

        def channels(self, index):
            return 4

        def block(self, index):
            return {
                name if index in (1, 4) else f"conv{index}": nn.Conv2d(3 if index == 0 else 4, 4, 3, 2, 1)
            }

    with pytest.raises(ConfigError, match=f"layer name '{name}' is taken") as caught:
        (Stem if name == "conv0" else Tail)(Same())
    one_line(caught)


@pytest.mark.parametrize(
    ("arch", "width"), [("resnet18", 2), ("resnet18", 7), ("resnet34", 8), ("resnet50", 1)]
)
def test_a_narrow_network_has_the_gradients_of_double_precision(arch, width):
    """oneDNN's gradient of a strided 1x1 convolution of fewer than 8 channels ends the process (`LEAST_CHANNELS`)."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        layer = make_backbone(arch, width).block(2)["layer2"].to(dtype, memory_format=torch.channels_last)
        x = torch.randn(6, make_backbone(arch, width).channels(1), 16, 8, dtype=torch.float64).to(dtype)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        for _ in range(20):  # the memory that it overwrites is not always in use
            layer.zero_grad()
            layer(x).square().sum().backward()
        gradients.append([p.grad.double() for p in layer.parameters()])
    for single, double in zip(*gradients, strict=True):
        torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-3 * float(double.abs().max()))


@pytest.mark.parametrize(("arch", "width"), [("efficientnet_lite0", 32), ("resnet18", 8)])
def test_frozen_blocks_keep_weights_and_statistics(arch, width):
    torch.manual_seed(0)
    backbone = make_backbone(arch, width)
    stem = Stem(backbone, 3, frozen=2).train()
    names = [set(backbone.block(index)) for index in range(3)]
    optimizer = torch.optim.AdamW(stem.parameters(), lr=1e-2, weight_decay=0.1)
    before = copy.deepcopy(stem.state_dict())
    for _ in range(2):
        stem(torch.rand(4, 3, 32, 16)).square().mean().backward()
        optimizer.step()
    for key, value in stem.state_dict().items():
        assert torch.equal(value, before[key]) is (key.partition(".")[0] in names[0] | names[1]), key
    for key, parameter in stem.named_parameters():
        assert (parameter.grad is None) is (key.partition(".")[0] in names[0] | names[1]), key
    stem.eval().train()
    assert not stem.get_submodule(next(iter(names[0]))).training
    assert stem.get_submodule(next(iter(names[2]))).training


def test_frozen_blocks_of_a_model_are_of_both_stems_and_keep_loaded_weights(tmp_path):
    donor = build_model(ModelConfig(arch="resnet18", width=8), 3).decomposition
    torch.save({**donor.stem_visible.state_dict(), **donor.shared.state_dict()}, tmp_path / "resnet.pth")
    model = build_model(ModelConfig(arch="resnet18", width=8, frozen_blocks=3, pretrained="resnet.pth"), 3)
    load_pretrained(model, str(tmp_path / "resnet.pth"), "resnet18")
    model.train()(torch.rand(4, 3, 64, 32), torch.rand(4, 3, 64, 32)).visible.fused.sum().backward()
    for stem in (model.decomposition.stem_visible, model.decomposition.stem_infrared):
        assert all(not p.requires_grad and p.grad is None for p in stem.parameters())
        assert all(torch.equal(v, donor.stem_visible.state_dict()[k]) for k, v in stem.state_dict().items())
    assert model.decomposition.shared.layer3[0].conv1.weight.grad.abs().sum() > 0


def test_more_frozen_blocks_than_the_stems_have_are_refused():
    with pytest.raises(ConfigError, match=r"frozen_blocks=2 is more than specific_stages=1"):
        load_config(None, ["model.frozen_blocks=2", "model.specific_stages=1"])


def resnet50_shapes():
    """Keys and shapes of torchvision's ResNet-50, written down from its definition."""

    def norm(name, channels):
        entries = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
        return {**entries, f"{name}.num_batches_tracked": ()}

    shapes, inputs = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for layer, (planes, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for unit in range(count):
            at = f"layer{layer}.{unit}"
            sizes = ((planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1))
            for number, (given, taken, kernel) in enumerate(sizes, 1):
                shapes[f"{at}.conv{number}.weight"] = (given, taken, kernel, kernel)
                shapes |= norm(f"{at}.bn{number}", given)
            if unit == 0:
                shapes[f"{at}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                shapes |= norm(f"{at}.downsample.1", 4 * planes)
            inputs = 4 * planes
    return {**shapes, "fc.weight": (1000, 2048), "fc.bias": (1000,)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_resnet50_file_with_torchvisions_names(tmp_path, suffix):
    shapes = resnet50_shapes()
    learnt = [s for key, s in shapes.items() if not key.endswith(("mean", "var", "tracked"))]
    assert sum(torch.Size(s).numel() for s in learnt) == 25_557_032
    state = {
        key: torch.tensor(7) if key.endswith("tracked") else torch.rand(shape)
        for key, shape in shapes.items()
    }
    path = tmp_path / f"resnet50{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    # Two stems and a tail at the published size; all three tails are tested at small sizes.
    model = build_model(ModelConfig(arch="resnet50", variant="base" if suffix == ".pth" else "sfd"), 3)
    load_pretrained(model, str(path), "resnet50")
    sfd = model.decomposition
    tails = [tail for tail in (sfd.shared, sfd.specific_visible, sfd.specific_infrared) if tail is not None]
    seen = set()
    for part in (sfd.stem_visible, sfd.stem_infrared, *tails):
        for key, value in part.state_dict().items():
            assert torch.equal(value, state[key]), key
            seen.add(key)
    assert seen == state.keys() - {"fc.weight", "fc.bias"}


def save(arch, width, path):
    backbone = make_backbone(arch, width)
    layers = {k: v for index in range(backbone.depth) for k, v in backbone.block(index).items()}
    torch.save(nn.ModuleDict(layers).state_dict(), path)


def test_weights_that_do_not_fit_are_one_clear_line(tmp_path):
    arch = "efficientnet_lite0"
    config = ModelConfig(arch=arch, width=16, variant="base")

    def message(path, config=config):
        model = build_model(config, 3)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(CheckpointError) as caught:
            load_pretrained(model, str(path), config.arch)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert str(path) in one_line(caught)
        return str(caught.value)

    other, text, cut, thin = (tmp_path / f"{name}.pth" for name in ("other", "text", "cut", "thin"))
    save("resnet18", 8, other)
    said = message(other)
    assert "no key fits" in said
    assert "conv1.weight" in said
    assert "Set model.arch to the network of the file" in said

    text.write_text("no weights")
    assert "not a readable file of weights" in message(text)
    save(arch, 16, thin)
    for kept in (5000, 200_000):
        cut.write_bytes(thin.read_bytes()[:kept])
        assert "not a readable file of weights" in message(cut)
    (tmp_path / "cut.safetensors").write_bytes(b"\x40")
    assert "not a readable file of weights" in message(tmp_path / "cut.safetensors")
    (tmp_path / "empty.pth").touch()
    assert "not a readable file of weights" in message(tmp_path / "empty.pth")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "run.pth")
    assert "not a state dict" in message(tmp_path / "run.pth")
    assert "no file" in message(tmp_path / "absent.pth")

    said = message(thin, ModelConfig(arch=arch, width=32, variant="base"))
    assert "at another width" in said
    assert "Set model.width" in said
    save("resnet18", 8, other)
    said = message(other, ModelConfig(arch="resnet34", width=8, variant="base"))
    assert "missing layer1.2" in said
    assert "model.width" not in said


def test_published_weights_at_another_width_name_the_width():
    model = build_model(ModelConfig(arch="efficientnet_lite0", width=32, variant="base", tail_blocks=1), 3)
    with pytest.raises(CheckpointError, match=r"Published weights have model\.width=64") as caught:
        load_pretrained(model, "imagenet", "efficientnet_lite0")
    one_line(caught)


@pytest.mark.parametrize(("blocks", "dim", "right"), [(2, None, False), (2, 32, True), (None, None, True)])
def test_gem_needs_a_map_without_negative_values(blocks, dim, right):
    """Groups of EfficientNet-Lite0 end with a linear projection, its head and `model.dim` with a ReLU."""
    settings = {"arch": "efficientnet_lite0", "variant": "base", "tail_blocks": blocks, "dim": dim}
    if right:
        model = build_model(ModelConfig(**settings, pooling="gem"), 4).eval()
        maps = model.decomposition.shared.maps(model.decomposition.stem_visible(torch.rand(1, 3, 64, 32)))
        assert float(maps.detach().min()) >= 0
        return
    with pytest.raises(ConfigError, match=r"model\.pooling=gem .* set model\.dim"):
        build_model(ModelConfig(**settings, pooling="gem"), 4)
    build_model(ModelConfig(**settings, pooling="avg"), 4)
