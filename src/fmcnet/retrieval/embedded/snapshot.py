"""The index's files, derived from the database: embeddings, columns, graph, and a manifest that vouches for them.

The manifest is replaced as the last step of every change and holds a checksum of everything else, the gallery's name
and the database's generation: files that do not fit it are not used. The embeddings' file only grows; removed rows
are overwritten by zeros in place. Other files get a new name each time, so readers of the old ones are not disturbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.files import remove_left, to_disk, write_atomically
from fmcnet.retrieval.embedded.columns import Columns
from fmcnet.retrieval.embedded.graph import Graph
from fmcnet.retrieval.embedded.nearest import Codes
from fmcnet.types import IntArray

NAME = "index.json"
FORMAT = 2
BLOCK = 512
"""Rows with one checksum."""
ALWAYS_CHECKED = 256 * 2**20
"""Bytes of a file up to which it is read and checked at every opening; a larger one is when its time of change is not
the one in the manifest, and by `check`."""


class DoubtError(Exception):
    """The files cannot be vouched for; the text says why. They are made anew from the database."""


@dataclass
class Snapshot:
    """What the manifest says.

    Attributes:
        gallery: name of the database it belongs to. generation: of the database, up to which it is complete.
        rows: of the embeddings' file `vectors`. blocks: their CRC-32, `BLOCK` rows each. stamps: files' times of
            change, ns.
    """

    gallery: str
    generation: int
    dimension: int
    dtype: str
    vectors: str
    rows: int = 0
    blocks: list[int] = field(default_factory=list)
    columns: str = ""
    columns_crc: int = 0
    graph: str | None = None
    graph_crc: int = 0
    stamps: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    @staticmethod
    def new(gallery: str, generation: int, dimension: int, dtype: str) -> Snapshot:
        """One of no rows, with a file name of its own."""
        return Snapshot(gallery, generation, dimension, dtype, f"vectors-{_token()}.bin")

    @property
    def row_bytes(self) -> int:
        """Bytes of one embedding."""
        return self.dimension * np.dtype(self.dtype).itemsize

    # ---- reading ----

    @staticmethod
    def read(folder: Path) -> Snapshot:
        """The manifest of a folder.

        Raises:
            DoubtError: when there is none, or it is damaged.
        """
        try:
            outer = json.loads((folder / NAME).read_text(encoding="utf-8"))
            if zlib.crc32(outer["body"].encode()) != outer["crc"]:
                raise DoubtError(f"{NAME} is damaged (its checksum differs)")
            body = json.loads(outer["body"])
            if body["format"] != FORMAT:
                raise DoubtError(f"{NAME} has another format")
            return Snapshot(**body)
        except FileNotFoundError as error:
            raise DoubtError(f"there is no {NAME}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DoubtError(f"{NAME} is damaged") from error

    def load_columns(self, folder: Path) -> Columns:
        """The columns.

        Raises:
            DoubtError: when they are not there or damaged.
        """
        try:
            if _crc(folder / self.columns) != self.columns_crc:
                raise DoubtError(f"{self.columns} is damaged (its checksum differs)")
            columns = Columns.load(folder / self.columns)
        except OSError as error:
            raise DoubtError(f"{self.columns} cannot be read ({error.strerror})") from error
        if len(columns) != self.rows:
            raise DoubtError(f"{self.columns} has {len(columns)} rows, not {self.rows}")
        return columns

    def map(self, folder: Path) -> Codes:
        """(rows, D) embeddings, mapped; what is written into the array stays in memory.

        Raises:
            DoubtError: when the file is not there or too short.
        """
        kind = np.dtype(self.dtype)
        if not self.rows:
            return np.empty((0, self.dimension), kind)
        try:
            return np.memmap(folder / self.vectors, kind, "c", shape=(self.rows, self.dimension))
        except (OSError, ValueError) as error:
            raise DoubtError(f"{self.vectors} is missing or too short") from error

    def bad_blocks(self, folder: Path, codes: Codes, *, full: bool = False) -> list[int]:
        """Blocks whose checksum differs; a large file is trusted when nothing wrote to it, unless `full`."""
        if not full and codes.nbytes > ALWAYS_CHECKED and self._untouched(folder, self.vectors):
            return []
        return [b for b, crc in enumerate(self.blocks) if _block_crc(codes, b) != crc]

    def load_graph(self, folder: Path, *, full: bool = False) -> Graph | None:
        """The graph, or None when there is none.

        Raises:
            DoubtError: when it should be there, but is not, or is damaged.
        """
        if self.graph is None:
            return None
        path = folder / self.graph
        try:
            large = path.stat().st_size > ALWAYS_CHECKED and self._untouched(folder, self.graph)
            if (full or not large) and _crc(path) != self.graph_crc:
                raise DoubtError(f"{self.graph} is damaged (its checksum differs)")
            graph = Graph.load(path)
        except (OSError, RuntimeError) as error:
            raise DoubtError(f"{self.graph} cannot be read") from error
        if graph.rows > self.rows:
            raise DoubtError(f"{self.graph} covers {graph.rows} rows of {self.rows}")
        return graph

    def _untouched(self, folder: Path, name: str) -> bool:
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_mtime_ns == self.stamps.get(name)
        return False

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
        path = folder / self.vectors
        with path.open("ab") as stream:
            for start in range(0, len(codes), 8192):
                stream.write(np.ascontiguousarray(codes[start : start + 8192]).tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        first = self.rows // BLOCK
        self.rows += len(codes)
        whole = self.map(folder)
        del self.blocks[first:]
        self.blocks += [_block_crc(whole, b) for b in range(first, -(-self.rows // BLOCK))]

    def overwrite(self, folder: Path, positions: IntArray, codes: Codes) -> None:
        """Put rows in place of others: zeros for removed ones, the right ones for damaged ones."""
        if not len(positions):
            return
        with (folder / self.vectors).open("r+b") as stream:
            for position, row in zip(positions.tolist(), codes, strict=True):
                stream.seek(position * self.row_bytes)
                stream.write(row.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        whole = self.map(folder)
        for b in np.unique(positions // BLOCK).tolist():
            self.blocks[b] = _block_crc(whole, b)

    def put_graph(self, folder: Path, graph: Graph | None) -> None:
        """Write the graph to a file of its own."""
        self.graph = None
        if graph is not None:
            name = f"graph-{_token()}.faiss"
            write_atomically(folder / name, graph.save)
            self.graph, self.graph_crc = name, _crc(folder / name)

    def commit(self, folder: Path, columns: Columns, generation: int) -> None:
        """Write columns and manifest, then remove the files that it no longer names."""
        self.generation = generation
        self.columns = f"columns-{_token()}.npz"
        write_atomically(folder / self.columns, lambda path: columns.save(path, self.rows))
        self.columns_crc = _crc(folder / self.columns)
        names = [name for name in (self.vectors, self.graph) if name and (folder / name).exists()]
        self.stamps = {name: (folder / name).stat().st_mtime_ns for name in names}
        body = json.dumps(asdict(self))
        text = json.dumps({"crc": zlib.crc32(body.encode()), "body": body})
        write_atomically(folder / NAME, lambda path: path.write_text(text, encoding="utf-8"))
        discard(folder, {self.vectors, self.columns, self.graph})


def discard(folder: Path, keep: set[Any] | frozenset[Any] = frozenset()) -> None:
    """Remove the index's files, all but those named, and what killed writers left half-made."""
    if not keep:
        (folder / NAME).unlink(missing_ok=True)
    remove_left(folder)
    for pattern in ("vectors-*.bin", "columns-*.npz", "graph-*.faiss"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink(missing_ok=True)


def _token() -> str:
    return uuid.uuid4().hex[:12]


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while part := stream.read(2**22):
            crc = zlib.crc32(part, crc)
    return crc


def _block_crc(codes: Codes, block: int) -> int:
    rows = np.ascontiguousarray(codes[block * BLOCK : (block + 1) * BLOCK])
    return zlib.crc32(rows.data.cast("B"))
