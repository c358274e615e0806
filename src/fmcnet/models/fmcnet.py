"""FMCNet: the three modules as one model, and its variants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcnet.config import Config, ModelConfig, check_count
from fmcnet.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Triple
from fmcnet.models.compensation import Compensation
from fmcnet.models.decomposition import (
    DecomposedFeatures,
    Decomposition,
    IdentityClassifier,
    Tail,
    in_one_pass,
)
from fmcnet.models.fusion import Fusion
from fmcnet.models.normalization import Standardization
from fmcnet.types import Modality, parse_modality

VARIANTS = ("base", "sfd", "fmc", "full")
"""Rows of the paper's Table 2: Base; + SFD (shared feature only); + FMC by plain concatenation; full."""

OVERSHOOT = 0.5
"""Float images may leave 0..1 by this much, as after bicubic resizing. Other ranges exceed that."""


class ModalityOutput(NamedTuple):
    """Every feature and score of one half of the batch; None for those that a variant lacks."""

    shared: Tensor  # F_sh,m (B, D)
    shared_scores: Tensor  # S_sh,m (B, C)
    specific: Tensor | None  # F_sp,m (B, D)
    specific_scores: Tensor | None  # S_sp,m (B, C)
    generated: Tensor | None  # F'_sp of the OTHER modality (B, D)
    generated_scores: Tensor | None  # P_sp^other of `generated` (B, C)
    fused: Tensor | None  # F_fp,m (B, 2D)
    fused_scores: Tensor | None  # S_fp,m (B, C)
    embedding: Tensor  # the descriptor used for search, (B, E)

    def float(self) -> ModalityOutput:
        """Everything in float32."""
        return ModalityOutput._make(part if part is None else part.float() for part in self)


class FMCNetOutput(NamedTuple):
    """The two aligned halves of a batch, in train and eval alike."""

    visible: ModalityOutput
    infrared: ModalityOutput

    def of(self, modality: Modality) -> ModalityOutput:
        """The half of one modality."""
        return self.visible if modality is Modality.VISIBLE else self.infrared

    def float(self) -> FMCNetOutput:
        """Everything in float32, for the losses on centres, distances and the adversarial terms."""
        return FMCNetOutput(self.visible.float(), self.infrared.float())


