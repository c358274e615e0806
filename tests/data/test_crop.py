"""Crops from frames: right pixels, frames, times and tracks; what is left out is counted; a kill changes nothing."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from PIL import Image

from fmcnet.data.boxes import read_boxes
from fmcnet.data.crop import CropOptions, crop
from fmcnet.data.frames import _turn
from fmcnet.data.readers.csv import read_csv
from fmcnet.errors import DataError
from fmcnet.names import printable
from fmcnet.types import Modality

NIGHT = CropOptions(Modality.INFRARED)
HEIGHT, WIDTH = 48, 64


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def frames(tmp_path):
    """Six frames, 000001.png to 000006.png."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 7):
        Image.fromarray(image(number)).save(folder / f"{number:06d}.png")
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The same six frames without loss, 10 a second."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "gate.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        for number in range(1, 7):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image(number), format="rgb24")))
        out.mux(stream.encode())
    return path


def boxes(tmp_path, *rows):
    path = tmp_path / "boxes.txt"
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def rows(out):
    with (out / "people.csv").open() as stream:
        return list(csv.DictReader(stream))


def pixels(out, name):
    return np.asarray(Image.open(out / name))


def test_boxes_are_cut_clipped_and_left_out(frames, tmp_path):
    found = boxes(
        tmp_path,
        "1,7,10,8,20,30,1",
        "1,8,-5,-5,25,25,1",
        "1,9,50,40,100,100,1",
        "3,7,0,0,4,30,1",
        "3,7,0,0,0,30,1",
        "3,7,80,0,10,30,1",
        "9,7,0,0,10,30,1",
    )
    report = crop(frames, found, tmp_path / "out", NIGHT)
    assert (report.frames, report.frames_without_boxes, report.boxes, report.crops, report.clipped) == (
        6,
        4,
        7,
        3,
        2,
    )
    assert report.left_out.to_dict() == {
        "empty boxes": {"count": 1, "first": ["frame 3, line 5"]},
        "less than 8 pixels wide or high": {"count": 1, "first": ["frame 3, line 4"]},
        "outside the frame": {"count": 1, "first": ["frame 3, line 6"]},
        "no frame of this name or number": {"count": 1, "first": ["9"]},
    }
    assert [row["track"] for row in rows(tmp_path / "out")] == [
        f"{tmp_path.name}/frames/{n}" for n in (7, 8, 9)
    ]
    frame, out = image(1), tmp_path / "out"
    assert (pixels(out, "000001_00.png") == frame[8:38, 10:30]).all()
    assert (pixels(out, "000001_01.png") == frame[:20, :20]).all()
    assert (pixels(out, "000001_02.png") == frame[40:, 50:]).all()
    assert report.crops + sum(report.left_out.counts.values()) + report.not_chosen == report.boxes


@pytest.mark.parametrize(
    ("folder", "recording"),
    [
        ("MOT17-02/img1", "MOT17-02/img1"),
        ("walk/RGB/frames", "walk/RGB/frames"),
        ("drive_0001/image_02", "drive_0001/image_02"),
        ("walk/visible", "walk/visible"),
        ("drive_0001/image_02/data", "drive_0001/image_02/data"),
        ("walk/Frames (1)", "walk/Frames (1)"),
        ("walk/JPEGImages", "walk/JPEGImages"),
        *((f"walk/{name}", f"walk/{name}") for name in ("output", "left", "right", "input", "depth")),
        ("database", "database"),
        ("walk", "walk"),
        ("2026-03-01/cam1", "cam1"),
        ("imgur", "imgur"),
        ("video_2026-03-01", "video_2026-03-01"),
        ("0002", "0002"),
    ],
)
@pytest.mark.parametrize("camera", [None, "gate"])
def test_a_name_that_many_recordings_share_is_joined_by_the_folder_above(
    frames, tmp_path, folder, recording, camera
):
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    frames.rename(tmp_path / folder)
    options = CropOptions(Modality.INFRARED, camera=camera)
    report = crop(tmp_path / folder, boxes(tmp_path, "1,7,5,6,20,30,1"), tmp_path / "out", options)
    prefix = f"gate/{recording}" if camera else recording
    assert report.recordings == (prefix,)
    assert [row["track"] for row in rows(tmp_path / "out")] == [f"{prefix}/7"]


def test_a_videos_name_is_joined_likewise(video, tmp_path):
    (tmp_path / "day1").mkdir()
    (tmp_path / "day1" / "Video.mkv").write_bytes(video.read_bytes())
    found = boxes(tmp_path, "1,7,5,6,20,30,1")
    assert crop(tmp_path / "day1" / "Video.mkv", found, tmp_path / "out", NIGHT).recordings == ("day1/Video",)
    assert crop(video, found, tmp_path / "gate", NIGHT).recordings == ("gate",)
    assert crop(video, boxes(tmp_path, "1,-1,5,6,20,30,1"), tmp_path / "untracked", NIGHT).recordings == ()


