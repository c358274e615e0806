"""What became of files since they were indexed: changed, moved, copied, or gone; entries follow moved files."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fmcnet.errors import GalleryError
from fmcnet.files import file_digest, file_state
from fmcnet.retrieval.file_records import FileRecord, Origin
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.records import Entry, Where
from fmcnet.retrieval.sources import SourceImage, path_id, without_dots

REMOVED_AT_ONCE = 10_000
"""Entries."""
MAX_NAMED = 3
"""Folders that a message names."""


class Moved(NamedTuple):
    """A file with the content of an indexed one, and that one's path."""

    path: str
    before: str


class Difference(NamedTuple):
    """A value given for an image that differs from the one the gallery stores.

    Attributes:
        source: the image's path, or the id of its entry.
        name: "modality", "camera", "time", "track", "pid" or "tags"; "content" for a file that changed; "thumbnail"
            for one that is to be kept and is not.
        stored: the gallery's value.
        given: the new value.
    """

    source: str
    name: str
    stored: Any
    given: Any

    def __str__(self) -> str:
        stored, given = ("nothing" if v in (None, ()) else str(v) for v in (self.stored, self.given))
        return f"{self.source}: {self.name} is {stored} in the gallery, {given} now"


def differences(source: str, given: Mapping[str, Any], entry: Entry) -> Iterator[Difference]:
    """The given values that differ from the entry's; None, and no tags, are not given."""
    for name, value in given.items():
        if value not in (None, ()) and value != getattr(entry, name):
            yield Difference(source, name, getattr(entry, name), value)


@dataclass
class FileChanges:
    """What comparing images with the gallery's records finds; grows from portion to portion.

    Attributes:
        changed: by entry id.
        moved: files that are indexed under another path, where they are gone, or one with `..`; by the id of the new
            path.
        copies: of files that are still there, unless another copy of those is gone: then it moved.
        unrecorded: entries without a record until now, so earlier changes cannot be told.
        unwatched: entries of a cluster, which keeps no records.
    """

    changed: dict[str, Difference] = field(default_factory=dict)
    moved: dict[str, Moved] = field(default_factory=dict)
    copies: list[Moved] = field(default_factory=list)
    unrecorded: int = 0
    unwatched: int = 0

    def notes(self) -> list[str]:
        """A sentence each on copies, and on entries without a record."""
        notes = []
        if self.copies:
            first = self.copies[0]
            notes.append(
                f"{len(self.copies)} new images are copies of indexed ones, the first {first.path} of "
                f"{first.before}"
            )
        if self.unrecorded:
            notes.append(
                f"{self.unrecorded} entries have no record of their files (an index that was cut off, or version "
                "0.1.0): whether these changed before now cannot be told; later changes are noticed"
            )
        if self.unwatched:
            notes.append(
                f"{self.unwatched} entries are of a cluster, which does not notice changed files: --existing replace "
                "encodes all anew"
            )
        return notes


def compare_files(
    gallery: Gallery, images: Sequence[SourceImage], stored: Collection[str], changes: FileChanges
) -> dict[str, FileRecord]:
    """Compare images with the records of the gallery, and update the records of unchanged content.

    Args:
        gallery: a cluster has no records: nothing is found there.
        images: a portion.
        stored: the ids of those that the gallery holds.
        changes: is extended.

    Returns:
        Records by id, to be put once an image was encoded.
    """
    if gallery.files is None:
        changes.unwatched += len(stored)
        return {}
    known = gallery.files.of(stored)
    found = ((image.id, _read_record(image, known.get(image.id))) for image in images)
    records = {name: record for name, record in found if record is not None}
    same: dict[str, FileRecord] = {}
    new: dict[str, FileRecord] = {}
    for name, record in records.items():
        before = known.get(name)
        if name not in stored:
            new[name] = record
        elif before is not None and before.digest != record.digest:
            digests = (f"sha256 {digest[:12]}" for digest in (before.digest, record.digest))
            changes.changed[name] = Difference(record.path, "content", *digests)
        elif record is not before:
            same[name] = record
            changes.unrecorded += before is None
    gallery.files.put(same)
    twins = gallery.files.with_digest(record.digest for record in new.values())
    explained = {move.before for move in changes.moved.values()}
    for name, record in new.items():
        gone, existing = _split_twins(record, twins.get(record.digest, ()))
        if existing:  # then a gone file explains one new path
            gone = [path for path in gone if path not in explained]
        if gone:
            changes.moved[name] = Moved(record.path, gone[0])
            explained.add(gone[0])
        elif existing:
            changes.copies.append(Moved(record.path, existing[0]))
    return records


