"""The one place where a configuration becomes a model."""

from __future__ import annotations

import torch

from fmcnet.config import ModelConfig
from fmcnet.models.backbone import STEM_BLOCKS, Stem, Tail, make_backbone
from fmcnet.models.compensation import Compensation, Discriminator, Generator
from fmcnet.models.decomposition import Decomposition
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.fusion import Fusion
from fmcnet.models.layers import FeatureNorm, IdentityClassifier, Standardization


def build_model(config: ModelConfig, classes: int) -> FMCNet:
    """FMCNet or one of the variants of the paper's Table 2, randomly initialised.

    Both stems start from the same weights, and so do all tails. With ImageNet weights this follows from the paper.
    With random weights it is ours: features of both modalities are comparable from the first step.

    Args:
        config: `variant` selects the parts; a part has the same class in every variant.
        classes: number of training identities; 0 for a model that nothing was trained on.
    """

    backbone = make_backbone(config.arch, config.width, config.last_stride)
    by_modality = config.normalization == "modality"

    def tail() -> Tail:
        return Tail(backbone, config.tail_blocks, config.dim, config.pooling, config.normalization == "tail")

    def stem_of_its_own() -> Stem:
        frozen = config.frozen_blocks if config.pretrained else 0  # random weights are not worth keeping
        return Stem(backbone, config.specific_stages, frozen=frozen)

    shared = tail()
    dim = shared.dim
    has_specific = config.variant != "base"

    def head(length: int = dim) -> IdentityClassifier:
        return IdentityClassifier(length, max(classes, 1), config.neck, config.dropout)

    def generator() -> Generator:
        length = {"none": None, "tail": 1.0, "modality": config.specific_length}[config.normalization]
        return Generator(
            dim,
            length,
            input_scale=dim**0.5 / config.shared_length if by_modality else 1.0,
            residual=config.generator_residual,
        )

    def discriminator() -> Discriminator:
        bound = config.discriminator_bound if by_modality else 0.0
        return Discriminator(dim, bound / config.specific_length if bound else 1.0, bound > 0)

    norm_specific = None
    if by_modality and has_specific:
        norm_specific = FeatureNorm(dim, config.specific_length, config.specific_offset)
    stem = stem_of_its_own()
    decomposition = Decomposition(
        stem,
        stem if config.single_stream else stem_of_its_own(),
        shared,
        head(),
        specific_visible=tail() if has_specific else None,
        specific_infrared=tail() if has_specific else None,
        classify_visible=head() if has_specific else None,
        classify_infrared=head() if has_specific else None,
        stem_shared=Stem(backbone, start=config.specific_stages)
        if config.specific_stages < STEM_BLOCKS
        else None,
        norm_shared=FeatureNorm(dim, config.shared_length) if by_modality else None,
        norm_specific=norm_specific,
    )
    decomposition.stem_infrared.load_state_dict(decomposition.stem_visible.state_dict())
    for specific in (decomposition.specific_visible, decomposition.specific_infrared):
        if specific is not None:
            specific.load_state_dict(shared.state_dict())
    frozen = None
    if config.frozen_stripes:
        with torch.random.fork_rng(devices=[]):  # the other parts start as they do without it
            frozen = Tail(backbone, config.tail_blocks).requires_grad_(False)
        own = frozen.state_dict()
        frozen.load_state_dict({key: value for key, value in shared.state_dict().items() if key in own})
    compensation = None
    if config.variant in ("fmc", "full"):
        compensation = Compensation(generator(), generator(), discriminator(), discriminator(), norm_specific)
    fusion = None
    if config.variant == "full":
        fused = 3 * dim if config.fusion == "slots" else 2 * dim
        length = config.shared_length if config.fusion_normalize else None
        fusion = Fusion(head(fused), config.w1, config.w2, config.fusion, length)
    standard = None
    if config.standardized:
        stripes = config.frozen_stripes * sum(shared.channels)
        standard = Standardization(_length(config, shared), stripes, config.feature_weight)
    return FMCNet(
        decomposition,
        compensation,
        fusion,
        mean=backbone.mean,
        std=backbone.std,
        after_neck=config.neck and config.normalization != "tail",
        normalized=config.descriptor != "plain",
        specific_weight=config.specific_weight,
        stripes=config.frozen_stripes or config.stripes,
        frozen=frozen,
        standard=standard,
    )


def _length(config: ModelConfig, shared: Tail) -> int:
    """E, values of the descriptor."""
    if config.stripes:
        return config.stripes * sum(shared.channels)
    stripes = config.frozen_stripes * sum(shared.channels)
    features = {"base": 1, "sfd": 1, "fmc": 3, "full": 3 if config.fusion == "slots" else 2}[config.variant]
    return stripes + features * shared.dim
