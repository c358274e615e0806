"""The index's files, which are derived from the database, and the rules that keep index and database in step.

Every change ends by replacing the manifest `index.json`. It holds a checksum of every other file, the gallery's name
and the database's generation; files that do not fit it are not used. The log names what is missing, damaged or of
another gallery, and it is made again from the database: in memory by a reader, on disk by the next writer. The
embeddings' file only grows, and zeros overwrite removed rows in place. Other files get a new name each time, so
readers of the old ones are not disturbed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from fmcnet.files import private_mode, remove_left, to_disk, write_atomically
from fmcnet.parsing import parse_json, read_json
from fmcnet.retrieval.columns import EntryColumns
from fmcnet.retrieval.faiss_index import Codes, FaissIndex
from fmcnet.retrieval.records import GallerySettings, IndexChoice
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)

NAME = "index.json"
FORMAT = 3
READABLE = (2, FORMAT)
"""2, of 0.1.0, has numbers for identities; `EntryColumns.load` reads them."""
BLOCK = 512
"""Rows with one checksum."""
CHUNK = 4096
"""Rows read from the database at once."""
BEHIND = 16_384
"""Rows compared one by one beside a graph before it takes them in."""
FILES = (NAME, "vectors-*.bin", "columns-*.npz", "graph-*")
"""Patterns of its files' names."""
SHARE = 0.05
"""Rows in memory only, as a share of those in the file, that are written to it."""


class DoubtError(Exception):
    """The files cannot be vouched for; the text says why. They are made anew from the database."""


