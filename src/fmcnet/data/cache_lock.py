"""One builder a cache: a lock of the operating system, which a killed process loses, too."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What a file system without locks answers."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(target: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of one cache file.

    The lock file goes when the lock is given back; whoever waits for it notices and takes a new one.

    Args:
        target: the cache's file.
        wait: wait for whoever holds it, and say so once in the log.

    Yields:
        True: this process alone holds it. False: somebody else does (only without `wait`), or the file system
        has no locks (a warning says so): then two processes may build the same cache, each under its own
        temporary name.

    Raises:
        OSError: when the folder cannot be written.
    """
    path = lock_path(target)
    lock = FileLock(path)
    try:
        got = _acquire(lock, path, wait)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        if wait:
            _log.warning("%s cannot be locked (%s): other processes may build the same cache", path, error)
        got = False
    try:
        yield got
    finally:
        if got:
            if os.name == "posix" and type(lock) is FileLock:  # not where filelock turned to a marker file
                with contextlib.suppress(OSError):
                    path.unlink()
            lock.release()


def lock_path(target: Path) -> Path:
    """The lock file of a cache file."""
    return target.with_name(f".{target.stem}.lock")


def _acquire(lock: FileLock, path: Path, wait: bool) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            return False
        _log.info("another process builds this image cache: waiting for it (its lock: %s)", path)
        lock.acquire(timeout=-1, poll_interval=0.2)
    return True
