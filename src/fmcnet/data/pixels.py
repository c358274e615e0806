"""Pixel values: of any depth to 0..255 by one rule, colours that contradict the modality, remarks on both."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmcnet.errors import DataError
from fmcnet.types import NO_CAMERA, BoolArray, Modality

Pixels: TypeAlias = NDArray[np.uint8]

ValueRange: TypeAlias = tuple[float, float]
"""The values that become 0 and 255, in the unit of the pixels (degrees, counts)."""

LEAST_SPAN = 64
"""Values in 0..255 of a deeper type are taken as 8-bit values when they span this much."""
FLAT = 2
"""Grey levels: a deeper image that spans less after mapping shows nothing."""

FEW = 16
"""Grey levels: if a deeper image of many values keeps no more, the range is far too wide for it."""

STRETCHED, OUTSIDE, PAGES, FLAT_8, DROPPED = "stretched", "outside", "pages", "flat", "dropped"
COARSE, RANGED, DAMAGED = "coarse", "ranged", "damaged"
FULL_FRAME, COLOURLESS, COLOURED = "frame", "colourless", "coloured"
_SENTENCES = {
    STRETCHED: "with values of no usual range: each was stretched by its own percentiles, so the same person is not "
    "equally bright in every crop; {range}",
    OUTSIDE: "with more than half of the pixels outside the given range: check --range (Python: value_range)",
    COARSE: "with few grey levels left, as the range is too wide for their values; {range}",
    PAGES: "with several pages or frames: only the first was read",
    FLAT_8: "nearly constant, showing nothing: check the camera, or remove them",
    # RANGED, of images that a range was applied to, is counted only
    FULL_FRAME: "wider than high, or as large as a full frame, and taken as one person: cut persons out first "
    "(fmcnet crop)",
    COLOURLESS: "without any colour, given as visible: is it infrared? Then say so",
    COLOURED: "with colours, given as infrared: is it visible? Then say so; save false colours as grey",
    DROPPED: "with further channels (not red, green, blue or alpha): they were dropped",
    DAMAGED: "of a damaged part of the video: its decoder made up pixels, so look at these crops",
}

RANGE = "give --range LOW:HIGH (Python: value_range)"
RANGE_UNUSED = "the range has no effect: these images have 8 bits, which stay as they are"
RANGE_FIELD = "give the field range as LOW:HIGH"
OR_RANGE = ", or give --range LOW:HIGH"
"""In messages of commands that take a range."""
NO_RANGE = "training and evaluation take no range: convert deep images to 8 bits first"


class Remarks:
    """Doubtful images, counted by kind; several threads may add to it."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Add an image of a kind (`STRETCHED`, ...); the same image counts once."""
        self._names.setdefault(kind, set()).add(name)

    def kinds(self) -> list[str]:
        """The kinds that occur."""
        return list(self._names)

    def ranged(self) -> bool:
        """Whether a range was applied to one of them."""
        return not {RANGED, OUTSIDE, COARSE}.isdisjoint(self._names)

    def ranges(self, value_range: ValueRange | None) -> list[ValueRange | None]:
        """The ranges that deep images were encoded with: `value_range`, which was given, and None where stretched."""
        return [value_range] * self.ranged() + [None] * (STRETCHED in self._names)

    def update(self, other: Remarks) -> None:
        """Add the images of another."""
        for kind, names in other._names.items():
            self._names.setdefault(kind, set()).update(names)

    def lines(self, advice: str = RANGE) -> list[str]:
        """A sentence for each kind, with the number of images and the first name.

        Args:
            advice: `RANGE`, `RANGE_FIELD` over HTTP, or `NO_RANGE` where none can be given.
        """
        lines = []
        for kind, sentence in _SENTENCES.items():
            if names := self._names.get(kind):
                images = "1 image" if len(names) == 1 else f"{len(names)} images"
                lines.append(f"{images} {sentence.format(range=advice)} (the first is {min(names)})")
        return lines


def parse_range(text: str) -> ValueRange:
    """ "LOW:HIGH", as "15:40" or "-10.5:60".

    Raises:
        DataError: for anything else than two finite numbers, the lower one first.
    """
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise DataError(f"--range {text}: give two numbers as LOW:HIGH, for example 15:40") from error
    return check_range((low, high))


def range_text(value_range: ValueRange | None) -> str:
    """As `--range` takes it; "none" for None."""
    return "none" if value_range is None else f"{value_range[0]:.15g}:{value_range[1]:.15g}"


def check_range(value_range: Any) -> ValueRange:
    """A range as two floats.

    Raises:
        DataError: when these are not two finite numbers, the lower one first.
    """
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"value_range={value_range!r}: give two numbers (low, high)") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low)):
        raise DataError(f"the range {low:g}:{high:g} needs two finite numbers, the lower one first")
    return low, high


