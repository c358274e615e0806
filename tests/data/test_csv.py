from pathlib import Path

import numpy as np
import pytest

from fmcnet.data.check import summary
from fmcnet.data.readers import csv, read_dataset
from fmcnet.data.readers.csv import read_csv, write_csv
from fmcnet.data.table import fingerprint
from fmcnet.errors import DataError
from fmcnet.types import NO_CAMERA, Modality
from tests.data import trees


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return trees.csv_folder(tmp_path)


def test_three_columns_are_enough(file: Path) -> None:
    table = read_csv(file)
    assert len(table) == 16
    assert table.pid_names == ("anna", "bob", "carl", "dora")
    assert set(table.camid) == {NO_CAMERA}
    assert set(table.role) == {""}
    assert set(table.split) == {"train", "test"}
    assert table.root == file.parent
    assert table.full_path(0).is_file()


def test_the_held_out_share_is_the_same_each_time_and_said(file: Path) -> None:
    table = read_csv(file)
    test = set(table.select(split="test").pid)
    assert len(test) == 1
    assert "1 of 4 identities are held out" in table.notes[0]
    lines = file.read_text().strip().split("\n")
    file.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert set(read_csv(file).select(split="test").pid) == test


@pytest.mark.parametrize(
    ("names", "name", "pids", "held"),
    [
        (("0012", "0003", "0100", "0007"), "38520b1efc823237", (2, 0, 3, 1), "0003"),
        (("7.0", "x", "8.0", "-7"), "7f13d1a0e0c612d8", (1, 3, 2, 0), "7.0"),
    ],
)
def test_a_table_of_0_1_0_is_the_same_dataset(file: Path, names, name, pids, held) -> None:
    """Fingerprint, numbers and held-out identities stay: a model knows whom it was trained on."""
    text = file.read_text()
    for old, new in zip(("anna", "bob", "carl", "dora"), names, strict=True):
        text = text.replace(f",{old},", f",{new},")
    file.write_text(text)
    table = read_csv(file)
    assert fingerprint(table, table.split) == name
    assert tuple(table.pid.tolist()[::4]) == pids
    assert {table.pid_name(pid) for pid in table.select(split="test").pid.tolist()} == {held}


def test_identities_are_the_same_in_every_table(file: Path) -> None:
    text = file.read_text().replace(",carl,", ",007,")
    file.write_text(text)
    first = read_csv(file)
    file.write_text(
        text.replace(",anna,", ",zoe,")
        .replace(",007,", ",7,")
        .replace("img/carl_visible_1.png,7", "img/carl_visible_1.png,07")
    )
    second = read_csv(file)
    assert [*dict.fromkeys(first.identities())] == ["anna", "bob", "7", "dora"]
    assert [*dict.fromkeys(second.identities())] == ["zoe", "bob", "7", "dora"]
    assert "the identities '07', '7' are read as one person" in second.notes
    one, other = first.identity_numbers(), second.identity_numbers()
    assert np.array_equal(one == other, np.array(first.identities()) != "anna")
    assert set(one[8:12].tolist()) == {7}
    assert len(set(first.pid.tolist())) == len(set(second.pid.tolist())) == 4


@pytest.mark.parametrize("word", ["-1", "unknown", "None", "nan", "NA"])
def test_nobody_known_is_no_person(file: Path, word: str) -> None:
    file.write_text(file.read_text().replace(",bob,", f",{word},"))
    with pytest.raises(
        DataError, match=f"line 6: pid '{word}' is nobody known: training and evaluation need"
    ):
        read_csv(file)
    table = read_csv(file, training=False)
    assert [one is None for one in table.identities()] == [False] * 4 + [True] * 4 + [False] * 8
    assert table.pid_names == ("anna", "carl", "dora")
    assert "of 3 identities" in table.notes[0]
    assert [one.identities for one in summary(table).groups if one.split == "train"] == [2, 2]
    assert [one.identities for one in summary(table.take(np.arange(4, 8))).groups] == [0, 0]
    with pytest.raises(DataError, match=r"4 of 16 images have no identity, the first is img/bob"):
        table.labels()


