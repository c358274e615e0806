"""Check a dataset against its layout and the published numbers, and count what it holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.images import load_image, unreadable_images
from fmcnet.data.pixels import NO_RANGE, Remarks, colour_notes
from fmcnet.data.readers import LAYOUTS, check_layout, detect_layout, read_dataset
from fmcnet.data.readers.common import MANIFEST, DatasetFolder
from fmcnet.data.readers.regdb import KINDS, REGDB_SPLITS
from fmcnet.data.readers.sysu import INFRARED_CAMERAS
from fmcnet.data.table import SPLITS, Table, file_content, file_size
from fmcnet.errors import DataError
from fmcnet.types import NO_CAMERA, NO_PID, Modality

TITLES = {"sysu": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM", "csv": "CSV"}
"""Display names of the layouts."""

MAX_LINES = 12
"""Unreadable images shown on the screen; `to_dict` holds all."""

HOMES = {
    "sysu": "SYSU-MM01: https://github.com/wuancong/SYSU-MM01 (signed agreement needed)",
    "regdb": "RegDB: http://dm.dongguk.edu (agreement needed)",
    "llcm": "LLCM: https://github.com/ZYK100/LLCM (signed agreement needed)",
}

_REGDB_LISTS = [f"idx/{split}_{kind}" for split in ("train", "test") for kind in KINDS]

PUBLISHED = {
    "sysu": {
        "train identities": 296,
        "val identities": 99,
        "train + val visible images": 22258,
        "train + val infrared images": 11909,
        "test identities": 96,
        "test visible images (gallery candidates)": 6775,
        "test infrared images (queries)": 3803,
        "test images of cam3": 1883,
        "test images of cam6": 1920,
    },
    "regdb": {
        "train identities": 206,
        "train visible images": 2060,
        "train infrared images": 2060,
        "test identities": 206,
        "test visible images": 2060,
        "test infrared images": 2060,
    },
    "llcm": {
        "train identities": 713,
        "train visible images": 16946,
        "train infrared images": 13975,
        "test identities": 351,
        "test visible images": 8680,
        "test infrared images": 7166,
    },
}


@dataclass(frozen=True)
class LayoutPart:
    """A folder or file of the layout, whether it is present, and a remark."""

    name: str
    present: bool
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.remark})" if self.remark else self.name


@dataclass(frozen=True)
class PublishedCount:
    """A number found beside the published one."""

    name: str
    found: int
    published: int


@dataclass(frozen=True)
class CheckReport:
    """What `check` found."""

    root: str  # what was checked
    layout: str  # one of `layouts()`, or "" where none fits
    parts: tuple[LayoutPart, ...]  # the layout's folders and files
    counts: tuple[PublishedCount, ...]  # a generated or partial tree may differ: no problem
    problems: tuple[str, ...]  # what must be corrected, a message each
    unreadable: tuple[tuple[str, str], ...]  # (path, reason) of every image that cannot be read
    notes: tuple[str, ...]  # the reader's notes
    homes: tuple[str, ...]  # where to ask for access

    @property
    def ok(self) -> bool:
        """No problem and no unreadable image."""
        return not self.problems and not self.unreadable

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> list[str]:
        """One screen of text."""
        title = TITLES.get(self.layout, self.layout or "no known layout")
        lines = [f"{title} at {self.root}: {'ok' if self.ok else 'NOT usable'}"]
        for title, present in (("has:   ", True), ("lacks: ", False)):
            if names := [str(part) for part in self.parts if part.present is present]:
                lines.append(title + ", ".join(names))
        width = max((len(count.name) for count in self.counts), default=0)
        lines += [f"{'':{width + 2}}   found  published"] if self.counts else []
        for count in self.counts:
            mark = "" if count.found == count.published else "  differs"
            lines.append(f"  {count.name:{width}}{count.found:8,}{count.published:11,}{mark}")
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.unreadable:
            lines.append(f"problem: {len(self.unreadable)} images cannot be read:")
            lines += [f"  {path}: {reason}" for path, reason in self.unreadable[:MAX_LINES]]
        if len(self.unreadable) > MAX_LINES:
            lines.append(f"  ... and {len(self.unreadable) - MAX_LINES} more (all with --json)")
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"access: {'; '.join(self.homes)}"] if self.homes else [])


def check(
    root: str | Path, layout: str = "auto", *, images: bool = True, progress: bool | None = None
) -> CheckReport:
    """Check a dataset and report everything found; a broken dataset raises nothing.

    Args:
        root: a SYSU-MM01, RegDB or LLCM folder, or a CSV.
        layout: "auto" or one of `layouts()`.
        images: decode every image too.
        progress: show a bar; None: only on a terminal.

    Raises:
        DataError: `layout` is unknown.
    """
    root = Path(root).expanduser()
    check_layout(layout)
    if layout == "auto":
        try:
            layout = detect_layout(root)
        except DataError as error:
            return CheckReport(str(root), "", (), (), (str(error),), (), (), tuple(HOMES.values()))
    problems, notes, tables = list[str](), list[str](), list[Table]()
    parts, regdb_splits = list[LayoutPart](), [1]
    if root.is_dir():
        exists = DatasetFolder(root, "").exists
        parts = _layout_parts(exists, layout)
        if layout == "regdb":
            every, lists = range(1, REGDB_SPLITS + 1), _REGDB_LISTS
            regdb_splits = [n for n in every if any(exists(f"{name}_{n}.txt") for name in lists)] or [1]
            absent = [str(n) for n in every if n not in regdb_splits]
            if absent and exists("idx"):
                notes.append(f"idx/ has no files of the splits {', '.join(absent)}: they cannot be used")
    for regdb_split in regdb_splits:
        try:
            tables.append(read_dataset(root, layout=layout, regdb_split=regdb_split))
        except DataError as error:
            problems.append(str(error))
    problems = list(dict.fromkeys(problems))
    # Only the last problem keeps the expected layout.
    problems[:-1] = [problem.partition("\nExpected:\n")[0] for problem in problems[:-1]]
    notes = list(dict.fromkeys([*notes, *(note for table in tables for note in table.notes)]))
    unreadable: list[tuple[str, str]] = []
    if images and tables:
        by_path = {record.path: record for table in tables for record in table.records()}
        unique_images = Table.from_records(layout, tables[0].root, list(by_path.values()))
        remarks = Remarks()
        unreadable = unreadable_images(unique_images, remarks, progress)
        paths = unique_images.full_paths()
        notes += [*remarks.lines(NO_RANGE), *copy_notes(unique_images)]
        notes += colour_notes(unique_images.modality, lambda row: load_image(paths[row]), unique_images.camid)
    homes = () if layout not in HOMES or (root / MANIFEST).is_file() else (HOMES[layout],)
    counts = _published_counts(tables[0]) if tables else ()
    return CheckReport(
        str(root), layout, tuple(parts), counts, tuple(problems), tuple(unreadable), tuple(notes), homes
    )


def copy_notes(table: Table) -> Iterator[str]:
    """A sentence on images of equal content, whatever their names."""
    by_size = defaultdict[int, list[int]](list)
    paths = table.full_paths()
    for row, path in enumerate(paths):
        by_size[file_size(path)].append(row)
    by_content = defaultdict[str, list[int]](list)
    for size, rows in by_size.items():
        for row in rows if size > 0 and len(rows) > 1 else ():
            by_content[file_content(paths[row])].append(row)
    by_content.pop("", None)
    copies = [rows for rows in by_content.values() if len(rows) > 1]
    if not copies:
        return
    columns = (table.pid, table.modality, table.split)
    conflicting = [rows for rows in copies if any(len(np.unique(column[rows])) > 1 for column in columns)]
    first, second = ((conflicting or copies)[0])[:2]
    detail = f", {len(conflicting)} under another identity, modality or split" if conflicting else ""
    yield (
        f"images that are there more than once: {len(copies)}{detail} (the first: {table.path[first]} and "
        f"{table.path[second]}): a copy among queries and gallery, or train and test, makes figures too good"
    )


def published_test_set(name: str) -> dict[str, int]:
    """A benchmark's published numbers of test "identities", "visible" and "infrared" images; {} for other data."""
    counts = {key.split()[1]: n for key, n in PUBLISHED.get(name, {}).items() if key.startswith("test ")}
    return {word: n for word, n in counts.items() if word != "images"}


