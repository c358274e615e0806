"""FMCNet in a plain PyTorch loop, without the trainer.

    python examples/train_plain_loop.py data --steps 20

Each step has two turns: the discriminators learn to tell generated from real features, then everything else
learns to recognise people and to fool them. At the end the model is kept. `fmcnet train` adds the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import fmcnet
from fmcnet.config import AugmentConfig
from fmcnet.data.cache import ImageCache
from fmcnet.data.loader import IdentityModalitySampler, TrainingImages, collate
from fmcnet.data.table import sample_images
from fmcnet.losses.criterion import FMCNetLoss
from fmcnet.models.card import ModelCard
from fmcnet.models.checkpoint import save_pretrained
from fmcnet.training.selection import estimate_statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a dataset's folder or CSV")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("plain-run"))
    args = parser.parse_args()

    torch.manual_seed(0)
    config = fmcnet.load_config(args.config)
    p, k = config.data.identities, config.data.images
    table = fmcnet.read_dataset(args.data).select(split="train")
    labels, pids = table.labels()
    cache = ImageCache(table, config.data.height, config.data.width)  # decoded once, memory-mapped
    dataset = TrainingImages(cache.images, labels, table.modality, config.augment, seed=0, draws=p * k)
    sampler = IdentityModalitySampler(labels, table.modality, identities=p, images=k, steps=args.steps)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)

    model = fmcnet.FMCNet.from_config(config, num_classes=len(pids), pretrained=True)
    criterion = FMCNetLoss(config.losses, identities=p, compensation=model.compensation)
    discriminators = model.compensation.discriminator_parameters()
    owned = {id(parameter) for parameter in discriminators}
    optimizer = torch.optim.AdamW([v for v in model.parameters() if id(v) not in owned], lr=0.001)
    discriminator_optimizer = torch.optim.Adam(discriminators, lr=0.01)

    sampler.set_epoch(0)  # with its number before each epoch: otherwise all have the same batches
    for step, batch in enumerate(loader):  # two aligned halves of P*K uint8 images
        output = model(batch.visible, batch.infrared)  # the model normalises

        discriminator_optimizer.zero_grad()
        criterion.discriminator_loss(output).backward()
        discriminator_optimizer.step()
        model.compensation.renormalize()  # for model.discriminator_bound

        loss, terms = criterion(output, batch.labels)  # the sum, and its named terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step:2d}  " + "  ".join(f"{name} {term.item():.3f}" for name, term in terms.items()))

    # For search: running averages of few augmented batches are poor statistics (and standardized=true has none yet).
    as_they_are = AugmentConfig(pad=0, flip=0, erase=0)
    plain_images = TrainingImages(cache.images, labels, table.modality, as_they_are, seed=0, draws=p * k)
    plain = DataLoader(plain_images, batch_sampler=sampler, collate_fn=collate)
    estimate_statistics(model.eval(), lambda: plain)
    card = ModelCard(config, tuple(pids.tolist()), table.name, args.steps, samples=sample_images(table))
    print(fmcnet.load(save_pretrained(model, card, args.out)))


if __name__ == "__main__":
    main()
