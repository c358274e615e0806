"""Boxes of persons in frames, as detectors and trackers write them: MOTChallenge text, COCO JSON, supervision's CSV.

Sources: https://motchallenge.net/instructions, https://cocodataset.org/#format-data,
https://supervision.roboflow.com (`CSVSink`).
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fmcnet.errors import MOST_FAULTS, DataError, first_of, refuse_faults
from fmcnet.names import FRACTION, control_fault, nearest, printable
from fmcnet.parsing import BLOCK, parse_json, read_rows, read_text

FrameKey: TypeAlias = int | str
"""A frame's number, or the name of its image."""

MAX_NAMED = 20
NO_PERSON = "no person by its class"
PERSON_WORDS = frozenset({"person", "people", "pedestrian", "human"})
MOT_PERSONS = frozenset({1, 2, 7})
"""Classes of MOTChallenge's ground truth: pedestrian, person on a vehicle, static person."""
VISDRONE_PERSONS = frozenset({1, 2})
"""Categories of VisDrone: pedestrian, people (who sit or lie)."""
_VISDRONE = re.compile(r"[01],([0-9]|1[01]),[01],[0-2]")
"""Its values behind a box: score, category, truncation, occlusion."""
CSV_HEADER = ("x_min", "y_min", "x_max", "y_max")
_DECIMALS = (*CSV_HEADER, "tracker_id", "class_id")
_NUMBER_COLUMNS = ("frame", "frame_index", "frame_number", "frame_idx", "frame_id")
_NAME_COLUMNS = ("file_name", "filename", "file", "image_name", "image", "image_path", "path")
_COCO_TRACKS = ("track_id", "instance_id", "tracker_id")
_READ = ("tracker_id", "class_id", "class_name", *_NUMBER_COLUMNS)
_USUAL = frozenset(
    {
        *(*CSV_HEADER, *_READ, *_NAME_COLUMNS, "confidence", "score", "area", "mask", "segmentation", ""),
        *("id", "image_id", "category_id", "category_name", "bbox", "attributes", "iscrowd", "ignore"),
        *("keypoints", "num_keypoints", "video_id", "occluded", "truncated", "visibility"),
    }
)
"""Columns and fields that are read, or say nothing that a crop keeps."""

_WHOLE = r"[0-9]+(?:\.0+|,00?)?"
_YOLO = re.compile(r"0?\.(?=0*[1-9])\d+(?: (?:0?\.\d+|1(?:\.0*)?)){3}")
"""A box as fractions of the frame: its center, of which x is not 0, width and height."""
_FRACTIONS = "its boxes are fractions of the frame, as YOLO writes them: convert them to pixels"

EXPECTED = """one of
  MOTChallenge text: frame,id,left,top,width,height,confidence,...
  COCO JSON: {"images": [...], "annotations": [...]}, or a list of results
  CSV of supervision (CSVSink): x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,frame_index"""


class Box(NamedTuple):
    """A box in pixels from the frame's upper left corner; `name` is its place in the file."""

    left: float
    top: float
    right: float
    bottom: float
    track: str
    name: str


class LeftOut:
    """What is left out, by reason: the count, and the first `MAX_NAMED` names."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.first = defaultdict[str, list[str]](list)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Add `count` things of one name."""
        self.counts[reason] += count
        if len(self.first[reason]) < MAX_NAMED:
            self.first[reason].append(name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            reason: {"count": count, "first": self.first[reason]}
            for reason, count in sorted(self.counts.items())
        }

    def lines(self) -> list[str]:
        """A line for each reason."""
        return [
            f"left out {count}: {reason}; {printable(', '.join(self.first[reason][:3]))}"
            + (", ..." if len(self.first[reason]) > 3 else "")
            for reason, count in sorted(self.counts.items())
        ]