def _read_record(image: SourceImage, before: FileRecord | None) -> FileRecord | None:
    """The record of an image's file as it is now, `before` itself of an unchanged one; None: it cannot be read."""
    try:
        state = file_state(image.path)  # before the digest and the pixels: a later change differs
        if before is not None and before.state == state:
            return before
        root = image.root or image.path.parent
        return FileRecord(str(image.path), str(root), state, file_digest(image.path))
    except OSError:
        return None  # it cannot be encoded either, which names it


def _split_twins(record: FileRecord, twins: Sequence[FileRecord]) -> tuple[list[str], list[str]]:
    """Paths of indexed files with its content: those that are gone, or are this one with `..`, and the others."""
    paths = [twin.path for twin in twins]
    gone = [path for path in paths if is_gone(Path(path)) or without_dots(path) == record.path != path]
    return gone, [path for path in paths if path not in gone]


def moves(moved: Sequence[Moved]) -> list[tuple[str, str]]:
    """The folders (old, new) for `fmcnet gallery relocate`, most files first."""
    counts = Counter[tuple[str, str]]()
    for move in moved:
        old, new = Path(move.before).parts, Path(move.path).parts
        common = 0
        while common < min(len(old), len(new)) - 1 and old[-1 - common] == new[-1 - common]:
            common += 1
        counts[str(Path(*old[: len(old) - common])), str(Path(*new[: len(new) - common]))] += 1
    return [pair for pair, _ in counts.most_common()]


