"""The training log: one JSON line a step, cut back to the checkpoint on resume."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from fmcnet.files import write_atomically

LOG = "log.jsonl"


class TrainingLog:
    """Appends records to `RUN/log.jsonl`; every record has the key "step" or "validated_step".

    Records that a full disk does not take are kept, and written before the next ones.
    """

    def __init__(self, run: Path, keep_until: int = 0) -> None:
        self.path = run / LOG
        kept = [record for record in read_log(run) if _position(record) <= keep_until]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))
        self._stream = self.path.open("ab", buffering=0)  # at once: watchers see it
        self._waiting = b""

    def write(self, *records: dict[str, Any]) -> None:
        """Append records.

        Raises:
            OSError: when they cannot be written now.
        """
        self._waiting += "".join(_line(record) for record in records).encode()
        while self._waiting:
            self._waiting = self._waiting[self._stream.write(self._waiting) or 0 :]

    def flush(self) -> None:
        """Everything written so far is on disk when this returns.

        Raises:
            OSError: when it is not.
        """
        self.write()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Write what waits, if there is room by now, and close."""
        with contextlib.suppress(OSError):
            self.write()
        self._stream.close()


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The records of a run's log; a last line cut short by a kill is left out."""
    path = Path(run) / LOG
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _line(record: dict[str, Any]) -> str:
    """JSON knows no infinity: a gradient that overflowed (float16) is null."""
    whole = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(whole) + "\n"


def _position(record: dict[str, Any]) -> int:
    return int(record.get("step", record.get("validated_step", 0)))
