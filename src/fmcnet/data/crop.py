"""Crops of persons from frames, by a detector's or tracker's boxes, with the table that `fmcnet index` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from filelock import Timeout
from PIL import Image

from fmcnet.data.boxes import Box, Boxes, FrameKey, LeftOut, read_boxes
from fmcnet.data.frames import Frame, open_frames
from fmcnet.data.images import REMARKS
from fmcnet.data.listing import Ignored, ignored_facts, list_folder
from fmcnet.data.pixels import Remarks, ValueRange
from fmcnet.errors import DataError
from fmcnet.files import (
    file_digest,
    file_state,
    lock_file,
    make_private,
    named,
    private_mode,
    remove_left,
    write_atomically,
    write_rows,
)
from fmcnet.names import printable
from fmcnet.parsing import parse_json
from fmcnet.progress import Progress
from fmcnet.types import MODALITY_WORDS, Modality

TABLE = "people.csv"
JOURNAL, LOCK = ".crops.jsonl", ".crops.lock"
RULES = "5"
"""Of frames' order, how they are turned, and tracks' names: crops by other rules are not continued."""
CLIPPED, OUTSIDE = "clipped", "outside the frame"
AS_CENTRES = ("as centres", "as centres only")
"""Remarks of frames that hold all their boxes if left and top are taken as centres; the second: only then."""
DOUBTFUL = 4
"""Fewest boxes for the note that most reach beyond their frame."""
SHARED_NAMES = frozenset(
    {"frame", "frames", "image", "images", "img", "imgs", "video", "videos"}
    | {"data", "depth", "input", "jpeg", "jpegimages", "jpg", "left", "output", "png", "right"}
    | {word for word in MODALITY_WORDS if len(word) > 1}
)
"""Names of folders and videos that many recordings share, also with a short number: img1, image_02, frames (1)."""
COLUMNS = ("path", "modality", "camera", "time", "track")


@dataclass(frozen=True)
class CropOptions:
    """What to crop, and the crops' metadata."""

    modality: Modality  # of the frames
    camera: str | None = None  # of all crops
    start: datetime | None = None  # the time of the first frame, with its timezone; None: crops have no time
    fps: float | None = None  # frames a second; None: by the video's own clock
    min_size: int = 8  # least width and height of a crop in pixels
    every: int = 1  # take each frame whose index is a multiple of this
    first: int | None = None  # number of the first frame in the boxes; None: by the format's rule
    value_range: ValueRange | None = None  # as `fmcnet.data.images.load_image`


@dataclass
class CropReport:
    """What a run cropped; boxes are crops, not chosen, or left out."""

    table: Path  # the CSV
    format: str  # of the boxes
    boxes: int  # in the file
    left_out: LeftOut  # boxes, by reason
    frames: int = 0  # of the folder or video
    frames_without_boxes: int = 0
    crops: int = 0  # written, now and before
    clipped: int = 0  # crops of boxes beyond the frame's edge
    not_chosen: int = 0  # boxes in frames that `every` passes over
    recordings: tuple[str, ...] = ()  # "CAMERA/RECORDING" of the tracks, each once
    notes: tuple[str, ...] = ()  # a sentence each
    ignored: tuple[Ignored, ...] = ()  # files of the folder that are no images

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "table": str(self.table),
            "left_out": self.left_out.to_dict(),
            "ignored": ignored_facts(self.ignored),
        }


class _CroppedFrame(NamedTuple):
    """A line of the journal: a frame whose crops are on disk."""

    frame: str
    rows: list[list[str]]
    clipped: int
    left_out: list[list[str]]
    remarks: list[str]


