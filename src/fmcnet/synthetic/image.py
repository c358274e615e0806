"""Renders one image from its key (seed, layout, pid, camera, number): a pure function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from fmcnet.synthetic.body import Pose, build_body
from fmcnet.synthetic.cameras import (
    LAYOUT_NUMBERS,
    Camera,
    camera,
    develop_nir,
    develop_thermal,
    develop_visible,
)
from fmcnet.synthetic.identity import Identity, draw_identity
from fmcnet.synthetic.render import (
    GBuffer,
    Light,
    rasterise,
    shade_nir,
    shade_thermal,
    shade_visible,
    surface_of,
)
from fmcnet.synthetic.scene import Scene, make_scene

Point = tuple[float, float]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class ImageKey:
    """The address of an image."""

    seed: int  # seed of the world
    layout: str  # "sysu", "regdb", "llcm" or "wild"
    pid: int  # identity, 1 and up
    camid: int  # camera, 1 and up
    infrared: bool  # whether the camera is an infrared one
    index: int  # number of the image among the identity's images of that camera, 1 and up


EVENTS = {"wild": (0.2, 0.3, 0.2)}
"""Shares of crops with a cut person, a part of another person, and an occluder; else `PLAIN_EVENTS`."""
PLAIN_EVENTS = (0.05, 0.05, 0.06)


def _draw_pose(rng: np.random.Generator) -> Pose:
    """A random pose: any yaw, any phase; one in seven stands, one in twelve holds a phone."""
    standing = rng.random() < 0.15
    return Pose(
        yaw=rng.uniform(-pi, pi),
        phase=rng.uniform(0.0, 2.0 * pi),
        stride=0.0 if standing else rng.uniform(0.5, 1.15),
        swing=0.05 if standing else rng.uniform(0.15, 0.6),
        bend=rng.uniform(0.1, 0.55),
        phone=float(rng.choice([-1.0, 1.0])) if rng.random() < 0.08 else 0.0,
        nod=rng.normal(0.06, 0.10),
        turn=rng.normal(0.0, 0.25),
    )


def _draw_light(cam: Camera, rng: np.random.Generator) -> Light:
    azimuth = cam.light[0] + rng.normal(0.0, 0.35)
    elevation = float(np.clip(cam.light[1] + rng.normal(0.0, 0.12), 0.2, 1.45))
    direction = (cos(elevation) * sin(azimuth), sin(elevation), cos(elevation) * cos(azimuth))
    gain = float(np.exp(rng.normal(0.0, 0.10)))
    return Light(direction, (cam.key[0] * gain, cam.key[1] * gain, cam.key[2] * gain), cam.ambient)


def _background(scene: Scene, cam: Camera, height: int, width: int, rng: np.random.Generator) -> Float:
    """A random window of the scene, (h, w) or (h, w, 3), as radiance or temperature."""
    top = int(rng.uniform(0.2, 0.8) * (scene.nir.shape[0] - height))
    left = int(rng.integers(0, scene.nir.shape[1] - width + 1))
    window = (slice(top, top + height), slice(left, left + width))
    if cam.spectrum == "visible":
        lit = np.array(cam.key, dtype=np.float32) * 0.55 + np.array(cam.ambient, dtype=np.float32)
        return np.asarray(scene.visible[window] * lit)
    if cam.spectrum == "nir":
        return np.asarray(scene.nir[window] * np.float32(0.7 * cam.lamp[0]))
    return scene.thermal[window].copy()


def _draw_shadow(canvas: Float, row: float, column: float, scale: float, depth: float) -> None:
    """Darken the floor around the feet, in place."""
    height, width = canvas.shape[:2]
    rx, ry = 0.42 * scale, 0.12 * scale
    y0, y1 = max(0, int(row - 2 * ry)), min(height, int(row + 2 * ry))
    x0, x1 = max(0, int(column - 2 * rx)), min(width, int(column + 2 * rx))
    if y0 >= y1 or x0 >= x1:
        return
    y = ((np.arange(y0, y1, dtype=np.float32) - row) / ry)[:, None]
    x = ((np.arange(x0, x1, dtype=np.float32) - column) / rx)[None, :]
    dark = 1.0 - depth * np.exp(-(x * x + y * y))
    canvas[y0:y1, x0:x1] *= dark if canvas.ndim == 2 else dark[..., None]


def _draw_person(
    canvas: Float,
    who: Identity,
    cam: Camera,
    light: Light,
    rng: np.random.Generator,
    scale: float,
    origin: Point,
) -> None:
    """Draw a person in a random pose onto the canvas, shaded in the camera's spectrum, in place."""
    buffer = GBuffer.empty(canvas.shape[0], canvas.shape[1], scale)
    pitch, distance = cam.pitch + rng.normal(0.0, 0.03), cam.distance * rng.uniform(0.85, 1.2)
    rasterise(buffer, build_body(who, _draw_pose(rng), pitch, distance), who, origin)
    surface = surface_of(buffer, who)
    if cam.spectrum == "visible":
        canvas.reshape(-1, 3)[surface.flat] = shade_visible(surface, who, light)
    elif cam.spectrum == "nir":
        canvas.reshape(-1)[surface.flat] = shade_nir(surface, who, cam.lamp[0], cam.lamp[1])
    else:
        canvas.reshape(-1)[surface.flat] = shade_thermal(surface, who)


