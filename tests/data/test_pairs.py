"""Two synchronous folders become a training table."""

import csv
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcnet.data.crop import CropOptions, crop
from fmcnet.data.pairs import make_pairs
from fmcnet.data.readers import read_dataset
from fmcnet.errors import DataError
from fmcnet.synthetic.image import render_pair
from fmcnet.types import Modality
from tests.cli import run_command


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
        ("day/a/1_vis.jpg", "person-1", "visible", "1", "train"),
        ("night/a/1_ir.png", "person-1", "infrared", "2", "train"),
        ("day/a/2_vis.jpg", "person-2", "visible", "1", "train"),
        ("night/a/2_ir.png", "person-2", "infrared", "2", "train"),
        ("day/b/1_vis.jpg", "person-3", "visible", "1", "train"),
        ("night/b/1_ir.png", "person-3", "infrared", "2", "train"),
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
    assert {row[1] for row in rows(report.table)} == {"person-1", "person-2"}


@pytest.mark.parametrize(
    ("day", "night", "paired"),
    [
        ("0007", "0007", True),
        ("vis_0007", "ir_0007", True),
        ("gate_rgb_0007", "gate_thermal_0007", True),
        ("0007 V", "0007 I", True),
        ("0111_1716_M_0000_vi", "0111_1716_M_0000_ir", True),
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
    assert {row[1] for row in rows(report.table)} == {"person-1", "person-2"}
    with pytest.raises(DataError, match="has infrared crops, and stands where visible ones are meant"):
        make_pairs(*sides[::-1], tmp_path / "swapped.csv")
    # The folders of the crops give the same: their people.csv is read.
    folders = [side.parent for side in sides]
    (folders[0] / "notes.txt").write_text("x")
    again = make_pairs(*folders, tmp_path / "folders.csv")
    assert rows(again.table) == rows(report.table)
    assert (again.missing, [Path(file.path).name for file in again.ignored]) == ((), ["notes.txt"])
    save(folders[0], "more_vis.png")
    save(folders[1], "more_ir.png")
    assert (make_pairs(*folders, tmp_path / "more.csv").identities) == 3
    with pytest.raises(DataError, match=r"ir/people.csv has infrared crops, and stands where visible ones"):
        make_pairs(*folders[::-1], tmp_path / "swapped.csv")


def test_what_cannot_be_paired(cameras, tmp_path):
    with pytest.raises(DataError, match=r"0 identities in common.*one name in both") as caught:
        make_pairs(cameras[0], save(tmp_path / "else", "x.png"), tmp_path / "p.csv")
    words = "visible/vis/vi/v/rgb/color/colour and infrared/ir/i/nir/thermal/lwir"
    assert f"but for a word as {words}. There are" in str(caught.value)
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
    assert [row[0] for row in rows(report.table)] == [
        *("day/b.jpg", "night/b.png"),
        *("day/gate_i_001.jpg", "night/gate_i_001.png"),
    ]
    assert report.alone[Modality.VISIBLE] == (str(day / "gate_001.jpg"),)


def test_a_name_that_no_table_can_hold_is_one_line(tmp_path):
    day, night = save(tmp_path / "day", "a.png", "b.png"), save(tmp_path / "night", "a.png", "b.png")
    (day / "a.png").rename(day / "a\tb.png")
    with pytest.raises(DataError, match="rename the file"):
        make_pairs(day, night, tmp_path / "p.csv")


def table_of(folder, *lines):
    """A CSV beside its crops a.png, b.png... with these columns for each."""
    names = [f"{'abcdef'[at]}.png" for at in range(len(lines) - 1)]
    save(folder, *names)
    file = folder.parent / f"{folder.name}.csv"
    body = [f"{folder.name}/{name},{line}" for name, line in zip(names, lines[1:], strict=True)]
    file.write_text("\n".join([f"path,{lines[0]}", *body]) + "\n")
    return file


def people(report):
    return [row[1] for row in rows(report.table)][::2]


def test_tracks_of_either_camera_join_and_those_of_two_cameras_do_not(tmp_path):
    day = table_of(tmp_path / "day", "track", "1", "2", "3", "")
    night = table_of(tmp_path / "night", "track", "9", "9", "1", "3")
    assert people(make_pairs(day, night, tmp_path / "p.csv")) == [
        "person-1",
        "person-1",
        "person-2",
        "person-3",
    ]


def test_known_identities_join(tmp_path):
    day = table_of(tmp_path / "day", "pid", "anna", "", "bob", "7")
    night = table_of(tmp_path / "night", "pid", "", "anna", "-1", "007")
    assert people(make_pairs(day, night, tmp_path / "p.csv")) == [
        "person-1",
        "person-1",
        "person-2",
        "person-3",
    ]


def test_two_people_at_one_moment_are_refused(tmp_path):
    day = table_of(tmp_path / "day", "pid", "anna", "bob", "carl")
    night = table_of(tmp_path / "night", "pid", "anna", "carl", "carl")
    with pytest.raises(
        DataError, match=r"day/b.png and .*night/b.png are of one moment, and of pid bob and pid carl"
    ):
        make_pairs(day, night, tmp_path / "p.csv")


@pytest.mark.parametrize("tracks", [("1", "1", "2"), ("1", "2", "1")])
def test_a_track_that_joins_two_people_is_refused(tmp_path, tracks):
    """A tracker that went from one person to another, with a third crop that names nobody between them."""
    day = table_of(tmp_path / "day", "pid", "anna", *(("bob", "") if tracks[1] == "1" else ("", "bob")))
    night = table_of(tmp_path / "night", "track", *tracks)
    with pytest.raises(DataError, match=r"infrared track 1, of .*night/.\.png .*joins pid anna and pid bob"):
        make_pairs(day, night, tmp_path / "p.csv")


def test_a_folder_that_joins_two_people_is_refused(tmp_path):
    for side in ("day", "night"):
        save(tmp_path / side / "one", "a.png", "b.png")
        save(tmp_path / side / "two", "c.png")
    people = tmp_path / "day" / "people.csv"
    people.write_text("path,pid\none/a.png,anna\none/b.png,bob\ntwo/c.png,\n")
    with pytest.raises(
        DataError, match=r"the folder one, of .*joins pid anna and pid bob: correct the tables"
    ):
        make_pairs(people, tmp_path / "night", tmp_path / "p.csv", folders=True)


def test_rows_without_a_file_and_notes_are_told(tmp_path):
    day = table_of(tmp_path / "day", "tracks", "1", "1", "2")
    night = table_of(tmp_path / "night", "track", "", "", "")
    (tmp_path / "day" / "c.png").unlink()
    report = make_pairs(day, night, tmp_path / "p.csv")
    assert (report.pairs, report.missing) == (2, (str(tmp_path / "day/c.png"),))
    assert any("tracks" in note for note in report.notes)
    said = run_command("data", "pairs", day, night, "--out", tmp_path / "q.csv").output
    assert "1 rows without a file left out" in said
    assert "tracks" in said


def test_an_image_is_given_once(cameras, tmp_path):
    with pytest.raises(DataError, match="are one image: give each image once"):
        make_pairs(cameras[0], cameras[0], tmp_path / "p.csv")


def test_an_empty_folder_and_an_option_without_effect(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    day, night = save(tmp_path / "day", "a.png", "b.png"), save(tmp_path / "night", "a.png", "b.png")
    with pytest.raises(DataError, match=r"empty has no infrared crop \(ignored 1: .*notes.txt"):
        make_pairs(day, empty, tmp_path / "p.csv")
    with pytest.raises(DataError, match="no crop lies in a folder of its own"):
        make_pairs(day, night, tmp_path / "p.csv", folders=True)


def test_any_name_becomes_an_identity_that_training_reads(tmp_path):
    names = ["unknown.png", f"{'n' * 200}.png", "7.png", "007.png", "a,b.png"]
    longer = "f" * 200
    for side in ("day", "night"):
        save(tmp_path / side, *(f"{longer}/{name}" for name in names))
    report = make_pairs(tmp_path / "day", tmp_path / "night", tmp_path / "p.csv")
    assert len(set(read_dataset(report.table).pid)) == report.identities == len(names)


def cropped(tmp_path, word, boxes, **options):
    """Crops of two frames of 64 x 48 pixels by lines of MOTChallenge."""
    frames = save(tmp_path / f"frames_{word}", "1.png", "2.png")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 0] = np.arange(64) * 3
    pixels[..., 2 if word == "vis" else 0] += np.arange(48, dtype=np.uint8)[:, None]
    for path in frames.iterdir():
        Image.fromarray(pixels if word == "vis" else pixels[..., 0]).save(path)
    file = tmp_path / f"{word}.txt"
    file.write_text("".join(f"{frame},-1,{left},4,12,24,1\n" for frame in (1, 2) for left in boxes))
    modality = {"vis": Modality.VISIBLE, "ir": Modality.INFRARED}[word]
    return crop(frames, file, tmp_path / word, CropOptions(modality, **options)).table


def test_crops_of_different_boxes_may_show_different_persons(tmp_path):
    """The second detector found them in another order: each pair would be of two persons."""
    sides = cropped(tmp_path, "vis", (5, 30)), cropped(tmp_path, "ir", (30, 5))
    for number, given in enumerate((sides, [side.parent for side in sides])):
        (note,) = make_pairs(*given, tmp_path / f"{number}.csv").notes
        assert note.startswith(
            "fmcnet crop cut the two cameras by different boxes, so crop 00 of a frame may be"
        )


def test_pairs_of_different_times_are_told(tmp_path):
    """Frame 2 of a camera of 25 frames a second is another moment than frame 2 of one that takes one in 2 s."""
    noon = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
    sides = (
        cropped(tmp_path, "vis", (5,), start=noon, fps=25),
        cropped(tmp_path, "ir", (5,), start=noon, fps=0.5),
    )
    (note,) = make_pairs(*sides, tmp_path / "p.csv").notes
    assert note.startswith("1 of 2 pairs are over 1 s apart by their times, the first ")
    assert str(tmp_path / "vis/2_00.png") in note
    assert str(tmp_path / "ir/2_00.png") in note


def test_the_same_boxes_and_times_get_no_note(tmp_path):
    noon = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
    sides = [cropped(tmp_path, word, (5, 30), start=noon, fps=25) for word in ("vis", "ir")]
    assert make_pairs(*sides, tmp_path / "p.csv").notes == ()
    (tmp_path / "ir/.crops.jsonl").write_text('{"crops": "of an earlier version"}\n')
    sides[1].write_text(sides[1].read_text().replace("2026-03-01T12:00:00.000+00:00", "noon"))
    assert make_pairs(*[side.parent for side in sides], tmp_path / "q.csv").notes == ()


def test_accents_that_macos_writes_as_two_characters_are_the_same_name(tmp_path):
    day = save(tmp_path / "day", "Jos\u00e9.png", "b.png")
    night = save(tmp_path / "night", "Jose\u0301.png", "b.png")
    assert make_pairs(day, night, tmp_path / "p.csv").pairs == 2
