"""What the files of a damaged gallery still hold, as a new gallery."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.files import to_disk
from fmcnet.retrieval.columns import NONE, EntryColumns
from fmcnet.retrieval.faiss_index import Codes
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.index_files import BLOCK, IndexManifest, InvalidIndexError, block_crc
from fmcnet.retrieval.records import Entry, EntryBatch, from_micros
from fmcnet.retrieval.sqlite_connection import NAME, read_mark
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.types import FloatArray, Modality

CHUNK = 4096
LOST = "recovered-"
"""Begins the id of an entry whose own was lost."""


Rescued = tuple[Entry, FloatArray, "bytes | None"]
"""An entry, its (D,) embedding and its picture."""


@dataclass(frozen=True)
class Recovered:
    """What `recover` found.

    Attributes:
        entries: written to the new gallery. renamed: those whose id and source were lost; they are "recovered-N".
        damaged: rows that neither the index nor the database gives back.
    """

    entries: int
    renamed: int
    damaged: int


def recover(folder: str | Path, out: str | Path, model: str) -> Recovered:
    """Write what can be read of a damaged gallery into a new one: of the index, and of the database.

    The index holds embeddings, modality, identity, camera, track, tags and time. Ids, sources and pictures are in the
    database alone, and are taken from there as far as it goes. An entry whose deletion was lost with the database
    comes back.

    Args:
        folder: the damaged gallery; nothing in it is changed.
        out: the new gallery's folder.
        model: digest of the model that made the embeddings (`Encoder.digest`).

    Raises:
        GalleryDamagedError: when neither index nor database can be read.
        GalleryError: when `out` is not to be written to.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise GalleryError(f"{out} exists: name a new folder")
    damaged: set[int] = set()
    done: set[int] = set()
    gone: set[int] = set()
    renamed, dtype = 0, "float32"
    room = out.with_name(f"{out.name}.part")
    if room.exists():
        raise GalleryError(f"{room} is of a recovery that was ended: delete it")
    with contextlib.ExitStack() as stack:
        database = _database(folder, stack)
        reason = ""
        parts: list[Iterator[list[tuple[int, Rescued]]]] = []
        try:
            manifest = IndexManifest.read(folder)
            if database is not None and not _is_of(database, manifest):
                if (mark := read_mark(folder / NAME)) is not None and mark.gallery != manifest.gallery:
                    raise InvalidIndexError("it belongs to another gallery")
                database = None
            codes, columns = manifest.map(folder), manifest.load_columns(folder)
            dtype = manifest.dtype
            gone = _removed(database, manifest) | set(columns.seq[~columns.alive].tolist())
            parts.append(_of_index(manifest, codes, columns, database, damaged, gone))
        except InvalidIndexError as error:
            reason = str(error)
        if database is not None:
            with contextlib.suppress(GalleryError):
                dtype = database.dtype
                parts.append(_of_database(database, done, gone, damaged))
        if not parts:
            raise GalleryDamagedError(f"{folder}: its index cannot be read either: {reason}")
        gallery = stack.enter_context(
            Gallery(room, model=model, dtype="float16" if dtype == "float16" else "float32")
        )
        for rows in itertools.chain(*parts):
            done.update(seq for seq, _ in rows)
            renamed += sum(entry.id == f"{LOST}{seq}" for seq, (entry, _, _) in rows)
            _add(gallery, [rescued for _, rescued in rows], model)
        stack.close()  # the new gallery is whole, and nobody has it open
        room.rename(out)
    to_disk(out.parent)
    return Recovered(len(done), renamed, len(damaged - done))


def _is_of(database: Database, manifest: IndexManifest) -> bool:
    """Whether index and database are one gallery's; a name that cannot be read does not tell."""
    with contextlib.suppress(GalleryError), database.reading():
        return database.name() == manifest.gallery
    return True


def _removed(database: Database | None, manifest: IndexManifest) -> set[int]:
    """Rows that the database knows to be removed since the index was written."""
    if database is not None:
        with contextlib.suppress(GalleryError), database.reading():
            return {seq for seq, is_gone in database.noted(manifest.generation) if is_gone}
    return set()


