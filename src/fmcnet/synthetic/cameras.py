"""Generated cameras: place, light, lens and sensor."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """One camera."""

    camid: int  # its number in the layout
    spectrum: str  # "visible", "nir" or "thermal"
    place: int  # number of its place; two cameras in one room share it
    outdoor: bool  # whether the place is outdoors
    pitch: float  # downward tilt in radians, 0.03 to 0.40
    distance: float  # metres to the person, 4 to 9
    light: tuple[float, float]  # azimuth and elevation of the key light in radians
    key: tuple[float, float, float]  # linear RGB of the key light
    ambient: tuple[float, float, float]  # linear RGB of the ambient light
    response: tuple[float, ...]  # (3, 3) colour matrix of the sensor, row-wise
    exposure: float  # gain
    gamma: float  # exponent of the tone curve, 0.36 to 0.62
    blur: float  # standard deviation in pixels per 128 rows
    noise: float  # standard deviation in grey levels (0 to 255)
    native: float  # resolution relative to the written image, 0.3 to 1
    lamp: tuple[float, float]  # strength and ambient of the near-infrared lamp
    span: tuple[float, float] = (14.0, 35.5)  # degrees Celsius that a thermal camera shows dark and bright
    inverted: bool = False  # whether a thermal camera shows warm as dark
    motion: float = 0.0  # length of the motion blur, relative to the height of the image; 0 is none
    glare: float = 0.0  # strength of a headlight or street lamp that shines into the lens; 0 is none
    shade: float = 0.0  # what a deep shadow takes from a part of the image, 0 to 1
    quality: int = 0  # of the JPEG compression in the camera; 0 is none


LAYOUT_NUMBERS = {"sysu": 1, "regdb": 2, "llcm": 3, "wild": 4}
"""Numbers of the layouts in random seeds."""
WILD = {"visible": range(1, 41), "nir": range(41, 61), "thermal": range(61, 81)}
"""Cameras of the layout wild."""
_PLACEMENTS = {
    "sysu": {1: ("visible", 1, False), 2: ("visible", 2, False), 3: ("nir", 2, False),
             4: ("visible", 4, True), 5: ("visible", 5, True), 6: ("nir", 6, True)},
    "regdb": {1: ("visible", 1, True), 2: ("thermal", 1, True)},
    "wild": {c: (kind, c, c % 2 == 0) for kind, cameras in WILD.items() for c in cameras},
}  # fmt: skip
"""Spectrum, place and outdoor flag of each camera; LLCM's places have a camera of each spectrum."""


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return (float(values[0]), float(values[1]), float(values[2]))


@lru_cache(maxsize=64)
def camera(layout: str, seed: int, camid: int, infrared: bool) -> Camera:
    """Draw a camera by its number; in LLCM's layout, where two cameras share a number, `infrared` selects one."""
    number = LAYOUT_NUMBERS[layout]
    llcm_placement = ("nir" if infrared else "visible", camid, camid > 6)
    spectrum, place, outdoor = _PLACEMENTS[layout][camid] if layout in _PLACEMENTS else llcm_placement
    rng = np.random.default_rng([7201, seed, number, camid, int(infrared)])
    warmth = rng.normal(0.0, 0.11)
    tint = np.exp(np.array([warmth, 0.0, -warmth]))
    key = tint * (rng.uniform(0.9, 1.3) if outdoor else rng.uniform(0.5, 0.85))
    ambient = (0.5 + 0.5 * tint) * rng.uniform(0.45, 0.65)
    mixing = np.eye(3) * 1.12 - 0.04 + rng.normal(0.0, 0.03, (3, 3))
    mixing *= 1.0 / mixing.sum(axis=1, keepdims=True) * np.exp(rng.normal(0.0, 0.06, (3, 1)))
    low_light = 0.7 if layout == "llcm" else 1.0
    exposure = low_light * rng.uniform(0.75, 1.10) / float(np.mean(key) * 0.55 + np.mean(ambient))
    noise = rng.uniform(1.2, 3.0) * (1.6 if layout == "llcm" else 1.0)
    native, blur = rng.uniform(0.75, 1.0), rng.uniform(0.1, 0.5)
    if spectrum == "nir":
        noise, blur = 1.3 * noise, blur + 0.1
    elif spectrum == "thermal":
        noise, blur, native = 1.5, 0.7, 0.5
    drawn = Camera(
        camid=camid,
        spectrum=spectrum,
        place=place,
        outdoor=outdoor,
        pitch=rng.uniform(0.06, 0.34),
        distance=rng.uniform(4.0, 9.0),
        light=(rng.uniform(-1.2, 1.2), rng.uniform(0.5, 1.2)),
        key=_triple(key),
        ambient=_triple(ambient),
        response=tuple(float(v) for v in mixing.reshape(-1)),
        exposure=exposure,
        gamma=rng.uniform(0.42, 0.52),
        blur=blur,
        noise=noise,
        native=native,
        lamp=(rng.uniform(0.95, 1.5), rng.uniform(0.05, 0.22)),
    )
    return _randomized(drawn, rng) if layout == "wild" else drawn


