"""The files that a gallery's entries came from, and digests of what was removed: `FileRecords`."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fmcnet.files import file_digest, file_state
from fmcnet.retrieval.records import Entry
from fmcnet.retrieval.sqlite_connection import checksum
from fmcnet.retrieval.sqlite_database import (
    CHUNK,
    DIGEST_BYTES,
    FILES,
    LISTED,
    REMOVED,
    Database,
    listed,
    with_checksum,
)

NO_FILES = f"(SELECT NULL seq, NULL path, NULL root, NULL state, NULL digest, NULL crc LIMIT 0) AS {FILES}"
"""Stands for the table in a gallery of 0.1.0."""
CHANGED = "the file has changed since it was indexed"
"""Why its picture is not shown: it may be of another person than the entry."""
IS_DIGEST = f"digest IN (?1, substr(?1, 1, {DIGEST_BYTES}))"
"""Finds a row of `REMOVED`, also without its checksum."""


class FileRecord(NamedTuple):
    """A file as it was just before it was encoded.

    Attributes:
        path: absolute.
        root: the folder that was indexed, which holds it.
        state: as `fmcnet.files.file_state`.
        digest: as `fmcnet.files.file_digest`.
    """

    path: str
    root: str
    state: str
    digest: str


class Origin(NamedTuple):
    """Where an entry came from; `record` is None for one that no record was made of."""

    id: str
    source: str | None
    record: FileRecord | None


@dataclass(frozen=True)
class FileRecords:
    """The files that a gallery's entries came from: where they lay, and their content when it was encoded.

    A record is deleted with its entry; only a digest then tells what was removed. A gallery of 0.1.0 lacks
    both tables until it is written to. `reading` and `writing` are the store's rules of locking.
    """

    database: Database
    reading: Callable[[], AbstractContextManager[Any]]
    writing: Callable[[], AbstractContextManager[Any]]

    def of(self, ids: Iterable[str]) -> dict[str, FileRecord]:
        """Records of entries, by id."""
        found = self._select(f"rows.id IN {LISTED}", listed(ids))
        return {origin.id: origin.record for _, origin in found if origin.record is not None}

    def with_digest(self, digests: Iterable[str]) -> dict[str, list[FileRecord]]:
        """Records with these digests, by digest."""
        by_digest = defaultdict[str, list[FileRecord]](list)
        for _, origin in self._select(f"{FILES}.digest IN {LISTED}", listed(sorted(set(digests)))):
            if origin.record is not None:
                by_digest[origin.record.digest].append(origin.record)
        return by_digest

    def origins(self) -> Iterator[Origin]:
        """Of all entries, in the order of adding, by blocks; others may write in between."""
        last = 0
        while rows := self._select("rows.seq > ? ORDER BY rows.seq LIMIT ?", last, CHUNK):
            yield from (origin for _, origin in rows)
            last = rows[-1][0]

    def put(self, records: Mapping[str, FileRecord], *, added: bool = False) -> None:
        """Set the records of entries.

        Args:
            records: by entry id; those of other ids are left out.
            added: these entries are new, so their content is not removed any more.
        """
        if records:
            with self.writing(), self.database.writing():
                if added:
                    self.forget_removed(record.digest for record in records.values())
                self._put({seq: records[name] for name, seq in self.database.seqs(list(records)).items()})

    def rename(self, renamed: Mapping[str, Origin]) -> None:
        """Give entries another id, source and record, all or nothing.

        Args:
            renamed: by the present id; the new ids must not be those of other entries.
        """
        with self.writing(), self.database.writing():
            seqs = self.database.seqs(list(renamed))
            new = {seq: renamed[name] for name, seq in seqs.items()}
            before: dict[int, Entry] = {}
            for seq in new:  # first away from all ids, since some may be taken by each other
                before[seq], _ = self.database.stored([seq])[seq]
                self.database.connection.execute("UPDATE rows SET id = ? WHERE seq = ?", (f"\0{seq}", seq))
            for seq, origin in new.items():
                self.database.rewrite(seq, replace(before[seq], id=origin.id, source=origin.source))
            self._put({seq: origin.record for seq, origin in new.items() if origin.record is not None})
            self.forget_removed(origin.id for origin in new.values())
            self.database.note(new, gone=False)

    def removed(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids, or digests of files, that were removed and not added since."""
        with self.reading():
            if REMOVED not in self.database.tables():
                return set()
            query = f"SELECT 1 FROM {REMOVED} WHERE {IS_DIGEST}"
            return {name for name in ids if self.database.run(query, (_removal_digest(name),))}

    def any_removed(self) -> bool:
        """Whether there is something that was removed and not added since."""
        with self.reading():
            return REMOVED in self.database.tables() and bool(
                self.database.run(f"SELECT 1 FROM {REMOVED} LIMIT 1")
            )

    def remember_removed(self, seqs: Sequence[int], *, changed: bool) -> None:
        """Remember removed entries by the digest of their file, or by id without a record.

        As `forget_removed`, in the caller's transaction. `changed`: also by the digest that a file has now.
        """
        rows = self.database.run(
            f"SELECT id, digest, path, state FROM rows LEFT JOIN {FILES} ON {FILES}.seq = rows.seq "
            f"WHERE rows.seq IN {LISTED}",
            (listed(seqs),),
        )
        names = [name if digest is None else digest for name, digest, _, _ in rows]
        for path, state in ((Path(path), state) for _, _, path, state in rows if path is not None):
            with contextlib.suppress(OSError):  # it is gone, or another machine's
                if changed and path.is_file() and file_state(path) != state:
                    names.append(file_digest(path))
        self._remember(map(_removal_digest, names))

    def forget_removed(self, ids: Iterable[str]) -> None:
        """Forget the removal of these ids, or digests of files."""
        self.database.connection.executemany(
            f"DELETE FROM {REMOVED} WHERE {IS_DIGEST}", ((_removal_digest(name),) for name in ids)
        )

    def take(self, other: FileRecords) -> None:
        """Copy what another gallery of the same entries knows of files, and of what was removed."""
        self.put({origin.id: origin.record for origin in other.origins() if origin.record is not None})
        with other.reading():
            digests = other.database.removed_digests()
        if digests:
            with self.writing(), self.database.writing():
                self._remember(digests)

    def _remember(self, digests: Iterable[bytes]) -> None:
        self.database.connection.executemany(
            f"INSERT OR IGNORE INTO {REMOVED} VALUES (?)", ((digest,) for digest in digests)
        )

    def _put(self, records: Mapping[int, FileRecord]) -> None:
        self.database.connection.executemany(
            f"INSERT OR REPLACE INTO {FILES} VALUES (?, ?, ?, ?, ?, ?)",
            ((seq, *record, checksum(seq, *record)) for seq, record in records.items()),
        )

    def _select(self, condition: str, *values: object) -> list[tuple[int, Origin]]:
        """Row numbers of entries, and where they came from."""
        rows: list[tuple[int, Origin]] = []
        with self.reading():
            table = FILES if FILES in self.database.tables() else NO_FILES
            for seq, name, source, file_seq, *record, crc in self.database.run(
                f"SELECT rows.seq, rows.id, rows.source, {FILES}.* FROM rows "
                f"LEFT JOIN {table} ON {FILES}.seq = rows.seq WHERE {condition}",
                values,
            ):
                if file_seq is not None and checksum(file_seq, *record) != crc:
                    raise self.database.damaged(f"checksum of row {file_seq}, file")
                rows.append((seq, Origin(name, source, None if file_seq is None else FileRecord(*record))))
        return rows


def _removal_digest(name: str) -> bytes:
    """Identifies a removed entry without its id, which may be a file's name; with a checksum."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:DIGEST_BYTES]
    return with_checksum(0, digest)
