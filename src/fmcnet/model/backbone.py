"""ResNet stages under torchvision's key names, split where FMCNet splits them.

`Stem` is E_V / E_I of the paper (conv1, conv2_x, conv3_x), `Tail` is E_sh / E_sp (conv4_x, conv5_x and pooling).
A `Stem` can stop earlier (ours); a `Trunk` is then the rest of it, one for both modalities. Keys inside each are
torchvision's (`conv1.weight`, `layer3.0.bn1.bias`...), so a published ImageNet file fills them as it is
(`model/weights.py`). torchvision itself is not imported: its wheel does not load beside a CPU build of PyTorch.

Source: He et al., "Deep Residual Learning", CVPR 2016; FMCNet section 3.1 for the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.errors import ConfigError


@dataclass(frozen=True)
class ResNetSpec:
    """Which residual block a ResNet uses and how many a stage holds."""

    bottleneck: bool
    depths: tuple[int, int, int, int]


ARCHITECTURES: dict[str, ResNetSpec] = {
    "resnet18": ResNetSpec(bottleneck=False, depths=(2, 2, 2, 2)),
    "resnet34": ResNetSpec(bottleneck=False, depths=(3, 4, 6, 3)),
    "resnet50": ResNetSpec(bottleneck=True, depths=(3, 4, 6, 3)),
}


def spec_of(arch: str) -> ResNetSpec:
    """The specification of a named architecture.

    Raises:
        ConfigError: for a name not in `ARCHITECTURES`.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown backbone '{arch}': choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[arch]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; ResNet-18 and 34."""

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
    return nn.Sequential(
        nn.Conv2d(inplanes, outplanes, 1, stride, bias=False),
        nn.BatchNorm2d(outplanes),
    )


def _stage(spec: ResNetSpec, inplanes: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    block = Bottleneck if spec.bottleneck else BasicBlock
    outplanes = planes * block.expansion
    blocks: list[nn.Module] = [block(inplanes, planes, stride)]
    blocks += [block(outplanes, planes) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)


class Stem(nn.Module):
    """E_V or E_I of eq. (1): the first three of ResNet's five blocks.

    Args:
        arch: "resnet18", "resnet34" or "resnet50".
        width: channels of the first block; 64 is the published network.
        stages: how many blocks, 1 to 3; 3 is the paper, fewer is ours.
    """

    def __init__(self, arch: str, width: int = 64, stages: int = 3) -> None:
        super().__init__()
        spec = spec_of(arch)
        expansion = 4 if spec.bottleneck else 1
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        if stages > 1:
            self.layer1 = _stage(spec, width, width, spec.depths[0], 1)
        if stages > 2:
            self.layer2 = _stage(spec, width * expansion, width * 2, spec.depths[1], 2)
        self.stages = stages
        self.channels = (width, width * expansion, width * 2 * expansion)[stages - 1]
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to F_m (B, channels, H/8, W/8); with 1 or 2 stages (B, channels, H/4, W/4)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x) if self.stages > 1 else x
        return cast(Tensor, self.layer2(x)) if self.stages > 2 else x


class Trunk(nn.Module):
    """What a `Stem` of fewer than three stages leaves out, with one set of weights for both modalities. Ours.

    AGW shares everything behind the first block (stages = 1), the paper everything behind the third.

    Args:
        arch, width: as `Stem`. stages: of the stems before it, 1 or 2.
    """

    def __init__(self, arch: str, width: int = 64, stages: int = 1) -> None:
        super().__init__()
        spec = spec_of(arch)
        expansion = 4 if spec.bottleneck else 1
        if stages == 1:
            self.layer1 = _stage(spec, width, width, spec.depths[0], 1)
        self.layer2 = _stage(spec, width * expansion, width * 2, spec.depths[1], 2)
        self.stages = stages
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H/4, W/4) to (B, channels, H/8, W/8)."""
        return cast(Tensor, self.layer2(self.layer1(x) if self.stages == 1 else x))


class GeM(nn.Module):
    """Generalised-mean pooling with a learnable power (Radenovic et al., TPAMI 2019).

    Ours, not the paper's: FMCNet pools by the plain average. Between average (p = 1) and maximum (p large).
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.clamp(min=self.eps).pow(self.p).mean(dim=(2, 3)).pow(1.0 / self.p)


class AveragePool(nn.Module):
    """Global average pooling, as the paper."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.mean(dim=(2, 3))


class Tail(nn.Module):
    """E_sh, E_sp^V or E_sp^I of eq. (1): the last two of ResNet's five blocks and global pooling.

    Args:
        arch: "resnet18", "resnet34" or "resnet50".
        width: channels of the network's first block; 64 is the published network.
        last_stride: stride of conv5_x: 2 as in ResNet, 1 as most re-identification code.
        pooling: "avg" as the paper, or "gem" (ours).
        unit: centre and scale each dimension by batch normalisation, then bring the feature to unit length
            (ours; see `ModelConfig.unit_features`).
        parts: n horizontal stripes of the map, averaged, come behind the feature (ours; PCB, Sun et al., ECCV 2018).
    """

    def __init__(
        self,
        arch: str,
        width: int = 64,
        last_stride: int = 1,
        pooling: str = "avg",
        unit: bool = False,
        parts: int = 0,
    ) -> None:
        super().__init__()
        spec = spec_of(arch)
        expansion = 4 if spec.bottleneck else 1
        if pooling not in ("avg", "gem"):
            raise ConfigError(f"unknown pooling '{pooling}': choose avg or gem")
        self.layer3 = _stage(spec, width * 2 * expansion, width * 4, spec.depths[2], 2)
        self.layer4 = _stage(spec, width * 4 * expansion, width * 8, spec.depths[3], last_stride)
        self.pool: nn.Module = GeM() if pooling == "gem" else AveragePool()
        self.dim = width * 8 * expansion
        self.norm = nn.BatchNorm1d(self.dim, affine=False) if unit else None
        self.parts = parts
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """F_m (B, C, h, w) to a feature (B, dim); with n parts (B, (1 + n) * dim), the stripes from top to bottom."""
        maps = self.layer4(self.layer3(x))
        feature = cast(Tensor, self.pool(maps))
        feature = feature if self.norm is None else F.normalize(self.norm(feature), dim=1)
        if not self.parts:
            return feature
        stripes = F.adaptive_avg_pool2d(maps, (self.parts, 1)).squeeze(3)  # (B, dim, n)
        return torch.cat([feature, stripes.transpose(1, 2).flatten(1)], dim=1)
