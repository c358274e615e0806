"""ResNet-10, 18, 34 and 50 under torchvision's key names.

torchvision itself is not imported: its wheel does not load beside a CPU build of PyTorch.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.errors import CheckpointError, ConfigError
from fmcnet.models.backbones import Backbone, initialize

ADDRESSES = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
}
"""torchvision's public ImageNet-1k files (IMAGENET1K_V1), by architecture."""

DEPTHS = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Residual blocks of layer1 to layer4. He et al. have no ResNet-10: it is for quick trials, without weights."""

NARROW = 64
"""Below this width channels_last is faster on a CPU (benchmarks/backbones.json)."""

LEAST_CHANNELS = 8
"""With fewer, in channels_last on CPUs without AVX-512, the gradient of a strided 1x1 convolution overwrites foreign
memory in oneDNN 3.12 of PyTorch 2.13 (github.com/uxlfoundation/oneDNN/issues/6035)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; up to ResNet-34."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inplanes, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inplanes, H, W) to (B, planes, H/stride, W/stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return cast(Tensor, self.relu(out + identity))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut, stride on the 3x3 (torchvision's "v1.5"); ResNet-50."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inplanes, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inplanes, H, W) to (B, 4 * planes, H/stride, W/stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return cast(Tensor, self.relu(out + identity))


def _shortcut(inplanes: int, outplanes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inplanes == outplanes:
        return None
    layer = nn.Conv2d if inplanes >= LEAST_CHANNELS else _NarrowConv2d
    return nn.Sequential(layer(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))


class _NarrowConv2d(nn.Conv2d):
    """A 1x1 convolution that takes every stride-th pixel itself: same result, see `LEAST_CHANNELS`."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


class ResNet(Backbone):
    """The five blocks of a ResNet: conv1 with its pooling, layer1 to layer4.

    Args:
        arch: a key of `DEPTHS`.
        width: channels of the first block; 64 is the published network.
        last_stride: of layer4 (conv5_x); 2 is the published network.
    """

    depth = 5

    def __init__(self, arch: str, width: int = 64, last_stride: int = 1) -> None:
        if arch not in DEPTHS:
            raise ConfigError(
                f"no ResNet '{arch}': DEPTHS in {__name__} has {', '.join(DEPTHS)}. Add its numbers of units there."
            )
        self.arch, self.width = arch, width
        self._unit = BasicBlock if arch in ("resnet10", "resnet18", "resnet34") else Bottleneck
        self._strides = (1, 2, 2, last_stride)
        self.channels_last = width < NARROW

    def channels(self, index: int) -> int:
        """Channels that block `index` gives."""
        return self.width if index == 0 else self.width * 2 ** (index - 1) * self._unit.expansion

    def block(self, index: int) -> dict[str, nn.Module]:
        """New layers of block `index`."""
        if index == 0:
            layers: dict[str, nn.Module] = {
                "conv1": nn.Conv2d(3, self.width, 7, 2, 3, bias=False),
                "bn1": nn.BatchNorm2d(self.width),
                "relu": nn.ReLU(inplace=True),
                "maxpool": nn.MaxPool2d(3, 2, 1),
            }
            return {name: initialize(layer) for name, layer in layers.items()}
        planes, inplanes = self.width * 2 ** (index - 1), self.channels(index - 1)
        stride, depth = self._strides[index - 1], DEPTHS[self.arch][index - 1]
        units = [self._unit(inplanes, planes, stride)]
        units += [self._unit(planes * self._unit.expansion, planes) for _ in range(depth - 1)]
        return {f"layer{index}": initialize(nn.Sequential(*units))}

    def imagenet(self) -> dict[str, Tensor]:
        """torchvision's public file, cached by torch.hub."""
        if self.arch not in ADDRESSES:
            return super().imagenet()  # raises
        address = ADDRESSES[self.arch]
        try:
            return dict(torch.hub.load_state_dict_from_url(address, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"could not fetch {address} ({error}). Without network: fetch it elsewhere and set model.pretrained "
                "to its path, or to null for random initialisation."
            ) from error


ARCHITECTURES = {arch: partial(ResNet, arch) for arch in DEPTHS}
