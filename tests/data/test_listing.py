"""What is an image of a folder, what is named, and what is left out without a word."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from fmcnet.data.listing import ignored_facts, ignored_line, list_folder, near_file
from fmcnet.data.readers.common import number_of, read_ids
from fmcnet.data.readers.csv import MISSING, read_csv
from fmcnet.data.table import Record, Table
from fmcnet.errors import DataError
from fmcnet.inference.image_input import list_images
from fmcnet.retrieval.indexing import check_faults
from fmcnet.retrieval.sources import Rules, read_sources
from fmcnet.types import Modality


@pytest.fixture
def folder(tmp_path):
    """Images of all suffixes, and what lies beside them on people's disks."""
    root = tmp_path / "crops"
    (root / "sub").mkdir(parents=True)
    for name in ("a.JPG", "b.jfif", "c.gif", "d.heic", "e.avif", "f.webp", "sub/g.TIFF", "h.ppm", "nosuffix"):
        Image.new("RGB", (8, 8)).save(root / name, "JPEG")
    for name in (
        "._a.jpg",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".hidden/x.jpg",
        "__MACOSX/a.jpg",
        "@eaDir/b.jpg",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\0\5\26\7")
    (root / "notes.txt").write_text("gate 1")
    (root / "README").write_text("gate 1")
    (root / "a.jpg_large").write_bytes((root / "a.JPG").read_bytes())
    return root


def names(listing, root):
    return [path.relative_to(root).as_posix() for path in listing.images]


def test_every_suffix_in_any_case_and_none_at_all(folder):
    found = list_folder(folder)
    expected = ["a.JPG", "b.jfif", "c.gif", "d.heic", "e.avif", "f.webp", "h.ppm", "nosuffix", "sub/g.TIFF"]
    assert names(found, folder) == expected
    reasons = {os.path.basename(one.path): one.reason for one in found.ignored}  # noqa: PTH119
    assert reasons == {
        "README": "no image (no suffix)",
        "a.jpg_large": "an image with the suffix .jpg_large, which no image has",
        "notes.txt": "no image (.txt)",
    }
    facts = ignored_facts(found.ignored)
    assert facts["count"] == 3
    assert facts["reasons"]["no image (.txt)"] == 1
    assert str(folder / "README") in facts["first"]
    assert ignored_line(found.ignored).startswith("ignored 3: ")
    assert ignored_line(()) == ""


def test_linked_folders_are_entered_once_and_never_upwards(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "far.png")
    (other / "back").symlink_to(folder)
    (folder / "alink").symlink_to(other)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "out").symlink_to(tmp_path)
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "linked.jpg").symlink_to(other / "far.png")
    found = names(list_folder(folder), folder)
    assert [name for name in found if "far" in name or "link" in name] == ["alink/far.png", "linked.jpg"]
    assert found.count("sub/g.TIFF") == 1
    assert len(found) == 11
    reasons = {one.path.removeprefix(f"{folder}/"): one.reason for one in list_folder(folder).ignored}
    assert reasons["gone.jpg"] == "a broken link"
    assert reasons["sub/up"] == reasons["sub/out"] == "a link to a folder above it"
    assert reasons["again"] == "a link to a folder that was read already"


HUGE = ("18446744073709551615", "9223372036854775808", "9" * 5000)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("column", ["pid", "camid"])
def test_numbers_beyond_64_bits_in_a_csv_are_a_line(tmp_path, column, value):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"path": "a.png", "pid": "3", "modality": "visible", "camid": "1", "split": "test", column: value}
    (tmp_path / "t.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    with pytest.raises(
        DataError, match=rf"line 2: {column} '{value[:40]}' is too large: numbers go up to 92233"
    ):
        read_csv(tmp_path / "t.csv")


def test_the_largest_number_is_read_and_larger_ones_are_refused_everywhere(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"path,pid,modality,split\na.png,{2**63 - 1},visible,test\n")
    assert read_csv(tmp_path / "t.csv").pid.tolist() == [2**63 - 1]
    assert number_of("0007") == 7
    for text in (*HUGE, "-1", "1.5", "", "²", "٣", "1e3"):
        assert number_of(text) is None
    with pytest.raises(DataError, match="identity does not fit 64 bits"):
        Table.from_records("x", tmp_path, [Record("a.png", 2**64, Modality.VISIBLE)])
    (tmp_path / "ids.txt").write_text(f"1,{HUGE[0]}")
    with pytest.raises(DataError, match="should hold comma-separated identity numbers, but has 1844"):
        read_ids(tmp_path / "ids.txt")


def test_a_path_with_dots_is_not_proposed_again(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "img").mkdir()
    assert near_file("img/../b.png", tmp_path) == "; did you mean 'b.png'?"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("img/J\u00f6rg.JPG", "img/Jo\u0308rg.JPG', which is written in another Unicode form"),
        ("img/j\u00f6rg.jpg", "img/Jo\u0308rg.JPG"),
        ("IMG/b.PNG", "img/b.png"),
        ("img/b.jpg", "img/b.png"),
        ("img\\B.png", "img/b.png"),
        ("C:\\work\\day\\img\\b.png", "img/b.png"),
        ("day/img/b.png", "img/b.png"),
        ("img\\c.png", None),
        ("C:\\work\\c.png", None),
        ("img/c.png", None),
        ("img", None),
        ("img/" + "x" * 300, None),
        ("img/b\0.png", None),
    ],
)
def test_a_missing_file_of_nearly_that_name_is_told(tmp_path, written, found):
    (tmp_path / "img").mkdir()
    for name in ("Jo\u0308rg.JPG", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "img" / name)
    of_windows = "; a path of Windows, whose \\ was read as /: write it as it is on this machine" * (
        "\\" in written
    )
    expected = f"; did you mean '{found}'?".replace("form'?", "form?") if found else of_windows
    assert near_file(written, tmp_path) == expected
    if expected:
        table = tmp_path / "t.csv"
        table.write_text(f"path,pid,modality\n{written},a,visible\n")
        with pytest.raises(DataError) as caught:
            read_csv(table)
        assert expected in str(caught.value)
        sources = read_sources([table], Rules())
        assert [fault.reason for fault in sources.faults] == [MISSING + expected]
        check_faults(sources, missing_ok=True)  # it is still a file that is gone
    with pytest.raises(
        DataError, match=r"no such image or folder: .*/img/B\.png; did you mean '.*/img/b\.png'\?"
    ):
        list_images([tmp_path / "img" / "B.png"])
