"""Frames of a folder of images or of a video, one at a time, with their numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from fmcnet.data.boxes import Boxes, FrameKey
from fmcnet.data.images import REMARKS, open_rgb
from fmcnet.data.listing import Ignored, has_image_head, is_image, list_folder
from fmcnet.data.pixels import ValueRange, eight_bit_image
from fmcnet.errors import DataError, first_of, require
from fmcnet.names import control_fault, printable

_NUMBER = re.compile(r"(1[0-9]{9}\.[0-9]+|[0-9]+)")
"""A run of digits; seconds since 1970 with their fraction are one."""
_UNFIT = re.compile(r"^\s|[\ud800-\udfff]")
"""A name that begins with a space, or (as Python shows it) is not UTF-8."""
_CLOCK = re.compile(
    r"(?<![0-9])(?:(?:19|20)[0-9]{2}([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12][0-9]|3[01])"
    r"(?:[-_.T ]*(?!00[0-9]{4})(?:[01][0-9]|2[0-3])([-_.:]?)[0-5][0-9]\2[0-5][0-9](?:\.?[0-9]{3,9}|-[0-9]{3})?)?"
    r"|(?:[01][0-9]|2[0-3])[-.:h][0-5][0-9][-.:m][0-5][0-9](?:\.[0-9]{3,9}|-[0-9]{3})?)(?![0-9])"
)
"""As 20260301, 2026-03-01_22-15-56-040, 20260301_221556.123 or 22h15m56."""
_TIME = re.compile(r"(?!00)([01][0-9]|2[0-3])([0-5][0-9])([0-5][0-9])")
"""As 221556."""


@dataclass(frozen=True)
class Frame:
    """One frame."""

    name: str  # of its crops: the image's path below the folder without suffix, or the video frame's number
    key: FrameKey  # its number or name in the file of boxes; "" where that lacks it
    index: int  # from 0: by the counter in the images' names, else the place in order
    seconds: float | None  # after the first frame, by the video's own clock; None for images
    open: Callable[[], Image.Image]  # decodes it, as RGB


@dataclass(frozen=True)
class Frames:
    """Frames in order."""

    read: Callable[[], Iterator[Frame]]  # starts the frames from the beginning
    notes: tuple[str, ...] = ()  # how their numbers were found
    order_note: str = ""  # for users of `Frame.index`, where it is no even counter of the names
    ignored: tuple[Ignored, ...] = ()  # files of the folder that are no images


def open_frames(
    path: Path, boxes: Boxes, first: int | None = None, value_range: ValueRange | None = None
) -> Frames:
    """Open a folder of images or a video.

    - Images are in natural order of their paths: frame9 comes before frame10.
    - A gap in a counter in their names (`_read_counter`) is a gap in the frames' numbers and times. A note tells so
      where the counter's steps differ. Without a counter, frames are counted in order, with a note.
    - Numbered boxes need images whose names differ only in numbers or hold none, or `first`.

    Args:
        path: a folder, or a video that PyAV reads.
        boxes: give the frames' numbers or names.
        first: number of the first frame in the boxes; None: by the format's rule.
        value_range: as `fmcnet.data.images.load_image`.

    Raises:
        DataError: when there is none, or the boxes' frames cannot be found.
        MissingDependencyError: for a video without PyAV.
    """
    if path.is_dir():
        return _open_folder(path, boxes, first, value_range)
    if not path.is_file():
        raise DataError(f"no such folder of frames or video: {path}")
    if is_image(path.name) or has_image_head(path):
        raise DataError(f"{path} is one image: give the folder of the frames, or a video")
    return _open_video(path, boxes, first, value_range)


def _open_folder(folder: Path, boxes: Boxes, first: int | None, value_range: ValueRange | None) -> Frames:
    listing = list_folder(folder)
    if not listing.images:
        raise DataError(f"{folder} holds no images")
    names = {image: image.relative_to(folder).as_posix() for image in listing.images}
    unfit = [f"'{name}'" for name in names.values() if _UNFIT.search(name) or control_fault(name, "name")]
    if unfit:
        raise DataError(
            f"{folder}: rename {printable(first_of(unfit, 3))}: a table holds no name that begins with a space, "
            "has a control character or is not UTF-8"
        )
    stems = {image: name.removesuffix(PurePosixPath(name).suffix) for image, name in names.items()}
    order = sorted(names, key=lambda image: (_natural_key(stems[image]), names[image]))
    one_folder = len({image.parent for image in names}) == 1
    counter = _read_counter([image.stem for image in order]) if one_folder else []
    numbers = dict(zip(order, counter, strict=False))
    lowest = min(counter, default=0)
    indices = {image: numbers[image] - lowest if numbers else index for index, image in enumerate(order)}
    if not numbers:
        reason = _name_fault(order) if one_folder else "the images lie in several folders"
        order_note = (
            f"frames are counted in the order of their names, from {names[order[0]]} to {names[order[-1]]}: "
            f"{reason or 'the names hold no counter'}"
        )
    elif len(_steps(counter)) > 1:
        order_note = (
            f"frames are counted by the numbers in their names, from {lowest} ({names[order[0]]}) to {counter[-1]} "
            f"({names[order[-1]]}): gaps in these count as frames and as time"
        )
    else:
        order_note = ""
    order_note = printable(order_note)
    keys, notes = _keys_by_name(names, boxes), list[str]()
    if any(isinstance(key, int) for key in boxes.of_frame):
        if not one_folder:
            raise DataError(
                f"the boxes number their frames, but the images of {folder} lie in several folders: give the folder "
                "of one recording"
            )
        if not numbers and first is None and (fault := _name_fault(order)):
            raise DataError(
                f"the boxes number their frames, but {printable(fault)}: remove what is no frame, or count all "
                f"images in order with --first-frame {1 if boxes.first is None else boxes.first}"
            )
        keys, notes = _keys_by_number(order, numbers, indices, boxes, first)
        if notes:
            indices, order_note = {image: index for index, image in enumerate(order)}, ""
        requested = {key for key in boxes.of_frame if isinstance(key, int)}
        shifted = numbers and any(keys[image] != numbers[image] for image in order)
        if shifted and not notes and first is None and requested <= set(counter):
            notes.append(
                f"frame {keys[order[0]]} of the boxes is taken as {names[order[0]]}, the first; where the numbers "
                f"are those of the names: --first-frame {lowest}"
            )
        notes, order_note = [*notes, *([order_note] if order_note else [])], ""
    elif first is not None:
        raise DataError(
            f"--first-frame {first} is of frame numbers, and the boxes name their images: leave it out"
        )
    elif not keys:
        key = printable(str(next(iter(boxes.of_frame))))
        is_number = boxes.format == "supervision" and key.isdigit()
        hint = ": numbers of frames belong in a column frame_index" if is_number else ""
        raise DataError(f"the boxes name their frames, as '{key}', and {folder} holds none of them{hint}")
    counts = Counter(stems.values())

    def read() -> Iterator[Frame]:
        for image in order:
            file_name = image.stem if counts[stems[image]] == 1 else image.name.replace(".", "_")
            name = PurePosixPath(names[image]).with_name(file_name).as_posix()
            decode = partial(open_rgb, image, value_range)
            yield Frame(name, keys.get(image, ""), indices[image], None, decode)

    return Frames(read, tuple(notes), order_note, listing.ignored)


def _natural_key(path: str) -> list[tuple[list[Any], str]]:
    """For sorting as people do: frame9 before frame10, and each folder's images together."""
    return [(_texts_and_numbers(part), part) for part in PurePosixPath(path).parts]


