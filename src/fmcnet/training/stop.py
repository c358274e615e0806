"""A training ends at Ctrl-C or SIGTERM after its current step."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopAtStepEnd:
    """Ctrl-C or SIGTERM ends the training after the current step, with a checkpoint; a third signal ends it at once.

    Two signals count as one: a terminal and a parent process may both deliver the same Ctrl-C.

    Attributes:
        signals: number of signals received.
        terminated: whether one was SIGTERM.
    """

    def __init__(self) -> None:
        self.signals = 0
        self.terminated = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopAtStepEnd:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, *_: object) -> None:
        self.signals += 1
        self.terminated |= number == signal.SIGTERM
        if self.signals > 2:
            raise KeyboardInterrupt