def test_each_subfolder_is_a_recording(tmp_path):
    names = ["MOT17-02/img1/000001.png", "MOT17.04/img1/000001.png", "MOT17.04/img1/000001.jpg", "000001.png"]
    for seed, name in enumerate(names):
        (tmp_path / "mot" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(seed)).save(tmp_path / "mot" / name)
    content = json.loads(coco(tmp_path, *names).read_text())
    content["annotations"] = [{**annotation, "track_id": 1} for annotation in content["annotations"]]
    report = crop(tmp_path / "mot", boxes(tmp_path, json.dumps(content)), tmp_path / "out", NIGHT)
    assert {row["path"]: row["track"] for row in rows(tmp_path / "out")} == {
        "000001_00.png": "mot/1",
        "MOT17-02/img1/000001_00.png": "mot/MOT17-02/img1/1",
        "MOT17.04/img1/000001_png_00.png": "mot/MOT17.04/img1/1",
        "MOT17.04/img1/000001_jpg_00.png": "mot/MOT17.04/img1/1",
    }
    assert set(report.recordings) == {"mot", "mot/MOT17-02/img1", "mot/MOT17.04/img1"}
    again = crop(tmp_path / "mot", boxes(tmp_path, json.dumps(content)), tmp_path / "out", NIGHT)
    assert again.to_dict() == report.to_dict()


def test_a_video_has_frames_and_times(video, tmp_path):
    found = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, 7)))
    start = datetime(2026, 3, 1, 22, 15, tzinfo=timezone.utc)
    options = CropOptions(Modality.INFRARED, camera="gate", start=start, every=2)
    report = crop(video, found, tmp_path / "out", options)
    assert (report.frames, report.crops, report.not_chosen) == (6, 3, 3)
    made = rows(tmp_path / "out")
    assert [(row["path"], row["track"], row["time"]) for row in made] == [
        (f"00000{n}_00.png", f"gate/gate/{n}", f"2026-03-01T22:15:00.{n - 1}00+00:00") for n in (1, 3, 5)
    ]
    assert {(row["modality"], row["camera"]) for row in made} == {("infrared", "gate")}
    for n in (1, 3, 5):
        assert (pixels(tmp_path / "out", f"00000{n}_00.png") == image(n)[6:36, 5:25]).all()


def test_supervision_counts_a_videos_frames_from_0(video, tmp_path):
    header = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,frame_index"
    crop(video, boxes(tmp_path, header, "5,6,25,36,0,0.9,,2"), tmp_path / "out", NIGHT)
    assert rows(tmp_path / "out") == [{"path": "000002_00.png", "modality": "infrared"}]
    assert (pixels(tmp_path / "out", "000002_00.png") == image(3)[6:36, 5:25]).all()


def coco(tmp_path, *names, **image):
    content = {
        "images": [{"id": n, "file_name": name, **image} for n, name in enumerate(names)],
        "annotations": [{"image_id": n, "bbox": [5, 6, 20, 30]} for n in range(len(names))],
    }
    return boxes(tmp_path, json.dumps(content))


def test_coco_names_frames(frames, video, tmp_path):
    crop(frames, coco(tmp_path, "elsewhere/000004.png"), tmp_path / "out", NIGHT)
    assert (pixels(tmp_path / "out", "000004_00.png") == image(4)[6:36, 5:25]).all()
    with pytest.raises(DataError, match="the boxes name their images: leave it out"):
        crop(frames, coco(tmp_path, "000004.png"), tmp_path / "none", CropOptions(Modality.INFRARED, first=1))
    crop(video, coco(tmp_path, "x.jpg", frame_id=4), tmp_path / "of_video", NIGHT)
    assert (pixels(tmp_path / "of_video", "000004_00.png") == image(5)[6:36, 5:25]).all()
    with pytest.raises(DataError, match=r"'x\.jpg' and 'y\.jpg' are the same frame"):  # of two videos
        crop(video, coco(tmp_path, "x.jpg", "y.jpg", frame_id=4), tmp_path / "two", NIGHT)
    with pytest.raises(DataError, match="--first-frame"):
        crop(video, coco(tmp_path, "000004.jpg"), tmp_path / "new", NIGHT)
    crop(video, coco(tmp_path, "000004.jpg"), tmp_path / "told", CropOptions(Modality.INFRARED, first=1))
    assert (pixels(tmp_path / "told", "000003_00.png") == image(4)[6:36, 5:25]).all()


def test_frame_ids_of_coco_from_1_are_counted_from_1(video, tmp_path):
    content = {
        "images": [{"id": n, "file_name": f"img_{'abcd'[n]}.jpg", "frame_id": n + 1.0} for n in range(4)],
        "annotations": [{"image_id": n, "bbox": [5, 6, 20, 30]} for n in range(4)],
    }
    found = boxes(tmp_path, json.dumps(content))
    for first, seed in ((None, 1), (1, 1), (0, 2)):
        out = tmp_path / f"out-{first}"
        report = crop(video, found, out, CropOptions(Modality.INFRARED, first=first))
        path = rows(out)[0]["path"]
        assert (pixels(out, path) == image(seed)[6:36, 5:25]).all()
        assert report.crops == 4
        told = "frame_id begins with 1: frames count from 1; --first-frame 0 says otherwise"
        assert (told in report.notes) is (first is None)


@pytest.mark.parametrize(
    ("value", "track"),
    [
        (7.0, "7"),
        (7, "7"),
        ("7", "7"),
        (0, "0"),
        (-2, ""),
        (-1.0, ""),
        (None, ""),
        (2**60, str(2**60)),
        ("nan", ""),
    ],
)
def test_tracks_of_coco_may_be_decimals(frames, tmp_path, value, track):
    annotation = {"image_id": 0, "bbox": [5, 6, 20, 30], "track_id": value}
    content = {"images": [{"id": 0, "file_name": "000001.png"}], "annotations": [annotation]}
    crop(frames, boxes(tmp_path, json.dumps(content)), tmp_path / "out", NIGHT)
    (row,) = rows(tmp_path / "out")
    assert row.get("track", "") == (f"{tmp_path.name}/frames/{track}" if track else "")


