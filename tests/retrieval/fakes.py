"""An encoder whose embedding is the colour of a plain image: what a search must answer can be seen by eye."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fmcnet.config import load_config
from fmcnet.inference.calibration import Calibration, Curve
from fmcnet.inference.encoder import Encoder
from fmcnet.models.card import ModelCard
from fmcnet.types import Modality

DIGEST = "0123456789abcdef"
DAY, NIGHT = Modality.VISIBLE, Modality.INFRARED


class ColourBackend:
    """Mean colour, centred: (N, H, W, 3) uint8 to (N, 3)."""

    name, device = "fake", "cpu"

    def __call__(self, images, modality):
        return (images.astype(np.float32).mean(axis=(1, 2)) - 127.5) / 127.5


def curve(shift=0.0):
    """Evidence 8 * (similarity - shift); a similarity of 1 - 2 r is reached at the false-match rate r."""
    rates = np.array([1.0, 0.1, 0.01, 0.001])
    return Curve(
        same=1000,
        different=100_000,
        similarity=np.array([-1.0, 1.0]),
        evidence=8.0 * (np.array([-1.0, 1.0]) - shift),
        false_match_rate=rates,
        threshold=(1.0 - 2.0 * rates + shift / 10).clip(-1, 1),
        true_match_rate=np.array([1.0, 0.9, 0.8, 0.7]),
    )


def encoder(tmp_path, curves=None, digest=DIGEST):
    """A colour encoder, calibrated if `curves` are given."""
    calibration = None
    if curves is not None:
        calibration = Calibration(digest, curves).save(tmp_path / f"calibration-{digest}.json")
    card = ModelCard(load_config("tiny"), (1, 2), "colours", 0)
    return Encoder(ColourBackend(), card, digest, None, calibration)


def image(red, green, blue):
    """A colour, two levels brighter above and darker below: not constant, and the mean is the colour."""
    image = Image.new("RGB", (24, 48), (red + 2, green + 2, blue + 2))
    image.paste((red - 2, green - 2, blue - 2), (0, 24, 24, 48))
    return image


def similarity(a, b):
    """Cosine of two colours, the slow way."""
    a, b = (np.array(x, dtype=float) - 127.5 for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
