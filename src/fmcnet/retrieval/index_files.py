"""The index's files, which are derived from the database.

Every change ends by replacing the manifest `index.json`. It holds a checksum of every other file, the gallery's name
and the database's generation. The embeddings' file only grows, and zeros overwrite removed rows in place. Other files
get a new name each time, so readers of the old ones are not disturbed. The files also prove a loss of the database.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.files import private_mode, remove_left, to_disk, write_atomically
from fmcnet.parsing import parse_json, read_json
from fmcnet.retrieval.entry_columns import EntryColumns
from fmcnet.retrieval.faiss_index import Codes, FaissIndex
from fmcnet.retrieval.sqlite_connection import NAME as DATABASE
from fmcnet.retrieval.sqlite_connection import LastGeneration, last_generation_path, read_last_generation
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.types import IntArray

NAME = "index.json"
FORMAT = 3
READABLE = (2, FORMAT)
"""2, of 0.1.0, has numbers for identities; `EntryColumns.load` reads them."""
BLOCK = 512
"""Rows with one checksum."""
FILES = (NAME, "vectors-*.bin", "columns-*.npz", "graph-*")
"""Patterns of its files' names."""


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
            outer = read_json(folder / NAME)
            if zlib.crc32(outer["body"].encode()) != outer["crc"]:
                raise InvalidIndexError(f"{NAME} is damaged (its checksum differs)")
            body = parse_json(outer["body"])
            if body["format"] not in READABLE:
                raise InvalidIndexError(f"{NAME} has another format")
            if body["format"] != FORMAT:
                body["graph"] = None  # of 0.1.0, it has to be built again
            manifest = TypeAdapter(IndexManifest).validate_python(body)
            if any(
                name and Path(name).name != name
                for name in (manifest.vectors, manifest.columns, manifest.graph)
            ):
                raise InvalidIndexError(f"{NAME} names files of another folder")
            return manifest
        except FileNotFoundError as error:
            raise InvalidIndexError(f"there is no {NAME}") from error
        except OSError as error:
            raise InvalidIndexError(f"{NAME} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidIndexError(f"{NAME} is damaged") from error

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
            stream.flush()
            os.fsync(stream.fileno())
        first = self.rows // BLOCK
        self.rows += len(codes)
        mapped = self.map(folder)
        del self.blocks[first:]
        self.blocks += [block_crc(mapped, block) for block in range(first, -(-self.rows // BLOCK))]

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
        discard(folder, {NAME, self.vectors, self.columns, self.graph})

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        body = json.dumps(asdict(self))
        text = json.dumps({"crc": zlib.crc32(body.encode()), "body": body})
        write_atomically(
            folder / NAME, lambda path: path.write_text(text, encoding="utf-8"), private_mode(folder)
        )


def discard(folder: Path, keep: Collection[Any] = ()) -> None:
    """Remove the index's files, all but those named, and what killed writers left half-made."""
    for pattern in FILES:  # the manifest first
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


def check_loss(folder: Path, timeout: float) -> None:
    """Refuse a database that is older than its index or its noted generation, before a writer changes anything.

    Raises:
        GalleryDamagedError: says what was lost, and what to do.
    """
    noted = read_last_generation(folder / DATABASE)  # both before the database, which may only be newer
    index = IndexManifest.find(folder)
    proofs = [proof for proof in (noted, index) if proof is not None]
    unreadable = _proof_files(folder, noted is None, index is None)
    main = _generation_in_main_file(folder, timeout)
    with contextlib.closing(Database(folder, read_only=True, timeout=timeout)) as database:
        with database.translated():
            if not database.tables():
                if (len(proofs) < 2 and unreadable) or any(proof.generation for proof in proofs):
                    raise lost(folder, f"{DATABASE} is empty or missing", index)
                return
            name, generation = database.name(), database.number("generation")
        if main is not None and (main.gallery != name or main.generation > generation):
            raise database.damaged("its write-ahead log is another gallery's, or older")
    newer = any(proof.gallery == name and proof.generation > generation for proof in proofs)
    foreign = noted is not None and all(proof.gallery != name for proof in proofs)
    foreign_index = index is not None and index.rows and index.gallery != name
    for is_lost, what in (
        (
            newer,
            f"{DATABASE} is older than what was written last, so its write-ahead log was lost or damaged",
        ),
        (foreign, f"{DATABASE} is another gallery's"),
        (foreign_index, f"{DATABASE} or {NAME} is another gallery's"),
    ):
        if is_lost:
            raise lost(folder, what, index)


def _generation_in_main_file(folder: Path, timeout: float) -> LastGeneration | None:
    """That of the database without its log; None without a log, or where it is unreadable."""
    with contextlib.suppress(GalleryError):
        database = Database(folder, read_only=True, timeout=timeout, without_log=True)
        with contextlib.closing(database), database.translated():
            if database.has_log and "pictures" in database.tables():
                return LastGeneration(database.name(), database.number("generation"))
    return None


def _proof_files(folder: Path, noted: bool = True, index: bool = True) -> list[Path]:
    """The existing files of the noted generation and the index; a new gallery has none."""
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern))] if index else []
    path = last_generation_path(folder / DATABASE)
    return [*files, *([path] if noted and path.exists() else [])]


def lost(folder: Path, what: str, index: IndexManifest | None) -> GalleryDamagedError:
    """The error of a gallery that lost entries."""
    rows = f", and the index has {index.rows:,} rows" if index is not None else ""
    recover = ""
    if index is not None or ((folder / DATABASE).is_file() and (folder / DATABASE).stat().st_size):
        recover = (
            f", or write what is left into a new gallery: fmcnet gallery recover {folder} NEW --model MODEL"
        )
    files = " and ".join(map(str, _proof_files(folder)))
    return GalleryDamagedError(
        f"{folder} lost entries: {what}{rows}. Nothing was changed. Restore a backup (fmcnet gallery "
        f"restore){recover}. If this database is the one you want, delete {files}"
    )
