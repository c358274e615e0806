"""Which batches a training draws: P and K of each process, and look-alikes."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcnet.config import Config
from fmcnet.data.samplers import IdentityModalitySampler
from fmcnet.data.table import Table
from fmcnet.distributed import from_main
from fmcnet.errors import ConfigError
from fmcnet.runtime import Runtime
from fmcnet.types import IntArray

NEIGHBORS = 8  # look-alikes kept of each identity


def identities_of(config: Config, world: int) -> int:
    """P of one process: `data.identities`, or its share of them with `data.share=all`.

    Raises:
        ConfigError: when they cannot be shared out equally.
    """
    if config.data.share == "process":
        return config.data.identities
    if config.data.identities % world:
        raise ConfigError(
            f"data.identities={config.data.identities} cannot be shared by {world} processes (data.share=all): "
            f"take a multiple of {world}"
        )
    return config.data.identities // world


def make_sampler(
    config: Config, rows: Table, labels: IntArray, rank: int, world: int
) -> IdentityModalitySampler:
    """The sampler of one process. Its batches are those that gradients are accumulated over, one after another:
    `training.accumulate` of them make a step, and an epoch is a whole number of steps."""

    def sampler(steps: int | None) -> IdentityModalitySampler:
        return IdentityModalitySampler(
            labels,
            rows.modality,
            identities=identities_of(config, world),
            images=config.data.images,
            seed=config.training.seed,
            rank=rank,
            world=world,
            steps=steps,
            hard=config.data.hard,
        )

    several, steps = config.training.accumulate, config.training.steps_per_epoch
    if several == 1:
        return sampler(steps)
    return sampler((steps or ceil(sampler(None).steps / several)) * several)


@torch.no_grad()
def look_alikes(weights: Tensor, labels: list[int], place: Runtime) -> IntArray:
    """For each identity those that the classifier finds most like it, by the cosine of its weight vectors.

    Args:
        weights: (C, D), a row an identity. labels: those in use, positions in them are returned.

    Returns:
        (len(labels), n), nearest first, n = min(8, len(labels) - 1); the same on every process.
    """
    rows = F.normalize(weights.detach()[labels].float(), dim=1)
    count = min(NEIGHBORS, len(labels) - 1)
    parts = []
    for at in range(0, len(rows), 1024):
        cosines = rows[at : at + 1024] @ rows.T
        cosines[torch.arange(len(cosines)), torch.arange(at, at + len(cosines))] = -2.0
        parts.append(cosines.topk(count, dim=1).indices)
    found = from_main(torch.cat(parts).cpu().contiguous(), place)
    return found.numpy()