def _randomized(cam: Camera, rng: np.random.Generator) -> Camera:
    """A camera of the layout wild: domain randomisation, beyond the range of a single real camera.

    Ranges are ours: night to noon, sodium light, cheap sensors, compression, thermal cameras of either polarity.
    """

    def maybe(share: float, low: float, high: float) -> float:
        value, hit = rng.uniform(low, high), rng.random() < share
        return value if hit else 0.0

    sodium, dark = maybe(0.2, 0.5, 1.0), maybe(0.35, 0.4, 1.5)
    tint = np.exp(sodium * np.array([0.35, 0.0, -0.9]) + rng.normal(0.0, 0.12, 3))
    thermal = cam.spectrum == "thermal"
    return replace(
        cam,
        key=_triple(np.array(cam.key) * tint),
        ambient=_triple(np.array(cam.ambient) * tint * rng.uniform(0.3, 1.2)),
        exposure=cam.exposure * float(np.exp(rng.normal(0.0, 0.15) - dark)),
        gamma=rng.uniform(0.36, 0.62),
        blur=rng.uniform(0.3, 1.3) if thermal else rng.uniform(0.1, 1.1),
        noise=float(np.exp(rng.uniform(0.3, 2.2))),
        native=rng.uniform(0.3, 0.8) if thermal else rng.uniform(0.35, 1.0),
        lamp=(rng.uniform(0.5, 2.0), rng.uniform(0.02, 0.5)),
        span=(rng.uniform(4.0, 18.0), rng.uniform(27.0, 42.0)),
        inverted=bool(maybe(0.15, 0.5, 1.0)),
        motion=maybe(0.3, 0.01, 0.05),
        glare=0.0 if thermal else maybe(0.2, 0.2, 0.9),
        shade=0.0 if thermal else maybe(0.3, 0.3, 0.85),
        quality=int(maybe(0.6, 20.0, 90.0)),
    )


def _tone(linear: Float, gamma: float) -> Bytes:
    """Linear radiance to 8 bits through a shoulder (soft saturation) and a gamma curve, by table."""
    level = np.linspace(0.0, 1.6, 2048)
    soft = np.where(level < 0.7, level, 0.7 + 0.3 * np.tanh((level - 0.7) / 0.3))
    table = np.rint(255.0 * soft**gamma).astype(np.uint8)
    index = np.clip(linear * (2047.0 / 1.6), 0.0, 2047.0).astype(np.uint16)
    return np.asarray(table[index], dtype=np.uint8)


def _apply_sensor(
    image: Image.Image, cam: Camera, size: tuple[int, int], gain: float, rng: np.random.Generator
) -> Bytes:
    """Resample to the sensor's resolution, blur, add noise, resample to (width, height) `size`."""
    native = (max(8, round(size[0] * cam.native * gain)), max(16, round(size[1] * cam.native * gain)))
    image = image.resize(native, Image.Resampling.BILINEAR)
    if cam.motion > 0.0:
        image = _motion_blurred(image, max(1, round(cam.motion * native[1] * rng.uniform(0.3, 1.0))))
    blur = cam.blur * native[1] / 128.0
    if blur > 0.25:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image).astype(np.float32)
    if cam.noise > 0.0:
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels += noise * (cam.noise * (1.15 - 0.6 * pixels / 255.0))
    result = Image.fromarray(np.clip(np.rint(pixels), 0.0, 255.0).astype(np.uint8))
    if cam.quality:
        stream = io.BytesIO()
        result.save(stream, "JPEG", quality=cam.quality)
        result = Image.open(stream)
    if result.size != size:
        result = result.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(result)