@pytest.mark.parametrize(
    ("value", "fault"), [(7.5, "is no whole number"), (True, "neither"), ([7], "neither")]
)
def test_tracks_of_coco_that_are_no_names_are_refused(tmp_path, value, fault):
    annotation = {"image_id": 0, "bbox": [5, 6, 20, 30], "track_id": value}
    content = {"images": [{"id": 0, "file_name": "000001.png"}], "annotations": [annotation]}
    with pytest.raises(DataError, match=f"annotation 1: track_id .*{fault}"):
        read_boxes(boxes(tmp_path, json.dumps(content)))


def test_boxes_of_frames_of_another_size_are_left_out(frames, tmp_path):
    found = coco(tmp_path, "000004.png", width=128, height=96)
    with pytest.raises(DataError, match="it is 64 x 48 pixels, the boxes say 128 x 96"):
        crop(frames, found, tmp_path / "out", NIGHT)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0.png", "1.png", "2.png"], "1.png"),  # from 0: the first frame is MOTChallenge's 1
        (["f_9.png", "f_10.png", "f_2.png"], "f_9.png"),  # by the numbers, of which no frame is 2's neighbour
        (["a.png", "b.png", "c.png"], "b.png"),  # in order
        (["100.png", "101.png", "102.png"], "101.png"),  # other numbers than the boxes': in order
    ],
)
def test_the_second_frame_of_a_folder(names, expected, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for seed, name in enumerate(names):
        Image.fromarray(image(seed)).save(folder / name)
    number = 9 if "f_9.png" in names else 2
    report = crop(folder, boxes(tmp_path, f"{number},1,5,6,20,30,1"), tmp_path / "out", NIGHT)
    (row,) = rows(tmp_path / "out")
    doubtful = [note for note in report.notes if "is taken as" in note]
    if names[0] == "0.png":  # a frame 2 is there, too
        assert doubtful == [
            "frame 1 of the boxes is taken as 0.png, the first; where the numbers are those of the names: "
            "--first-frame 0"
        ]
    else:
        assert not doubtful
    assert row["path"] == expected.replace(".png", "_00.png")


def test_numbers_that_fit_the_names_in_part_are_taken_as_told(tmp_path):
    """Boxes 1 to 10 of images 5 to 14: by the names, six are those of other frames."""
    folder = numbered_frames(tmp_path / "frames", [f"f{n:04d}.png" for n in range(5, 15)])
    found = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, 11)))
    with pytest.raises(
        DataError, match=r"say --first-frame 1 if f0005\.png is frame 1 .* --first-frame 5 if"
    ):
        crop(folder, found, tmp_path / "out", NIGHT)
    for first, count in ((1, 10), (5, 6)):
        report = crop(folder, found, tmp_path / f"out-{first}", CropOptions(Modality.INFRARED, first=first))
        assert report.crops == count
        track = rows(tmp_path / f"out-{first}")[0]["track"]
        assert track.endswith(f"/{first}")
    sparse = boxes(
        tmp_path, *(f"{n},{n},5,6,20,30,1" for n in (5, 9, 14, 30))
    )  # as the names, but for the last
    assert crop(folder, sparse, tmp_path / "sparse", NIGHT).crops == 3


def test_every_fifth_frame_with_boxes_of_its_place_is_counted_in_order(tmp_path):
    folder = numbered_frames(tmp_path / "frames", [f"f{n:04d}.png" for n in range(1, 51, 5)])
    found = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, 11)))
    report = crop(folder, found, tmp_path / "out", NIGHT)
    assert [row["path"] for row in rows(tmp_path / "out")][:2] == ["f0001_00.png", "f0006_00.png"]
    assert rows(tmp_path / "out")[1]["track"].endswith("/2")
    assert any("they were counted in order" in note for note in report.notes)
    for last, count in ((46, 10), (9, 2)):  # of the whole video; of its beginning
        every = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, last + 1)))
        assert crop(folder, every, tmp_path / str(last), NIGHT).crops == count
        assert rows(tmp_path / str(last))[1]["track"].endswith("/6")
    told = CropOptions(Modality.INFRARED, first=1)  # gaps count
    assert crop(folder, found, tmp_path / "told", told).crops == 2


def test_a_folder_that_lacks_frames_is_counted_by_its_names(tmp_path):
    folder = numbered_frames(tmp_path / "frames", [f"f{n:04d}.png" for n in (1, *range(9, 30))])
    found = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, 10)))
    assert crop(folder, found, tmp_path / "out", NIGHT).crops == 2
    assert [row["track"][-2:] for row in rows(tmp_path / "out")] == ["/1", "/9"]


def test_crops_of_two_images_never_share_a_name(tmp_path):
    (tmp_path / "frames").mkdir()
    names = ["a.png", "a.bmp", "a_png.png"]
    for seed, name in enumerate(names):
        Image.fromarray(image(seed)).save(tmp_path / "frames" / name)
    crop(tmp_path / "frames", coco(tmp_path, *names), tmp_path / "out", NIGHT)
    paths = {row["path"] for row in rows(tmp_path / "out")}
    assert paths == {"a_png_00.png", "a_png__00.png", "a_bmp_00.png"}
    assert (pixels(tmp_path / "out", "a_png__00.png") == image(0)[6:36, 5:25]).all()


