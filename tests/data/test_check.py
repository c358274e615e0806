import json
import shutil
from pathlib import Path

import pytest

from fmcnet.data.check import HOMES, PUBLISHED, check, summary
from fmcnet.data.readers import read_dataset
from fmcnet.errors import DataError
from tests.data import trees


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm", "csv_folder"])
def test_a_sound_tree_is_ok(tmp_path: Path, layout: str) -> None:
    root = getattr(trees, layout)(tmp_path / "data")
    report = check(root)
    assert report.ok
    assert report.lines()[0].endswith(": ok")
    assert len(report.lines()) < 30
    assert max(map(len, report.lines())) < 400
    again = json.loads(json.dumps(report.to_dict()))
    assert again["ok"]
    assert again["layout"] == layout.removesuffix("_folder")


def test_counts_stand_beside_the_published_ones(tmp_path: Path) -> None:
    report = check(trees.sysu(tmp_path / "data"))
    assert {count.name: count.published for count in report.counts} == PUBLISHED["sysu"]
    found = {count.name: count.found for count in report.counts}
    assert found["train identities"] == 3
    assert found["train + val visible images"] == 4 * 4 * 2
    assert found["test infrared images (queries)"] == 8
    assert found["test images of cam3"] == 4
    text = "\n".join(report.lines())
    assert "22,258" in text
    assert "differs" in text
    assert HOMES["sysu"] in text


def test_what_is_lacking_is_named_with_the_expected_tree(tmp_path: Path) -> None:
    root = trees.sysu(tmp_path / "data")
    shutil.rmtree(root / "cam3")
    (root / "exp/test_id.txt").unlink()
    report = check(root)
    assert not report.ok
    text = "\n".join(report.lines())
    assert "NOT usable" in text
    assert "lacks: cam3, exp/test_id.txt, exp/rand_perm_cam.mat (only for the official gallery draw" in text
    assert "Expected:" in text


def test_every_unreadable_image_is_reported(tmp_path: Path) -> None:
    root = trees.regdb(tmp_path / "data")
    for path in sorted(root.rglob("*.bmp")):
        path.write_bytes(b"")
    report = check(root)
    assert len(report.unreadable) == 16
    text = "\n".join(report.lines())
    assert "16 images cannot be read" in text
    assert "and 4 more (all with --json)" in text
    assert check(root, images=False).ok


def test_regdb_splits_are_all_read(tmp_path: Path) -> None:
    root = trees.regdb(tmp_path / "data", trials=(1, 2, 4))
    (root / "idx/test_visible_4.txt").unlink()
    (root / "idx/test_visible_2.txt").write_text("")
    report = check(root)
    assert len(report.problems) == 2
    assert "lists no image" in report.problems[0]
    assert "lacks idx/test_visible_4.txt" in report.problems[1]
    assert "no files of the splits 3, 5, 6, 7, 8, 9, 10" in report.notes[0]
    assert sum("Expected:" in problem for problem in report.problems) == 1


def test_nothing_known(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert report.layout == ""
    assert not report.ok
    assert all(home in "\n".join(report.lines()) for home in HOMES.values())
    assert not check(tmp_path / "no").ok
    assert not check(tmp_path / "no", "regdb").ok
    with pytest.raises(DataError, match="unknown layout"):
        check(tmp_path, "market")


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("1.03.2026 12:00", "time '1.03.2026 12:00' is no time: give it as 2026-03-01"),
        ("3/1/2026 12:00", "time '3/1/2026 12:00' is no time"),
        ("46000.5", "time '46000.5' is no time"),
        ("12:00", "time '12:00' lacks the date"),
        ("1970-01-01 00:05", "before 1971"),
    ],
)
def test_times_that_index_refuses_are_noted(tmp_path: Path, time: str, said: str) -> None:
    file = trees.csv_folder(tmp_path / "data")
    header, good, *rows = file.read_text().splitlines()
    lines = [
        f"{header},time",
        f"{good},2026-03-01T12:00",
        *(f"{row},{time}" for row in rows[:-1]),
        f"{rows[-1]},",
    ]
    file.write_text("\n".join(lines))
    report = check(file)
    assert report.ok
    (note,) = [one for one in report.notes if "fmcnet index" in one]
    assert note.startswith("fmcnet index will refuse the time of 14 rows, the first in line 3: ")
    assert said in note
    file.write_text("\n".join([f"{header},time", *(f"{row},1772400000" for row in (good, *rows))]))
    assert not [one for one in check(file).notes if "fmcnet index" in one]


def test_matlab_lists_count_as_present(tmp_path: Path) -> None:
    root = trees.sysu(tmp_path / "data")
    (root / "exp/val_id.txt").rename(root / "exp/val_id.mat")
    assert any(part.name == "exp/val_id.mat" and part.present for part in check(root).parts)


def test_summary(tmp_path: Path) -> None:
    table = read_dataset(trees.sysu(tmp_path / "data"))
    found = summary(table)
    assert [(g.split, g.modality, g.identities, g.images) for g in found.groups[:2]] == [
        ("train", "visible", 3, 24),
        ("train", "infrared", 3, 12),
    ]
    assert found.groups[1].cameras == (3, 6)
    assert (found.groups[0].least, found.groups[0].median, found.groups[0].most) == (8, 8.0, 8)
    assert json.loads(json.dumps(found.to_dict()))["images"] == len(table)
    assert len(found.lines()) == 2 + 6


def test_summary_without_cameras(tmp_path: Path) -> None:
    found = summary(read_dataset(trees.csv_folder(tmp_path / "data")))
    assert all(group.cameras == () for group in found.groups)
    assert found.lines()[-1].startswith("note: no split column")
