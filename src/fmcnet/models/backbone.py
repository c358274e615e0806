"""What FMCNet needs of a backbone, and the two parts that it cuts one into: `Stem` and `Tail`.

A backbone is a list of blocks. The first three are E_V and E_I of the paper (conv1, conv2_x, conv3_x of ResNet-50),
the rest are E_sh and E_sp. A family of backbones is one file (`resnet.py`, `efficientnet_lite.py`): it subclasses
`Backbone`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.errors import CheckpointError, ConfigError, FmcnetError
from fmcnet.plugins import BACKBONES, load_plugin, plugins

STEM_BLOCKS = 3
"""Blocks of E_V and E_I in the paper, of ResNet's five."""

RESERVED = frozenset({"head", "pool", "norm", "dim", "maps", "stripes", "channels"})
"""Names in `Stem` and `Tail` that no layer of a backbone may have."""

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Backbone(ABC):
    """A network as a list of blocks, with its preprocessing and the source of its ImageNet weights.

    Attributes:
        mean: of each colour channel of an image in 0..1, subtracted before the first block.
        std: what the difference is divided by.
        channels_last: whether this network trains faster on a CPU in channels_last. `benchmarks/backbones.py`
            measures it; the results are in `benchmarks/backbones.json`.
        depth: number of blocks, at least 3.
    """

    mean: ClassVar[Triple] = IMAGENET_MEAN
    std: ClassVar[Triple] = IMAGENET_STD
    channels_last: bool = True
    depth: int

    @abstractmethod
    def block(self, index: int) -> dict[str, nn.Module]:
        """New layers of one block.

        Args:
            index: which, 0 to `depth` - 1.

        Returns:
            The layers in order, by the names that they have in a state dict. A name occurs in one block only.
        """

    @abstractmethod
    def channels(self, index: int) -> int:
        """Number of channels that a block gives.

        Args:
            index: which block, 0 to `depth` - 1.
        """

    def rectified(self, index: int) -> bool:
        """Whether a block ends with a ReLU, so that its map has no negative value.

        Args:
            index: which block, 0 to `depth` - 1.
        """
        return True

    def imagenet(self) -> dict[str, Tensor]:
        """The published ImageNet weights.

        Returns:
            The state dict, under the names of its publication.

        Raises:
            CheckpointError: when there are none, or when they are not at hand; the message says what to do.
        """
        raise CheckpointError(
            f"model.pretrained=imagenet: {type(self).__name__} has no ImageNet weights. Set model.pretrained to the "
            "path of a state dict, or to null for random initialisation."
        )

    def rename(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a published state dict to the names of `block`; here the names are the same.

        Args:
            state: the published weights.

        Returns:
            The weights under the names that the layers of `block` have.
        """
        return dict(state)


SHIPPED = ("resnet18", "resnet34", "resnet50", "efficientnet_lite0", "efficientnet_lite2")
"""Architectures of this package."""

_REGISTERED: dict[str, Callable[[int, int], Backbone]] = {}


def register_backbone(name: str, make: Callable[[int, int], Backbone]) -> None:
    """Add an architecture, so that `model.arch=name` builds it.

    A process that loads a trained model needs the same call first, or an installed package with an entry point of
    the group `fmcnet.backbones`.

    Args:
        name: of the architecture. A second call with the same name replaces the first; a shipped one stays.
        make: takes `width` (64 is the published network) and `last_stride` (1 or 2) and gives the backbone.

    Raises:
        ConfigError: for the name of a shipped architecture, or what cannot give a `Backbone`.
    """
    if name in SHIPPED:
        raise ConfigError(
            f"register_backbone: '{name}' is an architecture of fmcnet: give the backbone another name"
        )
    if not callable(make) or (isinstance(make, type) and not issubclass(make, Backbone)):
        raise ConfigError(
            f"register_backbone('{name}'): give a subclass of fmcnet.Backbone, or a function for one"
        )
    _REGISTERED[name] = make


def backbones() -> tuple[str, ...]:
    """Names of all architectures: shipped, registered, and those of installed packages."""
    return tuple(dict.fromkeys([*SHIPPED, *_REGISTERED, *plugins(BACKBONES)]))


def make_backbone(arch: str, width: int = 64, last_stride: int = 1) -> Backbone:
    """The backbone of a name.

    Args:
        arch: one of `backbones()`.
        width: channels of the first block; 64 is the published network.
        last_stride: of the last block, 1 or 2.

    Raises:
        ConfigError: for a name that is not registered, or one whose function gives no backbone.
    """
    if arch in SHIPPED:
        make = _shipped(arch)
    elif arch in _REGISTERED:
        make = _REGISTERED[arch]
    elif arch in plugins(BACKBONES):
        make = load_plugin(plugins(BACKBONES)[arch])
    else:
        raise ConfigError(
            f"model.arch = '{arch}': no such backbone; choose one of {', '.join(backbones())}. Register your own "
            "with fmcnet.register_backbone before this call; for commands, install a package with an entry point of "
            f"the group {BACKBONES}"
        )
    try:
        backbone: object = make(width, last_stride)
    except FmcnetError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model.arch = '{arch}': its backbone cannot be made with width={width} and last_stride={last_stride} "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"model.arch = '{arch}': its function gives a {type(backbone).__name__}, not a fmcnet.Backbone"
        )
    return backbone


def _shipped(arch: str) -> Callable[[int, int], Backbone]:
    from fmcnet.models.efficientnet_lite import EfficientNetLite0, EfficientNetLite2
    from fmcnet.models.resnet import ResNet

    families = {"efficientnet_lite0": EfficientNetLite0, "efficientnet_lite2": EfficientNetLite2}
    return families.get(arch, partial(ResNet, arch))


class Stem(nn.Sequential):
    """E_V or E_I of eq. (1): the backbone's first blocks, weights of one modality.

    With fewer than three blocks (ours; AGW has one), another stem for both modalities has the rest of the three.

    Args:
        backbone: gives the blocks.
        end: number of blocks up to the end of this stem, 1 to 3; 3 is the paper.
        start: number of blocks before this stem; 0 is the paper.
        frozen: number of blocks that keep their weights and running statistics (ours); 0 is the paper.

    Raises:
        ConfigError: for two layers of one name.
    """

    def __init__(self, backbone: Backbone, end: int = STEM_BLOCKS, start: int = 0, frozen: int = 0) -> None:
        blocks = [backbone.block(index) for index in range(start, end)]
        super().__init__(_layers(blocks))
        self._frozen = [name for block in blocks[:frozen] for name in block]
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> Stem:
        """Set the training mode; frozen blocks stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to F_m (B, channels, h, w); h = H/8 and w = W/8 with three blocks."""
        for name, layer in self.named_children():
            if name in self._frozen:
                with torch.no_grad():
                    x = layer(x)
            else:
                x = layer(x)
        return x


class GeM(nn.Module):
    """Generalised-mean pooling with a learnable power (Radenovic et al., TPAMI 2019).

    Ours: FMCNet pools by the plain average. Between average (p = 1) and maximum (p large).

    Args:
        p: the power at the start.
        eps: smaller values are raised to this.
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
    """E_sh, E_sp^V or E_sp^I of eq. (1): the backbone's last blocks and global pooling.

    Args:
        backbone: which.
        blocks: how many blocks behind the third; None: all, as the paper.
        dim: length D of the feature, by a 1x1 convolution with batch normalisation and ReLU; None: the last block's
            channels, as the paper.
        pooling: "avg" as the paper, or "gem" (ours).
        unit: centre and scale each dimension by batch normalisation, then bring the feature to unit length (ours; of
            `model.normalization=tail`).

    Raises:
        ConfigError: for an unknown pooling, gem on a map with negative values, more blocks than the backbone has, or
            two layers of one name.
    """

    def __init__(
        self,
        backbone: Backbone,
        blocks: int | None = None,
        dim: int | None = None,
        pooling: str = "avg",
        unit: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("avg", "gem"):
            raise ConfigError(f"unknown pooling '{pooling}': choose avg or gem")
        end = backbone.depth if blocks is None else STEM_BLOCKS + blocks
        if end > backbone.depth:
            raise ConfigError(
                f"model.tail_blocks={blocks}: this backbone has {backbone.depth - STEM_BLOCKS} behind its third block"
            )
        if pooling == "gem" and dim is None and not backbone.rectified(end - 1):
            raise ConfigError(
                f"model.pooling=gem takes values of 0 and more, and the map behind {end} blocks has negative "
                "ones: set model.dim, whose layer ends with a ReLU, or model.pooling=avg"
            )
        own_blocks = [backbone.block(index) for index in range(STEM_BLOCKS, end)]
        layers = _layers(own_blocks)
        self._ends = tuple(list(block)[-1] for block in own_blocks)
        self.channels = tuple(backbone.channels(index) for index in range(STEM_BLOCKS, end))
        self.dim = self.channels[-1] if dim is None else dim
        if dim is not None:
            conv = nn.Conv2d(self.channels[-1], dim, 1, bias=False)
            layers["head"] = initialize(nn.Sequential(conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True)))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._layers = tuple(layers)
        self.pool: nn.Module = GeM() if pooling == "gem" else AveragePool()
        self.norm = nn.BatchNorm1d(self.dim, affine=False) if unit else None

    def forward(self, x: Tensor) -> Tensor:
        """F_m (B, C, h, w) to a feature (B, dim)."""
        feature = cast(Tensor, self.pool(self.maps(x)))
        return feature if self.norm is None else F.normalize(self.norm(feature), dim=1)

    def maps(self, x: Tensor) -> Tensor:
        """F_m (B, C, h, w) to the last map (B, dim, h', w')."""
        for name in self._layers:
            x = self.get_submodule(name)(x)
        return x

    def stripes(self, x: Tensor, count: int) -> Tensor:
        """Averages of horizontal stripes of the map behind each block. Ours.

        Args:
            x: F_m (B, C, h, w).
            count: of stripes a map.

        Returns:
            (B, count * sum(channels)): block after block, its stripes from top to bottom.
        """
        found = []
        for name in self._layers:
            x = self.get_submodule(name)(x)
            if name in self._ends:
                pooled = F.adaptive_avg_pool2d(x, (count, 1)).squeeze(3)  # (B, C, count)
                found.append(pooled.transpose(1, 2).flatten(1))
        return torch.cat(found, dim=1)


def initialize(module: nn.Module) -> nn.Module:
    """Random weights as He et al. (2015) for convolutions, 1 and 0 for batch normalisation; gives `module`."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    return module


def _layers(blocks: list[dict[str, nn.Module]]) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in (item for block in blocks for item in block.items()):
        if name in layers or name in RESERVED or hasattr(nn.Sequential, name):
            raise ConfigError(f"backbone: the layer name '{name}' is taken. Give this layer another name.")
        layers[name] = layer
    return layers
