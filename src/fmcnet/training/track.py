"""Trackers: what a training measured, shown by TensorBoard or Weights & Biases while it runs.

The log in `RUN/log.jsonl` is always written and is all that fmcnet itself reads. A tracker is anything with the two
methods of `Tracker`; `train(..., trackers=[...])` takes one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fmcnet.config import Config
from fmcnet.errors import ConfigError
from fmcnet.runtime import require

TRACKERS = {"tensorboard": "track", "wandb": "wandb"}
"""Their names, which are those of their packages, and the extras that bring these."""


class Tracker(Protocol):
    """Takes numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """`values` by name, measured at `step` (from 1)."""

    def close(self) -> None:
        """No more will come."""


class TensorBoard:
    """Event files in `RUN/tensorboard`; steps that a resume repeats replace the ones before.

    Args:
        run: the run folder. first: steps done already; later ones that a killed process wrote are dropped.

    Raises:
        MissingDependencyError: without the extra `track`.
    """

    def __init__(self, run: Path, first: int = 0) -> None:
        require("tensorboard", "track")
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(str(run / "tensorboard"), purge_step=first + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name.replace(" ", "_"), value, step)

    def close(self) -> None:
        """Write out and close."""
        self._writer.close()


class WandB:
    """A run of the project "fmcnet" (or `WANDB_PROJECT`), named like the folder; a resume goes on in the same one.

    `WANDB_MODE=offline` keeps everything in `RUN/wandb`.

    Args:
        run: the run folder. config: shown beside the curves.

    Raises:
        MissingDependencyError: without the extra `wandb`.
    """

    def __init__(self, run: Path, config: Config) -> None:
        wandb: Any = require("wandb", "wandb")
        import os
        import uuid

        stored = run / "wandb-id"
        if not stored.is_file():  # of this run folder, not of its name: one made anew is another run
            stored.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fmcnet"),
                name=run.name,
                id=stored.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(run),
                config=config.model_dump(mode="json"),
            )
        except Exception as error:
            raise ConfigError(
                f"Weights & Biases cannot start ({str(error).strip()}): wandb login, or WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One point a name."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what `make_trackers` could not make.

    Raises:
        ConfigError: for a name not in `TRACKERS`. MissingDependencyError: when one is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"no tracker '{name}': choose of {', '.join(TRACKERS)}")
        require(name, TRACKERS[name])


def make_trackers(names: Sequence[str], run: Path, config: Config, first: int = 0) -> list[Tracker]:
    """Trackers by name, each once; for what it raises see `check_trackers`."""
    check_trackers(names)
    made: list[Tracker] = []
    for name in dict.fromkeys(names):
        made.append(TensorBoard(run, first) if name == "tensorboard" else WandB(run, config))
    return made
