"""Ctrl-C before a command has started, pipes that break, workers whose parent is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager


def end_with_parent() -> None:
    """End this process, one of a pool, when the one that started it is killed; for a pool's `initializer`."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _leave(*_: object) -> None:
    os.write(2, b"fmcnet: interrupted\n")
    os._exit(130)


def end_early(on: bool) -> None:
    """Whether Ctrl-C ends the process at once, with one line and exit code 130: there is nothing to clean up yet.

    An exception would not do: raised in the middle of an import it shows as a traceback, or is lost. Whoever else
    handles or ignores the signal keeps it.
    """
    now = signal.getsignal(signal.SIGINT)
    if on and now is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    elif not on and now is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignored_broken_pipes() -> AbstractContextManager[None]:
    """A pipe or socket that breaks is an error of its writer, and does not end the process.

    The command line ends in silence when nobody reads its output, as in `fmcnet info RUN | head`. A command that
    talks to processes or callers needs the opposite.
    """
    return _ignored("SIGPIPE")


def ignored_ctrl_c() -> AbstractContextManager[None]:
    """Ctrl-C is ignored, for good by processes that are started meanwhile: who started them ends them."""
    return _ignored("SIGINT")


@contextlib.contextmanager
def _ignored(name: str) -> Iterator[None]:
    """Ignore a signal, where the system has it and this thread may."""
    number = getattr(signal, name, None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
