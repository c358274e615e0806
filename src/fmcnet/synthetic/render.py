"""Draw a body: geometry per pixel (a G-buffer), then the light of each spectrum where a body was hit.

Every primitive is intersected analytically with parallel rays inside its own screen bounding box (z-buffered);
perspective is in the primitives' sizes and positions (see `body`). A pattern has the same geometry in all spectra,
but a contrast of its own in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from fmcnet.synthetic.body import Limb, Quadric
from fmcnet.synthetic.identity import BAG, DARK, HAIR, INNER, SHOE, UPPER, Identity, Material

EMPTY = 255
"""Slot of a pixel without a body."""

Array = NDArray[Any]
Float = NDArray[np.float32]
Point = tuple[float, float]


@dataclass
class GBuffer:
    """Per-pixel geometry."""

    depth: Float  # (H, W) float32, metres towards the camera, `-9` where empty
    # (5, H, W) float32: the unit normal in view space (x right, y up, z to the camera), and the texture coordinates
    # s around and t along, in metres; s of a limb is about 50 (no prints there)
    planes: Float
    slot: NDArray[np.uint8]  # (H, W) uint8, material slot or `EMPTY`
    scale: float  # pixels per metre

    @staticmethod
    def empty(height: int, width: int, scale: float) -> GBuffer:
        """An empty buffer."""
        depth = np.full((height, width), -9.0, dtype=np.float32)
        planes = np.zeros((5, height, width), dtype=np.float32)
        return GBuffer(depth, planes, np.full((height, width), EMPTY, dtype=np.uint8), scale)

    def store(self, rows: Array, cols: Array, depth: Array, planes: tuple[Array, ...], slot: Array) -> None:
        """Write the pixels at these rows and columns."""
        flat = rows * self.depth.shape[1] + cols  # faster than two indices
        self.depth.reshape(-1)[flat] = depth
        for plane, values in zip(self.planes, planes, strict=True):
            plane.reshape(-1)[flat] = values
        self.slot.reshape(-1)[flat] = slot


def _window(
    buffer: GBuffer, origin: Point, x_range: Point, y_range: Point
) -> tuple[int, int, Float, Float, Float] | None:
    """First row and column of a part of the view, its x (1, w) and y (h, 1) in metres, its depth; None if outside."""
    height, width = buffer.depth.shape
    scale = buffer.scale
    x0, x1 = floor(origin[0] + x_range[0] * scale), ceil(origin[0] + x_range[1] * scale) + 1
    y0, y1 = floor(origin[1] - y_range[1] * scale), ceil(origin[1] - y_range[0] * scale) + 1
    x0, x1, y0, y1 = max(0, x0), min(width, x1), max(0, y0), min(height, y1)
    if x0 >= x1 or y0 >= y1:
        return None
    x: Float = np.arange(x0, x1, dtype=np.float32)
    y: Float = np.arange(y0, y1, dtype=np.float32)
    x, y = (x + 0.5 - origin[0]) / scale, (origin[1] - y - 0.5) / scale
    return y0, x0, x[None, :], y[:, None], buffer.depth[y0:y1, x0:x1]


def _draw_limb(buffer: GBuffer, limb: Limb, origin: Point) -> None:
    (ax, ay, az), (bx, by, bz) = limb.a, limb.b
    largest = max(limb.ra, limb.rb)
    x_range = min(ax, bx) - largest, max(ax, bx) + largest
    y_range = min(ay, by) - largest, max(ay, by) + largest
    window = _window(buffer, origin, x_range, y_range)
    if window is None:
        return
    y0, x0, px, py, depth = window
    px, py = px - ax, py - ay
    dx, dy, dz = bx - ax, by - ay, bz - az
    length_squared = dx * dx + dy * dy + 1e-6
    along = np.clip(px * (dx / length_squared) + py * (dy / length_squared), 0.0, 1.0)
    ex, ey = px - along * dx, py - along * dy
    radius = limb.ra + (limb.rb - limb.ra) * along
    inside = radius * radius - ex * ex - ey * ey
    front = np.sqrt(np.maximum(inside, 0.0)) + (az + along * dz)
    at = np.nonzero((inside > 0.0) & (front > depth))
    r, u, ex, ey, bulge = radius[at], along[at], ex[at], ey[at], np.sqrt(inside[at])
    length = sqrt(length_squared)
    angle = np.arctan2(ex * (-dy / length) + ey * (dx / length), bulge)
    around, height_on = (angle + limb.around) * float(largest) + 50.0, limb.tex - u * limb.length
    slot = np.where(u < limb.cut, np.uint8(limb.slot_a), np.uint8(limb.slot_b))
    buffer.store(at[0] + y0, at[1] + x0, front[at], (ex / r, ey / r, bulge / r, around, height_on), slot)


def _quadric_extent(q: Quadric) -> tuple[Point, Point]:
    """The x range and the y range of a quadric, in metres."""
    ranges = []
    for centre, axis in zip(q.centre, np.linalg.inv(q.matrix)[:2], strict=False):
        if q.shape == "frustum":
            ring = float(np.hypot(axis[0], axis[2]))
            ends = (-ring, ring, axis[1] - ring * (1 + q.k), axis[1] + ring * (1 + q.k))
            low, high = float(min(ends)), float(max(ends))
        else:
            high = float(np.linalg.norm(axis, 1 if q.shape == "box" else 2))
            low = -high
        ranges.append((centre + low, centre + high))
    return ranges[0], ranges[1]


def _draw_quadric(buffer: GBuffer, q: Quadric, origin: Point, who: Identity) -> None:
    window = _window(buffer, origin, *_quadric_extent(q))
    if window is None:
        return
    y0, x0, px, py, depth = window
    cx, cy, cz = q.centre
    px, py = px - cx, py - cy
    # In the quadric's own coordinates, the ray of a pixel is `start + t * step` at `t` metres before the centre.
    matrix = q.matrix.tolist()
    start, step = [row[0] * px + row[1] * py for row in matrix], [row[2] for row in matrix]
    intersection = _intersect(q, start, step)
    if intersection is None:
        return
    t, hit = intersection
    rows, cols = np.nonzero(hit & (t + cz > depth))
    t = t[rows, cols]
    points = [first[rows, cols] + t * change for first, change in zip(start, step, strict=True)]
    if q.rule in ("hair", "hat"):
        keep = _is_covered(q.rule, who, *points)
        rows, cols, t, *points = (values[keep] for values in (rows, cols, t, *points))
    x, y, z = points
    if q.shape == "box":  # a high power: flat faces, soft edges
        gradient = (x**5, y**5, z**5)
    else:
        gradient = (x, -q.k * (1.0 + q.k * y) if q.shape == "frustum" else y, z)
    nx, ny, nz = (
        sum(row[axis] * part for row, part in zip(matrix, gradient, strict=True)) for axis in range(3)
    )
    size = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    planes = (nx * size, ny * size, nz * size, np.arctan2(x, z) * q.width, q.tex + y * q.tex_scale)
    buffer.store(rows + y0, cols + x0, t + cz, planes, _slots(q, who, x, y, z))


def _intersect(q: Quadric, start: list[Float], step: list[float]) -> tuple[Float, NDArray[np.bool_]] | None:
    """Where each ray leaves the quadric towards the camera, and whether it does; None: all are parallel to it."""
    (o0, o1, o2), (d0, d1, d2), k = start, step, q.k
    if q.shape == "frustum":
        rim = 1.0 + k * o1
        a = d0 * d0 + d2 * d2 - k * k * d1 * d1
        b = o0 * d0 + o2 * d2 - (k * d1) * rim
        c = o0 * o0 + o2 * o2 - rim * rim
    else:  # of a box [-1, 1]^3 rounded by a ball of radius 1.36: the ball
        a = d0 * d0 + d1 * d1 + d2 * d2
        b = o0 * d0 + o1 * d1 + o2 * d2
        c = o0 * o0 + o1 * o1 + o2 * o2 - (1.36 * 1.36 if q.shape == "box" else 1.0)
    if a < 1e-6:
        return None
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0.0))
    t, hit = (root - b) / a, inside > 0.0
    if q.shape == "frustum":
        level = o1 + t * d1
        hit &= (level >= 0.0) & (level <= 1.0)
    elif q.shape == "box":
        leave = (-root - b) / a
        for first, change in zip(start, step, strict=True):
            change = change if abs(change) > 1e-4 else 1e-4
            edge, middle = abs(1.0 / change), first * (-1.0 / change)
            t, leave = np.minimum(t, middle + edge), np.maximum(leave, middle - edge)
        hit &= t > leave
    return t, hit


def _is_covered(rule: str, who: Identity, x: Float, y: Float, z: Float) -> NDArray[np.bool_]:
    """Which points of a head's ellipsoid its hair or hat covers."""
    if rule == "hat":
        return y > 0.30 + 0.12 * z
    if who.hair == "short":
        return y > 0.35 + 0.75 * z
    return (y > 0.48 + 0.2 * z) | (z < -0.05)


