"""Draw a body: geometry per pixel (a G-buffer), then the light of each spectrum where a body was hit.

Every primitive is intersected analytically with parallel rays inside its own screen bounding box (z-buffered);
perspective is in the primitives' sizes and positions (see `body`). A pattern has the same geometry in all spectra,
but a contrast of its own in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from fmcnet.synthetic.body import (
    RULE_CHEST,
    RULE_HAIR,
    RULE_HAT,
    RULE_HEAD,
    RULE_PLAIN,
    Limb,
    Quadric,
    Vector,
)
from fmcnet.synthetic.identity import BAG, DARK, HAIR, INNER, SHOE, UPPER, Identity, Material

EMPTY = 255
"""Slot of a pixel without a body."""

Float = NDArray[np.float32]
Point = tuple[float, float]
Bool = NDArray[np.bool_]
Pixels = NDArray[np.intp]
Slots = NDArray[np.uint8] | int


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

    def store(
        self, rows: Pixels, cols: Pixels, depth: NDArray[Any], planes: tuple[NDArray[Any], ...], slot: Slots
    ) -> None:
        """Write the pixels at these rows and columns."""
        flat = rows * self.depth.shape[1] + cols  # faster than two indices
        self.depth.reshape(-1)[flat] = depth
        for plane, values in zip(self.planes, planes, strict=True):
            plane.reshape(-1)[flat] = values
        self.slot.reshape(-1)[flat] = slot


def _window(
    buffer: GBuffer, origin: Point, x_low: float, x_high: float, y_low: float, y_high: float
) -> tuple[int, int, Float, Float] | None:
    """First row and column of a part of the view, and its x (1, w) and y (h, 1) in metres; None if outside."""
    height, width = buffer.depth.shape
    scale = buffer.scale
    x0, x1 = max(0, floor(origin[0] + x_low * scale)), min(width, ceil(origin[0] + x_high * scale) + 1)
    y0, y1 = max(0, floor(origin[1] - y_high * scale)), min(height, ceil(origin[1] - y_low * scale) + 1)
    if x0 >= x1 or y0 >= y1:
        return None
    x: Float = np.arange(x0, x1, dtype=np.float32)
    y: Float = np.arange(y0, y1, dtype=np.float32)
    x, y = (x + 0.5 - origin[0]) / scale, (origin[1] - y - 0.5) / scale
    return y0, x0, x[None, :], y[:, None]


def _draw_limb(buffer: GBuffer, limb: Limb, origin: Point) -> None:
    (ax, ay, az), (bx, by, bz) = limb.a, limb.b
    largest_radius = max(limb.ra, limb.rb)
    window = _window(
        buffer,
        origin,
        min(ax, bx) - largest_radius,
        max(ax, bx) + largest_radius,
        min(ay, by) - largest_radius,
        max(ay, by) + largest_radius,
    )
    if window is None:
        return
    y0, x0, px, py = window
    px, py = px - ax, py - ay
    dx, dy, dz = bx - ax, by - ay, bz - az
    length_squared = dx * dx + dy * dy + 1e-6
    along = np.clip(px * (dx / length_squared) + py * (dy / length_squared), 0.0, 1.0)
    ex, ey = px - along * dx, py - along * dy
    radius = limb.ra + (limb.rb - limb.ra) * along
    inside = radius * radius - ex * ex - ey * ey
    front = np.sqrt(np.maximum(inside, 0.0)) + (az + along * dz)
    rows, cols = np.nonzero((inside > 0.0) & (front > buffer.depth[y0 : y0 + len(py), x0 : x0 + px.shape[1]]))
    if not len(rows):
        return
    r, u, ex, ey = radius[rows, cols], along[rows, cols], ex[rows, cols], ey[rows, cols]
    bulge = np.sqrt(inside[rows, cols])
    length = sqrt(length_squared)
    angle = np.arctan2(ex * (-dy / length) + ey * (dx / length), bulge)
    around, height_on = (angle + limb.around) * float(largest_radius) + 50.0, limb.tex - u * limb.length
    planes = (ex / r, ey / r, bulge / r, around, height_on)
    slot: Slots = limb.slot_a
    if limb.slot_a != limb.slot_b:
        slot = np.where(u < limb.cut, np.uint8(limb.slot_a), np.uint8(limb.slot_b))
    buffer.store(rows + y0, cols + x0, front[rows, cols], planes, slot)


def _quadric_extent(q: Quadric) -> tuple[float, float, float, float]:
    """x low, x high, y low, y high of a quadric around its centre, in metres."""
    axes = np.linalg.inv(q.matrix)
    if q.shape in ("box", "ellipsoid"):
        ex, ey = (float(np.linalg.norm(axis, 1 if q.shape == "box" else 2)) for axis in axes[:2])
        return -ex, ex, -ey, ey
    lows, highs = [], []
    for row in (0, 1):
        ring = float(np.hypot(axes[row, 0], axes[row, 2]))
        ends = (-ring, ring, axes[row, 1] - ring * (1 + q.k), axes[row, 1] + ring * (1 + q.k))
        lows.append(float(min(ends)))
        highs.append(float(max(ends)))
    return lows[0], highs[0], lows[1], highs[1]


def _draw_quadric(buffer: GBuffer, q: Quadric, origin: Point, who: Identity) -> None:
    cx, cy, cz = q.centre
    left, right, low, high = _quadric_extent(q)
    window = _window(buffer, origin, cx + left, cx + right, cy + low, cy + high)
    if window is None:
        return
    y0, x0, px, py = window
    px, py = px - cx, py - cy
    m = [[float(c) for c in row] for row in q.matrix]
    (d0, d1, d2), k = (m[0][2], m[1][2], m[2][2]), q.k
    o0, o1, o2 = (m[i][0] * px + m[i][1] * py for i in range(3))
    intersection = (
        _intersect_box(o0, o1, o2, (d0, d1, d2))
        if q.shape == "box"
        else _intersect_quadric(q, o0, o1, o2, (d0, d1, d2))
    )
    if intersection is None:
        return
    ray, hit = intersection
    front = ray + cz
    hit &= front > buffer.depth[y0 : y0 + len(py), x0 : x0 + px.shape[1]]
    rows, cols = np.nonzero(hit)
    if not len(rows):
        return
    ray = ray[rows, cols]
    qx, qy, qz = o0[rows, cols] + ray * d0, o1[rows, cols] + ray * d1, o2[rows, cols] + ray * d2
    slot: Slots = q.slot
    if q.rule != RULE_PLAIN:
        slot, keep = _slots_by_rule(q, who, qx, qy, qz)
        if keep is not None:
            rows, cols, ray = rows[keep], cols[keep], ray[keep]
            qx, qy, qz = qx[keep], qy[keep], qz[keep]
            if not len(rows):
                return
    if q.shape == "box":  # a high power: flat faces, soft edges
        gx, gy, gz = qx**5, qy**5, qz**5
    else:
        gx, gy, gz = qx, -k * (1.0 + k * qy) if q.shape == "frustum" else qy, qz
    nx = m[0][0] * gx + m[1][0] * gy + m[2][0] * gz
    ny = m[0][1] * gx + m[1][1] * gy + m[2][1] * gz
    nz = m[0][2] * gx + m[1][2] * gy + m[2][2] * gz
    size = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    planes = (nx * size, ny * size, nz * size, np.arctan2(qx, qz) * q.width, q.tex + qy * q.tex_scale)
    buffer.store(rows + y0, cols + x0, ray + cz, planes, slot)


def _intersect_quadric(q: Quadric, o0: Float, o1: Float, o2: Float, d: Vector) -> tuple[Float, Bool] | None:
    """Nearest hits along z of an ellipsoid or frustum: (ray parameter, hit), or None if the ray is parallel to it."""
    k = q.k
    if q.shape == "frustum":
        rim = 1.0 + k * o1
        a = d[0] * d[0] + d[2] * d[2] - k * k * d[1] * d[1]
        b = o0 * d[0] + o2 * d[2] - (k * d[1]) * rim
        c = o0 * o0 + o2 * o2 - rim * rim
    else:
        a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
        b = o0 * d[0] + o1 * d[1] + o2 * d[2]
        c = o0 * o0 + o1 * o1 + o2 * o2 - 1.0
    if a < 1e-6:
        return None
    inside = b * b - a * c
    ray = (np.sqrt(np.maximum(inside, 0.0)) - b) / a
    hit = inside > 0.0
    if q.shape == "frustum":
        level = o1 + ray * d[1]
        hit &= (level >= 0.0) & (level <= 1.0)
    return ray, hit


def _intersect_box(o0: Float, o1: Float, o2: Float, d: Vector) -> tuple[Float, Bool]:
    """Nearest hits along z of a box [-1, 1]^3 rounded by a ball of radius 1.36."""
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = o0 * d[0] + o1 * d[1] + o2 * d[2]
    inside = b * b - a * (o0 * o0 + o1 * o1 + o2 * o2 - 1.36 * 1.36)
    root = np.sqrt(np.maximum(inside, 0.0))
    leave, enter = (root - b) / a, (-root - b) / a
    for o, step in zip((o0, o1, o2), d, strict=True):
        step = step if abs(step) > 1e-4 else 1e-4
        edge, middle = abs(1.0 / step), o * (-1.0 / step)
        leave = np.minimum(leave, middle + edge)
        enter = np.maximum(enter, middle - edge)
    return leave, (inside > 0.0) & (leave > enter)


def _slots_by_rule(q: Quadric, who: Identity, qx: Float, qy: Float, qz: Float) -> tuple[Slots, Bool | None]:
    """Material slots of the hit points of a quadric with a rule, and a mask of the points to keep (None: all)."""
    if q.rule == RULE_HEAD:
        slot = np.full(qx.shape, q.slot, dtype=np.uint8)
        face = (qz > 0.5) & (np.abs(qy - 0.10) < 0.075) & (np.abs(np.abs(qx) - 0.38) < 0.15)
        mouth = (qz > 0.5) & (np.abs(qy + 0.45) < 0.05) & (np.abs(qx) < 0.22)
        slot[face | mouth] = DARK
        if who.hair != "bald":
            slot[qy > 0.55 + 0.55 * qz] = HAIR
        return slot, None
    if q.rule == RULE_HAIR:
        if who.hair == "short":
            return q.slot, qy > 0.35 + 0.75 * qz
        return q.slot, (qy > 0.48 + 0.2 * qz) | (qz < -0.05)
    if q.rule == RULE_HAT:
        return q.slot, qy > 0.30 + 0.12 * qz
    slot = np.full(qx.shape, q.slot, dtype=np.uint8)
    if q.rule == RULE_CHEST:
        angle = np.arctan2(qx, qz)
        if who.open_front > 0.0:
            slot[np.abs(angle) < who.open_front] = INNER
        height = q.tex + qy * q.tex_scale
        if who.bag == "backpack":
            strap = (qz > 0) & (np.abs(np.abs(qx) - 0.55) < 0.11) & (height > 0.68 * who.body.height)
            slot[strap] = BAG
        elif who.bag == "shoulder":
            level = (height / who.body.height - 0.70) / 0.15
            slot[np.abs(qx * who.bag_side + level) < 0.13] = BAG
    return slot, None


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


def _pattern_weight(material: Material, s: Float, t: Float) -> Float:
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


def _float_array(values: list[Any]) -> Float:
    return np.asarray(values, dtype=np.float32)


def shade_visible(surface: Surface, who: Identity, light: Light) -> Float:
    """Linear RGB radiance (M, 3): albedo * (ambient * occlusion + key * wrapped cosine)."""
    low = _float_array([m.visible[0] for m in who.materials])
    step = _float_array([m.visible[1] for m in who.materials]) - low
    albedo = low[surface.slot] + step[surface.slot] * surface.mix[:, None]
    x, y, z = light.direction
    cosine = np.maximum(
        (surface.normal[0] * x + surface.normal[1] * y + surface.normal[2] * z + 0.15) / 1.15, 0.0
    )
    key = cosine * (0.35 + 0.65 * surface.open_sky) * (1.0 + 0.11 * surface.fold)
    ambient = surface.open_sky * (0.75 + 0.25 * surface.normal[1])
    return np.asarray(
        albedo
        * (
            key[:, None] * _float_array(list(light.key))
            + ambient[:, None] * _float_array(list(light.ambient))
        ),
        np.float32,
    )


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
