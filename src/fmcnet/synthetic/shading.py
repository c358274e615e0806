"""From geometry and materials to light: visible radiance, near-infrared radiance, surface temperature.

Only covered pixels are shaded. Patterns share their geometry between the spectra; their contrast is each
spectrum's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from fmcnet.synthetic.identity import DARK, SHOE, UPPER, Identity
from fmcnet.synthetic.materials import Material
from fmcnet.synthetic.render import EMPTY, GBuffer

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Light:
    """Key light and ambient of a visible scene.

    Attributes:
        direction: unit vector towards the light, view space.
        key: linear RGB of the key light.
        ambient: linear RGB from above; from below it is half of that.
    """

    direction: tuple[float, float, float]
    key: tuple[float, float, float]
    ambient: tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """The covered pixels of a G-buffer.

    Attributes:
        flat: (M,) flat pixel indices.
        slot: (M,) uint8 material slots.
        mix: (M,) float32 in [0, 1], weight of a material's second tone.
        normal: (3, M) float32 unit normals.
        open_sky: (M,) float32 in [0.4, 1], what ambient occlusion leaves.
        fold: (M,) float32 in [-1, 1], wrinkles of cloth; 0 on skin and hair.
        low: (M,) float32 in [0, 1], 0 at the waist and above, 1 at the feet (limbs cool).
    """

    flat: NDArray[np.intp]
    slot: NDArray[np.uint8]
    mix: Float
    normal: Float
    open_sky: Float
    fold: Float
    low: Float


def pattern_weight(material: Material, s: Float, t: Float) -> Float:
    """Weight of the second tone at texture coordinates in metres: (M,) float32 in [0, 1]."""
    period, duty, phase = material.period, material.duty, material.phase
    if material.pattern == "hstripes":
        return _band(t / period + phase, duty)
    if material.pattern == "vstripes":
        return _band(s / (0.8 * period) + 0.5 * duty, duty)
    if material.pattern == "checks":
        return np.asarray(
            0.5 * _band(s / period + phase, 0.5) + 0.5 * _band(t / period + phase, 0.5), dtype=np.float32
        )
    if material.pattern == "dots":
        a = (s / period) % 1.0 - 0.5
        b = (t / period + phase) % 1.0 - 0.5
        return (a * a + b * b < 0.25 * duty).astype(np.float32)
    if material.pattern == "block":
        return (t < 0.98 + 0.30 * phase).astype(np.float32)
    if material.pattern == "print":
        around = (s + 0.22) % 0.44 - 0.22  # front and back: half a turn of a torso is 0.44 m of texture
        x, y = around / (0.075 + 0.10 * duty), (t - 1.22) / (0.07 + 0.5 * period)
        wave = 1.0 + 0.25 * np.sin(3.0 * np.arctan2(y, x) + 6.28 * phase) if phase > 0.5 else 1.0
        ring = x * x + y * y
        return np.asarray(
            (np.abs(s) < 1.0) & (ring < wave) & (ring > (0.30 if phase < 0.3 else 0.0)), dtype=np.float32
        )
    return np.zeros_like(s)


def _band(x: Float, duty: float) -> Float:
    return np.asarray((x % 1.0) < duty, dtype=np.float32)


def surface_of(buffer: GBuffer, who: Identity) -> Surface:
    """Gather the covered pixels of a buffer and evaluate textures and ambient occlusion there."""
    flat = np.flatnonzero(buffer.slot.reshape(-1) != EMPTY)
    slot = buffer.slot.reshape(-1)[flat]
    planes = buffer.planes.reshape(5, -1)[:, flat]
    normal, (s, t) = planes[:3], planes[3:]
    mix = np.zeros(len(flat), dtype=np.float32)
    for number, material in enumerate(who.materials):
        mask = slot == number
        if material.pattern != "plain":
            mix[mask] = pattern_weight(material, s[mask], t[mask])
        elif number == SHOE:
            mix[mask] = normal[1, mask] < -0.45
    depth = np.maximum(buffer.depth, -0.35)
    size = max(3, int(0.16 * buffer.scale))
    near = uniform_filter(depth, size=size, mode="nearest").reshape(-1)[flat] - depth.reshape(-1)[flat]
    open_sky = np.clip(1.0 - 3.2 * np.maximum(near - 0.005, 0.0), 0.4, 1.0).astype(np.float32)
    a, b, c = (float(v) for v in np.random.default_rng([7002, who.pid]).uniform(0.0, 6.28, 3))
    wave = np.sin(23.0 * s + 9.0 * t + a) * np.sin(19.0 * t + 2.2 * np.sin(14.0 * s + b) + c)
    fold = np.where((slot >= UPPER) & (slot != DARK), wave, 0.0).astype(np.float32)
    low = np.clip(1.0 - t / 0.9, 0.0, 1.0).astype(np.float32)
    return Surface(flat, slot, mix, normal, open_sky, fold, low)


def _table(values: list[Any]) -> Float:
    return np.asarray(values, dtype=np.float32)


def shade_visible(surface: Surface, who: Identity, light: Light) -> Float:
    """Linear RGB radiance (M, 3): albedo * (ambient * occlusion + key * wrapped cosine)."""
    low = _table([m.visible[0] for m in who.materials])
    step = _table([m.visible[1] for m in who.materials]) - low
    albedo = low[surface.slot] + step[surface.slot] * surface.mix[:, None]
    x, y, z = light.direction
    cosine = np.maximum(
        (surface.normal[0] * x + surface.normal[1] * y + surface.normal[2] * z + 0.15) / 1.15, 0.0
    )
    key = cosine * (0.35 + 0.65 * surface.open_sky) * (1.0 + 0.11 * surface.fold)
    ambient = surface.open_sky * (0.75 + 0.25 * surface.normal[1])
    return np.asarray(
        albedo * (key[:, None] * _table(list(light.key)) + ambient[:, None] * _table(list(light.ambient))),
        np.float32,
    )


def shade_nir(surface: Surface, who: Identity, power: float, ambient: float) -> Float:
    """Near-infrared radiance (M,), lamp beside the lens: reflectance * (ambient + power * cosine to the camera)."""
    low = _table([m.nir[0] for m in who.materials])
    step = _table([m.nir[1] for m in who.materials]) - low
    reflectance = low[surface.slot] + step[surface.slot] * surface.mix
    cosine = (0.22 + 0.78 * surface.normal[2]) * (1.0 + 0.08 * surface.fold)
    return np.asarray(reflectance * surface.open_sky * (ambient + power * cosine), np.float32)


def shade_thermal(surface: Surface, who: Identity) -> Float:
    """Surface temperature (M,) in degrees Celsius: grazing angles look cooler, hollows warmer."""
    warmth = [who.activity if slot >= UPPER else 0.2 * who.activity for slot in range(len(who.materials))]
    base = _table([m.temperature + extra for m, extra in zip(who.materials, warmth, strict=True)])
    tone = _table([m.temperature_tone for m in who.materials])
    value = base[surface.slot] + tone[surface.slot] * surface.mix
    value += 0.8 * surface.fold - 1.2 * surface.low + 1.6 * (1.0 - surface.open_sky)
    return np.asarray(value - 2.2 * (1.0 - surface.normal[2]) ** 2, np.float32)
