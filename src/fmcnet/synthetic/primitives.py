"""The shapes a body is made of, and the builder that places them in view space.

Body frame: x to the person's left, y up from the floor, z forwards, in metres. View frame: x right, y up, z
towards the camera. A view is a yaw, a camera pitch and a mild perspective (each primitive is scaled by its own
depth).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

RULE_PLAIN, RULE_HEAD, RULE_HAIR, RULE_HAT, RULE_CHEST = range(5)
"""How a quadric assigns material slots to its points; see `render`."""

Matrix = NDArray[np.float64]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """What changes from image to image. Angles in radians.

    Attributes:
        yaw: 0 faces the camera, pi shows the back.
        phase: walking phase, 0 to 2 pi.
        stride: amplitude relative to the identity's own stride, 0 (standing) to 1.2.
        swing: amplitude of the arms in radians.
        bend: bend of the elbows in radians.
        phone: +1 or -1 raises that forearm, 0 none.
        nod: pitch of the head.
        turn: yaw of the head relative to the body.
    """

    yaw: float
    phase: float
    stride: float
    swing: float
    bend: float
    phone: float
    nod: float
    turn: float


@dataclass(frozen=True)
class View:
    """Camera pitch in radians (positive looks down) and distance in metres."""

    pitch: float
    distance: float


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
    """An ellipsoid, a frustum (local radius 1 + k y for y in [0, 1]), or a rounded box.

    Attributes:
        centre: view-space origin of the local frame (a frustum's lower end).
        matrix: (3, 3) view offset to local coordinates.
        shape: "ellipsoid", "frustum" or "box".
        k: growth of the frustum's radius from y = 0 to y = 1.
        slot: material slot.
        rule: one of the RULE_ constants.
        tex: texture height in metres at local y = 0.
        tex_scale: metres of texture height per local y.
        width: metres of texture per radian around.
    """

    centre: Vector
    matrix: Matrix
    shape: str
    k: float
    slot: int
    rule: int
    tex: float
    tex_scale: float
    width: float


class Builder:
    """Collects primitives, turning body coordinates into view coordinates."""

    def __init__(self, pose: Pose, view: View, height: float) -> None:
        self.rotation: Matrix = pitch_matrix(view.pitch) @ yaw_matrix(pose.yaw)
        self.distance = view.distance
        self.yaw = pose.yaw
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
        rule: int = RULE_PLAIN,
        tilt: Matrix | None = None,
        tex: float = 0.0,
        width: float = 0.14,
    ) -> None:
        """Add an ellipsoid, frustum or box with the given centre and half axes (body frame); `tilt` turns it."""
        origin, scale = self._view(centre)
        rotation = self.rotation if tilt is None else self.rotation @ tilt
        matrix = rotation.T / (np.array(radii) * scale)[:, None]
        self.parts.append(Quadric(origin, matrix, shape, k, slot, rule, tex, radii[1], width))


def pitch_matrix(angle: float) -> Matrix:
    """Rotation about x: positive leans forwards."""
    c, s = cos(angle), sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def yaw_matrix(angle: float) -> Matrix:
    """Rotation about y: positive turns to the person's left."""
    c, s = cos(angle), sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