def eight_bits(
    values: NDArray[Any], value_range: ValueRange | None = None
) -> tuple[NDArray[np.uint8], str | None]:
    """Values of a type deeper than 8 bits as 0..255; all channels are mapped alike.

    The first line that fits is the rule:

    1. `value_range` is given: linear from low to high, clipped.
    2. floats in 0..1: times 255.
    3. 16-bit values that are all multiples of 257: 8-bit values at full scale; divided by 257.
    4. values in 0..255 that span `LEAST_SPAN` or more: 8-bit values; rounded.
    5. everything else: linear from the image's 0.5th to its 99.5th percentile, clipped (`STRETCHED`).

    Args:
        values: (H, W) or (H, W, C), integers or floats.
        value_range: the values that become 0 and 255.

    Returns:
        The same shape in uint8, and `STRETCHED`, `OUTSIDE`, `COARSE`, `RANGED` or None.

    Raises:
        ValueError: for NaN or infinite values, no pixel in the range, a nearly constant image, and where values far
            from the others leave these no more than `FEW` levels; the text has the values.
    """
    is_float = values.dtype.kind == "f"
    floats = values.astype(np.float64)
    if not np.isfinite(floats).all():
        raise ValueError("holds NaN or infinite values: replace them, for example by the lowest value")
    minimum, maximum = float(floats.min()), float(floats.max())
    span_text = f"its values are {minimum:g} to {maximum:g}"
    remark = None
    if value_range is not None:
        low, high = value_range
        outside = (floats < low) | (floats > high)
        if outside.all():
            raise ValueError(f"no pixel is in the range {low:g}:{high:g}: {span_text}")
        remark = OUTSIDE if outside.mean() > 0.5 else RANGED
    elif is_float and minimum >= 0 and maximum <= 1:
        low, high = 0.0, 1.0
    elif not is_float and minimum >= 0 and 257 <= maximum <= 65535 and not (values % 257).any():
        low, high = 0.0, 65535.0
    elif minimum >= 0 and maximum <= 255 and maximum - minimum >= LEAST_SPAN:
        low, high = 0.0, 255.0
    else:
        low, high = (float(edge) for edge in np.percentile(floats, (0.5, 99.5)))
        noise = max(abs(low), abs(high)) * 1e-3
        if high - low <= (noise if is_float else max(noise, 3.0)):
            raise ValueError(f"is nearly constant and shows nothing: {span_text}")
        remark = STRETCHED
    scaled = floats - low
    scaled *= 255 / (high - low)  # in place, as in `_to_uint8`: a large image takes 200 MB of float64
    mapped = _to_uint8(scaled)
    if int(mapped.max()) - int(mapped.min()) < FLAT:
        raise ValueError(f"is nearly constant and shows nothing: {span_text}, of a range {low:g}:{high:g}")
    levels = len(np.unique(mapped))
    if levels <= FEW and len(np.unique(floats)) >= 8 * levels:
        if remark == STRETCHED:
            raise ValueError(
                f"shows nothing beside values far from the others, as of missing pixels: {span_text}; replace "
                f"these{OR_RANGE}"
            )
        remark = OUTSIDE if remark == OUTSIDE else COARSE
    return mapped, remark


def eight_bit_image(
    values: NDArray[Any],
    value_range: ValueRange | None,
    remarks: list[str],
    mode: str = "RGB",
    *,
    alpha: NDArray[np.uint8] | None = None,
    inverted: bool = False,
) -> Image.Image:
    """An image of values (H, W) or (H, W, C) of any depth, C not 2; `remarks` gets the kind of a doubtful one."""
    if values.dtype != np.uint8:
        if alpha is not None and not alpha.all():  # what is hidden does not count
            hidden, values = alpha == 0, values.copy()
            values[hidden] = np.resize(values[~hidden], values[hidden].shape)
        values, remark = eight_bits(values, value_range)
        remarks += [remark] if remark else []
    values = 255 - values if inverted else values
    height, width = values.shape[:2]
    return Image.frombytes("L" if values[0, 0].size == 1 else mode, (width, height), values.tobytes())