@dataclass
class Manifest:
    """What `index.json` says, and the files that it names.

    Attributes:
        gallery: name of the database it belongs to. generation: of the database, up to which it is complete.
        rows: of the embeddings' file `vectors`. blocks: their CRC-32, `BLOCK` rows each.
        columns, graph: files with the CRC-32 `columns_crc`, `graph_crc`.
    """

    gallery: str
    generation: int
    dimension: int
    dtype: str
    vectors: str = field(default_factory=lambda: f"vectors-{_token()}.bin")
    rows: int = 0
    blocks: list[int] = field(default_factory=list)
    columns: str = ""
    columns_crc: int = 0
    graph: str | None = None
    graph_crc: int = 0
    format: int = FORMAT

    @property
    def row_bytes(self) -> int:
        """Bytes of one embedding."""
        return self.dimension * np.dtype(self.dtype).itemsize

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            DoubtError: when there is none, or it is damaged.
        """
        try:
            outer = read_json(folder / NAME)
            if zlib.crc32(outer["body"].encode()) != outer["crc"]:
                raise DoubtError(f"{NAME} is damaged (its checksum differs)")
            body = parse_json(outer["body"])
            if body["format"] not in READABLE:
                raise DoubtError(f"{NAME} has another format")
            if body["format"] != FORMAT:
                body["graph"] = None  # of 0.1.0, it has to be built again
            found = TypeAdapter(Manifest).validate_python(body)
            if any(name and Path(name).name != name for name in (found.vectors, found.columns, found.graph)):
                raise DoubtError(f"{NAME} names files of another folder")
            return found
        except FileNotFoundError as error:
            raise DoubtError(f"there is no {NAME}") from error
        except OSError as error:
            raise DoubtError(f"{NAME} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DoubtError(f"{NAME} is damaged") from error

    @staticmethod
    def find(folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none, or it is damaged."""
        with contextlib.suppress(DoubtError):
            return Manifest.read(folder)
        return None

    def verify(self, folder: Path) -> Codes:
        """Read all files; the (rows, D) embeddings, mapped.

        Raises:
            DoubtError: when one is missing or damaged, by name.
        """
        codes = self.map(folder)
        for block, crc in enumerate(self.blocks):
            if not block_is_intact(codes, block, crc):
                first, last = block * BLOCK, min((block + 1) * BLOCK, self.rows) - 1
                raise DoubtError(f"{self.vectors}, rows {first} to {last}: checksum differs")
        _verify_file(folder, self.columns, self.columns_crc)
        if self.graph:
            _verify_file(folder, self.graph, self.graph_crc)
        return codes

    def load_columns(self, folder: Path) -> EntryColumns:
        """What filters need; errors as of `verify`."""
        _verify_file(folder, self.columns, self.columns_crc)
        try:
            return EntryColumns.load(folder / self.columns)
        except FileNotFoundError as error:  # another process wrote newer files since
            raise DoubtError(f"{self.columns} is missing") from error

    def load(self, folder: Path) -> FaissIndex:
        """The index of the files; errors as of `verify`."""
        codes = self.verify(folder)
        columns = self.load_columns(folder)
        if len(columns) != self.rows:
            raise DoubtError(f"{self.columns} has {len(columns)} rows, not {self.rows}")
        index = FaissIndex(self.dimension, self.dtype, columns)
        index.generation = self.generation
        try:
            index.load(codes, folder / self.graph if self.graph else None)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DoubtError(f"{self.graph} cannot be read ({error})") from error
        return index

    def map(self, folder: Path) -> Codes:
        """(rows, D) embeddings, mapped.

        Raises:
            DoubtError: when the file is missing or too short.
        """
        kind = np.dtype(self.dtype)
        if not self.rows:
            return np.empty((0, self.dimension), kind)
        try:
            return np.memmap(folder / self.vectors, kind, "r", shape=(self.rows, self.dimension))
        except (OSError, ValueError) as error:
            raise DoubtError(f"{self.vectors} is missing or too short") from error

    # ---- writing; the writer's lock is held ----

    def trim(self, folder: Path) -> None:
        """Cut off what a writer that died left behind the last row."""
        path = folder / self.vectors
        if path.exists() and path.stat().st_size > self.rows * self.row_bytes:
            os.truncate(path, self.rows * self.row_bytes)
            to_disk(path)

    def append(self, folder: Path, codes: Codes) -> None:
        """Rows at the end of the embeddings' file."""
        if not len(codes):
            return
        self.trim(folder)
        with (folder / self.vectors).open("ab") as stream:
            if not self.rows:
                (folder / self.vectors).chmod(private_mode(folder))
            stream.write(np.ascontiguousarray(codes).data)
            stream.flush()
            os.fsync(stream.fileno())
        first = self.rows // BLOCK
        self.rows += len(codes)
        whole = self.map(folder)
        del self.blocks[first:]
        self.blocks += [_block_crc(whole, block) for block in range(first, -(-self.rows // BLOCK))]

    def erase(self, folder: Path, positions: IntArray) -> None:
        """Overwrite rows of the embeddings' file by zeros."""
        if not len(positions):
            return
        with (folder / self.vectors).open("r+b") as stream:
            for position in positions.tolist():
                stream.seek(position * self.row_bytes)
                stream.write(bytes(self.row_bytes))
            stream.flush()
            os.fsync(stream.fileno())
        whole = self.map(folder)
        for block in np.unique(positions // BLOCK).tolist():
            self.blocks[block] = _block_crc(whole, block)

    def put_graphs(self, folder: Path, index: FaissIndex) -> None:
        """Write the graphs to a file of their own."""
        name = f"graph-{_token()}.npz"
        write_atomically(folder / name, index.save_graphs, private_mode(folder))
        self.graph, self.graph_crc = name, _crc(folder / name)

    def commit(self, folder: Path, index: FaissIndex) -> None:
        """Write columns and manifest, then remove the files that it no longer names."""
        self.generation = index.generation
        self.columns, self.format = f"columns-{_token()}.npz", FORMAT
        mode = private_mode(folder)
        write_atomically(folder / self.columns, lambda path: index.columns.save(path, self.rows), mode)
        self.columns_crc = _crc(folder / self.columns)
        self.write(folder)
        discard(folder, {self.vectors, self.columns, self.graph})

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        body = json.dumps(asdict(self))
        text = json.dumps({"crc": zlib.crc32(body.encode()), "body": body})
        write_atomically(
            folder / NAME, lambda path: path.write_text(text, encoding="utf-8"), private_mode(folder)
        )


class GalleryIndex:
    """The index of one process over a gallery's folder.

    Attributes:
        state: what is searched; None until it is loaded. manifest: of the files it is based on, or None.
        faults: what was wrong with the files when they were loaded last, by name.
    """

    def __init__(
        self, folder: Path, database: Database, choice: IndexChoice, hnsw_above: int, flush_rows: int
    ) -> None:
        self.folder = folder
        self.database = database
        self.choice = choice
        self.hnsw_above = hnsw_above
        self.flush_rows = flush_rows
        self.state: FaissIndex | None = None
        self.manifest: Manifest | None = None
        self.faults: list[str] = []
        self._unerased: list[int] = []

    # ---- reading; a transaction is open ----

    def sync(self, *, reload: bool = False) -> FaissIndex:
        """Catch up with the database; empty while the gallery has no settings. `reload`: read all files again."""
        settings = self.database.settings()
        generation = self.database.number("generation")
        if settings is None:
            if self.database.run("SELECT 1 FROM rows LIMIT 1"):
                raise self.database.damaged("'settings' is missing")
            return FaissIndex(1, "float32")
        state = None if reload else self.state
        if state is not None and state.generation == generation:
            return state
        if state is None or not self.database.number("floor") <= state.generation <= generation:
            state = self._load(settings, generation)
        self.state = None  # should catching up fail, the next use loads anew
        self._catch_up(state, generation)
        counts = self.database.counts()
        if counts is not None and counts[0] != state.live:
            raise self.database.damaged(f"{state.live:,} of {counts[0]:,} entries can be read")
        self.state = state
        return state

    def _load(self, settings: GallerySettings, generation: int) -> FaissIndex:
        self.faults, self._unerased = [], []
        for _ in range(5):
            try:
                return self._load_files(settings, generation)
            except DoubtError as error:
                reason = str(error)
            if not self.replaced():
                break
        self.manifest = None
        if (self.folder / NAME).exists():
            self.faults.append(reason)
            logger.warning("%s: %s; made anew", self.folder, reason)
        else:
            level = logging.DEBUG if generation <= 1 else logging.INFO  # the first write makes no files yet
            logger.log(level, "%s: %s; the index is made from the database", self.folder, reason)
        return FaissIndex(settings.dimension, settings.dtype)

    def _load_files(self, settings: GallerySettings, generation: int) -> FaissIndex:
        manifest = self.manifest = Manifest.read(self.folder)
        if manifest.gallery != self.database.name():
            raise DoubtError(f"{NAME} belongs to another gallery")
        if (manifest.dimension, manifest.dtype) != (settings.dimension, settings.dtype):
            raise DoubtError(f"{NAME} has another dimension or type")
        if not self.database.number("floor") <= manifest.generation <= generation:
            raise DoubtError(f"{NAME} is of generation {manifest.generation}, the database of {generation}")
        return manifest.load(self.folder)

    def _catch_up(self, state: FaissIndex, generation: int) -> None:
        columns = state.columns
        noted = dict(self.database.noted(state.generation))  # the last word on each row
        known = columns.living(list(noted))
        if gone := [seq for seq in known if noted[seq]]:
            positions = state.forget(gone)
            self._unerased += positions[positions < state.saved].tolist()
        changed = [seq for seq in known if not noted[seq]]
        for seq, (entry, _) in self.database.stored(changed).items():
            columns.replace(seq, entry)
        last = int(columns.seq[-1]) if len(columns) else 0
        while rows := self.database.after(last, CHUNK):
            codes = np.stack([vector for _, vector in rows.values()]).astype(state.dtype)
            state.append(list(rows), [entry for entry, _ in rows.values()], codes)
            last = int(columns.seq[-1])
        state.generation = generation

    # ---- writing; the writer's lock is held ----

    def replaced(self) -> bool:
        """Another process has written the files since they were loaded."""
        found = Manifest.find(self.folder)
        return (found and found.columns) != (self.manifest and self.manifest.columns)

    def adopt(self) -> None:
        """Start from the files as they are now, and finish what a writer that died left undone."""
        if self.replaced():
            self.state = None
        with self.database.reading():
            self.sync()
        if self.state is None:
            return
        if self._unerased:
            self.erase(np.array(self._unerased, np.int64))
        if self.faults or (self.manifest and self.manifest.format != FORMAT):
            self.flush()
        elif self.manifest is not None:
            self.manifest.trim(self.folder)
        elif not (self.folder / NAME).exists():
            discard(self.folder)

    def erase(self, positions: IntArray) -> None:
        """Overwrite removed rows in the files; where that fails the files go, for they can be made again."""
        state = self.state
        self._unerased = []
        if state is None or self.manifest is None:
            discard(self.folder)
            self.state = None  # its unsaved embeddings are read again, without the removed ones
            return
        try:
            self.manifest.erase(self.folder, positions[positions < self.manifest.rows])
            self.manifest.commit(self.folder, state)
        except (OSError, DoubtError) as error:
            logger.warning("%s: the index cannot be rewritten (%s); it is removed", self.folder, error)
            discard(self.folder)
            self.manifest = self.state = None

    def keep_up(self) -> None:
        """Write to disk what grew too long to be kept in memory only."""
        state = self.state
        if state is None:
            return
        due = int(SHARE * state.saved)
        if state.graph_rows:
            due = min(due, BEHIND - (state.saved - state.graph_rows))
        if len(state) - state.saved >= max(self.flush_rows, due):
            self.flush()

    def flush(self, *, complete: bool = False) -> None:
        """Bring the files up to date; `complete`: the graphs, too. A failure is logged: the database has it all."""
        if self.state is None:
            return
        try:
            self._flush(self.state, complete=complete)
        except (OSError, MemoryError, RuntimeError, DoubtError) as error:  # RuntimeError is FAISS's
            logger.warning("%s: the index cannot be written (%s); searches go on", self.folder, error)
            self.state = None  # the next use loads the files, or reads the database

    def _flush(self, state: FaissIndex, *, complete: bool) -> None:
        manifest = self.manifest or Manifest(
            self.database.name(), state.generation, state.dimension, str(state.dtype)
        )
        manifest.append(self.folder, state.take_unsaved())
        wanted = self.choice == "hnsw" or (self.choice == "auto" and state.live > self.hnsw_above)
        missing = len(state) - state.graph_rows
        if wanted and missing and (complete or not state.graph_rows or missing >= BEHIND):
            state.grow_graphs()
            manifest.graph = None
        if not state.graph_rows:
            manifest.graph = None
        elif manifest.graph is None:
            manifest.put_graphs(self.folder, state)
        manifest.commit(self.folder, state)
        self.manifest, self.faults = manifest, []
        state.saved, state.unsaved = len(state), []

    def compact(self, generation: int) -> None:
        """Write all files anew without the removed rows; the database was compacted before.

        Graphs are kept and completed where no row was removed or changed its modality; otherwise built anew.
        """
        state = self.state
        if state is None:
            return
        if state.clean:
            state.generation = generation
        else:
            self.manifest, self._unerased = None, []
            self.state = state = FaissIndex(state.dimension, str(state.dtype))
            with self.database.reading():
                self._catch_up(state, generation)
        self.flush(complete=True)


def discard(folder: Path, keep: Collection[Any] = ()) -> None:
    """Remove the index's files, all but those named, and what killed writers left half-made."""
    if not keep:
        _remove(folder / NAME)
    remove_left(folder)
    for pattern in FILES[1:]:
        for path in folder.glob(pattern):
            if path.name not in keep:
                _remove(path)


def _remove(path: Path) -> None:
    """A folder in the place of a file is left: it is none of ours."""
    if not path.is_dir():
        path.unlink(missing_ok=True)


def _token() -> str:
    return uuid.uuid4().hex[:12]


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while part := stream.read(2**22):
            crc = zlib.crc32(part, crc)
    return crc


def _verify_file(folder: Path, name: str, crc: int) -> None:
    try:
        if _crc(folder / name) != crc:
            raise DoubtError(f"{name} is damaged (its checksum differs)")
    except OSError as error:
        raise DoubtError(f"{name} cannot be read ({error.strerror})") from error


def block_is_intact(codes: Codes, block: int, crc: int) -> bool:
    """Whether a block of embeddings has the checksum that the manifest holds."""
    return _block_crc(codes, block) == crc


def _block_crc(codes: Codes, block: int) -> int:
    rows = np.ascontiguousarray(codes[block * BLOCK : (block + 1) * BLOCK])
    return zlib.crc32(rows.data.cast("B"))
