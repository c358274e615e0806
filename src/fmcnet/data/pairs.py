"""A training table without labels: crops that two cameras side by side took at one moment show one person."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fmcnet.characters import printable
from fmcnet.data.listing import Ignored, ignored_facts, list_folder
from fmcnet.data.readers.csv import read_csv
from fmcnet.errors import DataError
from fmcnet.files import write_atomically
from fmcnet.types import MODALITY_WORDS, Modality

COLUMNS = ("path", "pid", "modality", "camid", "split")
SHOWN = 2
_WORD = re.compile(r"(?:^|[-_. ])([a-z]+)(?=$|[-_. ])", re.IGNORECASE)


@dataclass(frozen=True)
class PairReport:
    """What `make_pairs` wrote.

    Attributes:
        table: the CSV.
        pairs: of crops of one moment.
        identities: that training will tell apart.
        alone: crops without a partner, by modality.
        ignored: files of a folder that are no images.
    """

    table: Path
    pairs: int
    identities: int
    alone: dict[Modality, tuple[str, ...]]
    ignored: tuple[Ignored, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "table": str(self.table),
            "pairs": self.pairs,
            "identities": self.identities,
            "alone": {str(modality): list(names) for modality, names in self.alone.items()},
            "ignored": ignored_facts(self.ignored),
        }


class _Crop(NamedTuple):
    path: Path
    track: str


def make_pairs(
    visible: str | Path, infrared: str | Path, out: str | Path, *, folders: bool = False
) -> PairReport:
    """Write the CSV of a training on pairs: `fmcnet train --config pairs --data OUT`.

    Two crops are a pair if their paths below the two folders differ by nothing but the suffix and a word for the
    modality (`MODALITY_WORDS`) in the file's name: `a/0001_vis.jpg` and `a/0001_ir.png`. Each pair is an identity,
    because nobody knows who is on two of them. A track joins its pairs to one identity: the column `track` of a
    CSV, or, with `folders`, the folder that holds the crops.

    Args:
        visible: a folder of crops, or the CSV that `fmcnet crop` wrote.
        infrared: the same of the infrared camera.
        out: the CSV, a new file.
        folders: crops in one folder show one person.

    Raises:
        DataError: an `out` that exists, fewer than two identities, two crops of one name in one folder, or a
            faulty CSV.
    """
    out, ignored = Path(out).expanduser(), list[Ignored]()
    if out.suffix.lower() != ".csv":
        raise DataError(f"--out {out}: the table is a CSV: give a name that ends with .csv")
    if out.exists():
        raise DataError(f"--out {out} exists: give another name, or remove it first")
    sides = {
        modality: _read(Path(source).expanduser(), modality, folders, ignored)
        for modality, source in ((Modality.VISIBLE, visible), (Modality.INFRARED, infrared))
    }
    alike = sides[Modality.VISIBLE].keys() & sides[Modality.INFRARED].keys()
    sides = {modality: _by_key(side, modality, alike) for modality, side in sides.items()}
    day, night = sides[Modality.VISIBLE], sides[Modality.INFRARED]
    keys = sorted(day.keys() & night.keys())
    alone = {
        modality: tuple(str(crop.path) for key, crop in sorted(side.items()) if key not in other)
        for (modality, side), other in zip(sides.items(), (night, day), strict=True)
    }
    names = {key: day[key].track or night[key].track or f"pair/{key}" for key in keys}
    if len(set(names.values())) < 2:
        raise DataError(
            f"{visible} and {infrared} have {len(set(names.values()))} identities in common, training needs 2: crops "
            f"of one moment must have one name in both. There are {_some(crop.path for crop in day.values())} and "
            f"{_some(crop.path for crop in night.values())}"
        )
    here = out.resolve().parent

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            for key in keys:
                for camera, (modality, side) in enumerate(sides.items(), start=1):
                    path = side[key].path.resolve()
                    shown = path.relative_to(here) if path.is_relative_to(here) else path
                    writer.writerow((shown.as_posix(), names[key], str(modality), camera, "train"))

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, write)
    return PairReport(out, len(keys), len(set(names.values())), alone, tuple(ignored))


def _read(source: Path, modality: Modality, folders: bool, ignored: list[Ignored]) -> dict[str, _Crop]:
    """The crops of one camera, by path without suffix."""
    found: dict[str, _Crop] = {}
    if not source.exists():
        raise DataError(f"{source} does not exist: give a folder of {modality} crops, or their CSV")
    if source.is_dir():
        listing = list_folder(source)
        ignored += listing.ignored
        crops = [(path.relative_to(source), _Crop(path, "")) for path in listing.images]
    else:
        table = read_csv(source, training=False, modality=modality)
        if (table.modality != modality.code).any():
            raise DataError(
                f"{source} has {modality.other} crops, and stands where {modality} ones are meant"
            )
        crops = [
            (Path(os.path.relpath(path, source.parent)), _Crop(Path(path), track))
            for path, track in zip(table.full_paths(), table.track, strict=True)
        ]
    for name, crop in crops:
        folder = name.parent.as_posix()
        track = f"{modality}-track/{crop.track}" if crop.track else ""
        track = track or (f"track/{folder}" if folders and folder != "." else "")
        key = name.with_suffix("").as_posix()
        if not key.isprintable():  # also a name that is not UTF-8, which no CSV can hold
            raise DataError(
                f"{printable(str(crop.path))}: a control character, or not UTF-8: rename the file"
            )
        if key in found:
            raise DataError(
                f"{found[key].path} and {crop.path} have one name: which is the pair's? Remove one"
            )
        found[key] = crop._replace(track=track)
    return found


def _by_key(side: dict[str, _Crop], modality: Modality, alike: set[str]) -> dict[str, _Crop]:
    """The crops by what the two of a pair have in common; names that both sides have stay whole."""
    found: dict[str, _Crop] = {}
    for name, crop in side.items():
        key = name if name in alike else _key(Path(f"{name}.png"), modality)
        if key in found:
            raise DataError(
                f"{found[key].path} and {crop.path} have one name: which is the pair's? Remove one"
            )
        found[key] = crop
    return found


def _key(name: Path, modality: Modality) -> str:
    """A path below a folder without its suffix and without the last word for the modality in the file's name."""
    stem = name.with_suffix("").name
    words = [one for one in _WORD.finditer(stem) if MODALITY_WORDS.get(one[1].lower()) is modality]
    if words:
        before, after = stem[: words[-1].start()], stem[words[-1].end() :]
        stem = before + after if before else after[1:]  # with the separator beside it
    return (name.parent / stem).as_posix() if stem else name.with_suffix("").as_posix()


def _some(paths: Iterable[Path]) -> str:
    listed = [str(path) for path in paths]
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
