"""Pictures that are in two places, told by their content: trained on and tested, or twice in one dataset."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmcnet.data.table import Table
from fmcnet.types import NO_PID, IntArray


def sample_pictures(table: Table) -> tuple[str, ...]:
    """What names the first and the last picture of each identity, by path: size and CRC-32 of the file, sorted."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row in np.argsort(table.path, kind="stable").tolist():
        rows[int(table.pid[row])].append(row)
    chosen = {row for pid, mine in rows.items() if pid != NO_PID for row in (mine[0], mine[-1])}
    paths = table.full_paths()
    return tuple(sorted({_content(paths[row]) for row in chosen} - {""}))


def seen_identities(samples: tuple[str, ...], table: Table) -> IntArray:
    """Identities of a table that have one of `sample_pictures`, sorted; files of other sizes are not read."""
    known, sizes = set(samples), {sample.partition("-")[0] for sample in samples}
    found = {
        int(pid)
        for pid, path in zip(table.pid.tolist(), table.full_paths(), strict=True)
        if pid != NO_PID and str(_size(path)) in sizes and _content(path) in known
    }
    return np.array(sorted(found), dtype=np.int64)


def copy_notes(table: Table) -> Iterator[str]:
    """A sentence on pictures that are there more than once, under whatever names."""
    by_size: dict[int, list[int]] = defaultdict(list)
    paths = table.full_paths()
    for row, path in enumerate(paths):
        by_size[_size(path)].append(row)
    by_content: dict[str, list[int]] = defaultdict(list)
    for size, rows in by_size.items():
        for row in rows if size > 0 and len(rows) > 1 else ():
            by_content[_content(paths[row])].append(row)
    by_content.pop("", None)
    copies = [rows for rows in by_content.values() if len(rows) > 1]
    if not copies:
        return
    columns = (table.pid, table.modality, table.split)
    apart = [rows for rows in copies if any(len(np.unique(column[rows])) > 1 for column in columns)]
    first, second = ((apart or copies)[0])[:2]
    how = f", {len(apart)} under another identity, modality or split" if apart else ""
    yield (
        f"pictures that are there more than once: {len(copies)}{how} (the first: {table.path[first]} and "
        f"{table.path[second]}): a copy among queries and gallery, or train and test, makes figures too good"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _content(path: Path) -> str:
    """ "SIZE-CRC" of a file; "" where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return f"{len(data)}-{zlib.crc32(data):08x}"
