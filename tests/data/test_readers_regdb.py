import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmcnet.data.readers.regdb import read_regdb
from fmcnet.errors import DataError
from fmcnet.types import Modality
from tests.data import trees


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.regdb(tmp_path / "regdb")


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_bytes(change(file.read_text()).encode())


def test_identities_come_from_folders_not_from_labels(root: Path) -> None:
    table = read_regdb(root)
    assert np.unique(table.select(split="train").pid).tolist() == [1, 3]
    assert np.unique(table.select(split="test").pid).tolist() == [2, 12]
    assert np.unique(table.select(modality=Modality.VISIBLE).camid).tolist() == [1]
    assert np.unique(table.select(modality=Modality.INFRARED).camid).tolist() == [2]
    assert len(table) == 16
    assert table.notes == ()


def test_each_trial_has_its_own_split(root: Path) -> None:
    assert np.unique(read_regdb(root, 2).select(split="train").pid).tolist() == [2, 12]
    assert len(read_regdb(root, np.int64(2))) == 16  # type: ignore[arg-type]
    for split, shown in ((11, "11"), ("3", "'3'"), (True, "True"), (2.0, "2.0")):
        with pytest.raises(DataError, match=f"splits 1 to 10, not {shown}$"):
            read_regdb(root, split)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"lacks idx/train_visible_3.txt, idx/train_thermal_3.txt"):
        read_regdb(root, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.replace("/", "\\"),
        lambda s: s.replace("\n", "\r\n"),
        lambda s: "\ufeff" + s,
        lambda s: s.replace(" ", "\t"),
        lambda s: "\n" + s.strip() + "\n\n",
        lambda s: s.replace("Visible/", "./visible/"),
    ],
    ids=["Windows separators", "CRLF", "BOM", "tab", "blank lines", "wrong case"],
)
def test_idx_files_as_editors_leave_them(root: Path, change: Callable[[str], str]) -> None:
    before = read_regdb(root).path.tolist()
    edit(root / "idx/train_visible_1.txt", change)
    assert read_regdb(root).path.tolist() == before


def test_the_order_of_lines_does_not_matter(root: Path) -> None:
    before = read_regdb(root).path.tolist()
    edit(root / "idx/train_visible_1.txt", lambda s: "\n".join(reversed(s.strip().split("\n"))))
    assert read_regdb(root).path.tolist() == before


def test_folders_in_wrong_case_are_read_and_said(root: Path) -> None:
    (root / "Visible").rename(root / "visible")
    table = read_regdb(root)
    assert len(table) == 16
    assert "visible/1/v_0.bmp" in table.path
    assert "'visible' read as 'Visible'" in table.notes[0]


def test_of_two_folders_for_a_modality_the_exact_name_is_read(root: Path) -> None:
    shutil.copytree(root / "Thermal", root / "thermal")
    table = read_regdb(root)
    assert len(table) == 16
    assert table.notes == ("ignored 1 entry that is no part of the dataset: thermal",)


@pytest.mark.parametrize(
    "spell", [str, lambda line: "./" + line.replace("Thermal/", "thermal\\")], ids=["same", "other spelling"]
)
def test_an_image_listed_twice_counts_once(root: Path, spell: Callable[[str], str]) -> None:
    before = read_regdb(root)
    edit(
        root / "idx/test_thermal_1.txt", lambda s: s + "".join(spell(line) for line in s.splitlines(True)[:3])
    )
    table = read_regdb(root)
    assert table.records() == before.records()
    assert table.notes[0] == (
        "idx/test_thermal_1.txt repeats 3 images, counted once: Thermal/2/t_0.bmp (line 5), "
        "Thermal/2/t_1.bmp (line 6), Thermal/12/t_0.bmp (line 7)"
    )


def test_images_in_no_list_are_told(root: Path) -> None:
    """Those of the other half of the split are not: tested above."""
    trees.write_image(root / "Visible/1/new.bmp")
    trees.write_image(root / "Thermal/99/t_0.bmp")
    (root / "Visible/1/Thumbs.db").write_bytes(b"x")
    table = read_regdb(root)
    assert len(table) == 16
    assert table.notes == (
        "2 images are in no list of this split in idx/ and not read: Visible/1/new.bmp, Thermal/99/t_0.bmp",
        "ignored 1 entry that is no part of the dataset: Thumbs.db",
    )


