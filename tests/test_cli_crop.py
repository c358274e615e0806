"""From a video to an answer: boxes, crops, gallery, and a search by a night crop; and frames taken for crops."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import fmcnet
from fmcnet.data.images import is_full_frame
from fmcnet.data.pixels import Remarks
from fmcnet.inference.image_input import read_pixels
from tests.cli import run_command

av = pytest.importorskip("av")
PEOPLE = 6
STEP = 50  # pixels between two people


def write_video(path, tree, camera, people):
    """People side by side before a wall, walking down, and their boxes: one track a person, from 11."""
    rows = []
    with av.open(str(path.with_suffix(".mkv")), "w") as out:
        stream = out.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "bgr0"
        for number in range(3):
            frame = np.full((240, 320, 3), 90, dtype=np.uint8)
            for place, person in enumerate(people):
                images = sorted((tree / camera / person).glob("*.jpg"))
                image = np.asarray(Image.open(images[number % len(images)]).convert("RGB"))
                height, width = image.shape[:2]
                left, top = 10 + STEP * place, 20 + 15 * number
                frame[top : top + height, left : left + width] = image
                rows.append(f"{number + 1},{place + 11},{left},{top},{width},{height},0.9,-1,-1,-1\n")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    path.with_suffix(".txt").write_text("".join(rows))


@pytest.fixture(scope="module")
def videos(tiny_sysu, tmp_path_factory):
    """A day and a night video of the same people."""
    folder = tmp_path_factory.mktemp("videos")
    both = [{path.name for path in (tiny_sysu / camera).iterdir()} for camera in ("cam1", "cam3")]
    people = sorted(both[0] & both[1])[:PEOPLE]
    write_video(folder / "day", tiny_sysu, "cam1", people)
    write_video(folder / "night", tiny_sysu, "cam3", people)
    (folder / "people").write_text(" ".join(people))
    return folder


def similarity_of_tracks(tree, videos, model):
    """(night, day) similarities of the same images without video, boxes or crops."""
    encoder = fmcnet.Encoder.from_pretrained(model, threads=1)
    people = (videos / "people").read_text().split()

    def encode(camera, modality):
        images = [sorted((tree / camera / person).glob("*.jpg")) for person in people]
        three = [found[at % len(found)] for found in images for at in range(3)]
        pooled = encoder.encode(three, modality).features.reshape(PEOPLE, 3, -1).mean(1)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    return encode("cam3", "infrared") @ encode("cam1", "visible").T


def test_a_night_crop_finds_the_right_track(videos, tiny_sysu, tmp_path):
    for name, modality in (("day", "visible"), ("night", "infrared")):
        words = ("crop", videos / f"{name}.mkv", videos / f"{name}.txt", "--out", tmp_path / name)
        words += ("--modality", modality, "--camera", name, "--start-time", "2026-03-01T22:15:00+01:00")
        report = json.loads(run_command(*words, "--json").stdout)
        assert (report["frames"], report["boxes"], report["crops"], report["left_out"]) == (3, 18, 18, {})
    gallery, model = tmp_path / "people.gallery", tmp_path / "adapted"
    sides = ("--visible", tmp_path / "day", "--infrared", tmp_path / "night")
    run_command("adapt", "fmcnet-lite", *sides, "--out", model)
    words = ("index", gallery, tmp_path / "day" / "people.csv", "--model", model, "--json")
    made = json.loads(run_command(*words).stdout)
    assert (made["added"], made["faults"]) == (18, [])
    with (tmp_path / "night" / "people.csv").open() as stream:
        night = list(csv.DictReader(stream))
    expected = similarity_of_tracks(tiny_sysu, videos, model)
    assert sum(expected.argmax(1) == np.arange(PEOPLE)) == 5  # one of six by chance; 4 without adapting
    for place, track in enumerate(sorted({row["track"] for row in night})):
        crops = [tmp_path / "night" / row["path"] for row in night if row["track"] == track]
        words = ("search", gallery, *crops, "--modality", "infrared", "--group", "track", "--json")
        groups = json.loads(run_command(*words).stdout)["groups"]
        assert {group["pooled"] for group in groups} == {3}
        found = {group["key"]: group["similarity"] for group in groups}
        wanted = {f"day/day/{11 + at}": value for at, value in enumerate(expected[place])}
        assert found == pytest.approx(wanted, abs=1e-4)  # video, boxes and crops cost nothing
        assert groups[0]["key"] == max(wanted, key=wanted.get)
    best = json.loads(
        run_command("search", gallery, tmp_path / "night" / "000002_00.png", *words[-5:]).stdout
    )
    assert best["groups"][0]["key"] == "day/day/11"
    assert best["groups"][0]["matches"][0]["time"].startswith("2026-03-01T21:15:00")


def test_what_is_left_out_is_told(videos, tmp_path):
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("1,1,-4,20,32,64,1\n1,2,100,20,3,3,1\n2,1,100,20,32,64,1\n9,1,10,20,32,64,1\n")
    words = ("crop", videos / "day.mkv", boxes, "--modality", "visible")
    said = " ".join(run_command(*words, "--out", tmp_path / "text").output.split())
    assert "left out 1: less than 8 pixels wide or high; frame 1, line 2" in said
    assert "left out 1: no frame of this name or number; 9" in said
    assert "tracks │ day/ID │" in said
    report = json.loads(run_command(*words, "--out", tmp_path / "json", "--every", 2, "--json").stdout)
    counts = {"frames": 3, "frames_without_boxes": 1, "boxes": 4, "crops": 1, "clipped": 1, "not_chosen": 1}
    assert {name: report[name] for name in counts} == counts
    assert report["table"] == str(tmp_path / "json" / "people.csv")
    assert report["left_out"]["less than 8 pixels wide or high"] == {"count": 1, "first": ["frame 1, line 2"]}


def test_boxes_that_reach_beyond_the_frame_are_told_when_most_do(videos, tmp_path):
    """Corners (x1, y1, x2, y2) where x, y, width and height are read."""
    boxes = tmp_path / "boxes.txt"
    words = ("crop", videos / "day.mkv", boxes, "--modality", "visible", "--json", "--out")
    told = []
    for name, beyond in (("some", 2), ("most", 3)):
        lines = [f"{1 + at // 2},{at},100,20,{2000 if at < beyond else 32},64,1" for at in range(5)]
        boxes.write_text("\n".join(lines))
        told.append(json.loads(run_command(*words, tmp_path / name).stdout)["notes"])
    assert told[0] == []
    assert [
        note.startswith("3 of 5 boxes reach beyond their frame: are they corners") for note in told[1]
    ] == [True]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((160, 120), True), ((640, 512), True), ((720, 1280), True), ((1080, 1920), True), ((2000, 2000), True),
        ((64, 128), False), ((128, 256), False), ((224, 224), False), ((90, 60), False), ((600, 1400), False),
    ],
)  # fmt: skip
def test_what_is_taken_for_a_full_frame(size, told):
    assert is_full_frame(*size) is told


def test_a_full_frame_in_index_and_search_is_told(tiny_sysu, tmp_path):
    crop = sorted((tiny_sysu / "cam1").rglob("*.jpg"))[0]
    (tmp_path / "frames").mkdir()
    frame = tmp_path / "frames" / "frame.png"
    Image.open(crop).convert("RGB").resize((320, 240)).save(frame)
    gallery, visible = tmp_path / "g", ("--modality", "visible")
    index = ("index", gallery, frame, crop, *visible, "--model", "fmcnet-generated", "--json")
    (note,) = json.loads(run_command(*index).stdout)["notes"]
    assert note.startswith("1 image wider than high")
    assert f"fmcnet crop) (the first is {frame}" in note
    for image, count in ((frame, 1), (crop, 0)):
        answer = json.loads(run_command("search", gallery, image, *visible, "--json").stdout)
        assert sum("fmcnet crop" in line for line in answer["notes"]) == count
    pixels = np.asarray(Image.open(frame))
    remarks = Remarks()
    read_pixels(pixels, 8, 4, remarks=remarks, name="images[0]")
    assert "images[0]" in remarks.lines()[0]