def _slots(q: Quadric, who: Identity, x: Float, y: Float, z: Float) -> NDArray[np.uint8]:
    """The material slot of each point of a quadric."""
    slot = np.full(x.shape, q.slot, dtype=np.uint8)
    if q.rule == "head":
        face = (z > 0.5) & (np.abs(y - 0.10) < 0.075) & (np.abs(np.abs(x) - 0.38) < 0.15)
        mouth = (z > 0.5) & (np.abs(y + 0.45) < 0.05) & (np.abs(x) < 0.22)
        slot[face | mouth] = DARK
        if who.hair != "bald":
            slot[y > 0.55 + 0.55 * z] = HAIR
    elif q.rule == "chest":
        if who.open_front > 0.0:
            slot[np.abs(np.arctan2(x, z)) < who.open_front] = INNER
        height = q.tex + y * q.tex_scale
        if who.bag == "backpack":
            slot[(z > 0) & (np.abs(np.abs(x) - 0.55) < 0.11) & (height > 0.68 * who.body.height)] = BAG
        elif who.bag == "shoulder":
            level = (height / who.body.height - 0.70) / 0.15
            slot[np.abs(x * who.bag_side + level) < 0.13] = BAG
    return slot


def rasterise(buffer: GBuffer, parts: list[Limb | Quadric], who: Identity, origin: Point) -> None:
    """Draw a person's parts (`build_body`) into a buffer, z-buffered.

    `origin` is the (column, row) of the view-space origin, in pixels of the buffer.
    """
    for part in parts:
        if isinstance(part, Limb):
            _draw_limb(buffer, part, origin)
        else:
            _draw_quadric(buffer, part, origin, who)


