import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError, FmcnetError
from fmcnet.types import NO_CAMERA, Modality

V, I = Modality.VISIBLE, Modality.INFRARED  # noqa: E741

RECORDS = [
    Record("cam2/7/b.jpg", 7, V, 2, "test"),
    Record("cam2/7/a.jpg", 7, V, 2, "test"),
    Record("cam3/7/a.jpg", 7, I, 3, "test", "query", "noon"),
    Record("cam1/4/a.jpg", 4, V, 1, "train"),
]


def table() -> Table:
    return Table.from_records("sysu", Path("/data"), RECORDS)


def test_records_and_columns_are_the_same_thing() -> None:
    assert table().records() == RECORDS
    assert Record("x", 1, V).camid == NO_CAMERA


def test_words_of_a_csv_are_read_in_records() -> None:
    record = Record("a.jpg", np.int64(3), "thermal", 2.0, "Testing", "probe")  # type: ignore[arg-type]
    read = Table.from_records("x", Path(), [record]).records()
    assert read == [Record("a.jpg", 3, I, 2, "test", "query")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "Tst"}, "split 'Tst' is none of train, val, test"),
        ({"split": None}, "split 'None' is none of"),
        ({"role": "galery"}, r"role 'galery' is neither query nor gallery \(leave it empty for both\)"),
        ({"modality": "blue"}, "unknown modality 'blue': say visible or infrared"),
        ({"pid": "7"}, "pid is '7': give a whole number from 0 on, -1 where unknown"),
        ({"pid": 7.5}, "pid is 7.5: give"),
        ({"pid": None}, "pid is None: give"),
        ({"pid": -5}, "pid is -5: give"),
        ({"pid": float("nan")}, "pid is nan: give"),
        ({"camid": "cam3"}, "camid is 'cam3': give a whole number from 0 on, -1 where unknown"),
        ({"camid": -2}, "camid is -2: give"),
        ({"camid": 2**63}, "the number of the camera does not fit 64 bits: 9.223e"),
    ],
    ids=str,
)
def test_a_value_that_no_table_holds_is_refused_with_its_record(change, message) -> None:
    records = [*RECORDS[:2], RECORDS[2]._replace(**change)]
    with pytest.raises(DataError, match=rf"^record 2 \('cam3/7/a.jpg'\): {message}"):
        Table.from_records("x", Path(), records)


def test_a_number_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"record 0 .* pid is 2, but pid_names holds 2 names"):
        Table.from_records("x", Path(), [Record("a", 2, V)], pid_names=["anna", "bob"])


@pytest.mark.parametrize("path", ["cam2/7/b.jpg", "./cam2//7/b.jpg", "/data/cam2/7/b.jpg"])
def test_an_image_in_two_records_is_refused(path: str) -> None:
    with pytest.raises(
        DataError, match=r"^record 4 \('.*'\): record 0 is the same image: give an image once"
    ):
        Table.from_records("x", Path("/data"), [*RECORDS, RECORDS[0]._replace(path=path)])


def test_what_is_no_path_is_refused_by_its_record() -> None:
    with pytest.raises(DataError, match=r"^record 1: path is None, no path"):
        Table.from_records("x", Path(), [RECORDS[0], RECORDS[1]._replace(path=None)])


def test_images_without_a_split_are_counted() -> None:
    records = [*RECORDS[:3], RECORDS[3]._replace(split="")]
    read = Table.from_records("x", Path(), records, notes=["first"])
    assert read.notes == ("first", "images without a split, neither trained on nor evaluated: 1")


def test_selection_keeps_order_and_types() -> None:
    test = table().select(split="test", modality=V)
    assert test.path.tolist() == ["cam2/7/b.jpg", "cam2/7/a.jpg"]
    assert test.pid.dtype == np.int64
    assert len(table().select(split=("train", "val"))) == 1


def test_selection_takes_words_and_refuses_what_no_table_has() -> None:
    assert table().select(modality="ir").path.tolist() == ["cam3/7/a.jpg"]
    with pytest.raises(DataError, match="unknown split 'tset': use train, val, test, or None for all"):
        table().select(split=("train", "tset"))
    with pytest.raises(FmcnetError, match="unknown modality 'blue': say visible or infrared"):
        table().select(modality="blue")


def test_a_split_without_images_is_told_with_those_that_have_some():
    assert len(table().of_split("test")) > 1
    rest = table().select(split=("train", "val"))
    with pytest.raises(DataError, match=r"^/.* has no images of split 'test', only of train$"):
        dataclasses.replace(rest, root=Path()).of_split("test")


def test_it_prints_on_one_line_what_it_holds() -> None:
    assert repr(table()) == (
        f"<Table sysu at {Path('/data')}: 4 images (3 visible, 1 infrared) of 2 identities and 3 cameras: 1 train, "
        "3 test>"
    )
    empty = Table.from_records("x", Path("a"), [])
    assert repr(empty) == "<Table x at a: 0 images (0 visible, 0 infrared) of 0 identities and 0 cameras>"


def test_positions_count_sorted_paths_within_identity_and_camera() -> None:
    assert table().positions().tolist() == [2, 1, 1, 1]


def test_labels_follow_the_sorted_identities() -> None:
    labels, pids = table().labels()
    assert labels.tolist() == [1, 1, 1, 0]
    assert pids.tolist() == [4, 7]


def test_paths_and_names() -> None:
    assert table().full_paths()[0] == Path("/data/cam2/7/b.jpg") == table().full_path(0)
    assert table().pid_name(7) == "7"
    named = Table.from_records("csv", Path(), [Record("a", 1, V)], pid_names=["anna", "bob"])
    assert named.pid_name(1) == "bob"


def test_columns_of_different_length_are_refused() -> None:
    good = table()
    with pytest.raises(DataError, match="differ in length"):
        dataclasses.replace(good, path=good.path[:1])


def test_an_empty_table_works() -> None:
    empty = Table.from_records("x", Path(), [])
    assert len(empty) == 0
    assert len(empty.select(split="train")) == 0
    assert empty.positions().shape == (0,)
