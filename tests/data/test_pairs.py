"""Two synchronous folders become a training table."""

import csv

import numpy as np
import pytest
from PIL import Image

from fmcnet.data.crop import CropOptions, crop
from fmcnet.data.pairs import make_pairs
from fmcnet.data.readers import read_dataset
from fmcnet.errors import DataError
from fmcnet.synthetic.image import render_pair
from fmcnet.types import Modality


def save(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32)).save(path)
    return root


@pytest.fixture
def cameras(tmp_path):
    day = save(tmp_path / "day", "a/1_vis.jpg", "a/2_vis.jpg", "b/1_vis.jpg", "c/9_vis.jpg")
    night = save(tmp_path / "night", "a/1_ir.png", "a/2_ir.png", "b/1_ir.png", "d/1_ir.png")
    (night / "notes.txt").write_text("x")
    return day, night


def rows(table):
    with table.open(encoding="utf-8") as stream:
        return [tuple(row.values()) for row in csv.DictReader(stream)]


def test_crops_of_one_name_are_one_identity(cameras, tmp_path):
    report = make_pairs(*cameras, tmp_path / "pairs.csv")
    assert rows(report.table) == [
        ("day/a/1_vis.jpg", "pair/a/1", "visible", "1", "train"),
        ("night/a/1_ir.png", "pair/a/1", "infrared", "2", "train"),
        ("day/a/2_vis.jpg", "pair/a/2", "visible", "1", "train"),
        ("night/a/2_ir.png", "pair/a/2", "infrared", "2", "train"),
        ("day/b/1_vis.jpg", "pair/b/1", "visible", "1", "train"),
        ("night/b/1_ir.png", "pair/b/1", "infrared", "2", "train"),
    ]
    assert (report.pairs, report.identities) == (3, 3)
    assert report.alone == {
        Modality.VISIBLE: (str(cameras[0] / "c/9_vis.jpg"),),
        Modality.INFRARED: (str(cameras[1] / "d/1_ir.png"),),
    }
    assert [one.path for one in report.ignored] == [str(cameras[1] / "notes.txt")]
    table = read_dataset(report.table)
    assert (table.split == "train").all()
    assert len(set(table.pid)) == 3


def test_a_folder_of_a_tracker_is_one_identity(cameras, tmp_path):
    report = make_pairs(*cameras, tmp_path / "pairs.csv", folders=True)
    assert (report.pairs, report.identities) == (3, 2)
    assert {row[1] for row in rows(report.table)} == {"track/a", "track/b"}


@pytest.mark.parametrize(
    ("day", "night", "paired"),
    [
        ("0007", "0007", True),
        ("vis_0007", "ir_0007", True),
        ("gate_rgb_0007", "gate_thermal_0007", True),
        ("0007 V", "0007 I", True),
        ("visible", "visible", True),
        ("rgb_0007", "0007", True),
        ("gate_i_0007", "gate_i_0007", True),
        ("0007_1", "0007_0", False),
        ("0007", "007", False),
        ("ir_0007", "vis_0007", False),  # the folders are swapped
    ],
)
def test_names_differ_only_by_the_modality(tmp_path, day, night, paired):
    save(tmp_path / "day", f"{day}.jpg", "other.jpg", "third.jpg")
    save(tmp_path / "night", f"{night}.png", "other.png", "third.jpg")
    assert make_pairs(tmp_path / "day", tmp_path / "night", tmp_path / "p.csv").pairs == 2 + paired


def test_tracks_of_cropped_frames_join_their_pairs(tmp_path):
    boxes = tmp_path / "tracks.txt"
    boxes.write_text("".join(f"{frame},{who},{5 * who},4,12,24,1\n" for frame in (1, 2) for who in (1, 2)))
    sides = []
    for modality, word in ((Modality.VISIBLE, "vis"), (Modality.INFRARED, "ir")):
        frames = save(tmp_path / f"frames_{word}", *(f"{n:04d}_{word}.png" for n in (1, 2)))
        for path in frames.iterdir():
            Image.new("RGB", (64, 48)).save(path)
        sides.append(crop(frames, boxes, tmp_path / word, CropOptions(modality=modality)).table)
    report = make_pairs(*sides, tmp_path / "pairs.csv")
    assert (report.pairs, report.identities) == (4, 2)
    assert {row[1] for row in rows(report.table)} == {
        "visible-track/frames_vis/1",
        "visible-track/frames_vis/2",
    }
    with pytest.raises(DataError, match="has infrared crops, and stands where visible ones are meant"):
        make_pairs(*sides[::-1], tmp_path / "swapped.csv")


def test_what_cannot_be_paired(cameras, tmp_path):
    with pytest.raises(DataError, match=r"0 identities in common.*one name in both"):
        make_pairs(cameras[0], save(tmp_path / "else", "x.png"), tmp_path / "p.csv")
    with pytest.raises(DataError, match="nowhere does not exist: give a folder of infrared crops"):
        make_pairs(cameras[0], tmp_path / "nowhere", tmp_path / "p.csv")
    save(cameras[0], "a/1.jpg")
    with pytest.raises(DataError, match="have one name: which is the pair's"):
        make_pairs(*cameras, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_no_table_is_overwritten(cameras, tmp_path):
    mine = tmp_path / "people.csv"
    mine.write_text("path,pid,modality\n")
    with pytest.raises(DataError, match="exists: give another name"):
        make_pairs(*cameras, mine)
    assert mine.read_text() == "path,pid,modality\n"


def test_a_generated_pair_is_one_moment_in_two_spectra():
    day, night = render_pair(0, 1, 1, 96, 48)
    other = render_pair(0, 1, 2, 96, 48)[1]
    assert day.shape == (96, 48, 3)
    assert night.shape == (96, 48)
    edges = np.abs(np.diff(np.asarray(Image.fromarray(day).convert("L"), np.float32), axis=1)) > 25
    near = edges | np.roll(edges, 1, axis=1) | np.roll(edges, -1, axis=1)
    now, later = (
        near[np.abs(np.diff(image.astype(np.float32), axis=1)) > 25].mean() for image in (night, other)
    )
    assert now > later + 0.1  # the outline stands where the visible image has edges


def test_names_that_both_have_are_not_shortened(tmp_path):
    day = save(tmp_path / "day", "gate_001.jpg", "gate_i_001.jpg", "b.jpg")
    night = save(tmp_path / "night", "gate_i_001.png", "b.png")
    report = make_pairs(day, night, tmp_path / "p.csv")
    assert {row[1] for row in rows(report.table)} == {"pair/gate_i_001", "pair/b"}


def test_a_name_that_no_table_can_hold_is_one_line(tmp_path):
    day, night = save(tmp_path / "day", "a.png", "b.png"), save(tmp_path / "night", "a.png", "b.png")
    (day / "a.png").rename(day / "a\tb.png")
    with pytest.raises(DataError, match="rename the file"):
        make_pairs(day, night, tmp_path / "p.csv")