def unpublished_counts(name: str, found: Mapping[str, Any]) -> str:
    """A remark on numbers, by the words of `published_test_set`, that are not the published ones; "" without any."""
    published = published_test_set(name)
    differing = [word for word, n in published.items() if found.get(word, n) != n]
    counts = ", ".join(f"{found[word]:,} {word} (published: {published[word]:,})" for word in differing)
    return counts and f"not {TITLES[name]}'s test set, so comparable with no published figure: {counts}"


def _layout_parts(exists: Callable[[str], bool], layout: str) -> list[LayoutPart]:
    """The folders and files of a layout."""
    names = []
    if known_layout := LAYOUTS.get(layout):
        names = [name for name in known_layout.markers if name not in known_layout.lists]
    if layout == "sysu":
        for split in SPLITS:
            matlab_only = exists(f"exp/{split}_id.mat") and not exists(f"exp/{split}_id.txt")
            names.append(f"exp/{split}_id.{'mat' if matlab_only else 'txt'}")
    if layout == "llcm":
        names += [f"idx/{name}.txt" for name in ("train_vis", "train_nir", "test_id")]
    parts = [LayoutPart(name, exists(name)) for name in names]
    if layout == "sysu":
        draw = "exp/rand_perm_cam.mat"
        remark = "only for the official gallery draw; in the authors' evaluation code"
        parts.append(LayoutPart(draw, exists(draw), "" if exists(draw) else remark))
    for name in _REGDB_LISTS if layout == "regdb" else ():
        missing = [n for n in range(1, REGDB_SPLITS + 1) if not exists(f"{name}_{n}.txt")]
        remark = f"splits {', '.join(map(str, missing))}" if 0 < len(missing) < REGDB_SPLITS else ""
        parts.append(LayoutPart(f"{name}_1..{REGDB_SPLITS}.txt", not missing, remark))
    return parts


