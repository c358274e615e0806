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
from fmcnet.server.refusals import Refusal, refusal_of


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
        line = json.dumps({"time": stamp, **facts}, ensure_ascii=True, default=str).encode() + b"\n"
        with self._lock:
            try:
                done = os.write(self._file, line)
            except OSError:
                done = 0
        self.failed = done != len(line)
        if self.failed:
            raise Refusal(
                507,
                f"'{facts.get('action')}' ended ({facts.get('outcome')}) but cannot be logged, so no more is said",
                "the audit log",
                "free space on the service's disk",
            )

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
                reason=refusal.what[:300],
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
