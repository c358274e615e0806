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
    """What names the first and the last picture of each identity, by path: size and CRC-32 of the file, sorted.

    A picture of two identities, as a black one, names nobody and is left out.
    """
    order = np.argsort(table.path, kind="stable").tolist()
    first = {int(table.pid[row]): row for row in reversed(order)}
    last = {int(table.pid[row]): row for row in order}
    owners = defaultdict[str, set[int]](set)
    for pid, row in {*first.items(), *last.items()}:
        if pid != NO_PID:
            owners[_content(table.full_path(row))].add(pid)
    return tuple(sorted(one for one, pids in owners.items() if one and len(pids) == 1))


def seen_identities(samples: tuple[str, ...], table: Table) -> IntArray:
    """Identities of a table that have one of `sample_pictures`, sorted; files of other sizes are not read.

    A picture of several identities of the table says nothing about them.
    """
    if not samples:
        return np.empty(0, np.int64)
    sizes = {sample.partition("-")[0] for sample in samples}
    owners = defaultdict[str, set[int]](set)
    for pid, path in zip(table.pid.tolist(), table.full_paths(), strict=True):
        if pid != NO_PID and str(_size(path)) in sizes:
            owners[_content(path)].add(pid)
    alone = [owners[sample] for sample in samples if len(owners.get(sample, ())) == 1]
    return np.array(sorted(set[int]().union(*alone)), dtype=np.int64)


def copy_notes(table: Table) -> Iterator[str]:
    """A sentence on pictures that are there more than once, under whatever names."""
    by_size = defaultdict[int, list[int]](list)
    paths = table.full_paths()
    for row, path in enumerate(paths):
        by_size[_size(path)].append(row)
    by_content = defaultdict[str, list[int]](list)
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