def _published_counts(table: Table) -> tuple[PublishedCount, ...]:
    """The found and the published counts; for RegDB of the first split that could be read."""
    counts = Counter[str]()
    for split in SPLITS:
        part = table.select(split=split)
        counts[f"{split} identities"] = len(np.unique(part.pid[part.pid != NO_PID]))
        for modality in Modality:
            images = len(part.select(modality=modality))
            counts[f"{split} {modality} images"] = images
            if split != "test":
                counts[f"train + val {modality} images"] += images
    counts["test visible images (gallery candidates)"] = counts["test visible images"]
    counts["test infrared images (queries)"] = counts["test infrared images"]
    cameras = table.select(split="test").camid
    for camera in INFRARED_CAMERAS:
        counts[f"test images of cam{camera}"] = int((cameras == camera).sum())
    published = PUBLISHED.get(table.name, {})
    return tuple(PublishedCount(name, counts[name], number) for name, number in published.items())


@dataclass(frozen=True)
class SplitSummary:
    """One split and modality."""

    split: str  # one of `SPLITS`
    modality: str  # "visible" or "infrared"
    identities: int  # how many
    images: int  # how many
    cameras: tuple[int, ...]  # those known
    least: int  # images of the identity that has the fewest
    median: float  # images per identity
    most: int  # images of the identity that has the most


@dataclass(frozen=True)
class Summary:
    """What `summary` counted."""

    name: str
    root: str
    images: int
    groups: tuple[SplitSummary, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A small text table."""
        lines = [
            f"{TITLES.get(self.name, self.name)} at {self.root}: {self.images:,} images",
            f"{'split':6}{'modality':10}{'identities':>11}{'images':>9}  {'images per identity':21}cameras",
        ]
        for g in self.groups:
            per = f"{g.least} to {g.most}, median {g.median:g}"
            cameras = " ".join(map(str, g.cameras)) or "-"
            lines.append(f"{g.split:6}{g.modality:10}{g.identities:11,}{g.images:9,}  {per:21}{cameras}")
        return lines + [f"note: {note}" for note in self.notes]


def summary(table: Table) -> Summary:
    """Count the identities, images and cameras of a table, per split and modality."""
    groups = []
    for split in SPLITS:
        for modality in Modality:
            part = table.select(split=split, modality=modality)
            if not len(part):
                continue
            counts = np.unique(part.pid[part.pid != NO_PID], return_counts=True)[1].tolist()
            cameras = tuple(np.unique(part.camid[part.camid != NO_CAMERA]).tolist())
            spread = min(counts, default=0), float(np.median(counts or [0])), max(counts, default=0)
            groups.append(SplitSummary(split, str(modality), len(counts), len(part), cameras, *spread))
    return Summary(table.name, str(table.origin), len(table), tuple(groups), table.notes)