def test_all_columns_and_synonyms(file: Path) -> None:
    file.write_text(
        "Path,PID,Modality,CamID,Split,Role,Time\n"
        "img/anna_visible_1.png,3,RGB,2,training,gallery,12:00\n"
        "img/anna_infrared_1.png,3,Thermal,cam4,train,,\n"
        "img/bob_visible_1.png,12,vis,,test,Gallery,\n"
        "img/bob_infrared_1.png,12,NIR,-1,test,probe,\n"
    )
    table = read_csv(file)
    assert table.pid.tolist() == [3, 3, 12, 12]
    assert table.pid_names == ()
    assert table.camid.tolist() == [2, 4, NO_CAMERA, NO_CAMERA]
    assert table.modality.tolist() == [0, 1, 0, 1]
    assert table.split.tolist() == ["train", "train", "test", "test"]
    assert table.role.tolist() == ["gallery", "", "gallery", "query"]
    assert table.time[0] == "12:00"


@pytest.mark.parametrize(("separator", "point"), [(",", "."), (";", ","), ("\t", ".")])
def test_whole_numbers_may_be_written_as_decimals(file: Path, separator: str, point: str) -> None:
    """As pandas and Excel write a column of which one cell is blank."""
    rows = (
        ("path", "pid", "modality", "camid"),
        ("img/anna_visible_1.png", "a", f"0{point}0", f"1{point}0"),
        ("img/anna_infrared_1.png", "a", f"1{point}0", f"-1{point}0"),
        ("img/anna_visible_2.png", "a", "visible", f"cam12{point}00"),
        ("img/anna_infrared_2.png", "a", "infrared", ""),
    )
    file.write_text("\n".join(separator.join(row) for row in rows))
    table = read_csv(file)
    assert table.camid.tolist() == [1, NO_CAMERA, 12, NO_CAMERA]
    assert table.modality.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("cells", "cameras", "numbers", "tracks"),
    [
        (
            ("1.0,17.0", ",", "10.0,18.0", "2.0,17.0"),
            ["1", "", "10", "2"],
            [1, -1, 10, 2],
            ["17", "", "18", "17"],
        ),
        (
            ("1.0,17.0", "-1.0,-1.0", "2.0,18.0", "-1,-1"),
            ["1", "-1", "2", "-1"],
            None,
            ["17", "-1", "18", "-1"],
        ),
        (("1,17", "nan,nan", "1.0,17.0", "2,7"), ["1", "nan", "1", "2"], None, ["17", "nan", "17", "7"]),
        (
            ("1.0,1.5", "gate,2.0", "2.0,3.0", "2,4.0"),
            ["1.0", "gate", "2.0", "2"],
            None,
            ["1.5", "2.0", "3.0", "4.0"],
        ),
    ],
)
def test_whole_cameras_and_tracks_may_be_decimals(file: Path, cells, cameras, numbers, tracks) -> None:
    lines = file.read_text().strip().split("\n")[:5]
    rows = [f"{line},{pair}" for line, pair in zip(lines[1:], cells, strict=True)]
    file.write_text("\n".join([f"{lines[0]},camera_id,track_id", *rows]))
    table = read_csv(file, training=False)
    assert table.camera.tolist() == cameras
    assert table.track.tolist() == tracks
    assert numbers is None or table.camid.tolist() == numbers


