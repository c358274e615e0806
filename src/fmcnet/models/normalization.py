"""Normalisation of features and descriptors by the image's modality. Ours: the paper has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.types import Modality

FLOOR, TINY = 1e-3, 1e-12
"""Least deviation of a value: as a share of the mean deviation, and absolute. So nothing is divided by 0."""


class FeatureNorm(nn.Module):
    """Centres and scales features with statistics of each modality, and brings them to one length. Ours.

    The margins of the losses need features of a known length. Statistics of each modality remove the difference
    between the modalities, which is right for F_sh. F_sp gets a difference back as a constant of fixed share,
    `offset`. Specific features then have a mean of their own, which (4) needs, and neither (4) nor (13) can make that
    mean outweigh the identity, as they can with a learnt one (docs/findings.md).

    Args:
        dim: D.
        length: of the normalised features.
        offset: share of the length that is the modality's constant, 0 to 1; it is the same vector for both
            modalities, with opposite signs.
    """

    def __init__(self, dim: int, length: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.dim, self.length, self.offset = dim, length, offset
        self.statistics = nn.ModuleList(nn.BatchNorm1d(dim, affine=False) for _ in Modality)

    def forward(self, feature: Tensor, modality: Modality) -> Tensor:
        """Features of images of one modality (B, D) to (B, D) of length `length`."""
        return self.to_length(self.statistics[modality.code](feature), modality)

    @torch.no_grad()
    def set(self, modality: Modality, mean: Tensor, variance: Tensor) -> None:
        """Set the statistics of one modality: mean and variance (D,)."""
        norm = cast(nn.BatchNorm1d, self.statistics[modality.code])
        cast(Tensor, norm.running_mean).copy_(mean)
        cast(Tensor, norm.running_var).copy_(variance)

    def to_length(self, feature: Tensor, modality: Modality) -> Tensor:
        """Bring vectors (B, D) to `length`, with the modality's constant; generated features use only this step."""
        unit = F.normalize(feature, dim=1)
        if self.offset:
            sign = 1.0 if modality is Modality.VISIBLE else -1.0
            identity_share = (1 - self.offset**2) ** 0.5
            constant = sign * self.offset * feature.shape[1] ** -0.5  # the same in all D dimensions
            unit = F.normalize(identity_share * unit + constant, dim=1)
        return self.length * unit


def feature_norms(model: nn.Module) -> list[FeatureNorm]:
    """Every `FeatureNorm` of a model; none unless `model.normalization=modality`."""
    return [module for module in model.modules() if isinstance(module, FeatureNorm)]


@contextmanager
def watch_norms(model: nn.Module, keep: Callable[[FeatureNorm, Modality, Tensor], object]) -> Iterator[None]:
    """Within the block, give `keep` the features (B, D) that each `FeatureNorm` gets, with their modality."""

    def hook(norm: FeatureNorm, modality: Modality, _: nn.Module, inputs: tuple[Tensor]) -> None:
        keep(norm, modality, inputs[0])

    with ExitStack() as hooks:
        for norm in feature_norms(model):
            for modality in Modality:
                statistics = norm.statistics[modality.code]
                handle = statistics.register_forward_pre_hook(partial(hook, norm, modality))
                hooks.callback(handle.remove)
        yield


class Standardization(nn.Module):
    """Centres and scales each value of a descriptor by statistics of the image's modality. Ours.

    What all images of one pair of cameras have in common says nothing about a person; standardising removes it.
    Training estimates the statistics from its images, `fmcnet adapt` from unlabelled ones.

    Args:
        dim: E, values of the descriptor.
        stripes: number of leading values that are stripes of a frozen tail; they and the rest get unit length each.
            0: nothing does.
        weight: factor of the rest, where there are stripes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, stripes: int = 0, weight: float = 1.0) -> None:
        super().__init__()
        self.stripes, self.weight = stripes, weight
        self.register_buffer("mean", torch.zeros(len(Modality), dim))
        self.register_buffer("std", torch.ones(len(Modality), dim))

    @torch.no_grad()
    def set(self, modality: Modality, mean: Tensor, variance: Tensor) -> None:
        """Set the statistics of one modality: mean and variance (E,).

        A deviation counts as at least `FLOOR` of the mean deviation.
        """
        deviation = variance.sqrt()
        self.mean[modality.code] = mean
        self.std[modality.code] = deviation.clamp(min=max(FLOOR * float(deviation.mean()), TINY))

    def forward(self, descriptor: Tensor, modality: Modality) -> Tensor:
        """Descriptors of images of one modality (B, E) to (B, E)."""
        standardized = (descriptor - self.mean[modality.code]) / self.std[modality.code]
        if not self.stripes:
            return standardized
        stripes, features = standardized[:, : self.stripes], standardized[:, self.stripes :]
        return torch.cat([F.normalize(stripes), self.weight * F.normalize(features)], dim=1)
