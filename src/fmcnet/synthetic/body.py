"""Body and clothes as primitives in view space: limbs (round cones), ellipsoids, elliptic frustums, rounded boxes.

Body frame: x to the person's left, y up from the floor, z forwards, in metres. View frame: x right, y up, z towards
the camera. Perspective is mild: each primitive is scaled by its own depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.synthetic.identity import BAG, HAIR, HAT, LOWER, SHOE, SKIN, UPPER, Identity

Matrix = NDArray[np.float64]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """What changes from image to image. Angles in radians."""

    yaw: float  # 0 faces the camera, pi shows the back
    phase: float  # walking phase, 0 to 2 pi
    stride: float  # amplitude relative to the identity's own stride, 0 (standing) to 1.2
    swing: float  # amplitude of the arms in radians
    bend: float  # bend of the elbows in radians
    phone: float  # +1 or -1 raises that forearm, 0 none
    nod: float  # pitch of the head
    turn: float  # yaw of the head relative to the body


@dataclass(frozen=True)
class Limb:
    """A round cone from a to b in view space; the slot changes at the fraction `cut` of its length.

    `tex` is the texture height at a, `length` the true length in metres, so foreshortening stretches no pattern.
    """

    a: Vector
    b: Vector
    ra: float
    rb: float
    slot_a: int
    slot_b: int
    cut: float
    tex: float
    length: float
    around: float


@dataclass(frozen=True)
class Quadric:
    """An ellipsoid, a frustum (local radius 1 + k y for y in [0, 1]), or a rounded box."""

    centre: Vector  # view-space origin of the local frame (a frustum's lower end)
    matrix: Matrix  # (3, 3) view offset to local coordinates
    shape: str  # "ellipsoid", "frustum" or "box"
    k: float  # growth of the frustum's radius from y = 0 to y = 1
    slot: int  # material slot
    rule: str  # for the slots of its points: "head", "hair", "hat", "chest" or "" (all `slot`); see `render`
    tex: float  # texture height in metres at local y = 0
    tex_scale: float  # metres of texture height per local y
    width: float  # metres of texture per radian around


class _Builder:
    """Collects primitives, turning body coordinates into view coordinates."""

    def __init__(self, yaw: float, pitch: float, distance: float, height: float) -> None:
        self.rotation: Matrix = _pitch_matrix(pitch) @ _yaw_matrix(yaw)
        self.distance, self.yaw = distance, yaw
        self.middle = np.array([0.0, 0.5 * height, 0.0])
        self.parts: list[Limb | Quadric] = []

    def _view(self, point: Matrix) -> tuple[Vector, float]:
        x, y, z = (float(c) for c in self.rotation @ (point - self.middle))
        scale = self.distance / (self.distance - z)
        return (x * scale, y * scale, z), scale

    def limb(
        self, a: Matrix, b: Matrix, ra: float, rb: float, slots: tuple[int, int, float], tex: float
    ) -> None:
        """Add a round cone from a to b (body frame); `slots` is (slot at a, slot at b, fraction where it changes)."""
        va, sa = self._view(a)
        vb, sb = self._view(b)
        length = float(np.linalg.norm(b - a))
        end_slot = slots[1] if slots[2] < 1.0 else slots[0]
        self.parts.append(
            Limb(va, vb, ra * sa, rb * sb, slots[0], end_slot, slots[2], tex, length, 3.0 + self.yaw)
        )

    def quadric(
        self,
        centre: Matrix,
        radii: Vector,
        slot: int,
        *,
        shape: str = "ellipsoid",
        k: float = 0.0,
        rule: str = "",
        tilt: Matrix | None = None,
        tex: float = 0.0,
        width: float = 0.14,
    ) -> None:
        """Add an ellipsoid, frustum or box with the given centre and half axes (body frame); `tilt` turns it."""
        origin, scale = self._view(centre)
        rotation = self.rotation if tilt is None else self.rotation @ tilt
        matrix = rotation.T / (np.array(radii) * scale)[:, None]
        self.parts.append(Quadric(origin, matrix, shape, k, slot, rule, tex, radii[1], width))

    def frustum(self, base: Matrix, radii: Vector, slot: int, k: float, tex: float, **more: Any) -> None:
        """Add a frustum on the given lower end, of height `radii[1]`; the upper end is wider by `k`."""
        self.quadric(base, radii, slot, shape="frustum", k=k, tex=tex, **more)

    def bag(self, centre: Matrix, axes: Vector, size: float, **more: Any) -> None:
        """Add a rounded box with half axes in sizes of a bag."""
        self.quadric(centre, (axes[0] * size, axes[1] * size, axes[2] * size), BAG, shape="box", **more)


def _pitch_matrix(angle: float) -> Matrix:
    """Rotation about x: positive leans forwards."""
    c, s = cos(angle), sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _yaw_matrix(angle: float) -> Matrix:
    """Rotation about y: positive turns to the person's left."""
    c, s = cos(angle), sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _swing(length: float, angle: float, out: float) -> Matrix:
    """A segment hanging down, swung forwards by `angle` and outwards by `out`."""
    return np.array([length * sin(out), -length * cos(angle) * cos(out), length * sin(angle) * cos(out)])


