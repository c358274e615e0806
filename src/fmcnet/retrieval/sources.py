"""What to index, as a list of images with their metadata: from folders, files, or a dataset's table."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import NamedTuple

from fmcnet.data.listing import Ignored, near_file
from fmcnet.data.pixels import ValueRange, parse_range
from fmcnet.data.readers import benchmark_layout, detect_layout, modality_of_folder, read_dataset
from fmcnet.data.readers.csv import HELD_OUT, MISSING
from fmcnet.data.table import Table
from fmcnet.errors import LISTED, DataError, FmcnetError, GalleryError
from fmcnet.identities import parse_identity
from fmcnet.inference.image_input import Fault, list_images
from fmcnet.retrieval.inputs import as_tags, optional_text, text
from fmcnet.times import Doubtful, TimePattern, doubtful_times, parse_capture_time
from fmcnet.types import NO_CAMERA, Modality

METADATA = ("camera", "time", "track", "pid", "tags")
"""Values of an image that may be absent."""


class NamePattern:
    """A regular expression with one group, searched for in a name.

    Args:
        pattern: as "cam([0-9]+)"; without a group the whole match counts.
        option: named in messages.

    Raises:
        FmcnetError: when it is no regular expression, or has several groups.
    """

    def __init__(self, pattern: str, option: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise FmcnetError(f"{option} '{pattern}' is no regular expression: {error}") from error
        if self._pattern.groups > 1:
            raise FmcnetError(f"{option} '{pattern}' has {self._pattern.groups} groups (...): give one")
        self._option = option

    def find(self, name: str) -> str:
        """The group's text; DataError when the name does not match, or the group is empty."""
        match = self._pattern.search(name)
        group = match[self._pattern.groups] if match else None
        if not group:
            raise DataError(f"its name '{name}' does not match {self._option} '{self._pattern.pattern}'")
        return group

    def identity(self, name: str) -> str | None:
        """`find` as an identity; None where unknown."""
        return parse_identity(self.find(name))


class SourceImage(NamedTuple):
    """One image to index; see `Entry` for the meaning of each value.

    Attributes:
        path: absolute.
        source: where it came from, as a table states it; None: its path.
        root: the folder that is indexed; None: the one that holds it.
        value_range: as `fmcnet.data.images.load_image`; None: that of all images.
        written: `path` as a table writes it, with `..`; None: without. An entry whose id is made of it keeps it.
        unknown: names of the values that a table writes as unknown.
        empty: names of those that it has a column of, and leaves empty here.
    """

    path: Path
    modality: Modality
    pid: str | None = None
    camera: str | None = None
    time: datetime | None = None
    track: str | None = None
    tags: tuple[str, ...] = ()
    source: str | None = None
    root: Path | None = None
    value_range: ValueRange | None = None
    written: Path | None = None
    unknown: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """As `path_id`: the same image has the same id whenever it is indexed."""
        return path_id(self.path)


def path_id(path: Path) -> str:
    """32 hexadecimal digits of an absolute path: the id of its image."""
    return hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:32]


def without_dots(path: str) -> str:
    """A path without `..`; an address stays, as does a path with a link to a folder before the dots."""
    plain = os.path.normpath(path)
    if "://" in path or ".." not in path:
        return path
    if os.path.exists(path) and not (os.path.exists(plain) and os.path.samefile(path, plain)):  # noqa: PTH110, PTH121
        return path
    return plain


@dataclass(frozen=True)
class Rules:
    """Metadata of all images, and patterns that find it in their names.

    Attributes:
        modality: of images without a table; of a table, only the rows of this modality are taken.
        camera: of all images.
        cameras: pattern for the name, which is the path below the folder given.
        times: pattern for the name.
        tracks: pattern for the name.
        pids: pattern for the name.
        pid_prefix: put before every identity, so that equal numbers of two datasets stay apart.
        layout: "auto", "images" (every image as a plain one), "sysu", "regdb", "llcm" or "csv".
        split: of a dataset: "train", "val", "test", or "all".
        zone: of times without one.
        doubtful: what to do with local times that come twice, or never.
    """

    modality: Modality | None = None
    camera: str | None = None
    cameras: NamePattern | None = None
    times: TimePattern | None = None
    tracks: NamePattern | None = None
    pids: NamePattern | None = None
    pid_prefix: str = ""
    layout: str = "auto"
    split: str = "all"
    zone: tzinfo = timezone.utc
    doubtful: Doubtful = "refuse"


