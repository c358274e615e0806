"""Backbones: one file a family, which names its architectures in `ARCHITECTURES`; nothing else lists them.

A backbone is a list of blocks. The first three are E_V and E_I of the paper (conv1, conv2_x, conv3_x of ResNet-50),
the rest are E_sh and E_sp: `Stem` and `Tail` of `decomposition.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import ClassVar

from torch import Tensor, nn

from fmcnet.errors import CheckpointError, ConfigError, FmcnetError
from fmcnet.plugins import BACKBONES, load_plugin, plugins

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

MIN_DEPTH = 4
"""Fewest blocks of a backbone: three of the stem, and one of the tail."""


class Backbone(ABC):
    """A network as a list of blocks, with its preprocessing and the source of its ImageNet weights.

    Attributes:
        mean: of each colour channel of an image in 0..1, subtracted before the first block.
        std: what the difference is divided by.
        channels_last: whether this network trains faster on a CPU in channels_last. `benchmarks/backbones.py`
            measures it; the results are in `benchmarks/backbones.json`.
        depth: number of blocks, at least `MIN_DEPTH`.
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
        name = getattr(self, "arch", type(self).__name__)
        raise CheckpointError(
            f"model.pretrained=imagenet: {name} has no ImageNet weights. Set model.pretrained to the "
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


_REGISTERED: dict[str, Callable[[int, int], Backbone]] = {}


@cache
def shipped() -> dict[str, Callable[[int, int], Backbone]]:
    """Architectures of this package: what the files beside this one name in `ARCHITECTURES`.

    Raises:
        ConfigError: when two files have the same name.
    """
    architectures: dict[str, Callable[[int, int], Backbone]] = {}
    for file in iter_modules(__path__):
        family = getattr(import_module(f"{__name__}.{file.name}"), "ARCHITECTURES", {})
        if taken := architectures.keys() & family.keys():
            raise ConfigError(
                f"{file.name}.py: another file has the architecture '{min(taken)}': rename this one"
            )
        architectures |= family
    return architectures


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
    if name in shipped():
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
    return tuple(dict.fromkeys([*shipped(), *_REGISTERED, *plugins(BACKBONES)]))


def make_backbone(arch: str, width: int = 64, last_stride: int = 1) -> Backbone:
    """The backbone of a name.

    Args:
        arch: one of `backbones()`.
        width: channels of the first block; 64 is the published network.
        last_stride: of the last block, 1 or 2.

    Raises:
        ConfigError: for a name that is not registered, or one whose function gives no backbone of enough blocks.
    """
    make = shipped().get(arch) or _REGISTERED.get(arch)
    if make is None and arch in plugins(BACKBONES):
        make = load_plugin(plugins(BACKBONES)[arch])
    if make is None:
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
    depth = getattr(backbone, "depth", None)
    if not isinstance(depth, int) or depth < MIN_DEPTH:
        raise ConfigError(
            f"model.arch = '{arch}': its backbone has depth={depth!r}: give the number of its blocks, at least "
            f"{MIN_DEPTH}, three of the stem and one of the tail"
        )
    return backbone


def initialize(module: nn.Module) -> nn.Module:
    """Random weights as He et al. (2015) for convolutions, 1 and 0 for batch normalisation; gives `module`."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    return module
