"""A training table without labels: crops that two cameras side by side took at one moment show one person."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from scipy.cluster.hierarchy import DisjointSet

from fmcnet.data.crop import TABLE, boxes_digest
from fmcnet.data.images import load_image
from fmcnet.data.listing import Ignored, ignored_facts, ignored_line, list_folder
from fmcnet.data.pixels import colour_notes
from fmcnet.data.readers.csv import HELD_OUT, read_csv
from fmcnet.errors import DataError, first_of
from fmcnet.files import private_mode, write_rows
from fmcnet.names import printable
from fmcnet.times import parse_capture_time
from fmcnet.types import MODALITY_WORDS, NO_PID, Modality

COLUMNS = ("path", "pid", "modality", "camid", "split")
_WORD = re.compile(r"(?:^|[-_. ])([a-z]+)(?=$|[-_. ])", re.IGNORECASE)


@dataclass(frozen=True)
class PairReport:
    """What `make_pairs` wrote."""

    table: Path  # the CSV
    pairs: int  # of crops of one moment
    identities: int  # that training will tell apart
    alone: dict[Modality, tuple[str, ...]]  # crops without a partner, by modality
    missing: tuple[str, ...]  # rows of a CSV whose file is gone
    notes: tuple[str, ...]  # of the CSVs' reader, and on colours that contradict a modality
    ignored: tuple[Ignored, ...]  # files of a folder that are no images

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        alone = {str(modality): names for modality, names in self.alone.items()}
        return {
            **vars(self),
            "table": str(self.table),
            "alone": alone,
            "ignored": ignored_facts(self.ignored),
        }


class _Crop(NamedTuple):
    """A crop, and labels of its person: two crops that share a label show one person."""

    path: Path
    person: tuple[str, ...]
    time: datetime | None = None


@dataclass
class _Side:
    """One camera's crops; a crop's name is its path below `root`."""

    source: Path
    modality: Modality
    root: Path
    crops: list[_Crop] = field(default_factory=list)
    by_name: dict[str, _Crop] = field(default_factory=dict)  # by the name that the crops of a pair share
    missing: list[str] = field(default_factory=list)
    boxes: dict[str, str] = field(default_factory=dict)  # digests, by the tables' folders below `root`
    notes: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()


def make_pairs(
    visible: str | Path, infrared: str | Path, out: str | Path, *, folders: bool = False
) -> PairReport:
    """Write the CSV of a training on pairs: `fmcnet train --config pairs --data OUT`.

    Two crops are a pair if their paths below the two folders are equal but for the suffix, or differ only by a word
    for the modality (`MODALITY_WORDS`) in the file's name: `a/0001_vis.jpg` and `a/0001_ir.png`. Each pair is an
    identity, because nobody knows who is on two of them. Pairs are joined by a known `pid` or a `track` of a
    CSV, or, with `folders`, the folder that holds the crops.

    Args:
        visible: a folder of crops, or the CSV that `fmcnet crop` wrote. Of a folder, each `people.csv` in it is read.
        infrared: the same of the infrared camera.
        out: the CSV, a new file.
        folders: crops in one folder show one person.

    Raises:
        DataError: an `out` that exists, fewer than two identities, crops that can be paired in two ways, an image
            that is given twice, or a faulty CSV.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() != ".csv":
        raise DataError(f"--out {out}: the table is a CSV: give a name that ends with .csv")
    if out.exists() or out.is_symlink():
        raise DataError(f"--out {out} exists: give another name, or remove it first")
    sides = [
        _read_side(Path(source).expanduser(), modality)
        for modality, source in ((Modality.VISIBLE, visible), (Modality.INFRARED, infrared))
    ]
    _refuse_duplicates(sides)
    pairs = _name_crops(sides)
    if not pairs:
        for side in sides:
            if not side.source.is_dir():  # a CSV written by hand next to the folder of its crops
                side.root = Path(os.path.commonpath([crop.path.parent for crop in side.crops]))
        pairs = _name_crops(sides)
    identities = _identities(pairs, sides, folders)
    if len(set(identities)) < 2:
        examples = [first_of([str(crop.path) for crop in side.crops], 2) for side in sides]
        words = [
            "/".join(word for word, meaning in MODALITY_WORDS.items() if meaning is kind and word.isalpha())
            for kind in Modality
        ]
        raise DataError(
            f"{visible} and {infrared} have {len(set(identities))} identities in common, training needs 2: crops of "
            f"one moment must have one name in both, but for a word as {' and '.join(words)}. "
            f"There are {' and '.join(examples)}"
        )
    base = out.resolve().parent
    rows: list[tuple[object, ...]] = [COLUMNS]
    for pair, identity in zip(pairs, identities, strict=True):
        for camera, (side, crop) in enumerate(zip(sides, pair, strict=True), start=1):
            path = crop.path.resolve()
            path = path.relative_to(base) if path.is_relative_to(base) else path
            rows.append((path.as_posix(), identity, side.modality, camera, "train"))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(out, rows, private_mode(out.parent))
    day, night = sides
    crops = [(side.modality.code, crop.path) for side in sides for crop in side.by_name.values()]
    return PairReport(
        table=out,
        pairs=len(pairs),
        identities=len(set(identities)),
        alone={
            side.modality: tuple(
                str(side.by_name[name].path) for name in sorted(side.by_name.keys() - other.by_name.keys())
            )
            for side, other in ((day, night), (night, day))
        },
        missing=(*day.missing, *night.missing),
        notes=(
            *day.notes,
            *night.notes,
            *_pair_notes(pairs, day, night),
            *colour_notes([code for code, _ in crops], lambda row: load_image(crops[row][1])),
        ),
        ignored=(*day.ignored, *night.ignored),
    )