def numbered_frames(folder, names):
    """Frame n has the gray value 10 n."""
    folder.mkdir()
    for number, name in enumerate(names, 1):
        Image.new("RGB", (WIDTH, HEIGHT), (10 * number,) * 3).save(folder / name)
    return folder


def frame_and_second(out):
    """The frame of each crop by its pixels, and the second of its time, which begins at 56."""
    seconds = [datetime.fromisoformat(row["time"]).timestamp() for row in rows(out)]
    start = datetime(2026, 3, 1, 22, 15, 56, tzinfo=timezone.utc).timestamp()
    return [
        (pixels(out, row["path"])[0, 0, 0] // 10, second - start)
        for row, second in zip(rows(out), seconds, strict=True)
    ]


TIMED = CropOptions(Modality.VISIBLE, start=datetime(2026, 3, 1, 22, 15, 56, tzinfo=timezone.utc), fps=1)
CLOCK = [f"2026-03-01_22-{15 + second // 60}-{second % 60:02d}" for second in range(56, 68)]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("names", "is_counter"),
    [
        ([f"frame_{n}_cam2" for n in range(1, 13)], True),
        ([f"20260301_{n}" for n in range(1, 13)], True),
        ([f"2026-03-01_22-15-56_{n:04d}" for n in range(12)], True),  # a clip's start, then the frame
        ([f"{n:010d}" for n in range(12)], True),
        (CLOCK, False),
        ([name.replace("-", "") for name in CLOCK], False),
        ([name.replace("-", "").replace("_", "") for name in CLOCK], False),
        (
            [f"1305031102.{n}" for n in ("1", "12", "125", "13", "14", "15", "2", "3", "4", "5", "6", "7")],
            False,
        ),
        ([f"{1305031102175 + 33 * n}" for n in range(12)], False),
        ([f"shot{n // 4}_{n % 4 + 8}" for n in range(12)], False),
        ([f"{1677664556123 + 40 * n}_{n:06d}" for n in range(12)], True),
        ([f"{n:06d}_{name}" for n, name in enumerate(CLOCK)], True),
        ([f"cam_{name[11:].replace('-', '')}" for name in CLOCK], False),
        ([f"260301_{name[11:].replace('-', '')}" for name in CLOCK], False),
        ([f"01-03-2026_{name[11:]}" for name in CLOCK], False),
        ([f"2026-03-01_22h15m{second}s_cam2" for second in range(20, 32)], False),
        ([f"2026-03-01_22-15-56-{40 * n:03d}" for n in range(12)], False),
    ],
)
def test_frames_are_in_natural_order(tmp_path, names, is_counter, named):
    files = [f"{name}.png" for name in names]
    folder = numbered_frames(tmp_path / "walk", files)
    found = (
        coco(tmp_path, *files) if named else boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in range(1, 13)))
    )
    report = crop(folder, found, tmp_path / "out", TIMED)
    assert frame_and_second(tmp_path / "out") == [(n, n - 1) for n in range(1, 13)]
    order_note = f"order of their names, from {files[0]} to {files[-1]}: the names hold no counter"
    assert [order_note in note for note in report.notes] == ([] if is_counter else [True])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "pattern", ["cam2_20260301_{:06d}", "gate_20260301_{:06d}_cam2", "frame_{:05d}", "img_{:04d}", "{:06d}"]
)
@pytest.mark.parametrize(
    ("numbers", "is_even"),
    [
        ((10, 20, 30, 40, 50), True),
        ((5,), True),
        ((1, 2, 3), True),
        ((2, 4, 7), False),
        ((58, 59, 100), False),
    ],
)
def test_a_counter_tells_of_uneven_steps_only(tmp_path, pattern, numbers, is_even, named):
    files = [f"{pattern.format(number)}.png" for number in numbers]
    folder = numbered_frames(tmp_path / "walk", files)
    found = (
        coco(tmp_path, *files) if named else boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in range(1, 101)))
    )
    report = crop(folder, found, tmp_path / "out", TIMED)
    start = 1 if numbers[0] == 1 else numbers[0]
    assert frame_and_second(tmp_path / "out") == [(at, n - start) for at, n in enumerate(numbers, 1)]
    told = (
        f"frames are counted by the numbers in their names, from {numbers[0]} ({files[0]}) to {numbers[-1]} "
        f"({files[-1]}): gaps in these count as frames and as time"
    )
    assert report.notes == (() if is_even else (told,))
    if named:
        assert crop(folder, found, tmp_path / "untimed", NIGHT).notes == ()


@pytest.mark.parametrize(
    ("prefix", "numbers"),
    [
        ("gate_20260301_", range(9995, 10007)),  # from 010000 on, these are times, too
        ("gate_", range(10000, 10012)),
        ("", range(12300, 12360, 10)),
        ("", range(10000, 10600, 100)),
    ],
)
def test_numbers_that_are_valid_times_stay_a_counter(tmp_path, prefix, numbers):
    files = [f"{prefix}{n:06d}.png" for n in numbers]
    folder = numbered_frames(tmp_path / "walk", files)
    found = boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in range(9000, 13000)))
    report = crop(folder, found, tmp_path / "out", TIMED)
    assert frame_and_second(tmp_path / "out") == [(at, n - numbers[0]) for at, n in enumerate(numbers, 1)]
    assert report.notes == ()


