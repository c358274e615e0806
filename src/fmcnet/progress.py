"""Progress of long work: a bar on a terminal, otherwise a log line now and then."""

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

EVERY = 30.0  # seconds between two log lines


class Progress:
    """Counts steps towards `total`; `done` of them are already finished.

    `show`: a bar; None: only when standard error is a terminal; False: nothing at all.
    """

    def __init__(self, description: str, total: int, done: int = 0, show: bool | None = None) -> None:
        self._description, self._total, self._done, self._first = description, total, done, done
        self._lines = show is not False
        self._note = ""
        self._started = self._last = time.monotonic()
        self._shown = sys.stderr.isatty() if show is None else show
        console = Console(stderr=True, emoji=False)
        bar = [BarColumn(bar_width=10)] if console.width >= 80 else []  # narrow: no room for it
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            *bar,
            # On a narrow terminal only the note is cut.
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
        if self._shown:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:  # rich 13 ends a disabled bar with an empty line
            self._bar.stop()

    def advance(self, note: str = "", count: int = 1, line: bool = False) -> None:
        """Add `count` finished steps; `note` is shown after them until the next note.

        Without a bar, `line` writes a log line now, as at the end of an epoch.
        """
        self._done += count
        self._note = note or self._note
        if self._shown:
            self._bar.update(self._task, advance=count, note=self._note)
            return
        now = time.monotonic()
        if self._lines and (line or now - self._last > EVERY):
            self._last = now
            steps_done, status = self._done - self._first, "starting"
            if steps_done:
                seconds = (now - self._started) / steps_done * (self._total - self._done)
                status = f"{100 * self._done / self._total:.0f} %, {timedelta(seconds=round(seconds))} left"
            text = ", ".join(filter(None, (status, self._note)))
            logger.info("%s %d/%d, %s", self._description, self._done, self._total, text)
