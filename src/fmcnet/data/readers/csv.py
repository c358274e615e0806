"""One's own data: a CSV with a row per image. Cameras, splits, roles and times are optional."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from fmcnet.data.listing import number_of
from fmcnet.data.readers.lists import read_text
from fmcnet.data.readers.rules import settle
from fmcnet.data.spelling import near_cameras, nearest
from fmcnet.data.table import SPLITS, Record, Table
from fmcnet.errors import DataError
from fmcnet.types import NO_CAMERA, NO_PID, Modality

REQUIRED = ("path", "pid", "modality")
OPTIONAL = ("camid", "split", "role", "time")
TEXTS = ("camera", "track", "tags", "source")
"""Further optional columns, which a gallery keeps."""
COLUMNS = (*REQUIRED, *OPTIONAL, *TEXTS, "date")
ALIASES = {
    **dict.fromkeys(("timestamp", "datetime", "date_time", "time_stamp"), "time"),
    **dict.fromkeys(("cam", "cam_id", "camera_id", "camera_name"), "camera"),
    **dict.fromkeys(("track_id", "trackid", "tracklet"), "track"),
    "tag": "tags",
}
"""Other names of columns, where the column itself is not there."""
_HINTS = {
    **dict.fromkeys(("file", "filename", "image", "picture", "img"), "path"),
    **dict.fromkeys(("identity", "person", "person_id", "id", "label", "name"), "pid"),
    **dict.fromkeys(("spectrum", "sensor", "type"), "modality"),
    **dict.fromkeys(("set", "subset", "fold"), "split"),
    **dict.fromkeys(("when", "seen", "captured", "recorded"), "time"),
    **dict.fromkeys(("where", "place", "location", "site"), "camera"),
    **dict.fromkeys(("url", "uri", "origin"), "source"),
    **dict.fromkeys(("labels", "keywords"), "tags"),
}
MAX_FAULTS = 20
HELD_OUT = "no split column"
"""How the note begins that says which identities are the test set."""

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
    camera: str
    track: str
    tags: str
    source: str


class _Needs(NamedTuple):
    """What a row must say."""

    columns: tuple[str, ...]
    modality: Modality | None
    splits: bool


def read_csv(
    file: str | Path, *, test_share: float = 0.3, training: bool = True, modality: Modality | None = None
) -> Table:
    """The table of a CSV file with the columns path, pid, modality and, if wanted, `OPTIONAL` and `TEXTS`.

    - Paths are relative to the CSV's folder, or absolute.
    - `pid` is any text: numbers stay as they are, names are numbered in sorted order (`Table.pid_names`).
    - `modality`: visible, vis, rgb; infrared, ir, nir, thermal.
    - Without a `split` column, `test_share` of the identities (those with the smallest SHA-256 of their name,
      so the choice depends on nothing else) go to test, the rest to train; a note says so.
    - `camera` is any text; without a `camid` column cameras are numbered: by their number ("cam3" is 3) where all
      have one that no other has, else in sorted order.
    - Beside a column `date`, `time` may be a time of day. `tags` stand between semicolons.
    - A column of another name is not read, and a note says so; some are read by another name (`ALIASES`).
    - An image stands in one row: other spellings of its path, and links, are the same image.
    - `training=False`: images to search, not to learn from. `pid` may be absent or empty; `modality` is that of rows
      which say none; every row stays.
    - Comma, semicolon or tab; UTF-8 or UTF-16, with or without byte-order mark; any line ending.

    Raises:
        DataError: lists all faults with their line numbers (the first 20 in full).
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise DataError(f"{file} does not exist or is no file: give a CSV like{EXPECTED}")
    needs = (
        _Needs(REQUIRED, None, True)
        if training
        else _Needs(("path", "modality") if modality is None else ("path",), modality, False)
    )
    rows, faults, notes = _parse(file, needs)
    if faults:
        more = f"\n  ... and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise DataError(f"{file} has {count}:\n  " + "\n  ".join(faults[:MAX_FAULTS]) + more)
    if not rows:
        raise DataError(f"{file} has no row below its header: give a CSV like{EXPECTED}")
    names, numbers = _number(sorted({row.pid for row in rows if row.pid}))
    numbers[""] = NO_PID
    if not any(row.split for row in rows):
        rows, note = _hold_out(rows, test_share)
        notes.append(note)
    rows = _number_cameras(rows)
    notes += near_cameras({row.camera for row in rows if row.camera})
    records = [Record(row.path, numbers[row.pid], *row[2:]) for row in rows]
    called = {number: name for name, number in numbers.items()}
    records, settled = settle(
        records, str(file), name=lambda pid: called[pid], required=(), training=training
    )
    return Table.from_records("csv", file.parent, records, pid_names=names, notes=[*notes, *settled])


