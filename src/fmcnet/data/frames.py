"""Frames of a folder of images or of a video, one at a time, with their numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from fmcnet.data.boxes import Boxes, FrameKey
from fmcnet.data.images import REMARKS, open_rgb
from fmcnet.data.listing import Ignored, has_image_head, is_image, list_folder
from fmcnet.data.pixels import DAMAGED, ValueRange, eight_bit_image
from fmcnet.errors import DataError, first_of, require
from fmcnet.names import control_fault, printable

_UNFIT = re.compile(r"^\s|[\ud800-\udfff]")
"""A name that begins with a space, or (as Python shows it) is not UTF-8."""
_NUMBER = re.compile(r"(1[0-9]{9}\.[0-9]+|[0-9]+)")
"""A run of digits; seconds since 1970 with their fraction are one."""
_CLOCK = re.compile(
    r"""(?<![0-9])(?:
    (?:19|20)[0-9]{2} ([-_.]?) (?:0[1-9]|1[0-2]) \1 (?:0[1-9]|[12][0-9]|3[01])              # 2026-03-01,
    (?:
        [-_.T ]* (?!00[0-9]{4}) (?:[01][0-9]|2[0-3]) ([-_.:]?) [0-5][0-9] \2 [0-5][0-9]     # 22-15-56 behind it,
        (?:\.?[0-9]{3,9}|-[0-9]{3})?                                                       # .040 behind that
    )?
    |
    (?:[01][0-9]|2[0-3]) [-.:h] [0-5][0-9] [-.:m] [0-5][0-9] (?:\.[0-9]{3,9}|-[0-9]{3})?    # 22h15m56 alone
    )(?![0-9])""",
    re.VERBOSE,
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

    frames: Iterable[Frame]  # of a video it can be read once
    boxes: Boxes  # those given, by their frames' keys
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
    require("av", "video")
    notes = (boxes.first_note,) if boxes.numbers and boxes.first_note and first is None else ()
    return Frames(_decode_video(path, _keys_by_index(path, boxes, first), value_range), boxes, notes)


def _open_folder(folder: Path, boxes: Boxes, first: int | None, value_range: ValueRange | None) -> Frames:
    listing = list_folder(folder)
    names = _sorted_names(folder, listing.images)
    boxes = _choose_keys(folder, names, boxes, first)
    numbering = _number_images(folder, names, boxes, first)
    if numbering.doubt:
        raise DataError(numbering.doubt)
    frames = [
        Frame(crop_name, numbering.keys.get(image, ""), index, None, partial(open_rgb, image, value_range))
        for image, crop_name, index in zip(names, _crop_names(names), numbering.indices, strict=True)
    ]
    return Frames(frames, boxes, tuple(numbering.notes), numbering.order_note, listing.ignored)


def _sorted_names(folder: Path, images: Sequence[Path]) -> dict[Path, str]:
    """The images' paths below the folder, in natural order; DataError: none, or names that no table holds."""
    if not images:
        raise DataError(f"{folder} holds no images")
    names = {image: image.relative_to(folder).as_posix() for image in images}
    unfit = [f"'{name}'" for name in names.values() if _UNFIT.search(name) or control_fault(name, "name")]
    if unfit:
        raise DataError(
            f"{folder}: rename {printable(first_of(unfit, 3))}: a table holds no name that begins with a space, "
            "has a control character or is not UTF-8"
        )

    def key(item: tuple[Path, str]) -> Any:
        return _natural_key(PurePosixPath(item[1]).with_suffix("").as_posix()), item[1]

    return dict(sorted(names.items(), key=key))


