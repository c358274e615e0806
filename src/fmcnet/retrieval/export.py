"""A gallery as one file for other tools: Parquet (extra `gallery`) or npz."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.errors import GalleryError, require
from fmcnet.files import private_mode, write_atomically
from fmcnet.retrieval.records import Entry, GallerySettings, Stored, to_micros

TEXTS = ("id", "pid", "camera", "source", "track")
NO_TIME = np.iinfo(np.int64).min


def export(path: Path, settings: GallerySettings, parts: Iterator[list[Stored]]) -> int:
    """Write all entries; the format by the name's end; how many they were.

    Raises:
        GalleryError: for another ending, or when the file cannot be written.
        MissingDependencyError: for Parquet without pyarrow.
    """
    writers = {".npz": _npz, ".parquet": _parquet}
    if path.suffix not in writers:
        raise GalleryError(f"{path}: the name must end in .npz or .parquet")
    counts: list[int] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path,
            lambda temporary: counts.append(writers[path.suffix](temporary, settings, parts)),
            private_mode(path.parent),
        )
    except OSError as error:
        raise GalleryError(f"{path} cannot be written: {error.strerror or error}") from error
    return counts[0]


def _npz(path: Path, settings: GallerySettings, parts: Iterator[list[Stored]]) -> int:
    """Arrays of N rows; what is not known is the smallest int64 (time_us) or "" (texts)."""
    entries: list[Entry] = []
    vectors = [np.empty((0, settings.dimension), np.float32)]
    for part in parts:
        entries += [entry for entry, _ in part]
        vectors.append(np.stack([vector for _, vector in part]))
    times = [NO_TIME if e.time is None else to_micros(e.time) for e in entries]
    arrays: dict[str, Any] = {
        "embedding": np.concatenate(vectors),
        "time_us": np.array(times, np.int64),
        "modality": _texts([e.modality.value for e in entries]),
        "tags": _texts([json.dumps(e.tags, ensure_ascii=False) for e in entries]),
        "model": np.array(settings.model),
    }
    for name in TEXTS:
        arrays[name] = _texts([getattr(e, name) or "" for e in entries])
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return len(entries)


def _texts(values: list[str]) -> np.ndarray[Any, np.dtype[np.str_]]:
    return np.array(values, dtype=np.str_)


def _parquet(path: Path, settings: GallerySettings, parts: Iterator[list[Stored]]) -> int:
    """A row an entry; what is not known is null; the model is in the file's metadata."""
    arrow: Any = require("pyarrow", "gallery")
    parquet: Any = require("pyarrow.parquet", "gallery")
    kinds = {
        "id": arrow.string(),
        "pid": arrow.string(),
        "modality": arrow.string(),
        "camera": arrow.string(),
        "time": arrow.timestamp("us", tz="UTC"),
        "source": arrow.string(),
        "track": arrow.string(),
        "tags": arrow.list_(arrow.string()),
    }
    fields = [arrow.field(name, kind) for name, kind in kinds.items()]
    fields.append(arrow.field("embedding", arrow.list_(arrow.float32(), settings.dimension)))
    schema = arrow.schema(fields, metadata={"fmcnet.models": settings.model})
    count = 0
    with parquet.ParquetWriter(str(path), schema) as writer:
        for part in parts:
            columns = {
                "modality": [e.modality.value for e, _ in part],
                "time": [e.time for e, _ in part],
                "tags": [list(e.tags) for e, _ in part],
                **{name: [getattr(e, name) for e, _ in part] for name in TEXTS},
            }
            arrays = [arrow.array(columns[name], kind) for name, kind in kinds.items()]
            flat = arrow.array(np.concatenate([vector for _, vector in part]).astype(np.float32))
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, settings.dimension))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            count += len(part)
    return count
