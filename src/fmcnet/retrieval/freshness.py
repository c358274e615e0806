"""What became of files since they were indexed: changed, moved, copied, or gone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fmcnet.files import file_digest, file_state
from fmcnet.retrieval.file_records import FileRecord, Origin
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.records import Where
from fmcnet.retrieval.sources import Picture, path_id

REMOVED_AT_ONCE = 10_000
"""Entries."""


class Moved(NamedTuple):
    """A file with the content of an indexed one that is gone from its place."""

    path: str
    before: str


@dataclass
class FileChanges:
    """What comparing pictures with the gallery's records finds; grows from portion to portion.

    Attributes:
        changed: paths whose content is another one than that indexed.
        moved: files that are indexed under another path, where they are gone.
        copies: as `moved`, but the other file is still there.
        unrecorded: entries without a record until now, so earlier changes cannot be told.
        unwatched: entries of a cluster, which keeps no records.
    """

    changed: list[str] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    copies: list[Moved] = field(default_factory=list)
    unrecorded: int = 0
    unwatched: int = 0

    def notes(self) -> list[str]:
        """A sentence each on copies, and on entries without a record."""
        notes = []
        if self.copies:
            first = self.copies[0]
            notes.append(
                f"{len(self.copies)} new pictures are copies of indexed ones, the first {first.path} of "
                f"{first.before}"
            )
        if self.unrecorded:
            notes.append(
                f"{self.unrecorded} entries are of an earlier version: whether their files changed before now cannot "
                "be told; later changes are noticed"
            )
        if self.unwatched:
            notes.append(
                f"{self.unwatched} entries are of a cluster, which does not notice changed files: --existing replace "
                "encodes all anew"
            )
        return notes


class Compared(NamedTuple):
    """One portion of pictures, by their ids.

    Attributes:
        records: to be put once a picture was encoded.
        changed: the digest at its indexing and the one now.
        moved: ids of pictures in `FileChanges.moved`.
    """

    records: dict[str, FileRecord]
    changed: dict[str, tuple[str, str]]
    moved: set[str]


def compare_files(
    gallery: Gallery, pictures: Sequence[Picture], stored: Collection[str], changes: FileChanges
) -> Compared:
    """Compare pictures with the records of the gallery, and bring those up to date whose content is the same.

    Args:
        gallery: a cluster has no records: nothing is found there.
        pictures: a portion. stored: the ids of those that the gallery holds.
        changes: is extended.
    """
    out = Compared({}, {}, set())
    if gallery.files is None:
        changes.unwatched += len(stored)
        return out
    known = gallery.files.of(stored)
    same: dict[str, FileRecord] = {}
    for picture in pictures:
        before = known.get(picture.id)
        try:
            state = file_state(
                picture.path
            )  # before the digest and the pixels: a later change differs from it
            if before is not None and before.state == state:
                out.records[picture.id] = before
                continue
            digest = file_digest(picture.path)
        except OSError:
            continue  # it cannot be encoded either, which names it
        root = picture.path.parent if picture.root is None else picture.root
        record = out.records[picture.id] = FileRecord(str(picture.path), str(root), state, digest)
        if before is not None and before.digest != digest:
            out.changed[picture.id] = before.digest, digest
            changes.changed.append(str(picture.path))
        elif picture.id in stored:
            same[picture.id] = record
            changes.unrecorded += before is None
    gallery.files.put(same)
    new = {picture.id for picture in pictures} - set(stored)
    twins = gallery.files.with_digest(out.records[one].digest for one in new if one in out.records)
    for picture in pictures:
        record = out.records.get(picture.id, FileRecord("", "", "", ""))
        if picture.id not in new or record.digest not in twins:
            continue
        there = [one.path for one in twins[record.digest] if not is_gone(Path(one.path))]
        if there:
            changes.copies.append(Moved(record.path, there[0]))
        else:
            out.moved.add(picture.id)
            changes.moved.append(Moved(record.path, twins[record.digest][0].path))
    return out


def moves(moved: Sequence[Moved]) -> list[tuple[str, str]]:
    """The places (old, new) for `fmcnet gallery relocate`, that of the most files first."""
    found = Counter[tuple[str, str]]()
    for one in moved:
        old, new = Path(one.before).parts, Path(one.path).parts
        alike = 0
        while alike < min(len(old), len(new)) - 1 and old[-1 - alike] == new[-1 - alike]:
            alike += 1
        found[str(Path(*old[: len(old) - alike])), str(Path(*new[: len(new) - alike]))] += 1
    return [pair for pair, _ in found.most_common()]


def is_gone(path: Path) -> bool:
    """Whether there is surely no such file: a folder that cannot be read, or a link to nowhere, does not tell."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class GoneFiles:
    """Entries of one indexed folder whose files are gone.

    Attributes:
        root: the folder. ids: of the entries. first: path of the first. entries: of that folder, in all.
    """

    root: str
    ids: tuple[str, ...]
    first: str
    entries: int

    @property
    def whole(self) -> bool:
        """Nothing of the folder is there, as of a disk that is not mounted."""
        return len(self.ids) == self.entries


def find_gone(gallery: Gallery) -> list[GoneFiles]:
    """Entries that `index` made of files that are gone now, by the folder that was indexed.

    An entry without a record counts to the folder that holds its file. Entries that name another machine's files, as
    those added over HTTP may, are not looked at.
    """
    entries = Counter[str]()
    gone = defaultdict[str, list[Origin]](list)
    for one in _origins(gallery):
        path = indexed_path(one)
        if path is not None:
            root = one.record.root if one.record is not None else str(path.parent)
            entries[root] += 1
            if is_gone(path):
                gone[root].append(one)
    return [
        GoneFiles(root, tuple(one.id for one in found), str(indexed_path(found[0])), entries[root])
        for root, found in sorted(gone.items())
    ]


def remove_gone(gallery: Gallery, gone: Sequence[GoneFiles]) -> int:
    """Remove these entries, except those whose files came back meanwhile. How many."""
    ids = {entry_id for one in gone for entry_id in one.ids}
    now = [one.id for one in _origins(gallery) if one.id in ids and is_gone(indexed_path(one) or Path())]
    return sum(
        gallery.remove(Where(ids=now[at : at + REMOVED_AT_ONCE]), remember=False)  # a file may come back
        for at in range(0, len(now), REMOVED_AT_ONCE)
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


def gone_facts(gone: Sequence[GoneFiles]) -> list[Mapping[str, object]]:
    """For JSON."""
    return [
        {"folder": one.root, "gone": len(one.ids), "entries": one.entries, "first": one.first} for one in gone
    ]
