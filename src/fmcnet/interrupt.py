"""Ctrl-C before a command has started."""

from __future__ import annotations

import os
import signal


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