def _leg(build: _Builder, who: Identity, pose: Pose, side: float, hip: Matrix, swing: float) -> None:
    body, h = who.body, who.body.height
    upper = 0.49 * body.leg * h
    lower = 0.47 * body.leg * h
    step = pose.stride * body.stride * (0.55 if who.bottom in ("skirt", "dress") else 1.0)
    thigh = step * swing
    bent = 0.12 + 1.0 * step * cos(pose.phase + (0.0 if side > 0 else pi) + 0.4)
    knee = max(0.0, bent) * (1.0 if step > 0.05 else 0.3)
    mid = hip + _swing(upper, thigh, 0.02 * side)
    ankle = mid + _swing(lower, thigh - knee, -0.01 * side)
    fat = 0.5 + 0.5 * body.girth
    top, joint, end = 0.053 * h * fat, 0.033 * h * fat, 0.024 * h * fat
    long = who.bottom == "trousers"
    loose = who.loose if long or who.bottom == "shorts" else 1.0
    thigh_slots = shin_slots = (SKIN, SKIN, 1.0)
    if long:
        bare = max(0.03, who.bottom_length)
        cut = float(np.clip(1.0 - (bare - 0.03) / (0.47 * body.leg), 0.0, 1.0))
        thigh_slots, shin_slots = (LOWER, LOWER, 1.0), (LOWER, SKIN, cut)
    elif who.bottom == "shorts":
        cut = float(np.clip((body.leg - who.bottom_length) / (0.49 * body.leg), 0.2, 1.0))
        thigh_slots = (LOWER, SKIN, cut)
    if who.boots > 0.0:
        shin_slots = (shin_slots[0] if shin_slots[2] > 0.3 else SKIN, SHOE, 1.0 - who.boots)
    wide = joint * loose
    build.limb(hip, mid, top * (0.5 + 0.5 * loose), wide, thigh_slots, hip[1])
    calf = (0.5 + 0.5 * loose) if long else 1.0
    hem = end * (loose**1.6 if long else 1.0) * (1.25 if who.boots > 0.0 else 1.0)
    build.limb(mid, ankle, wide if long else joint, max(hem, end) * calf, shin_slots, hip[1] - upper)
    toe = _pitch_matrix(0.6 * max(0.0, knee - thigh - 0.25))
    foot = ankle + toe @ np.array([0.01 * side, -0.022 * h, 0.042 * h])
    build.quadric(foot, (0.027 * h, 0.021 * h, 0.072 * h), SHOE, tilt=toe)