@pytest.mark.parametrize("name", ["frame_000005", "cam2_20260301_000005", "1677664556203_000005"])
def test_a_single_name_ends_with_its_number(tmp_path, name):
    folder = numbered_frames(tmp_path / "walk", [f"{name}.png"])
    found = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, 9)))
    crop(folder, found, tmp_path / "out", NIGHT)
    assert [row["track"] for row in rows(tmp_path / "out")] == ["walk/5"]


def test_times_without_seconds_are_numbers_with_a_note(tmp_path):
    files = [f"20260301-{time}.png" for time in ("2214", "2259", "2300")]
    folder = numbered_frames(tmp_path / "walk", files)
    (note,) = crop(folder, coco(tmp_path, *files), tmp_path / "out", TIMED).notes
    assert "from 2214 (20260301-2214.png) to 2300 (20260301-2300.png)" in note
    assert frame_and_second(tmp_path / "out") == [(1, 0), (2, 45), (3, 86)]


def test_images_counted_in_order_have_times_in_order(tmp_path):
    folder = numbered_frames(tmp_path / "walk", ["100.png", "101.png", "103.png"])
    report = crop(
        folder, boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in (1, 2, 3))), tmp_path / "out", TIMED
    )
    assert frame_and_second(tmp_path / "out") == [(1, 0), (2, 1), (3, 2)]
    assert report.notes == (
        "the images' names hold other numbers than the boxes' frames: they were counted in order",
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a/frame_1.png", "b/frame_2.png"], "the images lie in several folders, taken one after another"),
        (
            ["frame_1.png", "frame_2.png", "thumb.png"],
            "frame_1.png and thumb.png differ in more than a number",
        ),
        (["frame_1.png", "frame_01.png"], "frame_01.png and frame_1.png are one frame by their names"),
        (["a.png", "b.png"], "the names hold no counter"),
    ],
)
def test_why_images_are_counted_in_order(tmp_path, names, reason):
    for name in names:
        (tmp_path / "walk" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(1)).save(tmp_path / "walk" / name)
    (note,) = crop(tmp_path / "walk", coco(tmp_path, *names), tmp_path / "out", TIMED).notes
    assert note.startswith("frames are counted in the order of their names, from ")
    assert note.endswith(f".png: {reason}")


def test_a_gap_in_a_counter_is_a_gap_in_time_and_numbers(tmp_path):
    folder = numbered_frames(tmp_path / "walk", [f"frame_{n}_cam2.png" for n in range(1, 13)])
    (folder / "frame_3_cam2.png").unlink()
    options = CropOptions(Modality.VISIBLE, start=TIMED.start, fps=1, every=4)
    crop(folder, boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in range(1, 13))), tmp_path / "out", options)
    assert frame_and_second(tmp_path / "out") == [(1, 0), (5, 4), (9, 8)]


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        ("frame1 (1).png", r"frame1\.png and frame1 \(1\)\.png differ in more than a number"),
        ("background.png", r"frame1\.png and background\.png differ in more than a number"),
        ("frame01.png", r"frame01\.png and frame1\.png are one frame by their names"),
        ("frame1.jpg", r"frame1\.jpg and frame1\.png are one frame by their names"),
    ],
)
def test_mixed_names_of_numbered_frames_are_refused(tmp_path, odd, fault):
    folder = numbered_frames(tmp_path / "walk", [*(f"frame{n}.png" for n in range(1, 5)), odd])
    found = boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in range(1, 5)))
    with pytest.raises(DataError, match=f"{fault}: remove what is no frame, or count all .* --first-frame 1"):
        crop(folder, found, tmp_path / "out", NIGHT)
    counted = boxes(tmp_path, f"{SUPERVISION},frame_index", "5,6,25,36,0,0.9,7,3")
    with pytest.raises(DataError, match=f"{fault}: .* --first-frame 0"):
        crop(folder, counted, tmp_path / "out", NIGHT)
    found = boxes(tmp_path, *(f"{n},7,5,6,20,30,1" for n in range(1, 5)))
    report = crop(folder, found, tmp_path / "out", CropOptions(Modality.INFRARED, first=1))
    assert report.crops == 4
    assert "counted in the order of their names" in report.notes[0]


def test_the_order_of_named_frames_is_told_only_where_it_counts(tmp_path):
    folder = numbered_frames(tmp_path / "walk", ["a.png", "b.png"])
    notes = [
        crop(folder, coco(tmp_path, "a.png", "b.png"), tmp_path / f"out{every}", options).notes
        for every, options in ((1, NIGHT), (2, CropOptions(Modality.INFRARED, every=2)))
    ]
    assert [len(told) for told in notes] == [0, 1]


def test_the_names_of_a_videos_frames_are_read_as_those_of_images(video, tmp_path):
    told = CropOptions(Modality.INFRARED, first=1)
    crop(video, coco(tmp_path, "frame_4_cam2.png", "frame_12_cam2.png"), tmp_path / "out", told)
    assert (pixels(tmp_path / "out", "000003_00.png") == image(4)[6:36, 5:25]).all()
    dated = coco(tmp_path, "gate_20260301_000004.jpg", "gate_20260301_000001.jpg")
    crop(video, dated, tmp_path / "dated", told)
    assert (pixels(tmp_path / "dated", "000003_00.png") == image(4)[6:36, 5:25]).all()
    assert (pixels(tmp_path / "dated", "000000_00.png") == image(1)[6:36, 5:25]).all()
    with pytest.raises(DataError, match=r"the names hold no counter, but .* is a video"):
        crop(video, coco(tmp_path, *(f"{name}.png" for name in CLOCK)), tmp_path / "times", told)


