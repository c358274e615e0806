"""FMCNet's three modules, one class each: SFD, FMC and SFF.

Constructors take modules and numbers; `model/build.py` makes them from a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmcnet.types import Modality


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


class PartClassifiers(nn.Module):
    """A classifier for each horizontal stripe of the shared map (PCB, Sun et al., ECCV 2018). Ours, for fmcnet-plus.

    Args:
        heads: one `IdentityClassifier` a stripe, from top to bottom.
    """

    def __init__(self, heads: list[IdentityClassifier]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def necks(self) -> list[nn.Module]:
        """What each stripe passes before its layer."""
        return [cast(IdentityClassifier, head).neck for head in self.heads]

    def forward(self, stripes: Tensor) -> Tensor:
        """(B, n, D) to scores (B, n, C)."""
        return torch.stack([head(stripes[:, at]) for at, head in enumerate(self.heads)], dim=1)


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
        return self.place(self.statistics[modality.code](feature), modality)

    def place(self, feature: Tensor, modality: Modality) -> Tensor:
        """Vectors (B, D) to features of `length` around the modality's constant; generated ones pass here, too."""
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
    `fmcnet adapt` estimates them from unlabelled images.

    Args:
        dim: E, values of the descriptor.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(Modality), dim))
        self.register_buffer("std", torch.ones(len(Modality), dim))

    def forward(self, descriptor: Tensor, modality: Modality) -> Tensor:
        """Descriptors of images of one modality (B, E) to (B, E)."""
        return (descriptor - self.mean[modality.code]) / self.std[modality.code]


class Decomposition(nn.Module):
    """SFD, section 3.1: splits each modality's feature into a shared and a specific one, eq. (1), (2).

    E_V and E_I have separate weights, E_sh is one for both, E_sp^V and E_sp^I have separate weights.

    Args:
        stem_visible: E_V. stem_infrared: E_I.
        shared: E_sh. classify_shared: P_sh.
        specific_visible: E_sp^V, and so on; None in the Base variant, which has no specific part.
        stem_shared: the end of both stems with one set of weights, where they are split earlier than in the paper
            (ours); None: each stem is whole.
        norm_shared, norm_specific: what F_sh and F_sp pass behind their tails (ours); None: nothing.

    Attributes:
        recompute: forget the activations of stems and tails, and compute them anew in the backward pass.
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
        self.stem_visible = stem_visible
        self.stem_infrared = stem_infrared
        self.stem_shared = stem_shared
        self.shared = shared
        self.classify_shared = classify_shared
        self.specific_visible = specific_visible
        self.specific_infrared = specific_infrared
        self.classify_visible = classify_visible
        self.classify_infrared = classify_infrared
        self.recompute = False

    @property
    def has_specific(self) -> bool:
        """False in the Base variant."""
        return self.specific_visible is not None

    def stem(self, images: Tensor, modality: Modality) -> Tensor:
        """E_m: images (B, 3, H, W) to F_m (B, C, h, w)."""
        stem = self.stem_visible if modality is Modality.VISIBLE else self.stem_infrared
        out = self._run(stem, images)
        return out if self.stem_shared is None else self._run(self.stem_shared, out)

    def share(self, stem_feature: Tensor, modality: Modality) -> Tensor:
        """E_sh of images of one modality: F_m (B, C, h, w) to F_sh,m (B, D), with stripes (B, (1 + n) * D)."""
        return self._shared_norm(self._run(self.shared, stem_feature), modality)

    def specific(self, stem_feature: Tensor, modality: Modality) -> Tensor:
        """E_sp^m of images of one modality: F_m (B, C, h, w) to F_sp,m (B, D)."""
        tail = self.specific_visible if modality is Modality.VISIBLE else self.specific_infrared
        assert tail is not None, "this variant has no specific branch"
        feature = self._run(tail, stem_feature)
        return feature if self.norm_specific is None else self.norm_specific(feature, modality)

    def _shared_norm(self, shared: Tensor, modality: Modality) -> Tensor:
        if self.norm_shared is None:
            return shared
        dim = self.classify_shared.linear.in_features
        feature = self.norm_shared(shared[:, :dim], modality)
        return feature if shared.shape[1] == dim else torch.cat([feature, shared[:, dim:]], dim=1)

    def classifier(self, modality: Modality) -> IdentityClassifier:
        """P_sp^m."""
        head = self.classify_visible if modality is Modality.VISIBLE else self.classify_infrared
        assert head is not None, "this variant has no specific branch"
        return head

    def forward(
        self, visible: Tensor, infrared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Both halves at once; E_sh sees them in one concatenated pass.

        Args:
            visible: (B_V, 3, H, W). infrared: (B_I, 3, H, W).

        Returns:
            F_sh,V (B_V, D), F_sh,I (B_I, D), F_sp,V (B_V, D) or None, F_sp,I (B_I, D) or None.
        """
        f_v, f_i = self._run(self.stem_visible, visible), self._run(self.stem_infrared, infrared)
        if self.stem_shared is not None:
            f_v, f_i = self._run(self.stem_shared, torch.cat([f_v, f_i])).split([len(f_v), len(f_i)])
        shared = self._run(self.shared, torch.cat([f_v, f_i]))
        sh_v, sh_i = shared.split([len(f_v), len(f_i)])
        sh_v, sh_i = self._shared_norm(sh_v, Modality.VISIBLE), self._shared_norm(sh_i, Modality.INFRARED)
        if not self.has_specific:
            return sh_v, sh_i, None, None
        return sh_v, sh_i, self.specific(f_v, Modality.VISIBLE), self.specific(f_i, Modality.INFRARED)

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return cast(Tensor, module(x))
        second = lambda: (nullcontext(), _statistics_kept(module))  # noqa: E731
        return cast(Tensor, checkpoint(module, x, use_reentrant=False, context_fn=second))


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """While activations are computed a second time, running statistics do not move a second time."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # track_running_stats stays: without it other tensors are saved than the first time
        norm.momentum = 0.0
        norm.num_batches_tracked = torch.zeros_like(cast(Tensor, norm.num_batches_tracked))
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


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
        self,
        dim: int,
        length: float | None = None,
        input_scale: float = 1.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
        ]
        if length is None:
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
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

    `forward` gives the logit; the losses take the logarithm of its sigmoid in one safe step
    (`log sigmoid(z)` never overflows), `probability` gives the paper's D(x).

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

    def probability(self, feature: Tensor) -> Tensor:
        """(B, D) to D(x) in 0..1, (B,): how real the feature looks."""
        return torch.sigmoid(self(feature))


class Compensation(nn.Module):
    """FMC, section 3.2: generates the missing modality's specific feature from the shared one, eq. (11).

    Generators and discriminators are named by the modality they produce and judge: `to_infrared` is
    G_{V-I}, `judge_infrared` is D_{V-I} (real: F_sp,I).

    Args:
        to_infrared, to_visible: G. judge_infrared, judge_visible: D.
        norm_specific: what real specific features pass; generated ones are placed by it, too. Ours; None: nothing.
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
        self._place = norm_specific.place if norm_specific else None
        self.to_infrared = to_infrared
        self.to_visible = to_visible
        self.judge_infrared = judge_infrared
        self.judge_visible = judge_visible

    def forward(self, shared: Tensor, modality: Modality) -> Tensor:
        """F_sh of images of `modality` (B, D) to the generated specific feature of the other (B, D)."""
        generator = self.to_infrared if modality is Modality.VISIBLE else self.to_visible
        generated = cast(Tensor, generator(shared))
        return generated if self._place is None else self._place(generated, modality.other)

    def judge(self, target: Modality) -> Discriminator:
        """The discriminator whose real samples are the specific features of `target`."""
        return self.judge_infrared if target is Modality.INFRARED else self.judge_visible

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """What the max player of eq. (12) owns; everything else belongs to the min player."""
        return [*self.judge_infrared.parameters(), *self.judge_visible.parameters()]


