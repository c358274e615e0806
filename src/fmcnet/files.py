"""Atomic writes, locks, private modes and digests of files."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import json
import logging
import os
import platform
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from fmcnet.errors import DataError

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Error numbers of a file system without locks."""

COARSE = 10_000_000
"""Nanoseconds. Times on FAT, exFAT, SquashFS and CDs are multiples of it; those of other file systems rarely are."""

logger = logging.getLogger(__name__)


def file_state(path: Path) -> str:
    """A text that changes whenever the content of a file does; every cache of file contents uses it as its key.

    - It holds the size, the times of modification and of change (ctime), and the inode. Programs can set the time of
      modification; only the system sets the other two.
    - If the system keeps no exact time of change (`COARSE`, and Windows), it also holds a digest of the content.

    The reverse does not hold: a copied, moved or touched file has another state, but may have the same content
    (`file_digest`).

    Raises:
        OSError: as of `Path.stat`.
    """
    info = path.stat()
    state = f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"
    exact = os.name == "posix" and info.st_ctime_ns % COARSE
    return state if exact else f"{state} {file_digest(path)}"


def file_key(path: Path) -> tuple[int, int]:
    """Device and inode: equal for all paths and links of a file; OSError if there is none."""
    status = path.stat()
    return status.st_dev, status.st_ino


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def as_os_error(error: Exception, path: Path) -> OSError:
    """Convert a write error of safetensors, which is no OSError, to one."""
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return OSError(f"{path}: {error}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def private_mode(folder: Path) -> int:
    """The mode of files with personal data: 0600, with the group bits of a set-group-ID folder (chmod g+s)."""
    mode = folder.stat().st_mode
    return 0o600 | (mode & 0o060 if mode & stat.S_ISGID else 0)


def make_private(path: Path) -> None:
    """Create a file if it is missing, and set its mode to `private_mode` before anything is written."""
    path.touch(mode=0o600)
    if path.is_file():  # not a device
        with contextlib.suppress(PermissionError):  # another user's: it stays as it is
            path.chmod(private_mode(path.parent))


def take_from_others(paths: Iterable[Path]) -> list[Path]:
    """Remove permissions beyond `private_mode`, which an older version may have set; returns the changed files."""
    changed = []
    for path in paths:
        with contextlib.suppress(OSError):  # another user's: it stays as it is
            mode = path.stat().st_mode
            if path.is_file() and mode & 0o077 & ~private_mode(path.parent):
                path.chmod(mode & private_mode(path.parent))
                changed.append(path)
    return changed


def check_writable(path: Path, advice: str) -> None:
    """Raise a `DataError`, with advice, where no file or folder can be written at `path`: before the work for it.

    Folders above it may be missing.
    """
    above = path.absolute().parents or (path,)
    existing = next(folder for folder in above if os.access(folder, os.F_OK))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fault = "you may not write into" if existing.is_dir() else "a file, not a folder, is at"
        raise DataError(f"{path} cannot be written: {fault} {existing}; {advice}")


def write_atomically(
    path: Path, write: Callable[[Path], Any], mode: int | None = None, *, many: bool = False
) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`; a kill leaves the old file.

    A temporary file that a killed process of this machine left of `path` is removed first.

    Args:
        path: the file.
        write: fills the file that it is given.
        mode: of the file; None: the system's default.
        many: the folder holds many such files, and is not searched for temporary ones.

    Raises:
        OSError: when it cannot be written; it names `path`, not the temporary file.
    """
    machine = zlib.crc32(platform.node().encode())  # a process of another one may be writing
    begin = f".{path.name}.{machine:08x}-"
    temporary = path.with_name(f"{begin}{os.getpid()}.tmp")
    if os.name == "posix" and not many:
        for left in path.parent.glob(f"{glob.escape(begin)}*.tmp"):
            with contextlib.suppress(OSError, ValueError, OverflowError):
                try:
                    os.kill(int(left.name[len(begin) : -len(".tmp")]), 0)  # sends nothing
                except ProcessLookupError:
                    left.unlink()
    try:
        with named(path, temporary):
            if mode is not None:
                temporary.touch(mode & 0o600)  # never more permissive than `mode`, not even briefly
                temporary.chmod(mode)
            write(temporary)
            to_disk(temporary)
            temporary.replace(path)
            to_disk(path.parent)
    finally:
        with contextlib.suppress(OSError):  # report the first error, not this one
            temporary.unlink()
    return path


def with_ending(path: Path, ending: str) -> Path:
    """`path` with an ending behind its name; "." and ".." are the folders that they name."""
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name(f"{path.name}{ending}")


def write_text(path: Path, text: str) -> Path:
    """Write a text file by `write_atomically`; creates the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> Path:
    """Write a JSON file, as `write_text`."""
    return write_text(path, json.dumps(content, indent=1) + "\n")


def write_rows(path: Path, rows: Iterable[Iterable[object]], mode: int | None = None) -> Path:
    """Write the rows of a CSV, the header first, as `write_atomically` does."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)

    return write_atomically(path, write, mode)


@contextlib.contextmanager
def named(path: Path, *temporary: Path) -> Iterator[None]:
    """Let OS errors about `temporary`, or about no file (as of a full disk), name `path`, which the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # none of the system's, as a lock that another process holds
            raise
        if error.filename is None or Path(os.fsdecode(error.filename)) in temporary:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def put_in_place(folder: Path, target: Path, old: Path) -> None:
    """Rename a folder to `target`, and an existing target to `old`; if that fails, undo it."""
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        folder.rename(target)
    except BaseException:  # Ctrl-C, too: the caller may delete the folder of `old`
        if replaces and not target.exists():
            old.rename(target)
        raise


@contextlib.contextmanager
def room_beside(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, so that finished files can be renamed into place; errors name `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary_folder = TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:  # it names the temporary folder
        raise DataError(f"--out {target}: {error.strerror}") from error
    with temporary_folder as folder:
        try:
            yield Path(folder)
        except OSError as error:
            name = error.filename2 or error.filename
            path = Path(folder if name is None else os.fsdecode(name))
            if error.errno is None or not path.is_relative_to(folder):
                raise
            known = target if path == Path(folder) else target / path.name
            raise OSError(error.errno, error.strerror, str(known)) from error


def to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk (if the system can)."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot do this for folders
            raise
    finally:
        os.close(handle)


def remove_left(folder: Path) -> None:
    """Remove temporary files that killed writers left in `folder`; call it only when nobody else writes there."""
    for path in left_in(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def left_in(folder: Path) -> list[Path]:
    """Temporary files of `write_atomically`."""
    return [path for path in folder.glob(".*.tmp") if path.is_file()]


@contextlib.contextmanager
def lock_file(
    path: Path, *, timeout: float = 0.0, waiting: str = "", optional: bool = False
) -> Iterator[bool]:
    """Hold the operating system's lock on `path`, one process at a time; a process that dies releases it.

    Args:
        path: the lock file, created if missing; its folder must exist.
        timeout: seconds to wait for another process; -1: without end.
        waiting: message to log before waiting without end; "": wait for `timeout`.
        optional: for files that can be rebuilt. A file system without locks is accepted with a warning, and the
            lock file is removed on release.

    Yields:
        True while the lock is held; False where the file system has no locks.

    Raises:
        filelock.Timeout: another process still holds the lock after `timeout`.
        OSError: the lock file cannot be made.
    """
    lock = FileLock(path)
    try:
        if not path.exists():  # filelock takes a read-only file system for a held lock
            path.touch(mode=0o644)
        _acquire(lock, timeout, waiting)
    except (OSError, NotImplementedError) as error:
        if not optional or (isinstance(error, OSError) and error.errno not in NO_LOCKS):
            raise
        logger.warning("%s cannot be locked (%s): other processes may write the same files", path, error)
    try:
        yield lock.is_locked
    finally:
        if optional and lock.is_locked and os.name == "posix" and type(lock) is FileLock:
            with contextlib.suppress(OSError):  # a waiting process notices and makes a new file
                path.unlink()
        lock.release()


def _acquire(lock: BaseFileLock, timeout: float, waiting: str) -> None:
    try:
        lock.acquire(timeout=0 if waiting else timeout)
    except Timeout:
        if not waiting:
            raise
        logger.info("%s (its lock: %s)", waiting, lock.lock_file)
        lock.acquire(timeout=-1, poll_interval=0.2)
