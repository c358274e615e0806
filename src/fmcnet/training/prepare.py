"""Prepares a training: checks the run folder, reads the images, builds batches and model."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout

from fmcnet.config import AugmentConfig, Config, load_config
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.loader import (
    IdentityModalitySampler,
    TrainingBatch,
    TrainingImages,
    load_batches,
    make_sampler,
)
from fmcnet.data.readers import detect_layout
from fmcnet.data.table import Table, fingerprint, sample_pictures, seen_identities
from fmcnet.distributed import DistributedContext
from fmcnet.errors import CheckpointError, ConfigError, DataError
from fmcnet.files import left_in, lock_file, remove_left, write_text
from fmcnet.models.build import build_model
from fmcnet.models.card import CARD, ModelCard, read_card
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import is_model, load_pretrained
from fmcnet.models.shipped import find_model
from fmcnet.parsing import read_yaml
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.loggers import unwritable
from fmcnet.training.selection import ModelSelection
from fmcnet.training.train_step import precision
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
MAY_CHANGE = (
    "training.log_every",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep",
    "data.cache",
)
"""Settings that may differ on resume: they change when files are written, not what is computed."""

BENCHMARKS = ("sysu", "regdb", "llcm")
"""Shipped configurations named after the dataset layout they are for."""


@dataclass(frozen=True)
class TrainingInputs:
    """Images, batches and model that a training starts from.

    Attributes:
        cache: the training images, (N, H, W, 3) uint8.
        labels: (N,) of the images, 0 to C - 1.
        sampler: of the batches of this process.
        selection: validates, and keeps the best weights.
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
    precision(config.training.precision, ctx.device)  # raises if the device lacks it
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
        start_samples=_start_samples(config, run, resume) if ctx.main else (),
    )
    _warn_of_seen_identities(card, table)
    return TrainingInputs(cache, labels, sampler, selection, model, card)


def _start_samples(config: Config, run: Path, resume: bool) -> tuple[str, ...]:
    """Training samples of the model that the training starts from; a resumed run reads them from its checkpoint."""
    for folder in reversed(checkpoints(run)) if resume else ():
        with contextlib.suppress(CheckpointError):
            return read_card(folder).start_samples
    source = config.model.pretrained
    if source is None or not is_model(source):
        return ()
    start_card = read_card(find_model(source))
    return tuple(sorted({*start_card.samples, *start_card.start_samples}))


def _warn_of_seen_identities(card: ModelCard, table: Table) -> None:
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


def check_folder(run: Path, config: Config, resume: bool) -> None:
    """Check that a training may write to the folder.

    Args:
        run: the run folder.
        config: settings of the training.
        resume: whether it may hold a run.

    Raises:
        CheckpointError: when it holds a run and `resume` is not set, or a run with other settings.
        DataError: when it holds other files.
    """
    config_file = run / CONFIG
    if config_file.is_file():
        if not resume:
            has_checkpoint = any((run / "checkpoints").glob("step-*"))
            hint = "" if has_checkpoint else ". It has no checkpoint yet: its folder can be deleted"
            raise CheckpointError(
                f"{run} already holds a run: go on with --resume (in Python: resume=True), or give another "
                f"--out{hint}"
            )
        stored_values, stored_config = _read_stored_config(config_file)
        old, new = (_flatten(tree.model_dump(mode="json")) for tree in (stored_config, config))
        changed = [key for key in old if old[key] != new[key] and key not in MAY_CHANGE]
        if missing := [key for key in changed if key not in stored_values]:
            raise _damaged_error(config_file, f"does not hold {', '.join(missing[:5])}")
        if changed:
            differences = "; ".join(f"{key}: {old[key]} there, {new[key]} now" for key in changed[:5])
            raise CheckpointError(f"{run} was started with other settings ({differences})")
    elif resume and (run / "checkpoints").exists():
        raise _damaged_error(config_file, "is a folder" if config_file.is_dir() else "is missing")
    elif run.exists() and (not run.is_dir() or set(run.iterdir()) - {run / ".lock", *left_in(run)}):
        raise DataError(f"{run} exists and is not an fmcnet run: give a new or empty folder as --out")


def _read_stored_config(config_file: Path) -> tuple[dict[str, Any], Config]:
    """The settings in a run's config.yaml by "section.key", and the whole configuration with defaults."""
    try:
        tree = read_yaml(config_file)
        if not isinstance(tree, dict) or not tree:
            raise _damaged_error(config_file, "holds no sections" if tree else "is empty")
        config = load_config(tree)
    except OSError as error:
        raise _damaged_error(config_file, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise _damaged_error(config_file, f"is damaged ({reason[:200]})") from error
    return _flatten({name: values for name, values in tree.items() if isinstance(values, dict)}), config


def _damaged_error(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {problem}: write it again with the settings of this training (fmcnet config NAME key=value > FILE), "
        "or give another --out"
    )


def resumed_config(run: Path, source: str | None, overrides: Sequence[str]) -> Config | None:
    """The settings that a run was started with, and `overrides`; None where there is no run yet.

    Settings of a configuration `source`, named beside the run, that differ are ignored with a warning: they may have
    been overridden when the run started.
    """
    config_file = run / CONFIG
    if not config_file.is_file():
        return None
    if source is not None:
        run_config, source_config = load_config(config_file).model_dump(), load_config(source)
        overridden = {item.partition("=")[0].strip() for item in overrides}
        differing = [
            f"{section}.{key} {run_config[section][key]} (not {getattr(part, key)})"
            for section, part in source_config
            for key in sorted(part.model_fields_set)
            if run_config[section][key] != getattr(part, key) and f"{section}.{key}" not in overridden
        ]
        if differing:
            logger.warning(
                "the run goes on with its own settings, not those of %s: %s", source, "; ".join(differing)
            )
    return load_config(config_file, list(overrides))


@contextmanager
def open_folder(run: Path, config: Config) -> Iterator[None]:
    """Make and lock the run folder, write the settings, and remove half-written files of a killed training.

    Raises:
        CheckpointError: when another process (a job that was queued again, say) holds the lock.
        DataError: when the folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock_file(run / ".lock"))
            except Timeout:
                raise CheckpointError(
                    f"another process is training in {run}: wait for it, or give another --out"
                ) from None
            except (OSError, NotImplementedError):  # no locks, or read-only: then the first write fails
                pass
            remove_left(run)
            for path in (run / "checkpoints").glob(".step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)
            for path in (run / "checkpoints").glob("best-*"):
                remove_left(path)
            write_text(run / CONFIG, config.to_yaml())
        except OSError as error:
            raise unwritable(run, error) from error
        yield


def split_folder(out: Path, split: int) -> Path:
    """Return the run folder of one split, below the folder of all."""
    return out / f"split-{split:02d}"


def split_runs(folder: Path) -> list[Path]:
    """List the finished runs of a folder that `train_splits` wrote, by split."""
    return [path for path in sorted(folder.glob("split-*")) if (path / CARD).is_file()]


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}
