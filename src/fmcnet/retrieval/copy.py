"""Copy a gallery into another place, of either backend: exact, in batches, resumable, compared at the end."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmcnet.errors import GalleryError
from fmcnet.files import private_mode, write_atomically
from fmcnet.progress import Progress
from fmcnet.retrieval.gallery import open_store
from fmcnet.retrieval.inputs import check_settings
from fmcnet.retrieval.records import MADE_WITH, EntryBatch, IndexChoice, OpenOptions

if TYPE_CHECKING:
    from fmcnet.retrieval.gallery import Store

BATCH = 2_048
"""Entries in one add."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copied:
    """What `copy_gallery` did.

    Attributes:
        source, target: locations, without passwords.
        copied: entries that this call wrote. already_there: those of an earlier call that was stopped.
        entries: in the target now, each compared with the source's.
        pictures: kept with entries of the target. pictures_left_out: those that a cluster cannot keep.
    """

    source: str
    target: str
    copied: int
    already_there: int
    entries: int
    pictures: int
    pictures_left_out: int


def copy_gallery(
    source: str | Path,
    target: str | Path,
    *,
    index: IndexChoice | None = None,
    timeout: float = 30.0,
    batch: int = BATCH,
    progress: bool | None = None,
) -> Copied:
    """Copy all entries, with ids, metadata, embeddings and pictures, bit for bit and in their order.

    A call that was stopped is repeated as it was: what is there is compared and not written again. At the end each
    entry of the target is compared with the source. The source is only read.

    Args:
        source: a folder or milvus://host:port/name.
        target: likewise; new, or what an earlier call has begun.
        index: of a new target, as of `Gallery`.
        timeout: seconds to wait for another process that writes to the target.
        batch: entries in one add.
        progress: show a bar; None: on a terminal only.

    Raises:
        GalleryError: when the source is empty, the target holds other entries or is the source, or either changed
            during the copy.
    """
    if batch < 1:
        raise GalleryError(f"batch={batch} must be at least 1")
    if not _is_cluster(source) and Path(source).resolve() == Path(target).resolve():
        raise GalleryError(f"{source} and {target} are the same gallery: name another one to copy into")
    options = OpenOptions(True, False, timeout, None, None, "float32", BATCH)
    with closing(open_store(source, options)) as there:
        settings = there.settings
        if settings is None or not there.count(None):
            raise GalleryError(f"{there.location} is empty: there is nothing to copy")
        dtype = "float32" if _is_cluster(target) else settings.dtype
        options = replace(options, read_only=False, create=True, index=index, dtype=dtype)
        with closing(open_store(target, options)) as here:
            if here.location == there.location:
                raise GalleryError(f"{here.location} is the gallery itself: name another one to copy into")
            if here.settings is not None:
                check_settings(here.settings, settings.dimension, settings.model, here.location)
            return _copy(there, here, source, target, batch, progress)


def _copy(
    there: Store, here: Store, source: str | Path, target: str | Path, batch: int, progress: bool | None
) -> Copied:
    before = _compare(there, here, batch, progress) if here.count(None) else 0
    pictures = there.info().pictures
    takes = not _is_cluster(target)
    if pictures and not takes:
        logger.warning("%s keeps no pictures: %d of %s are left out", here.location, pictures, there.location)
    written = _write(there, here, batch, takes and pictures > 0, progress)
    _note(source, target)
    if there.files is not None and here.files is not None:
        here.files.take(there.files)
    elif there.files is not None:
        logger.warning(
            "%s remembers neither files nor removals: fmcnet index into it adds what was removed again",
            here.location,
        )
    entries, total = _compare(there, here, batch, progress), there.count(None)
    if entries != total:
        raise GalleryError(
            f"{there.location} has {total:,} entries and {here.location} {entries:,}: one of them changed during the "
            "copy. Run the same command again; it continues."
        )
    return Copied(
        there.location,
        here.location,
        written,
        before,
        entries,
        here.info().pictures,
        0 if takes else pictures,
    )


def _write(there: Store, here: Store, batch: int, pictures: bool, progress: bool | None) -> int:
    """Add what the target lacks; how many entries that were."""
    settings = there.settings
    assert settings is not None
    written = 0
    with Progress("copying", there.count(None), show=progress) as bar:
        for part in there.scan(None, batch):
            entries = tuple(entry for entry, _ in part)
            kept = tuple(there.picture(entry.id) for entry in entries) if pictures else ()
            vectors = np.stack([vector for _, vector in part])
            written += here.add(EntryBatch(entries, vectors, kept), settings.model, "skip").added
            bar.advance(count=len(part))
    return written


def _compare(there: Store, here: Store, batch: int, progress: bool | None) -> int:
    """How many entries the target has; an error names the first that the source lacks, or has otherwise."""
    settings = here.settings
    half = settings is not None and settings.dtype == "float16"
    count = 0
    with Progress("comparing", here.count(None), show=progress) as bar:
        for part in here.scan(None, batch):
            found = there.fetch([entry.id for entry, _ in part])
            for entry, vector in part:
                if entry.id not in found:
                    raise GalleryError(
                        f"{here.location} holds the entry '{entry.id}', which {there.location} does not: name a new "
                        "gallery to copy into, or remove that entry"
                    )
                wanted, values = found[entry.id]
                expected = values.astype(np.float16).astype(np.float32) if half else values
                if wanted != entry or not np.array_equal(expected, vector):
                    raise GalleryError(
                        f"the entry '{entry.id}' of {here.location} is another than that of {there.location}: name a "
                        "new gallery to copy into, or remove that entry"
                    )
            count += len(part)
            bar.advance(count=len(part))
    return count


def _note(source: str | Path, target: str | Path) -> None:
    """Copy the note of model and value ranges between folders."""
    at, to = Path(source) / MADE_WITH, Path(target) / MADE_WITH
    if not _is_cluster(source) and not _is_cluster(target) and at.is_file() and not to.exists():
        noted = at.read_bytes()
        write_atomically(to, lambda path: path.write_bytes(noted), private_mode(to.parent))


def _is_cluster(location: str | Path) -> bool:
    return str(location).startswith("milvus://")
