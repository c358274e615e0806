"""SFD, section 3.1 of the paper: shared and specific features, eq. (1), (2)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.errors import ConfigError
from fmcnet.models.backbones import Backbone, initialize
from fmcnet.models.normalization import FeatureNorm
from fmcnet.types import Modality

STEM_BLOCKS = 3
"""Blocks of E_V and E_I in the paper, of ResNet's five."""

RESERVED = frozenset({"head", "pool", "norm", "dim", "maps", "stripes", "channels"})
"""Names in `Stem` and `Tail` that no layer of a backbone may have."""


class DecomposedFeatures(NamedTuple):
    """Features of eq. (1) for images of one modality.

    Attributes:
        stem: F_m (B, C, h, w).
        shared: F_sh,m (B, D).
        specific: F_sp,m (B, D); None in the Base variant.
    """

    stem: Tensor
    shared: Tensor
    specific: Tensor | None


class Decomposition(nn.Module):
    """Single-modality feature decomposition: a shared and a specific feature of each image, eq. (1), (2).

    E_V and E_I have separate weights, E_sh is one for both, E_sp^V and E_sp^I have separate weights.

    Args:
        stem_visible: E_V.
        stem_infrared: E_I.
        shared: E_sh.
        classify_shared: P_sh.
        specific_visible: E_sp^V; None in the Base variant, which has no specific branch. So are the next three.
        specific_infrared: E_sp^I.
        classify_visible: P_sp^V.
        classify_infrared: P_sp^I.
        stem_shared: last blocks of both stems with one set of weights (ours); None: separate, as the paper.
        norm_shared: normalises F_sh after its tail (ours); None: no normalisation.
        norm_specific: normalises F_sp likewise.
    """

    def __init__(
        self,
        stem_visible: nn.Module,
        stem_infrared: nn.Module,
        shared: nn.Module,
        classify_shared: IdentityClassifier,
        specific_visible: nn.Module | None = None,
        specific_infrared: nn.Module | None = None,
        classify_visible: IdentityClassifier | None = None,
        classify_infrared: IdentityClassifier | None = None,
        stem_shared: nn.Module | None = None,
        norm_shared: FeatureNorm | None = None,
        norm_specific: FeatureNorm | None = None,
    ) -> None:
        super().__init__()
        self.norm_shared, self.norm_specific = norm_shared, norm_specific
        self.stem_visible, self.stem_infrared, self.stem_shared = stem_visible, stem_infrared, stem_shared
        self.shared, self.classify_shared = shared, classify_shared
        self.specific_visible, self.specific_infrared = specific_visible, specific_infrared
        self.classify_visible, self.classify_infrared = classify_visible, classify_infrared

    @property
    def has_specific(self) -> bool:
        """False in the Base variant."""
        return self.specific_visible is not None

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[DecomposedFeatures, DecomposedFeatures]:
        """Decompose both halves of a batch, eq. (1); E_sh sees them in one pass.

        Args:
            visible: (B_V, 3, H, W), preprocessed.
            infrared: (B_I, 3, H, W), likewise.

        Returns:
            Features of the visible and of the infrared images.
        """
        f_v, f_i = self.stem_visible(visible), self.stem_infrared(infrared)
        if self.stem_shared is not None:
            f_v, f_i = in_one_pass(self.stem_shared, f_v, f_i)
        sh_v, sh_i = in_one_pass(self.shared, f_v, f_i)
        if self.norm_shared is not None:
            sh_v = self.norm_shared(sh_v, Modality.VISIBLE)
            sh_i = self.norm_shared(sh_i, Modality.INFRARED)
        sp_v = sp_i = None
        if self.has_specific:
            sp_v, sp_i = self.specific(f_v, Modality.VISIBLE), self.specific(f_i, Modality.INFRARED)
        return DecomposedFeatures(f_v, sh_v, sp_v), DecomposedFeatures(f_i, sh_i, sp_i)

    def stem(self, images: Tensor, modality: Modality) -> Tensor:
        """E_m of images of one modality: (B, 3, H, W) to F_m (B, C, h, w)."""
        stem = self.stem_visible if modality is Modality.VISIBLE else self.stem_infrared
        return cast(Tensor, stem(images) if self.stem_shared is None else self.stem_shared(stem(images)))

    def share(self, stem_feature: Tensor, modality: Modality) -> Tensor:
        """E_sh of images of one modality: F_m (B, C, h, w) to F_sh,m (B, D)."""
        feature = cast(Tensor, self.shared(stem_feature))
        return feature if self.norm_shared is None else self.norm_shared(feature, modality)

    def specific(self, stem_feature: Tensor, modality: Modality) -> Tensor:
        """E_sp^m of images of one modality: F_m (B, C, h, w) to F_sp,m (B, D)."""
        tail = self.specific_visible if modality is Modality.VISIBLE else self.specific_infrared
        assert tail is not None, "this variant has no specific branch"
        feature = cast(Tensor, tail(stem_feature))
        return feature if self.norm_specific is None else self.norm_specific(feature, modality)

    def classifier(self, modality: Modality) -> IdentityClassifier:
        """P_sp^m of eq. (2)."""
        classifier = self.classify_visible if modality is Modality.VISIBLE else self.classify_infrared
        assert classifier is not None, "this variant has no specific branch"
        return classifier