def crop(
    frames: str | Path, boxes: str | Path, out: str | Path, options: CropOptions, progress: bool | None = None
) -> CropReport:
    """Cut out the boxes' persons and write `people.csv`, which `fmcnet index` reads.

    - A crop is a PNG with the pixels of its frame, whole pixels of the box inside the frame.
    - May be interrupted, or killed, at any point: the same call continues and ends with the same files.
    - A track's name is "CAMERA/RECORDING/ID", so that tracks of several recordings stay apart. RECORDING is the name
      of the folder or video, and the subfolder of an image. Before a name that many share (`SHARED_NAMES`) stands
      that of the folder above: "MOT17-02/img1". Two videos of one name and camera have the same tracks: rename one.

    Args:
        frames: a folder of images, or a video.
        boxes: see `fmcnet.data.boxes.read_boxes`.
        out: the folder to write.
        options: see there.
        progress: show a bar; None: on a terminal only.

    Raises:
        DataError: for faulty boxes, frames that cannot be found or read, or an `out` with other crops.
        MissingDependencyError: for a video without PyAV.
    """
    frames, out = Path(frames).expanduser(), Path(out).expanduser()
    opened_frames = open_frames(frames, read_boxes(boxes), options.first, options.value_range)
    frame_boxes = opened_frames.boxes
    if frames.is_dir() and out.resolve().is_relative_to(frames.resolve()):
        raise DataError(
            f"--out {out} lies in the folder of the frames: give another, so that crops are no frames"
        )
    if options.start is not None and options.fps is None and frames.is_dir():
        raise DataError("a start time needs --fps for a folder of images: they have no clock")
    if options.fps is not None and options.start is None:
        raise DataError("--fps gives times only with --start-time")
    signature = _signature(frames, Path(boxes).expanduser(), options)
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_file(out / LOCK, optional=True):
            for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
                remove_left(folder)
            finished = _read_journal(
                out, {"crops": signature, "boxes": file_digest(Path(boxes).expanduser())}
            )
            cropper = _Cropper(out, options, frame_boxes, _recording_name(frames.resolve()))
            with (
                named(out / JOURNAL),
                (out / JOURNAL).open("a", encoding="utf-8") as stream,
                Progress("cropping", frame_boxes.total, show=progress) as bar,
            ):
                for frame in opened_frames.frames:
                    if cropped := cropper.crop_frame(frame, finished.get(frame.name)):
                        stream.write(json.dumps(cropped) + "\n")
                        stream.flush()
                    bar.advance(count=len(frame_boxes.of_frame.get(frame.key, ())))
            uses_index = options.start is not None or options.every > 1
            order_note = [opened_frames.order_note] if opened_frames.order_note and uses_index else []
            return cropper.finish((*opened_frames.notes, *order_note), opened_frames.ignored)
    except Timeout:
        raise DataError(f"another process writes crops into {out}: wait for it") from None


def _recording_name(source: Path) -> str:
    """The name of a folder or video; before one of `SHARED_NAMES` stands that of the folder above."""
    recording = top = source if source.is_dir() else source.with_suffix("")
    while re.sub(r"[-_ ]?(\d{1,3}|\(\d{1,3}\))$", "", top.name.lower()) in SHARED_NAMES:
        top = top.parent
    return printable(recording.relative_to(top.parent).as_posix())


