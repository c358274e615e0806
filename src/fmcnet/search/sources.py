"""What to index, as a list of pictures with their metadata: from folders, files, or a dataset's table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import NamedTuple

from fmcnet.data.benchmarks import detect_layout, read_dataset
from fmcnet.data.listing import Ignored
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference.images import Fault, list_images, parse_modality
from fmcnet.search.names import NamePattern, TimePattern, moment
from fmcnet.types import NO_CAMERA, Modality


class Picture(NamedTuple):
    """One picture to index; see `Entry` for the meaning of each value.

    Attributes:
        path: absolute.
    """

    path: Path
    modality: Modality
    pid: int | None = None
    camera: str | None = None
    time: datetime | None = None
    track: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """32 hexadecimal digits of its path: the same picture has the same id whenever it is indexed."""
        return hashlib.sha256(self.path.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class Rules:
    """What is known of all pictures, and what their names tell.

    Attributes:
        modality: of all pictures; of a dataset: only these are taken. camera: of all pictures.
        cameras, times, tracks, pids: found in the name, which is the path below the folder given.
        layout: "auto", "images" (whatever lies there, as pictures), "sysu", "regdb", "llcm" or "csv".
        split: of a dataset: "train", "val", "test", or "all".
        zone: of times that name none.
    """

    modality: Modality | None = None
    camera: str | None = None
    cameras: NamePattern | None = None
    times: TimePattern | None = None
    tracks: NamePattern | None = None
    pids: NamePattern | None = None
    layout: str = "auto"
    split: str = "all"
    zone: tzinfo = field(default=timezone.utc)


@dataclass(frozen=True)
class Sources:
    """Pictures to index, those that cannot be, with the reason, and what else lies in the folders."""

    pictures: tuple[Picture, ...]
    faults: tuple[Fault, ...] = ()
    ignored: tuple[Ignored, ...] = ()


def read_sources(sources: Sequence[str | Path], rules: Rules) -> Sources:
    """List what to index, each picture once.

    One CSV file, or one folder laid out as a dataset that fmcnet reads, is a table: modality, camera, identity and
    time are the table's. Everything else are pictures, and folders of pictures.

    Raises:
        DataError: for what is not there, or a table with faults. FmcnetError: for pictures without a modality.
    """
    if rules.camera is not None and rules.cameras is not None:
        raise FmcnetError("give --camera or --camera-from-name, not both")
    places = [Path(os.path.abspath(Path(source).expanduser())) for source in sources]  # noqa: PTH100 (.. goes, links stay)
    layout = _layout(places, rules.layout)
    if layout == "images" and rules.modality is None:
        raise FmcnetError("say what these pictures are: --modality visible or --modality infrared")
    ignored: list[Ignored] = []
    named = _pictures(places, rules, ignored) if layout == "images" else _table(places[0], layout, rules)
    pictures: dict[Path, Picture] = {}
    faults: list[Fault] = []
    for at, (name, picture) in enumerate(named):
        try:
            str(picture.path).encode()
            pictures.setdefault(picture.path, _told_by_name(picture, name, rules))
        except UnicodeEncodeError:
            faults.append(Fault(at, ascii(str(picture.path)), "its name is not valid Unicode"))
        except DataError as error:
            faults.append(Fault(at, str(picture.path), str(error)))
    return Sources(tuple(pictures.values()), tuple(faults), tuple(ignored))


def _layout(places: Sequence[Path], wanted: str) -> str:
    if wanted != "auto":
        if wanted != "images" and len(places) > 1:
            raise FmcnetError(f"--layout {wanted} takes one folder or CSV, not {len(places)}")
        return wanted
    if len(places) > 1 or (places[0].is_file() and places[0].suffix.lower() not in (".csv", ".tsv")):
        return "images"
    try:
        return detect_layout(places[0])
    except DataError:
        return "images"  # a folder of no known layout, or nothing, which list_images says


def _pictures(places: Sequence[Path], rules: Rules, ignored: list[Ignored]) -> list[tuple[str, Picture]]:
    assert rules.modality is not None
    found = []
    for place in places:
        for path in list_images([place], ignored):
            name = path.relative_to(place).as_posix() if path != place else path.name
            found.append((name, Picture(path, rules.modality)))
    if not found:
        raise DataError(f"{ignored[0].path} is {ignored[0].reason}, not an image: give images or folders")
    return found


def _table(place: Path, layout: str, rules: Rules) -> list[tuple[str, Picture]]:
    try:
        table = read_dataset(place, layout=layout)
    except DataError as error:
        if rules.layout == "auto" and place.is_dir():
            raise DataError(
                f"{error}\n{place} looks like a {layout} dataset. If it is just a folder of pictures: --layout images"
            ) from error
        raise
    chosen = table.select(split=None if rules.split == "all" else rules.split, modality=rules.modality)
    if not len(chosen):
        wanted = "" if rules.modality is None else f" {rules.modality}"
        raise DataError(f"{place} has no{wanted} picture of split '{rules.split}'")
    found = []
    for row, path in zip(chosen.records(), chosen.full_paths(), strict=True):
        named = (table.pid_names[row.pid],) if table.pid_names else ()
        seen = moment(row.time, rules.zone) if row.time and rules.times is None else None
        camera = None if row.camid == NO_CAMERA else str(row.camid)
        found.append((row.path, Picture(path, row.modality, row.pid, camera, seen, None, named)))
    return found


def _told_by_name(picture: Picture, name: str, rules: Rules) -> Picture:
    """With what the name tells, which wins over a table.

    Raises:
        DataError: when it does not tell what it should.
    """
    return picture._replace(
        camera=rules.cameras.find(name) if rules.cameras else rules.camera or picture.camera,
        time=rules.times.find(name) if rules.times else picture.time,
        track=rules.tracks.find(name) if rules.tracks else picture.track,
        pid=rules.pids.number(name) if rules.pids else picture.pid,
    )


def modality_or_none(text: str | None) -> Modality | None:
    """`parse_modality`, or None."""
    return None if text is None else parse_modality(text)
