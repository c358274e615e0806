"""How much to generate: the presets of the three layouts, and overrides of single numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from fmcnet.errors import ConfigError

LAYOUTS = ("sysu", "regdb", "llcm")
PRESET_NAMES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Preset:
    """The amounts of one benchmark.

    Attributes:
        train_ids: identities for training (RegDB: half of all, as its splits are halves).
        val_ids: identities of SYSU-MM01's validation list; 0 in the other layouts.
        test_ids: identities for testing.
        height: rows of an image in pixels.
        width: columns of an image in pixels.
        train_images: images per identity and camera in training; RegDB: per identity and modality.
        test_images: the same in testing, at most one more for some; unused by RegDB.
        real_counts: 1 to plan exactly the real dataset's numbers of images; the two numbers above are then unused.
    """

    train_ids: int
    val_ids: int
    test_ids: int
    height: int
    width: int
    train_images: int
    test_images: int
    real_counts: int = 0


_PRESETS: dict[tuple[str, str], Preset] = {
    ("sysu", "tiny"): Preset(12, 4, 8, 64, 32, 2, 2),
    ("sysu", "small"): Preset(700, 20, 200, 128, 64, 2, 2),
    ("sysu", "full"): Preset(296, 99, 96, 288, 144, 0, 0, 1),
    ("regdb", "tiny"): Preset(8, 0, 8, 64, 32, 3, 3),
    ("regdb", "small"): Preset(100, 0, 100, 128, 64, 10, 10),
    ("regdb", "full"): Preset(206, 0, 206, 128, 64, 10, 10),
    ("llcm", "tiny"): Preset(12, 0, 8, 64, 32, 1, 1),
    ("llcm", "small"): Preset(250, 0, 100, 128, 64, 2, 2),
    ("llcm", "full"): Preset(713, 0, 351, 288, 144, 0, 0, 1),
}

_REAL_IDS = {"sysu": (296, 99, 96), "llcm": (713, 0, 351)}


def resolve_preset(layout: str, name: str, overrides: dict[str, int] | None = None) -> Preset:
    """The preset of a layout with single numbers replaced.

    Args:
        layout: "sysu", "regdb" or "llcm".
        name: "tiny", "small" or "full".
        overrides: field name of `Preset` -> number.

    Raises:
        ConfigError: an unknown layout, preset or field, or a number out of range; all faults are listed.
    """
    faults = []
    if layout not in LAYOUTS:
        faults.append(f"layout '{layout}' is not one of {', '.join(LAYOUTS)}")
    if name not in PRESET_NAMES:
        faults.append(f"preset '{name}' is not one of {', '.join(PRESET_NAMES)}")
    known = [f.name for f in fields(Preset)]
    overrides = overrides or {}
    faults += [
        f"'{key}' is no number of a preset; known: {', '.join(known)}"
        for key in overrides
        if key not in known
    ]
    faults += [
        f"{key} must be a whole number, got {value!r}"
        for key, value in overrides.items()
        if key in known and (not isinstance(value, int) or isinstance(value, bool))
    ]
    if faults:
        raise ConfigError("; ".join(faults))
    chosen = replace(_PRESETS[layout, name], **overrides)
    faults = _check(layout, chosen)
    if faults:
        raise ConfigError("; ".join(faults))
    return chosen


def _check(layout: str, chosen: Preset) -> list[str]:
    faults = []
    limits = {"train_ids": (2, 4000), "test_ids": (2, 4000), "height": (32, 1024), "width": (16, 512)}
    if layout == "sysu":
        limits["val_ids"] = (1, 1000)
    if not chosen.real_counts:
        limits |= {"train_images": (1, 500), "test_images": (1, 500)}
    for key, (low, high) in limits.items():
        value = asdict(chosen)[key]
        if not low <= value <= high:
            faults.append(f"{key} = {value} must lie in {low}..{high}")
    if layout != "sysu" and chosen.val_ids:
        faults.append(f"{layout} has no validation identities: val_ids must be 0")
    if layout == "regdb" and chosen.train_ids != chosen.test_ids:
        faults.append("regdb's splits are halves: train_ids and test_ids must be equal")
    ids = (chosen.train_ids, chosen.val_ids, chosen.test_ids)
    if chosen.real_counts and ids != _REAL_IDS.get(layout):
        faults.append(
            "the real dataset's numbers of images need its numbers of identities: set real_counts to 0 too"
        )
    return faults
