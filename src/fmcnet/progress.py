"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts steps towards `total`, of which `done` are done already.

    `show`: a bar; None: only when standard error is a terminal; False: nothing at all.
    """

    def __init__(self, description: str, total: int, done: int = 0, show: bool | None = None) -> None:
        self._description, self._total, self._done, self._first = description, total, done, done
        self._bar: RichProgress | None = None
        self._lines = show is not False
        self._note = ""
        self._started = self._last = time.monotonic()
        if sys.stderr.isatty() if show is None else show:
            console = Console(stderr=True)
            bar = [BarColumn(bar_width=10)] if console.width >= 80 else []  # gives way to the losses
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),
                *bar,
                # The note alone gives way on a narrow terminal.
                TextColumn(
                    "{task.fields[note]}",
                    style="dim",
                    table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                ),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, note: str = "", count: int = 1, line: bool = False) -> None:
        """`count` more steps are done; `note` is shown behind them until the next one.

        Where there is no bar, `line` writes a line now, as at the end of an epoch.
        """
        self._done += count
        self._note = note or self._note
        if self._bar:
            self._bar.update(self._task, advance=count, note=self._note)
            return
        now = time.monotonic()
        if self._lines and (line or now - self._last > EVERY):
            self._last = now
            mine, left = self._done - self._first, "starting"
            if mine:
                seconds = (now - self._started) / mine * (self._total - self._done)
                left = f"{100 * self._done / self._total:.0f} %, {timedelta(seconds=round(seconds))} left"
            said = ", ".join(filter(None, (left, self._note)))
            logger.info("%s %d/%d, %s", self._description, self._done, self._total, said)
