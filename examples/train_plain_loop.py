"""FMCNet in a plain PyTorch loop, without the trainer.

    python examples/train_plain_loop.py data --steps 20

Each step has two turns: the discriminators learn to tell generated from real features, then everything else
learns to recognise people and to fool them. `fmcnet train` adds schedule, resume, precision and logging.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fmcnet
from fmcnet.data.samplers import IdentityModalitySampler
from fmcnet.losses.criterion import FMCNetLoss


def read_images(paths: list[Path], height: int, width: int) -> Tensor:
    """(N, 3, H, W) uint8."""
    images = [np.asarray(Image.open(path).convert("RGB").resize((width, height))) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a dataset's folder or CSV")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()

    torch.manual_seed(0)
    config = fmcnet.load_config(args.config)
    identities, images = config.data.identities, config.data.images  # P, K
    table = fmcnet.read_dataset(args.data).select(split="train")
    labels, pids = table.labels()
    pixels = read_images(table.full_paths(), config.data.height, config.data.width)
    sampler = IdentityModalitySampler(
        labels, table.modality, identities=identities, images=images, steps=args.steps
    )

    model = fmcnet.build_model(config.model, classes=len(pids)).train()
    discriminators = model.compensation.discriminator_parameters()
    owned = {id(parameter) for parameter in discriminators}
    optimizer = torch.optim.AdamW([v for v in model.parameters() if id(v) not in owned], lr=0.001)
    discriminator_optimizer = torch.optim.Adam(discriminators, lr=0.01)
    criterion = FMCNetLoss(config.losses, identities, model.compensation)

    for step, (visible, infrared) in enumerate(sampler.batches(epoch=0)):  # rows (P*K,) each
        output = model(pixels[visible], pixels[infrared])  # uint8 is fine: the model normalises
        target = torch.from_numpy(labels[visible])  # the same for both halves

        discriminator_optimizer.zero_grad()
        criterion.discriminator_loss(output).backward()
        discriminator_optimizer.step()

        loss, terms = criterion(output, target)  # the total and its named terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step:2d}  " + "  ".join(f"{name} {term.item():.3f}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
