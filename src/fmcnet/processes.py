"""Signals and worker processes: Ctrl-C before a command and in a training, and what workers have of their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """What worker processes that are started in this block get: the environment above, and no Ctrl-C.

    Their parent ends them. Its own Ctrl-C waits for the end of the block. multiprocessing starts processes by
    `python -c`, which looks in the working folder first: a `random.py` there would be imported for Python's own.
    Python 3.10 cannot be told otherwise.
    """
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masks:
        resource_tracker.ensure_running()  # its start would let Ctrl-C through
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # raises KeyboardInterrupt where one waits


def start_fork_server() -> None:
    """Start multiprocessing's fork server, where the system has one, by `starting_workers`."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver  # not on Windows

        with starting_workers():
            forkserver.ensure_running()


def end_with_parent() -> None:
    """End this pool process when its parent is killed; for a pool's `initializer`."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _exit_interrupted(*_: object) -> None:
    os.write(2, b"fmcnet: interrupted\n")
    os._exit(130)


def end_early(on: bool) -> None:
    """Set whether Ctrl-C ends the process at once, with one line and exit code 130: there is nothing to clean up yet.

    An exception would not do: during an import it prints a traceback, or is lost. Other handlers of the signal are
    left in place.
    """
    handler = signal.getsignal(signal.SIGINT)
    if on and handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_interrupted)
    elif not on and handler is _exit_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ignored(name: str) -> Iterator[None]:
    """Ignore a signal, if the system has it and this is the main thread.

    SIGPIPE: by default a command ends silently when nobody reads its output, as in `fmcnet info RUN | head`. One that
    talks to other processes ignores it: a broken pipe or socket then raises an error in its writer.
    SIGINT: processes started meanwhile ignore Ctrl-C until they end; their parent ends them.
    """
    number = getattr(signal, name, None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, previous_handler)


class StopAtStepEnd:
    """Ctrl-C or SIGTERM ends the training after the current step, with a checkpoint; a third signal ends it at once.

    Two signals count as one: a terminal and a parent process may both deliver the same Ctrl-C.
    """

    def __init__(self) -> None:
        self.signals = 0
        self.terminated = False  # whether a signal was SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopAtStepEnd:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, *_: object) -> None:
        self.signals += 1
        self.terminated |= number == signal.SIGTERM
        if self.signals > 2:
            raise KeyboardInterrupt
