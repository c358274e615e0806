"""What a training starts from: images in memory, batches, a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.loader import (
    IdentityModalitySampler,
    TrainingBatch,
    TrainingImages,
    load_batches,
    make_sampler,
)
from fmcnet.data.table import Table, fingerprint, sample_pictures
from fmcnet.distributed import DistributedContext
from fmcnet.errors import ConfigError
from fmcnet.models.build import build_model
from fmcnet.models.card import ModelCard
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import load_pretrained
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.selection import ModelSelection, hold_out
from fmcnet.training.train_step import precision
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """What a training starts from.

    Attributes:
        cache: the training images, (N, H, W, 3) uint8.
        labels: (N,) of the images, 0 to C - 1.
        sampler: of the batches of this process.
        selection: validates, and remembers the best weights.
        model: before its first step.
        card: of the model, at step 0.
    """

    cache: ImageCache
    labels: IntArray
    sampler: IdentityModalitySampler
    selection: ModelSelection
    model: FMCNet
    card: ModelCard

    def batches(
        self, augment: AugmentConfig, first: int, last: int, ctx: DistributedContext
    ) -> Iterator[TrainingBatch]:
        """Batches `first` to `last - 1` of the training, on the device."""
        dataset = TrainingImages(
            self.cache.images,
            self.labels,
            self.cache.table.modality,
            augment,
            seed=self.card.config.training.seed,
            draws=self.sampler.identities * self.sampler.images * ctx.world,
        )
        return load_batches(dataset, self.sampler, ctx.device, first, last)


def prepare(
    config: Config, table: Table, run: Path, ctx: DistributedContext, *, resume: bool, progress: bool | None
) -> TrainingInputs:
    """Read the images and build the model; arguments and errors as `train`."""
    table = hold_out(table, config)
    rows = table.select(split=config.data.train_splits)
    labels, pids = rows.labels()
    sampler = make_sampler(config, rows, labels, ctx.rank, ctx.world)
    selection = ModelSelection(config, table, run, ctx)
    precision(config.training.precision, ctx.device)  # raises where the device lacks it
    if ctx.main:
        for note in (*table.notes, *sampler.notes):
            logger.info("%s", note)
    folder = cache_folder(config.data.cache, table.root)
    cache = ImageCache(rows, config.data.height, config.data.width, folder=folder, progress=progress)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, len(pids))
    if not (resume and checkpoints(run)):
        load_pretrained(model, config.model.pretrained, config.model.arch)
    # Dropout differs between processes.
    torch.manual_seed((config.training.seed * 1_000_003 + ctx.rank) % 2**63)
    card = ModelCard(
        config=config,
        pids=tuple(int(pid) for pid in pids),
        dataset=table.name,
        step=0,
        data=fingerprint(table),
        samples=sample_pictures(cache.table) if ctx.main else (),
    )
    return TrainingInputs(cache, labels, sampler, selection, model, card)


def check_split(config: Config, dataset: str) -> None:
    """Refuse `data.split` beside data that have one split.

    Args:
        config: settings.
        dataset: the name of its table.

    Raises:
        ConfigError: for a split other than 1 of another benchmark than RegDB.
    """
    if config.data.split != 1 and dataset != "regdb":
        raise ConfigError(f"data.split is for RegDB; the data are {dataset}, which has one: leave it out")


def total_steps(config: Config, table: Table, world: int = 1) -> int:
    """Count the steps that `train` will take on this table.

    Args:
        config: settings.
        table: the dataset.
        world: number of processes.
    """
    rows = hold_out(table, config).select(split=config.data.train_splits)
    sampler = make_sampler(config, rows, rows.labels()[0], 0, world)
    return config.training.epochs * sampler.steps // config.training.accumulate