class FMCNet(nn.Module):
    """FMCNet (CVPR 2022): decomposition, compensation and fusion.

    The variant follows from the parts given: `Base` has no specific branch in `decomposition`; `sfd` has
    one but no `compensation`; `fmc` has no `fusion` and concatenates; `full` has all.

    Args:
        decomposition: SFD.
        compensation: FMC or None.
        fusion: SFF or None.
        mean: of each channel of images in 0..1; a buffer, so it travels with the weights.
        std: deviation of each channel, likewise.
        after_neck: take the descriptor after the classifiers' necks (ours), not before them.
        normalized: whether each D values of the descriptor (F_sh, F_fu) get unit length (ours).
        specific_weight: factor of the features after F_sh in the descriptor, F_sp and F'_sp or their fusion (ours).
        frozen: a tail with pretrained weights, whose stripes come first in the descriptor (ours).
        stripes: number of stripes of each of its maps.
        standard: standardises the descriptor (ours); None: no standardisation.
    """

    mean: Tensor
    std: Tensor
    _halves_checked = 0  # in training: only the two of the first batch, since each check waits for the GPU

    def __init__(
        self,
        decomposition: Decomposition,
        compensation: Compensation | None = None,
        fusion: Fusion | None = None,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        after_neck: bool = False,
        normalized: bool = False,
        specific_weight: float = 1.0,
        frozen: Tail | None = None,
        stripes: int = 0,
        standard: Standardization | None = None,
    ) -> None:
        super().__init__()
        self.decomposition, self.compensation, self.fusion = decomposition, compensation, fusion
        self.after_neck, self.normalized, self.specific_weight = after_neck, normalized, specific_weight
        self.frozen, self.stripes, self.standard = frozen, stripes, standard
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def variant(self) -> str:
        """Which row of Table 2 this is: one of `VARIANTS`."""
        if self.fusion is not None:
            return "full"
        if self.compensation is not None:
            return "fmc"
        return "sfd" if self.decomposition.has_specific else "base"

    def forward(self, visible: Tensor, infrared: Tensor) -> FMCNetOutput:
        """Compute every feature and score of a batch of two halves.

        Args:
            visible: (B_V, 3, H, W), uint8 0..255 or float 0..1.
            infrared: (B_I, 3, H, W), likewise.

        Returns:
            Both halves. In training the embeddings lack frozen stripes and standardisation, which no loss needs.
        """
        sfd = self.decomposition
        v, i = sfd(self.preprocess(visible), self.preprocess(infrared))  # (1)
        shared_scores_v, shared_scores_i = in_one_pass(sfd.classify_shared, v.shared, i.shared)  # (2)

        from_infrared = from_visible = fused_v = fused_i = fused_scores_v = fused_scores_i = None
        if self.compensation is not None:  # (11)
            from_visible = self.compensation(v.shared, Modality.VISIBLE)  # F'_sp,I from F_sh,V
            from_infrared = self.compensation(i.shared, Modality.INFRARED)  # F'_sp,V from F_sh,I
        if self.fusion is not None:
            fused_v = self.fusion(v.shared, v.specific, from_visible)  # (15), (16)
            fused_i = self.fusion(i.shared, i.specific, from_infrared)
            fused_scores_v, fused_scores_i = in_one_pass(self.fusion.classify, fused_v, fused_i)  # (18)

        # P_sp^m scores the features of modality m: real ones (2) and generated ones (14).
        specific_scores_v, from_infrared_scores = self._specific_scores(
            Modality.VISIBLE, v.specific, from_infrared
        )
        specific_scores_i, from_visible_scores = self._specific_scores(
            Modality.INFRARED, i.specific, from_visible
        )

        embedding_v = self._descriptor(Modality.VISIBLE, v, from_visible, fused_v)
        embedding_i = self._descriptor(Modality.INFRARED, i, from_infrared, fused_i)
        if not self.training:
            embedding_v = self._standardized(Modality.VISIBLE, v.stem, embedding_v)
            embedding_i = self._standardized(Modality.INFRARED, i.stem, embedding_i)

        return FMCNetOutput(
            visible=ModalityOutput(
                shared=v.shared,
                shared_scores=shared_scores_v,
                specific=v.specific,
                specific_scores=specific_scores_v,
                generated=from_visible,  # for the infrared modality
                generated_scores=from_visible_scores,
                fused=fused_v,
                fused_scores=fused_scores_v,
                embedding=embedding_v,
            ),
            infrared=ModalityOutput(
                shared=i.shared,
                shared_scores=shared_scores_i,
                specific=i.specific,
                specific_scores=specific_scores_i,
                generated=from_infrared,
                generated_scores=from_infrared_scores,
                fused=fused_i,
                fused_scores=fused_scores_i,
                embedding=embedding_i,
            ),
        )

    def embed(self, images: Tensor, modality: Modality | str) -> Tensor:
        """The descriptor of images of ONE modality; skips the parts of the model that it does not need.

        Args:
            images: (B, 3, H, W), uint8 0..255 or float 0..1. Other sizes than those
                of the training (`config.data`) give other descriptors; `Encoder.encode` resizes.
            modality: of all images.

        Returns:
            (B, E): E = D for Base and + SFD, 3D for + FMC, 2D for the full model; more with `frozen`.
        """
        modality = parse_modality(modality)
        features, generated = self._features(images, modality, with_specific=self.compensation is not None)
        fused = None
        if self.fusion is not None:
            fused = self.fusion(features.shared, features.specific, generated)
        descriptor = self._descriptor(modality, features, generated, fused)
        return self._standardized(modality, features.stem, descriptor)

    def features(
        self, images: Tensor, modality: Modality | str
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The features that the descriptor of images of ONE modality is made of, for maps and studies.

        Args:
            images: (B, 3, H, W), uint8 0..255 or float 0..1.
            modality: of all images.

        Returns:
            F_sh (B, D); F_sp (B, D) and the generated specific feature of the other modality (B, D), or None.
        """
        features, generated = self._features(
            images, parse_modality(modality), with_specific=self.decomposition.has_specific
        )
        return features.shared, features.specific, generated

    def _features(
        self, images: Tensor, modality: Modality, *, with_specific: bool
    ) -> tuple[DecomposedFeatures, Tensor | None]:
        """Eq. (1) and (11) for images of one modality: their features and the generated specific one."""
        sfd = self.decomposition
        stem = sfd.stem(self.preprocess(images), modality)
        shared = sfd.share(stem, modality)
        specific = sfd.specific(stem, modality) if with_specific else None
        generated = None if self.compensation is None else self.compensation(shared, modality)
        return DecomposedFeatures(stem, shared, specific), generated

    def _specific_scores(
        self, modality: Modality, real: Tensor | None, generated: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """P_sp^m of real and generated features of one modality, in one pass, so that a neck sees both."""
        if real is None:
            return None, None
        classify = self.decomposition.classifier(modality)
        return (classify(real), None) if generated is None else in_one_pass(classify, real, generated)

    def _descriptor(
        self, modality: Modality, features: DecomposedFeatures, generated: Tensor | None, fused: Tensor | None
    ) -> Tensor:
        """F_fp or its parts, normalised and weighted by the settings (ours)."""
        sfd, dim = self.decomposition, features.shared.shape[1]
        if self.fusion is not None and fused is not None:
            descriptor = self._behind_neck(self.fusion.classify, fused)
        else:
            descriptor = self._behind_neck(sfd.classify_shared, features.shared)
            if features.specific is not None and generated is not None:
                # "FMC by simple concatenation" (Table 2). Ours: the visible part, real or generated, comes first, so
                # that positions mean the same for both modalities.
                real = self._behind_neck(sfd.classifier(modality), features.specific)
                fake = self._behind_neck(sfd.classifier(modality.other), generated)
                pair = (real, fake) if modality is Modality.VISIBLE else (fake, real)
                descriptor = torch.cat([descriptor, *pair], dim=1)
        if self.normalized:
            descriptor = F.normalize(descriptor.unflatten(1, (-1, dim)), dim=2).flatten(1)
        if self.specific_weight != 1:
            descriptor = torch.cat([descriptor[:, :dim], self.specific_weight * descriptor[:, dim:]], dim=1)
        return descriptor

    def _standardized(self, modality: Modality, stem: Tensor, descriptor: Tensor) -> Tensor:
        """The descriptor after the frozen stripes of F_m, standardised (ours); unchanged without these two parts."""
        if self.frozen is not None:
            descriptor = torch.cat([self.frozen.stripes(stem, self.stripes), descriptor], dim=1)
        return descriptor if self.standard is None else cast(Tensor, self.standard(descriptor, modality))

    def _behind_neck(self, classifier: IdentityClassifier, feature: Tensor) -> Tensor:
        """With `after_neck`, apply the neck by its running statistics: only the scores may update these."""
        neck = classifier.neck
        if self.after_neck and isinstance(neck, nn.modules.batchnorm._BatchNorm):
            return F.batch_norm(
                feature, neck.running_mean, neck.running_var, neck.weight, neck.bias, False, 0.0, neck.eps
            )
        return feature

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise images for the stems.

        Args:
            images: (B, 3, H, W), uint8 0..255 or float 0..1.

        Returns:
            (B, 3, H, W) float, by `mean` and `std` of each channel.

        Raises:
            ValueError: for another shape or type, and for float values that leave 0..1 by more than `OVERSHOOT`, or
                NaN; in training only the first batch is looked at. With `mean` 0 all values but NaN are taken.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images must be uint8 0..255 or float 0..1, got {images.dtype}")
        if not torch.compiler.is_compiling() and not (self.training and self._halves_checked == 2):
            _check_range(images, self.mean)
            if self.training:
                self._halves_checked += 1
        max_value = 255.0 if images.dtype == torch.uint8 else 1.0
        scale, shift = 1.0 / (max_value * self.std), -self.mean / self.std
        if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
            return torch.addcmul(shift, images.to(scale.dtype), scale)
        # channels_last: as rows (B, H, W * 3) in place, ten times as fast on a CPU as a loop over three channels.
        batch, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        rows = rows.to(scale.dtype, copy=True).mul_(scale.flatten().repeat(width))
        normalized = rows.add_(shift.flatten().repeat(width)).view(batch, height, width, channels)
        return normalized.permute(0, 3, 1, 2)

    def train(self, mode: bool = True) -> FMCNet:
        """Set the training mode; `frozen` stays in evaluation mode."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    @contextmanager
    def unstandardized(self) -> Iterator[None]:
        """Within the block, `embed` gives the descriptor before its standardisation."""
        standard, self.standard = self.standard, None
        try:
            yield
        finally:
            self.standard = standard

    @classmethod
    def from_config(
        cls, config: Config | ModelConfig, num_classes: int, *, pretrained: bool = False
    ) -> FMCNet:
        """Build a model for your own training loop.

        Args:
            config: settings, as `load_config("paper")` gives them.
            num_classes: number C of training identities, at least 1.
            pretrained: start from the weights that `model.pretrained` names, and freeze `model.frozen_blocks`. False:
                all weights are random, and none is frozen.

        Returns:
            The model, in training mode on the CPU.

        Raises:
            ConfigError: for an unknown `model.arch`, settings that do not fit it, or no identity.
            CheckpointError: when the pretrained weights are missing or do not fit.
        """
        from fmcnet.models.build import build_model, model_settings
        from fmcnet.models.pretrained import load_pretrained

        check_count(num_classes, "num_classes", "the training identities")
        settings = model_settings(config)
        if not pretrained:
            settings = settings.model_copy(update={"pretrained": None})
        model = build_model(settings, num_classes)
        if pretrained:
            load_pretrained(model, settings.pretrained, settings.arch)
        return model

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device = "cpu") -> FMCNet:
        """Load a trained model in evaluation mode; every weight must fit.

        Args:
            source: a run folder, or the name of a shipped model (`fmcnet.models.shipped.shipped_models`).
            device: where the weights go.

        Returns:
            The model, on that device.

        Raises:
            CheckpointError: when there is no such model, its files are damaged, or the weights do not fit.
            FmcnetError: for a device that this machine does not have.
        """
        from fmcnet.models.checkpoint import load_pretrained_model
        from fmcnet.models.shipped import find_model

        return load_pretrained_model(find_model(source), device)[0]


def _check_range(images: Tensor, mean: Tensor) -> None:
    """Refuse float images that leave 0..1 by more than `OVERSHOOT`, or hold NaN; waits for the device.

    A model of mean 0 takes images that are normalised already.
    """
    if not images.is_floating_point() or not images.numel():
        return
    try:
        low, high = torch.stack(images.detach().aminmax()).tolist()
        overshoot = OVERSHOOT if mean.any() else math.inf
    except RuntimeError:  # a meta or fake tensor, or one of vmap, has no values
        return
    if not (low >= -overshoot and high <= 1 + overshoot):
        raise ValueError(f"float images must be 0..1 and not normalised, got {low:.4g} to {high:.4g}")
