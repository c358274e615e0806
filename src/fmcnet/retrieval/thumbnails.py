"""Small pictures of crops, for a gallery, a page or the service."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmcnet.data.images import open_rgb, to_rgb
from fmcnet.data.value_range import ValueRange
from fmcnet.errors import FmcnetError

SIZE = (192, 384)
"""Most width and height, pixels."""


def thumbnail(source: Any, value_range: ValueRange | None = None, size: tuple[int, int] = SIZE) -> bytes:
    """A JPEG of at most `size`, without metadata, of a path, a Pillow image or an (H, W, 3) uint8 array.

    Raises:
        DataError: when it cannot be read. FmcnetError: for anything else.
    """
    if isinstance(source, (str, Path)):
        image = open_rgb(source, value_range)
    elif isinstance(source, Image.Image):
        image = to_rgb(source, value_range).copy()
    elif isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3:
        image = Image.fromarray(source).convert("RGB")
    else:
        raise FmcnetError(
            f"keep_images takes paths, Pillow images and uint8 arrays, not {type(source).__name__}"
        )
    image.thumbnail(size)
    out = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(out, "JPEG", quality=85)
    return out.getvalue()