def write_csv(table: Table, file: str | Path) -> Path:
    """Write a table as a CSV that `read_csv` reads back as the same rows, and return its path.

    Paths are written relative to the CSV's folder where the images lie below it, absolute otherwise.
    """
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    base = file.parent.resolve()
    texts = [name for name in TEXTS if any(getattr(table, name))]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*REQUIRED, *OPTIONAL, *texts))
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
                    *(getattr(table, name)[row] for name in texts),
                )
            )
    return file


def _parse(file: Path, needs: _Needs) -> tuple[list[_Row], list[str], list[str]]:
    """Rows, faults ("line 7: ..."), all of them, and notes."""
    text = read_text(file)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(text.split("\n"), delimiter=separator, strict=True)
    rows: list[_Row] = []
    faults: list[str] = []
    notes: list[str] = []
    first_line: dict[Hashable, tuple[int, str]] = {}
    columns: list[str] = []
    folders = _Folders()
    try:
        for cells in reader:
            line = reader.line_num
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns, notes = _known([cell.lower() for cell in cells])
                fault = _header_fault(columns, needs)
                if fault:
                    return [], [f"line {line}: {fault}"], []
                continue
            if len(cells) != len(columns):
                faults.append(f"line {line}: {len(cells)} values for {len(columns)} columns")
                continue
            row, wrong = _row(dict(zip(columns, cells, strict=True)), file.parent, folders, needs)
            first, spelt = first_line.setdefault(folders.same(file.parent / row.path), (line, row.path))
            if first != line and row.path == spelt:
                wrong.append(f"path '{row.path}' stands in line {first} already")
            elif first != line and row.path:
                wrong.append(f"path '{row.path}' is the image '{spelt}' of line {first}: name an image once")
            faults += [f"line {line}: {what}" for what in wrong]
            rows.append(row)
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: {error}")
    if needs.splits and any(row.split for row in rows):
        blank = [row for row in rows if not row.split]
        if blank:
            faults.append(f"{len(blank)} rows have no split, the first is {blank[0].path}: give all or none")
    return rows, faults, notes


def _known(columns: list[str]) -> tuple[list[str], list[str]]:
    """The header with columns by their own names, and notes of those read by another name, or not at all."""
    read: list[str] = []
    notes: list[str] = []
    for name in columns:
        own = ALIASES.get(name, name)
        if own != name and own not in columns and own not in read:
            notes.append(f"the column '{name}' is read as '{own}'")
            read.append(own)
            continue
        read.append(name)
        if name in COLUMNS or not name:
            continue
        near = own if own != name else _HINTS.get(name) or nearest(name, COLUMNS)
        if near in columns or near in read:
            notes.append(f"the column '{name}' is not read; '{near}' is")
        elif near is not None:
            notes.append(f"the column '{name}' is not read: did you mean '{near}'?")
        else:
            notes.append(f"the column '{name}' is not read; those that are: {', '.join(COLUMNS)}")
    return read, notes


def _header_fault(columns: list[str], needs: _Needs) -> str:
    missing = [name for name in needs.columns if name not in columns]
    if missing == ["modality"] and not needs.splits:
        header = ", ".join(columns)
        return f"no column modality in the header ({header}): add it, or say --modality visible or infrared"
    if missing:
        header = ", ".join(columns)
        return f"no column {', '.join(missing)} in the header ({header}); expected{EXPECTED.rstrip()}"
    twice = sorted({name for name in columns if columns.count(name) > 1})
    return f"the column {', '.join(twice)} stands twice in the header" if twice else ""