class Fusion(nn.Module):
    """SFF, section 3.3: fuses specific and generated into one, and that with the shared, eq. (15), (16).

    F_fu,V = w1 F_sp,V + w2 F'_sp,I and, mirrored, F_fu,I = w1 F_sp,I + w2 F'_sp,V: w1 weighs the image's
    own specific feature, w2 the generated one. F_fp = Cat(F_sh, F_fu). The paper gives no initial value for
    the two scalars; ours is 0.5 each (the mean).

    Args:
        classify: P_fp. w1, w2: initial values.
        kind: "sum" is (15) as written: two free scalars. "softmax" (ours) takes the softmax of the two, so that they
            stay positive and sum to 1: (17) is cheapest at w1 = w2 = 0, and a neck hides it from (18). "slots" (ours)
            takes the softmax, too, and puts the visible part before the infrared one instead of adding them.
        length: F_fu is brought to this length (ours), so that (17) cannot shorten it; None: as it is.
    """

    def __init__(
        self,
        classify: IdentityClassifier,
        w1: float = 0.5,
        w2: float = 0.5,
        kind: str = "sum",
        length: float | None = None,
    ) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(w1))
        self.w2 = nn.Parameter(torch.tensor(w2))
        self.classify = classify
        self.kind, self.length = kind, length

    def weights(self) -> tuple[Tensor, Tensor]:
        """The two scalars of eq. (15) as they are applied: of the own feature and of the generated one."""
        if self.kind == "sum":
            return self.w1, self.w2
        both = torch.stack([self.w1, self.w2]).softmax(dim=0)
        return both[0], both[1]

    def forward(self, shared: Tensor, specific: Tensor, generated: Tensor, modality: Modality) -> Tensor:
        """F_sh, F_sp, F'_sp of images of `modality`, each (B, D), to F_fp (B, 2D), with slots (B, 3D)."""
        own, other = self.weights()
        if self.kind == "slots":
            pair = (own * specific, other * generated)
            fused = torch.cat(pair if modality is Modality.VISIBLE else pair[::-1], dim=1)
        else:
            fused = own * specific + other * generated
        if self.length is not None:
            fused = self.length * F.normalize(fused, dim=1)
        return torch.cat([shared, fused], dim=1)