def is_gone(path: Path) -> bool:
    """Whether the file surely does not exist; an unreadable folder or a broken link is no proof."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


@dataclass(frozen=True)
class GoneFiles:
    """Entries of one folder whose files are gone.

    Attributes:
        root: the folder that was indexed, or one below it that is empty now.
        ids: of the entries.
        first: path of the first.
        entries: of that folder, in all.
    """

    root: str
    ids: tuple[str, ...]
    first: str
    entries: int

    @property
    def whole(self) -> bool:
        """No file of the folder exists, as of a disk that is not mounted."""
        return len(self.ids) == self.entries

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"folder": self.root, "gone": len(self.ids), "entries": self.entries, "first": self.first}


def find_gone(gallery: Gallery) -> list[GoneFiles]:
    """Entries that `index` made of files that are gone now, by the folder that was indexed or is empty.

    An entry without a record counts to the folder that holds its file. Entries that name another machine's files, as
    those added over HTTP may, are not looked at.
    """
    entries = Counter[str]()
    gone = defaultdict[str, dict[str, Path]](dict)
    for origin in _origins(gallery):
        path = indexed_path(origin)
        if path is not None:
            root = origin.record.root if origin.record is not None else str(path.parent)
            if is_gone(path):
                root = _empty_folder(path, root)
                gone[root][origin.id] = path
            entries[root] += 1
    return [
        GoneFiles(root, tuple(paths), str(next(iter(paths.values()))), entries[root])
        for root, paths in sorted(gone.items())
    ]


def _empty_folder(path: Path, root: str) -> str:
    """The folder below the root that is empty or cannot be listed, as of an unmounted disk; else the root."""
    folder = path.parent
    while is_gone(folder) and folder != folder.parent:  # a drive on Windows may be gone, too
        folder = folder.parent
    if Path(root) not in folder.parents:
        return root
    try:
        with os.scandir(folder) as found:
            return root if any(found) else str(folder)
    except NotADirectoryError:  # a file took its place
        return root
    except OSError:
        return str(folder)


def remove_gone(gallery: Gallery, gone: Sequence[GoneFiles]) -> int:
    """Remove these entries, except those whose files came back; returns how many."""
    ids = {entry_id for folder in gone for entry_id in folder.ids}
    gone_ids = [
        origin.id
        for origin in _origins(gallery)
        if origin.id in ids and is_gone(indexed_path(origin) or Path())
    ]
    return sum(
        # Not remembered: a file may come back.
        gallery.remove(Where(ids=gone_ids[start : start + REMOVED_AT_ONCE]), remember=False)
        for start in range(0, len(gone_ids), REMOVED_AT_ONCE)
    )


def indexed_path(origin: Origin) -> Path | None:
    """The path of the file that `index` made an entry of; None for other entries."""
    if origin.record is not None:
        return Path(origin.record.path)
    path = Path(origin.source or "")
    return path if path.is_absolute() and path_id(path) == origin.id else None


def _origins(gallery: Gallery) -> Sequence[Origin]:
    if gallery.files is not None:
        return list(gallery.files.origins())
    return [Origin(entry.id, entry.source, None) for entry, _ in gallery.scan()]


class Relocation(NamedTuple):
    """Entries whose source lies below the old place, and those of them whose file is not at the new place."""

    matched: int
    missing: int


def relocate(gallery: Gallery, old: str, new: str, *, dry_run: bool = False) -> Relocation:
    """Change the beginning of sources, all or nothing; embeddings and other metadata stay.

    An entry that `index` made gets the id that its file has at the new place, so indexing there adds nothing twice.

    Args:
        gallery: in a folder.
        old: the file or folder that sources lie in now; relative to the working folder, or an address (s3://...).
        new: its new place.
        dry_run: only count.

    Returns:
        How many entries are changed, and how many of their files are not at the new place.

    Raises:
        GalleryError: when no source lies below `old`, an entry of the new name exists, or the gallery is a cluster.
    """
    if gallery.files is None:
        raise GalleryError(
            f"{gallery.location}: sources of a cluster's entries cannot be relocated; index again"
        )
    old, new = _normalized_path(old), _normalized_path(new)
    origins = list(gallery.files.origins())
    renamed = {origin.id: moved for origin in origins if (moved := _relocated(origin, old, new)) is not None}
    if not renamed:
        roots = sorted({str(Path(without_dots(one.source)).parent) for one in origins if one.source})
        more = ", ..." if len(roots) > MAX_NAMED else ""
        hint = f"; sources lie in {', '.join(roots[:MAX_NAMED])}{more}" if roots else ""
        raise GalleryError(f"{gallery.location} has no entry whose source is {old} or lies below it{hint}")
    _check_not_taken(origins, renamed, gallery.location)
    places = (indexed_path(origin) or Path(origin.source or "") for origin in renamed.values())
    missing = sum(is_gone(path) for path in places if path.is_absolute())
    if not dry_run:
        gallery.files.rename(renamed)
    return Relocation(len(renamed), missing)


def _normalized_path(text: str) -> str:
    """An absolute path, or an address, without a slash at its end."""
    if "://" in text:
        return text.rstrip("/")
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 (.. goes, links stay)


def _relocated(origin: Origin, old: str, new: str) -> Origin | None:
    """The origin at its new place; None: it does not lie below `old`."""
    path = indexed_path(origin)
    source = _replace_prefix(origin.source, old, new)
    new_path = _replace_prefix(None if path is None else str(path), old, new)
    if source is None and new_path is None:
        return None
    made_by_index = path is not None and path_id(path) == origin.id
    record = origin.record
    if new_path is not None and record is not None:
        record = record._replace(
            path=new_path, root=_replace_prefix(record.root, old, new) or str(Path(new_path).parent)
        )
    return Origin(
        path_id(Path(new_path)) if new_path is not None and made_by_index else origin.id,
        source if source is not None else origin.source,
        record,
    )


def _replace_prefix(text: str | None, old: str, new: str) -> str | None:
    """A path or address, without `..`, with `new` for the prefix `old`; None without that prefix."""
    text = without_dots(text or "")
    if text == old:
        return new
    prefix = old.rstrip(os.sep) + ("/" if "://" in old else os.sep)
    if not text.startswith(prefix):
        return None
    return new.rstrip(os.sep) + ("/" if "://" in new else os.sep) + text[len(prefix) :]


def _check_not_taken(origins: list[Origin], renamed: dict[str, Origin], location: str) -> None:
    places = Counter(origin.id for origin in renamed.values())
    if twice := [origin for origin in renamed.values() if places[origin.id] > 1]:
        raise GalleryError(
            f"{location} has {len(set(twice))} files under two paths, with and without .., the first "
            f"{twice[0].source or twice[0].id}: nothing was changed. Index them at the new place, and remove the old "
            "entries with fmcnet index --prune (of a folder that is gone: --prune --prune-roots)"
        )
    staying = [origin for origin in origins if origin.id not in renamed]
    ids, sources = {origin.id for origin in staying}, {origin.source for origin in staying} - {None}
    old_sources = {origin.id: origin.source for origin in origins}
    taken = [
        origin
        for entry_id, origin in renamed.items()
        if origin.id in ids or (origin.source in sources and origin.source != old_sources.get(entry_id))
    ]
    if taken:
        raise GalleryError(
            f"{location} already has {len(taken)} of the {len(renamed)} entries at the new place, the first "
            f"{taken[0].source or taken[0].id}: nothing was changed. If they were indexed again there, remove the "
            "old ones with fmcnet index --prune (of a folder that is gone: --prune --prune-roots)"
        )