SUPERVISION = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id"


@pytest.mark.parametrize("column", ["file_name", "frame", "frame_id"])
def test_digits_in_a_name_column_are_names(frames, tmp_path, column):
    found = boxes(tmp_path, f"{SUPERVISION},{column}", *(f"5,6,25,36,0,0.9,7,{n:06d}" for n in (3, 4)))
    report = crop(frames, found, tmp_path / "out", NIGHT)
    assert (report.crops, report.notes, report.left_out.counts) == (2, (), {})
    for n in (3, 4):
        assert (pixels(tmp_path / "out", f"00000{n}_00.png") == image(n)[6:36, 5:25]).all()
    with pytest.raises(
        DataError, match=r"as '3', and .* holds none of them: numbers .* in a column frame_index"
    ):
        crop(frames, boxes(tmp_path, f"{SUPERVISION},image", "5,6,25,36,0,0.9,7,3"), tmp_path / "new", NIGHT)


def test_the_name_of_a_frame_wins_over_its_number(frames, video, tmp_path):
    def numbered_and_named(column, *rows):
        return boxes(
            tmp_path, f"{SUPERVISION},frame_index,{column}", *(f"5,6,25,36,0,0.9,7,{r}" for r in rows)
        )

    stems = numbered_and_named("file_name", "0,000003", "1,000004")
    assert crop(frames, stems, tmp_path / "stems", NIGHT).notes[0].endswith("the names count")
    assert (pixels(tmp_path / "stems", "000003_00.png") == image(3)[6:36, 5:25]).all()
    found = numbered_and_named("file_name", "0,000003.png", "1,000004.png")
    report = crop(frames, found, tmp_path / "out", NIGHT)
    assert report.notes == ("names and numbers of frames disagree, first at 000001.png: the names count",)
    assert (pixels(tmp_path / "out", "000003_00.png") == image(3)[6:36, 5:25]).all()
    assert (pixels(tmp_path / "out", "000004_00.png") == image(4)[6:36, 5:25]).all()
    crop(video, found, tmp_path / "of_video", NIGHT)
    assert (pixels(tmp_path / "of_video", "000001_00.png") == image(2)[6:36, 5:25]).all()
    agreed = numbered_and_named("image_path", "0,/data/000001.png", "1,/data/000002.png")
    assert crop(frames, agreed, tmp_path / "agreed", NIGHT).notes == ()
    one = numbered_and_named("image", "0,000003.png", "1,000003.png")
    with pytest.raises(DataError, match=r"the boxes call the frames 0, 1 all '000003\.png'"):
        crop(frames, one, tmp_path / "one", NIGHT)
    assert crop(video, one, tmp_path / "one", NIGHT).crops == 2


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("a_5.png", "a_6.png"), "the folder holds no image that the boxes name, as 'a_5.png': frames are"),
        (
            ("gate.mp4", "gate.mp4"),
            "the folder holds no image that the boxes name, as 'gate.mp4': frames are",
        ),
        (("a.png", ""), "file is not used: frame 1, line 3 has none"),
    ],
)
def test_names_of_other_things_than_frames_leave_the_numbers(frames, tmp_path, names, note):
    rows_of = [f"5,6,25,36,0,0.9,7,{index},{name}" for index, name in enumerate(names)]
    report = crop(
        frames, boxes(tmp_path, f"{SUPERVISION},frame_index,file", *rows_of), tmp_path / "out", NIGHT
    )
    assert [text[: len(note)] for text in report.notes if "taken as" not in text] == [note] * bool(note)
    assert (pixels(tmp_path / "out", "000002_00.png") == image(2)[6:36, 5:25]).all()


@pytest.mark.parametrize("name", [b"lat\xe9_1.png", b" x_1.png", b"a\tb_1.png", b"a\nb_1.png"])
def test_names_that_no_table_holds_are_refused_before_work(frames, tmp_path, name):
    path = frames / os.fsdecode(name)
    try:
        (frames / "000001.png").rename(path)
    except OSError:
        pytest.skip("this file system takes no such name")
    shown = re.escape(printable(path.name))
    with pytest.raises(DataError, match=rf"frames: rename '{shown}': a table holds no name"):
        crop(frames, boxes(tmp_path, "1,1,5,6,20,30,1"), tmp_path / "out", NIGHT)
    assert not (tmp_path / "out").exists()


def test_a_crop_of_any_other_name_is_found_by_the_reader_of_its_table(tmp_path):
    names = ["y 2.png", "a,b;1.png", 'q"1.png', "Bild\u202f1.png", "\u5c711.png"]
    folder = numbered_frames(tmp_path / "walk", names)
    content = json.loads(coco(tmp_path, *names).read_text())
    content["annotations"][0]["track_id"] = "a\tb\ud800"
    report = crop(folder, boxes(tmp_path, json.dumps(content)), tmp_path / "out", NIGHT)
    table = read_csv(report.table, training=False)
    assert sorted(path.name for path in table.full_paths()) == sorted(f"{name[:-4]}_00.png" for name in names)
    assert all(path.is_file() for path in table.full_paths())
    assert "walk/a\\tb\\ud800" in table.track


def test_numbered_frames_of_several_folders_are_refused(frames, tmp_path):
    (frames / "b").mkdir()
    Image.fromarray(image(1)).save(frames / "b" / "1.png")
    with pytest.raises(DataError, match="several folders"):
        crop(frames, boxes(tmp_path, "1,1,5,6,20,30,1"), tmp_path / "out", NIGHT)