@dataclass(frozen=True)
class Light:
    """Key light and ambient of a visible scene."""

    direction: tuple[float, float, float]  # unit vector towards the light, view space
    key: tuple[float, float, float]  # linear RGB of the key light
    ambient: tuple[float, float, float]  # linear RGB from above; from below it is half of that


@dataclass(frozen=True)
class Surface:
    """The covered pixels of a G-buffer."""

    flat: NDArray[np.intp]  # (M,) flat pixel indices
    slot: NDArray[np.uint8]  # (M,) uint8 material slots
    mix: Float  # (M,) float32 in [0, 1], weight of a material's second tone
    normal: Float  # (3, M) float32 unit normals
    open_sky: Float  # (M,) float32 in [0.4, 1], what ambient occlusion leaves
    fold: Float  # (M,) float32 in [-1, 1], wrinkles of cloth; 0 on skin and hair
    low: Float  # (M,) float32 in [0, 1], 0 at the waist and above, 1 at the feet (limbs cool)


def _pattern_weight(material: Material, s: Float, t: Float) -> Array:
    """Weight of the second tone at texture coordinates in metres: (M,) in [0, 1]."""
    period, duty, phase = material.period, material.duty, material.phase
    if material.pattern == "hstripes":
        return (t / period + phase) % 1.0 < duty
    if material.pattern == "vstripes":
        return (s / (0.8 * period) + 0.5 * duty) % 1.0 < duty
    if material.pattern == "checks":
        return 0.5 * ((s / period + phase) % 1.0 < 0.5) + 0.5 * ((t / period + phase) % 1.0 < 0.5)
    if material.pattern == "dots":
        a = (s / period) % 1.0 - 0.5
        b = (t / period + phase) % 1.0 - 0.5
        return a * a + b * b < 0.25 * duty
    if material.pattern == "block":
        return t < 0.98 + 0.30 * phase
    # A print on front and back: half a turn of a torso is 0.44 m of texture.
    around = (s + 0.22) % 0.44 - 0.22
    x, y = around / (0.075 + 0.10 * duty), (t - 1.22) / (0.07 + 0.5 * period)
    wave = 1.0 + 0.25 * np.sin(3.0 * np.arctan2(y, x) + 6.28 * phase) if phase > 0.5 else 1.0
    ring = x * x + y * y
    return (np.abs(s) < 1.0) & (ring < wave) & (ring > (0.30 if phase < 0.3 else 0.0))


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
            mix[mask] = _pattern_weight(material, s[mask], t[mask])
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


