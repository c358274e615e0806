"""The one place where a configuration becomes a model."""

from __future__ import annotations

from fmcnet.config import ModelConfig
from fmcnet.model.backbone import Stem, Tail
from fmcnet.model.fmcnet import FMCNet
from fmcnet.model.modules import (
    Compensation,
    Decomposition,
    Discriminator,
    Fusion,
    Generator,
    IdentityClassifier,
)


def build_model(config: ModelConfig, classes: int) -> FMCNet:
    """FMCNet or one of the variants of the paper's Table 2, randomly initialised.

    Args:
        config: `config.variant` says which parts are made; the parts are the same classes in every variant.
        classes: number of training identities.
    """

    def tail() -> Tail:
        return Tail(config.arch, config.width, config.last_stride, config.pooling, config.unit_features)

    shared = tail()
    dim = shared.dim
    has_specific = config.variant != "base"

    def head(length: int = dim) -> IdentityClassifier:
        return IdentityClassifier(length, classes, config.neck)

    def generator() -> Generator:
        return Generator(
            dim, config.generator_hidden, config.generator_norm, config.generator_relu, config.unit_features
        )

    decomposition = Decomposition(
        Stem(config.arch, config.width),
        Stem(config.arch, config.width),
        shared,
        head(),
        specific_visible=tail() if has_specific else None,
        specific_infrared=tail() if has_specific else None,
        classify_visible=head() if has_specific else None,
        classify_infrared=head() if has_specific else None,
    )
    compensation = None
    if config.variant in ("fmc", "full"):
        compensation = Compensation(generator(), generator(), Discriminator(dim), Discriminator(dim))
    fusion = Fusion(head(2 * dim), config.w1, config.w2) if config.variant == "full" else None
    return FMCNet(decomposition, compensation, fusion)