def test_a_broken_frame_is_named_and_tried_again(frames, tmp_path):
    whole = (frames / "000002.png").read_bytes()
    (frames / "000002.png").write_bytes(whole[:60])
    found = boxes(tmp_path, "1,1,5,6,20,30,1", "2,1,5,6,20,30,1")
    report = crop(frames, found, tmp_path / "out", NIGHT)
    ((reason, left),) = report.left_out.to_dict().items()
    assert (report.crops, left) == (1, {"count": 1, "first": ["000002"]})
    assert "cannot be used" in reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (CropOptions(Modality.VISIBLE, start=datetime(2026, 1, 1, tzinfo=timezone.utc)), "needs --fps"),
        (CropOptions(Modality.VISIBLE, fps=5), "only with --start-time"),
    ],
)
def test_a_time_needs_a_clock(frames, tmp_path, options, said):
    with pytest.raises(DataError, match=said):
        crop(frames, boxes(tmp_path, "1,1,5,6,20,30,1"), tmp_path / "out", options)


def test_frames_without_a_clock_count_by_fps(frames, tmp_path):
    (frames / "000002.png").unlink()  # a gap in the numbers is a gap in time
    options = CropOptions(Modality.VISIBLE, start=datetime(2026, 1, 1, tzinfo=timezone.utc), fps=4)
    crop(frames, boxes(tmp_path, "3,1,5,6,20,30,1"), tmp_path / "out", options)
    assert rows(tmp_path / "out")[0]["time"] == "2026-01-01T00:00:00.500+00:00"


def test_a_change_of_clocks_is_no_footage(frames, tmp_path):
    start = datetime(2026, 10, 25, 2, 59, 59, tzinfo=ZoneInfo("Europe/Berlin"))  # a second before the change
    options = CropOptions(Modality.VISIBLE, start=start, fps=1)
    crop(frames, boxes(tmp_path, "1,1,5,6,20,30,1", "3,1,5,6,20,30,1"), tmp_path / "out", options)
    times = [row["time"] for row in rows(tmp_path / "out")]
    assert times == ["2026-10-25T00:59:59.000+00:00", "2026-10-25T01:00:01.000+00:00"]


def test_a_folder_without_a_crop_is_free_for_others(frames, tmp_path):
    with pytest.raises(DataError, match="no crop was made"):
        crop(frames, boxes(tmp_path, "9,1,5,6,20,30,1"), tmp_path / "out", NIGHT)
    assert crop(frames, boxes(tmp_path, "1,1,5,6,20,30,1"), tmp_path / "out", NIGHT).crops == 1


def test_crops_of_something_else_are_not_mixed(frames, tmp_path):
    found = boxes(tmp_path, "1,1,5,6,20,30,1")
    crop(frames, found, tmp_path / "out", NIGHT)
    before = (tmp_path / "out" / "people.csv").read_bytes()
    with pytest.raises(DataError, match="crops of other frames, boxes or options"):
        crop(frames, found, tmp_path / "out", CropOptions(Modality.VISIBLE))
    first, was = frames / "000001.png", (frames / "000001.png").stat()
    first.write_bytes(first.read_bytes())  # as a program that replaces pixels and sets the old time
    os.utime(first, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(DataError, match="crops of other frames, boxes or options"):
        crop(frames, found, tmp_path / "out", NIGHT)
    with pytest.raises(DataError, match="lies in the folder of the frames"):
        crop(frames, found, frames / "crops", NIGHT)
    with pytest.raises(DataError, match="holds other files"):
        crop(frames, found, tmp_path, NIGHT)
    assert (tmp_path / "out" / "people.csv").read_bytes() == before


def test_crops_by_other_rules_of_order_and_names_are_not_continued(frames, tmp_path, monkeypatch):
    found = boxes(tmp_path, "1,1,5,6,20,30,1")
    monkeypatch.setattr("fmcnet.data.crop.RULES", "1")
    crop(frames, found, tmp_path / "out", NIGHT)
    monkeypatch.undo()
    with pytest.raises(DataError, match="or of an older fmcnet"):
        crop(frames, found, tmp_path / "out", NIGHT)


def test_a_video_that_ends_in_the_middle_keeps_what_was_cropped(video, tmp_path):
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    found = boxes(tmp_path, *(f"{n},{n},5,6,20,30,1" for n in range(1, 7)))
    report = crop(
        cut, found, tmp_path / "out", NIGHT
    )  # a stream just ends there: its last boxes have no frame
    assert 0 < report.crops < 6
    assert report.left_out.counts["no frame of this name or number"] == 6 - report.crops
    (tmp_path / "no.mkv").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"cannot read the video .*no\.mkv"):
        crop(tmp_path / "no.mkv", found, tmp_path / "new", NIGHT)


MATRICES = {  # a, b, c, d: the pixel (x, y) is shown at (a x + c y, b x + d y)
    "right": (0, 1, -1, 0), "half": (-1, 0, 0, -1), "left": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1), "transposed": (0, 1, 1, 0), "both": (0, -1, -1, 0),
}  # fmt: skip


def test_a_matrix_that_is_not_set_turns_nothing():
    decoded = SimpleNamespace(side_data={"DISPLAYMATRIX": bytes(36)}, rotation=-180)
    assert (np.asarray(_turn(Image.fromarray(image(3)), decoded)) == image(3)).all()


