"""The data of a training: held-out identities, the number of steps, and checks against what the user asked for."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmcnet.config import Config
from fmcnet.data.loader import make_sampler
from fmcnet.data.readers import detect_layout
from fmcnet.data.table import Table, seen_identities
from fmcnet.errors import CheckpointError, ConfigError, DataError
from fmcnet.models.card import ModelCard, read_card
from fmcnet.models.pretrained import is_model
from fmcnet.models.shipped import find_model
from fmcnet.training.checkpointing import checkpoints

logger = logging.getLogger(__name__)

BENCHMARKS = ("sysu", "regdb", "llcm")
"""Shipped configurations named after the dataset layout they are for."""


def hold_out(table: Table, config: Config) -> Table:
    """Move a share of the training identities to the split "val", if validation needs some and there are none.

    RegDB, LLCM and most CSVs have no validation identities. The share is `data.val_share` of the training
    identities, drawn by `training.seed`.
    """
    needs_validation = config.training.validate_every and config.training.select != "test"
    if not needs_validation or (table.split == "val").any() or not config.data.val_share:
        return table
    pids = np.unique(table.pid[table.split == "train"])
    count = max(1, round(config.data.val_share * len(pids)))
    held_out = np.random.default_rng(config.training.seed).permutation(pids)[:count]
    mask = (table.split == "train") & np.isin(table.pid, held_out)
    note = f"{count} of {len(pids)} training identities are held out for validation (data.val_share)"
    split = np.where(mask, "val", table.split.astype("<U5"))
    return replace(table, split=split, notes=(*table.notes, note))


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


def check_split(config: Config, dataset: str) -> None:
    """Refuse `data.split` for data with one split.

    Args:
        config: settings.
        dataset: the name of its table.

    Raises:
        ConfigError: for a split other than 1 of another benchmark than RegDB.
    """
    if config.data.split != 1 and dataset != "regdb":
        raise ConfigError(f"data.split is for RegDB; the data are {dataset}, which has one: leave it out")


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
        return  # the training reports the error
    if layout != config and layout in BENCHMARKS:  # any configuration may train on a CSV
        logger.warning(
            "--config %s is for another benchmark: %s has the layout of %s. Take --config %s",
            config,
            data,
            layout,
            layout,
        )


def start_samples(config: Config, run: Path, resume: bool) -> tuple[str, ...]:
    """Training samples of the model that the training starts from; a resumed run reads them from its checkpoint."""
    for folder in reversed(checkpoints(run)) if resume else ():
        with contextlib.suppress(CheckpointError):
            return read_card(folder).start_samples
    source = config.model.pretrained
    if source is None or not is_model(source):
        return ()
    start_card = read_card(find_model(source))
    return tuple(sorted({*start_card.samples, *start_card.start_samples}))


def warn_of_seen_identities(card: ModelCard, table: Table) -> None:
    """Warn of evaluation identities that the pretrained model was trained on."""
    evaluation_rows = table.take(~np.isin(table.split, card.config.data.train_splits))
    if card.start_samples and len(seen := seen_identities(card.start_samples, evaluation_rows)):
        logger.warning(
            "%d of %d identities that are not trained on here have pictures that %s was trained on, the first is %s: "
            "evaluate and calibrate on others, or move them to the split train",
            len(seen),
            len(np.unique(evaluation_rows.pid)),
            card.config.model.pretrained,
            table.pid_name(int(seen[0])),
        )
