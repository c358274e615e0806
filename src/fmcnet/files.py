"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from fmcnet.errors import DataError


def as_os_error(error: Exception, path: Path) -> OSError:
    """What safetensors could not write, as Python says it: its own error is no OSError."""
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return OSError(f"{path}: {error}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it there; a kill leaves the old file.

    Raises:
        OSError: when it cannot be written; it names `path`, not the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path, temporary):
            write(temporary)
            to_disk(temporary)
            temporary.replace(path)
            to_disk(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what is told
            temporary.unlink()
    return path


@contextlib.contextmanager
def named(path: Path, *temporary: Path) -> Iterator[None]:
    """Errors of the system that name `temporary` name `path` instead, which the user knows."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) in temporary:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def room_beside(target: Path) -> Iterator[Path]:
    """A temporary folder in that of `target`, from which what is whole can be renamed into place.

    Raises:
        DataError: when it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        room = TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:  # it names the temporary folder
        raise DataError(f"--out {target}: {error.strerror}") from error
    with room as folder:
        yield Path(folder)


def to_disk(path: Path) -> None:
    """A file, or a folder's list of names, is on disk when this returns (where the system can)."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems have no such thing for folders
            raise
    finally:
        os.close(handle)


def remove_left(folder: Path) -> None:
    """Remove what writers that were killed left half-made in `folder`; for when nobody else writes there."""
    for path in left_in(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def left_in(folder: Path) -> list[Path]:
    """Temporary files of `write_atomically`."""
    return [path for path in folder.glob(".*.tmp") if path.is_file()]


@contextlib.contextmanager
def lock_file(path: Path, timeout: float, busy: Exception) -> Iterator[None]:
    """Hold the operating system's lock of `path`, one process at a time; a process that dies loses it.

    Args:
        path: the lock file, made where missing.
        timeout: seconds to wait for another process.
        busy: raised when another process still holds the lock after that time.

    Raises:
        OSError: when the lock file cannot be made.
    """
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        lock.release()
