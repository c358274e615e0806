"""The SQLite file: opening it, its header, transactions, SQLite's errors as GalleryErrors, and checks for loss.

It is opened to write, or to read even where nothing may be written. A file beside it notes its last generation, so
that loss of its write-ahead log is noticed: SQLite takes a log up to its first damaged page, and a missing one as
empty.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from fmcnet.errors import GalleryBusyError, GalleryDamagedError, GalleryError
from fmcnet.files import make_private
from fmcnet.parsing import parse_json

if TYPE_CHECKING:
    from fmcnet.retrieval.gallery_index import IndexManifest

logger = logging.getLogger(__name__)

NAME = "gallery.sqlite"
INDEX = "index.json"
INDEX_FILES = (INDEX, "vectors-*.bin", "columns-*.npz", "graph-*")
"""Patterns of the names of the index's files, which also prove a loss of the database."""
FORMAT = 1
TEXT_PID_FORMAT = 3
"""The format from the first identity on that is no number; 0.1.0 reads numbers only, and refuses it."""
FIRST_TABLES = {"meta", "rows", "vectors", "log"}
"""Those that every version made."""
PAGE = 32_768
LOG_PAGES = 128
"""Pages (4 MB) of the write-ahead log that are brought into the main file: what loss of the log can cost."""
DAMAGED = ("malformed", "not a database", "encoding", "no such", "could not decode")
"""In SQLite's messages of damage."""


def check_files(folder: Path) -> None:
    """Raise a GalleryError for a pipe or a device in a gallery's folder, which is read without end."""
    with contextlib.suppress(OSError):  # told where the files are opened
        for path in folder.iterdir():
            if path.exists() and not path.is_file() and not path.is_dir():
                raise GalleryError(f"{path} is a pipe or a device, and should be a file: move it away")


