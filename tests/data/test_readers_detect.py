from pathlib import Path

import pytest

from fmcnet.data.readers import detect_layout, read_dataset
from fmcnet.errors import DataError
from tests.data import trees


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm"])
def test_layouts_are_told_apart(tmp_path: Path, layout: str) -> None:
    root = getattr(trees, layout)(tmp_path / "data")
    assert detect_layout(root) == layout
    assert read_dataset(root).name == layout
    assert len(read_dataset(str(root), layout=layout)) == len(read_dataset(root))


def test_a_csv_and_a_folder_with_one(tmp_path: Path) -> None:
    file = trees.csv_folder(tmp_path / "data")
    assert read_dataset(file).name == "csv"
    assert read_dataset(tmp_path / "data").name == "csv"
    (tmp_path / "data/other.csv").write_text("x")
    with pytest.raises(DataError, match=r"exactly one CSV file, found data.csv, other.csv"):
        read_dataset(tmp_path / "data", layout="csv")


def test_the_trial_reaches_regdb(tmp_path: Path) -> None:
    root = trees.regdb(tmp_path / "data")
    assert set(read_dataset(root, regdb_split=2).select(split="train").pid) == {2, 12}


def test_nothing_fits(tmp_path: Path) -> None:
    trees.sysu(tmp_path / "in" / "SYSU-MM01", images=1)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / "in")
    for word in (
        "sysu: exp, cam1",
        "regdb: Visible",
        "llcm: vis",
        "*.csv",
        "It holds: SYSU-MM01",
        "Did you mean",
    ):
        assert word in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        read_dataset(tmp_path / "no")
    with pytest.raises(DataError, match="unknown layout 'market': choose auto, sysu, regdb, llcm, csv"):
        read_dataset(tmp_path, layout="market")


def test_a_partial_tree_goes_to_its_reader(tmp_path: Path) -> None:
    for camera in (1, 2, 3):
        (tmp_path / f"cam{camera}").mkdir()
    with pytest.raises(
        DataError, match=r"lacks the camera folder cam4, the camera folder cam5.*exp/train_id.txt"
    ):
        read_dataset(tmp_path)