def _read_side(source: Path, modality: Modality) -> _Side:
    side = _Side(source, modality, (source if source.is_dir() else source.parent).absolute())
    if not source.exists():
        raise DataError(f"{source} does not exist: give a folder of {modality} crops, or their CSV")
    if source.is_dir():
        listing = list_folder(source)
        tables = sorted(path for file in listing.ignored if (path := Path(file.path)).name == TABLE)
        side.ignored = tuple(file for file in listing.ignored if Path(file.path) not in tables)
        people = {crop.path.resolve(): crop for file in tables for crop in _read_table(side, file)}
        plain = [_Crop(path.absolute(), ()) for path in listing.images]
        side.crops = [people.get(crop.path.resolve(), crop)._replace(path=crop.path) for crop in plain]
    else:
        side.crops = list(_read_table(side, source))
    if not side.crops:
        reason = f" ({ignored_line(side.ignored)})" if side.ignored else ""
        reason += f" ({len(side.missing)} files are gone)" if side.missing else ""
        raise DataError(f"{source} has no {modality} crop{reason}: give a folder of images, or their CSV")
    for crop in side.crops:
        if not str(crop.path).isprintable():  # also a name that is not UTF-8, which no CSV can hold
            raise DataError(f"{printable(str(crop.path))}: a hidden character, or not UTF-8: rename the file")
    return side


def _read_table(side: _Side, file: Path) -> Iterator[_Crop]:
    """The crops of a CSV; the side gets its notes and the rows without a file."""
    table, modality = read_csv(file, training=False, modality=side.modality), side.modality
    if (table.modality != modality.code).any():
        raise DataError(f"{file} has {modality.other} crops, and stands where {modality} ones are meant")
    notes = (note for note in table.notes if not note.startswith(HELD_OUT))  # all of them are for training
    side.notes = tuple(dict.fromkeys((*side.notes, *notes)))
    side.boxes[os.path.relpath(file.parent, side.root)] = boxes_digest(file.parent)
    columns = table.full_paths(), table.pid.tolist(), table.track, table.time.tolist()
    for path, pid, track, time in zip(*columns, strict=True):
        if not path.is_file():
            side.missing.append(str(path))
            continue
        person = [f"pid {table.identity(pid)}"] if pid != NO_PID else []
        person += [f"{modality} track {track}"] if track else []
        crop = _Crop(path.absolute(), tuple(person))
        with contextlib.suppress(DataError):  # no time, or one that index names
            crop = crop._replace(time=parse_capture_time(time))
        yield crop


def _refuse_duplicates(sides: list[_Side]) -> None:
    """Refuse an image that is given twice, also by a link."""
    seen: dict[Path, Path] = {}
    for path in (crop.path for side in sides for crop in side.crops):
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            raise DataError(f"{first} and {path} are one image: give each image once")