@dataclass
class Boxes:
    """The boxes of a file."""

    format: str  # "MOTChallenge", "COCO" or "supervision"
    # In the file's order; an image without a box has an empty list.
    of_frame: dict[FrameKey, list[Box]] = field(default_factory=dict)
    first: int | None = None  # number of the first frame by the format's rule; None where all have names
    # Of frames, where the file states them: numbers (from `first`, or 0) of those that have names; width and height.
    numbers: dict[FrameKey, int] = field(default_factory=dict)
    sizes: dict[FrameKey, tuple[int, int]] = field(default_factory=dict)
    total: int = 0  # boxes in the file
    left_out: LeftOut = field(default_factory=LeftOut)  # boxes that are no person's
    notes: list[str] = field(default_factory=list)  # a sentence each
    first_note: str = ""  # that of the notes which tells of `first`
    # The same boxes by the names of images, where the file has both; None elsewhere.
    by_name: dict[FrameKey, list[Box]] | None = None

    def add(self, frame: FrameKey, box: Box) -> None:
        """Add the box of a person."""
        self.total += 1
        self.of_frame.setdefault(frame, []).append(box)

    def leave_out(self, frame: FrameKey, reason: str, name: str) -> None:
        """Count a box that is no person's, by its place in the file."""
        self.total += 1
        self.of_frame.setdefault(frame, [])
        self.left_out.add(reason, name)