def _choose_keys(folder: Path, names: dict[Path, str], boxes: Boxes, first: int | None) -> Boxes:
    """Boxes of which each has a number and a name: by name where the folder holds one of these, else by number."""
    if not boxes.by_name:
        return boxes
    notes = [note for note in boxes.notes if note != boxes.first_note]
    named = replace(boxes, of_frame=boxes.by_name, by_name=None, first=None, notes=notes)
    name_of = _keys_by_name(names, named)
    if not name_of:
        name = next(iter(boxes.by_name))
        note = (
            f"the folder holds no image that the boxes name, as '{name}': frames are counted by their numbers"
        )
        return replace(boxes, notes=[*boxes.notes, printable(note)])
    number_of_box = {box.name: number for number, of in boxes.of_frame.items() for box in of}
    for name in name_of.values():
        numbers = list(dict.fromkeys(str(number_of_box[box.name]) for box in named.of_frame[name]))
        if len(numbers) > 1:
            raise DataError(f"the boxes call the frames {first_of(numbers)} all '{printable(str(name))}'")
    try:
        number_of = _number_images(folder, names, boxes, first).keys
    except DataError:  # the numbers tell no image
        return named
    for image in names:
        boxes_by_name = named.of_frame.get(name_of.get(image, ""), [])
        if boxes_by_name != boxes.of_frame.get(number_of.get(image, ""), []):
            note = f"names and numbers of frames disagree, first at {names[image]}: the names count"
            return replace(named, notes=[*notes, printable(note)])
    return named


@dataclass(frozen=True)
class Numbering:
    """Which frame each image of a folder is."""

    indices: Sequence[int]  # by the counter in the names, else in order; from 0
    keys: dict[Path, FrameKey]  # number or name of the frame in the boxes, of the images that have one there
    notes: Sequence[str] = ()  # how numbered boxes were matched
    order_note: str = ""  # as of `Frames`
    doubt: str = ""  # why the numbers of boxes and names do not tell which frame is which


def _number_images(folder: Path, names: dict[Path, str], boxes: Boxes, first: int | None) -> Numbering:
    """Match the images of a folder, in natural order, with the boxes' frames.

    - Boxes with names: by name.
    - Boxes with numbers: names numbered from 0 or 1 count from the boxes' first frame; other numbers are frame
      numbers. If none of these is a frame of the boxes, the images are counted in order. So they are if
      the names count in equal steps above 1 and the boxes number each image.
    """
    images = list(names)
    one_folder = len({image.parent for image in images}) == 1
    counter = _read_counter([image.stem for image in images]) if one_folder else []
    fault = (
        _name_fault(images) if one_folder else "the images lie in several folders, taken one after another"
    )
    indices = [number - counter[0] for number in counter] or list(range(len(images)))
    order_note = _order_note(list(names.values()), counter, fault)
    keys = _keys_by_name(names, boxes)
    requested = {key for key in boxes.of_frame if isinstance(key, int)}
    if not requested:
        _check_named(folder, boxes, first, keys)
        return Numbering(indices, keys, order_note=order_note)
    if not one_folder:
        raise DataError(
            f"the boxes number their frames, but the images of {folder} lie in several folders: give the folder "
            "of one recording"
        )
    if not counter and first is None and fault:
        raise DataError(
            f"the boxes number their frames, but {printable(fault)}: remove what is no frame, or count all "
            f"images in order with --first-frame {1 if boxes.first is None else boxes.first}"
        )
    start = boxes.first if first is None else first
    doubt = ""
    if counter and (start is None or (counter[0] > 1 and first is None)):
        numbers = counter
        shifted = set() if start is None else {index + start for index in indices}
        if not requested <= {*counter} and not requested.isdisjoint(counter) and requested <= shifted:
            doubt = (
                f"the boxes number frames {min(requested)} to {max(requested)}, the images' names {counter[0]} to "
                f"{counter[-1]}: say --first-frame {start} if {names[images[0]]} is frame {start} of the boxes, or "
                f"--first-frame {counter[0]} if the numbers are those of the names"
            )
    elif start is not None:
        numbers = [index + start for index in indices]
    else:
        raise DataError(
            "the boxes number their frames, but the images' names hold no number each: say --first-frame 0 or 1"
        )
    notes = [order_note] if order_note else []
    # Every fifth frame of a video, as f0001 and f0006, with boxes of the images' places: one of the last image, too.
    in_order = [index + (start or 0) for index in range(len(images))]
    thinned = first is None and len(_steps(counter)) == 1 and _steps(counter) != {1}
    by_place = (
        thinned and requested <= {*in_order} and in_order[-1] in requested and not requested <= {*numbers}
    )
    if counter and start is not None and (by_place or requested.isdisjoint(numbers)):
        indices, numbers = list(range(len(images))), in_order
        notes = ["the images' names hold other numbers than the boxes' frames: they were counted in order"]
    elif counter and numbers != counter and first is None and requested <= set(counter):
        notes.insert(
            0,
            f"frame {numbers[0]} of the boxes is taken as {names[images[0]]}, the first; where the numbers are those "
            f"of the names: --first-frame {counter[0]}",
        )
    return Numbering(indices, dict(zip(images, numbers, strict=True)), notes, doubt=doubt)