def _pair_notes(pairs: list[list[_Crop]], day: _Side, night: _Side) -> Iterator[str]:
    """Why pairs may show two persons: different boxes, whose numbers are in the crops' names, or different times."""
    if any(len({digest, night.boxes.get(folder, "")} - {""}) > 1 for folder, digest in day.boxes.items()):
        yield (
            "fmcnet crop cut the two cameras by different boxes, so crop 00 of a frame may be another person in "
            "each: cut both by one file, unless both list the same persons in the same order"
        )
    apart = [(a, b) for a, b in pairs if a.time and b.time and abs(a.time - b.time) > timedelta(seconds=1)]
    if apart:
        yield (
            f"{len(apart)} of {len(pairs)} pairs are over 1 s apart by their times, the first {apart[0][0].path} and "
            f"{apart[0][1].path}: frames of one number must be of one moment, unless only the clocks differ"
        )


def _name_crops(sides: list[_Side]) -> list[list[_Crop]]:
    """Name each side's crops, without the word for the modality unless both have it; the pairs, sorted by name."""
    # By relpath, for a CSV may name crops elsewhere.
    full_names = [[_composed(os.path.relpath(crop.path, side.root)) for crop in side.crops] for side in sides]
    shared = set(full_names[0]).intersection(full_names[1])
    for side, names in zip(sides, full_names, strict=True):
        side.by_name = {}
        for name, crop in zip(names, side.crops, strict=True):
            name = name if name in shared else _without_modality(name, side.modality)
            first = side.by_name.setdefault(name, crop)
            if first is not crop:
                raise DataError(
                    f"{first.path} and {crop.path} have one name: which is the pair's? Remove one"
                )
    day, night = (side.by_name for side in sides)
    return [[day[name], night[name]] for name in sorted(day.keys() & night.keys())]


def _composed(path: str) -> str:
    """A path without suffix, its accents as one character each: macOS writes them as two."""
    return unicodedata.normalize("NFC", Path(path).with_suffix("").as_posix())


def _without_modality(name: str, modality: Modality) -> str:
    """A crop's name without the last word for its modality and the separator beside it."""
    folder, slash, stem = name.rpartition("/")
    matches = [match for match in _WORD.finditer(stem) if MODALITY_WORDS.get(match[1].lower()) is modality]
    if matches:
        before, after = stem[: matches[-1].start()], stem[matches[-1].end() :]
        stem = (before + after if before else after[1:]) or stem
    return folder + slash + stem


def _identities(pairs: list[list[_Crop]], sides: list[_Side], folders: bool) -> list[str]:
    """The identity of each pair: one for all pairs that a pid, a track or a folder joins."""
    if folders and all(crop.path.parent == side.root for side in sides for crop in side.crops):
        raise DataError(
            "--folders: no crop lies in a folder of its own: leave it out, or give the folder above"
        )
    groups = DisjointSet(range(len(pairs)))
    first: dict[str, int] = {}  # pair of each label
    pids: dict[int, str] = {}  # pid of each group, where its tables name one
    for index, pair in enumerate(pairs):
        labels = {label: crop.path for crop in pair for label in crop.person}
        for side, crop in zip(sides, pair, strict=True):
            if folders and crop.path.parent != side.root:
                labels[f"folder {os.path.relpath(crop.path.parent, side.root)}"] = crop.path
        of_pair = {label for label in labels if label.startswith("pid ")}
        if len(of_pair) > 1:
            raise DataError(
                f"{pair[0].path} and {pair[1].path} are of one moment, and of {' and '.join(sorted(of_pair))}: "
                "correct one of the tables"
            )
        for label, path in labels.items():
            other = first.setdefault(label, index)
            joined = {pids[groups[member]] for member in (other, index) if groups[member] in pids} | of_pair
            if len(joined) > 1:
                raise DataError(
                    f"the {label}, of {path} and others, joins {' and '.join(sorted(joined))}: correct the tables"
                )
            groups.merge(other, index)
            if joined:
                pids[groups[index]] = joined.pop()
    names: dict[int, str] = {}
    return [names.setdefault(groups[index], f"person-{len(names) + 1}") for index in range(len(pairs))]
