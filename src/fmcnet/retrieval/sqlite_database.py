"""SQLite, the record of truth: entries, embeddings, pictures and files, and a checksum on every row.

`vectors` and `pictures` only ever grow at their end, and what is removed is overwritten by zeros in its place: SQLite
then never moves it between pages, so no stale copy can be left in a page's slack. `secure_delete` zeroes what
is deleted from the other tables. `compact` drops the zeroed rows and rewrites the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import GalleryError
from fmcnet.identities import is_number
from fmcnet.retrieval.records import Entry, Stored, from_micros, to_micros
from fmcnet.retrieval.sqlite_connection import (
    FILES,
    REMOVED,
    TEXT_PID_FORMAT,
    Connection,
    Mark,
    checksum,
    write_mark,
)
from fmcnet.types import Modality

COLUMNS = "seq, id, pid, modality, camera, time, source, track, tags"
Values = tuple[
    int, str, "int | bytes | None", int, "str | None", "int | None", "str | None", "str | None", "str | None"
]
"""A row of `rows` without its checksum, in the order of `COLUMNS`."""
CHUNK = 4096
"""Rows read at once."""
NO_FILES = f"(SELECT NULL seq, NULL path, NULL root, NULL state, NULL digest, NULL crc LIMIT 0) AS {FILES}"
"""Stands for the table in a gallery of 0.1.0."""
LISTED = "(SELECT value FROM json_each(?))"
"""Follows IN: any number of values, as one parameter, which `listed` gives."""


def listed(values: Iterable[str | int]) -> str:
    """The parameter of `LISTED`. SQLite may cut a text at a NUL, which no id or digest has: such are left out."""
    return json.dumps([value for value in values if "\0" not in str(value)])


class Database(Connection):
    """The gallery's tables; arguments and errors as of `Connection`.

    All that is read is checked: GalleryDamagedError where it is not what was written, or a part is missing.
    """

    _new_entries: int
    _new_pictures: int
    """Added minus deleted, since the transaction began."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, which also stores the counts and writes the mark beside the database."""
        with super().writing():
            self._new_entries = self._new_pictures = 0
            known = self.counts()
            yield
            if generation := self.number("generation"):
                if known is None:
                    entries, pictures = self.run("SELECT count(*) FROM rows")[0][0], self.pictures()
                else:
                    entries, pictures = known[0] + self._new_entries, known[1] + self._new_pictures
                self.put("counts", json.dumps([generation, entries, pictures]))
        with contextlib.suppress(GalleryError), self.translated():
            write_mark(self.path, Mark(self.name(), self.number("generation")))

    def counts(self) -> tuple[int, int] | None:
        """The stored numbers of entries and pictures; None where a version without them wrote last."""
        noted = self.get("counts")
        generation, entries, pictures = json.loads(noted) if isinstance(noted, str) else (-1, 0, 0)
        return (entries, pictures) if generation == self.number("generation") else None

    def _note_text_pids(self, stored: Sequence[Values]) -> None:
        """Mark the gallery as one of `TEXT_PID_FORMAT`, where these hold the first such identity."""
        if any(isinstance(values[2], bytes) for values in stored):
            header = self._header()
            if header["format"] != TEXT_PID_FORMAT:
                self.put("gallery", json.dumps(header | {"format": TEXT_PID_FORMAT}))

    # ---- rows ----

    def insert(
        self,
        entries: Sequence[Entry],
        vectors: NDArray[np.float32 | np.float16],
        pictures: Sequence[bytes | None] = (),
    ) -> list[int]:
        """Append rows; returns their numbers, which rise and never recur. `pictures`: one a row, or none at all."""
        last = self.run("SELECT seq FROM sqlite_sequence WHERE name = 'rows'")
        first = last[0][0] + 1 if last else 1
        stored = [to_values(first + i, entry) for i, entry in enumerate(entries)]
        self._note_text_pids(stored)
        self.connection.executemany(
            f"INSERT INTO rows ({COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((*values, checksum(*values)) for values in stored),
        )
        self.connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)",
            ((first + i, seal(first + i, vector.tobytes())) for i, vector in enumerate(vectors)),
        )
        sealed = [(first + i, seal(first + i, picture)) for i, picture in enumerate(pictures) if picture]
        self.connection.executemany("INSERT INTO pictures VALUES (?, ?)", sealed)
        self._new_entries += len(stored)
        self._new_pictures += len(sealed)
        return [values[0] for values in stored]

    def picture(self, seq: int) -> bytes | None:
        """The picture of a row, where one is kept."""
        if "pictures" not in self.tables():
            return None
        rows = self.run("SELECT picture FROM pictures WHERE seq = ?", (seq,))
        if rows:
            return self._unseal(seq, rows[0][0], f"checksum of row {seq}, picture")
        counts = self.counts()
        if counts is not None and counts[0] == counts[1]:  # every entry has one
            raise self.damaged(f"the picture of row {seq} is missing")
        return None

    def _unseal(self, seq: int, sealed: object, what: str) -> bytes:
        if not isinstance(sealed, bytes) or seal(seq, sealed[:-4]) != sealed:
            raise self.damaged(what)
        return sealed[:-4]

    def pictures(self) -> int:
        """How many entries have a picture."""
        if "pictures" not in self.tables():
            return 0
        return int(self.run("SELECT count(*) FROM pictures JOIN rows ON rows.seq = pictures.seq")[0][0])

    def rewrite(self, seq: int, entry: Entry) -> None:
        """Set all metadata of a row."""
        values = to_values(seq, entry)
        self._note_text_pids([values])
        self.connection.execute(
            "UPDATE rows SET id=?2, pid=?3, modality=?4, camera=?5, time=?6, source=?7, track=?8, tags=?9, crc=?10 "
            "WHERE seq=?1",
            (*values, checksum(*values)),
        )

    def delete(self, seqs: Iterable[int]) -> None:
        """Delete rows and overwrite their embeddings and pictures by zeros."""
        for seq in seqs:
            rows = self._change("DELETE FROM rows WHERE seq = ?", seq)
            self._change(f"DELETE FROM {FILES} WHERE seq = ?", seq)
            vectors = self._change("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE seq = ?", seq)
            pictures = self._change(
                "UPDATE pictures SET picture = zeroblob(length(picture)) WHERE seq = ?", seq
            )
            if not rows or not vectors:
                raise self.damaged(f"row {seq} is missing")
            self._new_entries -= 1
            self._new_pictures -= pictures

    def _change(self, statement: str, seq: int) -> int:
        """How many rows the statement changed."""
        return self.connection.execute(statement, (seq,)).rowcount

    def advance(self) -> int:
        """The next generation, which other processes notice."""
        generation = self.number("generation") + 1
        self.put("generation", generation)
        return generation

    def note(self, seqs: Iterable[int], *, gone: bool) -> int:
        """Log changed or removed rows for other processes; returns the new generation."""
        generation, is_gone = self.advance(), int(gone)
        self.connection.executemany(
            "INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?)",
            ((generation, seq, is_gone, checksum(generation, seq, is_gone)) for seq in seqs),
        )
        return generation

    def noted(self, after: int) -> Iterator[tuple[int, bool]]:
        """Row numbers changed (False) or gone (True) after a generation, in order."""
        for generation, seq, gone, crc in self.run(
            "SELECT generation, seq, gone, crc FROM log WHERE generation > ? ORDER BY generation, seq",
            (after,),
        ):
            if checksum(generation, seq, gone) != crc:
                raise self.damaged(f"checksum of log {generation}, row {seq}")
            yield seq, bool(gone)

    def seqs(self, ids: Sequence[str]) -> dict[str, int]:
        """Row numbers of the ids that exist."""
        found: dict[str, int] = {}
        for name, seq, row_id in self.run(
            "SELECT known.id, known.seq, rows.id FROM rows AS known LEFT JOIN rows ON rows.seq = known.seq "
            f"WHERE known.id IN {LISTED}",
            (listed(ids),),
        ):
            if row_id != name:  # of the table's own index
                raise self.damaged(f"row {seq} is not that of id {name!r}")
            found[name] = seq
        return found

    def stored(self, seqs: Sequence[int]) -> dict[int, Stored]:
        """Entries and embeddings of row numbers, all of which must exist."""
        rows = self._joined(f"rows.seq IN {LISTED}", (listed(seqs),))
        if len(rows) != len(set(seqs)):
            missing = sorted(set(seqs) - set(rows))
            raise self.damaged(f"row {missing[0]} is missing")
        return rows

    def after(self, seq: int, chunk: int) -> dict[int, Stored]:
        """The first `chunk` rows whose number is larger."""
        return self._joined(f"rows.seq > ? ORDER BY rows.seq LIMIT {chunk}", (seq,))

    def _joined(self, condition: str, values: Sequence[object]) -> dict[int, Stored]:
        names = ", ".join(f"rows.{name}" for name in COLUMNS.split(", "))
        rows: dict[int, Stored] = {}
        for *row, crc, sealed in self.run(
            f"SELECT {names}, rows.crc, vector FROM rows LEFT JOIN vectors ON vectors.seq = rows.seq "
            f"WHERE {condition}",
            values,
        ):
            seq, label = row[0], f"checksum of row {row[0]}, id {row[1]!r}"
            if checksum(*row) != crc:
                raise self.damaged(label)
            vector = np.frombuffer(self._unseal(seq, sealed, f"{label}, embedding"), self.dtype)
            rows[seq] = to_entry(row), vector.astype(np.float32)
        return rows

    # ---- upkeep ----

    def compact(self) -> int:
        """Rewrite the file without the zeroed rows; the new generation."""
        with self.writing():
            for table in ("vectors", "pictures", FILES):
                self.connection.execute(f"DELETE FROM {table} WHERE seq NOT IN (SELECT seq FROM rows)")
            self.connection.execute("DELETE FROM log")
            generation = self.advance()
            self.put("floor", generation)
        with self.translated():
            self.connection.execute("VACUUM")
        self.truncate_log()
        return generation

    def check(self) -> None:
        """Verify all of it; the error names the first fault."""
        with self.reading():
            fault = self.run("PRAGMA integrity_check(1)")[0][0]
            if fault != "ok":
                raise self.damaged(str(fault).replace("\n", "; "))
            list(self.noted(-1))
            if self.settings() is None:
                return
            seq = entries = pictures = 0
            while rows := self.after(seq, CHUNK):
                seq, entries = max(rows), entries + len(rows)
                pictures += sum(self.picture(row_seq) is not None for row_seq in rows)
            if (counts := self.counts()) not in (None, (entries, pictures)):
                raise self.damaged(f"{entries} entries and {pictures} pictures instead of {counts}")


