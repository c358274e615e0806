"""Draw a page of the generated benchmark: rows are identities, columns are cameras.

python benchmarks/contact_sheet.py docs/images/generated-page.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fmcnet.synthetic.image import ImageKey, render_image

Column = tuple[str, int, bool]
"""(layout, camera, infrared)"""

COLUMNS: tuple[Column, ...] = (
    ("sysu", 1, False),
    ("sysu", 2, False),
    ("sysu", 4, False),
    ("sysu", 5, False),
    ("sysu", 3, True),
    ("sysu", 6, True),
    ("regdb", 1, False),
    ("regdb", 2, True),
    ("llcm", 4, False),
    ("llcm", 4, True),
)
"""All cameras of SYSU-MM01's layout, both of RegDB's, one pair of LLCM's."""

_MARGIN, _HEAD, _GAP = 34, 34, 3


def _label(layout: str, cam: int, infrared: bool) -> str:
    kind = "visible" if not infrared else ("thermal" if layout == "regdb" else "near IR")
    return f"{layout} {cam}\n{kind}"


def contact_sheet(
    seed: int,
    pids: Sequence[int],
    columns: Sequence[Column] = COLUMNS,
    *,
    height: int = 128,
    width: int = 64,
    index: int = 1,
) -> Image.Image:
    """Draw a labelled page, one row per identity, one column per camera, one image each.

    Args:
        seed: seed of the world.
        pids: identities, top to bottom.
        columns: cameras, left to right.
        height: rows of an image in pixels.
        width: columns of an image in pixels.
        index: number of the image within identity and camera.
    """
    size = (_MARGIN + len(columns) * (width + _GAP), _HEAD + len(pids) * (height + _GAP))
    page = Image.new("RGB", size, (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for col, (layout, cam, infrared) in enumerate(columns):
        x = _MARGIN + col * (width + _GAP)
        pen.multiline_text((x + 2, 4), _label(layout, cam, infrared), fill=(30, 30, 30), font=font, spacing=2)
        for row, pid in enumerate(pids):
            pixels = render_image(ImageKey(seed, layout, pid, cam, infrared, index), height, width)
            page.paste(
                Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB"),
                (x, _HEAD + row * (height + _GAP)),
            )
    for row, pid in enumerate(pids):
        pen.text((4, _HEAD + row * (height + _GAP) + height // 2), f"{pid}", fill=(30, 30, 30), font=font)
    return page


def save_page(path: str | Path, seed: int = 0, pids: Sequence[int] = range(1, 10)) -> Path:
    """Write the page of the documentation as a PNG of 256 colours (small enough to keep in a repository)."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    page = contact_sheet(seed, pids)
    page.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(target, optimize=True)
    return target


if __name__ == "__main__":
    print(save_page(sys.argv[1]))
