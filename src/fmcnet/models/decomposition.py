"""SFD, section 3.1 of the paper: shared and specific features, eq. (1), (2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmcnet.models.layers import FeatureNorm, IdentityClassifier
from fmcnet.types import Modality


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
        norm_shared: normalises F_sh behind its tail (ours); None: nothing does.
        norm_specific: normalises F_sp likewise.

    Attributes:
        recompute: whether the backward pass computes the activations of stems and tails anew, to save memory.
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
        """E_sh of images of one modality: F_m (B, C, h, w) to F_sh,m (B, D)."""
        return self._normalized(self._run(self.shared, stem_feature), modality)

    def specific(self, stem_feature: Tensor, modality: Modality) -> Tensor:
        """E_sp^m of images of one modality: F_m (B, C, h, w) to F_sp,m (B, D)."""
        tail = self.specific_visible if modality is Modality.VISIBLE else self.specific_infrared
        assert tail is not None, "this variant has no specific branch"
        feature = self._run(tail, stem_feature)
        return feature if self.norm_specific is None else self.norm_specific(feature, modality)

    def _normalized(self, shared: Tensor, modality: Modality) -> Tensor:
        return shared if self.norm_shared is None else self.norm_shared(shared, modality)

    def classifier(self, modality: Modality) -> IdentityClassifier:
        """P_sp^m."""
        head = self.classify_visible if modality is Modality.VISIBLE else self.classify_infrared
        assert head is not None, "this variant has no specific branch"
        return head

    def forward(
        self, visible: Tensor, infrared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Decompose both halves of a batch; E_sh sees them in one pass.

        Args:
            visible: (B_V, 3, H, W).
            infrared: (B_I, 3, H, W).

        Returns:
            F_sh,V (B_V, D), F_sh,I (B_I, D), F_sp,V (B_V, D) or None, F_sp,I (B_I, D) or None.
        """
        f_v, f_i = self._run(self.stem_visible, visible), self._run(self.stem_infrared, infrared)
        if self.stem_shared is not None:
            f_v, f_i = self._run(self.stem_shared, torch.cat([f_v, f_i])).split([len(f_v), len(f_i)])
        shared = self._run(self.shared, torch.cat([f_v, f_i]))
        sh_v, sh_i = shared.split([len(f_v), len(f_i)])
        sh_v, sh_i = self._normalized(sh_v, Modality.VISIBLE), self._normalized(sh_i, Modality.INFRARED)
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
    """Running statistics do not move again while the backward pass computes activations anew."""
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
