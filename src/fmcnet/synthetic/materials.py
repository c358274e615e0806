"""What a surface looks like in each spectrum: visible albedo, near-infrared reflectance, temperature.

The three are correlated, not equal. Most dyes are transparent in the near infrared, so cloth is bright
there whatever its colour; some dyes and pigments (carbon black) stay dark. A pattern has its own contrast in
each spectrum and may vanish in one. Temperature follows thickness and fit, never colour. All numbers are chosen
to be plausible, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PATTERNS = ("plain", "hstripes", "vstripes", "checks", "print", "dots", "block")
"""Garment textures; "print" is a motif on front and back, "block" a second colour on the lower part."""

_DYES: tuple[tuple[tuple[float, float, float], float, float], ...] = (
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

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """One material with up to two tones.

    Attributes:
        visible: two linear RGB albedos in [0, 1].
        nir: two near-infrared reflectances in [0, 1].
        temperature: surface temperature in degrees Celsius of a still person indoors.
        temperature_tone: difference of the second tone in kelvin (a thick print is cooler).
        pattern: one of `PATTERNS`.
        period: period of the pattern in metres, 0.04 to 0.2.
        duty: fraction of a period taken by the second tone, 0.25 to 0.6.
        phase: offset of the pattern in periods, 0 to 1.
    """

    visible: tuple[RGB, RGB]
    nir: tuple[float, float]
    temperature: float
    temperature_tone: float = 0.0
    pattern: str = "plain"
    period: float = 0.1
    duty: float = 0.5
    phase: float = 0.0

    @staticmethod
    def plain(rgb: RGB, nir: float, temperature: float) -> Material:
        """A material of one tone."""
        return Material((rgb, rgb), (nir, nir), temperature)


def luminance(rgb: RGB) -> float:
    """Luminance in [0, 1] of a linear RGB albedo (Rec. 709 weights)."""
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def weighted_index(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """A random index, as likely as its weight."""
    edges = np.cumsum(weights) / sum(weights)
    return min(int(np.searchsorted(edges, rng.random(), side="right")), len(weights) - 1)


def _dye(rng: np.random.Generator) -> tuple[RGB, float]:
    """A dye's albedo, varied a little, and its near-infrared reflectance."""
    rgb, nir, _ = _DYES[weighted_index(rng, [w for _, _, w in _DYES])]
    gain = float(np.exp(rng.normal(0.0, 0.18)))
    r, g, b = (float(np.clip(c * gain * np.exp(rng.normal(0.0, 0.10)), 0.02, 0.92)) for c in rgb)
    return (r, g, b), nir


def _nir(rng: np.random.Generator, rgb: RGB, dye: float, fibre: float) -> float:
    """Near-infrared reflectance: the dye's, pulled by the lightness, shifted by the fibre, with some spread."""
    pulled = 0.5 * dye + 0.5 * (0.02 + 1.05 * float(np.sqrt(luminance(rgb))))
    return float(np.clip(pulled + fibre + rng.normal(0.0, 0.03), 0.05, 0.95))


def make_garment(
    rng: np.random.Generator, *, warm: float, plain: float = 0.36, offset: float = 0.0
) -> Material:
    """A garment of a random dye, fabric and pattern.

    Args:
        rng: source of the draws.
        warm: insulation in kelvin; the outside of a thick garment is cooler by about as much.
        plain: probability of no pattern in visible light.
        offset: shift of the temperature in kelvin (a bag hangs off the body and is cooler).
    """
    (first, first_nir), (second, second_nir) = _dye(rng), _dye(rng)
    for _ in range(4):
        if abs(luminance(first) - luminance(second)) > 0.12:
            break
        second, second_nir = _dye(rng)
    fibre, _, wool = _FABRICS[weighted_index(rng, [w for _, w, _ in _FABRICS])]
    nir_first, nir_second = _nir(rng, first, first_nir, fibre), _nir(rng, second, second_nir, fibre)
    if rng.random() < 0.22:  # dyed alike for the near infrared: the pattern vanishes there
        nir_second = float(np.clip(nir_first + rng.normal(0.0, 0.02), 0.05, 0.95))
    pattern = PATTERNS[0]
    if rng.random() >= plain:
        pattern = PATTERNS[1 + weighted_index(rng, [0.26, 0.16, 0.18, 0.18, 0.10, 0.12])]
        if rng.random() < 0.08:  # tone in tone: visible only in the near infrared
            second = tuple_scale(first, 1.06)
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


def tuple_scale(rgb: RGB, gain: float) -> RGB:
    """A colour times a gain, kept in [0, 1]."""
    return (min(rgb[0] * gain, 1.0), min(rgb[1] * gain, 1.0), min(rgb[2] * gain, 1.0))


def skin_material(rng: np.random.Generator) -> Material:
    """Skin: visible tone from fair to dark, near-infrared reflectance high for all, 32.5 to 35 degrees."""
    depth = rng.beta(1.6, 2.2)
    fair, dark = np.array([0.62, 0.40, 0.30]), np.array([0.13, 0.07, 0.045])
    r, g, b = (float(c) for c in fair + (dark - fair) * depth)
    nir = 0.66 - 0.20 * depth + rng.normal(0.0, 0.03)
    return Material.plain((r, g, b), nir, 33.8 + float(np.clip(rng.normal(0.0, 0.4), -1.2, 1.2)))


def dark_of(skin: Material) -> Material:
    """Eyes and mouth: darker skin."""
    rgb = tuple_scale(skin.visible[0], 0.3)
    return Material.plain(rgb, 0.5 * skin.nir[0], skin.temperature - 0.2)


def hair_material(rng: np.random.Generator) -> Material:
    """Hair from black to blond or grey; melanin lets near-infrared light through, so it is brighter there."""
    tones: tuple[tuple[RGB, float], ...] = (
        ((0.02, 0.018, 0.016), 0.16),
        ((0.07, 0.04, 0.025), 0.28),
        ((0.17, 0.09, 0.045), 0.38),
        ((0.46, 0.32, 0.15), 0.56),
        ((0.36, 0.35, 0.34), 0.50),
    )
    rgb, nir = tones[weighted_index(rng, [0.38, 0.26, 0.14, 0.12, 0.10])]
    return Material.plain(
        rgb, float(np.clip(nir + rng.normal(0.0, 0.05), 0.06, 0.8)), 28.5 + rng.normal(0.0, 0.6)
    )


def make_leather(rng: np.random.Generator) -> Material:
    """Shoes: dark, brown or light, two tones (upper and sole)."""
    garment = make_garment(rng, warm=2.6, plain=1.0)
    sole = (0.75, 0.75, 0.73) if rng.random() < 0.4 else (0.05, 0.05, 0.05)
    return replace(
        garment, visible=(garment.visible[0], sole), nir=(garment.nir[0], 0.6 if sole[0] > 0.5 else 0.12)
    )
