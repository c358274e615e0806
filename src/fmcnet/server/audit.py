"""Who added, searched and removed what, and when: one JSON object a line, never an image or an embedding."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fmcnet.errors import FmcnetError
from fmcnet.files import to_disk
from fmcnet.server.errors import ApiError, api_error_of

logger = logging.getLogger(__name__)

LONGEST = 300
"""Characters of a text in the log."""
REFUSALS = (10, 100)
"""Requests refused before their route that are logged in a minute: of one address, of all."""


class AuditLog:
    """An append-only file that threads may share.

    It is opened for each line, so another program may move it or remove it: the next line begins a new one.

    Args:
        path: the file. It is created where missing, readable by its owner only; others than owner and group lose
            their rights to one that is there.

    Raises:
        FmcnetError: when it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False
        try:
            if path.exists() and not path.is_file():  # to open a pipe waits for its reader
                raise OSError(errno.EINVAL, "it is no regular file")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(b"")
        except OSError as error:
            raise FmcnetError(
                f"the audit log {path} cannot be written: {error.strerror}; name another file with --audit"
            ) from error
        mode = path.stat().st_mode
        if mode & 0o007:  # a group may be the log shipper's
            path.chmod(mode & 0o770)
            logger.warning("%s: everybody could read it, and cannot any more", path)
        self._lock = threading.Lock()
        self._minute, self._refusals, self._unlogged = time.monotonic(), Counter[str](), 0

    def write(self, **facts: Any) -> None:
        """Append one whole line.

        Raises:
            ApiError: the line cannot be written; the logged action itself was done.
        """
        stamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": stamp, **_shorten(facts)}, ensure_ascii=True, default=str).encode() + b"\n"
        with self._lock:
            if _ends_torn(self.path):  # what was cut off stays a line of its own
                line = b"\n" + line
            reason = "a part of the line was written"
            try:
                written = self._append(line)
            except OSError as error:
                written, reason = 0, error.strerror or reason
        self.failed = written != len(line)
        if self.failed:
            logger.error("%s cannot be written: %s", self.path, reason)
            what = f"'{facts.get('action')}' ended ({facts.get('outcome')}) but cannot be logged: no result is sent"
            raise ApiError(
                507, what, "the audit log", f"make its file writable on the service's disk ({reason})"
            )

    def _append(self, line: bytes) -> int:
        """How many bytes were written."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return os.write(file, line)
        finally:
            os.close(file)

    def refused(self, client: str, error: ApiError, **facts: Any) -> None:
        """Log a request that was refused before its route, at most `REFUSALS` a minute; later ones are counted."""
        now = time.monotonic()
        with self._lock:
            if now - self._minute >= 60:
                self._minute, self._refusals = now, Counter()
            if self._refusals[client] >= REFUSALS[0] or self._refusals.total() >= REFUSALS[1]:
                self._unlogged += 1
                return
            self._refusals[client] += 1
            unlogged, self._unlogged = self._unlogged, 0
        facts = {"status": error.status, "reason": error.what, "client": client, **facts}
        if unlogged:
            facts["not_logged_before"] = unlogged
        with contextlib.suppress(ApiError):  # the caller gets the refusal itself
            self.write(action="request", outcome="refused", **facts)

    def recovered(self) -> bool:
        """Whether the file can be written; after a failure a line is tried."""
        if self.failed:
            with contextlib.suppress(ApiError):
                self.write(action="log", outcome="resumed")
        return not self.failed

    @contextlib.contextmanager
    def watch(self, action: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Log an action and its outcome. Yields `facts`, to add its results; logs a refusal, then raises it."""
        try:
            yield facts
        except asyncio.CancelledError:  # a stop did not wait: the action may have been done
            self.write(action=action, outcome="cut off", **facts)
            raise
        except Exception as error:
            api_error = api_error_of(error)
            refusal = {"status": api_error.status, "reason": api_error.what}
            self.write(action=action, outcome="refused", **refusal, **facts)
            raise api_error from error
        self.write(action=action, outcome="done", **facts)

    def close(self) -> None:
        """Log what was only counted, and sync the file; may be called again."""
        unlogged, self._unlogged = self._unlogged, 0
        if unlogged:
            with contextlib.suppress(ApiError):
                self.write(action="request", outcome="refused", not_logged_before=unlogged)
        with contextlib.suppress(OSError):
            to_disk(self.path)


def _shorten(value: Any) -> Any:
    """The value with all texts cut to `LONGEST`."""
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, dict):
        return {key: _shorten(item) for key, item in value.items()}
    return [_shorten(item) for item in value] if isinstance(value, (list, tuple)) else value


def _ends_torn(path: Path) -> bool:
    """Whether a crash or a full disk left the file's last line unfinished."""
    try:
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"
    except OSError:  # no file, or an empty one
        return False
