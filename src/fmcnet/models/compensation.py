"""FMC and SFF, sections 3.2 and 3.3 of the paper.

FMC generates the missing modality's specific feature, eq. (11), against discriminators, (12). SFF fuses it with the
real features, (15), (16).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.models.decomposition import FeatureNorm, IdentityClassifier
from fmcnet.types import Modality


class Generator(nn.Module):
    """G of eq. (11): three stacked fully connected layers, D to D.

    The paper gives neither the hidden width nor what stands between the layers. Ours: hidden width D, ReLU
    between. At the end a ReLU, because the real features are pooled ReLU outputs and so never negative.

    Args:
        dim: D.
        length: length of the generated features, where the real ones have a fixed one; None: a ReLU ends G. Ours.
        input_scale: what F_sh is multiplied by before the layers, so that values of a short feature are of the order
            of 1 and outweigh the biases. Ours.
        residual: F' = F_sh + layers(F_sh) before the length is set. Ours.
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
        input_scale: what features are multiplied by first. Ours.
        unit_weight: the weight keeps unit length (its spectral norm is 1), so that logits, less the bias, stay within
            the length of the scaled feature: D can neither saturate nor slow down as its weight grows.
            `renormalize` after each step sees to it. Ours.
    """

    def __init__(self, dim: int, input_scale: float = 1.0, unit_weight: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        self.input_scale, self.unit_weight = input_scale, unit_weight
        self.renormalize()

    def forward(self, feature: Tensor) -> Tensor:
        """(B, D) to logits (B,)."""
        return cast(Tensor, self.linear(feature * self.input_scale)).squeeze(1)

    def as_constant(self, feature: Tensor) -> Tensor:
        """The same logits (B,), with D's weights as constants: for the generators' turn."""
        weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
        return F.linear(feature * self.input_scale, weight, bias).squeeze(1)

    @torch.no_grad()
    def renormalize(self) -> None:
        """Bring the weight to unit length, where `unit_weight` wants it."""
        if self.unit_weight:
            self.linear.weight.copy_(F.normalize(self.linear.weight, dim=1))


class Compensation(nn.Module):
    """Feature-level modality compensation: the missing specific feature from the shared one, eq. (11).

    Names give the modality of the features that a module makes or examines: `judge_infrared` sees F_sp,I as real.
    Stored weights have these names.

    Args:
        to_infrared: G_{V-I}.
        to_visible: G_{I-V}.
        judge_infrared: D_{V-I}.
        judge_visible: D_{I-V}.
        norm_specific: gives generated features the length and the constant of real ones (ours); None: nothing does.
    """

    def __init__(
        self,
        to_infrared: nn.Module,
        to_visible: nn.Module,
        judge_infrared: Discriminator,
        judge_visible: Discriminator,
        norm_specific: FeatureNorm | None = None,
    ) -> None:
        super().__init__()
        self._to_length = norm_specific.to_length if norm_specific else None
        self.to_infrared = to_infrared
        self.to_visible = to_visible
        self.judge_infrared = judge_infrared
        self.judge_visible = judge_visible

    def forward(self, shared: Tensor, modality: Modality) -> Tensor:
        """F_sh of images of `modality` (B, D) to the generated specific feature of the other (B, D)."""
        generator = self.to_infrared if modality is Modality.VISIBLE else self.to_visible
        generated = cast(Tensor, generator(shared))
        return generated if self._to_length is None else self._to_length(generated, modality.other)

    def discriminator(self, target: Modality) -> Discriminator:
        """The discriminator whose real samples are the specific features of `target`."""
        return self.judge_infrared if target is Modality.INFRARED else self.judge_visible

    def renormalize_discriminators(self) -> None:
        """`Discriminator.renormalize` of both, after each of their optimiser's steps."""
        self.judge_infrared.renormalize()
        self.judge_visible.renormalize()

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters that maximise eq. (12); all others minimise it."""
        return [*self.judge_infrared.parameters(), *self.judge_visible.parameters()]


class Fusion(nn.Module):
    """Shared-specific feature fusion, eq. (15), (16).

    F_fu,V = w1 F_sp,V + w2 F'_sp,I (15) and F_fp,V = Cat(F_sh,V, F_fu,V) (16); mirrored for infrared images. w1
    weighs the image's own specific feature, w2 the generated one. The paper gives no initial values; ours are 0.5.

    Args:
        classify: P_fp.
        softmax: False is (15) as written: two free scalars. True (ours) takes the softmax of the two, which stay
            positive and sum to 1: (17) is cheapest at w1 = w2 = 0, and a neck hides that from (18).
        length: of F_fu (ours), so that (17) cannot shorten it; None: as it is.
    """

    def __init__(
        self, classify: IdentityClassifier, softmax: bool = False, length: float | None = None
    ) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(0.5))
        self.w2 = nn.Parameter(torch.tensor(0.5))
        self.classify = classify
        self.softmax, self.length = softmax, length

    def weights(self) -> tuple[Tensor, Tensor]:
        """The two scalars of eq. (15) as they are applied: of the own feature and of the generated one."""
        if not self.softmax:
            return self.w1, self.w2
        both = torch.stack([self.w1, self.w2]).softmax(dim=0)
        return both[0], both[1]

    def forward(self, shared: Tensor, specific: Tensor, generated: Tensor) -> Tensor:
        """F_sh, F_sp and the generated F'_sp of images, each (B, D), to F_fp (B, 2D)."""
        own, other = self.weights()
        fused = own * specific + other * generated  # (15)
        if self.length is not None:
            fused = self.length * F.normalize(fused, dim=1)
        return torch.cat([shared, fused], dim=1)  # (16)