@dataclass(frozen=True)
class Sources:
    """Images to index, and what was left out.

    Attributes:
        faults: those that cannot be indexed, with the reason.
        same: files named before, by another path or a link.
        not_chosen: how many rows of a table an option left out, by the option.
        not_listed: images in a folder, given for the one CSV in it, that has no row of them.
        ignored: files of the folders that are no images.
        notes: on the table, doubtful times and the options; a sentence each.
    """

    images: tuple[SourceImage, ...] = ()
    faults: tuple[Fault, ...] = ()
    same: tuple[Fault, ...] = ()
    not_chosen: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    not_listed: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()


def read_sources(sources: Sequence[str | Path], rules: Rules) -> Sources:
    """List what to index, each file once.

    One CSV file, or one folder with the layout of a dataset, is a table, which gives modality, camera, identity,
    time, track and tags. Every row is taken, also those that training leaves out. All other sources are images and
    folders of images.

    Args:
        sources: files and folders.
        rules: metadata that the sources do not give.

    Raises:
        DataError: for a missing source, or a table with faults.
        FmcnetError: for images without a modality, or several sources of which one is a table.
    """
    if rules.camera is not None and rules.cameras is not None:
        raise FmcnetError("give --camera or --camera-from-name, not both")
    if "" in sources:
        list_images(sources)  # refuses it
    if rules.camera is not None and not rules.camera.strip():
        raise FmcnetError("--camera is empty: name the camera, or leave the option out")
    paths = [Path(os.path.abspath(Path(source).expanduser())) for source in sources]  # noqa: PTH100 (.. goes, links stay)
    layout = _find_layout(paths, rules.layout, rules.modality)
    rows, rest = _list_rows(paths, rules) if layout == "images" else _read_table(paths[0], layout, rules)

    images: dict[Hashable, SourceImage] = {}
    faults: list[Fault] = []
    same: list[Fault] = []
    replaced: dict[str, list[SourceImage]] = {}
    for index, (name, stated, time) in enumerate(rows):
        try:
            str(stated.path).encode()
            key = _file_key(stated.path)
            image = _name_applied(stated, name, time, rules)
            for column in ("camera", "track") if rules.pid_prefix else ("camera", "track", "pid"):
                if getattr(stated, column) not in (None, getattr(image, column)):
                    replaced.setdefault(column, []).append(stated)
            image = _check_texts(image)
        except UnicodeEncodeError:
            faults.append(Fault(index, ascii(str(stated.path)), "its name is not valid Unicode"))
            continue
        except (DataError, GalleryError) as error:
            reason = str(error)
            if reason == MISSING and len(faults) < LISTED:  # more are not shown
                reason += near_file(name, stated.root) if stated.root else near_file(stated.path)
            faults.append(Fault(index, str(stated.path), reason))
            continue
        first = images.setdefault(key, image)
        if first.path != image.path:
            same.append(Fault(index, str(image.path), f"is the same file as {first.path}"))

    accepted = tuple(images.values())
    time_notes = doubtful_times((str(image.path), image.time) for image in accepted)
    notes = (*rest.notes, *time_notes, *_replaced_notes(replaced), *_no_effect_notes(accepted, rules))
    return replace(rest, images=accepted, faults=tuple(faults), same=tuple(same), notes=notes)


def _replaced_notes(images: Mapping[str, Sequence[SourceImage]]) -> list[str]:
    """A note for each value of a table that an option replaced by another."""
    return [
        f"an option gives {len(changed)} image{'s' * (len(changed) > 1)} another {column} than the table, the "
        f"first {changed[0].path} ({getattr(changed[0], column)} in the table)"
        for column, changed in images.items()
    ]


def _no_effect_notes(images: Sequence[SourceImage], rules: Rules) -> list[str]:
    """A note for each option about a value that no image has."""
    notes = []
    if rules.pid_prefix and not any(image.pid for image in images):
        notes.append(
            "no image has an identity, so --pid-prefix has no effect: --pid-from-name finds identities"
        )
    if (rules.zone, rules.doubtful) != (timezone.utc, "refuse") and not any(image.time for image in images):
        notes.append(
            "no image has a time, so --timezone and --doubtful-times have no effect: --time-from-name finds times"
        )
    return notes


