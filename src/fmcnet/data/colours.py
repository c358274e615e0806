"""Whether colours contradict the modality that images are given as."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.value_range import COLOURED, COLOURLESS, Remarks
from fmcnet.errors import DataError
from fmcnet.types import NO_CAMERA, BoolArray, Modality

Pixels = NDArray[np.uint8]

COLOURLESS_BELOW, COLOURED_FROM = 1.5, 4.0
"""Grey levels of `colours_doubtful`: less are no colours, more are."""
LOOKED_AT = 16
"""Images of a camera that `colour_notes` looks at, an even spread."""
MOST_CAMERAS = 64
"""More of a modality are looked at as one."""


def colours_doubtful(pixels: Pixels, modality: Modality) -> BoolArray:
    """Which images have colours that contradict their modality, by the rule of the page (`images.js`).

    Measured is what differs in colour beyond one tint, in grey levels. Real and generated visible crops have 4 and
    more, infrared ones at most 0.6, as JPEG blurs grey.

    Args:
        pixels: (N, H, W, 3) uint8.
        modality: of all.

    Returns:
        (N,): infrared images with colours, visible ones without.
    """
    down, across = min(4, pixels.shape[1]), min(4, pixels.shape[2])
    high, wide = pixels.shape[1] // down * down, pixels.shape[2] // across * across
    small = np.zeros((len(pixels), high // down, wide // across, 3), np.uint16)
    for row, column in itertools.product(range(down), range(across)):  # a sensor's noise of colour is none
        small += pixels[:, row:high:down, column:wide:across]
    values = small.reshape(len(pixels), -1, 3).astype(np.float32) / (down * across)
    light = values.mean(2) - values.mean((1, 2))[:, None]
    spread = (light**2).mean(1)
    beyond = np.zeros(len(pixels), dtype=np.float32)
    for channel in (0, 2):
        tint = values[..., channel] - values[..., 1]
        tint -= tint.mean(1, keepdims=True)
        beyond += (tint**2).mean(1) - (tint * light).mean(1) ** 2 / np.maximum(spread, 1e-9)
    if modality is Modality.INFRARED:
        return np.asarray(beyond > COLOURED_FROM**2)
    grey = (pixels == pixels[..., :1]).all(axis=(1, 2, 3))
    return np.asarray(grey | ((beyond < COLOURLESS_BELOW**2) & (spread > 64)))  # one even colour is no tint


def note_colours(pixels: Pixels, modality: Modality, names: Sequence[str], remarks: Remarks) -> None:
    """Add the images of `colours_doubtful`, by their names, to the remarks, as `COLOURED` or `COLOURLESS`."""
    kind = COLOURED if modality is Modality.INFRARED else COLOURLESS
    for at in np.flatnonzero(colours_doubtful(pixels, modality)).tolist():
        remarks.add(kind, names[at])


def colour_notes(
    modality: Sequence[int] | NDArray[np.generic],
    load: Callable[[int], Pixels],
    camera: Sequence[int] | NDArray[np.generic] | None = None,
) -> Iterator[str]:
    """A sentence for each modality that has a camera of which more than half of the images contradict it.

    Args:
        modality: (N,) codes.
        load: gives the (H, W, 3) pixels of an image by its number. `LOOKED_AT` of each camera are loaded; those
            that raise DataError are passed over.
        camera: (N,) numbers; None: one camera a modality.
    """
    codes = np.asarray(modality)
    cameras = np.full(len(codes), NO_CAMERA) if camera is None else np.asarray(camera)
    for kind in Modality:
        mine = codes == kind.code
        found: dict[int, tuple[int, int]] = {}  # doubtful and all, by camera
        numbers = np.unique(cameras[mine]).tolist()
        for one in numbers if len(numbers) <= MOST_CAMERAS else [NO_CAMERA]:
            rows = np.flatnonzero(mine & ((cameras == one) | (len(numbers) > MOST_CAMERAS)))
            spread = rows[np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int))]
            doubtful: list[bool] = []
            for row in spread.tolist():  # one at a time: it may be a large frame
                with contextlib.suppress(DataError):
                    doubtful.append(bool(colours_doubtful(load(row)[None], kind)[0]))
            if 2 * sum(doubtful) > len(doubtful):
                found[one] = sum(doubtful), len(doubtful)
        if found:
            count, looked_at = (sum(counts) for counts in zip(*found.values(), strict=True))
            what = "have colours" if kind is Modality.INFRARED else "have no colour"
            known = [str(one) for one in found if one != NO_CAMERA]
            where = f" by camera {', '.join(known)}" if known else ""
            yield (
                f"{count} of {looked_at} images looked at that are given as {kind}{where} {what}: are they "
                f"{kind.other}? Then correct their modality"
            )
