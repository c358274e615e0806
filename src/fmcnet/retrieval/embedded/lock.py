"""One writer at a time, over all processes; the system drops the lock of a process that dies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fmcnet.errors import GalleryBusyError, GalleryError

NAME = "writer.lock"


@contextlib.contextmanager
def writer_lock(folder: Path, timeout: float) -> Iterator[None]:
    """Be the gallery's writer.

    Raises:
        GalleryBusyError: when another process still writes after `timeout` seconds.
        GalleryError: when the lock file cannot be made.
    """
    lock = FileLock(folder / NAME, timeout=timeout)
    try:
        lock.acquire()
    except Timeout as error:
        raise GalleryBusyError(
            f"{folder} is being written by another process, for longer than {timeout:g} s: try again, or give "
            "a longer timeout"
        ) from error
    except OSError as error:
        raise GalleryError(
            f"{folder} cannot be written ({error.strerror}): open it with read_only=True (fmcnet search, gallery "
            "info and gallery export do), or copy it to where it can be"
        ) from error
    try:
        yield
    finally:
        lock.release()
