"""The index of one process, in step with the database, and its files, which are derived from the database.

Files that do not fit the database are not used. The log names what is missing, damaged or of another gallery, and it
is made again from the database: in memory by a reader, on disk by the next writer.

Every change of the files ends by replacing the manifest `index.json`. It holds a checksum of every other file, the
gallery's name and the database's generation. The embeddings' file only grows, and removed rows are overwritten in
place. Other files get a new name each time, so readers of the old ones are not disturbed.
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
from fmcnet.retrieval.entry_columns import EntryColumns
from fmcnet.retrieval.faiss_index import Codes, FaissIndex
from fmcnet.retrieval.records import GallerySettings, IndexChoice
from fmcnet.retrieval.sqlite_connection import INDEX, INDEX_FILES
from fmcnet.retrieval.sqlite_database import CHUNK, Database
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)

FORMAT = 4
READABLE = (2, 3, FORMAT)
"""2, of 0.1.0, has numbers for identities; `EntryColumns.load` reads them. 3 has zeros in graphs."""
BLOCK = 512
"""Rows with one checksum."""
BEHIND = 16_384
"""Rows compared one by one beside a graph before it takes them in."""
SHARE = 0.05
"""Rows in memory only, as a share of those in the file, after which they are written to it."""


@dataclass
class GalleryIndex:
    """The index of one process over a gallery's folder.

    It is not loaded (`state` is None), in memory only (`manifest` is None), or the files have its first `saved` rows.
    `sync` loads it and follows the database, `flush` writes the files, and a failure leads back to not loaded.

    Attributes:
        state: what is searched.
        generation: of the database, up to which `state` is complete.
        manifest: of the files that `state` is based on.
        faults: what was wrong with the files when they were loaded last, by name.
    """

    folder: Path
    database: Database
    choice: IndexChoice
    hnsw_above: int
    flush_rows: int
    state: FaissIndex | None = None
    generation: int = -1
    manifest: IndexManifest | None = None
    faults: list[str] = field(default_factory=list)
    _unerased: list[int] = field(default_factory=list)
    """Positions of removed rows whose embeddings may be in the file."""

    @property
    def saved(self) -> int:
        """How many of the first rows are in the embeddings' file."""
        return 0 if self.manifest is None else self.manifest.rows

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
        if state is not None and self.generation == generation:
            return state
        self.state = None  # should what follows fail, the next use loads anew
        if state is None or not self.database.logs_since(self.generation):
            state = self._load(settings, generation)
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
            except InvalidIndexError as error:
                reason = str(error)
            if not self.replaced():
                break
        if (self.folder / INDEX).exists():
            self.faults.append(reason)
            logger.warning("%s: %s; made anew", self.folder, reason)
        else:
            level = logging.DEBUG if generation <= 1 else logging.INFO  # the first write makes no files yet
            logger.log(level, "%s: %s; the index is made from the database", self.folder, reason)
        return self._empty(settings.dimension, settings.dtype)

    def _empty(self, dimension: int, dtype: str) -> FaissIndex:
        """An index in memory only, that has nothing of the database yet."""
        self.manifest, self.generation, self._unerased = None, -1, []
        return FaissIndex(dimension, dtype)

    def _load_files(self, settings: GallerySettings, generation: int) -> FaissIndex:
        manifest = self.manifest = IndexManifest.read(self.folder)
        if manifest.gallery != self.database.name():
            raise InvalidIndexError(f"{INDEX} belongs to another gallery")
        if (manifest.dimension, manifest.dtype) != (settings.dimension, settings.dtype):
            raise InvalidIndexError(f"{INDEX} has another dimension or type")
        if not self.database.logs_since(manifest.generation):
            raise InvalidIndexError(
                f"{INDEX} is of generation {manifest.generation}, the database of {generation}"
            )
        codes, columns = manifest.verify(self.folder)
        if len(columns) != manifest.rows:
            raise InvalidIndexError(f"{manifest.columns} has {len(columns)} rows, not {manifest.rows}")
        index = FaissIndex(manifest.dimension, manifest.dtype, columns)
        self.generation = manifest.generation
        try:
            index.load(codes, self.folder / manifest.graph if manifest.graph else None)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InvalidIndexError(f"{manifest.graph} cannot be read ({error})") from error
        return index

    def _catch_up(self, state: FaissIndex, generation: int) -> None:
        columns = state.columns
        noted = dict(self.database.noted(self.generation))  # the last word on each row
        existing = columns.existing(list(noted))
        removed = state.forget([seq for seq in existing if noted[seq]])
        self._unerased += removed[removed < self.saved].tolist()
        changed = [seq for seq in existing if not noted[seq]]
        for seq, (entry, _) in self.database.stored(changed).items():
            columns.replace(seq, entry)
        last = int(columns.seq[-1]) if len(columns) else 0
        while rows := self.database.after(last, CHUNK):
            codes = np.stack([vector for _, vector in rows.values()]).astype(state.dtype)
            state.append(list(rows), [entry for entry, _ in rows.values()], codes)
            last = int(columns.seq[-1])
        self.generation = generation

    # ---- writing; the writer's lock is held ----

    def replaced(self) -> bool:
        """Another process has written the files since they were loaded."""
        manifest = IndexManifest.find(self.folder)
        return (manifest and manifest.columns) != (self.manifest and self.manifest.columns)

    def adopt(self) -> None:
        """Start from the files as they are now, and finish what a writer that died left undone."""
        if self.replaced():
            self.state = None
        with self.database.reading():
            self.sync()
        if self.state is None:
            return
        if self._unerased:
            self.erase()
        if self.faults or (self.manifest and self.manifest.format != FORMAT):
            self.flush()
        elif self.manifest is not None:
            self.manifest.trim(self.folder)
        elif not (self.folder / INDEX).exists():
            discard(self.folder)

    def erase(self) -> None:
        """Overwrite removed rows in the files, those of the last transaction too; where that fails the files go."""
        with self.database.reading():
            self.sync()
        if self.state is None or self.manifest is None:
            self._discard_files()
            return
        try:
            rows = self._with_copies(self.manifest, self.state)
            self.manifest.overwrite(self.folder, rows, self.state.stand_ins(rows))
            self.manifest.commit(self.folder, self.state, self.generation)
            self._unerased = []  # not before: what an interrupt left is erased next time
        except (OSError, InvalidIndexError) as error:
            logger.warning("%s: the index cannot be rewritten (%s); it is removed", self.folder, error)
            self._discard_files()
            self.state = None
        except BaseException:
            self.state = None  # the next use reads the files, half written, and makes them anew
            raise

    def _with_copies(self, manifest: IndexManifest, state: FaissIndex) -> IntArray:
        """Positions to erase, and of earlier removed rows that these stand in for (`FaissIndex.stand_ins`)."""
        stored, unerased = manifest.map(self.folder), np.array(self._unerased, np.int64)
        removed = np.concatenate([positions for positions, _ in state.removed_in_graphs()])
        removed = removed[np.isin(stored[removed, 0], stored[unerased, 0])]  # most differ in the first value
        embeddings = {stored[position].tobytes() for position in self._unerased}
        copies = [
            row for row in removed.tolist() if stored[row].tobytes() in embeddings and stored[row].any()
        ]
        return np.union1d(np.array(self._unerased, np.int64), np.array(copies, np.int64))

    def _discard_files(self) -> None:
        """Remove the files, which can be made again from the database."""
        discard(self.folder)
        self.manifest, self._unerased = None, []

    def flush_if_due(self) -> None:
        """Write to disk what grew too long to be kept in memory only."""
        with self.database.reading():
            state = self.sync()
        due = int(SHARE * self.saved)
        if state.graph_rows:
            due = min(due, BEHIND - (self.saved - state.graph_rows))
        if len(state) - self.saved >= max(self.flush_rows, due):
            self.flush()

    def flush(self, *, complete: bool = False) -> None:
        """Bring the files up to date; `complete`: the graphs, too. A failure is logged: the database has it all."""
        state = self.state
        if state is None:
            return
        try:
            manifest = self.manifest or IndexManifest(
                self.database.name(), self.generation, state.dimension, str(state.dtype)
            )
            manifest.append(self.folder, state.codes_from(manifest.rows))
            wanted = self.choice == "hnsw" or (self.choice == "auto" and state.live > self.hnsw_above)
            missing, grown = len(state) - state.graph_rows, False
            if wanted and missing and (complete or not state.graph_rows or missing >= BEHIND):
                state.grow_graphs()
                manifest.graph, grown = None, True
            if not state.graph_rows:
                manifest.graph = None
            elif manifest.graph is None:
                manifest.put_graphs(self.folder, state)
            for positions, part in state.removed_in_graphs() if grown else ():
                codes = part.codes[np.searchsorted(part.positions, positions)]
                manifest.overwrite(self.folder, positions, codes)
            manifest.commit(self.folder, state, self.generation)
            self.manifest, self.faults = manifest, []
        except (OSError, MemoryError, RuntimeError, InvalidIndexError) as error:  # RuntimeError is FAISS's
            logger.warning("%s: the index cannot be written (%s); searches go on", self.folder, error)
            self.state = None  # the next use loads the files, or reads the database

    def compact(self, generation: int) -> None:
        """Write all files anew without the removed rows; the database was compacted before.

        Graphs are kept and completed where no row was removed or changed its modality; otherwise built anew.
        """
        state = self.state
        if state is None:
            return
        if state.clean:
            self.generation = generation
        else:
            self.state = state = self._empty(state.dimension, str(state.dtype))
            with self.database.reading():
                self._catch_up(state, generation)
        self.flush(complete=True)