def test_a_video_that_ends_before_its_first_frame_is_told(video, tmp_path):
    content = video.read_bytes()
    (tmp_path / "gate.mkv").write_bytes(content[: content.index(bytes.fromhex("1F43B675")) + 40])  # a cluster
    with pytest.raises(DataError, match=r"gate\.mkv holds no frame that can be decoded"):
        crop(tmp_path / "gate.mkv", boxes(tmp_path, "1,7,5,6,20,30,1"), tmp_path / "out", NIGHT)


@pytest.mark.parametrize("name", MATRICES)
def test_a_frame_is_shown_as_its_matrix_says(name):
    a, b, c, d = MATRICES[name]
    stored = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14], np.int32) << 16
    decoded = SimpleNamespace(side_data={"DISPLAYMATRIX": stored.tobytes()}, rotation=None)
    before = image(3)[:, :40]
    shown = np.asarray(_turn(Image.fromarray(before), decoded))
    height, width = before.shape[:2]
    y, x = np.mgrid[:height, :width]
    right, down = a * x + c * y, b * x + d * y
    assert (shown[down - down.min(), right - right.min()] == before).all()
    assert shown.size == before.size


def test_a_time_beyond_the_calendar_is_one_line(video, tmp_path):
    start = datetime(9999, 12, 31, 23, 59, 59, 900_000, tzinfo=timezone.utc)
    with pytest.raises(DataError, match=r"frame 000003 lies 0\.3 s after --start-time, beyond the year 9999"):
        crop(
            video,
            coco(tmp_path, "x", frame_id=3),
            tmp_path / "o",
            CropOptions(Modality.INFRARED, start=start),
        )


def test_a_kill_changes_nothing(video, tmp_path):
    """A process that dies while it writes its third crop, half a line in the journal: the same files in the end."""
    found = boxes(tmp_path, *(f"{n},{k},5,6,{20 + k},30,1" for n in range(1, 7) for k in range(2)))
    crop(video, found, tmp_path / "whole", NIGHT)
    program = f"""
        import os
        from fmcnet.data import crop as module
        from fmcnet.types import Modality
        write, left = module._save, [5]
        def dying(image, path):
            left[0] -= 1
            if not left[0]:
                path.with_name(f".{{path.name}}.tmp").write_bytes(b"half")
                os.kill(os.getpid(), 9)
            write(image, path)
        module._save = dying
        module.crop({str(video)!r}, {str(found)!r}, {str(tmp_path / "out")!r}, module.CropOptions(Modality.INFRARED))
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert died.returncode == -9
    out = tmp_path / "out"
    assert len(list(out.glob("0*.png"))) == 4
    assert not (out / "people.csv").exists()
    with (out / ".crops.jsonl").open("a") as journal:
        journal.write('["000003", [["00')
    (out / "000001_01.png").unlink()
    (out / "000002_00.png").write_bytes((out / "000002_00.png").read_bytes()[:200])  # a power cut
    crop(video, found, out, NIGHT)

    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}

    assert files(out) == files(tmp_path / "whole")
    assert not list(out.glob(".*.tmp"))
    crop(video, found, out, NIGHT)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("how", ["corner", "centre", "tracked", "whole"])
def test_boxes_that_fit_as_centre_and_size_only_are_told(frames, tmp_path, how):
    """Ultralytics' xywh begins with the centre: each crop would show the lower right of a person only."""
    random = np.random.default_rng(1)
    rows = []
    for number in range(60):
        width, height = random.integers(8, 14), random.integers(16, 28)
        left, top = random.integers(0, WIDTH - width + 1), random.integers(0, HEIGHT - height + 1)
        if how == "tracked":  # a tracker's boxes are not clipped
            left, top = left + random.integers(-9, 10), top + random.integers(-9, 10)
        if how == "centre":
            left, top = left + width / 2, top + height / 2
        if how == "whole":  # all at the lower edge, one of them as large as the frame
            left, top, height = (1, 1, HEIGHT) if number == 7 else (left, 30, height)
        rows.append(f"{1 + number % 6},{number},{left},{top},{width},{height},1")
    report = crop(frames, boxes(tmp_path, *rows), tmp_path / "crops", NIGHT)
    assert (
        crop(frames, tmp_path / "boxes.txt", tmp_path / "crops", NIGHT).notes == report.notes
    )  # of the journal
    told = [note for note in report.notes if "reach beyond" in note]
    assert ["as centre, width and height" in note for note in told] == [True] * (how == "centre") + [
        False
    ] * (how == "whole")


def test_frames_of_a_damaged_part_of_a_video_are_told(tmp_path, monkeypatch):
    """The decoder flags the frame that it made up; those behind it, up to a key frame, are made from that one."""
    av = pytest.importorskip("av")
    path = tmp_path / "gate.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(1, 25):  # which differ little, so that few are key frames
            frame = av.VideoFrame.from_ndarray(image(1) // 4 + np.uint8(4 * number), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    found = crop(
        path, boxes(tmp_path, *(f"{n},1,5,5,40,40,1" for n in range(1, 25))), tmp_path / "whole", NIGHT
    )
    assert not any("damaged" in note for note in found.notes)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 300] = bytes(300)
    path.write_bytes(data)
    found = crop(path, tmp_path / "boxes.txt", tmp_path / "damaged", NIGHT)
    [note] = [note for note in found.notes if "damaged part of the video" in note]
    assert 2 <= int(note.split()[0]) < 24
