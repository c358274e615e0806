"""Builds a model from a configuration."""

from __future__ import annotations

from typing import Any, cast

import torch

from fmcnet.config import Config, ModelConfig
from fmcnet.errors import ConfigError
from fmcnet.models.backbones import Backbone, make_backbone
from fmcnet.models.compensation import Compensation, Discriminator, Generator
from fmcnet.models.decomposition import STEM_BLOCKS, Decomposition, IdentityClassifier, Stem, Tail
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.fusion import Fusion
from fmcnet.models.normalization import FeatureNorm, Standardization


def build_model(config: Config | ModelConfig, classes: int) -> FMCNet:
    """FMCNet or one of the variants of the paper's Table 2, randomly initialised.

    Both stems start from the same weights, and so do all tails. With ImageNet weights this follows from the paper.
    With random weights it is ours: it makes features of both modalities comparable from the first step.

    Args:
        config: settings; `model.variant` selects the parts, and a part has the same class in every variant. Where
            `pretrained` is set, `frozen_blocks` are frozen: load the weights next (`load_pretrained`).
        classes: number of training identities; 0 for a model without training.

    Returns:
        The model, in training mode on the CPU.

    Raises:
        ConfigError: for an unknown `arch`, or settings that do not fit it.
    """
    config = model_settings(config)
    backbone = make_backbone(config.arch, config.width, config.last_stride)
    # The order of construction fixes the random weights of a seed: keep it.
    decomposition = _decomposition(config, backbone, classes)
    shared = cast(Tail, decomposition.shared)
    dim = shared.dim
    frozen = _frozen_tail(config, backbone, shared) if config.frozen_stripes else None
    compensation = None
    if config.variant in ("fmc", "full"):
        compensation = Compensation(
            to_infrared=_generator(config, dim),
            to_visible=_generator(config, dim),
            discriminator_infrared=_discriminator(config, dim),
            discriminator_visible=_discriminator(config, dim),
            norm_specific=decomposition.norm_specific,
        )
    fusion = None
    if config.variant == "full":
        length = config.shared_length if config.fusion_normalize else None
        fusion = Fusion(_classifier(config, 2 * dim, classes), config.fusion == "softmax", length)
    standard = None
    if config.standardized:
        stripe_values = config.frozen_stripes * sum(shared.channels)
        feature_count = {"base": 1, "sfd": 1, "fmc": 3, "full": 2}[config.variant]
        standard = Standardization(stripe_values + feature_count * dim, stripe_values, config.feature_weight)
    return FMCNet(
        decomposition,
        compensation,
        fusion,
        mean=backbone.mean,
        std=backbone.std,
        after_neck=config.neck and config.normalization != "tail",
        normalized=config.descriptor != "plain",
        specific_weight=config.specific_weight,
        frozen=frozen,
        stripes=config.frozen_stripes,
        standard=standard,
    )


def model_settings(config: Config | ModelConfig) -> ModelConfig:
    """The settings of the model; ConfigError for what holds none."""
    if not isinstance(config, (Config, ModelConfig)):
        raise ConfigError(f"config is of type {type(config).__name__}: give what load_config returns")
    return config.model if isinstance(config, Config) else config


def last_stride_matters(config: ModelConfig) -> bool:
    """Whether `model.last_stride` changes the network: with few `tail_blocks` a tail ends before that block."""
    described = []
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        for stride in (1, 2):
            backbone = make_backbone(config.arch, config.width, stride)
            described.append(str(Tail(backbone, config.tail_blocks, config.dim, config.pooling, False)))
    return described[0] != described[1]


def _decomposition(config: ModelConfig, backbone: Backbone, classes: int) -> Decomposition:
    """SFD, with equal weights in both stems and in all tails."""
    by_modality, has_specific = config.normalization == "modality", config.variant != "base"
    frozen_blocks = config.frozen_blocks if config.pretrained else 0  # random weights are never frozen

    def stem() -> Stem:
        return Stem(backbone, config.specific_stages, frozen=frozen_blocks)

    def tail() -> Tail:
        return Tail(backbone, config.tail_blocks, config.dim, config.pooling, config.normalization == "tail")

    shared = tail()
    dim = shared.dim
    stem_visible = stem()
    stem_infrared = stem_visible if config.single_stream else stem()
    classify_shared = _classifier(config, dim, classes)
    specific: dict[str, Any] = {}
    if has_specific:
        specific = {
            "specific_visible": tail(),
            "specific_infrared": tail(),
            "classify_visible": _classifier(config, dim, classes),
            "classify_infrared": _classifier(config, dim, classes),
        }
        if by_modality:
            specific["norm_specific"] = FeatureNorm(dim, config.specific_length, config.specific_offset)
    stem_shared = None
    if config.specific_stages < STEM_BLOCKS:
        stem_shared = Stem(backbone, start=config.specific_stages)
    stem_infrared.load_state_dict(stem_visible.state_dict())
    for name in ("specific_visible", "specific_infrared") if has_specific else ():
        specific[name].load_state_dict(shared.state_dict())
    return Decomposition(
        stem_visible,
        stem_infrared,
        shared,
        classify_shared,
        stem_shared=stem_shared,
        norm_shared=FeatureNorm(dim, config.shared_length) if by_modality else None,
        **specific,
    )


def _classifier(config: ModelConfig, dim: int, classes: int) -> IdentityClassifier:
    return IdentityClassifier(dim, max(classes, 1), config.neck)


def _frozen_tail(config: ModelConfig, backbone: Backbone, shared: Tail) -> Tail:
    """A tail for stripes, with the weights of E_sh; the other parts get the same random weights without it."""
    with torch.random.fork_rng(devices=[]):
        frozen = Tail(backbone, config.tail_blocks).requires_grad_(False)
    state = frozen.state_dict()
    frozen.load_state_dict({key: value for key, value in shared.state_dict().items() if key in state})
    return frozen


def _generator(config: ModelConfig, dim: int) -> Generator:
    length = {"none": None, "tail": 1.0, "modality": config.specific_length}[config.normalization]
    input_scale = dim**0.5 / config.shared_length if config.normalization == "modality" else 1.0
    return Generator(dim, length, input_scale, config.generator_residual)


def _discriminator(config: ModelConfig, dim: int) -> Discriminator:
    if config.normalization != "modality" or not config.discriminator_bound:
        return Discriminator(dim)
    return Discriminator(dim, config.discriminator_bound / config.specific_length, unit_weight=True)