def _add(gallery: Gallery, rows: list[Rescued], model: str) -> None:
    """As they are: an earlier version took ids and cameras that `Gallery.add` refuses."""
    if rows:
        entries, vectors, pictures = zip(*rows, strict=True)
        gallery._store.add(EntryBatch(entries, np.stack(vectors), pictures), model, "refuse")


def _database(folder: Path, stack: contextlib.ExitStack) -> Database | None:
    """The database, where it can be read."""
    with contextlib.suppress(GalleryError):
        database = Database(folder, read_only=True, timeout=1.0)
        stack.callback(database.close)
        with database.translated():
            if database.tables():
                return database
    return None


def _of_index(
    manifest: IndexManifest,
    codes: Codes,
    columns: EntryColumns,
    database: Database | None,
    damaged: set[int],
    gone: set[int],
) -> Iterator[list[tuple[int, Rescued]]]:
    """The rows whose embedding is intact, with what the database knows of them; the others into `damaged`."""
    blocks = [block_crc(codes, block) == crc for block, crc in enumerate(manifest.blocks)]
    alive = np.flatnonzero(columns.alive[: manifest.rows])
    right = np.repeat(blocks, BLOCK)[alive] & (codes[alive] != 0).any(axis=1)
    damaged.update(columns.seq[alive[~right]].tolist())
    rows = alive[right]
    rows = rows[~np.isin(columns.seq[rows], list(gone))]
    texts = {name: list(columns.numbers[name]) for name in columns.numbers}
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        known = {} if database is None else _readable(database, columns.seq[part].tolist(), set())
        rescued = []
        for row in part.tolist():
            seq = int(columns.seq[row])
            entry, vector, picture = known.get(seq) or (_entry(columns, texts, row, seq), None, None)
            if vector is not None and not np.array_equal(vector, codes[row].astype(np.float32)):
                entry, picture = _entry(columns, texts, row, seq), None  # not the row that was indexed
            rescued.append((seq, (entry, codes[row].astype(np.float32), picture)))
        yield rescued


def _of_database(
    database: Database, done: set[int], gone: set[int], damaged: set[int]
) -> Iterator[list[tuple[int, Rescued]]]:
    """The rows that are not in `done`; those that cannot be read into `damaged`."""
    seq = 0
    with contextlib.suppress(GalleryError):
        while True:
            with database.reading():
                found = database.run("SELECT seq FROM rows WHERE seq > ? ORDER BY seq LIMIT ?", (seq, CHUNK))
            seqs = [row[0] for row in found]
            if not seqs or max(seqs) <= seq:
                return
            seq = max(seqs)
            left = [one for one in seqs if one not in done and one not in gone]
            yield list(_readable(database, left, damaged).items())


def _readable(database: Database, seqs: list[int], damaged: set[int]) -> dict[int, Rescued]:
    """Those rows that the database still has whole; those of which it has a part into `damaged`."""
    found: dict[int, Rescued] = {}
    for seq in seqs:
        try:
            with database.reading():
                (entry, vector) = database.stored([seq])[seq]
        except GalleryError:
            damaged.add(seq)
            continue
        found[seq] = entry, vector, None
        with contextlib.suppress(GalleryError), database.reading():
            found[seq] = entry, vector, database.picture(seq)
    return found


def _entry(columns: EntryColumns, texts: dict[str, list[str]], row: int, seq: int) -> Entry:
    """An entry of the index's columns alone."""

    def text(name: str) -> str | None:
        number = int(cast(int, columns[name][row]))
        return None if number < 0 else texts[name][number]

    micros, tags = int(cast(int, columns["time"][row])), text("tags")
    return Entry(
        f"{LOST}{seq}",
        Modality.from_code(int(cast(int, columns["modality"][row]))),
        text("pid"),
        text("camera"),
        None if micros == NONE else from_micros(micros),
        None,
        text("track"),
        tuple(json.loads(tags)) if tags else (),
    )