def _not_listed(source: Path, table: Table) -> tuple[str, ...]:
    """Images in the folder of a CSV of which it has no row."""
    listed = set()
    for path in table.full_paths():
        with contextlib.suppress(DataError):
            listed.add(_file_key(path))
    try:
        return tuple(str(path) for path in list_images([source]) if _file_key(path) not in listed)
    except DataError:
        return ()  # all its images lie elsewhere


def _file_key(path: Path) -> Hashable:
    """Equal for all names of a file; DataError if there is none."""
    try:
        status = path.stat()
    except OSError as error:
        no_file = {errno.ELOOP, errno.ENAMETOOLONG}  # no file can have such a path
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) or error.errno in no_file:
            raise DataError(MISSING) from error
        raise DataError(f"it cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError("it is a folder: give each of its images a row")
    return status.st_dev, status.st_ino


def _find_layout(paths: Sequence[Path], requested: str, modality: Modality | None) -> str:
    if requested != "auto":
        if requested != "images" and len(paths) > 1:
            raise FmcnetError(f"--layout {requested} takes one folder or CSV, not {len(paths)}")
        return requested
    if len(paths) > 1:
        for path in paths:
            layout = _dataset_layout(path)
            if layout == "csv" or benchmark_layout(path):
                raise FmcnetError(
                    f"{path} is a {layout} dataset, which states the modality of its images: index it in a call of "
                    "its own, or say --layout images to take all as plain images"
                )
    elif _dataset_layout(paths[0]) is not None:
        return detect_layout(paths[0])
    for path in paths:
        _check_not_dataset(path, modality)
    return "images"


def _dataset_layout(path: Path) -> str | None:
    """The layout of a dataset or CSV; None for images, folders of no known layout, or nothing."""
    if path.is_file() and path.suffix.lower() not in (".csv", ".tsv"):
        return None
    try:
        return detect_layout(path)
    except DataError:
        return None


def _check_not_dataset(path: Path, modality: Modality | None) -> None:
    """Refuse a folder that holds datasets, or that is in a dataset which states another modality."""
    datasets = [child for child in sorted(path.iterdir()) if benchmark_layout(child)] if path.is_dir() else []
    if datasets:
        names = ", ".join(str(child) for child in datasets)
        raise FmcnetError(
            f"{path} holds datasets, which state the modality of their images: {names}. Index each in a call of its "
            "own, or say --layout images to take all as plain images"
        )
    for folder in list(path.parents)[:3]:
        layout = benchmark_layout(folder)
        stated = modality_of_folder(layout, path.relative_to(folder).parts[0]) if layout else None
        if modality is not None and stated is not None and stated is not modality:
            raise FmcnetError(
                f"{path} is {stated} in the {layout} dataset {folder}, but --modality says {modality}: mend it, or "
                "say --layout images to take it as plain images"
            )


_Row = tuple[str, SourceImage, str]
"""An image's name, the image, and its time as a table writes it."""


def _list_rows(paths: Sequence[Path], rules: Rules) -> tuple[list[_Row], Sources]:
    """The rows, and what `Sources` holds beside images and faults."""
    ignored: list[Ignored] = []
    listed = [(source, path) for source in paths for path in list_images([source], ignored)]
    if rules.modality is None:
        raise FmcnetError("say what these images are: --modality visible or --modality infrared")
    if rules.split != "all":
        raise FmcnetError(
            f"--split {rules.split} is of a dataset or CSV, and these are plain images: leave it out"
        )
    rows: list[_Row] = []
    for source, path in listed:
        name = path.relative_to(source).as_posix() if path != source else path.name
        root = source if path != source else None
        rows.append((name, SourceImage(path, rules.modality, root=root), ""))
    if not rows:
        raise DataError(f"{ignored[0].path} is {ignored[0].reason}, not an image: give images or folders")
    return rows, Sources(ignored=tuple(ignored))


def _read_table(source: Path, layout: str, rules: Rules) -> tuple[list[_Row], Sources]:
    """As `_list_rows`."""
    try:
        table = read_dataset(source, layout=layout, training=False, modality=rules.modality)
    except DataError as error:
        if rules.layout == "auto" and source.is_dir():
            raise DataError(
                f"{error}\n{source} looks like a {layout} dataset. For a folder of images, give --layout images"
            ) from error
        raise
    of_split = table.select(split=None if rules.split == "all" else rules.split)
    chosen = of_split.select(modality=rules.modality)
    if not len(chosen):
        modality = "" if rules.modality is None else f" {rules.modality}"
        raise DataError(f"{source} has no{modality} image of split '{rules.split}'")
    left_out = {
        f"--split {rules.split}": len(table) - len(of_split),
        f"--modality {rules.modality}": len(of_split) - len(chosen),
    }
    rows: list[_Row] = []
    header = tuple({"camid": "camera", "date": "time"}.get(name, name) for name in table.header)
    for record, path, pid in zip(chosen.records(), chosen.full_paths(), chosen.identities(), strict=True):
        tags = tuple(tag.strip() for tag in record.tags.split(";") if tag.strip())
        camera = record.camera or (None if record.camid == NO_CAMERA else str(record.camid))
        image = SourceImage(
            path, record.modality, pid, camera, None, record.track or None, tags, record.source or None
        )
        unknown = tuple(name for name in METADATA if (record.path, name) in table.unknown)
        image = image._replace(
            value_range=parse_range(record.range) if record.range else None, unknown=unknown, empty=header
        )
        plain = Path(without_dots(str(path)))
        if plain != path and path.exists():
            path, image = plain, image._replace(path=plain, written=path)
        if path.is_relative_to(table.root):
            image = image._replace(root=table.root)
        rows.append((record.path, image, record.time))
    cells = [record.tags for record in chosen.records()]
    joined = sorted({cell for cell in cells if re.search(r"[,|\[]", cell)})
    notes = [note for note in table.notes if rules.split != "all" or not note.startswith(HELD_OUT)]
    if joined and not any(";" in cell for cell in cells):
        notes.append(f"tags are separated by semicolons, so {joined[0]!r:.80} is one tag")
    not_listed = _not_listed(source, table) if layout == "csv" and source.is_dir() else ()
    not_chosen = {option: count for option, count in left_out.items() if count}
    return rows, Sources(not_chosen=not_chosen, notes=tuple(notes), not_listed=not_listed)


def _name_applied(image: SourceImage, name: str, time: str, rules: Rules) -> SourceImage:
    """As `_apply_name`; the error says where the whole path fits the patterns and the name does not."""
    try:
        return _apply_name(image, name, time, rules)
    except DataError as error:
        try:
            _apply_name(image, image.path.as_posix(), time, rules)
        except DataError:
            raise error from None
        raise DataError(
            f"{error}; the whole path fits, but the name is the path below SOURCE: give a folder above it"
        ) from None


def _apply_name(image: SourceImage, name: str, time: str, rules: Rules) -> SourceImage:
    """The image with its time, and with the metadata that its name holds, which overrides a table's."""
    seen = parse_capture_time(time, rules.zone, rules.doubtful) if time and not rules.times else None
    pid = rules.pids.identity(name) if rules.pids else image.pid
    return image._replace(
        camera=rules.cameras.find(name) if rules.cameras else rules.camera or image.camera,
        time=rules.times.find(name) if rules.times else seen,
        track=rules.tracks.find(name) if rules.tracks else image.track,
        pid=parse_identity(rules.pid_prefix + pid) if rules.pid_prefix and pid is not None else pid,
    )


def _check_texts(image: SourceImage) -> SourceImage:
    """The image as the gallery stores it; what the gallery would refuse is refused here, with the file's name."""
    text(image.source or str(image.path), "source")
    as_tags(image.tags)
    image = image._replace(
        camera=optional_text(image.camera, "camera"), track=optional_text(image.track, "track")
    )
    absent = [name for name in METADATA if getattr(image, name) in (None, ())]
    unknown = tuple(name for name in absent if name in image.unknown)
    empty = tuple(name for name in absent if name in image.empty and name not in unknown)
    return image._replace(unknown=unknown, empty=empty)