def _row(cells: dict[str, str], base: Path, folders: _Folders, needs: _Needs) -> tuple[_Row, list[str]]:
    """One row, and what is wrong with it."""
    wrong: list[str] = []
    path = cells["path"]
    if not path:
        wrong.append("path is empty")
    else:
        if not folders.has(base / path) and "\\" in path:
            path = path.replace("\\", "/")
        if not folders.has(base / path):
            wrong.append(f"there is no file '{path}' (looked for {base / path})")
        elif Path(path).is_absolute() and Path(path).is_relative_to(base):
            path = Path(path).relative_to(base).as_posix()
        path = Path(path).as_posix()  # ./a.jpg is a.jpg
    pid = cells.get("pid", "")
    if not pid and "pid" in needs.columns:
        wrong.append("pid is empty")
    elif pid.isascii() and pid.isdigit() and number_of(pid) is None:
        wrong.append(f"pid '{pid[:40]}' is too large: numbers go up to {2**63 - 1}")
    modality = MODALITIES.get(cells.get("modality", "").lower())
    if modality is None and not cells.get("modality"):
        modality = needs.modality
    if modality is None:
        wrong.append(
            f"modality '{cells['modality']}' is neither visible (vis, rgb) nor infrared (ir, nir, thermal)"
        )
    camid = cells.get("camid", "")
    match = _CAMERA.fullmatch(camid)
    number = number_of(match[1]) if match else None
    if match and number is None:
        wrong.append(f"camid '{camid[:40]}' is too large: numbers go up to {2**63 - 1}")
    elif match is None and camid not in ("", str(NO_CAMERA)):
        wrong.append(
            f"camid '{camid[:40]}' is not a whole number (leave it empty where unknown; names stand in a column "
            "camera)"
        )
    split = cells.get("split", "").lower()
    if split and split not in _SPLITS:
        wrong.append(f"split '{split}' is none of {', '.join(SPLITS)}")
    role = cells.get("role", "").lower()
    if role not in _ROLES:
        wrong.append(f"role '{role}' is neither query nor gallery (leave it empty for both)")
    row = _Row(
        path=path,
        pid=pid,
        modality=modality or Modality.VISIBLE,
        camid=NO_CAMERA if number is None else number,
        split=_SPLITS.get(split, split),
        role=_ROLES.get(role, ""),
        time=_time(cells.get("date", ""), cells.get("time", "")),
        **{name: cells.get(name, "") for name in TEXTS},
    )
    return row, wrong


def _time(date: str, time: str) -> str:
    """A time, with the date where that stands in a column of its own."""
    if date and re.match(r"\d{1,2}:\d\d", time):
        return f"{date}T{time if time[2] == ':' else '0' + time}"
    return time or date


class _Folders:
    """Folders as they are looked into, each listed once: what is there, and which file a path is."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, tuple[int, int] | None]] = {}

    def _list(self, folder: Path) -> dict[str, tuple[int, int] | None]:
        """Device and inode by name; None where the file itself must be asked, as for a link."""
        if folder not in self._listed:
            found: dict[str, tuple[int, int] | None] = {}
            if folder.is_dir():
                device = folder.stat().st_dev
                with os.scandir(folder) as entries:
                    for entry in entries:
                        found[entry.name] = None if entry.is_symlink() else (device, entry.inode())
            self._listed[folder] = found
        return self._listed[folder]

    def has(self, path: Path) -> bool:
        """Whether a file exists."""
        return path.name in self._list(path.parent)

    def same(self, path: Path) -> Hashable:
        """What all spellings of a file's path share."""
        found = self._list(path.parent).get(path.name)
        if found is None:
            try:
                at = path.stat()
            except OSError:
                return path.as_posix()
            found = (at.st_dev, at.st_ino)
        return found


def _number_cameras(rows: list[_Row]) -> list[_Row]:
    """Named cameras as numbers too, where no row has a number."""
    names = sorted({row.camera for row in rows if row.camera})
    if not names or any(row.camid != NO_CAMERA for row in rows):
        return rows
    found = {name: int(match[1]) for name in names if (match := _CAMERA.fullmatch(name))}
    if len(found) < len(names) or len(set(found.values())) < len(names):
        found = {name: number for number, name in enumerate(names, 1)}
    return [row._replace(camid=found.get(row.camera, NO_CAMERA)) for row in rows]


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
    complete = [pid for pid, seen in modalities.items() if pid and len(seen) == 2]
    order = sorted(complete, key=lambda pid: hashlib.sha256(pid.encode()).hexdigest())
    count = min(max(1, round(share * len(order))), len(order) - 1) if len(order) > 1 and share > 0 else 0
    held = set(order[:count])
    rows = [row._replace(split="test" if row.pid in held else "train") for row in rows]
    return rows, (
        f"{HELD_OUT}: {count} of {len(modalities)} identities are held out for test "
        "(by the hash of their name, the same ones each time)"
    )
