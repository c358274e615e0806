"""Your own data: a CSV with a row per image. Cameras, splits, roles and times are optional."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmcnet.data.listing import near_file
from fmcnet.data.pixels import parse_range
from fmcnet.data.readers.common import check_splits, number_of, read_lines
from fmcnet.data.table import ROLE_WORDS, SPLIT_WORDS, SPLITS, Record, Table
from fmcnet.errors import LISTED, MOST_FAULTS, DataError, FmcnetError, first_of, refuse_faults
from fmcnet.files import file_key, write_rows
from fmcnet.identities import is_unknown, near_identities, parse_identity, rounded_fault
from fmcnet.names import FRACTION, control_fault, hidden_character, near_cameras, nearest, printable
from fmcnet.parsing import read_rows
from fmcnet.times import parse_capture_time, parse_time
from fmcnet.types import MODALITY_WORDS, NO_CAMERA, NO_PID, Modality

REQUIRED = ("path", "pid", "modality")
OPTIONAL = ("camid", "split", "role", "time")
COLUMNS = (*REQUIRED, *OPTIONAL, *Table.TEXTS, "date")
ALIASES = {
    **dict.fromkeys(("timestamp", "datetime", "date_time", "time_stamp"), "time"),
    **dict.fromkeys(("cam", "cam_id", "camera_id", "camera_name"), "camera"),
    **dict.fromkeys(("track_id", "trackid", "tracklet"), "track"),
    "tag": "tags",
}
"""Other names of columns, used where the column itself is absent."""
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
MOST_NOTES = 20
"""On identities of several spellings."""
MOST_COLUMNS = 500
TEST_SHARE = 0.3
HELD_OUT = "no split column"
"""The beginning of the note on the identities held out for test."""

MISSING = "there is no file"
_CAMERA = re.compile(r"(?:cam(?:era)?|c)?[ _]?([0-9]+)", re.IGNORECASE)

EXPECTED = """
    path,pid,modality,camid,split       camid, split, role (query, gallery) and time may be absent
    images/a1.jpg,anna,visible,1,train
    images/a2.jpg,anna,infrared,2,train
"""


def read_csv(file: str | Path, *, training: bool = True, modality: Modality | None = None) -> Table:
    """Read a CSV file with the columns path, pid, modality and, if wanted, `OPTIONAL` and `Table.TEXTS`.

    - Paths are relative to the CSV's folder, or absolute.
    - `pid` is any text, read by `parse_identity`: numbers stay as they are, names are numbered in sorted order
      (`Table.pid_names`).
    - `modality` is one of `MODALITY_WORDS`.
    - `camid` and a `modality` of 0 or 1 may be written as decimals: 1.0, or 1,0, is 1. So may `camera` and `track`,
      if all values of the column are whole numbers.
    - Without a `split` column, `TEST_SHARE` of the identities (those with the smallest SHA-256 of their name,
      so the choice depends on nothing else) go to test, the rest to train, with a note.
    - `camera` is any text; without a `camid` column cameras are numbered: by their number ("cam3" is 3) where all
      have one that no other has, else in sorted order. An empty `camid` beside others is that of other rows of its
      `camera`, else its number, else a new one; one that is written as unknown, as -1, stays so.
    - With a column `date`, `time` may be a time of day; a whole time must be of that day, or the next or last, as in
      another timezone. `tags` are separated by semicolons.
    - A column of another name is ignored, with a note; those in `ALIASES` are read by another name.
    - An image may be in one row only: other spellings of its path, and links, are the same image.
    - A line break or another control character in a cell of these columns is a fault.
    - Comma, semicolon or tab; UTF-8 or UTF-16, with or without byte-order mark; any line ending.

    Args:
        file: the CSV.
        training: False: the images are to be searched. `pid` may be absent or unknown, and every row stays, also
            one whose file is gone.
        modality: with `training` False, that of rows which give none.

    Raises:
        DataError: lists the faults with their line numbers (the first 20 in full, at most about 1000).
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise DataError(f"{file} does not exist or is no file: give a CSV like{EXPECTED}")
    identities, records, notes, header, unknown = _parse_rows(file, training, None if training else modality)
    if not records:
        raise DataError(f"{file} has no row below its header: give a CSV like{EXPECTED}")
    identities = _unify_spellings(identities, notes)
    if not any(record.split for record in records):
        test, note = _choose_test(identities, records)
        records = [
            record._replace(split="test" if identity in test else "train")
            for identity, record in zip(identities, records, strict=True)
        ]
        notes.append(f"{HELD_OUT}: {note}")
    names = sorted({*identities} - {""})
    if commas := [name for name in names if re.fullmatch("-?[0-9]+,00?", name)]:
        text = f"{len(commas)} identities, as '{commas[0]}', are taken as texts"
        notes.append(f"{text}: write whole numbers without a comma")
    are_numbers = all(str(number_of(name)) == name for name in names)
    numbers = {"": NO_PID} | {name: int(name) if are_numbers else row for row, name in enumerate(names)}
    records = [r._replace(pid=numbers[identity]) for identity, r in zip(identities, records, strict=True)]
    records = _number_cameras(_without_fractions(records), unknown, notes)
    notes += near_cameras({record.camera for record in records if not is_unknown(record.camera)})
    if training:
        if any(record.range for record in records):
            notes.append(
                "the column 'range' is read by fmcnet index only: convert deep images to 8 bits first"
            )
        names_by_number = {number: name for name, number in numbers.items()}
        roles = {record.role for record in records if record.split == "test"}
        if len(roles) == 1 and (role := roles.pop()):
            notes.append(f"every test image has the role {role}: evaluations need queries and a gallery")
        records, split_notes = check_splits(records, str(file), names_by_number.__getitem__, required=())
        notes += split_notes
    pid_names = () if are_numbers else names
    table = Table.from_records("csv", file.parent, records, pid_names=pid_names, notes=notes, file=file)
    return replace(table, header=tuple(header), unknown=frozenset(unknown))