class Connection:
    """One connection. Writers hold the gallery's lock (sqlite_store.py); readers need none.

    SQLite shares a write-ahead log even with readers, so it wants to make files. Where a reader may not, and there is
    no log, the file is opened as one that does not change (`immutable`), and anew as soon as it did.

    Args:
        folder: of the gallery.
        read_only: refuse to write.
        timeout: seconds to wait for a lock.
        without_log: see what is in the main file, without the write-ahead log.

    Attributes:
        path: of the SQLite file.

    Raises:
        GalleryError: when the file cannot be opened.
        GalleryDamagedError: when it is no such database.
    """

    def __init__(self, folder: Path, *, read_only: bool, timeout: float, without_log: bool = False) -> None:
        self.path = folder / NAME
        self.read_only = read_only
        self._timeout = timeout
        self._without_log = without_log
        self._unchanged: tuple[int, ...] | None = None
        self._connect()
        self._file: tuple[int, int] | None = None
        self._file = self._identity()

    def _connect(self) -> None:
        for end in ("", "-wal"):
            self._check_is_file(self.path.with_name(f"{NAME}{end}"))
        if not self.size("") and self.size("-wal"):  # SQLite would delete the log
            raise self.damaged("it is empty or missing, and its write-ahead log is not")
        with self.translated():
            if self._without_log:
                self._open("mode=ro&immutable=1")
                return
            try:
                self._open("mode=ro" if self.read_only else "mode=rwc")
            except sqlite3.OperationalError as error:
                if not (
                    self.read_only and _is_read_only(error) and self.path.is_file() and not self.size("-wal")
                ):
                    raise
                self._unchanged = self._stamp()
                self._open("mode=ro&immutable=1")

    def _open(self, parameters: str) -> None:
        self.connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self.path.absolute()))}?{parameters}",
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
                self.run(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
                self.run("PRAGMA synchronous=FULL")  # a commit is on disk when it returns
                self.run("PRAGMA secure_delete=ON")
        except BaseException:
            self.connection.close()
            raise

    def size(self, end: str) -> int:
        """Bytes of the database's file whose name has this end; 0 where there is none."""
        path = self.path.with_name(f"{NAME}{end}")
        return path.stat().st_size if path.is_file() else 0

    def _stamp(self) -> tuple[int, ...]:
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns, self.size("-wal")

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode, unique while the file is open; None where there is no file."""
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return self._file  # it cannot be looked at, which tells nothing
        return status.st_dev, status.st_ino

    @property
    def replaced(self) -> bool:
        """The file was removed, or another one put there; one that is read as unchanging may be exchanged."""
        now = self._identity()
        return now is None or (now != self._file and self._unchanged is None)

    def run(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """All rows of one statement."""
        return self.connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn SQLite's errors into GalleryErrors."""
        try:
            yield
        except UnicodeDecodeError as error:  # Python cannot read what SQLite says of a damaged schema
            raise self.damaged("a text is not UTF-8") from error
        except sqlite3.Error as error:
            reason = str(error)
            if "locked" in reason or "busy" in reason:
                raise GalleryBusyError(f"{self.path} is in use by another process: try again") from error
            if any(word in reason.lower() for word in DAMAGED):
                raise self.damaged(reason) from error
            if _is_read_only(error):
                self._check_readable()
                if self.read_only and self.size("-wal"):
                    raise GalleryError(
                        f"{self.path.parent} holds a write-ahead log that a writer left behind, and cannot be "
                        "written to take it in: open the gallery once where it can be written, or copy it there"
                    ) from error
                raise not_writable(self.path.parent, reason) from error
            if "full" in reason or "disk I/O" in reason:
                raise GalleryError(
                    f"{self.path} cannot be written or read ({reason}): is the disk full? nothing of this "
                    "operation was kept"
                ) from error
            raise GalleryError(f"{self.path}: {reason}") from error

    def _check_readable(self) -> None:
        """Raise an error that names the file that cannot be read, where there is one."""
        for end in ("", "-wal", "-shm"):
            path = self.path.with_name(f"{NAME}{end}")
            self._check_is_file(path)
            if path.exists() and not os.access(path, os.R_OK):
                raise GalleryError(f"{path} cannot be read: Permission denied")

    @staticmethod
    def _check_is_file(path: Path) -> None:
        if path.is_dir():
            raise GalleryError(f"{path} is a folder, and should be a file: move it away")

    def damaged(self, what: str) -> GalleryDamagedError:
        """The error that names the damaged file."""
        return GalleryDamagedError(
            f"{self.path} is damaged ({what}): restore a backup (fmcnet gallery restore), or write what can be read "
            f"into a new gallery: fmcnet gallery recover {self.path.parent} NEW --model MODEL"
        )

    def tables(self) -> set[str]:
        """The names of the tables that are there: none, or at least those that every version has."""
        names = {row[0] for row in self.run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        missing = FIRST_TABLES - names
        if missing and names:
            raise self.damaged(f"no such table: {min(missing)}")
        return names

    def get(self, key: str) -> str | int | None:
        """A value of `meta`."""
        rows = self.run("SELECT value, crc FROM meta WHERE key = ?", (key,))
        if rows and checksum(key, rows[0][0]) != rows[0][1]:
            raise self.damaged(f"checksum of '{key}'")
        return rows[0][0] if rows else None

    def number(self, key: str) -> int:
        """A number of `meta` that must be there."""
        value = self.get(key)
        if not isinstance(value, int):
            raise self.damaged(f"'{key}' is missing")
        return value

    def name(self) -> str:
        """The gallery's unique name; GalleryError where a newer fmcnet wrote the gallery."""
        return str(self._header()["name"])

    def _header(self) -> dict[str, Any]:
        value = self.get("gallery")
        if not isinstance(value, str):
            raise self.damaged("'gallery' is missing")
        try:
            header: dict[str, Any] = parse_json(value)
            version, _ = header["format"], header["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged("'gallery' is not what was written") from error
        if version not in (FORMAT, TEXT_PID_FORMAT):
            raise GalleryError(
                f"{self.path} has format {version}, this fmcnet reads {FORMAT} and {TEXT_PID_FORMAT}: update fmcnet"
            )
        return header

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

    def truncate_log(self) -> None:
        """Bring all into the main file and empty the log; GalleryBusyError when another process keeps reading."""
        with self.translated():
            try:
                busy = self.run("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]
            except sqlite3.OperationalError as error:
                if "full" not in str(error) and "disk I/O" not in str(error):
                    raise
                raise GalleryError(
                    f"{self.path}: the write-ahead log cannot be emptied ({error}): is the disk full? make room: "
                    "the next change empties it, as does gallery compact; until then it may hold what was removed, "
                    "which no answer shows"
                ) from error
            if busy:
                raise GalleryBusyError(
                    f"{self.path}: what was removed is gone from all answers, but another process still reads, so "
                    "the write-ahead log may hold it; run compact when it is done"
                )

    def shorten_log(self) -> None:
        """Bring into the main file what no reader holds back; where that fails it stays in the log, on disk."""
        try:
            self.run("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            logger.warning("%s: the write-ahead log stays long (%s): is the disk full?", self.path, error)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def not_writable(folder: Path, reason: str | None) -> GalleryError:
    """The error of a folder where nothing may be written."""
    return GalleryError(
        f"{folder} cannot be written ({reason}): to change it, copy it to where it can be; to read it, open it with "
        "read_only=True, as fmcnet search, gallery info and gallery export do"
    )


def _is_read_only(error: sqlite3.Error) -> bool:
    return "readonly" in str(error) or "unable to open" in str(error)


class LastGeneration(NamedTuple):
    """The database's name, and the newest generation that was written."""

    gallery: str
    generation: int


def read_last_generation(database: Path) -> LastGeneration | None:
    """The last generation that is noted beside a database; None where none can be read."""
    with contextlib.suppress(OSError, ValueError):
        crc, body = last_generation_path(database).read_text(encoding="ascii").rstrip().split(" ", 1)
        if int(crc, 16) == zlib.crc32(body.encode()):
            gallery, generation = body.split()
            return LastGeneration(gallery, int(generation))
    return None


def write_last_generation(database: Path, last: LastGeneration) -> None:
    """Note it in place, which a kill does not tear. It may be older than the database, never newer.

    So it needs no fsync, and the writer ignores an error.
    """
    path = last_generation_path(database)
    body = f"{last.gallery} {last.generation:020d}"
    with contextlib.suppress(OSError):
        if not path.exists():
            make_private(path)
        with path.open("r+b") as stream:
            stream.write(f"{zlib.crc32(body.encode()):08x} {body}\n".encode())


def last_generation_path(database: Path) -> Path:
    """The file of the last generation."""
    return database.with_name(f"{database.name}-generation")


def checksum(*values: object) -> int:
    """CRC-32 of values; texts hold no NUL and are not empty, so the joined text is unambiguous."""
    return zlib.crc32("\0".join("" if value is None else str(value) for value in values).encode())


def check_loss(folder: Path, timeout: float, index: IndexManifest | None) -> None:
    """Refuse a database that is older than its index or its noted generation, before a writer changes anything.

    Args:
        folder: of the gallery.
        timeout: seconds to wait for a lock.
        index: as it was before the database is read, which may only be newer.

    Raises:
        GalleryDamagedError: says what was lost, and what to do.
    """
    noted = read_last_generation(folder / NAME)  # before the database, too
    proofs = [proof for proof in (noted, index) if proof is not None]
    unreadable = _proof_files(folder, noted is None, index is None)
    main = _generation_in_main_file(folder, timeout)
    with contextlib.closing(Connection(folder, read_only=True, timeout=timeout)) as database:
        with database.translated():
            if not database.tables():
                if (len(proofs) < 2 and unreadable) or any(proof.generation for proof in proofs):
                    raise lost(folder, f"{NAME} is empty or missing", index)
                return
            name, generation = database.name(), database.number("generation")
        if main is not None and (main.gallery != name or main.generation > generation):
            raise database.damaged("its write-ahead log is another gallery's, or older")
    if any(proof.gallery == name and proof.generation > generation for proof in proofs):
        what = f"{NAME} is older than what was written last, so its write-ahead log was lost or damaged"
    elif noted is not None and all(proof.gallery != name for proof in proofs):
        what = f"{NAME} is another gallery's"
    elif index is not None and index.rows and index.gallery != name:
        what = f"{NAME} or {INDEX} is another gallery's"
    else:
        return
    raise lost(folder, what, index)


def _generation_in_main_file(folder: Path, timeout: float) -> LastGeneration | None:
    """That of the database without its log; None without a log, or where it is unreadable."""
    with contextlib.suppress(GalleryError):
        database = Connection(folder, read_only=True, timeout=timeout, without_log=True)
        with contextlib.closing(database), database.translated():
            if database.size("-wal") and "pictures" in database.tables():
                return LastGeneration(database.name(), database.number("generation"))
    return None


def _proof_files(folder: Path, noted: bool = True, index: bool = True) -> list[Path]:
    """The existing files of the noted generation and the index; a new gallery has none."""
    files = [path for pattern in INDEX_FILES for path in sorted(folder.glob(pattern))] if index else []
    path = last_generation_path(folder / NAME)
    return [*files, *([path] if noted and path.exists() else [])]


def lost(folder: Path, what: str, index: IndexManifest | None) -> GalleryDamagedError:
    """The error of a gallery that lost entries."""
    rows = f", and the index has {index.rows:,} rows" if index is not None else ""
    recover = ""
    if index is not None or ((folder / NAME).is_file() and (folder / NAME).stat().st_size):
        recover = (
            f", or write what is left into a new gallery: fmcnet gallery recover {folder} NEW --model MODEL"
        )
    files = " and ".join(map(str, _proof_files(folder)))
    return GalleryDamagedError(
        f"{folder} lost entries: {what}{rows}. Nothing was changed. Restore a backup (fmcnet gallery "
        f"restore){recover}. If this database is the one you want, delete {files}"
    )
