"""The one place where a configuration becomes a model."""

from __future__ import annotations

from fmcnet.config import ModelConfig
from fmcnet.model.backbone import Stem, Tail, Trunk
from fmcnet.model.fmcnet import FMCNet
from fmcnet.model.modules import (
    Compensation,
    Decomposition,
    Discriminator,
    Fusion,
    Generator,
    IdentityClassifier,
    PartClassifiers,
)


def build_model(config: ModelConfig, classes: int) -> FMCNet:
    """FMCNet or one of the variants of the paper's Table 2, randomly initialised.

    Both stems start from the same weights, and so do all tails: with ImageNet weights they do, in the paper, and
    it is what lets two separate stems speak one language from the first step. Keeping it for a random start is
    ours.

    Args:
        config: `config.variant` says which parts are made; the parts are the same classes in every variant.
        classes: number of training identities.
    """

    def tail(parts: int = 0) -> Tail:
        unit = config.unit_features
        return Tail(config.arch, config.width, config.last_stride, config.pooling, unit, parts)

    def stem_of_its_own() -> Stem:
        return Stem(config.arch, config.width, config.specific_stages)

    shared = tail(config.parts)
    dim = shared.dim
    has_specific = config.variant != "base"

    def head(length: int = dim) -> IdentityClassifier:
        return IdentityClassifier(length, classes, config.neck, config.dropout)

    def generator() -> Generator:
        return Generator(
            dim,
            config.generator_hidden,
            config.generator_norm,
            config.unit_features,
            config.generator_dropout,
            config.generator_detach,
        )

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
        stem_shared=Trunk(config.arch, config.width, config.specific_stages)
        if config.specific_stages < 3
        else None,
        specific_detach=config.specific_detach,
    )
    decomposition.stem_infrared.load_state_dict(decomposition.stem_visible.state_dict())
    for specific in (decomposition.specific_visible, decomposition.specific_infrared):
        if specific is not None:
            specific.load_state_dict(shared.state_dict())
    compensation = None
    if config.variant in ("fmc", "full"):
        compensation = Compensation(generator(), generator(), Discriminator(dim), Discriminator(dim))
    fusion = Fusion(head(2 * dim), config.w1, config.w2) if config.variant == "full" else None
    return FMCNet(
        decomposition,
        compensation,
        fusion,
        after_neck=config.neck and not config.unit_features,
        normalized=config.descriptor != "plain",
        parts=PartClassifiers([head() for _ in range(config.parts)]) if config.parts else None,
    )
