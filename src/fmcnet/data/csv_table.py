"""One's own data: a CSV with a row per image. Cameras, splits, roles and times are optional."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmcnet.data.listing import number_of
from fmcnet.data.reading.lists import read_text
from fmcnet.data.reading.rules import settle
from fmcnet.data.table import SPLITS, Record, Table
from fmcnet.errors import DataError
from fmcnet.types import NO_CAMERA, Modality

REQUIRED = ("path", "pid", "modality")
OPTIONAL = ("camid", "split", "role", "time")
MAX_FAULTS = 20

MODALITIES = {
    **dict.fromkeys(("visible", "vis", "v", "rgb", "color", "colour", "0"), Modality.VISIBLE),
    **dict.fromkeys(("infrared", "ir", "i", "nir", "thermal", "lwir", "1"), Modality.INFRARED),
}
_SPLITS = {
    **{name: name for name in SPLITS},
    "training": "train",
    "validation": "val",
    "valid": "val",
    "testing": "test",
}
_ROLES = {"": "", "both": "", "query": "query", "probe": "query", "gallery": "gallery"}
_CAMERA = re.compile(r"(?:cam(?:era)?|c)?[ _]?([0-9]+)", re.IGNORECASE)

EXPECTED = """
    path,pid,modality,camid,split       camid, split, role (query, gallery) and time may be absent
    images/a1.jpg,anna,visible,1,train
    images/a2.jpg,anna,infrared,2,train
"""


class _Row(NamedTuple):
    """A row as read, before identities are numbered."""

    path: str
    pid: str
    modality: Modality
    camid: int
    split: str
    role: str
    time: str


def read_csv(file: str | Path, *, test_share: float = 0.3) -> Table:
    """The table of a CSV file with the columns path, pid, modality and, if wanted, camid, split, role, time.

    - Paths are relative to the CSV's folder, or absolute.
    - `pid` is any text: numbers stay as they are, names are numbered in sorted order (`Table.pid_names`).
    - `modality`: visible, vis, rgb; infrared, ir, nir, thermal.
    - Without a `split` column, `test_share` of the identities (those with the smallest SHA-256 of their name,
      so the choice depends on nothing else) go to test, the rest to train; a note says so.
    - Comma, semicolon or tab; UTF-8 or UTF-16, with or without byte-order mark; any line ending.

    Raises:
        DataError: lists all faults with their line numbers (the first 20 in full).
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise DataError(f"{file} does not exist or is no file: give a CSV like{EXPECTED}")
    rows, faults = _parse(file)
    if faults:
        more = f"\n  ... and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise DataError(f"{file} has {count}:\n  " + "\n  ".join(faults[:MAX_FAULTS]) + more)
    if not rows:
        raise DataError(f"{file} has no row below its header: give a CSV like{EXPECTED}")
    names, numbers = _number(sorted({row.pid for row in rows}))
    notes: list[str] = []
    if not any(row.split for row in rows):
        rows, note = _hold_out(rows, test_share)
        notes.append(note)
    records = [Record(r.path, numbers[r.pid], r.modality, r.camid, r.split, r.role, r.time) for r in rows]
    called = {number: name for name, number in numbers.items()}
    records, settled = settle(records, str(file), name=lambda pid: called[pid], required=())
    return Table.from_records("csv", file.parent, records, pid_names=names, notes=[*notes, *settled])


def write_csv(table: Table, file: str | Path) -> Path:
    """Write a table as a CSV that `read_csv` reads back as the same rows, and return its path.

    Paths are written relative to the CSV's folder where the images lie below it, absolute otherwise.
    """
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    base = file.parent.resolve()
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*REQUIRED, *OPTIONAL))
        for row, full in enumerate(table.full_paths()):
            absolute = full if full.is_absolute() else Path.cwd() / full
            resolved = absolute.parent.resolve() / absolute.name
            path = resolved.relative_to(base) if resolved.is_relative_to(base) else absolute
            camid = int(table.camid[row])
            writer.writerow(
                (
                    path.as_posix(),
                    table.pid_name(int(table.pid[row])),
                    Modality.from_code(int(table.modality[row])),
                    "" if camid == NO_CAMERA else camid,
                    table.split[row],
                    table.role[row],
                    table.time[row],
                )
            )
    return file


