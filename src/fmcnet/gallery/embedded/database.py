"""SQLite, the record of truth: tables, transactions, and a checksum on every row.

`vectors` only ever grows at its end, and a removed embedding is overwritten by zeros in its place: SQLite then never
moves an embedding between pages, so no stale copy of one can be left in a page's slack. `secure_delete` zeroes what
is deleted from the other tables. `compact` drops the zeroed rows and rewrites the file.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import GalleryBusyError, GalleryDamagedError, GalleryError
from fmcnet.gallery.embedded.codec import COLUMNS, checksum, seal, to_entry, to_values
from fmcnet.gallery.records import Entry, Settings, Stored

NAME = "gallery.sqlite"
FORMAT = 1
PAGE = 32_768
MANY = 500
"""Values in one IN (...)."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value, crc INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, pid INTEGER, modality INTEGER NOT NULL,
    camera TEXT, time INTEGER, source TEXT, track TEXT, tags TEXT, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS log (
    generation INTEGER, seq INTEGER, gone INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (generation, seq)) WITHOUT ROWID;
"""


class Database:
    """One connection. Writers hold the gallery's lock (lock.py); readers need none.

    SQLite shares a write-ahead log even with readers, so it wants to make files. Where a reader may not, and there is
    no log, the file is opened as one that does not change (`immutable`), and anew as soon as it did.

    Attributes:
        path: of the SQLite file. read_only: refuses to write.

    Raises:
        GalleryError: when the file cannot be opened. GalleryDamagedError: when it is no such database.
    """

    def __init__(self, folder: Path, *, read_only: bool, timeout: float) -> None:
        self.path = folder / NAME
        self.read_only = read_only
        self._timeout = timeout
        self._dtype: str | None = None
        self._unchanged: tuple[int, ...] | None = None
        self._connect()

    def _connect(self) -> None:
        with self.translated():
            try:
                self._open("mode=ro" if self.read_only else "mode=rwc")
            except sqlite3.OperationalError as error:
                if not (self.read_only and _not_writable(error) and self.path.is_file() and not self._log()):
                    raise
                self._unchanged = self._stamp()
                self._open("mode=ro&immutable=1")

    def _open(self, how: str) -> None:
        self.connection = sqlite3.connect(
            f"file:{quote(str(self.path.absolute()))}?{how}",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self.run(f"PRAGMA busy_timeout={int(self._timeout * 1000)}")
            self.run("PRAGMA cell_size_check=ON")
            if self.read_only:
                self.run("SELECT 1 FROM sqlite_master")  # whether it can be read is only known now
            else:
                self.run(f"PRAGMA page_size={PAGE}")
                self.run("PRAGMA journal_mode=WAL")
                self.run("PRAGMA synchronous=FULL")  # a commit is on disk when it returns
                self.run("PRAGMA secure_delete=ON")
        except BaseException:
            self.connection.close()
            raise

    def _log(self) -> int:
        """Bytes of the write-ahead log."""
        log = self.path.with_name(f"{NAME}-wal")
        return log.stat().st_size if log.is_file() else 0

    def _stamp(self) -> tuple[int, ...]:
        found = self.path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns, self._log()

    def run(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """All rows of one statement."""
        return self.connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's errors in the gallery's words."""
        try:
            yield
        except sqlite3.Error as error:
            reason = str(error)
            if "locked" in reason or "busy" in reason:
                raise GalleryBusyError(f"{self.path} is in use by another process: try again") from error
            if "malformed" in reason or "not a database" in reason or "encoding" in reason:
                raise self.damaged(reason) from error
            if _not_writable(error) and self.read_only and self._log():
                raise GalleryError(
                    f"{self.path.parent} holds a write-ahead log that a writer left behind, and cannot be written to "
                    "take it in: open the gallery once where it can be written, or copy it there"
                ) from error
            if _not_writable(error):
                raise GalleryError(
                    f"{self.path.parent} cannot be written ({reason}): open it with read_only=True (fmcnet search, "
                    "gallery info and gallery export do), or copy it to where it can be"
                ) from error
            if "full" in reason or "disk I/O" in reason:
                raise GalleryError(
                    f"{self.path} cannot be written or read ({reason}): is the disk full? nothing of this "
                    "operation was kept"
                ) from error
            raise GalleryError(f"{self.path}: {reason}") from error

    def damaged(self, what: str) -> GalleryDamagedError:
        """The error that names the damaged file."""
        return GalleryDamagedError(
            f"{self.path} is damaged ({what}): restore it from a backup, or save what can be read with "
            "`sqlite3 gallery.sqlite .recover`"
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent view; joins a transaction that is open."""
        with self.translated():
            if self.connection.in_transaction:
                yield
                return
            if self._unchanged is not None and self._stamp() != self._unchanged:
                self.connection.close()
                self._unchanged = None
                self._connect()
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                self.connection.execute("ROLLBACK")
            if self._unchanged is not None and self._stamp() != self._unchanged:
                raise GalleryBusyError(f"{self.path} was written while it was read: try again")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """All or nothing."""
        with self.translated():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    def create(self) -> None:
        """Make the tables where they are missing."""
        with self.writing():
            for statement in SCHEMA.split(";\n"):
                self.connection.execute(statement)
            if self.get("gallery") is None:
                self.put("gallery", json.dumps({"format": FORMAT, "name": uuid.uuid4().hex}))
                self.put("generation", 0)
                self.put("floor", 0)

    # ---- what is known of the gallery ----

    def get(self, key: str) -> str | int | None:
        """A value of `meta`."""
        found = self.run("SELECT value, crc FROM meta WHERE key = ?", (key,))
        if found and checksum(key, found[0][0]) != found[0][1]:
            raise self.damaged(f"checksum of '{key}'")
        return found[0][0] if found else None

    def put(self, key: str, value: str | int) -> None:
        """Set a value of `meta`."""
        self.connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum(key, value))
        )

    def number(self, key: str) -> int:
        """A number of `meta` that must be there."""
        value = self.get(key)
        if not isinstance(value, int):
            raise self.damaged(f"'{key}' is missing")
        return value

    def name(self) -> str:
        """What tells this gallery's index from another's.

        Raises:
            GalleryError: when a newer fmcnet wrote the gallery.
        """
        value = self.get("gallery")
        if not isinstance(value, str):
            raise self.damaged("'gallery' is missing")
        about = json.loads(value)
        if about["format"] != FORMAT:
            raise GalleryError(
                f"{self.path} has format {about['format']}, this fmcnet reads {FORMAT}: update fmcnet"
            )
        return str(about["name"])

    def settings(self) -> Settings | None:
        """What the first add fixed."""
        value = self.get("settings")
        return Settings(**json.loads(value)) if isinstance(value, str) else None

    def set_settings(self, settings: Settings) -> None:
        """Fix dimension, model and dtype."""
        self.put("settings", json.dumps(settings.__dict__))

    # ---- rows ----

    def insert(self, entries: Sequence[Entry], vectors: NDArray[np.float32 | np.float16]) -> list[int]:
        """Append rows; their numbers, which rise and never come again."""
        top = self.run("SELECT seq FROM sqlite_sequence WHERE name = 'rows'")
        first = top[0][0] + 1 if top else 1
        stored = [to_values(first + i, entry) for i, entry in enumerate(entries)]
        self.connection.executemany(
            f"INSERT INTO rows ({COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((*values, checksum(*values)) for values in stored),
        )
        self.connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)",
            ((first + i, seal(first + i, vector.tobytes())) for i, vector in enumerate(vectors)),
        )
        return [values[0] for values in stored]

    def rewrite(self, seq: int, entry: Entry) -> None:
        """Set all metadata of a row."""
        values = to_values(seq, entry)
        self.connection.execute(
            "UPDATE rows SET id=?2, pid=?3, modality=?4, camera=?5, time=?6, source=?7, track=?8, tags=?9, crc=?10 "
            "WHERE seq=?1",
            (*values, checksum(*values)),
        )

    def delete(self, seqs: Iterable[int]) -> None:
        """Delete rows and overwrite their embeddings by zeros."""
        for seq in seqs:
            self.connection.execute("DELETE FROM rows WHERE seq = ?", (seq,))
            self.connection.execute(
                "UPDATE vectors SET vector = zeroblob(length(vector)) WHERE seq = ?", (seq,)
            )

    def note(self, generation: int, seqs: Iterable[int], *, gone: bool) -> None:
        """Tell other processes which rows changed or went."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?)",
            ((generation, s, int(gone), checksum(generation, s, int(gone))) for s in seqs),
        )

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
        """Row numbers of those ids that are there."""
        found: dict[str, int] = {}
        for start in range(0, len(ids), MANY):
            part = ids[start : start + MANY]
            marks = ",".join("?" * len(part))
            found.update(self.run(f"SELECT id, seq FROM rows WHERE id IN ({marks})", part))
        return found

    def present(self, seqs: Sequence[int]) -> list[int]:
        """Those row numbers that are there."""
        found: list[int] = []
        for start in range(0, len(seqs), MANY):
            part = seqs[start : start + MANY]
            marks = ",".join("?" * len(part))
            found += [row[0] for row in self.run(f"SELECT seq FROM rows WHERE seq IN ({marks})", part)]
        return found

    def stored(self, seqs: Sequence[int]) -> dict[int, Stored]:
        """Entries and embeddings of row numbers.

        Raises:
            GalleryDamagedError: when one is missing, or its checksum differs.
        """
        found: dict[int, Stored] = {}
        for start in range(0, len(seqs), MANY):
            part = seqs[start : start + MANY]
            marks = ",".join("?" * len(part))
            found.update(self._joined(f"rows.seq IN ({marks})", part))
        if len(found) != len(set(seqs)):
            missing = sorted(set(seqs) - set(found))
            raise self.damaged(f"row {missing[0]} is missing")
        return found

    def after(self, seq: int, chunk: int) -> dict[int, Stored]:
        """The first `chunk` rows whose number is larger."""
        return self._joined(f"rows.seq > ? ORDER BY rows.seq LIMIT {chunk}", (seq,))

    def _joined(self, condition: str, values: Sequence[object]) -> dict[int, Stored]:
        names = ", ".join(f"rows.{name}" for name in COLUMNS.split(", "))
        out: dict[int, Stored] = {}
        for *row, crc, sealed in self.run(
            f"SELECT {names}, rows.crc, vector FROM rows LEFT JOIN vectors ON vectors.seq = rows.seq "
            f"WHERE {condition}",
            values,
        ):
            seq, what = row[0], f"checksum of row {row[0]}, id {row[1]!r}"
            if checksum(*row) != crc:
                raise self.damaged(what)
            if not isinstance(sealed, bytes) or seal(seq, sealed[:-4]) != sealed:
                raise self.damaged(f"{what}, embedding")
            vector = np.frombuffer(sealed[:-4], self.dtype).astype(np.float32)
            out[seq] = to_entry(row), vector
        return out

    @property
    def dtype(self) -> str:
        """Of the stored embeddings; read once, for it never changes."""
        if self._dtype is None:
            settings = self.settings()
            if settings is None:
                raise self.damaged("rows without settings")
            self._dtype = settings.dtype
        return self._dtype

    # ---- upkeep ----

    def truncate_log(self) -> None:
        """Bring all into the main file and empty the write-ahead log.

        Raises:
            GalleryBusyError: when another process reads all the time.
        """
        with self.translated():
            if self.run("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
                raise GalleryBusyError(
                    f"{self.path}: what was removed is gone from all answers, but another process still reads, so "
                    "the write-ahead log may hold it; run compact when it is done"
                )

    def compact(self) -> int:
        """Rewrite the file without the zeroed rows; the new generation."""
        with self.writing():
            self.connection.execute("DELETE FROM vectors WHERE seq NOT IN (SELECT seq FROM rows)")
            self.connection.execute("DELETE FROM log")
            generation = self.number("generation") + 1
            self.put("generation", generation)
            self.put("floor", generation)
        with self.translated():
            self.connection.execute("VACUUM")
        self.truncate_log()
        return generation

    def check(self) -> None:
        """Read all of it.

        Raises:
            GalleryDamagedError: naming the first fault.
        """
        with self.reading():
            fault = self.run("PRAGMA quick_check(1)")[0][0]
            if fault != "ok":
                raise self.damaged(str(fault).replace("\n", "; "))
            list(self.noted(-1))
            if self.settings() is None:
                return
            seq = 0
            while rows := self.after(seq, 4096):
                seq = max(rows)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _not_writable(error: sqlite3.Error) -> bool:
    return "readonly" in str(error) or "unable to open" in str(error)