def _motion_blurred(image: Image.Image, length: int) -> Image.Image:
    """Blur along the rows, over `length` pixels."""
    pixels = np.asarray(image).astype(np.float32)
    edge = [(0, 0), (length // 2, length - 1 - length // 2)] + [(0, 0)] * (pixels.ndim - 2)
    total = np.cumsum(np.pad(pixels, edge, mode="edge"), axis=1)
    total = np.pad(total, [(0, 0), (1, 0)] + [(0, 0)] * (pixels.ndim - 2))
    mean = (total[:, length:] - total[:, :-length]) / length
    return Image.fromarray(np.clip(np.rint(mean), 0.0, 255.0).astype(np.uint8))


def _apply_lighting(radiance: Float, cam: Camera, rng: np.random.Generator) -> Float:
    """Add a shadow over a part of the image and the glare of a light, if the camera has them."""
    h, w = radiance.shape[:2]
    y, x = np.arange(h, dtype=np.float32)[:, None] / h, np.arange(w, dtype=np.float32)[None, :] / w
    if cam.shade > 0.0:
        angle, offset = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(-0.25, 0.25)
        softness = rng.uniform(0.01, 0.2)
        edge_distance = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) - offset) / softness
        dark = 1.0 - cam.shade / (1.0 + np.exp(-np.clip(edge_distance, -30.0, 30.0)))
        radiance = radiance * (dark if radiance.ndim == 2 else dark[..., None])
    if cam.glare > 0.0:
        cx, cy, size = (rng.uniform(-0.2, 1.2), rng.uniform(-0.1, 1.1), rng.uniform(0.15, 0.5))
        spot = cam.glare * np.exp(-(((x - cx) / size) ** 2) - ((2.0 * (y - cy)) / size) ** 2)
        warm = np.array([1.0, 0.92, 0.75], dtype=np.float32)
        radiance = radiance + (spot if radiance.ndim == 2 else spot[..., None] * warm)
    return np.asarray(radiance, dtype=np.float32)


def develop_visible(radiance: Float, cam: Camera, size: tuple[int, int], rng: np.random.Generator) -> Bytes:
    """Linear RGB (h, w, 3) to the written image, (height, width, 3) uint8."""
    gain = cam.exposure * float(np.exp(rng.normal(0.0, 0.08)))
    radiance = _apply_lighting(radiance, cam, rng)
    matrix = (np.array(cam.response, dtype=np.float32).reshape(3, 3) * np.float32(gain)).T
    image = Image.fromarray(_tone(radiance @ matrix, cam.gamma))
    return _apply_sensor(image, cam, size, rng.uniform(0.88, 1.0), rng)


def develop_nir(radiance: Float, cam: Camera, size: tuple[int, int], rng: np.random.Generator) -> Bytes:
    """Near-infrared radiance (h, w) to one grey channel (height, width) uint8; the lamp falls off to the rim."""
    h, w = radiance.shape
    y = (np.arange(h, dtype=np.float32) / h - 0.42 - 0.05 * rng.normal())[:, None]
    x = (np.arange(w, dtype=np.float32) / w - 0.5 - 0.05 * rng.normal())[None, :]
    spot = 1.0 / (1.0 + 1.3 * (y * y) + 0.55 * (x * x))
    gain = 0.62 * float(np.exp(rng.normal(0.0, 0.08)))
    radiance = _apply_lighting(radiance, cam, rng)
    image = Image.fromarray(_tone(radiance * (spot * np.float32(gain)), cam.gamma + 0.10))
    return _apply_sensor(image, cam, size, rng.uniform(0.88, 1.0), rng)


def develop_thermal(celsius: Float, cam: Camera, size: tuple[int, int], rng: np.random.Generator) -> Bytes:
    """Temperatures (h, w) to one grey channel (height, width) uint8: soft, with the dark halo of local contrast."""
    low = cam.span[0] + rng.normal(0.0, 0.7)
    high = cam.span[1] + rng.normal(0.0, 0.4)
    level = np.clip((celsius - low) / (high - low), 0.0, 1.0)
    level = 1.0 - level if cam.inverted else level
    image = Image.fromarray(np.rint(level * 235.0 + 8.0).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.BoxBlur(0.05 * image.size[1])), dtype=np.float32)
    sharp = np.asarray(image, dtype=np.float32)
    image = Image.fromarray(np.clip(sharp + 0.22 * (sharp - blurred), 0.0, 255.0).astype(np.uint8))
    return _apply_sensor(image, cam, size, rng.uniform(0.85, 1.0), rng)
