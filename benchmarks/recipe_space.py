"""What the recipe search may change, for each method; every value is an override of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from fmcnet.studies.rows import AGW, BASE, FULL, HC

Choice = str | tuple[str, ...]
"""One value of a setting: an override, or several that belong together."""


def of(key: str, *values: object) -> tuple[Choice, ...]:
    return tuple(f"{key}={str(value).lower()}" for value in values)


COMMON: dict[str, tuple[Choice, ...]] = {
    # P x K is 32 in each: images seen stay equal
    "batch": tuple((f"data.identities={p}", f"data.images={32 // p}") for p in (32, 16, 8)),
    "lr": of("training.lr", 0.002, 0.004, 0.006, 0.01),
    "backbone": of("training.backbone_lr_factor", 0.3, 0.6, 1.0),
    "decay": of("training.weight_decay", 0.0005, 0.005, 0.05),
    "smoothing": of("losses.label_smoothing", 0.0, 0.1),
    "erase": of("augment.erase", 0.0, 0.2, 0.5),
    "channel": of("augment.channel", "mix", "exchange"),
    "channel_p": of("augment.channel_probability", 0.5, 0.8, 1.0),
}
STAGES = {"stages": of("model.specific_stages", 1, 2, 3)}
UNIT = {"unit": of("model.unit_features", True, False)}
GAME: dict[str, tuple[Choice, ...]] = {
    "md": of("losses.md", 0.1, 0.3, 1.0),
    "mc": of("losses.mc", 0.0, 0.1, 0.3, 1.0),
    "gan": of("losses.gan", 0.03, 0.1, 0.3),
    "fc": of("losses.fc", 0.01, 0.05, 0.2),
    "ic": of("losses.ic", 0.25, 0.5, 1.0),
    "start": of("losses.start_fmc", 0.0, 0.2, 0.4),
    "ramp": of("losses.ramp", 0.0, 0.1, 0.3),
    "detach": of("losses.detach_targets", True, False),
    "descriptor": of("model.descriptor", "plain", "normalized"),
    "fusion": of("model.w2", 0.1, 0.25, 0.5),
    "generator": of("model.generator_norm", True, False),
    "dropout": of("model.generator_dropout", 0.0, 0.2, 0.5),
    "constant": of("model.generator_detach", True, False),
    "centers": of("losses.unit_centers", True, False),
}


@dataclass(frozen=True)
class Method:
    """What is searched: fixed settings, and choices by the setting's name."""

    fixed: tuple[str, ...]
    space: dict[str, tuple[Choice, ...]]


METHODS = {
    "base": Method(BASE, COMMON | STAGES | UNIT),
    "agw": Method(
        (*BASE, *AGW, "losses.wrt=1"),
        COMMON
        | {"wrt": of("losses.wrt", 0.3, 1.0, 3.0), "normalize": of("losses.triplet_normalize", True, False)},
    ),
    "hc": Method(
        (*BASE, *HC),
        COMMON
        | STAGES
        | UNIT
        | {"hc": of("losses.hc", 0.1, 0.5, 2.0), "margin": of("losses.hc_margin", 0.1, 0.3, 0.7)},
    ),
    "fmcnet": Method(FULL, COMMON | STAGES | UNIT | GAME),
    "fmcnet-plus": Method(
        (*FULL, "model.pooling=gem", "model.descriptor=normalized", "model.parts=3"),
        COMMON
        | STAGES
        | UNIT
        | GAME
        | {"pooling": of("model.pooling", "avg", "gem"), "parts": of("model.parts", 0, 2, 3, 6)},
    ),
}