def _parse(file: Path) -> tuple[list[_Row], list[str]]:
    """Rows and faults ("line 7: ..."), all of them."""
    text = read_text(file)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(text.split("\n"), delimiter=separator, strict=True)
    rows: list[_Row] = []
    faults: list[str] = []
    first_line: dict[str, int] = {}
    columns: list[str] = []
    listed: dict[Path, set[str]] = {}
    try:
        for cells in reader:
            line = reader.line_num
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = [cell.lower() for cell in cells]
                fault = _header_fault(columns)
                if fault:
                    return [], [f"line {line}: {fault}"]
                continue
            if len(cells) != len(columns):
                faults.append(f"line {line}: {len(cells)} values for {len(columns)} columns")
                continue
            row, wrong = _row(dict(zip(columns, cells, strict=True)), file.parent, listed)
            if row.path in first_line and row.path:
                wrong.append(f"path '{row.path}' stands in line {first_line[row.path]} already")
            first_line.setdefault(row.path, line)
            faults += [f"line {line}: {what}" for what in wrong]
            rows.append(row)
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: {error}")
    if any(row.split for row in rows):
        blank = [row for row in rows if not row.split]
        if blank:
            faults.append(f"{len(blank)} rows have no split, the first is {blank[0].path}: give all or none")
    return rows, faults


def _header_fault(columns: list[str]) -> str:
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        header = ", ".join(columns)
        return f"no column {', '.join(missing)} in the header ({header}); expected{EXPECTED.rstrip()}"
    twice = sorted({name for name in columns if columns.count(name) > 1})
    return f"the column {', '.join(twice)} stands twice in the header" if twice else ""


def _row(cells: dict[str, str], base: Path, listed: dict[Path, set[str]]) -> tuple[_Row, list[str]]:
    """One row, and what is wrong with it."""
    wrong: list[str] = []
    path = cells["path"]
    if not path:
        wrong.append("path is empty")
    else:
        if not _exists(base / path, listed) and "\\" in path:
            path = path.replace("\\", "/")
        if not _exists(base / path, listed):
            wrong.append(f"there is no file '{path}' (looked for {base / path})")
        elif Path(path).is_absolute() and Path(path).is_relative_to(base):
            path = Path(path).relative_to(base).as_posix()
    if not cells["pid"]:
        wrong.append("pid is empty")
    elif cells["pid"].isascii() and cells["pid"].isdigit() and number_of(cells["pid"]) is None:
        wrong.append(f"pid '{cells['pid'][:40]}' is too large: numbers go up to {2**63 - 1}")
    modality = MODALITIES.get(cells["modality"].lower())
    if modality is None:
        wrong.append(
            f"modality '{cells['modality']}' is neither visible (vis, rgb) nor infrared (ir, nir, thermal)"
        )
    camera = cells.get("camid", "")
    match = _CAMERA.fullmatch(camera)
    number = number_of(match[1]) if match else None
    if match and number is None:
        wrong.append(f"camid '{camera[:40]}' is too large: numbers go up to {2**63 - 1}")
    elif match is None and camera not in ("", str(NO_CAMERA)):
        wrong.append(f"camid '{camera[:40]}' is not a whole number (leave it empty where unknown)")
    split = cells.get("split", "").lower()
    if split and split not in _SPLITS:
        wrong.append(f"split '{split}' is none of {', '.join(SPLITS)}")
    role = cells.get("role", "").lower()
    if role not in _ROLES:
        wrong.append(f"role '{role}' is neither query nor gallery (leave it empty for both)")
    row = _Row(
        path=path,
        pid=cells["pid"],
        modality=modality or Modality.VISIBLE,
        camid=NO_CAMERA if number is None else number,
        split=_SPLITS.get(split, split),
        role=_ROLES.get(role, ""),
        time=cells.get("time", ""),
    )
    return row, wrong


def _exists(path: Path, listed: dict[Path, set[str]]) -> bool:
    """Whether a file exists, each folder listed once."""
    folder = path.parent
    if folder not in listed:
        listed[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return path.name in listed[folder]


def _number(names: list[str]) -> tuple[Sequence[str], dict[str, int]]:
    """Names by number (empty where the names are numbers already), and number by name."""
    if all(str(number_of(name)) == name for name in names):
        return (), {name: int(name) for name in names}
    return names, {name: number for number, name in enumerate(names)}


def _hold_out(rows: list[_Row], share: float) -> tuple[list[_Row], str]:
    """Give every row a split, a share of the identities going to test; and the note that says so."""
    modalities: dict[str, set[Modality]] = {}
    for row in rows:
        modalities.setdefault(row.pid, set()).add(row.modality)
    complete = [pid for pid, seen in modalities.items() if len(seen) == 2]
    order = sorted(complete, key=lambda pid: hashlib.sha256(pid.encode()).hexdigest())
    count = min(max(1, round(share * len(order))), len(order) - 1) if len(order) > 1 and share > 0 else 0
    held = set(order[:count])
    rows = [row._replace(split="test" if row.pid in held else "train") for row in rows]
    return rows, (
        f"no split column: {count} of {len(modalities)} identities are held out for test "
        "(by the hash of their name, the same ones each time)"
    )