def _check_named(folder: Path, boxes: Boxes, first: int | None, keys: dict[Path, FrameKey]) -> None:
    """Raise DataError when boxes that name their images come with a first number, or name none of the folder's."""
    if first is not None:
        raise DataError(
            f"--first-frame {first} is of frame numbers, and the boxes name their images: leave it out"
        )
    if not keys:
        key = printable(str(next(iter(boxes.of_frame))))
        is_number = boxes.format == "supervision" and key.isdigit()
        hint = ": numbers of frames belong in a column frame_index" if is_number else ""
        raise DataError(f"the boxes name their frames, as '{key}', and {folder} holds none of them{hint}")


def _crop_names(names: dict[Path, str]) -> list[str]:
    """The images' paths below the folder without suffix; where two share one, as a.jpg and a.png: a_jpg, a_png."""
    paths = [PurePosixPath(name).with_suffix("") for name in names.values()]
    counts = Counter(paths)
    taken = {path for path in paths if counts[path] == 1}
    for index, image in enumerate(names):
        if counts[path := paths[index]] > 1:
            path = path.with_name(image.name.replace(".", "_"))
            while path in taken:  # an image is called a_jpg
                path = path.with_name(f"{path.name}_")
            taken.add(path)
            paths[index] = path
    return [path.as_posix() for path in paths]


def _order_note(names: Sequence[str], counter: Sequence[int], fault: str) -> str:
    """How frames without an even counter in their names are counted."""
    if not counter:
        return printable(
            f"frames are counted in the order of their names, from {names[0]} to {names[-1]}: "
            f"{fault or 'the names hold no counter'}"
        )
    if len(_steps(counter)) > 1:
        return printable(
            f"frames are counted by the numbers in their names, from {counter[0]} ({names[0]}) to {counter[-1]} "
            f"({names[-1]}): gaps in these count as frames and as time"
        )
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
    for key in (key for key in boxes.of_frame if isinstance(key, str)):
        path = PurePosixPath(key.replace("\\", "/"))
        image = next((by_name[s] for s in (path.as_posix(), path.name, path.stem) if s in by_name), None)
        if image in keys:
            raise DataError(f"the boxes call the image {names[image]} both '{keys[image]}' and '{key}'")
        if image is not None:
            keys[image] = key
    return keys


def _natural_key(path: str) -> list[tuple[list[Any], str]]:
    """For sorting as people do: frame9 before frame10, and each folder's images together."""
    return [(_texts_and_numbers(part), part) for part in PurePosixPath(path).parts]


def _texts_and_numbers(name: str) -> list[Any]:
    """Texts at even places, numbers between them: "frame_09_a" is ["frame_", 9, "_a"]."""
    return [Decimal(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(name))]


