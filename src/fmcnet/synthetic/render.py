"""Rasterise a body into a G-buffer: depth, normal, texture coordinates and material slot per pixel.

Every primitive is intersected analytically with parallel rays inside its own screen bounding box (z-buffered);
perspective is in the primitives' sizes and places (see `primitives`). Shading comes later and only where a body
was hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.synthetic.identity import BAG, DARK, HAIR, INNER, Identity
from fmcnet.synthetic.primitives import RULE_CHEST, RULE_HAIR, RULE_HAT, RULE_HEAD, RULE_PLAIN, Limb, Quadric

EMPTY = 255
"""Slot of a pixel no body covers."""

Float = NDArray[np.float32]


@dataclass
class GBuffer:
    """Per-pixel geometry.

    Attributes:
        depth: (H, W) float32, metres towards the camera, `-9` where empty.
        planes: (5, H, W) float32: the unit normal in view space (x right, y up, z to the camera), and the texture
            coordinates s around and t along, in metres; s of a limb is about 50 (no prints there).
        slot: (H, W) uint8, material slot or `EMPTY`.
        scale: pixels per metre.
    """

    depth: Float
    planes: Float
    slot: NDArray[np.uint8]
    scale: float

    @staticmethod
    def empty(height: int, width: int, scale: float) -> GBuffer:
        """A buffer nothing was drawn into."""
        depth = np.full((height, width), -9.0, dtype=np.float32)
        planes = np.zeros((5, height, width), dtype=np.float32)
        return GBuffer(depth, planes, np.full((height, width), EMPTY, dtype=np.uint8), scale)

    def store(
        self,
        rows: NDArray[np.intp],
        cols: NDArray[np.intp],
        depth: NDArray[Any],
        planes: tuple[NDArray[Any], ...],
        slot: NDArray[np.uint8] | int,
    ) -> None:
        """Write the pixels at these rows and columns."""
        flat = rows * self.depth.shape[1] + cols  # faster than two indices
        self.depth.reshape(-1)[flat] = depth
        for plane, values in zip(self.planes, planes, strict=True):
            plane.reshape(-1)[flat] = values
        self.slot.reshape(-1)[flat] = slot


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    return max(0, floor(low)), min(size, ceil(high) + 1)


def _draw_limb(buffer: GBuffer, limb: Limb, origin: tuple[float, float]) -> None:
    height, width = buffer.depth.shape
    scale = buffer.scale
    (ax, ay, az), (bx, by, bz) = limb.a, limb.b
    big = max(limb.ra, limb.rb)
    x0, x1 = _span(origin[0] + (min(ax, bx) - big) * scale, origin[0] + (max(ax, bx) + big) * scale, width)
    y0, y1 = _span(origin[1] - (max(ay, by) + big) * scale, origin[1] - (min(ay, by) - big) * scale, height)
    if x0 >= x1 or y0 >= y1:
        return
    px = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - origin[0]) / scale - ax)[None, :]
    py = ((origin[1] - np.arange(y0, y1, dtype=np.float32) - 0.5) / scale - ay)[:, None]
    dx, dy, dz = bx - ax, by - ay, bz - az
    flat = dx * dx + dy * dy + 1e-6
    along = np.clip(px * (dx / flat) + py * (dy / flat), 0.0, 1.0)
    ex, ey = px - along * dx, py - along * dy
    radius = limb.ra + (limb.rb - limb.ra) * along
    inside = radius * radius - ex * ex - ey * ey
    front = np.sqrt(np.maximum(inside, 0.0)) + (az + along * dz)
    rows, cols = np.nonzero((inside > 0.0) & (front > buffer.depth[y0:y1, x0:x1]))
    if not len(rows):
        return
    r, u, ex, ey = radius[rows, cols], along[rows, cols], ex[rows, cols], ey[rows, cols]
    bulge = np.sqrt(inside[rows, cols])
    length = sqrt(flat)
    angle = np.arctan2(ex * (-dy / length) + ey * (dx / length), bulge)
    around, height_on = (angle + limb.around) * float(big) + 50.0, limb.tex - u * limb.length
    planes = (ex / r, ey / r, bulge / r, around, height_on)
    slot: NDArray[np.uint8] | int = limb.slot_a
    if limb.slot_a != limb.slot_b:
        slot = np.where(u < limb.cut, np.uint8(limb.slot_a), np.uint8(limb.slot_b))
    buffer.store(rows + y0, cols + x0, front[rows, cols], planes, slot)


def _extent(q: Quadric) -> tuple[float, float, float, float]:
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


def _draw_quadric(buffer: GBuffer, q: Quadric, origin: tuple[float, float], who: Identity) -> None:
    height, width = buffer.depth.shape
    scale = buffer.scale
    cx, cy, cz = q.centre
    left, right, low, high = _extent(q)
    x0, x1 = _span(origin[0] + (cx + left) * scale, origin[0] + (cx + right) * scale, width)
    y0, y1 = _span(origin[1] - (cy + high) * scale, origin[1] - (cy + low) * scale, height)
    if x0 >= x1 or y0 >= y1:
        return
    px = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - origin[0]) / scale - cx)[None, :]
    py = ((origin[1] - np.arange(y0, y1, dtype=np.float32) - 0.5) / scale - cy)[:, None]
    m = [[float(c) for c in row] for row in q.matrix]
    (d0, d1, d2), k = (m[0][2], m[1][2], m[2][2]), q.k
    o0, o1, o2 = (m[i][0] * px + m[i][1] * py for i in range(3))
    solved = (
        _box_ray(o0, o1, o2, (d0, d1, d2)) if q.shape == "box" else _quadric_ray(q, o0, o1, o2, (d0, d1, d2))
    )
    if solved is None:
        return
    ray, hit = solved
    front = ray + cz
    hit &= front > buffer.depth[y0:y1, x0:x1]
    rows, cols = np.nonzero(hit)
    if not len(rows):
        return
    ray = ray[rows, cols]
    qx, qy, qz = o0[rows, cols] + ray * d0, o1[rows, cols] + ray * d1, o2[rows, cols] + ray * d2
    slot: NDArray[np.uint8] | int = q.slot
    if q.rule != RULE_PLAIN:
        slot, keep = _slots(q, who, qx, qy, qz)
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


def _quadric_ray(
    q: Quadric, o0: Float, o1: Float, o2: Float, d: tuple[float, float, float]
) -> tuple[Float, NDArray[np.bool_]] | None:
    """Nearest hits along z of an ellipsoid or frustum: (ray parameter, hit), or None when the ray runs along it."""
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


def _box_ray(
    o0: Float, o1: Float, o2: Float, d: tuple[float, float, float]
) -> tuple[Float, NDArray[np.bool_]]:
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


def _slots(
    q: Quadric, who: Identity, qx: Float, qy: Float, qz: Float
) -> tuple[NDArray[np.uint8] | int, NDArray[np.bool_] | None]:
    """Slots of the hit points of a quadric with a rule, and which points exist (None: all)."""
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


def rasterise(
    buffer: GBuffer, parts: list[Limb | Quadric], who: Identity, origin: tuple[float, float]
) -> None:
    """Draw a body into a buffer, z-buffered.

    Args:
        buffer: changed in place.
        parts: primitives in view space (`build_body`).
        who: whose they are (for the material rules).
        origin: (column, row) of the view-space origin, in pixels of the buffer.
    """
    for part in parts:
        if isinstance(part, Limb):
            _draw_limb(buffer, part, origin)
        else:
            _draw_quadric(buffer, part, origin, who)