class _Cropper:
    """Crops frame after frame, and counts."""

    def __init__(self, out: Path, options: CropOptions, boxes: Boxes, recording: str) -> None:
        self.out, self.options, self.boxes = out, options, boxes
        self.prefix = f"{options.camera}/{recording}" if options.camera else recording
        self.report = CropReport(out / TABLE, boxes.format, boxes.total, boxes.left_out)
        self.cropped: list[_CroppedFrame] = []
        self.seen: set[FrameKey] = set()

    def crop_frame(self, frame: Frame, earlier: _CroppedFrame | None) -> _CroppedFrame | None:
        """Crop one frame, unless an earlier run did; a line for the journal, None where there is nothing new."""
        self.report.frames += 1
        boxes = self.boxes.of_frame.get(frame.key, [])
        self.seen.add(frame.key)
        if frame.index % self.options.every:
            self.report.not_chosen += len(boxes)
            return None
        if not boxes:
            self.report.frames_without_boxes += 1
            return None
        if earlier is not None and all(_is_complete_png(self.out / row[0]) for row in earlier.rows):
            self.cropped.append(earlier)
            return None
        try:
            image = frame.open()
            width, height = self.boxes.sizes.get(frame.key, image.size)
            if (width, height) != image.size:
                raise DataError(
                    f"it is {image.width} x {image.height} pixels, the boxes say {width} x {height}"
                )
        except DataError as error:
            self.report.left_out.add(f"in a frame that cannot be used: {error}", frame.name, len(boxes))
            return None
        self.cropped.append(self._write_crops(frame, image, boxes))
        return self.cropped[-1]

    def _write_crops(self, frame: Frame, image: Image.Image, boxes: list[Box]) -> _CroppedFrame:
        rows, clipped, left_out = list[list[str]](), 0, list[list[str]]()
        time = self._frame_time(frame)
        for number, box in enumerate(boxes):
            area, reason = _clip_box(box, image.size, self.options.min_size)
            if area is None:
                left_out.append([reason, box.name])
                continue
            clipped += reason == CLIPPED
            path = f"{frame.name}_{number:02d}.png"
            target = self.out / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _save(image.crop(area), target)
            track = f"{self._recording_of(frame.name)}/{box.track}" if box.track else ""
            rows.append([path, str(self.options.modality), self.options.camera or "", time, track])
        remarks = [*image.info.get(REMARKS, ()), *_remark_on_centres(boxes, image.size)]
        return _CroppedFrame(frame.name, rows, clipped, left_out, remarks)

    def _recording_of(self, frame_name: str) -> str:
        """The prefix of a frame's tracks: each subfolder of images is a recording of its own."""
        subfolder = PurePosixPath(frame_name).parent.as_posix()
        return self.prefix if subfolder == "." else f"{self.prefix}/{printable(subfolder)}"

    def _frame_time(self, frame: Frame) -> str:
        options = self.options
        if options.start is None:
            return ""
        seconds = frame.seconds if options.fps is None else frame.index / options.fps
        if seconds is None:
            raise DataError("the video has no clock: give --fps")
        start = options.start.astimezone(timezone.utc)  # local time would count a change of clocks as footage
        try:
            return (start + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
        except OverflowError:
            raise DataError(
                f"frame {frame.name} lies {seconds:g} s after --start-time, beyond the year 9999: check --fps"
            ) from None

    def finish(self, notes: tuple[str, ...], ignored: tuple[Ignored, ...]) -> CropReport:
        """Write the table, and count."""
        report, remarks = self.report, Remarks()
        rows = [row for cropped in self.cropped for row in cropped.rows]
        tracked = [cropped for cropped in self.cropped if any(row[-1] for row in cropped.rows)]
        for cropped in self.cropped:
            for reason, name in cropped.left_out:
                report.left_out.add(reason, name)
            for kind in cropped.remarks:
                remarks.add(kind, cropped.frame)
        for key, boxes in self.boxes.of_frame.items():
            if key not in self.seen and boxes:
                report.left_out.add("no frame of this name or number", str(key), len(boxes))
        if not rows:
            reasons = "; ".join(report.left_out.lines()) or "no box lies in a chosen frame"
            raise DataError(f"no crop was made of {self.boxes.total} boxes: {reasons}")
        used_columns = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows)]
        table = ([row[column] for column in used_columns] for row in (COLUMNS, *rows))
        write_rows(report.table, table, private_mode(self.out))
        report.crops, report.clipped = len(rows), sum(cropped.clipped for cropped in self.cropped)
        report.recordings = tuple(dict.fromkeys(self._recording_of(cropped.frame) for cropped in tracked))
        outside = report.left_out.counts.get(OUTSIDE, 0)
        beyond, count = report.clipped + outside, report.crops + outside
        as_centres = [{*AS_CENTRES} & {*cropped.remarks} for cropped in self.cropped]
        if all(as_centres) and as_centres.count({AS_CENTRES[1]}) >= max(DOUBTFUL, len(as_centres) / 20):
            notes += (
                f"{beyond} of {count} boxes reach beyond their frame, and all lie in it if read as centre, width and "
                "height, as YOLO's xywh: if so, subtract half of width and height, for a box begins with its corner",
            )
        elif count >= DOUBTFUL and 2 * beyond > count:
            sizes = "corners (x1, y1, x2, y2) where widths and heights are read, or "
            corners = "" if self.boxes.format == "supervision" else sizes
            notes += (
                f"{beyond} of {count} boxes reach beyond their frame: are they {corners}of frames of another size?",
            )
        report.notes, report.ignored = (*self.boxes.notes, *notes, *remarks.lines()), ignored
        return report