def test_unknown_cameras_and_identities_of_spreadsheets(file: Path) -> None:
    rows = zip(("unknown", "gate", "nan", "-1"), ("3,0", "3", "-1,0", "cam3.0"), strict=True)
    _, *images = file.read_text().splitlines()[:5]
    paths = [image.split(",")[0] for image in images]
    lines = [f'{path},"{pid}",visible,{camera}' for path, (camera, pid) in zip(paths, rows, strict=True)]
    file.write_text("\n".join(["path,pid,modality,camera", *lines]))
    table = read_csv(file, training=False)
    assert table.camid.tolist() == [NO_CAMERA, 1, NO_CAMERA, NO_CAMERA]
    assert any("2 identities, as '-1,0', are taken as texts" in note for note in table.notes)
    file.write_text("\n".join(["path,pid,modality,camid", *(line.replace("gate", "N/A") for line in lines)]))
    assert read_csv(file, training=False).camid.tolist() == [NO_CAMERA] * 4


@pytest.mark.parametrize("camid", ["1.5", "1.05", "1.", ".0", "1,000", "1.0.0", "1,5"])
def test_other_decimals_are_no_cameras(file: Path, camid: str) -> None:
    file.write_text(f"path;pid;modality;camid\nimg/anna_visible_1.png;a;visible;{camid}\n")
    with pytest.raises(DataError, match=f"line 2: camid '{camid}' is not a whole number"):
        read_csv(file)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheet_dialects(file: Path, separator: str, ending: str, encoding: str) -> None:
    text = file.read_text().replace(",", separator).replace("\n", ending)
    before = read_csv(file).path.tolist()
    file.write_bytes(text.encode(encoding))
    assert read_csv(file).path.tolist() == before


def test_the_line_by_which_excel_names_the_separator(file: Path) -> None:
    before = read_csv(file)
    file.write_text("sep=;\n" + file.read_text().replace(",", ";"))
    assert read_csv(file).path.tolist() == before.path.tolist()
    file.write_text(file.read_text() + "none.png;anna;visible\n")
    with pytest.raises(DataError, match=f"line {len(before) + 3}: there is no file"):
        read_csv(file)


def test_another_encoding_is_told_with_what_to_do(file: Path) -> None:
    file.write_bytes(file.read_text().replace("anna", "J\u00fcrgen").encode("cp1252"))
    with pytest.raises(DataError, match="line 2 has bytes that are not UTF-8: save it as UTF-8"):
        read_csv(file)


def test_windows_and_absolute_paths(file: Path) -> None:
    file.write_text(
        "path,pid,modality\n"
        "img\\anna_visible_1.png,a,visible\n"
        f"{file.parent / 'img/anna_infrared_1.png'},a,infrared\n"
    )
    table = read_csv(file)
    assert table.path.tolist() == ["img/anna_visible_1.png", "img/anna_infrared_1.png"]


def test_quoted_values_may_hold_the_separator(file: Path) -> None:
    trees.write_image(file.parent / "img/a, b.png")
    file.write_text('path,pid,modality\n"img/a, b.png",x,vis\nimg/anna_infrared_1.png,x,ir\n')
    assert read_csv(file).path[0] == "img/a, b.png"


