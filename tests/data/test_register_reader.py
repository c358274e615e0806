"""A layout of one's own is read, recognised, trained on, indexed and checked like the shipped ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import fmcnet
from fmcnet.data import readers
from fmcnet.data.check import check
from fmcnet.data.readers import detect_layout, layouts, read_dataset, register_reader
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.types import Modality
from tests.cli import run_command


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """What a test registers ends with the test."""
    monkeypatch.setattr(readers, "_READERS", {})


@pytest.fixture
def tree(tmp_path):
    """Two people by day and by night, two images each."""
    for half in ("day", "night"):
        for pid in range(8):
            for number in range(4):
                path = tmp_path / "mine" / half / str(pid) / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((32, 16, 3), 20 * pid + number, np.uint8)).save(path)
    return tmp_path / "mine"


def read_mine(root):
    records = []
    for folder, modality in (("day", Modality.VISIBLE), ("night", Modality.INFRARED)):
        for path in sorted((root / folder).rglob("*.jpg")):
            pid = int(path.parent.name)
            split = "test" if pid >= 6 else "train"
            records.append(Record(path.relative_to(root).as_posix(), pid, modality, split=split))
    return Table.from_records("mine", root, records)


def test_it_is_read_by_name_and_by_markers(tree):
    register_reader("mine", read_mine)
    assert fmcnet.read_dataset(tree, layout="mine").pid.tolist()[::4] == [*range(8)] * 2
    with pytest.raises(DataError, match="none of the known layouts"):
        read_dataset(tree)
    fmcnet.register_reader("mine", read_mine, markers=["day", "Night"])
    assert detect_layout(tree) == "mine"
    assert read_dataset(str(tree)).name == "mine"
    assert layouts() == ("sysu", "regdb", "llcm", "csv", "mine")


def test_a_reader_that_takes_training_is_told(tree):
    seen = []

    def read(root, training):
        seen.append(training)
        return read_mine(root)

    register_reader("mine", read)
    read_dataset(tree, layout="mine")
    read_dataset(tree, layout="mine", training=False)
    assert seen == [True, False]


def test_markers_do_not_take_over_a_benchmark(tiny_sysu):
    register_reader("mine", read_mine, markers=["cam1", "cam2"])
    assert detect_layout(tiny_sysu) == "sysu"
    assert readers.benchmark_layout(tiny_sysu) == "sysu"


def test_a_folder_with_exp_of_an_own_layout_is_no_benchmark(tree):
    (tree / "exp").mkdir()
    register_reader("mine", read_mine, markers=["day", "night"])
    assert readers.benchmark_layout(tree) is None
    assert detect_layout(tree) == "mine"


def test_it_trains_is_evaluated_checked_and_indexed(tree, tiny_run, tmp_path):
    register_reader("mine", read_mine, markers=["day", "night"])
    config = fmcnet.load_config("tiny", ["training.epochs=1", "training.steps_per_epoch=1"])
    summary = fmcnet.train(config, tree, tmp_path / "run", progress=False)
    assert (summary.dataset, summary.identities) == ("mine", 4)  # two of six are held out for validation
    printed = run_command("evaluate", tmp_path / "run", "--data", tree, "--no-report").output
    assert "Rank-1" in printed
    assert check(tree, "mine").ok
    assert check(tree).lines()[0] == f"mine at {tree}: ok"
    indexed = run_command(
        "index", tmp_path / "g", tree, "--model", tiny_run, "--split", "test", "--json"
    ).output
    assert '"added": 16' in indexed
    assert "mine at" in run_command("data", "summary", tree, "--layout", "mine").output


def nothing(root):
    return Table.from_records("mine", root, [])


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda root: [1], "gives a list, not a fmcnet.Table"),
        (nothing, "finds no image"),
        (lambda root: {}["x"], r"the reader of layout 'mine' failed at .* \(KeyError: 'x'\)"),
    ],
)
def test_a_reader_that_fails_is_one_line(read, said, tree):
    register_reader("mine", read)
    with pytest.raises(DataError, match=said) as caught:
        read_dataset(tree, layout="mine")
    assert "\n" not in str(caught.value)
    assert said.startswith("the reader") is (caught.value.__cause__ is not None)
    assert check(tree, "mine").problems


@pytest.mark.parametrize("name", ["sysu", "csv", "auto", "images", "", " mine"])
def test_names_that_are_taken_are_refused(name):
    with pytest.raises(DataError, match="is not free"):
        register_reader(name, read_mine)


def test_an_unknown_layout_is_one_line_that_says_what_to_do(tree):
    for call in (read_dataset, check):
        with pytest.raises(
            DataError,
            match=r"unknown layout 'mine': choose auto, sysu.* fmcnet.register_reader .* fmcnet.readers",
        ):
            call(tree, layout="mine")
    register_reader("mine", read_mine)
    with pytest.raises(DataError, match="does not exist"):
        read_dataset(tree / "none", layout="mine")