def _save(image: Image.Image, target: Path) -> None:
    """Write a crop whole or not at all, without flushing to disk: `_is_complete_png` checks it in the next run."""
    temporary = target.with_name(f".{target.name}.tmp")
    with named(target, temporary):
        make_private(temporary)
        image.save(temporary, "PNG", compress_level=1)
        temporary.replace(target)


def _is_complete_png(crop: Path) -> bool:
    """Whether a crop of an earlier run is a complete PNG, by its checksums: a power cut may have emptied it."""
    try:
        with Image.open(crop) as image:
            image.verify()
    except (OSError, SyntaxError):
        return False
    return True


def _clip_box(box: Box, size: tuple[int, int], min_size: int) -> tuple[tuple[int, int, int, int] | None, str]:
    """The whole pixels of a box inside a frame (None: it has none or too few), and a reason."""
    width, height = size
    if box.right <= box.left or box.bottom <= box.top:
        return None, "empty boxes"
    left, top, right, bottom = (round(max(-1e9, min(side, 1e9))) for side in box[:4])
    inner = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        beyond = left >= width or top >= height or right <= 0 or bottom <= 0
        return None, OUTSIDE if beyond else "empty boxes"
    if min(inner[2] - inner[0], inner[3] - inner[1]) < min_size:
        return None, f"less than {min_size} pixels wide or high"
    return inner, CLIPPED if inner != (left, top, right, bottom) else ""


def _remark_on_centres(boxes: list[Box], size: tuple[int, int]) -> list[str]:
    """One of `AS_CENTRES`, or nothing."""
    beyond = False
    for box in boxes:
        half = (box.right - box.left) / 2, (box.bottom - box.top) / 2
        for centre, margin, side in zip(box[:2], half, size, strict=True):
            if not margin - 2 <= centre <= side - margin + 2:
                return []
            beyond |= centre + 1.8 * margin > side + 2  # by a tenth
    return [AS_CENTRES[beyond]]


def _signature(frames: Path, boxes: Path, options: CropOptions) -> str:
    """A hash of the frames, boxes and options, so that crops of other inputs are not mixed with these."""
    digest = hashlib.sha256(boxes.read_bytes())
    for file in list_folder(frames).images if frames.is_dir() else (frames,):
        digest.update(f"{file}\0{file_state(file)}\n".encode("utf-8", "surrogateescape"))
    settings = {name: str(value) for name, value in asdict(options).items()} | {"rules": RULES}
    digest.update(json.dumps([str(frames.resolve()), settings], sort_keys=True).encode())
    return digest.hexdigest()


def boxes_digest(folder: Path) -> str:
    """Digest of the boxes' file that the crops in a folder were cut by; "" where none is recorded."""
    with contextlib.suppress(OSError, ValueError, AttributeError), (folder / JOURNAL).open("rb") as stream:
        return str(parse_json(stream.readline().decode()).get("boxes", ""))
    return ""


def _read_journal(out: Path, header: dict[str, str]) -> dict[str, _CroppedFrame]:
    """The frames already cropped, by name; starts a journal if none exists. DataError: `out` holds something else."""
    journal = out / JOURNAL
    lines = journal.read_bytes().split(b"\n") if journal.is_file() else []
    if len(lines) < 3:  # none, or no frame is done
        if others := [path for path in out.iterdir() if path.name not in (JOURNAL, LOCK)]:
            raise DataError(f"--out {out} holds other files ({others[0].name}): give a new folder")
        write_atomically(journal, lambda file: file.write_text(json.dumps(header) + "\n"), private_mode(out))
        return {}
    try:
        stored_signature = parse_json(lines[0].decode()).get("crops")
        frames = [_CroppedFrame(*parse_json(line.decode())) for line in lines[1:-1]]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{journal} is damaged ({error}): remove {out}, or give a new folder") from error
    if stored_signature != header["crops"]:
        raise DataError(
            f"--out {out} holds crops of other frames, boxes or options, or of an older fmcnet, or the frames' files "
            "were touched since: give a new folder, or remove it first"
        )
    with journal.open("r+b") as stream:  # a kill may leave half a line
        stream.truncate(sum(len(line) + 1 for line in lines[:-1]))
    return {frame.frame: frame for frame in frames}
