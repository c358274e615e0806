"""A dataset is a table with one row per image, from any benchmark or folder."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import DataError, FmcnetError
from fmcnet.identities import parse_identity
from fmcnet.types import (
    NO_CAMERA,
    NO_PID,
    IntArray,
    Modality,
    check_arrays,
    identity_names,
    identity_numbers,
    parse_modality,
)

if TYPE_CHECKING:
    from fmcnet.config import Config

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {name: name for name in ("", *SPLITS)}
SPLIT_WORDS |= {"training": "train", "validation": "val", "valid": "val", "testing": "test"}
"""Words for the splits in records and CSVs, in lower case."""
ROLE_WORDS = {"": "", "both": "", "query": "query", "probe": "query", "gallery": "gallery"}
"""Words for the roles in records and CSVs, in lower case."""


class Record(NamedTuple):
    """One row of a table; see `Table` for its values."""

    path: str
    pid: int
    modality: Modality
    camid: int = NO_CAMERA
    split: str = "train"
    role: str = ""
    time: str = ""
    camera: str = ""
    track: str = ""
    tags: str = ""
    source: str = ""
    range: str = ""


@dataclass(frozen=True)
class Table:
    """The images of a dataset, column by column, in the reader's order; `from_records` makes one.

    Attributes:
        name: what was read: "sysu", "regdb", "llcm", "csv"...
        root: the folder that `path` is relative to.
        path: (N,) str, POSIX separators.
        pid: (N,) int64, the identity's number in this table: as the dataset numbers it, or the position of its name.
            `identity` is the same in every dataset.
        modality: (N,) uint8, 0 visible, 1 infrared.
        camid: (N,) int64, `NO_CAMERA` where unknown.
        split: (N,) str, one of `SPLITS`, or "" for images that take no part.
        role: (N,) str, "query", "gallery" or "" (both).
        time: (N,) str, a time stamp as given, or "".
        camera: (N,) str, the camera's name, where cameras are named and not numbered, or "".
        track: (N,) str, as given, or "".
        tags: (N,) str, as given, between semicolons, or "".
        source: (N,) str, as given, or "".
        range: (N,) str, "LOW:HIGH" as `fmcnet.data.pixels.parse_range` takes it, or "".
        pid_names: for datasets whose identities are not numbers: name of pid i at position i, as written.
        notes: the reader's notes (identities dropped, files ignored).
        file: the CSV that it was read from; None: a folder.
        header: the columns of that CSV.
        unknown: (path, column) of its pids, cameras (also of a camid) and tracks that are written as unknown.
    """

    name: str
    root: Path
    path: NDArray[np.str_]
    pid: IntArray
    modality: NDArray[np.uint8]
    camid: IntArray
    split: NDArray[np.str_]
    role: NDArray[np.str_]
    time: NDArray[np.str_]
    camera: NDArray[np.str_]
    track: NDArray[np.str_]
    tags: NDArray[np.str_]
    source: NDArray[np.str_]
    pid_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    range: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="<U1"))
    file: Path | None = None
    header: tuple[str, ...] = ()
    unknown: frozenset[tuple[str, str]] = frozenset()

    COLUMNS: ClassVar[tuple[str, ...]] = Record._fields
    TEXTS: ClassVar[tuple[str, ...]] = ("camera", "track", "tags", "source", "range")

    def __post_init__(self) -> None:
        if not len(self.range):
            object.__setattr__(self, "range", np.full(len(self.path), ""))
        check_arrays(self, self.COLUMNS)
        lengths = {name: len(getattr(self, name)) for name in self.COLUMNS}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns of a table differ in length: {lengths}")

    @classmethod
    def from_records(
        cls,
        name: str,
        root: Path,
        records: Sequence[Record],
        *,
        pid_names: Sequence[str] = (),
        notes: Sequence[str] = (),
        file: Path | None = None,
    ) -> Table:
        """Make a table of rows; their order stays.

        Args:
            name: what was read: "sysu", "regdb", "llcm", "csv"...
            root: the folder that the records' paths are relative to.
            records: the rows. `split`, `role` and `modality` may also be words that a CSV takes, such as "probe".
            pid_names: for identities that are not numbers: name of pid i at position i.
            notes: sentences for the user, on what was corrected or left out.
            file: the CSV that they were read from; None: a folder.

        Raises:
            DataError: for a value that a table cannot hold, or an image twice in a split; names the record.
        """
        records = _checked(root, records, len(pid_names))
        without_split = sum(not record.split for record in records)
        if 0 < without_split < len(records):
            notes = [*notes, f"images without a split, neither trained on nor evaluated: {without_split}"]
        dtypes = {"pid": np.int64, "camid": np.int64}
        columns: dict[str, Any] = {
            column: np.array([getattr(record, column) for record in records], dtypes.get(column, np.str_))
            for column in Record._fields
        }
        columns["modality"] = np.array([record.modality.code for record in records], np.uint8)
        columns |= {"pid_names": tuple(pid_names), "notes": tuple(notes), "file": file}
        return cls(name=name, root=Path(root), **columns)

    def __len__(self) -> int:
        return len(self.path)

    def __repr__(self) -> str:
        counts = {split: int((self.split == split).sum()) for split in SPLITS}
        splits = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
        infrared = int((self.modality == Modality.INFRARED.code).sum())
        people = len(np.unique(self.pid[self.pid != NO_PID]))
        cameras = len(np.unique(self.camid[self.camid != NO_CAMERA]))
        return (
            f"<Table {self.name} at {self.root}: {len(self)} images ({len(self) - infrared} visible, {infrared} "
            f"infrared) of {people} identities and {cameras} cameras{': ' * bool(splits)}{splits}>"
        )

    @property
    def origin(self) -> Path:
        """The CSV or the folder, as messages name it."""
        return self.file or self.root

    def take(self, rows: NDArray[Any]) -> Table:
        """Take rows.

        Args:
            rows: (M,) integers, the rows in the wanted order; or (N,) bool, True for each row to keep.

        Returns:
            A table of these rows.
        """
        return replace(self, **{name: getattr(self, name)[rows] for name in self.COLUMNS})

    def select(
        self, *, split: str | tuple[str, ...] | None = None, modality: Modality | str | None = None
    ) -> Table:
        """Select the rows of one or several splits and of a modality; their order stays.

        Args:
            split: one or several of `SPLITS`; None: all.
            modality: "visible" or "infrared"; None: both.

        Returns:
            A table of the rows that fit both; it may be empty.

        Raises:
            DataError: for a split that no table has.
            FmcnetError: for an unknown modality.
        """
        mask = np.ones(len(self), dtype=bool)
        if split is not None:
            splits = [split] if isinstance(split, str) else list(split)
            if unknown := [name for name in splits if name not in (*SPLITS, *np.unique(self.split))]:
                raise DataError(f"unknown split '{unknown[0]}': use {', '.join(SPLITS)}, or None for all")
            mask &= np.isin(self.split, splits)
        if modality is not None:
            mask &= self.modality == parse_modality(modality).code
        return self.take(np.flatnonzero(mask))

    def of_split(self, split: str, source: str | Path | None = None) -> Table:
        """Select the rows of a split that must have images.

        Args:
            split: one of `SPLITS`.
            source: what the user gave as the dataset, for the error; None: `origin`.

        Raises:
            DataError: when it has none.
        """
        rows = self.select(split=split)
        if not len(rows):
            available = [name for name in SPLITS if (self.split == name).any()]
            raise DataError(
                f"{source or self.origin.resolve()} has no images of split '{split}', only of "
                f"{' and '.join(available) or 'none'}"
            )
        return rows

    def labels(self) -> tuple[IntArray, IntArray]:
        """Number the identities as classes 0..C-1, in sorted order of pid.

        Returns:
            labels (N,) int64, the class of each row; pids (C,) int64, the identity of each class.

        Raises:
            DataError: when an image has no identity.
        """
        unknown = np.flatnonzero(self.pid == NO_PID)
        if len(unknown):
            raise DataError(
                f"{len(unknown)} of {len(self)} images have no identity, the first is {self.path[unknown[0]]}: give "
                "them one, or leave them out"
            )
        pids, labels = np.unique(self.pid, return_inverse=True)
        return labels.astype(np.int64), pids

    def positions(self) -> IntArray:
        """(N,) 1-based position of each image among the path-sorted images of its pid, camera and modality."""
        return positions(self.path, self.modality, self.camid, self.pid)

    def full_path(self, row: int) -> Path:
        """The file of one row."""
        return self.root / str(self.path[row])

    def full_paths(self) -> list[Path]:
        """The file of every row."""
        return [self.root / str(path) for path in self.path]

    def pid_name(self, pid: int) -> str:
        """The name of an identity in the dataset, its number where it has none, "" for `NO_PID`."""
        if pid == NO_PID:
            return ""
        return self.pid_names[pid] if self.pid_names else str(pid)

    def identity(self, pid: int) -> str | None:
        """The identity as it is known in every dataset and gallery (`parse_identity`); None for `NO_PID`."""
        return parse_identity(self.pid_name(pid))

    def identities(self) -> list[str | None]:
        """The identity of every row, as galleries keep it."""
        by_pid = {pid: self.identity(pid) for pid in np.unique(self.pid).tolist()}
        return [by_pid[pid] for pid in self.pid.tolist()]

    def identity_names(self) -> NDArray[np.str_]:
        """(N,) str, the identity where it is a text, as galleries keep it; "" where it is a number or unknown."""
        names = identity_names(np.array(self.pid_names))
        return np.append(names, "")[self.pid] if self.pid_names else np.full(len(self), "")

    def identity_numbers(self) -> IntArray:
        """(N,) int64, equal for the same identity in every table; `pid` itself where identities are numbers."""
        if not self.pid_names:
            return self.pid
        return np.append(identity_numbers(np.array(self.pid_names)), NO_PID)[self.pid]

    def records(self) -> list[Record]:
        """The rows, one by one."""
        columns = (getattr(self, name).tolist() for name in Record._fields)
        return [
            Record(path, pid, Modality.from_code(code), *others)
            for path, pid, code, *others in zip(*columns, strict=True)
        ]


def _checked(root: Path, records: Sequence[Record], num_names: int) -> list[Record]:
    """The records in a table's vocabulary; DataError names the first that has a fault."""
    checked: list[Record] = []
    first_row: dict[tuple[str, str], int] = {}
    for row, record in enumerate(records):
        try:
            pid = _whole_number("pid", record.pid, NO_PID)
            camid = _whole_number("camid", record.camid, NO_CAMERA)
            if num_names and pid >= num_names:
                raise DataError(f"pid is {pid}, but pid_names holds {num_names} names: give each pid a name")
            split, role = SPLIT_WORDS.get(str(record.split).lower()), ROLE_WORDS.get(str(record.role).lower())
            if split is None:
                raise DataError(f"split '{record.split}' is none of {', '.join(SPLITS)}")
            if role is None:
                raise DataError(
                    f"role '{record.role}' is neither query nor gallery (leave it empty for both)"
                )
            path = os.path.normpath(os.path.join(root, record.path))  # noqa: PTH118
            if (first := first_row.setdefault((path, split), row)) != row:
                raise DataError(
                    f"record {first} is the same image: give an image once; with role '' it is both"
                )
            modality = parse_modality(record.modality)
        except TypeError as error:
            raise DataError(f"record {row}: path is {record.path!r}, no path") from error
        except FmcnetError as error:
            raise DataError(f"record {row} ('{record.path}'): {error}") from error
        checked.append(record._replace(pid=pid, camid=camid, split=split, role=role, modality=modality))
    return checked