def read_boxes(path: str | Path) -> Boxes:
    """Read boxes; the content decides the format.

    - MOTChallenge: frames count from 1; with a frame 0, from 0, with a note. A box of confidence 0 is marked as
      ignored. Of nine columns the eighth is the class. What follows the file's first number separates all values.
    - COCO: frames are the images' file names. Of categories with a name, those of `PERSON_WORDS` are taken.
      A comma that is no separator is a decimal one, also in supervision's CSV.
    - supervision: frames count from 0, in a column of `_NUMBER_COLUMNS`, or are named, in one of `_NAME_COLUMNS`,
      also where all names are digits. Of both, `by_name` has the names.
      `frame` or `frame_id` holds names where a value begins with 0, as 000003.

    Args:
        path: the file.

    Raises:
        DataError: for a file of no known format, without a box, or with faults: the first 20 by line, at
            most 1000 counted.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the file of boxes, {EXPECTED}")
    try:
        text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is no file of boxes: {error}; give {EXPECTED}") from error
    lines = text.split("\n")
    first_line = next((line for line in lines if line.strip()), "")
    if text.lstrip().startswith(("[", "{")):
        boxes = _read_coco(path, text)
    elif long_line := next((number for number, line in enumerate(lines, 1) if len(line) > BLOCK), 0):
        raise DataError(f"{path} is no file of boxes: line {long_line} has more than {BLOCK >> 20} MiB")
    elif all(name in first_line for name in CSV_HEADER):
        boxes = _read_csv(path, text, max(",;\t", key=first_line.count))
    elif separator := re.match(r"\s*[-+]?\d+(?:\.0*)?(\s*[,;]| *\t|\s)", first_line):
        boxes = _read_mot(path, lines, separator[1][-1].strip(" "))
    else:
        raise DataError(f"{path} is no file of boxes: give {EXPECTED}")
    if not boxes.total:
        raise DataError(f"{path} holds no box: give {EXPECTED}")
    found = [(key, box) for key, frame_boxes in boxes.of_frame.items() for box in frame_boxes]
    if _are_fractions([box for _, box in found]):
        raise DataError(f"{path}: {_FRACTIONS}")
    tracks = Counter((key, box.track) for key, box in found if box.track)
    if repeated := [track for track, count in tracks.items() if count > 1]:
        boxes.notes.append(
            f"{len(repeated)} times a track has several boxes in one frame, the first track {repeated[0][1]} in "
            f"frame {repeated[0][0]}: is the file of one recording?"
        )
    return boxes


def _are_fractions(boxes: Sequence[Box]) -> bool:
    """Whether all boxes lie within 0..1 or little beyond, and most of their values are not whole."""
    values = [
        side for box in boxes for side in (box.left, box.top, box.right - box.left, box.bottom - box.top)
    ]
    return all(-0.1 <= v <= 1.1 for v in values) and 2 * sum(v % 1 > 0 for v in values) > len(values)


def _add_fault(path: Path, faults: list[str], where: str, fault: object) -> None:
    faults.append(f"{where:.200}: {printable(str(fault)):.300}")
    if len(faults) >= MOST_FAULTS:
        refuse_faults(path, faults)


@contextlib.contextmanager
def _faults_added(path: Path, faults: list[str], where: str) -> Iterator[None]:
    """Add what is wrong with one box to the faults."""
    try:
        yield
    except (ValueError, TypeError) as error:
        _add_fault(path, faults, where, error)


def _read_mot(path: Path, lines: Sequence[str], separator: str) -> Boxes:
    """Read lines whose values stand between `separator`s; "" is white space."""
    boxes, faults = Boxes("MOTChallenge", first=1), list[str]()
    rows = {line: _mot_cells(row, separator) for line, row in enumerate(lines, 1) if row.strip()}
    others = [",".join(cells[6:]) for cells in rows.values()]
    is_visdrone = all(map(_VISDRONE.fullmatch, others)) and any(
        int(other.split(",")[1]) in VISDRONE_PERSONS for other in others
    )
    for line, cells in rows.items():
        persons = VISDRONE_PERSONS if is_visdrone else MOT_PERSONS if len(cells) == 9 else None
        with _faults_added(path, faults, f"line {line}"):
            _add_mot_row(path, boxes, line, cells, separator, persons)
    refuse_faults(path, faults)
    if is_visdrone:
        boxes.notes.append("its values are VisDrone's, so the categories 1 and 2 are persons")
    elif {*map(len, rows.values())} & {8, 10} and all(
        cells[7:8] and cells[7].isdigit() for cells in rows.values()
    ):
        _note_classes(boxes, "the eighth value", {cells[7] for cells in rows.values()}, {"0", "1"})
    if 0 in boxes.of_frame:
        boxes.first = 0
        boxes.notes.append("the file has a frame 0: its frames count from 0, not from 1 as MOTChallenge's do")
    return boxes


def _mot_cells(row: str, separator: str) -> list[str]:
    cells = [cell.strip() for cell in row.split(separator or None)]
    if separator != ",":  # a comma is a decimal one
        cells = [cell.replace(",", ".") for cell in cells]
    return cells if any(cells[9:]) else cells[:9]  # a separator may end the line


def _add_mot_row(
    path: Path, boxes: Boxes, line: int, cells: list[str], separator: str, persons: Set[int] | None
) -> None:
    """`persons`: their classes, in the eighth value; None: it is no class."""
    if _YOLO.fullmatch(" ".join(cells[1:5])):
        raise DataError(f"{path}, line {line}: {_FRACTIONS}")
    if len(cells) < 6:
        count = f"{len(cells)} value{'s' * (len(cells) > 1)} between '{separator or ' '}'"
        raise ValueError(f"{count}, but a box has frame,id,left,top,width,height")
    frame, track = _whole_number(cells[0], "frame"), _track_id(cells[1], "id")
    if frame < 0:
        raise ValueError(f"frame {frame} is negative")
    # An empty value behind the box stands for -1, which is none.
    left, top, width, height = map(_finite_number, cells[2:6])
    others = [_finite_number(cell or "-1") for cell in cells[6:]]
    name = f"frame {frame}, line {line}"
    if others and others[0] == 0:
        boxes.leave_out(frame, "of confidence 0, which marks a box as ignored", name)
    elif persons is not None and others[1] >= 0 and others[1] not in persons:
        boxes.leave_out(frame, NO_PERSON, name)
    else:
        boxes.add(frame, Box(left, top, left + width, top + height, track, name))


def _read_csv(path: Path, text: str, separator: str) -> Boxes:
    rows, faults, columns = list[tuple[str, str, str, Box]](), list[str](), list[str]()
    frame_column, name_column, names = None, "", list[str]()
    try:
        for line, cells in read_rows(text.split("\n"), separator):
            if frame_column is None:
                columns = [name.strip() for name in cells]
                if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
                    raise DataError(f"{path} has the column {twice[0]} twice: leave one")
                frame_column = _frame_column(path, columns)
                name_column = next((name for name in _NAME_COLUMNS if name in columns), frame_column)
                continue
            with _faults_added(path, faults, f"line {line}"):
                if len(cells) != len(columns):
                    raise ValueError(f"not {len(columns)} values, as there are columns")
                row = dict(zip(columns, cells, strict=True))
                if separator != ",":  # a comma is a decimal one
                    row |= {name: row[name].replace(",", ".") for name in _DECIMALS if name in row}
                rows.append(_parse_csv_row(row, frame_column, name_column, line))
                names.append(row[name_column].strip())
    except csv.Error as error:  # it names the line
        faults.append(f"{error!s:.300}")
    refuse_faults(path, faults)
    frames = [frame for frame, *_ in rows]
    # Else they are names, as 1700000000.50.
    if frame_column in _NUMBER_COLUMNS and all(re.fullmatch(_WHOLE, frame) for frame in frames):
        frames = [FRACTION.sub("", frame) for frame in frames]
    # `frame` and `frame_id` may hold names, as 000003.
    padded = frame_column in ("frame", "frame_id") and any(re.match("0[0-9]", frame) for frame in frames)
    are_digits = all(frame.isascii() and frame.isdigit() for frame in frames)
    numbered = frame_column in _NUMBER_COLUMNS and are_digits and not padded
    boxes = Boxes("supervision", first=0 if numbered else None)
    from_1 = numbered and frame_column != "frame_index" and min(map(int, frames), default=0) == 1
    if name_column != frame_column and all(names):
        boxes.by_name = {}
    elif name_column != frame_column and any(names):
        boxes.notes.append(f"{name_column} is not used: {rows[names.index('')][3].name} has none")
    for (_, class_name, _, box), frame, name in zip(rows, frames, names, strict=True):
        key = int(frame) if numbered else frame
        if class_name and class_name not in PERSON_WORDS:
            boxes.leave_out(key, NO_PERSON, box.name)
        else:
            boxes.add(key, box)
            if boxes.by_name is not None:
                boxes.by_name.setdefault(name, []).append(box)
    if from_1:
        boxes.first = 1
        boxes.first_note = (
            f"{frame_column} begins with 1: frames count from 1; --first-frame 0 says otherwise"
        )
        boxes.notes.append(boxes.first_note)
    _note_unread(boxes, columns, {frame_column or ""})
    _note_classes(boxes, "class_id", {number for _, name, number, _ in rows if not name}, {"", "0"})
    return boxes


def _frame_column(path: Path, columns: Sequence[str]) -> str:
    for name in (*_NUMBER_COLUMNS, *_NAME_COLUMNS):
        if name in columns:
            return name
    raise DataError(
        f"{path} has no column of the frame ({', '.join(columns):.400}): write one by "
        "sink.append(detections, custom_data={'frame_index': index}), or 'file_name' for images"
    )


def _parse_csv_row(
    cells: dict[str, str], frame_column: str, name_column: str, line: int
) -> tuple[str, str, str, Box]:
    """The frame, the class's name and number, and the box."""
    for name in (frame_column, name_column, "class_name", "class_id"):
        if fault := control_fault(cells.get(name, "").strip(" \t"), name):
            raise ValueError(fault)
    frame = cells[frame_column].strip()
    if not frame:
        raise ValueError(f"{frame_column} is empty")
    if frame_column in _NUMBER_COLUMNS and re.fullmatch(rf"-{_WHOLE}", frame):
        raise ValueError(f"{frame_column} {FRACTION.sub('', frame)} is negative")
    left, top, right, bottom = (_finite_number(cells[name]) for name in CSV_HEADER)
    track = _track_id(cells.get("tracker_id", ""), "tracker_id")
    box = Box(left, top, right, bottom, track, f"frame {frame}, line {line}")
    return frame, cells.get("class_name", "").strip().lower(), cells.get("class_id", "").strip(), box


