"""A generated person: body, hair, clothes and bag, drawn once from (seed, pid).

Everything that stays the same in all images of an identity is decided here; pose, camera and light are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmcnet.synthetic.materials import (
    Material,
    dark_of,
    hair_material,
    make_garment,
    make_leather,
    skin_material,
    weighted_index,
)

SKIN, HAIR, UPPER, LOWER, SHOE, BAG, HAT, DARK, INNER = range(9)
"""Material slots of an identity, in the order of `Identity.materials`."""


@dataclass(frozen=True)
class Body:
    """Proportions of a body. Lengths in metres unless said otherwise.

    Attributes:
        height: stature, 1.50 to 1.98.
        leg: hip height as a fraction of stature, 0.48 to 0.55.
        arm: arm length relative to the average, 0.92 to 1.08.
        shoulder: half shoulder width, about 0.16 to 0.24.
        girth: thickness of torso and limbs relative to the average, 0.8 to 1.4.
        hip: half hip width, about 0.13 to 0.20.
        head: head size relative to the average, 0.92 to 1.08.
        stride: amplitude of the thigh in radians when walking, 0.3 to 0.6.
        stoop: forward lean of the upper body in radians, 0 to 0.16.
    """

    height: float
    leg: float
    arm: float
    shoulder: float
    girth: float
    hip: float
    head: float
    stride: float
    stoop: float


@dataclass(frozen=True)
class Identity:
    """One generated person.

    Attributes:
        pid: the identity's number.
        body: proportions.
        hair: "bald", "short", "bob" or "long".
        hat: "none", "beanie", "cap" or "brim".
        sleeves: "long", "short" or "none".
        bottom: "trousers", "shorts", "skirt" or "dress" (a dress continues the upper garment).
        hem: how far the upper garment reaches below the waist as a fraction of stature (0.02 to 0.30).
        bottom_length: where shorts or skirt end, as a fraction of stature above the floor.
        flare: widening of skirt or coat at its hem, 1.0 to 1.6.
        loose: slack of trouser legs, 1.0 to 1.45.
        open_front: half width in radians of the strip where an open jacket shows the inner shirt; 0 when closed.
        boots: height of the shoe shaft as a fraction of the shin, 0 to 0.75.
        bag: "none", "backpack", "shoulder" or "tote".
        bag_size: relative size, 0.8 to 1.25.
        bag_side: +1 or -1, the side of a shoulder bag or tote.
        materials: one material per slot (`SKIN`, `HAIR`, ...).
        activity: warmth of the person in kelvin added to all clothes in thermal images, -1 to 1.5.
    """

    pid: int
    body: Body
    hair: str
    hat: str
    sleeves: str
    bottom: str
    hem: float
    bottom_length: float
    flare: float
    loose: float
    open_front: float
    boots: float
    bag: str
    bag_size: float
    bag_side: float
    materials: tuple[Material, ...]
    activity: float


def _pick(rng: np.random.Generator, names: tuple[str, ...], weights: tuple[float, ...]) -> str:
    return names[weighted_index(rng, weights)]


def _spread(rng: np.random.Generator) -> float:
    """A standard normal number, clipped to -2..2."""
    return float(np.clip(rng.normal(), -2.0, 2.0))


def _draw_body(rng: np.random.Generator) -> Body:
    tall = _spread(rng)
    height = 1.72 + 0.095 * tall
    girth = float(np.clip(rng.normal(1.04, 0.14), 0.80, 1.40))
    build = _spread(rng)
    return Body(
        height=height,
        leg=0.515 + 0.014 * _spread(rng),
        arm=1.0 + 0.03 * _spread(rng),
        shoulder=height * (0.112 + 0.008 * build) * (0.8 + 0.2 * girth),
        girth=girth,
        hip=height * (0.088 - 0.004 * build) * (0.55 + 0.45 * girth),
        head=1.0 + 0.035 * _spread(rng),
        stride=rng.uniform(0.30, 0.60),
        stoop=rng.uniform(0.0, 0.16),
    )


def draw_identity(seed: int, pid: int) -> Identity:
    """The identity `pid` of the world `seed`: a pure function of the two, the same in every layout.

    Args:
        seed: any non-negative integer.
        pid: any non-negative integer.
    """
    rng = np.random.default_rng([7001, seed, pid])
    body = _draw_body(rng)
    hair = _pick(rng, ("bald", "short", "bob", "long"), (0.07, 0.43, 0.22, 0.28))
    hat = _pick(rng, ("none", "beanie", "cap", "brim"), (0.70, 0.11, 0.12, 0.07))
    sleeves = _pick(rng, ("long", "short", "none"), (0.52, 0.36, 0.12))
    bottom = _pick(rng, ("trousers", "shorts", "skirt", "dress"), (0.52, 0.20, 0.15, 0.13))
    coat = sleeves == "long" and bottom in ("trousers", "skirt") and rng.random() < 0.25
    hem = rng.uniform(0.17, 0.30) if coat else rng.uniform(0.04, 0.10)
    if bottom == "shorts":
        bottom_length = rng.uniform(0.27, 0.39)
    elif bottom == "trousers":
        bottom_length = 0.03 if rng.random() < 0.8 else rng.uniform(0.10, 0.16)  # at the ankle, or cropped
    else:
        bottom_length = rng.uniform(0.14, 0.38)
    jacket = sleeves == "long" and bottom != "dress" and rng.random() < 0.25
    upper = make_garment(rng, warm=2.0 if coat else (0.9 if sleeves == "long" else 0.1), plain=0.42)
    lower = make_garment(rng, warm=0.6, plain=0.66)
    skin = skin_material(rng)
    materials = (
        skin,
        hair_material(rng),
        upper,
        upper if bottom == "dress" else lower,
        make_leather(rng),
        make_garment(rng, warm=3.0, plain=0.84, offset=-3.5),
        make_garment(rng, warm=1.2, plain=0.75),
        dark_of(skin),
        make_garment(rng, warm=0.0, plain=0.70),
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
        bag=_pick(rng, ("none", "backpack", "shoulder", "tote"), (0.40, 0.26, 0.20, 0.14)),
        bag_size=rng.uniform(0.8, 1.25),
        bag_side=1.0 if rng.random() < 0.5 else -1.0,
        materials=materials,
        activity=rng.uniform(-1.0, 1.5),
    )