def write_csv(table: Table, file: str | Path) -> Path:
    """Write a table as a CSV that `read_csv` reads back as the same rows, and return its path.

    Paths are written relative to the CSV's folder where the images lie below it, absolute otherwise.
    """
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    base = file.parent.resolve()
    texts = [name for name in Table.TEXTS if any(getattr(table, name))]
    rows: list[tuple[object, ...]] = [(*REQUIRED, *OPTIONAL, *texts)]
    for record, path in zip(table.records(), table.full_paths(), strict=True):
        resolved = path.parent.resolve() / path.name
        path = resolved.relative_to(base) if resolved.is_relative_to(base) else Path.cwd() / path
        camid = "" if record.camid == NO_CAMERA and is_unknown(record.camera) else record.camid
        optional = (camid, record.split, record.role, record.time)
        others = (getattr(record, text) for text in texts)
        rows.append((path.as_posix(), table.pid_name(record.pid), record.modality, *optional, *others))
    return write_rows(file, rows)


def _parse_rows(
    file: Path, training: bool, modality: Modality | None
) -> tuple[list[str], list[Record], list[str], list[str], set[tuple[str, str]]]:
    """Identities ("" where unknown), records without them, notes, and `header` and `unknown` of the `Table`.

    Raises:
        DataError: lists the faults by their lines.
    """
    columns, notes, faults, identities = list[str](), list[str](), list[str](), list[str]()
    records: dict[int, Record] = {}  # by line
    unknown: set[tuple[str, str]] = set()
    first_rows: dict[Hashable, tuple[int, str]] = {}
    try:
        for line, cells in _read_cells(file):
            if not columns:
                columns, notes = _canonical_columns(cells[: MOST_COLUMNS + 1])
                if fault := _header_fault(columns, len(cells), training, modality):
                    refuse_faults(file, [f"line {line}: {fault}"])
                continue
            if len(faults) >= MOST_FAULTS:
                refuse_faults(file, faults)
            if cell_faults := _cell_faults(columns, cells):
                faults += [f"line {line}: {fault}" for fault in cell_faults]
                continue
            values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
            identity, record, image, row_faults = _parse_row(values, file.parent, training, modality)
            if len(faults) < LISTED:  # more are not shown
                row_faults = [
                    f"{fault}{near_file(values['path'], file.parent)}" if fault.startswith(MISSING) else fault
                    for fault in row_faults
                ]
            identities.append(identity)
            records[line] = record
            unknown |= {
                (record.path, "camera" if name == "camid" else name)
                for name in ("pid", "camid", "camera", "track")
                if values.get(name) and is_unknown(values[name])
            }
            first, first_path = first_rows.setdefault(image, (line, record.path))
            if first != line:
                same = f"stands in line {first} already"
                other = f"is the image '{first_path}' of line {first}: name an image once"
                row_faults.append(f"path '{record.path}' {same if record.path == first_path else other}")
            faults += [f"line {line}: {fault:.500}" for fault in row_faults]
    except csv.Error as error:
        faults.append(str(error))
    without_split = [record.path for record in records.values() if not record.split]
    if training and 0 < len(without_split) < len(records):
        faults.append(
            f"{len(without_split)} rows have no split, the first is {without_split[0]}: give all or none"
        )
    refuse_faults(file, faults)
    notes += _time_notes(records) if training else []
    return identities, list(records.values()), notes, columns, unknown