def _arm(build: _Builder, who: Identity, pose: Pose, side: float, shoulder: Matrix, swing: float) -> None:
    body, h = who.body, who.body.height
    upper, lower = 0.172 * h * body.arm, 0.150 * h * body.arm
    fat = 0.45 + 0.55 * body.girth
    carries = who.bag == "tote" and side == who.bag_side
    angle = pose.swing * swing * (0.3 if carries else 1.0)
    bend = pose.bend * (0.2 if carries else 1.0)
    if pose.phone == side and not carries:
        angle, bend = 0.35, 1.75
    out = 0.10 + 0.06 * body.girth
    elbow = shoulder + _swing(upper, angle, out * side)
    wrist = elbow + _swing(lower, angle + bend, 0.03 * side)
    sleeve = 1.0 + (0.22 if who.sleeves == "long" else 0.12)
    base = h * fat
    bulge = sleeve if who.sleeves != "none" else 1.0
    cut = {"long": 1.0, "short": 0.62, "none": 0.06}[who.sleeves]
    top = shoulder[1]
    build.limb(shoulder, elbow, 0.033 * base * bulge, 0.026 * base * bulge, (UPPER, SKIN, cut), top)
    long = who.sleeves == "long"
    slots = (UPPER, SKIN, 0.94) if long else (SKIN, SKIN, 1.0)
    grow = sleeve if long else 1.0
    build.limb(elbow, wrist, 0.026 * base * grow, 0.020 * base * grow, slots, top - upper)
    hand = wrist + _swing(0.036 * h, angle + bend, 0.0)
    build.quadric(hand, (0.017 * h, 0.034 * h, 0.021 * h), SKIN)
    if carries:
        size = who.bag_size
        centre = hand + np.array([0.02 * side, -0.13 * size, 0.0])
        build.bag(centre, (0.055, 0.165, 0.17), size, tex=0.3, width=0.16)


def _head(build: _Builder, who: Identity, pose: Pose, neck: Matrix) -> None:
    h, size = who.body.height, who.body.head
    turn = _yaw_matrix(pose.turn) @ _pitch_matrix(pose.nod)
    a, b, c = 0.047 * h * size, 0.069 * h * size, 0.056 * h * size
    centre = neck + np.array([0.0, 0.062 * h * size + 0.01, 0.012 * h])
    build.limb(neck - np.array([0.0, 0.03 * h, 0.012]), centre, 0.034 * h, 0.031 * h, (SKIN, SKIN, 1.0), 0.0)
    build.quadric(centre, (a, b, c), SKIN, rule="head", tilt=turn)
    if who.hair != "bald":
        grow = 1.10 if who.hair == "short" else 1.20
        back = turn @ np.array([0.0, 0.006, -0.010])
        build.quadric(centre + back, (a * grow, b * grow * 0.99, c * grow), HAIR, rule="hair", tilt=turn)
    if who.hair == "long":
        top = centre + turn @ np.array([0.0, 0.01, -0.7 * c])
        end = neck + np.array([0.0, -0.085 * h, -0.062 * h])
        build.limb(top, end, a * 0.98, a * 0.72, (HAIR, HAIR, 1.0), 0.0)
    elif who.hair == "bob":
        back = turn @ np.array([0.0, -0.30 * b, -0.45 * c])
        build.quadric(centre + back, (a * 1.22, b * 0.82, c * 0.72), HAIR, tilt=turn)
    if who.hat != "none":
        grow = 1.24 if who.hat == "beanie" else 1.20
        lift = np.array([0.0, 0.018, -0.004])
        build.quadric(centre + turn @ lift, (a * grow, b * grow, c * grow), HAT, rule="hat", tilt=turn)
        if who.hat == "cap":
            brim = turn @ np.array([0.0, 0.42 * b, 1.25 * c])
            build.quadric(centre + brim, (a * 0.95, 0.010, c * 0.85), HAT, tilt=turn)
        elif who.hat == "brim":
            brim = turn @ np.array([0.0, 0.42 * b, 0.0])
            build.quadric(centre + brim, (a * 2.1, 0.012, c * 2.0), HAT, tilt=turn)


