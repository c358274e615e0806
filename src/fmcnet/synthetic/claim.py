"""Whose folder it is: a generated benchmark's own, and one process at a time writes there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fmcnet.data.cache_lock import NO_LOCKS
from fmcnet.errors import DataError
from fmcnet.files import named
from fmcnet.synthetic.writers import SCRATCH, write_atomic

MANIFEST = "generated.json"
LOCK = ".generating.lock"


@contextlib.contextmanager
def claimed(root: Path, wanted: dict[str, Any]) -> Iterator[None]:
    """Hold a folder for the benchmark that `wanted` describes.

    Args:
        root: the folder, made if it is not there.
        wanted: what its manifest says, but for "complete" and what follows from it.

    Raises:
        DataError: it holds something else, or another process is writing to it; nothing was touched then.
    """
    _check(root, wanted)
    root.mkdir(parents=True, exist_ok=True)
    with _alone_in(root):
        _check(root, wanted)  # another process may have been quicker
        if not (root / MANIFEST).is_file():
            write_manifest(root, {**wanted, "complete": False})
        yield


def write_manifest(root: Path, content: dict[str, Any]) -> None:
    """Write the manifest, and remove what was for files being written."""
    write_atomic(root, MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
    shutil.rmtree(root / SCRATCH, ignore_errors=True)


def _check(root: Path, wanted: dict[str, Any]) -> None:
    """Whether the folder is ours or free; says why not."""
    manifest = root / MANIFEST
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file: give a folder to write the generated benchmark to")
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_text())
            differing = [key for key in wanted if found.get(key) != wanted[key]]
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{manifest} is not readable ({error}): delete {root} or choose another folder"
            ) from error
        if differing:
            has = ", ".join(f"{key} {found.get(key)}" for key in differing)
            asked = ", ".join(f"{key} {wanted[key]}" for key in differing)
            raise DataError(
                f"{root} holds a generated benchmark with {has}; asked for {asked}. "
                "Choose another folder, or delete this one to generate anew"
            )
    elif root.is_dir():
        names = sorted(entry.name for entry in root.iterdir() if entry.name not in (SCRATCH, LOCK))
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise DataError(
                f"{root} is not empty and was not written by fmcnet (no {MANIFEST}; it holds {shown}): "
                "choose a new or empty folder"
            )


@contextlib.contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process loses, too; the file goes with it. No locks there: go on."""
    path = root / LOCK
    lock = FileLock(path)
    try:
        with named(root, path):
            lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"another process is generating into {root}: wait until it is done, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()
            lock.release()
