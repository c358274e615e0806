"""An entry as a row of the database and back, and the checksums that guard both."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from fmcnet.retrieval.records import Entry, from_micros, to_micros
from fmcnet.types import Modality

COLUMNS = "seq, id, pid, modality, camera, time, source, track, tags"
Values = tuple[
    int, str, "int | None", int, "str | None", "int | None", "str | None", "str | None", "str | None"
]
"""A row of `rows` without its checksum, in the order of `COLUMNS`."""


def checksum(*values: object) -> int:
    """CRC-32 of values; texts hold no NUL and are not empty, so the joined text is unambiguous."""
    return zlib.crc32("\0".join("" if v is None else str(v) for v in values).encode())


def to_values(seq: int, entry: Entry) -> Values:
    """An entry as stored."""
    return (
        seq,
        entry.id,
        entry.pid,
        entry.modality.code,
        entry.camera,
        None if entry.time is None else to_micros(entry.time),
        entry.source,
        entry.track,
        json.dumps(entry.tags, ensure_ascii=False) if entry.tags else None,
    )


def to_entry(values: Sequence[Any]) -> Entry:
    """A stored row as an entry."""
    _, name, pid, modality, camera, time, source, track, tags = values
    return Entry(
        name,
        Modality.from_code(modality),
        pid,
        camera,
        None if time is None else from_micros(time),
        source,
        track,
        tuple(json.loads(tags)) if tags else (),
    )


def seal(seq: int, vector: bytes) -> bytes:
    """The bytes of an embedding and their checksum, bound to the row's number."""
    return vector + zlib.crc32(vector, seq & 0xFFFFFFFF).to_bytes(4, "little")
