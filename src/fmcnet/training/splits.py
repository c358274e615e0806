"""RegDB's ten splits: ten models, one after another, resumable."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fmcnet.config import Config
from fmcnet.data.readers import detect_layout
from fmcnet.distributed import distributed_context
from fmcnet.errors import ConfigError, DataError
from fmcnet.models.card import CARD
from fmcnet.training.trainer import TrainingSummary, train

logger = logging.getLogger(__name__)

BENCHMARKS = ("sysu", "regdb", "llcm")
"""Shipped configurations that are for the layout of their name."""


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


def split_folder(out: Path, split: int) -> Path:
    """Return the run folder of one split, below the folder of all."""
    return out / f"split-{split:02d}"


def split_runs(folder: Path) -> list[Path]:
    """List the finished runs of a folder that `train_splits` wrote, by split."""
    return [path for path in sorted(folder.glob("split-*")) if (path / CARD).is_file()]


def train_splits(
    config: Config,
    data: str | Path,
    out: Path,
    splits: tuple[int, ...],
    *,
    resume: bool = False,
    device: str = "auto",
    progress: bool | None = None,
    trackers: Sequence[str] = (),
    profile: bool = False,
) -> list[TrainingSummary]:
    """Train one run for each split in `out/split-NN`.

    Args:
        config: all settings but `data.split`.
        data: RegDB's folder.
        out: the folder of all runs.
        splits: numbers, 1 to 10.
        resume: continue each run from its newest checkpoint; finished ones are kept.
        device: as that of `train`, and so are the following.
        progress: show a bar; None: on a terminal only.
        trackers: names, beside the log.
        profile: profile a few steps of each run.

    Raises:
        ConfigError: for a dataset without splits.
    """
    layout = config.data.layout if config.data.layout != "auto" else detect_layout(data)
    if layout != "regdb":
        raise ConfigError(f"--splits is for RegDB; {data} is {layout}, which has one split")
    summaries = []
    with distributed_context(device):  # joins the process group once, not once a split
        for split in splits:
            data_config = config.data.model_copy(update={"split": split})
            summary = train(
                config.model_copy(update={"data": data_config}),
                data,
                split_folder(out, split),
                resume=resume,
                device=device,
                progress=progress,
                description=f"split {split}",
                trackers=trackers,
                profile=profile,
            )
            summaries.append(summary)
    return summaries
