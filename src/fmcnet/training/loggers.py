"""Numbers of a training: the log `RUN/log.jsonl`, TensorBoard, Weights & Biases.

The log is always written, and fmcnet itself reads nothing else. A tracker is any object with the two methods of
`Tracker`; `train(..., trackers=[...])` takes your own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from fmcnet.config import Config
from fmcnet.errors import ConfigError, require
from fmcnet.files import write_text
from fmcnet.parsing import parse_json
from fmcnet.training import health
from fmcnet.training.run_folder import LOG, unwritable

logger = logging.getLogger(__name__)


TRACKERS = {"tensorboard": "track", "wandb": "wandb"}
"""Names of trackers, which are those of their packages, and the extras that install these."""


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """Read the records of a run's log, without a last line that a kill cut short."""
    path = Path(run) / LOG
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


class Tracker(Protocol):
    """Receives the numbers of each step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` by name, measured at `step` (from 1)."""

    def close(self) -> None:
        """Finish: no more values follow."""


class TensorBoard:
    """Event files in `RUN/tensorboard`; those of steps after `first`, of a killed process, are dropped."""

    def __init__(self, run: Path, first: int = 0) -> None:
        require("tensorboard", "track")
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        self._writer = writer(str(run / "tensorboard"), purge_step=first + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each name."""
        for name, value in values.items():
            self._writer.add_scalar(name.replace(" ", "_"), value, step)

    def close(self) -> None:
        """Write out and close."""
        self._writer.close()


class WandB:
    """A run of the project "fmcnet" (or `WANDB_PROJECT`), named like the folder; a resume continues it.

    `WANDB_MODE=offline` keeps everything in `RUN/wandb`.
    """

    def __init__(self, run: Path, config: Config) -> None:
        wandb: Any = require("wandb", "wandb")
        id_file = run / "wandb-id"
        if not id_file.is_file():  # an id of this folder, not of its name: a new folder is another run
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fmcnet"),
                name=run.name,
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(run),
                config=config.model_dump(mode="json"),
            )
        except Exception as error:
            raise ConfigError(
                f"Weights & Biases cannot start ({str(error).strip()}): wandb login, or WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point for each name."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a name not in `TRACKERS`, `MissingDependencyError` for one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"no tracker '{name}': choose of {', '.join(TRACKERS)}")
        require(name, TRACKERS[name])


class StepLogger:
    """Writes the numbers of steps to the log and the trackers; rank 0 opens one.

    Every record of the log has the key "step" or "validated_step". Records that do not fit on a full disk stay in
    memory and are written before the next ones.

    """

    def __init__(self, run: Path, config: Config, steps: int) -> None:
        self._run, self._config = run, config
        self._trackers: list[Tracker] = []
        self._stream: FileIO | None = None
        self._waiting = b""
        self.terms: dict[str, float] = {}  # of the last step; a resume restores them from its checkpoint
        self._monitor = health.HealthMonitor(math.ceil(config.training.warmup * steps))

    def open(self, trackers: Sequence[str | Tracker], first: int) -> None:
        """Open the log, without records of steps after `first`, and the trackers: names in `TRACKERS`, or objects.

        Raises:
            DataError: when the log cannot be written.
            ConfigError: when a tracker cannot start.
        """
        try:
            text = "".join(
                json.dumps(record) + "\n"
                for record in read_log(self._run)
                if int(record.get("step", record.get("validated_step", 0))) <= first
            )
            path = write_text(self._run / LOG, text)
            self._stream = path.open("ab", buffering=0)  # unbuffered, so that others can follow the file
        except OSError as error:
            raise unwritable(self._run, error) from error
        if "tensorboard" in trackers:
            self._trackers.append(TensorBoard(self._run, first))
        if "wandb" in trackers:
            self._trackers.append(WandB(self._run, self._config))
        self._trackers += [tracker for tracker in trackers if not isinstance(tracker, str)]

    def flush(self) -> None:
        """Bring the log to disk; raises `OSError` when that fails."""
        if self._stream:
            self._write_waiting(self._stream)
            os.fsync(self._stream.fileno())

    def write_steps(self, records: Sequence[dict[str, Any]]) -> None:
        """Write the records of steps, keep the last one's terms, and warn of modules that do nothing."""
        for record in records:
            self._monitor.watch(record)
        if records:
            self.terms = {k: v for k, v in records[-1].items() if k not in ("step", "epoch")}
        self.write(records, "step")

    def write(self, records: Sequence[dict[str, Any]], key: str) -> None:
        """Write records, whose step is `key`, to the log and the trackers; a full disk does not end a training.

        In the log, infinity becomes null, as of a gradient that overflowed in float16.
        """
        if not self._stream or not records:
            return
        for record in records:
            finite = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
            }
            self._waiting += (json.dumps(finite) + "\n").encode()
        try:
            self._write_waiting(self._stream)
        except OSError as error:
            logger.warning("%s: %s; its last steps wait for room", self._run / LOG, error.strerror)
        for record in records:
            for tracker in self._trackers:
                with _warn_only(tracker):
                    values = {k: v for k, v in record.items() if k not in (key, "epoch")}
                    tracker.log(int(record[key]), values)

    def _write_waiting(self, stream: FileIO) -> None:
        while self._waiting:
            self._waiting = self._waiting[stream.write(self._waiting) or 0 :]

    def close(self) -> None:
        """Write what waits, if the disk has room, and close the log and the trackers."""
        for tracker in self._trackers:
            with _warn_only(tracker):
                tracker.close()
        if self._stream:
            with contextlib.suppress(OSError):
                self._write_waiting(self._stream)
            self._stream.close()
            self._stream = None


@contextlib.contextmanager
def _warn_only(tracker: Tracker) -> Iterator[None]:
    """Turn any error of a tracker into a warning: it does not end a training."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "%s: %s; numbers are missing there",
            type(tracker).__name__,
            getattr(error, "strerror", None) or error,
        )