@pytest.mark.parametrize(
    ("column", "cell", "shown", "held"),
    [
        ("pid", "A\n12", "A\\n12", "line break U+000A"),
        ("pid", "A12\n", "A12\\n", "line break U+000A"),
        ("pid", "A\t12", "A\\t12", "control character U+0009"),
        ("camid", "1\n2", "1\\n2", "line break U+000A"),
        ("camera", "ga\rte", "ga\\nte", "line break U+000A"),  # any line ending is read as one
        ("track", "1\x852", "1\\x852", "line break U+0085"),
        ("tags", "a\u2028b", "a\\u2028b", "line break U+2028"),
        ("source", "a\x01b", "a\\x01b", "control character U+0001"),
        ("time", "2026-\n03-01", "2026-\\n03-01", "line break U+000A"),
        ("path", "img/anna_\nvisible_1.png", "img/anna_\\nvisible_1.png", "line break U+000A"),
        ("camera", "gate\u200b", "gate\\u200b", "invisible character U+200B"),
        ("track", "1\u2066", "1\\u2066", "invisible character U+2066"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_line_break_in_a_cell_is_a_fault_of_its_row(
    file: Path, column, cell, shown, held, training
) -> None:
    columns = ("path", "pid", "modality", "camid", "camera", "track", "tags", "source", "time")
    row = dict.fromkeys(columns, "") | {"path": "img/anna_visible_1.png", "pid": "a", "modality": "vis"}
    wrong = row | {"path": "img/anna_infrared_1.png", column: f'"{cell}"'}
    last = row | {"path": "img/none.png", "modality": "x-ray"}
    file.write_text(
        "\n".join(",".join(one) for one in (columns, row.values(), wrong.values(), last.values()))
    )
    with pytest.raises(DataError) as caught:
        read_csv(file, training=training)
    faults = str(caught.value).splitlines()[1:]
    assert faults[0] == f"  line 3: {column} '{shown}' holds the {held}: remove it"
    assert len([fault for fault in faults if "line 3" in fault]) == 1
    assert f"  line {4 + cell.count(chr(10)) + cell.count(chr(13))}: modality 'x-ray'" in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (
            {"camera": "1E+03"},
            "camera '1E+03' is a number in scientific notation, as spreadsheets round them",
        ),
        ({"track": "1.70E+10"}, "track '1.70E+10' is a number in scientific notation"),
        ({"date": "2026-03-02", "time": "2026-02-28T22:15:00Z"}, "are of different days: leave one out"),
        ({"date": "2026-03-02", "time": "1740000000"}, "are of different days: leave one out"),
        ({"date": "2026-03-02", "time": "2026-03-01T22:15:00Z"}, None),
        ({"date": "2026-03-02", "time": "22:15"}, None),
        ({"camera": "1e3"}, None),
    ],
)
def test_rounded_names_and_days_that_differ_are_faults_of_a_row(file: Path, cells, fault) -> None:
    row = {"path": "img/anna_visible_1.png", "pid": "a", "modality": "vis"} | cells
    file.write_text("\n".join([",".join(row), ",".join(row.values())]))
    if fault is None:
        assert len(read_csv(file, training=False)) == 1
        return
    with pytest.raises(DataError) as caught:
        read_csv(file, training=False)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith("  line 2: ")
    assert fault in line


def test_line_breaks_where_nothing_is_read_from(file: Path) -> None:
    """In a column that is ignored, or around the name of one; blanks around a cell go as ever."""
    header, first, *rows = file.read_text().splitlines()
    rows = [f"{row}," for row in rows]
    text = "\n".join(
        [f'"{header.split(",")[0]}\n",pid ,modality,"re\nmark"', f'{first} ,"two\nlines"', *rows]
    )
    before = read_csv(file)
    file.write_text(text)
    table = read_csv(file)
    assert table.path.tolist() == before.path.tolist()
    assert table.pid_names == before.pid_names
    assert any("the column 're\\nmark' is not read" in note for note in table.notes)


def test_quotes_that_stay_open_are_told_by_the_row_that_opens_them(file: Path) -> None:
    file.write_text(file.read_text().replace("img/bob_visible_1", '"img/bob_visible_1'))
    with pytest.raises(DataError, match=r"line 6: unexpected end of data: a quote .* of this row stays open"):
        read_csv(file)
    # A second stray quote closes the first: the text behind it is the fault, also told by the row that begins it.
    file.write_text(file.read_text().replace("img/dora_visible_1", '"img/dora_visible_1'))
    with pytest.raises(DataError, match=r"line 6: ',' expected after '\"': a quote .* or text follows it"):
        read_csv(file)


def test_all_faults_are_listed_with_their_lines(file: Path) -> None:
    file.write_text(
        "path,pid,modality,camid,split,role\n"
        "img/anna_visible_1.png,anna,visible,1,train,\n"
        "img/none.png,anna,infrared,1,train,\n"
        "img/anna_infrared_1.png,,x-ray,one,dev,judge\n"
        "\n"
        "img/bob_visible_1.png,bob\n"
        "img/anna_visible_1.png,anna,visible,1,train,\n"
    )
    with pytest.raises(DataError) as caught:
        read_csv(file)
    message = str(caught.value)
    assert "has 8 faults" in message
    for words in (
        "line 3: there is no file 'img/none.png'",
        "line 4: pid is empty",
        "line 4: modality 'x-ray' is neither",
        "line 4: camid 'one' is not a whole number",
        "line 4: split 'dev' is none of train, val, test",
        "line 4: role 'judge'",
        "line 6: 2 values for 6 columns",
        "line 7: path 'img/anna_visible_1.png' stands in line 2 already",
    ):
        assert words in message


def test_many_faults_are_counted(file: Path) -> None:
    file.write_text("path,pid,modality\n" + "".join(f"no{n}.png,a,vis\n" for n in range(35)))
    with pytest.raises(DataError, match=r"has 35 faults(.|\n)*no19.png(.|\n)*and 15 more") as caught:
        read_csv(file)
    assert "no20.png" not in str(caught.value)


def test_a_file_of_wrong_rows_is_not_read_to_its_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    find = csv._find_file
    monkeypatch.setattr(csv, "_find_file", lambda path, base: looked.append(path) or find(path, base))
    file.write_text("path,pid,modality\n" + "".join(f"no{n}.png,a,vis\n" for n in range(300_000)))
    with pytest.raises(
        DataError, match=r"has 1,000 faults or more: it was read no further:(.|\n)*and 980 more"
    ):
        read_csv(file)
    assert len(looked) == 1000


def test_empty_columns_at_the_end_as_spreadsheets_write_them(file: Path) -> None:
    before = read_csv(file)
    file.write_text(file.read_text().replace("\n", ",,,\n"))
    assert read_csv(file).path.tolist() == before.path.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,pid\na,b\n", "line 1: no column path, modality in the header"),
        ("path,pid,modality,pid\n", "the column pid stands twice"),
        ("path,pid,modality\n", "no row below its header"),
        ("", "no row below its header"),
    ],
)
def test_headers(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        read_csv(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist or is no file: give a CSV like"):
        read_csv(tmp_path / "no.csv")


def _with_splits(file: Path, split_of: dict[str, str]) -> None:
    lines = file.read_text().strip().split("\n")
    rows = [f"{line},{split_of.get(line.split(',')[1], 'train')}" for line in lines[1:]]
    file.write_text("\n".join([lines[0] + ",split", *rows]))


def test_half_given_splits_are_a_fault(file: Path) -> None:
    _with_splits(file, {"bob": ""})
    with pytest.raises(DataError, match=r"4 rows have no split, the first is img/bob_visible_1\.png"):
        read_csv(file)


def test_an_identity_in_two_splits_is_named(file: Path) -> None:
    _with_splits(file, {"bob": "test"})
    file.write_text(
        file.read_text().replace("bob_visible_1.png,bob,visible,test", "bob_visible_1.png,bob,visible,train")
    )
    with pytest.raises(DataError, match="1 identities are in both train and test: bob"):
        read_csv(file)


@pytest.mark.parametrize("role", ["query", "gallery"])
def test_a_test_set_of_one_role_is_told(file: Path, role: str) -> None:
    header, *rows = file.read_text().splitlines()
    lines = [f"{header},split,role", *(f"{row},test,{role}" for row in rows)]
    file.write_text("\n".join(lines))
    assert any(f"every test image has the role {role}" in note for note in read_csv(file).notes)
    file.write_text("\n".join([*lines[:-1], f"{rows[-1]},test,"]))
    assert not any("has the role" in note for note in read_csv(file).notes)


def test_a_test_only_csv_is_welcome(file: Path) -> None:
    _with_splits(file, dict.fromkeys(("anna", "bob", "carl", "dora"), "test"))
    assert set(read_csv(file).split) == {"test"}


def test_single_modality_identities(file: Path) -> None:
    _with_splits(file, {"dora": "test"})
    text = "\n".join(line for line in file.read_text().split("\n") if ",bob,infrared" not in line)
    file.write_text(text)
    table = read_csv(file)
    assert "bob" not in {table.pid_name(pid) for pid in table.pid}
    assert table.notes == ("train: 1 identity seen in one modality only, dropped from training: bob",)


def _same(first, second) -> None:
    for column in ("pid", "camid", "modality", "split", "role", "time"):
        np.testing.assert_array_equal(getattr(first, column), getattr(second, column))
    assert first.pid_names == second.pid_names
    assert [p.resolve() for p in first.full_paths()] == [p.resolve() for p in second.full_paths()]


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm", "csv_folder"])
@pytest.mark.parametrize("place", ["inside.csv", "elsewhere/out.csv"])
def test_writing_and_reading_give_the_same_table(tmp_path: Path, layout: str, place: str) -> None:
    source = getattr(trees, layout)(tmp_path / "data")
    table = read_dataset(source)
    target = tmp_path / "data" / place if place == "inside.csv" else tmp_path / place
    again = read_csv(write_csv(table, target))
    _same(table, again)
    assert again.select(modality=Modality.INFRARED).path.size
    if place == "inside.csv":
        assert again.path.tolist() == table.path.tolist()


def test_round_trip_of_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.sysu(tmp_path / "data", images=1)
    monkeypatch.chdir(tmp_path)
    table = read_dataset("data")
    again = read_csv(write_csv(table, "out/x.csv"))
    _same(table, again)


def test_an_image_stands_in_one_row_however_its_path_is_spelt(file: Path) -> None:
    (file.parent / "link.png").symlink_to("img/anna_visible_1.png")
    (file.parent / "folder").symlink_to("img")
    (file.parent / "img/hard.png").hardlink_to(file.parent / "img/anna_visible_1.png")
    others = (
        "./img/anna_visible_1.png",
        "img/../img/anna_visible_1.png",
        "link.png",
        "folder/anna_visible_1.png",
    )
    paths = ("img/anna_visible_1.png", *others, "img/hard.png")
    file.write_text("path,pid,modality\n" + "".join(f"{path},anna,vis\n" for path in paths))
    with pytest.raises(DataError, match="has 5 faults") as caught:
        read_csv(file)
    assert "line 3: path 'img/anna_visible_1.png' stands in line 2 already" in str(caught.value)
    assert "line 5: path 'link.png' is the image 'img/anna_visible_1.png' of line 2" in str(caught.value)


def test_columns_that_are_not_known_are_told_with_the_nearest_name(file: Path) -> None:
    lines = file.read_text().strip().split("\n")
    added = ",timestamp,trak,identity,colour of coat"
    file.write_text("\n".join([lines[0] + added, *(f"{line},2026-03-01,t,x,red" for line in lines[1:])]))
    table = read_csv(file)
    assert set(table.time) == {"2026-03-01"}
    for note in (
        "the column 'timestamp' is read as 'time'",
        "the column 'trak' is not read: did you mean 'track'?",
        "the column 'identity' is not read; 'pid' is",
        "the column 'colour of coat' is not read; those that are: path, pid",
    ):
        assert any(note in one for one in table.notes), note


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("gate", "hall"), [1, 2]),
        (("cam4", "2"), [4, 2]),
        (("cam1", "01"), [2, 1]),
        (("gate", ""), [1, NO_CAMERA]),
        (("1", "-1"), [1, NO_CAMERA]),
    ],
)
def test_named_cameras_are_numbered(file: Path, names: tuple[str, str], numbers: list[int]) -> None:
    file.write_text(
        "path,pid,modality,camera,track,tags,source\n"
        f"img/anna_visible_1.png,a,visible,{names[0]},t1,x;y,nvr\nimg/anna_infrared_1.png,a,ir,{names[1]},,,\n"
    )
    table = read_csv(file)
    assert table.camera.tolist() == list(names)
    assert table.camid.tolist() == numbers
    assert any("may be one" in note for note in table.notes) == (names == ("cam1", "01"))
    again = read_csv(write_csv(table, file.parent / "again.csv"))
    assert again.records() == table.records()


