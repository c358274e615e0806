"""What a training starts from: images in memory, batches, a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.loader import TrainingBatch, TrainingImages, load_batches
from fmcnet.data.overlap import sample_pictures
from fmcnet.data.readers import detect_layout
from fmcnet.data.samplers import IdentityModalitySampler, make_sampler
from fmcnet.data.table import Table, fingerprint
from fmcnet.distributed import DistributedContext
from fmcnet.errors import ConfigError, DataError
from fmcnet.models.build import build_model
from fmcnet.models.card import ModelCard
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import load_pretrained
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.selection import ModelSelection
from fmcnet.training.train_step import precision
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)

BENCHMARKS = ("sysu", "regdb", "llcm")
"""Shipped configurations that are for the layout of their name."""


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


def hold_out(table: Table, config: Config) -> Table:
    """Move a share of the training identities to the split "val", where validation needs some and there are none.

    RegDB, LLCM and most CSVs name no validation identities. The share is `data.val_share` of the training
    identities, drawn by `training.seed`.
    """
    wanted = config.training.validate_every and config.training.select != "test"
    if not wanted or (table.split == "val").any() or not config.data.val_share:
        return table
    pids = np.unique(table.pid[table.split == "train"])
    count = max(1, round(config.data.val_share * len(pids)))
    held = np.random.default_rng(config.training.seed).permutation(pids)[:count]
    mask = (table.split == "train") & np.isin(table.pid, held)
    note = f"{count} of {len(pids)} training identities are held out for validation (data.val_share)"
    split = np.where(mask, "val", table.split.astype("<U5"))
    return replace(table, split=split, notes=(*table.notes, note))


def parse_splits(text: str) -> tuple[int, ...]:
    """Parse "1-10" or "1,3,5-7"; raises `ConfigError` for anything else, or numbers outside 1..10."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            ends = int(first), int(last if dash else first)
            numbers += range(min(ends), max(ends) + 1)
        except ValueError:
            raise ConfigError(f"--splits {text}: write numbers and ranges, as 1-10 or 1,3,5-7") from None
    if not numbers or min(numbers) < 1 or max(numbers) > 10:
        raise ConfigError(f"--splits {text}: RegDB's splits are 1 to 10")
    return tuple(dict.fromkeys(numbers))


def warn_of_other_benchmark(config: str | None, data: str | Path) -> None:
    """Warn of a shipped configuration that is for another benchmark than the data."""
    if config not in BENCHMARKS or int(os.environ.get("RANK", "0")):
        return
    try:
        layout = detect_layout(data)
    except DataError:
        return  # the training says what is wrong
    if layout != config and layout in BENCHMARKS:  # a CSV is nobody's benchmark: any recipe may train on it
        logger.warning(
            "--config %s is for another benchmark: %s has the layout of %s. Take --config %s",
            config,
            data,
            layout,
            layout,
        )


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
