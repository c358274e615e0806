"""Copies of a gallery: in a gallery of either backend, or as one file for other tools.

A copy is exact, in batches, resumable, and compared at the end. A file is Parquet (extra `gallery`) or npz.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmcnet.errors import GalleryError, require
from fmcnet.files import private_mode, write_atomically
from fmcnet.progress import Progress
from fmcnet.retrieval.gallery import open_store
from fmcnet.retrieval.inputs import check_settings
from fmcnet.retrieval.records import (
    MADE_WITH,
    NONE,
    Entry,
    EntryBatch,
    GallerySettings,
    IndexChoice,
    OpenOptions,
    Stored,
    to_micros,
)

if TYPE_CHECKING:
    from fmcnet.retrieval.gallery import Store

BATCH = 2_048
"""Entries in one add."""
WAIT = 30.0
"""Seconds to wait for another process that writes to the target."""
TEXTS = ("id", "pid", "camera", "source", "track")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copied:
    """What `copy_gallery` did.

    Attributes:
        source: location, without a password.
        target: location, without a password.
        copied: entries that this call wrote.
        already_there: those of an earlier call that was stopped.
        entries: in the target now, each compared with the source's.
        thumbnails: kept with entries of the target.
        thumbnails_left_out: those that a cluster cannot keep.
    """

    source: str
    target: str
    copied: int
    already_there: int
    entries: int
    thumbnails: int
    thumbnails_left_out: int


def copy_gallery(
    source: str | Path,
    target: str | Path,
    *,
    index: IndexChoice | None = None,
    progress: bool | None = None,
) -> Copied:
    """Copy all entries, with ids, metadata, embeddings and thumbnails, bit for bit and in their order.

    After a stop repeat the call: existing entries are compared and not written again. At the end each
    entry of the target is compared with the source. The source is only read.

    Args:
        source: a folder or milvus://host:port/name.
        target: likewise; new, or what an earlier call has begun.
        index: of a new target, as of `Gallery`.
        progress: show a bar; None: on a terminal only.

    Raises:
        GalleryError: when the source is empty, the target holds other entries, lost some of these by a removal or is
            the source, or either changed during the copy.
    """
    if not _is_cluster(source) and Path(source).resolve() == Path(target).resolve():
        raise GalleryError(f"{source} and {target} are the same gallery: name another one to copy into")
    with closing(open_store(source, OpenOptions(read_only=True, timeout=WAIT))) as origin:
        settings = origin.settings
        if settings is None or not origin.count(None):
            raise GalleryError(f"{origin.location} is empty: there is nothing to copy")
        takes_thumbnails = not _is_cluster(target)
        dtype = settings.dtype if takes_thumbnails else "float32"
        with closing(open_store(target, OpenOptions(timeout=WAIT, index=index, dtype=dtype))) as copy:
            if copy.location == origin.location:
                raise GalleryError(f"{copy.location} is the gallery itself: name another one to copy into")
            if copy.settings is not None:
                check_settings(copy.settings, settings.dimension, settings.model, copy.location)
            existing = _compare(origin, copy, progress) if copy.count(None) else 0
            _check_not_removed(origin, copy)
            thumbnails = origin.info().thumbnails
            if thumbnails and not takes_thumbnails:
                logger.warning(
                    "%s keeps no thumbnails: %d of %s are left out",
                    copy.location,
                    thumbnails,
                    origin.location,
                )
            written = _copy_entries(
                origin, copy, settings.model, takes_thumbnails and thumbnails > 0, progress
            )
            _copy_records(origin, copy)
            entries, total = _compare(origin, copy, progress), origin.count(None)
            if entries != total:
                raise GalleryError(
                    f"{origin.location} has {total:,} entries and {copy.location} {entries:,}: one "
                    "of them changed during the copy. Run the same command again; it continues."
                )
            kept, left_out = copy.info().thumbnails, 0 if takes_thumbnails else thumbnails
            return Copied(origin.location, copy.location, written, existing, entries, kept, left_out)


def _check_not_removed(source: Store, target: Store) -> None:
    """Refuse a target from which entries of the source were removed: a copy would bring them back."""
    if source.files is None or target.files is None:
        return
    if not target.files.any_removed():
        return
    removed = 0
    for part in source.scan(None, BATCH):
        ids = [entry.id for entry, _ in part]
        missing = set(ids) - target.fetch(ids).keys()
        records = source.files.of(missing)
        keys = [{name, records[name].digest} if name in records else {name} for name in missing]
        gone = target.files.removed(itertools.chain(*keys))
        removed += sum(bool(names & gone) for names in keys)
    if removed:
        raise GalleryError(
            f"{removed} entries of {source.location} are on the list of removed images of {target.location}, and a "
            "copy would bring them back: copy into a new gallery"
        )


def _copy_records(source: Store, target: Store) -> None:
    """Copy the records of files and of removals, and of the model and value ranges; a cluster has none of them."""
    if source.files is None:
        return
    if target.files is None:
        logger.warning(
            "%s remembers neither files nor removals: fmcnet index into it adds what was removed again",
            target.location,
        )
        return
    target.files.take(source.files)
    target.replace_ranges((*target.value_ranges(), *source.value_ranges()), target.count(None))
    old, new = Path(source.location) / MADE_WITH, Path(target.location) / MADE_WITH
    if old.is_file() and not new.exists():
        write_atomically(new, lambda path: path.write_bytes(old.read_bytes()), private_mode(new.parent))


def _copy_entries(source: Store, target: Store, model: str, thumbnails: bool, progress: bool | None) -> int:
    """Add the entries that the target lacks; returns how many."""
    written = 0
    with Progress("copying", source.count(None), show=progress) as bar:
        for part in source.scan(None, BATCH):
            entries = tuple(entry for entry, _ in part)
            kept = tuple(source.thumbnail(entry.id) for entry in entries) if thumbnails else ()
            vectors = np.stack([vector for _, vector in part])
            written += target.add(EntryBatch(entries, vectors, kept), model, "skip").added
            bar.advance(count=len(part))
    return written


def _compare(source: Store, target: Store, progress: bool | None) -> int:
    """How many entries the target has; an error names the first that differs from the source."""
    settings = target.settings
    float16 = settings is not None and settings.dtype == "float16"
    count = 0
    with Progress("comparing", target.count(None), show=progress) as bar:
        for part in target.scan(None, BATCH):
            stored = source.fetch([entry.id for entry, _ in part])
            for entry, vector in part:
                if entry.id not in stored:
                    raise GalleryError(
                        f"{target.location} holds the entry '{entry.id}', which {source.location} does not: name a "
                        "new gallery to copy into, or remove that entry"
                    )
                source_entry, source_vector = stored[entry.id]
                expected = source_vector.astype(np.float16).astype(np.float32) if float16 else source_vector
                if source_entry != entry or not np.array_equal(expected, vector):
                    raise GalleryError(
                        f"the entry '{entry.id}' of {target.location} is another than that of {source.location}: "
                        "name a new gallery to copy into, or remove that entry"
                    )
            count += len(part)
            bar.advance(count=len(part))
    return count


def _is_cluster(location: str | Path) -> bool:
    return str(location).startswith("milvus://")


def export(path: Path, settings: GallerySettings, parts: Iterator[list[Stored]]) -> int:
    """Write all entries to one file; the format by the name's end; how many they were.

    Raises:
        GalleryError: for another ending, or when the file cannot be written.
        MissingDependencyError: for Parquet without pyarrow.
    """
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
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


def _write_npz(path: Path, settings: GallerySettings, parts: Iterator[list[Stored]]) -> int:
    """Arrays of N rows; what is not known is the smallest int64 (time_us) or "" (texts)."""
    entries: list[Entry] = []
    vectors = [np.empty((0, settings.dimension), np.float32)]
    for part in parts:
        entries += [entry for entry, _ in part]
        vectors.append(np.stack([vector for _, vector in part]))
    times = [NONE if entry.time is None else to_micros(entry.time) for entry in entries]
    arrays: dict[str, Any] = {
        "embedding": np.concatenate(vectors),
        "time_us": np.array(times, np.int64),
        "modality": np.array([entry.modality.value for entry in entries], np.str_),
        "tags": np.array([json.dumps(entry.tags, ensure_ascii=False) for entry in entries], np.str_),
        "model": np.array(settings.model),
    }
    for name in TEXTS:
        arrays[name] = np.array([getattr(entry, name) or "" for entry in entries], np.str_)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return len(entries)


def _write_parquet(path: Path, settings: GallerySettings, parts: Iterator[list[Stored]]) -> int:
    """A row an entry; what is not known is null; the model is in the file's metadata."""
    arrow: Any = require("pyarrow", "gallery")
    parquet: Any = require("pyarrow.parquet", "gallery")
    names = ("id", "pid", "modality", "camera", "time", "source", "track", "tags")
    types = dict.fromkeys(names, arrow.string())
    types |= {"time": arrow.timestamp("us", tz="UTC"), "tags": arrow.list_(arrow.string())}
    fields = [arrow.field(name, arrow_type) for name, arrow_type in types.items()]
    fields.append(arrow.field("embedding", arrow.list_(arrow.float32(), settings.dimension)))
    schema = arrow.schema(fields, metadata={"fmcnet.models": settings.model})
    count = 0
    with path.open("wb") as stream, parquet.ParquetWriter(stream, schema) as writer:
        for part in parts:
            columns = {
                "modality": [entry.modality.value for entry, _ in part],
                "time": [entry.time for entry, _ in part],
                "tags": [list(entry.tags) for entry, _ in part],
                **{name: [getattr(entry, name) for entry, _ in part] for name in TEXTS},
            }
            arrays = [arrow.array(columns[name], arrow_type) for name, arrow_type in types.items()]
            flat = arrow.array(np.concatenate([vector for _, vector in part]).astype(np.float32))
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, settings.dimension))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            count += len(part)
    return count
