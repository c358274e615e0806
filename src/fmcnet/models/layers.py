"""Layers that the modules share: identity classifiers and normalisation by modality."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.types import Modality

FLOOR = 1e-3
"""A value's deviation is at least this share of the mean deviation: a constant value must not be divided by 0."""


class IdentityClassifier(nn.Module):
    """P_*: one linear layer over the C training identities, eq. (2), (14), (18).

    Args:
        dim: length D of the feature.
        classes: number C of training identities.
        neck: put a batch normalisation between feature and layer (BNNeck, Luo et al. 2019). Ours: with it
            the layer has no bias; without it is the paper's literal form.
        dropout: share of the feature's values that are set to 0 before the layer, in training. Ours.
    """

    def __init__(self, dim: int, classes: int, neck: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.neck: nn.Module = nn.BatchNorm1d(dim) if neck else nn.Identity()
        self.linear = nn.Linear(dim, classes, bias=not neck)
        if neck:
            nn.init.normal_(self.linear.weight, std=0.001)
            bn = cast(nn.BatchNorm1d, self.neck)
            bn.bias.requires_grad_(False)  # as Luo et al.: a centred neck suits the cosine

    def forward(self, feature: Tensor) -> Tensor:
        """(B, D) to scores (B, C)."""
        seen = self.neck(feature)
        if self.dropout:
            seen = F.dropout(seen, self.dropout, self.training)
        return cast(Tensor, self.linear(seen))


class FeatureNorm(nn.Module):
    """Centres and scales features with statistics of each modality, and brings them to one length. Ours.

    Margins of 0.7 and 1 mean something on features of a known length only. Statistics of each modality erase what
    tells the modalities apart, which is right for F_sh. F_sp gets it back as a constant of fixed share, `offset`.
    Specific features then have a mean of their own, which (4) needs, and neither (4) nor (13) can make that mean
    outweigh the identity. A learnt mean did: after 300 steps generated features had a mean cosine of 0.95.

    Args:
        dim: D.
        length: of the features that it gives.
        offset: share of the length that is the modality's constant, 0 to 1; it is the same vector for both
            modalities, with opposite signs.
    """

    def __init__(self, dim: int, length: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.length, self.offset = length, offset
        self.statistics = nn.ModuleList(nn.BatchNorm1d(dim, affine=False) for _ in Modality)

    def forward(self, feature: Tensor, modality: Modality) -> Tensor:
        """Features of images of one modality (B, D) to (B, D) of length `length`."""
        return self.to_length(self.statistics[modality.code](feature), modality)

    def to_length(self, feature: Tensor, modality: Modality) -> Tensor:
        """Vectors (B, D) to features of `length` around the modality's constant; so are generated ones."""
        unit = F.normalize(feature, dim=1)
        if self.offset:
            sign = 1.0 if modality is Modality.VISIBLE else -1.0
            identity = (1 - self.offset**2) ** 0.5
            constant = sign * self.offset * feature.shape[1] ** -0.5  # the same in all D dimensions
            unit = F.normalize(identity * unit + constant, dim=1)
        return self.length * unit


class Standardization(nn.Module):
    """Centres and scales each value of a descriptor by statistics of the image's modality. Ours.

    What all images of one pair of cameras have in common says nothing about a person; the statistics take it out.
    Training estimates them from its images, `fmcnet adapt` from unlabelled ones.

    Args:
        dim: E, values of the descriptor.
        stripes: number of first values that are stripes of a frozen tail; they and the rest get unit length each.
        weight: of the rest beside them.
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
        """Take the statistics of one modality.

        Args:
            modality: whose they are.
            mean: of each value, (E,).
            variance: of each value, (E,), not all 0. A deviation is at least `FLOOR` of the mean
                deviation.
        """
        deviation = variance.sqrt()
        self.mean[modality.code] = mean
        self.std[modality.code] = deviation.clamp(min=FLOOR * float(deviation.mean()))

    def forward(self, descriptor: Tensor, modality: Modality) -> Tensor:
        """Descriptors of images of one modality (B, E) to (B, E)."""
        standard = (descriptor - self.mean[modality.code]) / self.std[modality.code]
        if not self.stripes:
            return standard
        first, rest = standard[:, : self.stripes], standard[:, self.stripes :]
        return torch.cat([F.normalize(first), self.weight * F.normalize(rest)], dim=1)
