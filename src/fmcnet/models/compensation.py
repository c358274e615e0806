"""FMC, section 3.2 of the paper: generates the missing modality's specific feature, eq. (11), (12)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.models.normalization import FeatureNorm
from fmcnet.types import Modality

UNIT_TOLERANCE = 1e-6
"""A float32 weight brought to unit length is off by less, from rounding."""


class Compensation(nn.Module):
    """Feature-level modality compensation: the missing specific feature from the shared one, eq. (11).

    A module is named after the modality of the features that it generates or tells from real ones:
    `discriminator_infrared` sees F_sp,I as real. The discriminators are the submodules `judge_infrared` and
    `judge_visible`, their names in stored weights; code takes them by `discriminator`.

    Args:
        to_infrared: G_{V-I}.
        to_visible: G_{I-V}.
        discriminator_infrared: D_{V-I}.
        discriminator_visible: D_{I-V}.
        norm_specific: gives generated features the length and the constant of real ones (ours); None: neither.
    """

    def __init__(
        self,
        to_infrared: nn.Module,
        to_visible: nn.Module,
        discriminator_infrared: Discriminator,
        discriminator_visible: Discriminator,
        norm_specific: FeatureNorm | None = None,
    ) -> None:
        super().__init__()
        self._to_length = norm_specific.to_length if norm_specific else None
        self.to_infrared, self.to_visible = to_infrared, to_visible
        self.judge_infrared, self.judge_visible = discriminator_infrared, discriminator_visible

    def forward(self, shared: Tensor, modality: Modality) -> Tensor:
        """F_sh of images of `modality` (B, D) to the generated specific feature of the other (B, D)."""
        generator = self.to_infrared if modality is Modality.VISIBLE else self.to_visible
        generated = cast(Tensor, generator(shared))
        return generated if self._to_length is None else self._to_length(generated, modality.other)

    def discriminator(self, target: Modality) -> Discriminator:
        """The discriminator whose real samples are the specific features of `target`."""
        return self.judge_infrared if target is Modality.INFRARED else self.judge_visible

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters that maximise eq. (12); all others minimise it."""
        return [*self.judge_infrared.parameters(), *self.judge_visible.parameters()]

    def renormalize(self) -> None:
        """Call both discriminators' `renormalize`: after each step of their optimiser."""
        self.judge_infrared.renormalize()
        self.judge_visible.renormalize()


class Generator(nn.Module):
    """G of eq. (11): three stacked fully connected layers, D to D.

    The paper gives neither the hidden width nor the activations. Ours: hidden width D, ReLU
    between the layers and, without `length`, at the end: real features are pooled ReLU outputs, so never negative.

    Args:
        dim: D.
        length: fixed length of the generated features, as the real ones have it; None: a ReLU ends G. Ours.
        input_scale: factor of F_sh before the layers, so that values of a short feature are of the order of 1 and
            outweigh the biases. Ours.
        residual: the scaled F_sh is added to what the layers give, before the length is set. Ours.
    """

    def __init__(
        self, dim: int, length: float | None = None, input_scale: float = 1.0, residual: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
        )
        if length is None:
            self.layers.append(nn.ReLU(inplace=True))
        self.length, self.input_scale, self.residual = length, input_scale, residual

    def forward(self, shared: Tensor) -> Tensor:
        """F_sh (B, D) to F'_sp of the other modality (B, D)."""
        x = shared * self.input_scale
        out = cast(Tensor, self.layers(x))
        if self.residual:
            out = out + x
        return out if self.length is None else self.length * F.normalize(out, dim=1)


class Discriminator(nn.Module):
    """D of eq. (12): one fully connected layer + sigmoid.

    `forward` gives the logit z, of which the paper's D(x) is the sigmoid. The losses compute log sigmoid(z) in one
    step, which never overflows.

    Args:
        dim: D.
        input_scale: factor of the features before the layer. Ours.
        unit_weight: the weight is used at unit length (its spectral norm is 1), so that logits, less the bias, stay
            within the length of the scaled feature and D cannot saturate. Call `renormalize` after each step: a
            stored weight that grows would slow D down. Ours.
    """

    def __init__(self, dim: int, input_scale: float = 1.0, unit_weight: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        self.input_scale, self.unit_weight = input_scale, unit_weight
        self.renormalize()

    def forward(self, feature: Tensor) -> Tensor:
        """(B, D) to logits (B,)."""
        return self._logits(feature, self._weight(), self.linear.bias)

    def as_constant(self, feature: Tensor) -> Tensor:
        """The same logits (B,), with D's weights as constants: for the generators' step."""
        return self._logits(feature, self._weight().detach(), self.linear.bias.detach())

    def _logits(self, feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Logits (B,) of features (B, D), which autocast may have left in half precision."""
        return F.linear(feature.to(weight.dtype) * self.input_scale, weight, bias).squeeze(1)

    def _weight(self) -> Tensor:
        """The weight (1, D) as it is used.

        At unit length its gradient is that of the stored weight, with a radial part, which `renormalize` takes away;
        elsewhere that of the normalised one.
        """
        weight = self.linear.weight
        if not self.unit_weight:
            return weight
        unit = F.normalize(weight, dim=1)
        # A weight of unit length is used as it is, not once more rounded: so `train`, which calls `renormalize`, and
        # its resumes give the bits that they gave before the weight was normalised here.
        is_unit = (weight.detach().norm() - 1).abs() < UNIT_TOLERANCE
        return torch.where(is_unit, weight, unit)

    @torch.no_grad()
    def renormalize(self) -> None:
        """Bring the stored weight to unit length, if `unit_weight`."""
        if self.unit_weight:
            self.linear.weight.copy_(F.normalize(self.linear.weight, dim=1))
