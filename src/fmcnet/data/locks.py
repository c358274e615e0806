"""A lock file: one process at a time, released by the system when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Error numbers of a file system without locks."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_file(path: Path, *, waiting: str = "") -> Iterator[bool]:
    """Hold a lock file, which is removed on release.

    Args:
        path: the lock file; its folder must exist.
        waiting: what to log before waiting for another holder; "": do not wait.

    Yields:
        True while the lock is held. False where the file system has no locks (a warning is logged).

    Raises:
        filelock.Timeout: another process holds the lock and `waiting` is empty.
        OSError: the folder cannot be written.
    """
    lock = FileLock(path)
    try:
        _acquire(lock, waiting)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        _log.warning("%s cannot be locked (%s): other processes may write the same files", path, error)
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked and os.name == "posix" and type(lock) is FileLock:
            with contextlib.suppress(OSError):  # a waiting process notices and makes a new file
                path.unlink()
        lock.release()


def _acquire(lock: FileLock, waiting: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not waiting:
            raise
        _log.info("%s (its lock: %s)", waiting, lock.lock_file)
        lock.acquire(timeout=-1, poll_interval=0.2)