def _whole_number(column: str, value: Any, unknown: int) -> int:
    """A number of a record as an int; DataError: no whole number, or below `unknown`."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = unknown - 1
    if number < unknown or number != value:
        raise DataError(f"{column} is {value!r}: give a whole number from 0 on, {unknown} where unknown")
    if number >= 2**63:
        label = {"pid": "identity", "camid": "camera"}[column]
        raise DataError(f"the number of the {label} does not fit 64 bits: {number:.4g}")
    return number


def fingerprint(table: Table, *columns: NDArray[np.str_]) -> str:
    """16 hex digits that name a dataset: its paths and identities, independent of its folder, order and splits.

    Further columns (N,) may be included, as the split.
    """
    names = [str(pid) if pid == NO_PID else table.pid_name(pid) for pid in table.pid.tolist()]
    rows = zip(table.path.tolist(), names, *(column.tolist() for column in columns), strict=True)
    return hashlib.sha256("\n".join(sorted(map("\t".join, rows))).encode()).hexdigest()[:16]


def sample_images(table: Table) -> tuple[str, ...]:
    """`file_content` of the first and the last image, by path, of each identity, sorted.

    An image that two identities share, such as a black one, is left out.
    """
    order = np.argsort(table.path, kind="stable").tolist()
    first = {int(table.pid[row]): row for row in reversed(order)}
    last = {int(table.pid[row]): row for row in order}
    return tuple(sorted(_owner_by_content(table, {*first.values(), *last.values()})))


FEW_SEEN = 0.05
"""Up to this share of identities that were trained on there is a warning; above it, an error."""


def seen_identities(samples: tuple[str, ...], table: Table) -> IntArray:
    """Identities of a table that have one of `sample_images`, sorted; files of other sizes are not read.

    An image that several identities of the table share is ignored.
    """
    sizes = {sample.partition("-")[0] for sample in samples}
    paths = table.full_paths() if samples else []
    rows = [row for row, path in enumerate(paths) if str(file_size(path)) in sizes]
    owners = _owner_by_content(table, rows)
    return np.array(sorted({owners[sample] for sample in samples if sample in owners}), dtype=np.int64)


def names_note(identities: Collection[int], rows: Table, trained: str) -> str:
    """A sentence if more than `FEW_SEEN` of a table's identities have the name of one that was trained on, else "".

    `identities` are `Table.identity_numbers` of the training, `trained` is the model, for the sentence.
    """
    numbers = rows.identity_numbers()
    known = (rows.pid != NO_PID) & np.isin(numbers, np.array([*identities], dtype=np.int64))
    names = sorted({rows.pid_name(pid) for pid in rows.pid[known].tolist()})
    total = len(np.unique(rows.pid[rows.pid != NO_PID]))
    if len(names) <= FEW_SEEN * total:
        return ""
    return (
        f"{len(names)} of {total} identities have the name of one that {trained} was trained on, the first is "
        f"{names[0]}: if they are the same people, all figures are too good"
    )


def _owner_by_content(table: Table, rows: Iterable[int]) -> dict[str, int]:
    """`file_content` -> identity, of each image that only one identity has."""
    owners = defaultdict[str, set[int]](set)
    for row in rows:
        if table.pid[row] != NO_PID:
            owners[file_content(table.full_path(row))].add(int(table.pid[row]))
    return {content: pids.pop() for content, pids in owners.items() if content and len(pids) == 1}


def file_size(path: Path) -> int:
    """Bytes of a file; -1 where it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def file_content(path: Path) -> str:
    """ "SIZE-CRC" of a file; "" where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return f"{len(data)}-{zlib.crc32(data):08x}"


def positions(
    path: NDArray[np.str_], modality: NDArray[np.uint8], camid: IntArray, pid: IntArray
) -> IntArray:
    """(N,) 1-based position of each image among the path-sorted images of its pid, camera and modality."""
    order = np.lexsort((path, modality, camid, pid))
    keys = np.stack([pid, camid, modality], axis=1)[order]
    first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
    position = np.empty(len(path), dtype=np.int64)
    position[order] = np.arange(len(path)) - np.repeat(first, np.diff(first, append=len(path))) + 1
    return position


def hold_out(table: Table, config: Config) -> Table:
    """Move a share of the training identities to the split "val", if validation needs some and there are none.

    RegDB, LLCM and most CSVs have no validation identities. The share is `data.val_share` of the training
    identities, drawn by `training.seed`.
    """
    needs_validation = config.training.validate_every and config.training.select != "test"
    if not needs_validation or (table.split == "val").any() or not config.data.val_share:
        return table
    pids = np.unique(table.pid[table.split == "train"])
    count = max(2, round(config.data.val_share * len(pids)))  # of one identity every order is right
    held_out = np.random.default_rng(config.training.seed).permutation(pids)[:count]
    mask = (table.split == "train") & np.isin(table.pid, held_out)
    note = f"{count} of {len(pids)} training identities are held out for validation (data.val_share)"
    split = np.where(mask, "val", table.split.astype("<U5"))
    return replace(table, split=split, notes=(*table.notes, note))