def _note_unread(boxes: Boxes, columns: Iterable[str], read: set[str]) -> None:
    """Add a note on columns of a table, or fields of annotations, that are neither read nor usual."""
    found = dict.fromkeys(columns)
    if unread := [name for name in found if name not in _USUAL | read]:
        near = {name: nearest(name, {*_READ} - {*found}) for name in unread[:MAX_NAMED]}
        shown = [
            f"'{name}'" + f" (did you mean '{near.get(name)}'?)" * bool(near.get(name)) for name in unread
        ]
        boxes.notes.append(
            f"not read: {printable(first_of(shown)):.400}; people.csv takes columns pid, camera, time and tags"
        )


def _note_classes(boxes: Boxes, column: str, classes: set[str], usual: set[str]) -> None:
    """Add a note if unnamed classes may not be persons: several, or one that detectors do not use for persons."""
    if len(classes) > 1 or classes - usual:
        shown = ", ".join(sorted(classes)[:6])
        boxes.notes.append(f"{column} is {shown}, without a name: every box is taken as a person's")


def _read_coco(path: Path, text: str) -> Boxes:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    results = isinstance(content, list)
    document: Mapping[str, Any] = {"annotations": content} if results else content
    annotations, images = document.get("annotations"), document.get("images", [])
    if not isinstance(annotations, list) or not isinstance(images, list) or not (results or images):
        raise DataError(f"{path} is no COCO file: it lacks images or annotations; give {EXPECTED}")
    boxes, faults = Boxes("COCO"), list[str]()
    frame_keys = {} if results else _read_coco_images(path, boxes, images, faults)
    person_ids, classes = _person_category_ids(boxes, document.get("categories") or []), set[str]()
    for index, annotation in enumerate(annotations):
        where = f"annotation {index + 1}"
        with _faults_added(path, faults, where):
            key, (left, top, width, height) = _parse_annotation(annotation, None if results else frame_keys)
            name = f"{key if isinstance(key, str) else f'frame {key}'}, {where}"
            if annotation.get("iscrowd") or annotation.get("ignore"):
                boxes.leave_out(key, "a crowd, or marked as ignored", name)
            elif person_ids is not None and annotation.get("category_id") not in person_ids:
                boxes.leave_out(key, NO_PERSON, name)
            else:
                classes.add(str(annotation.get("category_id", "")))
                boxes.add(key, Box(left, top, left + width, top + height, _coco_track(annotation), name))
    refuse_faults(path, faults)
    if person_ids is None and not boxes.notes:
        _note_classes(boxes, "category_id", classes, {"", "0", "1"})
    if results and any(isinstance(key, int) for key in boxes.of_frame):
        boxes.notes.append(
            "image_id of a results list is taken as the frame's number (--first-frame says from where on): give the "
            "file with the images' names to be sure"
        )
    _note_unread(boxes, (name for annotation in annotations for name in annotation), {*_COCO_TRACKS})
    return boxes