def in_one_pass(module: nn.Module, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`module` of both batches in one pass, so that batch normalisation sees them together."""
    outputs = module(torch.cat([first, second])).split([len(first), len(second)])
    return cast(tuple[Tensor, Tensor], outputs)


class IdentityClassifier(nn.Module):
    """P_*: one linear layer over the C training identities, eq. (2), (14), (18).

    Args:
        dim: length D of the feature.
        classes: number C of training identities.
        neck: put a batch normalisation between feature and layer (BNNeck, Luo et al. 2019). Ours: with it
            the layer has no bias; without it is the paper's literal form.
    """

    def __init__(self, dim: int, classes: int, neck: bool = False) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(dim) if neck else nn.Identity()
        self.linear = nn.Linear(dim, classes, bias=not neck)
        if isinstance(self.neck, nn.BatchNorm1d):
            nn.init.normal_(self.linear.weight, std=0.001)
            self.neck.bias.requires_grad_(False)  # as Luo et al.: a centred neck suits the cosine

    def forward(self, feature: Tensor) -> Tensor:
        """(B, D) to scores (B, C)."""
        return cast(Tensor, self.linear(self.neck(feature)))


class Stem(nn.Sequential):
    """E_V or E_I of eq. (1): the backbone's first blocks, weights of one modality.

    With fewer than three blocks (ours; AGW has one), a stem shared by both modalities has the rest of the three.

    Args:
        backbone: gives the blocks.
        end: number of blocks up to the end of this stem, 1 to 3; 3 is the paper.
        start: number of blocks before this stem; 0 is the paper.
        frozen: number of blocks that keep their weights and running statistics (ours); 0 is the paper.

    Raises:
        ConfigError: for two layers of one name.
    """

    def __init__(self, backbone: Backbone, end: int = STEM_BLOCKS, start: int = 0, frozen: int = 0) -> None:
        super().__init__()
        blocks = [backbone.block(index) for index in range(start, end)]
        _add_layers(self, blocks)
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
            with torch.no_grad() if name in self._frozen else nullcontext():
                x = layer(x)
        return x


class Tail(nn.Module):
    """E_sh, E_sp^V or E_sp^I of eq. (1): the backbone's last blocks and global pooling.

    Args:
        backbone: gives the blocks.
        blocks: number of blocks after the third; None: all, as the paper.
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
        tail_blocks = [backbone.block(index) for index in range(STEM_BLOCKS, end)]
        _add_layers(self, tail_blocks)
        self._ends = [list(block)[-1] for block in tail_blocks]
        self.channels = tuple(backbone.channels(index) for index in range(STEM_BLOCKS, end))
        self.dim = self.channels[-1] if dim is None else dim
        if dim is not None:
            conv = nn.Conv2d(self.channels[-1], dim, 1, bias=False)
            self.head = initialize(nn.Sequential(conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True)))
        self._layers = list(self._modules)
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
            count: number of stripes of each map.

        Returns:
            (B, count * sum(channels)): block by block, stripes from top to bottom.
        """
        features = []
        for name in self._layers:
            x = self.get_submodule(name)(x)
            if name in self._ends:
                pooled = F.adaptive_avg_pool2d(x, (count, 1)).squeeze(3)  # (B, C, count)
                features.append(pooled.transpose(1, 2).flatten(1))
        return torch.cat(features, dim=1)


def _add_layers(module: nn.Module, blocks: list[dict[str, nn.Module]]) -> None:
    """Add the layers of blocks to a stem or tail, under their own names."""
    for name, layer in (item for block in blocks for item in block.items()):
        if name in module._modules or name in RESERVED or hasattr(nn.Sequential, name):
            raise ConfigError(f"backbone: the layer name '{name}' is taken. Give this layer another name.")
        module.add_module(name, layer)


class GeM(nn.Module):
    """Generalised-mean pooling with a learnable power (Radenovic et al., TPAMI 2019).

    Ours: FMCNet uses average pooling. p = 1 is the average, a large p approaches the maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        x, p = x.clamp(min=1e-6), self.p
        if x.dtype == torch.float16:  # which 41 ** 3 is beyond; autocast lifts powers on a GPU only
            return x.float().pow(p.float()).mean(dim=(2, 3)).pow(1.0 / p.float()).to(p.dtype)
        return x.pow(p).mean(dim=(2, 3)).pow(1.0 / p)


class AveragePool(nn.Module):
    """Global average pooling, as the paper."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.mean(dim=(2, 3))