def _texts_and_numbers(name: str) -> list[Any]:
    """Texts at even places, numbers between them: "frame_09_a" is ["frame_", 9, "_a"]."""
    return [Decimal(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(name))]


def _read_counter(stems: Sequence[str]) -> list[int]:
    """The numbers of frames in their names; empty unless the names are a counter.

    - A counter is the one run of digits that differs between names that are otherwise equal. It increases from each
      name to the next. Of a single name it is the last run.
    - What is a date or time in all names is no counter. This is seconds since 1970, year, month and day with the time
      behind them, or a time as 22-15-56 (`_CLOCK`).
    - Six digits without a date are a time only where their steps take fewer values as HHMMSS than as numbers:
      221558, 221559, 221600.
    - Six or more digits that begin with 00 are a number, also behind a date.

    Args:
        stems: the names without suffix, in natural order.
    """
    rows = [_NUMBER.split(stem) for stem in stems]
    runs = range(1, len(rows[0]), 2) if len({tuple(row[::2]) for row in rows}) == 1 else range(0)
    varying = [run for run in runs if len({row[run] for row in rows}) > 1] if len(rows) > 1 else runs[-1:]
    counters = [run for run in varying if not _is_clock(rows, run)]
    if len(counters) != 1:
        return []
    numbers = [int(row[counters[0]]) for row in rows]
    return numbers if all(step > 0 for step in _steps(numbers)) else []


