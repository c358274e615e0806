"""Who added, searched and removed what, and when: one JSON object a line, never an image or an embedding."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fmcnet.errors import FmcnetError
from fmcnet.server.errors import Refusal, refusal_of

LONGEST = 300
"""Characters of a text in the log."""


class AuditLog:
    """A file that is only ever appended to; threads may share it.

    Args:
        path: the file; made if it is not there, readable by its owner only.

    Raises:
        FmcnetError: when it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False
        self._torn = _ends_torn(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise FmcnetError(f"the audit log {path} cannot be written: {error.strerror}") from error
        self._lock = threading.Lock()

    def write(self, **facts: Any) -> None:
        """Append one line, whole.

        Raises:
            Refusal: when the disk does not take it; says that the deed itself was done.
        """
        stamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": stamp, **_bounded(facts)}, ensure_ascii=True, default=str).encode() + b"\n"
        with self._lock:
            if self._torn:
                line = b"\n" + line  # what was cut off stays a line of its own
            try:
                done = os.write(self._file, line)
            except OSError:
                done = 0
            self._torn = done != len(line) and (self._torn or done > 0)
        self.failed = done != len(line)
        if self.failed:
            raise Refusal(
                507,
                f"'{facts.get('action')}' ended ({facts.get('outcome')}) but cannot be logged, so no more is said",
                "the audit log",
                "free space on the service's disk",
            )

    def recovered(self) -> bool:
        """Whether it can be written: after a failure by trying, which notes that it goes on."""
        if self.failed:
            with contextlib.suppress(Refusal):
                self.write(action="log", outcome="resumed")
        return not self.failed

    @contextlib.contextmanager
    def watch(self, action: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Log what happens inside: yields a dictionary to put results in; a refusal is logged, then raised."""
        results: dict[str, Any] = {}
        try:
            yield results
        except asyncio.CancelledError:  # a stop did not wait: what was begun may have been done
            self.write(action=action, outcome="cut off", **facts, **results)
            raise
        except Exception as error:
            refusal = refusal_of(error)
            self.write(
                action=action,
                outcome="refused",
                status=refusal.status,
                reason=refusal.what,
                **facts,
                **results,
            )
            raise refusal from error
        self.write(action=action, outcome="done", **facts, **results)

    def close(self) -> None:
        """Bring it to the disk and let go of it; may be called again."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
            self._file = -1


def _bounded(value: Any) -> Any:
    """With every text cut that a caller made too long for a log."""
    if isinstance(value, str):
        return value[:LONGEST]
    if isinstance(value, dict):
        return {key: _bounded(one) for key, one in value.items()}
    return [_bounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def _ends_torn(path: Path) -> bool:
    """Whether a crash left the file's last line unfinished."""
    try:
        with path.open("rb") as stream:
            if not stream.seek(0, os.SEEK_END):
                return False
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"
    except OSError:
        return False
