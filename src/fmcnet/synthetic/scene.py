"""The background of a person: floor, wall, windows, furniture, in all three spectra.

A scene is drawn once per place and cached. Each image shows another part of it, so the background reveals the
camera but never the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """A panorama, `height` pixels to a crop of `crop` rows."""

    visible: Float  # (H, W, 3) float32 linear RGB radiance
    nir: Float  # (H, W) float32 radiance under the lamp
    thermal: Float  # (H, W) float32 temperature in degrees Celsius


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Float:
    """Smooth noise in about [-1, 1], `cells` per height."""
    rows, cols = cells + 2, max(3, cells * width // height + 2)
    coarse = rng.normal(0.0, 0.5, (rows, cols)).astype(np.float32)
    fine = zoom(coarse, (height / (rows - 1) + 0.01, width / (cols - 1) + 0.01), order=1)
    return np.asarray(fine[:height, :width], dtype=np.float32)


def _grey_colour(rng: np.random.Generator, low: float, high: float, tint: float) -> Float:
    base = rng.uniform(low, high)
    return np.asarray(np.clip(base * np.exp(rng.normal(0.0, tint, 3)), 0.01, 0.95), dtype=np.float32)


@lru_cache(maxsize=24)
def make_scene(seed: tuple[int, ...], crop_height: int, crop_width: int, outdoor: bool) -> Scene:
    """Draw the scene of a place; the last ones are cached.

    Args:
        seed: identifies the place; two cameras in one room share it.
        crop_height: rows of a crop in pixels; the panorama is 1.25 times as high and 7 crops wide.
        crop_width: columns of a crop in pixels.
        outdoor: sky, facade, trees and asphalt instead of wall, doors and tiles.
    """
    rng = np.random.default_rng([7101, *seed])
    height, width = int(1.25 * crop_height), 7 * crop_width
    horizon = int(height * (0.60 if outdoor else 0.66))
    visible = np.empty((height, width, 3), dtype=np.float32)
    nir = np.empty((height, width), dtype=np.float32)
    thermal = np.empty((height, width), dtype=np.float32)
    wall = _grey_colour(rng, 0.25, 0.55, 0.10)
    floor = _grey_colour(rng, 0.15, 0.40, 0.10)
    visible[:horizon], visible[horizon:] = wall, floor
    nir[:horizon], nir[horizon:] = rng.uniform(0.22, 0.40), rng.uniform(0.20, 0.40)
    thermal[:horizon], thermal[horizon:] = rng.uniform(17.0, 20.0), rng.uniform(16.0, 19.0)
    scene = Scene(visible, nir, thermal)
    _furnish(rng, scene, horizon, crop_width, outdoor)
    _pave(rng, scene, horizon, crop_width)
    broad = _noise(rng, height, width, 3)
    fine = _noise(rng, height, width, 24)
    visible *= (1.0 + 0.16 * broad + 0.10 * fine)[..., None]
    nir *= 1.0 + 0.14 * broad + 0.10 * _noise(rng, height, width, 20)
    thermal += 0.7 * _noise(rng, height, width, 4)
    line = np.exp(-(((np.arange(height) - horizon) / (0.02 * height)) ** 2)).astype(np.float32)
    visible *= (1.0 - 0.35 * line)[:, None, None]
    nir *= (1.0 - 0.3 * line)[:, None]
    soft = 0.006 * crop_height
    return Scene(
        np.asarray(np.clip(gaussian_filter(visible, (soft, soft, 0)), 0.0, None), dtype=np.float32),
        np.asarray(np.clip(gaussian_filter(nir, soft), 0.0, None), dtype=np.float32),
        np.asarray(gaussian_filter(thermal, 3.0 * soft), dtype=np.float32),
    )


def _furnish(rng: np.random.Generator, scene: Scene, horizon: int, unit: int, outdoor: bool) -> None:
    """Doors, windows, posters, cabinets; outdoors trees, facade windows, parked things."""
    visible, nir, thermal = scene.visible, scene.nir, scene.thermal
    height, width = nir.shape
    if outdoor:
        sky = int(0.22 * height)
        visible[:sky] = _grey_colour(rng, 0.6, 0.85, 0.06)
        nir[:sky] = 0.06
        thermal[:sky] = 9.0
    for _ in range(34):
        object_width = int(unit * rng.uniform(0.12, 0.75))
        left = int(rng.uniform(-0.5 * object_width, width - 0.5 * object_width))
        kind = rng.random()
        tint = 0.22 if kind > 0.6 else 0.07
        if kind < 0.35:
            top, bottom = int(height * rng.uniform(0.05, 0.35)), horizon
        elif kind < 0.65:
            top = int(height * rng.uniform(0.02, 0.30))
            bottom = top + int(height * rng.uniform(0.08, 0.25))
        else:
            top = int(horizon - height * rng.uniform(0.05, 0.2))
            bottom = int(horizon + height * rng.uniform(0.0, 0.09))
        window = (slice(max(0, top), bottom), slice(max(0, left), min(width, left + object_width)))
        colour = _grey_colour(rng, 0.04, 0.62, tint)
        brightness = float(colour.mean())
        visible[window] = colour
        nir[window] = 0.10 + 0.35 * brightness + rng.uniform(0.0, 0.22)
        thermal[window] += rng.normal(0.0, 1.0) + (2.5 if rng.random() < 0.10 else 0.0)
    if outdoor:
        for _ in range(7):
            _tree(rng, scene, horizon, unit)


def _tree(rng: np.random.Generator, scene: Scene, horizon: int, unit: int) -> None:
    """A bush or crown: dark green, and very bright in the near infrared as leaves are."""
    height, width = scene.nir.shape
    cx, cy = rng.uniform(0, width), horizon - height * rng.uniform(0.05, 0.4)
    radius = unit * rng.uniform(0.25, 0.6)
    rows, cols = np.ogrid[:height, :width]
    wobble = 1.0 + 0.3 * np.sin(5.0 * np.arctan2(rows - cy, cols - cx) + rng.uniform(0.0, 6.0))
    inside = (rows - cy) ** 2 + (cols - cx) ** 2 < (radius * wobble) ** 2
    speckle = 1.0 + 0.4 * rng.normal(0.0, 1.0, scene.nir.shape)[inside]
    scene.visible[inside] = np.clip(np.array([0.07, 0.15, 0.05]) * speckle[:, None], 0.01, 1.0)
    scene.nir[inside] = np.clip(0.45 * speckle, 0.05, 1.0)
    scene.thermal[inside] = 15.0


def _pave(rng: np.random.Generator, scene: Scene, horizon: int, unit: int) -> None:
    """Lines on the floor that come closer together towards the horizon, and a gradient towards the viewer."""
    visible, nir = scene.visible[horizon:], scene.nir[horizon:]
    height, width = scene.nir.shape
    depth = np.arange(1, height - horizon + 1, dtype=np.float32)
    nearness = depth / depth[-1]
    shade = (0.75 + 0.35 * nearness)[:, None]
    visible *= shade[..., None]
    nir *= shade
    rows = ((rng.uniform(2.0, 5.0) / (nearness + 0.25)) % 1.0 < 0.12)[:, None]
    centre = (np.arange(width) % (2 * unit) - unit)[None, :]
    cols = (centre / (unit * rng.uniform(0.25, 0.6) * (0.4 + nearness[:, None]))) % 1.0 < 0.07
    joint = (rows | cols) & (rng.random() < 0.8)
    dark = rng.uniform(0.7, 0.95)
    visible[joint] *= dark
    nir[joint] *= dark