def eight_bits_of_alpha(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Alpha of any type as 0..255: floats are 0..1, integers are of full scale."""
    scale = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    return _to_uint8(values.astype(np.float64) * (255 / scale))


def _to_uint8(values: NDArray[np.float64]) -> Pixels:
    """The values rounded, within 0..255; `values` itself changes."""
    np.rint(values.clip(0, 255, out=values), out=values)
    return values.astype(np.uint8)


COLOURLESS_BELOW, COLOURED_FROM = 1.5, 4.0
"""Grey levels of `colours_doubtful`: below the first an image has no colours, above the second it has."""
LOOKED_AT = 16
"""Images of a camera that `colour_notes` checks, evenly spaced."""
MOST_CAMERAS = 64
"""If a modality has more cameras, they are checked as one."""


def colours_doubtful(pixels: Pixels, modality: Modality) -> BoolArray:
    """Which images have colours that contradict their modality.

    The measure is the colour variation beyond one tint, in grey levels, over blocks of 4 x 4 pixels. Real visible
    crops have 3.7 and more, generated ones 7. Infrared ones have at most 0.6, from JPEG compression. A visible image
    without contrast is colourless only if it is grey throughout. The page has the same bounds (`images.js`), but
    measures each image at 32 x 64 pixels and makes no exception.

    Args:
        pixels: (N, H, W, 3) uint8.
        modality: of all.

    Returns:
        (N,): infrared images with colours, visible ones without.
    """
    count, height, width, _ = pixels.shape
    # Sums over blocks, so that a sensor's colour noise does not count as colour.
    rows, columns = min(4, height), min(4, width)
    whole = pixels[:, : height - height % rows, : width - width % columns]
    blocks = whole.reshape(count, height // rows, rows, width // columns, columns, 3)
    sums = blocks.sum(2, dtype=np.uint16).sum(3, dtype=np.uint16).reshape(count, -1, 3)
    values = sums.astype(np.float32) / (rows * columns)
    light = values.mean(2) - values.mean((1, 2))[:, None]
    light_variance = (light**2).mean(1)
    colour_variance = np.zeros(len(pixels), dtype=np.float32)
    for channel in (0, 2):
        tint = values[..., channel] - values[..., 1]
        tint -= tint.mean(1, keepdims=True)
        colour_variance += (tint**2).mean(1) - (tint * light).mean(1) ** 2 / np.maximum(light_variance, 1e-9)
    if modality is Modality.INFRARED:
        return np.asarray(colour_variance > COLOURED_FROM**2)
    colourless = colour_variance < COLOURLESS_BELOW**2
    for index in np.flatnonzero(colourless & (light_variance <= 64)):  # flat: judged only if it is grey
        colourless[index] = (pixels[index] == pixels[index, ..., :1]).all()
    return colourless


def note_colours(pixels: Pixels, modality: Modality, names: Sequence[str], remarks: Remarks) -> None:
    """Add the images of `colours_doubtful`, by their names, to the remarks, as `COLOURED` or `COLOURLESS`."""
    kind = COLOURED if modality is Modality.INFRARED else COLOURLESS
    for index in np.flatnonzero(colours_doubtful(pixels, modality)).tolist():
        remarks.add(kind, names[index])


def colour_notes(
    modality: Sequence[int] | NDArray[np.generic],
    load: Callable[[int], Pixels],
    camera: Sequence[int] | NDArray[np.generic] | None = None,
) -> Iterator[str]:
    """A sentence for each modality that has a camera of which more than half of the images contradict it.

    Args:
        modality: (N,) codes.
        load: gives the (H, W, 3) pixels of an image by its number. Those that raise DataError are left out.
        camera: (N,) numbers; None: one camera a modality.
    """
    codes = np.asarray(modality)
    cameras = np.full(len(codes), NO_CAMERA) if camera is None else np.array(camera)
    for kind in Modality:
        rows = np.flatnonzero(codes == kind.code)
        if len(np.unique(cameras[rows])) > MOST_CAMERAS:
            cameras[rows] = NO_CAMERA
        count, looked_at, named = 0, 0, list[str]()  # of the cameras that contradict
        for camera_number in np.unique(cameras[rows]).tolist():
            of_camera = rows[cameras[rows] == camera_number]
            spread = np.linspace(0, len(of_camera) - 1, min(LOOKED_AT, len(of_camera))).astype(int)
            doubtful: list[bool] = []
            for row in of_camera[np.unique(spread)].tolist():  # one at a time: it may be a large frame
                with contextlib.suppress(DataError):
                    doubtful.append(bool(colours_doubtful(load(row)[None], kind)[0]))
            if 2 * sum(doubtful) > len(doubtful):
                count, looked_at = count + sum(doubtful), looked_at + len(doubtful)
                named += [str(camera_number)] if camera_number != NO_CAMERA else []
        if count:
            finding = "have colours" if kind is Modality.INFRARED else "have no colour"
            where = f" by camera {', '.join(named)}" if named else ""
            yield (
                f"{count} of {looked_at} images looked at that are given as {kind}{where} {finding}: are they "
                f"{kind.other}? Then correct their modality"
            )