def _steps(numbers: Sequence[int]) -> set[int]:
    return {second - first for first, second in pairwise(numbers)}


def _is_clock(rows: Sequence[Sequence[str]], run: int) -> bool:
    """Whether a run is part of a date or time in all names."""
    if max(Decimal(row[run]) for row in rows) >= 1e9 or all(_is_clock_part(row, run) for row in rows):
        return True
    times = [_TIME.fullmatch(row[run]) for row in rows]
    seconds = [int(time[1]) * 3600 + int(time[2]) * 60 + int(time[3]) for time in times if time]
    return len(seconds) == len(rows) and len(_steps(seconds)) < len(_steps([int(row[run]) for row in rows]))


def _is_clock_part(row: Sequence[str], run: int) -> bool:
    start = len("".join(row[:run]))
    return any(clock.start() <= start < clock.end() for clock in _CLOCK.finditer("".join(row)))


def _name_fault(order: Sequence[Path]) -> str:
    """Two names that do not tell which frame is which: of one number, or with digits and other texts."""
    twins = [
        pair for pair in pairwise(order) if len({str(_texts_and_numbers(image.stem)) for image in pair}) == 1
    ]
    alike = defaultdict[str, list[Path]](list)
    for image in order:
        alike[_NUMBER.sub("0", image.stem)].append(image)
    groups = sorted(alike.values(), key=len)
    if twins:
        return f"{twins[0][0].name} and {twins[0][1].name} are one frame by their names"
    if len(groups) > 1 and any(_NUMBER.search(image.stem) for image in order):
        return f"{groups[-1][0].name} and {groups[0][0].name} differ in more than a number"
    return ""


def _keys_by_name(names: dict[Path, str], boxes: Boxes) -> dict[Path, FrameKey]:
    """By the path below the folder; else by the file's name or stem, where only one image has it."""
    by_name: dict[str, Path] = {}
    for part in ("stem", "name"):
        spellings = {image: str(getattr(PurePosixPath(name), part)) for image, name in names.items()}
        counts = Counter(spellings.values())
        by_name |= {name: image for image, name in spellings.items() if counts[name] == 1}
    by_name |= {name: image for image, name in names.items()}
    keys: dict[Path, FrameKey] = {}
    for key in boxes.of_frame:
        if isinstance(key, str):
            path = PurePosixPath(key.replace("\\", "/"))
            image = next((by_name[s] for s in (path.as_posix(), path.name, path.stem) if s in by_name), None)
            if image is not None:
                if image in keys:
                    raise DataError(
                        f"the boxes call the image {names[image]} both '{keys[image]}' and '{key}'"
                    )
                keys[image] = key
    return keys