def to_values(seq: int, entry: Entry) -> Values:
    """An entry as stored. A pid that is no number is bytes: a column of integers would change "1e3" to 1000."""
    pid = None if entry.pid is None else int(entry.pid) if is_number(entry.pid) else entry.pid.encode()
    return (
        seq,
        entry.id,
        pid,
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
        pid.decode() if isinstance(pid, bytes) else None if pid is None else str(pid),
        camera,
        None if time is None else from_micros(time),
        source,
        track,
        tuple(json.loads(tags)) if tags else (),
    )


def seal(seq: int, vector: bytes) -> bytes:
    """The bytes of an embedding and their checksum, bound to the row's number."""
    return vector + zlib.crc32(vector, seq & 0xFFFFFFFF).to_bytes(4, "little")


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
            query = f"SELECT 1 FROM {REMOVED} WHERE digest = ?"
            return {name for name in ids if self.database.run(query, (_removal_digest(name),))}

    def remember_removed(self, seqs: Sequence[int]) -> None:
        """Remember removed entries by the digest of their file, or by id where it has no record.

        As `forget_removed`, in the caller's transaction.
        """
        rows = self.database.run(
            f"SELECT id, digest FROM rows LEFT JOIN {FILES} ON {FILES}.seq = rows.seq WHERE rows.seq IN {LISTED}",
            (listed(seqs),),
        )
        self._remember(_removal_digest(name if digest is None else digest) for name, digest in rows)

    def forget_removed(self, ids: Iterable[str]) -> None:
        """Forget the removal of these ids, or digests of files."""
        self.database.connection.executemany(
            f"DELETE FROM {REMOVED} WHERE digest = ?", ((_removal_digest(name),) for name in ids)
        )

    def take(self, other: FileRecords) -> None:
        """Copy what another gallery of the same entries knows of files, and of what was removed."""
        self.put({origin.id: origin.record for origin in other.origins() if origin.record is not None})
        with other.reading():
            has_table = REMOVED in other.database.tables()
            digests = other.database.run(f"SELECT digest FROM {REMOVED}") if has_table else []
        if digests:
            with self.writing(), self.database.writing():
                self._remember(row[0] for row in digests)

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
    """Identifies a removed entry without its id, which may be a file's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:16]