def _read_cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """As `read_rows`, of a file."""
    lines = read_lines(file)
    separator = max(",;\t", key=lines[0].count)
    if stated := re.fullmatch(r"sep=([,;\t])", lines[0].strip(" ")):  # a line of Excel
        lines[0], separator = "", stated[1]
    yield from read_rows(lines, separator)


def _canonical_columns(header: list[str]) -> tuple[list[str], list[str]]:
    """The columns of a header with `ALIASES` replaced, and notes of those replaced or ignored."""
    columns = [printable(cell.strip().lower()) for cell in header]
    names, notes = list[str](), list[str]()
    for name in columns:
        canonical = ALIASES.get(name, name)
        if canonical != name and canonical not in columns and canonical not in names:
            notes.append(f"the column '{name}' is read as '{canonical}'")
            names.append(canonical)
            continue
        names.append(name)
        if name in COLUMNS or not name:
            continue
        suggestion = canonical if canonical != name else _HINTS.get(name) or nearest(name, COLUMNS)
        if suggestion in columns or suggestion in names:
            notes.append(f"the column '{name}' is not read; '{suggestion}' is")
        elif suggestion is not None:
            notes.append(f"the column '{name}' is not read: did you mean '{suggestion}'?")
        else:
            notes.append(f"the column '{name}' is not read; those that are: {', '.join(COLUMNS)}")
    return names, notes


def _header_fault(columns: list[str], count: int, training: bool, modality: Modality | None) -> str:
    if count > MOST_COLUMNS:
        return f"{count:,} columns, more than {MOST_COLUMNS}"
    required = REQUIRED if training else ("path",) if modality else ("path", "modality")
    missing = [name for name in required if name not in columns]
    header = f"{', '.join(columns):.400}"
    if missing == ["modality"] and not training:
        return f"no column modality in the header ({header}): add it, or say --modality visible or infrared"
    if missing:
        return f"no column {', '.join(missing)} in the header ({header}); expected{EXPECTED.rstrip()}"
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    return f"the column {', '.join(repeated)} stands twice in the header" if repeated else ""


def _cell_faults(columns: list[str], cells: list[str]) -> list[str]:
    """Why a row's cells cannot be read: too few or too many, with hidden characters, or rounded names."""
    if len(cells) != len(columns):
        return [f"{len(cells)} values for {len(columns)} columns"]
    read = [(name, cell.strip(" \t")) for name, cell in zip(columns, cells, strict=True) if name in COLUMNS]
    faults = [
        control_fault(cell, name) or (_name_fault(cell.strip(), name) if name in ("camera", "track") else "")
        for name, cell in read
    ]
    return [fault for fault in faults if fault]


def _name_fault(text: str, what: str) -> str:
    if hidden := hidden_character(text):
        return f"{what} '{printable(text[:80])}' holds the invisible character U+{ord(hidden):04X}: remove it"
    return rounded_fault(text, what)


def _find_file(path: str, base: Path) -> tuple[str, Hashable, str]:
    """The path in POSIX form, relative where possible; a key that all its spellings share; and a fault or ""."""
    if not path:
        return "", "", "path is empty"
    for spelling in (path, path.replace("\\", "/")):
        try:
            key = file_key(base / spelling)
        except (OSError, ValueError):
            continue
        image_path = Path(spelling)
        if image_path.is_absolute() and image_path.is_relative_to(base):
            image_path = image_path.relative_to(base)
        return image_path.as_posix(), key, ""
    return Path(path).as_posix(), path, f"{MISSING} '{path}' (looked for {base / path})"