def _parse_annotation(
    annotation: Any, frame_keys: dict[Any, FrameKey] | None
) -> tuple[FrameKey, list[float]]:
    """The frame and the four values of a box; without `frame_keys` the image's id is the frame."""
    if not isinstance(annotation, dict) or "image_id" not in annotation:
        raise ValueError("no image_id")
    key = image_id = annotation["image_id"]
    if frame_keys is not None:
        key = frame_keys.get(image_id)
        if key is None:
            raise ValueError(f"image_id {image_id} is that of no image")
    elif isinstance(image_id, bool) or not isinstance(image_id, (int, str)) or image_id == "":
        raise ValueError(f"image_id {image_id!r} is neither a number nor a name")
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError("bbox is not [left, top, width, height]")
    return key, [_finite_number(value) for value in bbox]


def _read_coco_images(
    path: Path, boxes: Boxes, images: Sequence[Any], faults: list[str]
) -> dict[Any, FrameKey]:
    """Frames by image id."""
    keys: dict[Any, FrameKey] = {}
    for number, image in enumerate(images, 1):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name or not isinstance(image.get("id"), (int, str)):
            _add_fault(path, faults, f"image {number}", "no id or file_name")
            continue
        if name in boxes.of_frame or image["id"] in keys:
            _add_fault(path, faults, f"image {number}", f"its id or file_name '{name}' stands there twice")
            continue
        keys[image["id"]] = name
        boxes.of_frame[name] = []
        frame = image.get("frame_id", image.get("frame_index"))
        if isinstance(frame, float) and frame.is_integer():  # as of pandas
            frame = int(frame)
        if isinstance(frame, int) and frame >= 0:
            boxes.numbers[name] = frame
        size = image.get("width"), image.get("height")
        if all(isinstance(side, int) and side > 0 for side in size):
            boxes.sizes[name] = size
    found = sorted(boxes.numbers.values())
    if found[:1] == [1] and any("frame_id" in image for image in images if isinstance(image, dict)):
        boxes.first = int(found == list(range(1, len(found) + 1)))  # with gaps, frame 0 may have no image
        other = 1 - boxes.first
        boxes.first_note = (
            f"frame_id begins with 1: frames count from {boxes.first}; --first-frame {other} says otherwise"
        )
    return keys