def _keys_by_number(
    order: list[Path], numbers: dict[Path, int], indices: dict[Path, int], boxes: Boxes, first: int | None
) -> tuple[dict[Path, FrameKey], list[str]]:
    """Names numbered from 0 or 1 count from the boxes' first frame; other numbers are frame numbers.

    If none of these is a frame of the boxes, the images are counted in order, with a note.
    """
    start = boxes.first if first is None else first
    lowest = min(numbers.values(), default=0)
    keys: dict[Path, FrameKey]
    if numbers and (start is None or (lowest > 1 and first is None)):
        keys = {image: numbers[image] for image in order}
    elif start is None:
        raise DataError(
            "the boxes number their frames, but the images' names hold no number each: say --first-frame 0 or 1"
        )
    else:
        keys = {image: indices[image] + start for image in order}
    if numbers and start is not None and not any(key in boxes.of_frame for key in keys.values()):
        keys = {image: index + start for index, image in enumerate(order)}
        return keys, [
            "the images' names hold other numbers than the boxes' frames: they were counted in order"
        ]
    return keys, []


def _open_video(path: Path, boxes: Boxes, first: int | None, value_range: ValueRange | None) -> Frames:
    av = require("av", "video")
    keys = _keys_by_index(path, boxes, first)

    def read() -> Iterator[Frame]:
        index, start = -1, None
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DataError(f"{path} holds no video")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for index, decoded in enumerate(container.decode(stream)):
                    seconds = None if decoded.time is None else float(decoded.time)
                    start = seconds if start is None else start
                    elapsed = None if seconds is None or start is None else seconds - start
                    key = keys.get(index, "")
                    name = f"{key if isinstance(key, int) else index:06d}"
                    yield Frame(name, key, index, elapsed, partial(_convert_frame, decoded, value_range))
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", error)
            if index < 0:
                raise DataError(f"cannot read the video {path}: {reason}") from error
            raise DataError(
                f"{path} cannot be decoded after frame {index}: {reason}. The crops before it are kept; write the "
                "video anew"
            ) from error

    return Frames(read)


def _keys_by_index(path: Path, boxes: Boxes, first: int | None) -> dict[int, FrameKey]:
    """The frames of the boxes, by their index in the video."""
    start = boxes.first if first is None else first
    named = [
        key
        for key in boxes.of_frame
        if isinstance(key, str) and (first is not None or key not in boxes.numbers)
    ]
    named.sort(key=lambda key: _natural_key(PurePosixPath(key).stem))
    counter = _read_counter([PurePosixPath(key).stem for key in named]) if named else []
    numbers = dict(zip(named, counter, strict=False))
    keys: dict[int, FrameKey] = {}
    for key in boxes.of_frame:
        if isinstance(key, int) and start is not None:
            index = key - start
        elif key in boxes.numbers and first is None:
            index = boxes.numbers[key]
        elif first is None:
            raise DataError(
                f"the boxes name their frames ('{key}'), but {path} is a video: say --first-frame 0 or 1, the "
                "number of its first frame in these names, or give a folder of images"
            )
        elif key in numbers:
            index = numbers[key] - first
        else:
            raise DataError(
                f"the boxes name their frames ('{key}'), and the names hold no counter, but {path} is a video: give "
                "a folder of images"
            )
        if index in keys:
            raise DataError(f"'{keys[index]}' and '{key}' are the same frame of {path} by their numbers")
        keys[index] = key
    return keys


def _convert_frame(decoded: Any, value_range: ValueRange | None) -> Image.Image:
    """A decoded frame of PyAV, upright, as RGB."""
    remarks: list[str] = []
    if decoded.format.name.startswith("gray") and decoded.format.components[0].bits > 8:
        try:
            image = eight_bit_image(decoded.to_ndarray(), value_range, remarks).convert("RGB")
        except ValueError as error:
            raise DataError(str(error)) from error
    else:
        image = decoded.to_image()
    upright: Image.Image = image.rotate(decoded.rotation, expand=True) if decoded.rotation else image
    upright.info[REMARKS] = tuple(remarks)
    return upright