def _read_counter(stems: Sequence[str]) -> list[int]:
    """The numbers of frames in their names without suffix, in natural order; empty unless the names are a counter.

    - A counter is the one run of digits that differs between names that are otherwise equal. It increases from each
      name to the next. Of a single name it is the last run.
    - What is a date or time in all names is no counter. This is seconds since 1970, year, month and day with the time
      behind them, or a time as 22-15-56 (`_CLOCK`).
    - Six digits without a date are a time only where their steps take fewer values as HHMMSS than as numbers:
      221558, 221559, 221600.
    - Six or more digits that begin with 00 are a number, also behind a date.
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
    times = [match for row in rows if (match := _TIME.fullmatch(row[run]))]
    seconds = [3600 * int(time[1]) + 60 * int(time[2]) + int(time[3]) for time in times]
    return len(times) == len(rows) and len(_steps(seconds)) < len(_steps([int(row[run]) for row in rows]))


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


def _decode_video(path: Path, keys: dict[int, FrameKey], value_range: ValueRange | None) -> Iterator[Frame]:
    import av

    index, start, damaged = -1, None, False
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
                # Up to the next key frame all are made from the damaged one.
                damaged = decoded.is_corrupt or (damaged and not decoded.key_frame)
                yield Frame(name, key, index, elapsed, partial(_convert_frame, decoded, value_range, damaged))
            if index < 0:
                raise DataError(f"{path} holds no frame that can be decoded: is it cut off?")
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", error)
        if index < 0:
            raise DataError(f"cannot read the video {path}: {reason}") from error
        raise DataError(
            f"{path} cannot be decoded after frame {index}: {reason}. The crops before it are kept; write the "
            "video anew"
        ) from error


def _keys_by_index(path: Path, boxes: Boxes, first: int | None) -> dict[int, FrameKey]:
    """The frames of the boxes, by their index in the video."""
    start = boxes.first if first is None else first
    named = [] if first is None else [key for key in boxes.of_frame if isinstance(key, str)]
    named.sort(key=lambda key: _natural_key(PurePosixPath(key).stem))
    numbers = dict(zip(named, _read_counter([PurePosixPath(key).stem for key in named]), strict=False))
    keys: dict[int, FrameKey] = {}
    for key in boxes.of_frame:
        if isinstance(key, int) and start is not None:
            index = key - start
        elif first is None and key in boxes.numbers:
            index = boxes.numbers[key] - (start or 0)
        elif first is None:
            raise DataError(
                f"the boxes name their frames ('{key}'), but {path} is a video: say --first-frame 0 or 1, the "
                "number of its first frame in these names, or give a folder of images"
            )
        elif key in numbers:
            index = numbers[key] - first
        elif not numbers and key in boxes.numbers:
            index = boxes.numbers[key] - first
        else:
            raise DataError(
                f"the boxes name their frames ('{key}'), and the names hold no counter, but {path} is a video: give "
                "a folder of images"
            )
        if index in keys:
            raise DataError(f"'{keys[index]}' and '{key}' are the same frame of {path} by their numbers")
        keys[index] = key
    return keys


def _convert_frame(decoded: Any, value_range: ValueRange | None, damaged: bool) -> Image.Image:
    """A decoded frame of PyAV, upright, as RGB."""
    remarks: list[str] = [DAMAGED] * damaged
    if decoded.format.name.startswith("gray") and decoded.format.components[0].bits > 8:
        try:
            image = eight_bit_image(decoded.to_ndarray(), value_range, remarks).convert("RGB")
        except ValueError as error:
            raise DataError(str(error)) from error
    else:
        image = decoded.to_image()
    upright = _turn(image, decoded)
    upright.info[REMARKS] = tuple(remarks)
    return upright


def _turn(image: Image.Image, decoded: Any) -> Image.Image:
    """A frame as its video says that it is shown: turned, mirrored or both."""
    stored = decoded.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return image
    # The pixel (x, y) is shown at (a x + c y, b x + d y), and moved.
    a, b, _, c, d = np.frombuffer(stored, np.int32)[:5].tolist()
    if a * d == b * c:  # not set
        return image
    if (a or d) and (b or c):  # no right angle
        turned: Image.Image = image.rotate(decoded.rotation, expand=True)
        return turned
    x, y = (a, d) if a or d else (c, b)
    for applies, method in (
        (not (a or d), Image.Transpose.TRANSPOSE),
        (x < 0, Image.Transpose.FLIP_LEFT_RIGHT),
        (y < 0, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        image = image.transpose(method) if applies else image
    return image
