"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts steps towards a total.

    Args:
        description: what is being done.
        total: number of steps in all. done: how many are done already.
        show: a bar; None: only when standard error is a terminal; False: nothing at all.
    """

    def __init__(self, description: str, total: int, done: int = 0, show: bool | None = None) -> None:
        self._description, self._total, self._done, self._first = description, total, done, done
        self._bar: RichProgress | None = None
        self._lines = show is not False
        self._note = ""
        self._started = self._last = time.monotonic()
        if sys.stderr.isatty() if show is None else show:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, note: str = "", count: int = 1) -> None:
        """`count` more steps are done; `note` is shown at the end of the line, until the next one."""
        self._done += count
        self._note = note or self._note
        if self._bar:
            self._bar.update(self._task, advance=count, note=self._note)
            return
        now = time.monotonic()
        if self._lines and now - self._last > EVERY:
            self._last = now
            mine = self._done - self._first
            left = (
                f"{(now - self._started) / mine * (self._total - self._done):.0f} s left"
                if mine
                else "starting"
            )
            logger.info("%s %d/%d, %s  %s", self._description, self._done, self._total, left, self._note)
