import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmcnet.data.readers.llcm import read_llcm
from fmcnet.errors import DataError
from fmcnet.types import Modality
from tests.data import trees

TEST_IMAGE = "test_vis/cam4/0002/0002_c04_s0000_f10_vis.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.llcm(tmp_path / "llcm")


def test_a_sound_tree(root: Path) -> None:
    table = read_llcm(root)
    assert len(table) == 32
    assert np.unique(table.select(split="train").pid).tolist() == [1, 4]
    assert np.unique(table.select(split="test").pid).tolist() == [2, 30]
    for split in ("train", "test"):
        part = table.select(split=split)
        assert np.unique(part.select(modality=Modality.VISIBLE).camid).tolist() == [1, 3]
        assert np.unique(part.select(modality=Modality.INFRARED).camid).tolist() == [1, 2]


def test_cameras_are_tokens_not_positions(root: Path) -> None:
    """Neither the length of the root's name, nor of the file's, nor a 'c' elsewhere matters."""
    old = "vis/0001/0001_c03_s0000_f10_vis.jpg"
    new = "vis/0001/longer_name_0001_c3_scc07_vis.jpg"
    (root / old).rename(root / new)
    index = root / "idx/train_vis.txt"
    index.write_text(index.read_text().replace(old, new))
    table = read_llcm(root)
    assert table.camid[table.path == new].tolist() == [3]


def test_windows_separators_bom_and_case(root: Path) -> None:
    before = read_llcm(root).path.tolist()
    index = root / "idx/train_nir.txt"
    index.write_bytes(("\ufeff" + index.read_text().replace("/", "\\").replace("\n", "\r\n")).encode())
    (root / "idx/test_id.txt").write_bytes("\ufeff2,30,\r\n".encode())
    assert read_llcm(root).path.tolist() == before
    (root / "test_vis/cam1").rename(root / "test_vis/Cam1")
    assert len(read_llcm(root)) == 32