def _torso(build: _Builder, who: Identity, lean: Matrix, hips: Matrix, chest: float) -> None:
    body, h = who.body, who.body.height
    pelvis_y, waist_y = body.leg * h, (body.leg + 0.105) * h
    deep = 0.072 * h * (0.35 + 0.65 * body.girth)
    waist_w, waist_d = 0.5 * (body.hip + body.shoulder) * 0.86, deep * 0.95
    top_w = body.shoulder * 0.88
    waist = hips + np.array([0.0, waist_y - pelvis_y, 0.0])
    length = chest - 0.012 * h - waist_y
    k = top_w / waist_w - 1.0
    build.frustum(waist, (waist_w, length, waist_d), UPPER, k, waist_y, rule="chest", tilt=lean)
    yoke = waist + lean @ np.array([0.0, length, 0.0])
    depth = min(waist_d * (1.0 + k) * 1.01, 0.115 * h)
    build.quadric(yoke, (top_w * 1.02, 0.050 * h, depth), UPPER, rule="chest", tilt=lean, tex=chest)
    hip_w, hip_d = body.hip * 1.06, deep * 1.10
    slack = 0.5 + 0.5 * who.loose if who.bottom in ("trousers", "shorts") else 1.0
    seat = hips - np.array([0.0, 0.01 * h, 0.0])
    build.quadric(seat, (hip_w * slack, 0.062 * h, hip_d * slack), LOWER, tex=pelvis_y)
    build.frustum(hips, (hip_w, waist_y - pelvis_y, hip_d), LOWER, waist_w / hip_w - 1.0, pelvis_y)
    # The part of the upper garment below the waist is wide enough to cover what is under it.
    hem_y = max(0.0, body.leg + 0.035 - who.hem) * h
    wide = max(hip_w * slack, waist_w) * (1.07 + 0.2 * (who.flare - 1.0))
    deep = max(hip_d * slack, waist_d) * 1.12
    if who.bottom in ("skirt", "dress"):
        end = who.bottom_length * h
        skirt_w = hip_w * who.flare * (1.05 + 0.25 * (1.0 - who.bottom_length / 0.38))
        base = hips + np.array([0.0, end - pelvis_y, 0.0])
        radii = (skirt_w, waist_y - end, skirt_w * 0.92)
        build.frustum(base, radii, LOWER, waist_w / skirt_w - 1.0, end)
        share = min(1.0, (waist_y - hem_y) / (waist_y - end))
        under = waist_w + (skirt_w - waist_w) * share
        wide, deep = max(wide, 1.05 * under), max(deep, 1.0 * under)
    top = max(waist_w * 1.03 / wide, waist_d * 1.04 / deep)
    hem = hips + np.array([0.0, hem_y - pelvis_y, 0.0])
    build.frustum(hem, (wide, waist_y + 0.03 - hem_y, deep), UPPER, top - 1.0, hem_y, rule="chest")


def _bag(build: _Builder, who: Identity, lean: Matrix, hips: Matrix, chest: float) -> None:
    body, h, size = who.body, who.body.height, who.bag_size
    if who.bag == "backpack":
        back = [0.0, chest - body.leg * h - 0.17, -0.072 * h * body.girth - 0.075 * size]
        centre = hips + lean @ np.array(back)
        build.bag(centre, (0.14, 0.22, 0.09), size, tilt=lean, tex=0.3, width=0.15)
        low = lean @ np.array([0.0, -0.07 * size, -0.055 * size])
        build.bag(centre + low, (0.105, 0.10, 0.07), size, tilt=lean, tex=0.2, width=0.12)
    elif who.bag == "shoulder":
        centre = hips + np.array([who.bag_side * (body.hip * 1.12 + 0.04), -0.02, 0.01])
        build.bag(centre, (0.05, 0.11, 0.15), size, tex=0.3, width=0.14)


def build_body(who: Identity, pose: Pose, pitch: float, distance: float) -> list[Limb | Quadric]:
    """The primitives of a person in view space, origin at half stature above the feet.

    `pitch` of the camera is in radians (positive looks down), `distance` in metres.
    """
    body, h = who.body, who.body.height
    build = _Builder(pose.yaw, pitch, distance, h)
    step = pose.stride * body.stride
    drop = 0.06 * step * step * abs(sin(pose.phase)) * h
    hips = np.array([0.0, body.leg * h - drop, 0.0])
    chest = 0.815 * h + (body.leg - 0.515) * 0.35 * h
    lean = _pitch_matrix(body.stoop)
    _torso(build, who, lean, hips, chest)
    rise = chest - body.leg * h
    left = sin(pose.phase)
    for side, swing in ((1.0, left), (-1.0, -left)):
        _leg(build, who, pose, side, hips + np.array([side * body.hip * 0.56, -0.01 * h, 0.0]), swing)
        socket = hips + lean @ np.array([side * (body.shoulder * 0.90), rise - 0.014 * h, 0.0])
        _arm(build, who, pose, side, socket, -swing)
    _head(build, who, pose, hips + lean @ np.array([0.0, rise + 0.045 * h, 0.0]))
    _bag(build, who, lean, hips, chest)
    return build.parts
