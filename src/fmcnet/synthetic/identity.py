"""A generated person: body, hair, clothes and bag, drawn once from (seed, pid).

Pose, camera and light change from image to image and are drawn elsewhere. The looks in the three spectra are
correlated, not equal: most dyes are transparent in the near infrared, so cloth is bright there whatever its colour,
and some dyes and pigments (carbon black) stay dark. A pattern has its own contrast in each spectrum and may vanish in
one. Temperature follows thickness and fit, never colour. All numbers are chosen to be plausible, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

_PATTERNS = ("hstripes", "vstripes", "checks", "print", "dots", "block")
"""Garment textures; "print" is a motif on front and back, "block" a second colour on the lower part."""

RGB = tuple[float, float, float]

_DYES: tuple[tuple[RGB, float, float], ...] = (
    ((0.030, 0.030, 0.035), 0.52, 0.15),  # organic black: transparent in the near infrared
    ((0.15, 0.15, 0.16), 0.14, 0.10),  # carbon grey: dark in both
    ((0.40, 0.40, 0.41), 0.36, 0.08),
    ((0.78, 0.77, 0.74), 0.82, 0.13),
    ((0.04, 0.06, 0.18), 0.26, 0.10),
    ((0.10, 0.22, 0.50), 0.58, 0.10),
    ((0.32, 0.52, 0.72), 0.72, 0.05),
    ((0.50, 0.05, 0.06), 0.84, 0.09),
    ((0.66, 0.30, 0.36), 0.66, 0.04),
    ((0.07, 0.22, 0.10), 0.40, 0.06),
    ((0.34, 0.36, 0.16), 0.28, 0.03),
    ((0.25, 0.14, 0.07), 0.47, 0.05),
    ((0.60, 0.48, 0.32), 0.55, 0.06),
    ((0.72, 0.55, 0.08), 0.76, 0.04),
    ((0.66, 0.27, 0.05), 0.88, 0.03),
    ((0.24, 0.09, 0.32), 0.20, 0.05),
)
"""(linear RGB albedo, near-infrared reflectance, weight) of the dyes garments are drawn from: a network can learn
the second from the first, a histogram of grey levels cannot."""

_FABRICS: tuple[tuple[float, float, float], ...] = (
    (0.00, 0.45, 0.0),
    (0.07, 0.24, 0.4),
    (-0.07, 0.24, 1.2),
    (-0.40, 0.07, 0.3),
)
"""(change of the near-infrared reflectance, weight, warmth in K of insulation): cotton, synthetic, wool or denim,
cloth with a carbon pigment."""


@dataclass(frozen=True)
class Material:
    """A material with one or two tones."""

    visible: tuple[RGB, RGB]  # two linear RGB albedos in [0, 1]
    nir: tuple[float, float]  # two near-infrared reflectances in [0, 1]
    temperature: float  # surface temperature in degrees Celsius of a still person indoors
    temperature_tone: float = 0.0  # difference of the second tone in kelvin (a thick print is cooler)
    pattern: str = "plain"  # "plain" or one of `_PATTERNS`
    period: float = 0.1  # period of the pattern in metres, 0.04 to 0.2
    duty: float = 0.5  # fraction of a period taken by the second tone, 0.25 to 0.6
    phase: float = 0.0  # offset of the pattern in periods, 0 to 1

    @staticmethod
    def plain(rgb: RGB, nir: float, temperature: float) -> Material:
        """A material of one tone."""
        return Material((rgb, rgb), (nir, nir), temperature)


def luminance(rgb: RGB) -> float:
    """Luminance in [0, 1] of a linear RGB albedo (Rec. 709 weights)."""
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def _weighted_index(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """A random index, with probabilities proportional to the weights."""
    edges = np.cumsum(weights) / sum(weights)
    return min(int(np.searchsorted(edges, rng.random(), side="right")), len(weights) - 1)


def _draw_name(rng: np.random.Generator, names: Sequence[str], weights: Sequence[float]) -> str:
    return names[_weighted_index(rng, weights)]


def _draw_dye(rng: np.random.Generator) -> tuple[RGB, float]:
    """A random dye: albedo, slightly varied, and near-infrared reflectance."""
    rgb, nir, _ = _DYES[_weighted_index(rng, [w for _, _, w in _DYES])]
    gain = float(np.exp(rng.normal(0.0, 0.18)))
    r, g, b = (float(np.clip(c * gain * np.exp(rng.normal(0.0, 0.10)), 0.02, 0.92)) for c in rgb)
    return (r, g, b), nir


def _nir_reflectance(rng: np.random.Generator, rgb: RGB, dye: float, fibre: float) -> float:
    """Near-infrared reflectance: mean of dye and lightness, shifted by the fibre, with noise."""
    base = 0.5 * dye + 0.5 * (0.02 + 1.05 * float(np.sqrt(luminance(rgb))))
    return float(np.clip(base + fibre + rng.normal(0.0, 0.03), 0.05, 0.95))


def _draw_garment(
    rng: np.random.Generator, *, warm: float, plain: float = 0.36, offset: float = 0.0
) -> Material:
    """A garment of a random dye, fabric and pattern.

    `warm` is its insulation in kelvin, `plain` the probability of no pattern in visible light, `offset` a shift of
    the temperature (a bag hangs off the body and is cooler).
    """
    (first, first_nir), (second, second_nir) = _draw_dye(rng), _draw_dye(rng)
    for _ in range(4):
        if abs(luminance(first) - luminance(second)) > 0.12:
            break
        second, second_nir = _draw_dye(rng)
    fibre, _, wool = _FABRICS[_weighted_index(rng, [w for _, w, _ in _FABRICS])]
    nir_first = _nir_reflectance(rng, first, first_nir, fibre)
    nir_second = _nir_reflectance(rng, second, second_nir, fibre)
    if rng.random() < 0.22:  # dyed alike for the near infrared: the pattern vanishes there
        nir_second = float(np.clip(nir_first + rng.normal(0.0, 0.02), 0.05, 0.95))
    pattern = "plain"
    if rng.random() >= plain:
        pattern = _draw_name(rng, _PATTERNS, (0.26, 0.16, 0.18, 0.18, 0.10, 0.12))
        if rng.random() < 0.08:  # tone in tone: visible only in the near infrared
            second = _scaled(first, 1.06)
    return Material(
        visible=(first, second),
        nir=(nir_first, nir_second),
        temperature=29.4 - 1.2 * warm - 0.8 * wool + rng.normal(0.0, 1.4) + offset,
        temperature_tone=-rng.uniform(0.3, 1.6) if pattern in ("print", "block") else 0.0,
        pattern=pattern,
        period=float(np.exp(rng.uniform(np.log(0.075), np.log(0.26)))),
        duty=rng.uniform(0.28, 0.60),
        phase=rng.random(),
    )


def _scaled(rgb: RGB, gain: float) -> RGB:
    return (min(rgb[0] * gain, 1.0), min(rgb[1] * gain, 1.0), min(rgb[2] * gain, 1.0))


def _draw_skin(rng: np.random.Generator) -> Material:
    """Skin: visible tone from fair to dark, near-infrared reflectance high for all, 32.5 to 35 degrees."""
    depth = rng.beta(1.6, 2.2)
    fair, dark = np.array([0.62, 0.40, 0.30]), np.array([0.13, 0.07, 0.045])
    r, g, b = (float(c) for c in fair + (dark - fair) * depth)
    nir = 0.66 - 0.20 * depth + rng.normal(0.0, 0.03)
    return Material.plain((r, g, b), nir, 33.8 + float(np.clip(rng.normal(0.0, 0.4), -1.2, 1.2)))


def _draw_hair(rng: np.random.Generator) -> Material:
    """Hair from black to blond or grey; melanin lets near-infrared light through, so it is brighter there."""
    tones: tuple[tuple[RGB, float], ...] = (
        ((0.02, 0.018, 0.016), 0.16),
        ((0.07, 0.04, 0.025), 0.28),
        ((0.17, 0.09, 0.045), 0.38),
        ((0.46, 0.32, 0.15), 0.56),
        ((0.36, 0.35, 0.34), 0.50),
    )
    rgb, nir = tones[_weighted_index(rng, [0.38, 0.26, 0.14, 0.12, 0.10])]
    nir = float(np.clip(nir + rng.normal(0.0, 0.05), 0.06, 0.8))
    return Material.plain(rgb, nir, 28.5 + rng.normal(0.0, 0.6))


def _draw_shoes(rng: np.random.Generator) -> Material:
    """Shoes: dark, brown or light, two tones (upper and sole)."""
    upper = _draw_garment(rng, warm=2.6, plain=1.0)
    sole, sole_nir = ((0.75, 0.75, 0.73), 0.6) if rng.random() < 0.4 else ((0.05, 0.05, 0.05), 0.12)
    return replace(upper, visible=(upper.visible[0], sole), nir=(upper.nir[0], sole_nir))


SKIN, HAIR, UPPER, LOWER, SHOE, BAG, HAT, DARK, INNER = range(9)
"""Material slots of an identity, in the order of `Identity.materials`."""


@dataclass(frozen=True)
class Body:
    """Proportions of a body. Lengths in metres unless said otherwise."""

    height: float  # stature, 1.50 to 1.98
    leg: float  # hip height as a fraction of stature, 0.48 to 0.55
    arm: float  # arm length relative to the average, 0.92 to 1.08
    shoulder: float  # half shoulder width, about 0.16 to 0.24
    girth: float  # thickness of torso and limbs relative to the average, 0.8 to 1.4
    hip: float  # half hip width, about 0.13 to 0.20
    head: float  # head size relative to the average, 0.92 to 1.08
    stride: float  # amplitude of the thigh in radians when walking, 0.3 to 0.6
    stoop: float  # forward lean of the upper body in radians, 0 to 0.16


@dataclass(frozen=True)
class Identity:
    """One generated person."""

    pid: int  # the identity's number
    body: Body  # proportions
    hair: str  # "bald", "short", "bob" or "long"
    hat: str  # "none", "beanie", "cap" or "brim"
    sleeves: str  # "long", "short" or "none"
    bottom: str  # "trousers", "shorts", "skirt" or "dress" (a dress continues the upper garment)
    hem: float  # how far the upper garment reaches below the waist as a fraction of stature (0.02 to 0.30)
    bottom_length: float  # where shorts or skirt end, as a fraction of stature above the floor
    flare: float  # widening of skirt or coat at its hem, 1.0 to 1.6
    loose: float  # slack of trouser legs, 1.0 to 1.45
    open_front: float  # half width in radians of the open jacket's strip of inner shirt; 0 when closed
    boots: float  # height of the shoe shaft as a fraction of the shin, 0 to 0.75
    bag: str  # "none", "backpack", "shoulder" or "tote"
    bag_size: float  # relative size, 0.8 to 1.25
    bag_side: float  # +1 or -1, the side of a shoulder bag or tote
    materials: tuple[Material, ...]  # one material per slot (`SKIN`, `HAIR`, ...)
    activity: float  # warmth of the person in kelvin added to all clothes in thermal images, -1 to 1.5


def _clipped_normal(rng: np.random.Generator) -> float:
    """A standard normal number, clipped to -2..2."""
    return float(np.clip(rng.normal(), -2.0, 2.0))


def _draw_body(rng: np.random.Generator) -> Body:
    tall = _clipped_normal(rng)
    height = 1.72 + 0.095 * tall
    girth = float(np.clip(rng.normal(1.04, 0.14), 0.80, 1.40))
    build = _clipped_normal(rng)
    return Body(
        height=height,
        leg=0.515 + 0.014 * _clipped_normal(rng),
        arm=1.0 + 0.03 * _clipped_normal(rng),
        shoulder=height * (0.112 + 0.008 * build) * (0.8 + 0.2 * girth),
        girth=girth,
        hip=height * (0.088 - 0.004 * build) * (0.55 + 0.45 * girth),
        head=1.0 + 0.035 * _clipped_normal(rng),
        stride=rng.uniform(0.30, 0.60),
        stoop=rng.uniform(0.0, 0.16),
    )


@lru_cache(maxsize=512)
def draw_identity(seed: int, pid: int) -> Identity:
    """The identity `pid` of the world `seed`, two non-negative integers: the same in every layout."""
    rng = np.random.default_rng([7001, seed, pid])
    body = _draw_body(rng)
    hair = _draw_name(rng, ("bald", "short", "bob", "long"), (0.07, 0.43, 0.22, 0.28))
    hat = _draw_name(rng, ("none", "beanie", "cap", "brim"), (0.70, 0.11, 0.12, 0.07))
    sleeves = _draw_name(rng, ("long", "short", "none"), (0.52, 0.36, 0.12))
    bottom = _draw_name(rng, ("trousers", "shorts", "skirt", "dress"), (0.52, 0.20, 0.15, 0.13))
    coat = sleeves == "long" and bottom in ("trousers", "skirt") and rng.random() < 0.25
    hem = rng.uniform(0.17, 0.30) if coat else rng.uniform(0.04, 0.10)
    if bottom == "shorts":
        bottom_length = rng.uniform(0.27, 0.39)
    elif bottom == "trousers":
        bottom_length = 0.03 if rng.random() < 0.8 else rng.uniform(0.10, 0.16)  # at the ankle, or cropped
    else:
        bottom_length = rng.uniform(0.14, 0.38)
    jacket = sleeves == "long" and bottom != "dress" and rng.random() < 0.25
    upper = _draw_garment(rng, warm=2.0 if coat else (0.9 if sleeves == "long" else 0.1), plain=0.42)
    lower = _draw_garment(rng, warm=0.6, plain=0.66)
    skin = _draw_skin(rng)
    materials = (
        skin,
        _draw_hair(rng),
        upper,
        upper if bottom == "dress" else lower,
        _draw_shoes(rng),
        _draw_garment(rng, warm=3.0, plain=0.84, offset=-3.5),
        _draw_garment(rng, warm=1.2, plain=0.75),
        Material.plain(_scaled(skin.visible[0], 0.3), 0.5 * skin.nir[0], skin.temperature - 0.2),
        _draw_garment(rng, warm=0.0, plain=0.70),
    )
    return Identity(
        pid=pid,
        body=body,
        hair=hair,
        hat=hat,
        sleeves=sleeves,
        bottom=bottom,
        hem=hem,
        bottom_length=bottom_length,
        flare=rng.uniform(1.05, 1.6),
        loose=rng.uniform(1.0, 1.45),
        open_front=rng.uniform(0.22, 0.60) if jacket else 0.0,
        boots=rng.uniform(0.25, 0.75) if rng.random() < 0.22 else 0.0,
        bag=_draw_name(rng, ("none", "backpack", "shoulder", "tote"), (0.40, 0.26, 0.20, 0.14)),
        bag_size=rng.uniform(0.8, 1.25),
        bag_side=1.0 if rng.random() < 0.5 else -1.0,
        materials=materials,
        activity=rng.uniform(-1.0, 1.5),
    )
