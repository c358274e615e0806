"""Entries follow their files to another folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fmcnet.errors import GalleryError
from fmcnet.retrieval.file_records import FileRecord, Origin
from fmcnet.retrieval.freshness import indexed_path, is_gone
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.records import Entry, Where
from fmcnet.retrieval.sources import path_id

NAMED = 3
"""Folders that a message names."""


class Relocation(NamedTuple):
    """What a relocation did, or would do.

    Attributes:
        matched: entries whose source lies below the old place. missing: those whose file is not at the new place.
    """

    matched: int
    missing: int


def relocate(gallery: Gallery, old: str, new: str, *, dry_run: bool = False) -> Relocation:
    """Change the beginning of sources, all or nothing; embeddings and other metadata stay.

    An entry that `index` made gets the id that its file has at the new place, so indexing there adds nothing twice.

    Args:
        gallery: in a folder. old, new: a file or folder each; relative to the working folder, or an address (s3://...).
        dry_run: only count.

    Raises:
        GalleryError: when no source lies below `old`, an entry of the new name exists, or the gallery is a cluster.
    """
    if gallery.files is None:
        raise GalleryError(
            f"{gallery.location}: sources of a cluster's entries cannot be relocated; index again"
        )
    old, new = _place(old), _place(new)
    origins = list(gallery.files.origins())
    renamed: dict[str, Origin] = {}
    for one in origins:
        moved = _moved(one, old, new)
        if moved is not None:
            renamed[one.id] = moved
    if not renamed:
        roots = sorted({str(Path(one.source).parent) for one in origins if one.source})
        some = (
            f"; sources lie in {', '.join(roots[:NAMED])}{', ...' if len(roots) > NAMED else ''}"
            if roots
            else ""
        )
        raise GalleryError(f"{gallery.location} has no entry whose source is {old} or lies below it{some}")
    _check_names(origins, renamed, gallery.location)
    paths = [path for one in renamed.values() if (path := indexed_path(one)) is not None]
    missing = sum(map(is_gone, paths))
    if not dry_run:
        changes: dict[str, tuple[Entry, FileRecord | None]] = {}
        for entry, _ in gallery.scan(Where(ids=list(renamed))):
            now = renamed[entry.id]
            changes[entry.id] = replace(entry, id=now.id, source=now.source), now.record
        gallery.files.rename(changes)
    return Relocation(len(renamed), missing)


def _place(text: str) -> str:
    """An absolute path, or an address, without a slash at its end."""
    if "://" in text:
        return text.rstrip("/")
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 (.. goes, links stay)


def _moved(origin: Origin, old: str, new: str) -> Origin | None:
    """The origin at its new place; None: it does not lie below `old`."""
    path = indexed_path(origin)
    source = _swapped(origin.source, old, new)
    here = _swapped(None if path is None else str(path), old, new)
    if source is None and here is None:
        return None
    made_by_index = path is not None and path_id(path) == origin.id
    record = origin.record
    if here is not None and record is not None:
        record = record._replace(path=here, root=_swapped(record.root, old, new) or str(Path(here).parent))
    return Origin(
        path_id(Path(here)) if here is not None and made_by_index else origin.id,
        source if source is not None else origin.source,
        record,
    )


def _swapped(text: str | None, old: str, new: str) -> str | None:
    """A text with `new` for `old` at its beginning; None where it does not begin so."""
    if text == old:
        return new
    begin = old.rstrip(os.sep) + ("/" if "://" in old else os.sep)
    if text is None or not text.startswith(begin):
        return None
    return new.rstrip(os.sep) + ("/" if "://" in new else os.sep) + text[len(begin) :]


def _check_names(origins: list[Origin], renamed: dict[str, Origin], location: str) -> None:
    staying = [one for one in origins if one.id not in renamed]
    ids, sources = {one.id for one in staying}, {one.source for one in staying} - {None}
    kept = {one.id: one.source for one in origins}
    taken = [
        now
        for before, now in renamed.items()
        if now.id in ids or (now.source in sources and now.source != kept.get(before))
    ]
    if taken:
        raise GalleryError(
            f"{location} already has {len(taken)} of the {len(renamed)} entries at the new place, the first "
            f"{taken[0].source or taken[0].id}: nothing was changed. If they were indexed again there, remove the "
            "old ones with fmcnet index --prune"
        )