def _parse_row(
    cells: dict[str, str], base: Path, training: bool, default: Modality | None
) -> tuple[str, Record, Hashable, list[str]]:
    """The identity as written, "" where unknown; the record without it; a key of the image; faults."""
    pid, camid, identity = cells.get("pid", ""), cells.get("camid", ""), None
    path, image, path_fault = _find_file(cells["path"], base)
    # To be searched: indexing leaves a missing file out, or refuses it.
    faults = [path_fault] if path_fault and (training or not path) else []
    try:
        identity = parse_identity(pid)
        if identity is None and training:
            message = (
                f"pid '{pid}' is nobody known: training and evaluation need an identity; take the row out"
            )
            faults.append(message if pid else "pid is empty")
    except DataError as error:
        faults.append(str(error))
    modality_text = cells.get("modality", "")
    modality = MODALITY_WORDS.get(FRACTION.sub("", modality_text.lower())) if modality_text else default
    if modality is None:
        faults.append(
            f"modality '{modality_text}' is neither visible (vis, rgb) nor infrared (ir, nir, thermal)"
        )
    number_text = FRACTION.sub("", camid)
    match = _CAMERA.fullmatch(number_text)
    number = number_of(match[1]) if match else None
    if match and number is None:
        faults.append(f"camid '{camid[:40]}' is too large: numbers go up to {2**63 - 1}")
    elif match is None and not is_unknown(number_text):
        advice = "leave it empty where unknown; names stand in a column camera"
        faults.append(f"camid '{camid[:40]}' is not a whole number ({advice})")
    try:
        if range_text := cells.get("range"):
            parse_range(range_text)
    except DataError as error:
        faults.append(str(error).removeprefix("--"))
    split, role = cells.get("split", "").lower(), cells.get("role", "").lower()
    if split not in SPLIT_WORDS:
        hint = "; queries and gallery have a column role" if split in ("query", "gallery") else ""
        faults.append(f"split '{split}' is none of {', '.join(SPLITS)}{hint}")
    if role not in ROLE_WORDS:
        faults.append(f"role '{role}' is neither query nor gallery (leave it empty for both)")
    date, time = cells.get("date", ""), cells.get("time", "")
    if fault := _date_fault(date, time):
        faults.append(fault)
    record = Record(
        path=path,
        pid=NO_PID,
        modality=modality or Modality.VISIBLE,
        camid=NO_CAMERA if number is None else number,
        split=SPLIT_WORDS.get(split, split),
        role=ROLE_WORDS.get(role, ""),
        time=_joined_time(date, time),
        **{name: cells.get(name, "") for name in Table.TEXTS},
    )
    return "" if identity is None else pid, record, image, faults


def _unify_spellings(identities: list[str], notes: list[str]) -> list[str]:
    """Give each identity its first spelling in sorted order; `notes` name equal and similar spellings."""
    spellings = defaultdict[str, list[str]](list)
    for name in sorted({*identities} - {""}):
        spellings[parse_identity(name) or ""].append(name)
    groups = [names for names in spellings.values() if len(names) > 1]
    notes += [
        f"the identities {', '.join(map(repr, names))} are read as one person"
        for names in groups[:MOST_NOTES]
    ]
    notes += near_identities(spellings)
    unified = {name: names[0] for names in groups for name in names}
    return [unified.get(name, name) for name in identities]


def _joined_time(date: str, time: str) -> str:
    """A time, with the date if that is in a separate column."""
    if date and re.match(r"\d{1,2}:\d\d", time):
        return f"{date}T{time if time[2] == ':' else '0' + time}"
    return time or date


def _date_fault(date: str, time: str) -> str:
    """The fault of a date and a whole time, which may be in another timezone, that are days apart, or ""."""
    if not date or not time or _joined_time(date, time) != time:
        return ""
    try:
        days = abs(parse_time(time).date() - parse_time(date).date()).days
    except FmcnetError:  # told elsewhere
        return ""
    return (
        f"date '{date[:40]}' and time '{time[:40]}' are of different days: leave one out" if days > 1 else ""
    )


def _time_notes(records: dict[int, Record]) -> list[str]:
    """A note on the times, by line, that an index would refuse, if there are any; training does not need them."""
    faults = list[str]()
    for line, record in records.items():
        try:
            if record.time:
                parse_capture_time(record.time)
        except DataError as error:
            faults.append(f"line {line}: {error!s:.300}")
    if not faults:
        return []
    rows = f"{len(faults)} row{'s' * (len(faults) > 1)}"
    return [f"fmcnet index will refuse the time of {rows}, the first in {faults[0]}"]


