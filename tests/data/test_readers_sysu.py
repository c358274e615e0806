import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fmcnet.data.readers.sysu import read_sysu
from fmcnet.errors import DataError
from fmcnet.types import Modality
from tests.data import trees

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.sysu(tmp_path / "sysu")


def test_a_sound_tree(root: Path) -> None:
    table = read_sysu(root)
    assert len(table) == 6 * 6 * 2
    assert table.notes == ()
    for split, pids in trees.SYSU_IDS.items():
        part = table.select(split=split)
        assert np.unique(part.pid).tolist() == list(pids)
        assert np.unique(part.select(modality=Modality.INFRARED).camid).tolist() == [3, 6]
        assert np.unique(part.select(modality=Modality.VISIBLE).camid).tolist() == [1, 2, 4, 5]
    assert table.path[0] == "cam1/0001/0001.jpg"
    for camera in range(1, 7):
        paths = table.path[(table.camid == camera) & (table.split == "train")].tolist()
        assert paths == sorted(paths)


def test_an_identity_absent_from_some_cameras_is_no_fault(root: Path) -> None:
    shutil.rmtree(root / "cam4/0010")
    table = read_sysu(root)
    assert 4 not in table.camid[table.pid == 10]
    assert table.notes == ()


@pytest.mark.parametrize(
    "text",
    ["1,2,5", "1,2,5,\n", "1, 2, 5\r\n", "\ufeff1,2,5\r\n", "1\n2\n5\n", "0001,0002,0005\n", "1,2,5\r\n\r\n"],
    ids=["bare", "trailing comma", "CRLF", "BOM", "one a line", "zero-padded", "blank lines"],
)
def test_id_files_as_editors_leave_them(root: Path, text: str) -> None:
    (root / "exp/train_id.txt").write_bytes(text.encode())
    assert np.unique(read_sysu(root).select(split="train").pid).tolist() == [1, 2, 5]


def test_an_identity_listed_twice_counts_once(root: Path) -> None:
    before = read_sysu(root).records()
    (root / "exp/test_id.txt").write_text("10,11,11,0010")
    assert read_sysu(root).records() == before


def test_an_id_file_in_utf16(root: Path) -> None:
    (root / "exp/train_id.txt").write_bytes("1,2,5".encode("utf-16"))
    assert np.unique(read_sysu(root).select(split="train").pid).tolist() == [1, 2, 5]


def test_mat_files_stand_in_for_text(root: Path) -> None:
    (root / "exp/test_id.txt").unlink()
    savemat(root / "exp/test_id.mat", {"id": np.array([[10, 11]], dtype=np.uint16)})
    assert np.unique(read_sysu(root).select(split="test").pid).tolist() == [10, 11]


def test_mat_file_without_the_variable(root: Path) -> None:
    (root / "exp/test_id.txt").unlink()
    savemat(root / "exp/test_id.mat", {"ids": np.array([[10, 11]])})
    with pytest.raises(DataError, match=r"no variable 'id'; it holds ids"):
        read_sysu(root)


def test_mat_file_that_is_none(root: Path) -> None:
    (root / "exp/test_id.txt").unlink()
    (root / "exp/test_id.mat").write_text("hello")
    with pytest.raises(DataError, match=r"test_id.mat: it is not a readable MATLAB file"):
        read_sysu(root)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the official split files are not at hand")
def test_the_official_mat_files() -> None:
    from fmcnet.data.readers.common import read_mat_ids

    assert len(read_mat_ids(GOLDEN / "train_id.mat")) == 296
    assert len(read_mat_ids(GOLDEN / "test_id.mat")) == 96


def test_wrong_case_is_read_and_said(root: Path) -> None:
    (root / "cam1").rename(root / "Cam1")
    (root / "exp").rename(root / "EXP")
    (root / "cam2/0001/0001.jpg").rename(root / "cam2/0001/0001.JPG")
    table = read_sysu(root)
    assert len(table) == 72
    assert "Cam1/0001/0001.jpg" in table.path
    assert any("'Cam1' read as 'cam1'" in note and "'EXP' read as 'exp'" in note for note in table.notes)


def test_two_folders_that_differ_in_case_only(root: Path) -> None:
    shutil.copytree(root / "cam1", root / "CAM1")
    assert len(read_sysu(root)) == 72  # the exact name wins
    assert read_sysu(root).notes == ("ignored 1 entry that is no part of the dataset: CAM1",)
    (root / "cam1").rename(root / "Cam1")
    with pytest.raises(DataError, match=r"holds CAM1, Cam1: which one is 'cam1'"):
        read_sysu(root)


def test_extra_files_are_ignored_and_counted(root: Path) -> None:
    (root / "cam1/Thumbs.db").write_bytes(b"x")
    (root / "cam1/0001/Thumbs.db").write_bytes(b"x")
    (root / "cam1/0001/.DS_Store").write_bytes(b"x")
    (root / "cam1/0001/._0001.jpg").write_bytes(b"x")
    (root / "cam2/notes.txt").write_text("hello")
    (root / "cam2/0002/sub").mkdir()
    (root / "readme.txt").write_text("hello")
    table = read_sysu(root)
    assert len(table) == 72
    assert [note for note in table.notes if note.startswith("ignored 6 entries")]
    assert "Thumbs.db" in table.notes[0]


def test_folders_beside_the_cameras_are_told(root: Path) -> None:
    trees.write_image(root / "cam7/0001/0001.jpg")
    trees.write_image(root / ".fmcnet-cache/0001.jpg")
    assert read_sysu(root).notes == ("ignored 1 entry that is no part of the dataset: cam7",)


