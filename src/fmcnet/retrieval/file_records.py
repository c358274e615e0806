"""The files that entries of a gallery in a folder came from: where they lay, and their content when it was encoded.

A record goes when its entry goes; then only a digest tells that its content was removed. Two tables of the database,
which galleries of 0.1.0 lack until they are written to.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fmcnet.retrieval.records import Entry
from fmcnet.retrieval.sqlite_database import FILES, LISTED, REMOVED, Database, checksum, listed

CHUNK = 4096
"""Rows read at once."""
NO_FILES = f"(SELECT NULL seq, NULL path, NULL root, NULL state, NULL digest, NULL crc LIMIT 0) AS {FILES}"
"""Stands for the table in a gallery of 0.1.0."""


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
    """The records of one gallery; `reading` and `writing` are its store's rules of locking."""

    database: Database
    reading: Callable[[], AbstractContextManager[Any]]
    writing: Callable[[], AbstractContextManager[Any]]

    def of(self, ids: Iterable[str]) -> dict[str, FileRecord]:
        """Those of entries, by id."""
        found = self._select(f"rows.id IN {LISTED}", (listed(ids),))
        return {one.id: one.record for _, one in found if one.record is not None}

    def with_digest(self, digests: Iterable[str]) -> dict[str, list[FileRecord]]:
        """Those with these digests, by digest."""
        out = defaultdict[str, list[FileRecord]](list)
        for _, one in self._select(f"{FILES}.digest IN {LISTED}", (listed(sorted(set(digests))),)):
            if one.record is not None:
                out[one.record.digest].append(one.record)
        return out

    def origins(self) -> Iterator[Origin]:
        """Of all entries, in the order of their adding."""
        last = 0
        while found := self._select("rows.seq > ? ORDER BY rows.seq LIMIT ?", (last, CHUNK)):
            yield from (one for _, one in found)
            last = found[-1][0]

    def put(self, records: Mapping[str, FileRecord], *, added: bool = False) -> None:
        """Set the records of entries.

        Args:
            records: by entry id; those of other ids are left out.
            added: these entries are new, so their content is not removed any more.
        """
        if records:
            with self.writing(), self.database.writing():
                if added:
                    self.forget_removed(one.digest for one in records.values())
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
            for seq, one in new.items():
                self.database.rewrite(seq, replace(before[seq], id=one.id, source=one.source))
            self._put({seq: one.record for seq, one in new.items() if one.record is not None})
            self.forget_removed(one.id for one in new.values())
            self.database.note(new, gone=False)

    def removed(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids, or digests of files, that were removed and not added since."""
        with self.reading():
            if REMOVED not in self.database.tables():
                return set()
            known = f"SELECT 1 FROM {REMOVED} WHERE digest = ?"
            return {one for one in ids if self.database.run(known, (_hashed(one),))}

    def remember_removed(self, seqs: Sequence[int]) -> None:
        """Remember what goes, by the content of its file, or by its id where that is not recorded.

        As `forget_removed`, in the caller's transaction.
        """
        found = self.database.run(
            f"SELECT id, digest FROM rows LEFT JOIN {FILES} ON {FILES}.seq = rows.seq WHERE rows.seq IN {LISTED}",
            (listed(seqs),),
        )
        self._remember(_hashed(name if digest is None else digest) for name, digest in found)

    def forget_removed(self, ids: Iterable[str]) -> None:
        """These ids, or digests of files, are there again."""
        self.database.connection.executemany(
            f"DELETE FROM {REMOVED} WHERE digest = ?", ((_hashed(one),) for one in ids)
        )

    def take(self, other: FileRecords) -> None:
        """Copy what another gallery of the same entries knows of files, and of what was removed."""
        self.put({one.id: one.record for one in other.origins() if one.record is not None})
        with other.reading():
            known = REMOVED in other.database.tables()
            digests = other.database.run(f"SELECT digest FROM {REMOVED}") if known else []
        if digests:
            with self.writing(), self.database.writing():
                self._remember(row[0] for row in digests)

    def _remember(self, digests: Iterable[bytes]) -> None:
        self.database.connection.executemany(
            f"INSERT OR IGNORE INTO {REMOVED} VALUES (?)", ((one,) for one in digests)
        )

    def _put(self, records: Mapping[int, FileRecord]) -> None:
        self.database.connection.executemany(
            f"INSERT OR REPLACE INTO {FILES} VALUES (?, ?, ?, ?, ?, ?)",
            ((seq, *record, checksum(seq, *record)) for seq, record in records.items()),
        )

    def _select(self, condition: str, values: tuple[object, ...]) -> list[tuple[int, Origin]]:
        """Row numbers of entries, and where they came from."""
        found: list[tuple[int, Origin]] = []
        with self.reading():
            table = FILES if FILES in self.database.tables() else NO_FILES
            for at, name, source, seq, *record, crc in self.database.run(
                f"SELECT rows.seq, rows.id, rows.source, {FILES}.* FROM rows "
                f"LEFT JOIN {table} ON {FILES}.seq = rows.seq WHERE {condition}",
                values,
            ):
                if seq is not None and checksum(seq, *record) != crc:
                    raise self.database.damaged(f"checksum of row {seq}, file")
                found.append((at, Origin(name, source, None if seq is None else FileRecord(*record))))
        return found


def _hashed(name: str) -> bytes:
    """Names what was removed without keeping its id, which may be a file's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:16]