def _without_fractions(records: list[Record]) -> list[Record]:
    """Write cameras and tracks without fractions where all of the column are whole: pandas writes 1.0 for 1."""
    for column in ("camera", "track"):
        values = {getattr(record, column) for record in records}
        whole: dict[str, Any] = {value: FRACTION.sub("", value) for value in values}
        known = [value for value in values if not is_unknown(value)]
        has_fraction = any(whole[value] != value for value in known)
        if has_fraction and all(re.fullmatch("[0-9]+", whole[value]) for value in known):
            records = [record._replace(**{column: whole[getattr(record, column)]}) for record in records]
    return records


def _number_cameras(records: list[Record], unknown: set[tuple[str, str]], notes: list[str]) -> list[Record]:
    """Number the named cameras of rows whose number is empty: as other rows do, else by the name's own, else on.

    A row with a number and an empty name takes the name that other rows give the number, if they give one.

    Where no row has a number: by the names' numbers, if each has another, else in sorted order. `unknown` rows (path,
    "camera") are written to have no camera. `notes` get numbers of several names, and names of several numbers.
    """
    names = sorted({record.camera for record in records if not is_unknown(record.camera)})
    given = {record.camid for record in records} - {NO_CAMERA}
    ids = defaultdict[str, set[int]](set)
    for record in records:
        if record.camid != NO_CAMERA:
            ids[record.camera].add(record.camid)
    own = {n: id for n in names if (m := _CAMERA.fullmatch(n)) and (id := number_of(m[1])) is not None}
    counts = Counter(own.values())
    use_own = given or len(counts) == len(names)
    own = {name: id for name, id in own.items() if use_own and counts[id] == 1 and not ids[name]}
    taken = given | {*own.values()}
    free = (number for number in itertools.count(1) if number not in taken)
    numbers = {name: next(free) for name in names if not ids[name] and name not in own} | own
    numbers |= {name: min(ids[name]) for name in names if len(ids[name]) == 1}

    def needs_number(record: Record) -> bool:
        return record.camid == NO_CAMERA and (record.path, "camera") not in unknown

    double = sorted({r.camera for r in records if needs_number(r) and len(ids[r.camera]) > 1} & {*names})
    for name in double[:MOST_NOTES]:
        found = ", ".join(map(str, sorted(ids[name])))
        notes.append(f"the camera {name!r} has the camids {found}: its rows without one have no camera")
    records = [r._replace(camid=numbers.get(r.camera, NO_CAMERA)) if needs_number(r) else r for r in records]
    names_of = defaultdict[int, set[str]](set)
    of_modality = defaultdict[tuple[int, str], set[str]](set)  # the two sensors of a place may share a number
    for record in records:
        if record.camid != NO_CAMERA and not is_unknown(record.camera):
            names_of[record.camid].add(record.camera)
            of_modality[record.camid, record.modality].add(record.camera)
    shared = [(camid, names) for (camid, _), names in sorted(of_modality.items()) if len(names) > 1]
    for camid, several in shared[:MOST_NOTES]:
        notes.append(
            f"the camid {camid} is of the cameras {first_of(sorted(several))}: rules that skip a camera take "
            "them as one; leave camid out where the names tell the cameras"
        )
    return [
        r._replace(camera=min(names_of[r.camid]))
        if not r.camera and len(names_of[r.camid]) == 1 and (r.path, "camera") not in unknown
        else r
        for r in records
    ]


def _choose_test(identities: list[str], records: list[Record]) -> tuple[set[str], str]:
    """The identities that go to test in a table without splits, and a note."""
    modalities = defaultdict[str, set[Modality]](set)
    for identity, record in zip(identities, records, strict=True):
        if identity:
            modalities[identity].add(record.modality)
    complete = [identity for identity, seen in modalities.items() if len(seen) == 2]
    if not complete:
        return {*identities}, "all images are for test, because no identity has both modalities to learn from"
    order = sorted(complete, key=lambda identity: hashlib.sha256(identity.encode()).hexdigest())
    count = min(max(1, round(TEST_SHARE * len(order))), len(order) - 1)
    return set(order[:count]), (
        f"{count} of {len(modalities)} identities are held out for test (by the hash of their name as written; they "
        "stay the same while the names do: before you add some, write a column split)"
    )