class InvalidIndexError(Exception):
    """A file is missing or damaged; the text says which, and why. The files are made anew from the database."""


@dataclass
class IndexManifest:
    """What `index.json` says, and the files that it names.

    Attributes:
        gallery: name of the database it belongs to.
        generation: of the database, up to which it is complete.
        dimension: values in an embedding.
        dtype: of the embeddings.
        vectors: file of the embeddings.
        rows: how many it has.
        blocks: their CRC-32, `BLOCK` rows each.
        columns: file of what filters need; `columns_crc` is its CRC-32.
        graph: file of the graphs, or None; `graph_crc` is its CRC-32.

    Raises:
        InvalidIndexError: by all methods that read.
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
    def read(folder: Path) -> IndexManifest:
        """The manifest of a folder."""
        try:
            outer = read_json(folder / INDEX)
            if zlib.crc32(outer["body"].encode()) != outer["crc"]:
                raise InvalidIndexError(f"{INDEX} is damaged (its checksum differs)")
            body = parse_json(outer["body"])
            if body["format"] not in READABLE:
                raise InvalidIndexError(f"{INDEX} has another format")
            if body["format"] != FORMAT:
                body["graph"] = None  # it has to be built again
            manifest = TypeAdapter(IndexManifest).validate_python(body)
            if any(
                name and Path(name).name != name
                for name in (manifest.vectors, manifest.columns, manifest.graph)
            ):
                raise InvalidIndexError(f"{INDEX} names files of another folder")
            return manifest
        except FileNotFoundError as error:
            raise InvalidIndexError(f"there is no {INDEX}") from error
        except OSError as error:
            raise InvalidIndexError(f"{INDEX} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidIndexError(f"{INDEX} is damaged") from error

    @staticmethod
    def find(folder: Path) -> IndexManifest | None:
        """The manifest of a folder; None where there is none, or it is damaged."""
        with contextlib.suppress(InvalidIndexError):
            return IndexManifest.read(folder)
        return None

    def verify(self, folder: Path) -> tuple[Codes, EntryColumns]:
        """Read and compare all files; the (rows, D) embeddings, mapped, and what filters need of the rows."""
        codes = self.map(folder)
        for block, crc in enumerate(self.blocks):
            if block_crc(codes, block) != crc:
                first, last = block * BLOCK, min((block + 1) * BLOCK, self.rows) - 1
                raise InvalidIndexError(f"{self.vectors}, rows {first} to {last}: checksum differs")
        if self.graph:
            _verify_file(folder, self.graph, self.graph_crc)
        return codes, self.load_columns(folder)

    def load_columns(self, folder: Path) -> EntryColumns:
        """The columns that filters need."""
        _verify_file(folder, self.columns, self.columns_crc)
        try:
            return EntryColumns.load(folder / self.columns)
        except FileNotFoundError as error:  # another process wrote newer files since
            raise InvalidIndexError(f"{self.columns} is missing") from error

    def map(self, folder: Path) -> Codes:
        """(rows, D) embeddings, mapped."""
        dtype = np.dtype(self.dtype)
        if not self.rows:
            return np.empty((0, self.dimension), dtype)
        try:
            return np.memmap(folder / self.vectors, dtype, "r", shape=(self.rows, self.dimension))
        except (OSError, ValueError) as error:
            raise InvalidIndexError(f"{self.vectors} is missing or too short") from error

    # ---- writing; the writer's lock is held ----

    def trim(self, folder: Path) -> None:
        """Cut off what a writer that died left behind the last row."""
        path = folder / self.vectors
        if path.exists() and path.stat().st_size > self.rows * self.row_bytes:
            os.truncate(path, self.rows * self.row_bytes)
            to_disk(path)

    def append(self, folder: Path, codes: Codes) -> None:
        """Append rows to the embeddings' file."""
        if not len(codes):
            return
        self.trim(folder)
        with (folder / self.vectors).open("ab") as stream:
            if not self.rows:
                (folder / self.vectors).chmod(private_mode(folder))
            stream.write(np.ascontiguousarray(codes).data)
        to_disk(folder / self.vectors)
        first = self.rows // BLOCK
        self.rows += len(codes)
        mapped = self.map(folder)
        del self.blocks[first:]
        self.blocks += [block_crc(mapped, block) for block in range(first, -(-self.rows // BLOCK))]

    def overwrite(self, folder: Path, positions: IntArray, codes: Codes) -> None:
        """Overwrite rows of the embeddings' file."""
        if not len(positions):
            return
        with (folder / self.vectors).open("r+b") as stream:
            for position, code in zip(positions.tolist(), codes, strict=True):
                stream.seek(position * self.row_bytes)
                stream.write(code.tobytes())
        to_disk(folder / self.vectors)
        mapped = self.map(folder)
        for block in np.unique(positions // BLOCK).tolist():
            self.blocks[block] = block_crc(mapped, block)

    def put_graphs(self, folder: Path, index: FaissIndex) -> None:
        """Write the graphs to a file of their own."""
        name = f"graph-{_token()}.npz"
        write_atomically(folder / name, index.save_graphs, private_mode(folder))
        self.graph, self.graph_crc = name, _file_crc(folder / name)

    def commit(self, folder: Path, index: FaissIndex, generation: int) -> None:
        """Write columns and manifest, then remove the files that it no longer names."""
        self.generation, self.format = generation, FORMAT
        self.columns = f"columns-{_token()}.npz"
        mode = private_mode(folder)
        write_atomically(folder / self.columns, lambda path: index.columns.save(path, self.rows), mode)
        self.columns_crc = _file_crc(folder / self.columns)
        self.write(folder)
        discard(folder, {INDEX, self.vectors, self.columns, self.graph})

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        body = json.dumps(asdict(self))
        text = json.dumps({"crc": zlib.crc32(body.encode()), "body": body})
        write_atomically(
            folder / INDEX, lambda path: path.write_text(text, encoding="utf-8"), private_mode(folder)
        )


def discard(folder: Path, keep: Collection[Any] = ()) -> None:
    """Remove the index's files, all but those named, and what killed writers left half-made."""
    for pattern in INDEX_FILES:  # the manifest first
        for path in folder.glob(pattern):
            if path.name not in keep and not path.is_dir():
                path.unlink(missing_ok=True)
    remove_left(folder)


def _token() -> str:
    return uuid.uuid4().hex[:12]


def _file_crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while chunk := stream.read(2**22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _verify_file(folder: Path, name: str, crc: int) -> None:
    try:
        if _file_crc(folder / name) != crc:
            raise InvalidIndexError(f"{name} is damaged (its checksum differs)")
    except OSError as error:
        raise InvalidIndexError(f"{name} cannot be read ({error.strerror})") from error


def block_crc(codes: Codes, block: int) -> int:
    """CRC-32 of a block of embeddings, to compare with the manifest's."""
    rows = np.ascontiguousarray(codes[block * BLOCK : (block + 1) * BLOCK])
    return zlib.crc32(rows.data.cast("B"))