def _draw_occluder(canvas: Float, cam: Camera, rng: np.random.Generator) -> None:
    """Draw an occluder, in place: a desk or railing from below, or a post at the side."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.6:
        rows, cols = slice(int(height * rng.uniform(0.70, 0.90)), height), slice(0, width)
        if rng.random() < 0.5:
            start = int(width * rng.uniform(0.0, 0.6))
            cols = slice(start, start + int(width * rng.uniform(0.3, 0.7)))
    else:
        wide = int(width * rng.uniform(0.10, 0.28))
        start = 0 if rng.random() < 0.5 else width - wide
        rows, cols = slice(int(height * rng.uniform(0.0, 0.4)), height), slice(start, start + wide)
    block = canvas[rows, cols]
    shade = np.linspace(1.15, 0.85, block.shape[0], dtype=np.float32)[:, None]
    if cam.spectrum == "visible":
        colour = rng.uniform(0.08, 0.5) * np.exp(rng.normal(0.0, 0.2, 3))
        canvas[rows, cols] = shade[..., None] * colour.astype(np.float32)
    elif cam.spectrum == "nir":
        canvas[rows, cols] = shade * np.float32(rng.uniform(0.12, 0.6))
    else:
        canvas[rows, cols] = np.float32(rng.uniform(17.0, 21.0))


def render_image(key: ImageKey, height: int, width: int) -> NDArray[np.uint8]:
    """Render one image; its key is the only source of randomness.

    Returns:
        uint8, (height, width, 3) RGB from a visible camera, (height, width) grey from an infrared one.
    """
    layout_number = LAYOUT_NUMBERS[key.layout]
    rng = np.random.default_rng(
        [7301, key.seed, layout_number, key.pid, key.camid, int(key.infrared), key.index]
    )
    cam = camera(key.layout, key.seed, key.camid, key.infrared)
    return _render(key, cam, rng, height, width)


def render_pair(
    seed: int, pid: int, index: int, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render one moment (`index`) by two registered cameras side by side: RegDB's visible and thermal one.

    Returns:
        uint8, (height, width, 3) RGB and (height, width) grey: one pose, one place in the crop, two spectra.
    """
    day, night = (camera("regdb", seed, camid, camid == 2) for camid in (1, 2))
    night = replace(night, pitch=day.pitch, distance=day.distance, light=day.light)
    images = []
    for cam in (day, night):
        key = ImageKey(seed, "regdb", pid, cam.camid, cam is night, index)
        images.append(_render(key, cam, np.random.default_rng([7302, seed, pid, index]), height, width))
    return images[0], images[1]


def _render(
    key: ImageKey, cam: Camera, rng: np.random.Generator, height: int, width: int
) -> NDArray[np.uint8]:
    who = draw_identity(key.seed, key.pid)
    factor = 2.0 if height <= 96 else (1.6 if height <= 160 else 1.15)  # rendered larger, then reduced
    h, w = round(height * factor), round(width * factor)
    scene = make_scene((key.seed, LAYOUT_NUMBERS[key.layout], cam.place), h, w, cam.outdoor)
    canvas = _background(scene, cam, h, w, rng)
    light = _draw_light(cam, rng)

    stature = who.body.height * (cos(cam.pitch) + 0.10 * sin(cam.pitch))
    fill = float(np.clip(rng.normal(0.86, 0.085), 0.64, 1.06))
    scale = fill * h / stature
    origin = (w * (0.5 + rng.normal(0.0, 0.075)), h * (0.5 + rng.normal(0.0, 0.040)))
    cut, crowd, hidden = EVENTS.get(key.layout, PLAIN_EVENTS)
    if rng.random() < cut:  # the detector cut feet or head
        scale *= 1.18
        origin = (origin[0], origin[1] + (0.09 if rng.random() < 0.7 else -0.06) * h)
    event = rng.random()
    if event < crowd:  # another person's part in the crop
        other = draw_identity(key.seed, 100_000 + int(rng.integers(0, 2000)))
        side = 1.0 if rng.random() < 0.5 else -1.0
        position = (origin[0] + side * w * rng.uniform(0.42, 0.62), origin[1] - 0.02 * h)
        _draw_person(canvas, other, cam, light, rng, scale * rng.uniform(0.8, 0.97), position)
    if cam.spectrum != "thermal":
        depth = 0.5 if cam.spectrum == "visible" else 0.25
        _draw_shadow(canvas, origin[1] + 0.48 * stature * scale, origin[0], scale, depth)
    _draw_person(canvas, who, cam, light, rng, scale, origin)
    if event > 1 - hidden:
        _draw_occluder(canvas, cam, rng)
    develop = {"visible": develop_visible, "nir": develop_nir, "thermal": develop_thermal}[cam.spectrum]
    return develop(canvas, cam, (width, height), rng)