def _float_array(values: Sequence[Any]) -> Float:
    return np.asarray(values, dtype=np.float32)


def shade_visible(surface: Surface, who: Identity, light: Light) -> Float:
    """Linear RGB radiance (M, 3): albedo * (ambient * occlusion + key * wrapped cosine)."""
    low = _float_array([m.visible[0] for m in who.materials])
    step = _float_array([m.visible[1] for m in who.materials]) - low
    albedo = low[surface.slot] + step[surface.slot] * surface.mix[:, None]
    x, y, z = light.direction
    cosine = surface.normal[0] * x + surface.normal[1] * y + surface.normal[2] * z
    cosine = np.maximum((cosine + 0.15) / 1.15, 0.0)
    key = cosine * (0.35 + 0.65 * surface.open_sky) * (1.0 + 0.11 * surface.fold)
    ambient = surface.open_sky * (0.75 + 0.25 * surface.normal[1])
    radiance = key[:, None] * _float_array(light.key) + ambient[:, None] * _float_array(light.ambient)
    return np.asarray(albedo * radiance, np.float32)


def shade_nir(surface: Surface, who: Identity, power: float, ambient: float) -> Float:
    """Near-infrared radiance (M,), lamp beside the lens: reflectance * (ambient + power * cosine to the camera)."""
    low = _float_array([m.nir[0] for m in who.materials])
    step = _float_array([m.nir[1] for m in who.materials]) - low
    reflectance = low[surface.slot] + step[surface.slot] * surface.mix
    cosine = (0.22 + 0.78 * surface.normal[2]) * (1.0 + 0.08 * surface.fold)
    return np.asarray(reflectance * surface.open_sky * (ambient + power * cosine), np.float32)


def shade_thermal(surface: Surface, who: Identity) -> Float:
    """Surface temperature (M,) in degrees Celsius: grazing angles look cooler, hollows warmer."""
    warmth = [who.activity if slot >= UPPER else 0.2 * who.activity for slot in range(len(who.materials))]
    base = _float_array([m.temperature + extra for m, extra in zip(who.materials, warmth, strict=True)])
    tone = _float_array([m.temperature_tone for m in who.materials])
    value = base[surface.slot] + tone[surface.slot] * surface.mix
    value += 0.8 * surface.fold - 1.2 * surface.low + 1.6 * (1.0 - surface.open_sky)
    return np.asarray(value - 2.2 * (1.0 - surface.normal[2]) ** 2, np.float32)