DIFFER = "though identity, camera, modality or split differ: counted in each"
LINKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "symbolic": (
        lambda r: (r / "cam1/0001/0009.jpg").symlink_to(r / "cam1/0001/0001.jpg"),
        "1 image is the file of another image, by a link, counted once: cam1/0001/0009.jpg (is "
        "cam1/0001/0001.jpg)",
    ),
    "hard, of another split": (
        lambda r: os.link(r / "cam1/0001/0001.jpg", r / "cam1/0011/0009.jpg"),
        f"1 image is the file of another image, by a link, {DIFFER}: cam1/0011/0009.jpg (is cam1/0001/0001.jpg)",
    ),
    "a folder": (
        lambda r: (shutil.rmtree(r / "cam2/0001"), (r / "cam2/0001").symlink_to(r / "cam1/0001")),
        f"2 images are files of another image, by a link, {DIFFER}: cam2/0001/0001.jpg (is cam1/0001/0001.jpg), "
        "cam2/0001/0002.jpg (is cam1/0001/0002.jpg)",
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_file_of_two_names_counts_once_where_they_say_the_same(root: Path, name: str) -> None:
    link, note = LINKS[name]
    link(root)
    table = read_sysu(root)
    files = len({path.resolve().stat().st_ino for path in table.full_paths()})
    assert (len(table) == files) == ("counted once" in note)
    assert table.notes == (note,)
    if "counted once" in note:
        assert len(read_sysu(root, training=False)) > len(table)  # an index names these files itself


def test_a_broken_link_is_kept_until_it_is_read(root: Path) -> None:
    (root / "cam1/0001/0009.jpg").symlink_to(root / "gone.jpg")
    assert "cam1/0001/0009.jpg" in read_sysu(root).path


@pytest.mark.parametrize("inside", ["", "cam5"])
def test_a_camera_without_images_is_named(root: Path, inside: str) -> None:
    """The camera's folder is empty, or unpacked twice."""
    (root / "cam5").rename(root / "outside")
    (root / "cam5").mkdir()
    (root / "outside").rename(root / "cam5" / inside if inside else root / "elsewhere")
    table = read_sysu(root)
    assert len(table) == 60
    assert table.notes[0].startswith("no image was read from cam5, where the published dataset has some")
    assert table.notes[1:] == (f"ignored 1 entry that is no part of the dataset: {inside or 'elsewhere'}",)


def test_splits_that_share_identities_can_be_searched(root: Path) -> None:
    (root / "exp/val_id.txt").write_text("10,11")
    table = read_sysu(root, training=False)
    assert len(table.select(split="val")) == len(table.select(split="test")) == 24


def test_identity_folders_in_no_list_are_said(root: Path) -> None:
    trees.write_image(root / "cam1/0099/0001.jpg")
    table = read_sysu(root)
    assert 99 not in table.pid
    assert any("1 identity folders are in no list" in note for note in table.notes)


def test_a_training_identity_of_one_modality_is_dropped_and_said(root: Path) -> None:
    for camera in (3, 6):
        shutil.rmtree(root / f"cam{camera}/0002")
        shutil.rmtree(root / f"cam{camera}/0011")
    table = read_sysu(root)
    assert np.unique(table.select(split="train").pid).tolist() == [1, 5]
    assert 11 in table.select(split="test").pid
    assert any(
        note.startswith("train: 1 identity seen in one modality only, dropped") for note in table.notes
    )
    assert any(note.startswith("test: 1 identity seen in one modality only, kept") for note in table.notes)


def test_absent_val_list_is_a_note(root: Path) -> None:
    (root / "exp/val_id.txt").unlink()
    table = read_sysu(root)
    assert set(table.split) == {"train", "test"}
    assert "exp/val_id.txt is absent: no val split" in table.notes


def _remove_infrared(root: Path) -> None:
    for camera in (3, 6):
        for folder in (root / f"cam{camera}").iterdir():
            shutil.rmtree(folder)


def _absent_ids(root: Path) -> None:
    (root / "exp/train_id.txt").write_text("1,2,5,88,89")
    (root / "exp/test_id.txt").write_text("10,11,90")


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (shutil.rmtree, ["does not exist", "Expected:", "cam1/"]),
    "no camera": (lambda r: shutil.rmtree(r / "cam3"), ["lacks the camera folder cam3", "Expected:"]),
    "no test list": (lambda r: (r / "exp/test_id.txt").unlink(), ["lacks exp/test_id.txt", "exp/val_id.txt"]),
    "no exp": (lambda r: shutil.rmtree(r / "exp"), ["exp/train_id.txt, exp/test_id.txt", "Expected:"]),
    "absent ids": (_absent_ids, ["3 identities", "88 (train), 89 (train), 90 (test)"]),
    "empty list": (lambda r: (r / "exp/train_id.txt").write_text("\n"), ["train_id.txt lists no identity"]),
    "words in list": (
        lambda r: (r / "exp/val_id.txt").write_text("7,x8,?"),
        ["val_id.txt should hold comma-separated", "x8, ?"],
    ),
    "overlap": (
        lambda r: (r / "exp/test_id.txt").write_text("10,1,2"),
        ["2 identities are in both train and test: 1, 2"],
    ),
    "two folders, one id": (lambda r: (r / "cam1/1").mkdir(), ["two folders for identity 1: '0001' and '1'"]),
    "no infrared at all": (_remove_infrared, ["no training identity has both"]),
    "binary list": (
        lambda r: (r / "exp/train_id.txt").write_bytes(b"1,2,\xff5"),
        ["train_id.txt is not a text file"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trees_give_one_clear_message(root: Path, name: str) -> None:
    damage, words = BROKEN[name]
    damage(root)
    with pytest.raises(DataError) as caught:
        read_sysu(root)
    for word in words:
        assert word in str(caught.value)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match="is a file: give the dataset's folder"):
        read_sysu(tmp_path / "x")
