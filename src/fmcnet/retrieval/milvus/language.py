"""Conditions and entries in Milvus's words, and in portions that it takes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fmcnet.retrieval.records import Entry, Stored, Where, from_micros, to_micros
from fmcnet.types import FloatArray, Modality

NO_PID = -(2**63)
"""A pid that is not known; outside what a gallery takes."""
NO_TIME = -(10**18)
"""A time that is not known, before the year 1."""
METADATA = ["id", "pid", "modality", "camera", "time", "source", "track", "tags", "seq"]
"""Fields of a row but its embedding; `seq` orders rows by their adding."""
MOST_ROWS = 2_000
"""Rows in one request, or ids; with `MOST_BYTES` far below Milvus's limits of 64 MB a request, 100 MB an answer."""
MOST_BYTES = 16 * 2**20
"""Embeddings in one request or answer."""


def text(value: str) -> str:
    """A text as a literal: quotes, backslashes and control characters escaped."""
    return json.dumps(value, ensure_ascii=False)


def texts(values: Collection[str]) -> str:
    """A list of literals."""
    return "[" + ", ".join(text(value) for value in sorted(values)) + "]"


def expression(where: Where | None) -> str | None:
    """The condition as an expression, "" for none; None where nothing can match."""
    if where is None:
        return ""
    parts: list[str] = []
    for name, values in (("id", where.ids), ("camera", where.cameras), ("track", where.tracks)):
        if values is not None:
            if not values:
                return None
            parts.append(f"{name} in {texts(values)}")
    if where.pids is not None:
        fitting = sorted(pid for pid in where.pids if abs(pid) < 2**63)
        if not fitting:
            return None
        parts.append(f"pid in {fitting}")
    if where.modality is not None:
        parts.append(f"modality == {where.modality.code}")
    if where.since is not None:
        parts.append(f"time >= {to_micros(where.since)}")
    if where.until is not None:
        parts.append(f"time < {to_micros(where.until)}")
        parts.append(f"time > {NO_TIME}")
    if where.tags:
        parts.append(f"array_contains_all(tags, {texts(where.tags)})")
    return " and ".join(parts)


def to_row(entry: Entry, vector: FloatArray, seq: int) -> dict[str, Any]:
    """An entry as Milvus keeps it: no value may be missing."""
    return {
        "id": entry.id,
        "embedding": vector.tolist(),
        "pid": NO_PID if entry.pid is None else entry.pid,
        "modality": entry.modality.code,
        "time": NO_TIME if entry.time is None else to_micros(entry.time),
        "seq": seq,
        "camera": entry.camera or "",
        "source": entry.source or "",
        "track": entry.track or "",
        "tags": list(entry.tags),
    }


def to_stored(row: Mapping[str, Any]) -> Stored:
    """The inverse of `to_row`."""
    entry = Entry(
        row["id"],
        Modality.from_code(int(row["modality"])),
        None if row["pid"] == NO_PID else int(row["pid"]),
        row["camera"] or None,
        None if row["time"] == NO_TIME else from_micros(int(row["time"])),
        row["source"] or None,
        row["track"] or None,
        tuple(row["tags"]),
    )
    return entry, np.asarray(row["embedding"], np.float32)


def rows_at_once(dimension: int) -> int:
    """Rows in one request, with embeddings of so many values."""
    return max(1, min(MOST_ROWS, MOST_BYTES // (4 * dimension)))


def parts(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """At most `size` at a time."""
    return (list(values[start : start + size]) for start in range(0, len(values), size))