def test_a_test_identity_of_one_modality_is_kept_and_said(root: Path) -> None:
    for camera in (1, 2):
        shutil.rmtree(root / f"test_nir/cam{camera}/0030")
    table = read_llcm(root)
    assert 30 in table.pid
    assert table.notes[0] == (
        "test: 1 identity seen in one modality only, kept: a query of it has no match in the other modality: 30"
    )


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A tree with the published cameras."""
    return trees.llcm(tmp_path / "published", 1, range(1, 10), (1, 2, 4, 5, 6, 7, 8, 9))


def test_the_published_cameras_are_read_without_a_note(published: Path) -> None:
    assert read_llcm(published).notes == ()


def test_a_list_appended_to_itself_counts_once(published: Path) -> None:
    before = read_llcm(published)
    index = published / "idx/train_vis.txt"
    index.write_text(f"{index.read_text()}\n{index.read_text()}")
    table = read_llcm(published)
    assert table.records() == before.records()
    assert table.notes[0].startswith("idx/train_vis.txt repeats 18 images, counted once: vis/0001/")


def test_what_is_in_no_list_is_told(published: Path) -> None:
    trees.write_image(published / "vis/0001/0001_c01_s0009_f10_vis.jpg")
    trees.write_image(published / "test_nir/cam1/0099/0099_c01_s0001_f10_nir.jpg")
    os.link(published / TEST_IMAGE, (published / TEST_IMAGE).with_name("0002_c04_s0009_f10_vis.jpg"))
    table = read_llcm(published)
    assert table.records() == [record for record in table.records() if "s0009" not in record.path]
    assert table.notes == (
        "1 identity folders are in no list of idx/ and were not read: 0099",
        "1 image is in no list of idx/ and not read: vis/0001/0001_c01_s0009_f10_vis.jpg",
        "1 image is the file of another image, by a link, counted once: "
        f"test_vis/cam4/0002/0002_c04_s0009_f10_vis.jpg (is {TEST_IMAGE})",
    )


UNREAD = "no image was read from test_vis/cam5, where the published dataset has some: unpack it again"


@pytest.mark.parametrize("name", ["camera5", "cam_5", ""])
def test_a_camera_without_images_is_named(published: Path, name: str) -> None:
    if name:
        (published / "test_vis/cam5").rename(published / f"test_vis/{name}")
    else:
        shutil.rmtree(published / "test_vis/cam5")
    table = read_llcm(published)
    test = table.select(split="test")
    assert 5 not in test.select(modality=Modality.VISIBLE).camid
    assert len(test) == 2 * (9 + 8) - 2
    assert table.notes[0].startswith(UNREAD)
    ignored = [f"ignored 1 entry that is no part of the dataset: {name}"] if name else []
    assert list(table.notes[1:]) == ignored


@pytest.mark.parametrize("name", ["Cam5", "cam05"])
def test_a_camera_folder_of_another_spelling_is_read_and_named(published: Path, name: str) -> None:
    (published / "test_vis/cam5").rename(published / f"test_vis/{name}")
    table = read_llcm(published)
    assert len(table.select(split="test")) == 2 * (9 + 8)
    assert table.notes == (f"names differ from the published layout: '{name}' read as 'test_vis/cam5'",)


def test_of_two_folders_for_a_camera_the_exact_name_is_read(published: Path) -> None:
    shutil.copytree(published / "test_vis/cam4", published / "test_vis/Cam4")
    table = read_llcm(published)
    assert TEST_IMAGE in table.path
    assert table.notes == ("ignored 1 entry that is no part of the dataset: Cam4",)
    for second in ("CAM4", "cam04"):
        (published / "test_vis/cam4").rename(published / f"test_vis/{second}")
        with pytest.raises(DataError, match=rf"holds .*{second}.*: which one is 'cam4'\? Keep one of them"):
            read_llcm(published)
        (published / f"test_vis/{second}").rename(published / "test_vis/cam4")


def test_test_folders_that_are_swapped_are_told(published: Path) -> None:
    (published / "test_vis").rename(published / "kept")
    (published / "test_nir").rename(published / "test_vis")
    (published / "kept").rename(published / "test_nir")
    swapped = "the published dataset has no image in test_nir/cam3: are visible and infrared folders swapped?"
    assert swapped in read_llcm(published).notes


def _no_camera(root: Path) -> None:
    index = root / "idx/train_vis.txt"
    trees.write_image(root / "vis/0001/plain.jpg")
    index.write_text(index.read_text() + "\nvis/0001/plain.jpg 0")


def _append_infrared(root: Path) -> None:
    lines = (root / "idx/train_nir.txt").read_text().splitlines()[:3]
    index = root / "idx/train_vis.txt"
    index.write_text("\n".join([index.read_text(), *lines]))


def _swap_lists(root: Path) -> None:
    visible, infrared = root / "idx/train_vis.txt", root / "idx/train_nir.txt"
    text = visible.read_text()
    visible.write_text(infrared.read_text())
    infrared.write_text(text)


def _no_camera_folders(root: Path) -> None:
    shutil.rmtree(root / "test_vis")
    (root / "test_vis").mkdir()


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folders": (
        lambda r: [shutil.rmtree(r / name) for name in ("vis", "test_nir")],
        ["lacks the folder vis, the folder test_nir", "Expected:"],
    ),
    "no list": (lambda r: (r / "idx/test_id.txt").unlink(), ["lacks idx/test_id.txt", "Expected:"]),
    "absent ids": (lambda r: (r / "idx/test_id.txt").write_text("2,30,77,78"), ["2 identities", "77, 78"]),
    "absent image": (
        lambda r: shutil.rmtree(r / "nir/0004"),
        ["train_nir.txt lists 4 images that are not there", "nir/0004/0004_c01_s0000_f10_nir.jpg (line 5)"],
    ),
    "overlap": (lambda r: shutil.copytree(r / "vis/0001", r / "test_vis/cam1/0001"), []),
    "no camera in a name": (
        _no_camera,
        ["1 training images hold no camera like '_c03_'", "vis/0001/plain.jpg"],
    ),
    "infrared images in the visible list": (
        _append_infrared,
        ["train_vis.txt: 3 lines with an image outside vis/, the first is line 9: nir/0001/"],
    ),
    "lists swapped": (_swap_lists, ["train_vis.txt: 8 lines with an image outside vis/", "line 1: nir/"]),
    "no camera folder": (_no_camera_folders, ["test_vis holds no camera folder", "Expected:"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trees_give_one_clear_message(root: Path, name: str) -> None:
    damage, words = BROKEN[name]
    damage(root)
    if name == "overlap":
        (root / "idx/test_id.txt").write_text("1,2,30")
        words = ["1 identities are in both train and test: 1"]
    with pytest.raises(DataError) as caught:
        read_llcm(root)
    for word in words:
        assert word in str(caught.value)
