"""`fmcnet data check`: what a tree has, lacks, and how it compares with what was published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.images import verify_images
from fmcnet.data.readers import LAYOUTS, MARKERS, detect_layout, read_dataset
from fmcnet.data.readers.regdb import TRIALS
from fmcnet.data.readers.sysu import INFRARED_CAMERAS
from fmcnet.data.summary import TITLES
from fmcnet.data.table import SPLITS, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality

MAX_LINES = 12
"""Unreadable images shown on the screen; `to_dict` holds all."""

HOMES = {
    "sysu": "SYSU-MM01: https://github.com/wuancong/SYSU-MM01 (signed agreement needed)",
    "regdb": "RegDB: http://dm.dongguk.edu (agreement needed)",
    "llcm": "LLCM: https://github.com/ZYK100/LLCM (signed agreement needed)",
}

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
class Part:
    """A folder or file of the layout: is it there, and a remark."""

    name: str
    present: bool
    remark: str = ""


@dataclass(frozen=True)
class Count:
    """A number found beside the published one."""

    name: str
    found: int
    published: int


@dataclass(frozen=True)
class CheckReport:
    """What `check` found. `ok` when nothing keeps the dataset from being used.

    Attributes:
        root: what was checked.
        layout: one of `LAYOUTS`, or "" where none fits.
        parts: the layout's folders and files.
        counts: numbers found beside the published ones (a generated or partial tree may differ: no problem).
        problems: what must be mended, a message each.
        unreadable: (path, reason) of every image that cannot be read.
        notes: what the reader remarked.
        homes: where to ask for access.
    """

    root: str
    layout: str
    parts: tuple[Part, ...]
    counts: tuple[Count, ...]
    problems: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    homes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No problem and no unreadable image."""
        return not self.problems and not self.unreadable

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> list[str]:
        """One screen of text."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{TITLES.get(self.layout, 'no known layout')} at {self.root}: {'ok' if self.ok else 'NOT usable'}"
        if self.parts:
            yield "has:   " + ", ".join(_called(p) for p in self.parts if p.present)
        absent = [_called(p) for p in self.parts if not p.present]
        if absent:
            yield "lacks: " + ", ".join(absent)
        if self.counts:
            width = max(len(count.name) for count in self.counts)
            yield f"{'':{width + 2}}   found  published"
            for count in self.counts:
                mark = "" if count.found == count.published else "  differs"
                yield f"  {count.name:{width}}{count.found:8,}{count.published:11,}{mark}"
        for problem in self.problems:
            yield f"problem: {problem}"
        if self.unreadable:
            yield f"problem: {len(self.unreadable)} images cannot be read:"
            for path, reason in self.unreadable[:MAX_LINES]:
                yield f"  {path}: {reason}"
            if len(self.unreadable) > MAX_LINES:
                yield f"  ... and {len(self.unreadable) - MAX_LINES} more (all with --json)"
        for note in self.notes:
            yield f"note: {note}"
        if self.homes:
            yield "access: " + "; ".join(self.homes)


def check(
    root: str | Path,
    layout: str = "auto",
    *,
    images: bool = True,
    workers: int = 2,
    progress: bool | None = None,
) -> CheckReport:
    """Look at a dataset and report all that was found; raises nothing for a broken tree.

    Args:
        root: a SYSU-MM01, RegDB or LLCM folder, or a CSV.
        layout: "auto" or one of `LAYOUTS`.
        images: decode every image too.
        workers: decoding threads.
        progress: show a bar; None: only on a terminal.

    Raises:
        DataError: when `layout` is none of the known ones.
    """
    root = Path(root).expanduser()
    if layout not in ("auto", *LAYOUTS):
        raise DataError(f"unknown layout '{layout}': choose auto, {', '.join(LAYOUTS)}")
    if layout == "auto":
        try:
            layout = detect_layout(root)
        except DataError as error:
            return CheckReport(str(root), "", (), (), (str(error),), (), (), tuple(HOMES.values()))
    problems: list[str] = []
    manifest = root / "generated.json"
    generated = manifest.is_file()
    if generated and '"complete": true' not in manifest.read_text(encoding="utf-8"):
        problems.append(
            "its generation was interrupted: call the same fmcnet data generate again, it goes on"
        )
    notes: list[str] = []
    tables: list[Table] = []
    trials, absent = _trials(root) if layout == "regdb" and root.is_dir() else ([1], [])
    if absent:
        notes.append(f"idx/ has no files of the splits {', '.join(map(str, absent))}: they cannot be used")
    for trial in trials:
        try:
            table = read_dataset(root, layout=layout, trial=trial)
        except DataError as error:
            problems.append(str(error))
        else:
            tables.append(table)
            notes += [note for note in table.notes if note not in notes]
    # The expected tree once is enough.
    problems = [p.partition("\nExpected:\n")[0] for p in problems[:-1]] + problems[-1:]
    unreadable = verify_images(_distinct(tables), workers, progress) if images and tables else []
    return CheckReport(
        root=str(root),
        layout=layout,
        parts=_parts(root, layout) if root.is_dir() else (),
        counts=_counts(tables[0]) if tables else (),
        problems=tuple(problems),
        unreadable=tuple(unreadable),
        notes=tuple(notes),
        homes=(HOMES[layout],) if layout in HOMES and not generated else (),
    )


def _called(part: Part) -> str:
    return f"{part.name} ({part.remark})" if part.remark else part.name


def _parts(root: Path, layout: str) -> tuple[Part, ...]:
    """The folders and files of a layout, looked up without regard to letter case."""
    names = {entry.name.lower(): entry for entry in root.iterdir()}

    def part(name: str) -> Part:
        top, _, rest = name.partition("/")
        entry = names.get(top.lower())
        if entry is None or not rest:
            return Part(name, entry is not None)
        inside = {child.name.lower() for child in entry.iterdir()} if entry.is_dir() else set()
        return Part(name, rest.lower() in inside)

    if layout == "csv":
        return ()
    parts = [part(name) for name in MARKERS[layout] if name != "exp"]
    if layout == "sysu":
        for split in SPLITS:
            text, matlab = part(f"exp/{split}_id.txt"), part(f"exp/{split}_id.mat")
            parts.append(matlab if matlab.present and not text.present else text)
        draw = part("exp/rand_perm_cam.mat")
        remark = "only for the official gallery draw; in the authors' evaluation code"
        parts.append(draw if draw.present else Part(draw.name, False, remark))
    if layout == "llcm":
        parts += [part(f"idx/{name}.txt") for name in ("train_vis", "train_nir", "test_id")]
    if layout == "regdb":
        for split in ("train", "test"):
            for kind in ("visible", "thermal"):
                each = [part(f"idx/{split}_{kind}_{t}.txt").present for t in range(1, TRIALS + 1)]
                lacking = ", ".join(str(t) for t, there in enumerate(each, start=1) if not there)
                name = f"idx/{split}_{kind}_1..{TRIALS}.txt"
                parts.append(Part(name, all(each), f"splits {lacking}" if any(each) and lacking else ""))
    return tuple(parts)


def _trials(root: Path) -> tuple[list[int], list[int]]:
    """RegDB's splits of which any file is there (split 1 if there is none at all), and the others."""
    idx = next((entry for entry in root.iterdir() if entry.name.lower() == "idx" and entry.is_dir()), None)
    names = {entry.name.lower() for entry in idx.iterdir()} if idx else set()
    kinds = [f"{split}_{kind}" for split in ("train", "test") for kind in ("visible", "thermal")]
    present = [t for t in range(1, TRIALS + 1) if any(f"{kind}_{t}.txt" in names for kind in kinds)] or [1]
    return present, [t for t in range(1, TRIALS + 1) if t not in present] if names else []


def _counts(table: Table) -> tuple[Count, ...]:
    """What was found beside what was published; for RegDB in the first split that could be read."""
    found: dict[str, int] = {}
    for split in SPLITS:
        part = table.select(split=split)
        found[f"{split} identities"] = len(np.unique(part.pid))
        for modality in Modality:
            found[f"{split} {modality} images"] = len(part.select(modality=modality))
    test = table.select(split="test")
    for modality in Modality:
        both = found[f"train {modality} images"] + found[f"val {modality} images"]
        found[f"train + val {modality} images"] = both
    found["test visible images (gallery candidates)"] = found["test visible images"]
    found["test infrared images (queries)"] = found["test infrared images"]
    for camera in INFRARED_CAMERAS:
        found[f"test images of cam{camera}"] = int((test.camid == camera).sum())
    return tuple(Count(name, found[name], number) for name, number in PUBLISHED.get(table.name, {}).items())


def _distinct(tables: list[Table]) -> Table:
    """The rows of several tables of one root, each image once."""
    seen: set[str] = set()
    records = []
    for table in tables:
        for record in table.records():
            if record.path not in seen:
                seen.add(record.path)
                records.append(record)
    return Table.from_records(tables[0].name, tables[0].root, records)
