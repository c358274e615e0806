"""What the index of a gallery still knows when its database was lost, as a new gallery."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from fmcnet.errors import GalleryDamagedError, GalleryError
from fmcnet.retrieval.columns import NONE, EntryColumns
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.index_files import BLOCK, DoubtError, Manifest, block_is_intact
from fmcnet.retrieval.records import Entry, as_modality, from_micros
from fmcnet.retrieval.sqlite_database import Database
from fmcnet.types import Modality

CHUNK = 4096


@dataclass(frozen=True)
class Recovered:
    """What `recover` found.

    Attributes:
        entries: written to the new gallery. renamed: those whose id and source were lost; they are "recovered-N".
        damaged: rows whose embedding is damaged, and left out.
    """

    entries: int
    renamed: int
    damaged: int


def recover(folder: str | Path, out: str | Path, model: str) -> Recovered:
    """Write what can be read of a damaged gallery into a new one.

    The index holds embeddings, modality, identity, camera, track, tags and time. Ids, sources and pictures are in the
    database alone, and are taken from there as far as it goes. An entry whose deletion was lost with the database
    comes back.

    Args:
        folder: the damaged gallery; nothing in it is changed.
        out: the new gallery's folder.
        model: digest of the model that made the embeddings (`Encoder.digest`).

    Raises:
        GalleryDamagedError: when the index cannot be read either.
        GalleryError: when `out` is not to be written to.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise GalleryError(f"{out} exists: name a new folder")
    try:
        manifest = Manifest.read(folder)
        codes = manifest.map(folder)
        columns = EntryColumns.load(folder / manifest.columns)
    except (DoubtError, OSError, ValueError, KeyError) as error:
        raise GalleryDamagedError(f"{folder}: its index cannot be read either: {error}") from error
    intact = np.repeat(
        [block_is_intact(codes, block, crc) for block, crc in enumerate(manifest.blocks)], BLOCK
    )
    alive = np.flatnonzero(columns.alive[: manifest.rows])
    rows = alive[intact[alive] & (codes[alive] != 0).any(axis=1)]
    texts = {name: list(columns.numbers[name]) for name in columns.numbers}
    renamed = 0
    with Gallery(out, model=model, dtype="float16" if manifest.dtype == "float16" else "float32") as gallery:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            known = _known(folder, columns.seq[part].tolist())
            entries, pictures = [], []
            for row in part.tolist():
                seq = int(columns.seq[row])
                if seq not in known:
                    renamed += 1
                entry, picture = known.get(seq) or (_entry(columns, texts, row, seq), None)
                entries.append(entry)
                pictures.append(picture)
            gallery.add(
                np.asarray(codes[part], dtype=np.float32),
                ids=[entry.id for entry in entries],
                modality=[entry.modality for entry in entries],
                pid=[entry.pid for entry in entries],
                camera=[entry.camera for entry in entries],
                time=[entry.time for entry in entries],
                source=[entry.source for entry in entries],
                track=[entry.track for entry in entries],
                tags=[list(entry.tags) for entry in entries],
                pictures=pictures,
            )
    return Recovered(len(rows), renamed, len(alive) - len(rows))


def _known(folder: Path, seqs: list[int]) -> dict[int, tuple[Entry, bytes | None]]:
    """The entries of these rows that the database still has, and their pictures."""
    with contextlib.suppress(GalleryError):
        database = Database(folder, read_only=True, timeout=1.0)
        try:
            with database.reading():
                if database.has_tables():
                    stored = database.stored(seqs).items()
                    return {seq: (entry, database.picture(seq)) for seq, (entry, _) in stored}
        finally:
            database.close()
    return {}


def _entry(columns: EntryColumns, texts: dict[str, list[str]], row: int, seq: int) -> Entry:
    """An entry of the index's columns alone."""

    def text(name: str) -> str | None:
        number = int(cast(int, columns[name][row]))
        return None if number < 0 else texts[name][number]

    micros, tags = int(cast(int, columns["time"][row])), text("tags")
    return Entry(
        f"recovered-{seq}",
        as_modality(str(Modality.from_code(int(cast(int, columns["modality"][row]))))),
        text("pid"),
        text("camera"),
        None if micros == NONE else from_micros(micros),
        None,
        text("track"),
        tuple(json.loads(tags)) if tags else (),
    )