def test_a_listed_image_in_a_folder_more_is_not_called_ignored(root: Path) -> None:
    (root / "Visible/more").mkdir()
    (root / "Visible/1").rename(root / "Visible/more/1")
    for name in ("train_visible_1", "test_visible_1"):
        edit(root / f"idx/{name}.txt", lambda s: s.replace("Visible/1/", "Visible/more/1/"))
    table = read_regdb(root)
    assert len(table) == 16
    assert table.notes == ()


def test_a_listed_link_counts_once(root: Path) -> None:
    (root / "Visible/1/v_1.bmp").unlink()
    (root / "Visible/1/v_1.bmp").symlink_to("v_0.bmp")
    table = read_regdb(root)
    assert len(table) == 15
    assert table.notes[0].endswith("counted once: Visible/1/v_1.bmp (is Visible/1/v_0.bmp)")


def test_an_image_listed_with_two_labels_is_refused(root: Path) -> None:
    edit(root / "idx/test_thermal_1.txt", lambda s: s + "Thermal/2/t_0.bmp 1\n")
    with pytest.raises(DataError, match=r"label 1 is given to folders \[2, 12\]"):
        read_regdb(root)


def _absent(root: Path) -> None:
    for file in (root / "Thermal/12").iterdir():
        file.unlink()


def _many_absent(root: Path) -> None:
    edit(
        root / "idx/test_visible_1.txt", lambda s: s + "".join(f"Visible/2/no_{n}.bmp 0\n" for n in range(14))
    )


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (lambda r: shutil.rmtree(r / "Thermal"), ["lacks the folder Thermal", "Expected:"]),
    "no file": (
        lambda r: (r / "idx/test_thermal_1.txt").unlink(),
        ["lacks idx/test_thermal_1.txt", "Expected:"],
    ),
    "absent images": (_absent, ["lists 2 images that are not there", "Thermal/12/t_0.bmp (line 3)"]),
    "absent images of another suffix": (
        lambda r: edit(r / "idx/test_thermal_1.txt", lambda s: s.replace(".bmp", ".png")),
        ["did you mean 'Thermal/"],
    ),
    "many absent images": (_many_absent, ["lists 14 images that are not there", "no_9.bmp", "and 4 more"]),
    "no label": (
        lambda r: edit(r / "idx/test_visible_1.txt", lambda s: s + "Visible/2/v_0.bmp\n"),
        ["1 lines are not 'relative/path label'", "line 5"],
    ),
    "empty": (lambda r: (r / "idx/train_visible_1.txt").write_text(""), ["lists no image"]),
    "label of another folder": (
        lambda r: edit(
            r / "idx/train_visible_1.txt", lambda s: s.replace("Visible/3/v_0.bmp 1", "Visible/3/v_0.bmp 0")
        ),
        ["labels and identity folders disagree", "label 0 is given to folders [1, 3]"],
    ),
    "modalities labelled apart": (
        lambda r: edit(
            r / "idx/train_thermal_1.txt",
            lambda s: s.translate(str.maketrans({"\n": " x\n"})).replace("0 x", "9").replace("1 x", "8"),
        ),
        ["labels and identity folders disagree"],
    ),
    "overlap": (
        lambda r: [
            shutil.copy(r / f"idx/train_{k}_1.txt", r / f"idx/test_{k}_1.txt") for k in ("visible", "thermal")
        ],
        ["2 identities are in both train and test: 1, 3"],
    ),
    "modalities mixed up": (
        lambda r: shutil.copy(r / "idx/train_thermal_1.txt", r / "idx/train_visible_1.txt"),
        ["4 lines with an image outside Visible/"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trees_give_one_clear_message(root: Path, name: str) -> None:
    damage, words = BROKEN[name]
    damage(root)
    with pytest.raises(DataError) as caught:
        read_regdb(root)
    for word in words:
        assert word in str(caught.value)