def _person_category_ids(boxes: Boxes, categories: Any) -> set[Any] | None:
    """Ids of the categories that are persons; None: all are taken."""
    named = [
        (category.get("id"), name)
        for category in categories
        if isinstance(category, dict) and isinstance(name := category.get("name"), str)
    ]
    if bad := [name for number, name in named if isinstance(number, (list, dict))]:
        raise DataError(f"the id of the category {bad[0]} is a list or an object: write its number")
    person_ids = {number for number, name in named if name.strip().lower() in PERSON_WORDS}
    if named and not person_ids:
        boxes.notes.append(
            f"no category is called person ({', '.join(name for _, name in named[:6])}): every box is taken as a "
            "person's"
        )
    return person_ids or None


def _coco_track(annotation: Mapping[str, Any]) -> str:
    for fields in (annotation, annotation.get("attributes")):
        for name in _COCO_TRACKS:
            value = fields.get(name) if isinstance(fields, dict) else None
            if isinstance(value, (bool, list, dict)):
                if fields is annotation:
                    raise ValueError(f"{name} is neither a number nor a text")
                continue  # an attribute of another meaning
            if isinstance(value, int):
                track = "" if value < 0 else str(value)
            elif isinstance(value, float) or re.fullmatch(
                r"-?(0|[1-9][0-9]{,14})(\.0*)?", str(value).strip()
            ):
                track = _track_id(str(value), name)  # 7.0 as of pandas
            else:
                track = "" if str(value).strip().lower() in ("", "none", "nan") else printable(str(value))
            if track:
                return track
    return ""


def _finite_number(value: Any) -> float:
    try:
        number = float("" if isinstance(value, bool) else value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"'{str(value)[:40]}' is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"'{str(value)[:40]}' is no finite number")
    return number


def _track_id(text: str, name: str) -> str:
    """A track's number; "" where none is given: empty, None, NaN or negative."""
    if text.strip().lower() in ("", "none", "nan"):
        return ""
    number = _whole_number(text, name)
    return "" if number < 0 else str(number)


def _whole_number(text: str, name: str) -> int:
    number = _finite_number(text)
    if abs(number) >= 2**53:
        raise ValueError(f"{name} '{text[:40]}' is too large")
    if number != int(number):
        raise ValueError(f"{name} '{text[:40]}' is no whole number")
    return int(number)
