"""SQLite, the record of truth: its tables of entries, embeddings and thumbnails, and a checksum on every row.

`vectors` and `pictures`, the thumbnails, only ever grow at their end, and what is removed is overwritten by zeros in
its place: SQLite then never moves it between pages, so no stale copy can be left in a page's slack. `secure_delete`
zeroes what is deleted from the other tables. `compact` drops the zeroed rows and rewrites the file.
"""

from __future__ import annotations

import contextlib
import json
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import GalleryError
from fmcnet.identities import is_number
from fmcnet.parsing import parse_json
from fmcnet.retrieval.records import Entry, GallerySettings, Stored, from_micros, to_micros
from fmcnet.retrieval.sqlite_connection import (
    FORMAT,
    TEXT_PID_FORMAT,
    Connection,
    LastGeneration,
    checksum,
    write_last_generation,
)
from fmcnet.types import Modality

FILES = "files"
"""The table of `FileRecords`."""
REMOVED = "removed"
"""The table of digests of removed ids, each with its checksum."""
DIGEST_BYTES = 16
"""Of a digest; the first versions of the table have it alone."""
COMPACTED = "floor"
"""The key of the generation of the last compaction, which emptied the log of changes."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value, crc INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, pid INTEGER, modality INTEGER NOT NULL,
    camera TEXT, time INTEGER, source TEXT, track TEXT, tags TEXT, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS log (
    generation INTEGER, seq INTEGER, gone INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (generation, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (seq INTEGER PRIMARY KEY, picture BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY, path TEXT NOT NULL, root TEXT NOT NULL, state TEXT NOT NULL, digest TEXT NOT NULL,
    crc INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS files_digest ON files (digest);
CREATE TABLE IF NOT EXISTS removed (digest BLOB PRIMARY KEY) WITHOUT ROWID;
"""
COLUMNS = "seq, id, pid, modality, camera, time, source, track, tags"
CHUNK = 4096
"""Rows read at once."""
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
    _new_thumbnails: int
    """Added minus deleted, since the transaction began."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, which also stores the counts, and notes the generation beside the database."""
        with super().writing():
            self._new_entries = self._new_thumbnails = 0
            known = self.counts()
            yield
            if generation := self.number("generation"):
                if known is None:
                    entries, thumbnails = self.run("SELECT count(*) FROM rows")[0][0], self.thumbnails()
                else:
                    entries, thumbnails = known[0] + self._new_entries, known[1] + self._new_thumbnails
                self.put("counts", json.dumps([generation, entries, thumbnails]))
        with contextlib.suppress(GalleryError), self.translated():
            write_last_generation(self.path, LastGeneration(self.name(), self.number("generation")))

    def counts(self) -> tuple[int, int] | None:
        """The stored numbers of entries and thumbnails; None where a version without them wrote last."""
        noted = self.get("counts")
        generation, entries, thumbnails = json.loads(noted) if isinstance(noted, str) else (-1, 0, 0)
        return (entries, thumbnails) if generation == self.number("generation") else None

    def _note_text_pids(self, stored: Sequence[Sequence[Any]]) -> None:
        """Mark the gallery as one of `TEXT_PID_FORMAT`, where these hold the first such identity."""
        if any(isinstance(values[2], bytes) for values in stored):
            header = self._header()
            if header["format"] != TEXT_PID_FORMAT:
                self.put("gallery", json.dumps(header | {"format": TEXT_PID_FORMAT}))

    # ---- values of meta ----

    def put(self, key: str, value: str | int) -> None:
        """Set a value of `meta`."""
        self.connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum(key, value))
        )

    def settings(self) -> GallerySettings | None:
        """What the first add fixed."""
        value = self.get("settings")
        if not isinstance(value, str):
            return None
        try:
            return GallerySettings(**parse_json(value))
        except (ValueError, TypeError) as error:
            raise self.damaged("'settings' are not what was written") from error

    @property
    def dtype(self) -> str:
        """Of the stored embeddings."""
        settings = self.settings()
        if settings is None:
            raise self.damaged("rows without settings")
        return settings.dtype

    def create(self) -> None:
        """Make the tables where they are missing."""
        with super().writing():  # without the counts of tables that are not there yet
            new = not self.tables()
            for statement in SCHEMA.split(";\n"):
                self.connection.execute(statement)
            if new:
                self.rename()
                self.put("generation", 0)
                self.put(COMPACTED, 0)

    def rename(self) -> str:
        """Give the gallery a new name: a copy's index must not be taken for the original's."""
        name = uuid.uuid4().hex
        header = {"format": FORMAT} if self.get("gallery") is None else self._header()
        self.put("gallery", json.dumps(header | {"name": name}))
        return name

    # ---- rows ----

    def insert(
        self,
        entries: Sequence[Entry],
        vectors: NDArray[np.float32 | np.float16],
        thumbnails: Sequence[bytes | None] = (),
    ) -> None:
        """Append rows; their numbers rise and never recur. `thumbnails`: one a row, or none at all."""
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
            ((first + i, with_checksum(first + i, vector.tobytes())) for i, vector in enumerate(vectors)),
        )
        kept = [(first + i, with_checksum(first + i, data)) for i, data in enumerate(thumbnails) if data]
        self.connection.executemany("INSERT INTO pictures VALUES (?, ?)", kept)
        self._new_entries += len(stored)
        self._new_thumbnails += len(kept)

    def thumbnail(self, seq: int) -> bytes | None:
        """The thumbnail of a row, where one is kept."""
        if "pictures" not in self.tables():
            return None
        rows = self.run("SELECT picture FROM pictures WHERE seq = ?", (seq,))
        if rows:
            return self._checked(seq, rows[0][0], f"checksum of row {seq}, thumbnail")
        counts = self.counts()
        if counts is not None and counts[0] == counts[1]:  # every entry has one
            raise self.damaged(f"the thumbnail of row {seq} is missing")
        return None

    def _checked(self, seq: int, stored: object, what: str) -> bytes:
        if not isinstance(stored, bytes) or with_checksum(seq, stored[:-4]) != stored:
            raise self.damaged(what)
        return stored[:-4]

    def thumbnails(self) -> int:
        """How many entries have a thumbnail."""
        if (counts := self.counts()) is not None:
            return counts[1]
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
        """Delete rows and overwrite their embeddings and thumbnails by zeros."""
        for seq in seqs:
            rows = self._change("DELETE FROM rows WHERE seq = ?", seq)
            self._change(f"DELETE FROM {FILES} WHERE seq = ?", seq)
            vectors = self._change("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE seq = ?", seq)
            thumbnails = self._change(
                "UPDATE pictures SET picture = zeroblob(length(picture)) WHERE seq = ?", seq
            )
            if not rows or not vectors:
                raise self.damaged(f"row {seq} is missing")
            self._new_entries -= 1
            self._new_thumbnails -= thumbnails

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

    def logs_since(self, generation: int) -> bool:
        """Whether the log holds all changes since a generation, so that an index of it can catch up."""
        return self.number(COMPACTED) <= generation <= self.number("generation")

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
        found = self.run(
            f"SELECT {names}, rows.crc, vector FROM rows LEFT JOIN vectors ON vectors.seq = rows.seq "
            f"WHERE {condition}",
            values,
        )
        dtype = self.dtype if found else ""
        for *row, crc, stored in found:
            seq, label = row[0], f"checksum of row {row[0]}, id {row[1]!r}"
            if checksum(*row) != crc:
                raise self.damaged(label)
            vector = np.frombuffer(self._checked(seq, stored, f"{label}, embedding"), dtype)
            rows[seq] = to_entry(row), vector.astype(np.float32)
        return rows

    def removed_digests(self) -> list[bytes]:
        """The table of digests of removed ids; early ones have no checksum."""
        rows = self.run(f"SELECT digest FROM {REMOVED}") if REMOVED in self.tables() else []
        for (digest,) in rows:
            if len(digest) != DIGEST_BYTES:
                self._checked(0, digest, "checksum of a removed id")
        return [digest for (digest,) in rows]

    # ---- upkeep ----

    def compact(self) -> int:
        """Rewrite the file without the zeroed rows; the new generation."""
        with self.writing():
            for table in ("vectors", "pictures", FILES):
                self.connection.execute(f"DELETE FROM {table} WHERE seq NOT IN (SELECT seq FROM rows)")
            self.connection.execute("DELETE FROM log")
            generation = self.advance()
            self.put(COMPACTED, generation)
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
            self.removed_digests()
            if self.settings() is None:
                return
            seq = entries = thumbnails = 0
            while rows := self.after(seq, CHUNK):
                seq, entries = max(rows), entries + len(rows)
                thumbnails += sum(self.thumbnail(row_seq) is not None for row_seq in rows)
            if (counts := self.counts()) not in (None, (entries, thumbnails)):
                raise self.damaged(f"{entries} entries and {thumbnails} thumbnails instead of {counts}")


def to_values(seq: int, entry: Entry) -> tuple[Any, ...]:
    """An entry in the order of `COLUMNS`; a pid that is no number as bytes, for integers "1e3" would be 1000."""
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


def with_checksum(seq: int, data: bytes) -> bytes:
    """The bytes of an embedding, thumbnail or digest and their checksum, bound to the row's number."""
    return data + zlib.crc32(data, seq & 0xFFFFFFFF).to_bytes(4, "little")
