"""What a training says of its steps: to its log, to trackers, on the bar; rank 0 alone writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmcnet.config import Config
from fmcnet.training import health
from fmcnet.training.folder import unwritable
from fmcnet.training.loggers import TrainingLog
from fmcnet.training.track import Tracker, make_trackers

logger = logging.getLogger(__name__)


class Records:
    """The numbers of steps.

    Args:
        run: the run folder.
        config: what trackers are told of the run.
        steps: of the whole training.

    Attributes:
        terms: of the last step that was read, by name. log: open on rank 0.
    """

    def __init__(self, run: Path, config: Config, steps: int) -> None:
        self._run, self._config = run, config
        self._trackers: list[Tracker] = []
        self.log: TrainingLog | None = None
        self.terms: dict[str, float] = {}
        untrained = max(config.training.warmup, config.losses.start_fmc + config.losses.ramp)
        self._monitor = health.HealthMonitor(math.ceil(untrained * steps))

    def open(self, trackers: Sequence[str | Tracker], first: int) -> None:
        """Begin to write, after step `first`.

        Raises:
            DataError: when the log cannot be written.
        """
        try:
            self.log = TrainingLog(self._run, first)
        except OSError as error:
            raise unwritable(self._run, error) from error
        named = [name for name in trackers if isinstance(name, str)]
        self._trackers = make_trackers(named, self._run, self._config, first)
        self._trackers += [tracker for tracker in trackers if not isinstance(tracker, str)]

    def steps(self, records: Sequence[dict[str, Any]]) -> None:
        """Write what steps gave; the last one's terms are kept."""
        for record in records:
            self._monitor.watch(record)
        if records:
            self.terms = {k: v for k, v in records[-1].items() if k not in ("step", "epoch")}
        self.write(records, "step")

    def write(self, records: Sequence[dict[str, Any]], key: str) -> None:
        """To the log and the trackers; a full disk does not end a training. `key`: which number is the step."""
        if not self.log or not records:
            return
        try:
            self.log.write(*records)
        except OSError as error:
            logger.warning("%s: %s; its last steps wait for room", self.log.path, error.strerror)
        for record in records:
            for tracker in self._trackers:
                with _warning_of(tracker):
                    tracker.log(
                        int(record[key]), {k: v for k, v in record.items() if k not in (key, "epoch")}
                    )

    def shown(self) -> str:
        """The total loss and the health values in a line, for the bar; the log has every term."""
        names = {"loss": "loss", "w1": "w1", "w2": "w2", health.COSINE: "cos", health.ACCURACY: "D"}
        return " ".join(
            f"{said} {self.terms[name]:.2f}" for name, said in names.items() if name in self.terms
        )

    def close(self) -> None:
        """End the log and the trackers."""
        for tracker in self._trackers:
            with _warning_of(tracker):
                tracker.close()
        if self.log:
            self.log.close()
            self.log = None


@contextmanager
def _warning_of(tracker: Tracker) -> Iterator[None]:
    """A tracker that fails does not end a training, whatever it raises."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "%s: %s; numbers are missing there",
            type(tracker).__name__,
            getattr(error, "strerror", None) or error,
        )