@pytest.mark.parametrize(
    ("rows", "numbers", "said"),
    [
        (("1,gate", ",gate", "2,hall", ",hall"), [1, 1, 2, 2], ""),
        (("1,gate", ",yard", "2,hall", ",yard"), [1, 3, 2, 3], ""),
        (("1,gate", ",", "2,hall", "-1,-1"), [1, NO_CAMERA, 2, NO_CAMERA], ""),
        (
            ("1,gate", "1,hall", "2,yard", ",hall"),
            [1, 1, 2, 1],
            "the camid 1 is of the cameras gate, hall",
        ),
        (
            ("1,gate", "2,gate", "3,hall", "3,door"),
            [1, 2, 3, 3],
            "the camid 3 is of the cameras door, hall",
        ),
        (("1,gate", "-1,gate", "unknown,yard", ","), [1, NO_CAMERA, NO_CAMERA, NO_CAMERA], ""),
        (("3,", ",cam3", "5,", ",yard"), [3, 3, 5, 1], ""),
        (("7,cam3", ",cam3", ",cam8", "1,"), [7, 7, 8, 1], ""),
        (("1,gate", ",cam3", ",03", ",c8"), [1, 3, 2, 8], "the cameras '03', 'cam3' may be one"),
        ((f"{2**63 - 1},hall", ",door", ",", f",cam{2**63}"), [2**63 - 1, 2, NO_CAMERA, 1], ""),
        (
            ("1,gate", "2,gate", ",gate", "3,hall"),
            [1, 2, NO_CAMERA, 3],
            "the camera 'gate' has the camids 1, 2",
        ),
    ],
)
def test_a_camid_and_a_camera_name_each_other(file: Path, rows, numbers, said) -> None:
    images = sorted((file.parent / "img").iterdir())[:4]
    lines = [f"img/{image.name},a,visible,{row}" for image, row in zip(images, rows, strict=True)]
    file.write_text("\n".join(["path,pid,modality,camid,camera", *lines]))
    table = read_csv(file, training=False)
    assert table.camid.tolist() == numbers
    again = read_csv(write_csv(table, file.parent / "again.csv"), training=False)
    assert again.records() == table.records()
    notes = [note for note in table.notes if "cam" in note]
    assert [note.split(":")[0] for note in notes] == ([said] if said else [])


def test_a_number_without_a_name_takes_the_name_of_other_rows(tmp_path):
    rows = "path,pid,modality,camid,camera\na.png,a,visible,1,gate\nb.png,b,visible,1,\nc.png,c,infrared,2,\n"
    (tmp_path / "x.csv").write_text(rows)
    assert read_csv(tmp_path / "x.csv", training=False).camera.tolist() == ["gate", "gate", ""]
    (tmp_path / "y.csv").write_text(rows + "d.png,d,visible,1,door\n")
    assert read_csv(tmp_path / "y.csv", training=False).camera.tolist() == ["gate", "", "", "door"]


def test_the_two_sensors_of_a_place_may_share_a_number(tmp_path):
    rows = ("a.png,a,visible,1,hall-rgb", "b.png,a,infrared,1,hall-ir")
    (tmp_path / "x.csv").write_text("\n".join(["path,pid,modality,camid,camera", *rows]))
    assert not any("is of the cameras" in note for note in read_csv(tmp_path / "x.csv", training=False).notes)
