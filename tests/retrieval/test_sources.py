"""What names and tables tell of images."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcnet.data.readers import read_dataset
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference.image_input import list_images
from fmcnet.retrieval import sources as sources_module
from fmcnet.retrieval.sources import NamePattern, Rules, _file_key, read_sources
from fmcnet.times import TimePattern, parse_time, parse_timezone
from fmcnet.types import Modality
from tests.retrieval.fakes import image

UTC = timezone.utc


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["x_", "cam3-", ""]))
def test_a_time_written_in_a_name_is_found(seen, before):
    seen = seen.replace(microsecond=0, tzinfo=UTC)
    name = f"gate/{before}{seen:%Y%m%d_%H%M%S}_07.jpg"
    assert TimePattern("%Y%m%d_%H%M%S").find(name) == seen


def test_times_have_the_zone_of_the_name_or_the_one_given():
    berlin = parse_timezone("Europe/Berlin")
    assert TimePattern("%Y-%m-%dT%H%M", berlin).find("2026-07-01T1200.png").utcoffset() == timedelta(hours=2)
    assert TimePattern("%Y%m%d%H%M%z").find("a202607011200+0530b.png") == datetime(
        2026, 7, 1, 6, 30, tzinfo=UTC
    )
    with pytest.raises(DataError, match="holds no time"):
        TimePattern("%Y%m%d").find("20261350.jpg")
    for wrong in ("%K", "no directive", "%Y%Y", "50%"):
        with pytest.raises(FmcnetError, match="--time-from-name"):
            TimePattern(wrong)


def test_times_as_people_give_them():
    assert parse_time("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_time("2026-03-01T10:00:00Z") == datetime(2026, 3, 1, 10, tzinfo=UTC)
    with pytest.raises(FmcnetError, match="no time"):
        parse_time("yesterday")
    with pytest.raises(FmcnetError, match="unknown"):
        parse_timezone("Europe/Nowhere")


def test_patterns():
    assert NamePattern("cam([0-9]+)", "--camera-from-name").find("a/cam12/x.jpg") == "12"
    assert NamePattern("[a-z]+", "--track-from-name").find("ab12") == "ab"
    assert NamePattern("_([0-9]+)", "--pid-from-name").identity("x_0007.jpg") == "7"
    with pytest.raises(DataError, match="does not match"):
        NamePattern("cam([0-9]+)", "--camera-from-name").find("x.jpg")
    assert NamePattern("_(.+)[.]", "--pid-from-name").identity("x_Ann.jpg") == "Ann"
    assert NamePattern("_(.+)[.]", "--pid-from-name").identity("x_unknown.jpg") is None
    with pytest.raises(DataError, match="too large"):
        NamePattern("_(.+)[.]", "--pid-from-name").identity(f"x_{2**64}.jpg")
    for wrong in ("(", "(a)(b)"):
        with pytest.raises(FmcnetError, match="--pid-from-name"):
            NamePattern(wrong, "--pid-from-name")


def test_a_name_is_the_path_below_the_source(tmp_path):
    """Where only the folders above would fit the pattern, the message says so."""
    (tmp_path / "cam1" / "0003").mkdir(parents=True)
    image(1, 2, 3).save(tmp_path / "cam1" / "0003" / "a.png")
    rules = Rules(Modality.VISIBLE, cameras=NamePattern("cam([0-9]+)", "--camera-from-name"))
    (found,) = read_sources([tmp_path], rules).images
    assert found.camera == "1"
    (fault,) = read_sources([tmp_path / "cam1"], rules).faults
    said = "its name '0003/a.png' does not match --camera-from-name 'cam([0-9]+)'"
    assert (
        fault.reason
        == f"{said}; the whole path fits, but the name is the path below SOURCE: give a folder above it"
    )
    never = Rules(Modality.VISIBLE, cameras=NamePattern("lens([0-9]+)", "--camera-from-name"))
    (fault,) = read_sources([tmp_path / "cam1"], never).faults
    assert fault.reason == said.replace("cam(", "lens(")
    times = Rules(Modality.VISIBLE, times=TimePattern("%Y%m%d_%H%M%S"))
    (tmp_path / "20260301_221500" / "x").mkdir(parents=True)
    image(1, 2, 3).save(tmp_path / "20260301_221500" / "x" / "a.png")
    (fault,) = read_sources([tmp_path / "20260301_221500"], times).faults
    assert "give a folder above it" in fault.reason


def test_folders_and_files_once_each_with_what_their_names_tell(tmp_path):
    for name in ("cam1/p3_t9_20260301.png", "cam2/p4_t8_20260302.png", "other.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(1, 2, 3).save(tmp_path / name)
    rules = Rules(
        Modality.INFRARED,
        cameras=NamePattern("cam([0-9])", "--camera-from-name"),
        times=TimePattern("%Y%m%d"),
        tracks=NamePattern("_(t[0-9])", "--track-from-name"),
        pids=NamePattern("p([0-9])", "--pid-from-name"),
    )
    found = read_sources([tmp_path, tmp_path / "other.png"], rules)
    first, second = found.images
    assert first.path == tmp_path / "cam1/p3_t9_20260301.png"
    assert (first.camera, first.pid, first.track) == ("1", "3", "t9")
    assert first.time == datetime(2026, 3, 1, tzinfo=UTC)
    assert first.modality is Modality.INFRARED
    assert first.id != second.id
    assert first.id == read_sources([first.path], Rules(Modality.VISIBLE)).images[0].id
    assert [fault.name for fault in found.faults] == [str(tmp_path / "other.png")] * 2


def test_a_table_tells_modality_camera_person_and_time(tmp_path):
    for name in ("a", "b"):
        image(1, 2, 3).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "path,pid,modality,camid,time\na.png,anna,visible,3,2026-03-01T10:00:00\nb.png,anna,ir,,\n"
    )
    day, night = read_sources([tmp_path / "t.csv"], Rules(zone=parse_timezone("Europe/Berlin"))).images
    assert (day.modality, day.camera, day.pid, day.tags) == (Modality.VISIBLE, "3", "anna", ())
    assert day.time == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert (night.modality, night.camera, night.time) == (Modality.INFRARED, None, None)
    assert read_sources([tmp_path], Rules(Modality.INFRARED)).images == (night,)
    both = read_sources([tmp_path], Rules(Modality.INFRARED, layout="images")).images
    assert {one.modality for one in both} == {Modality.INFRARED}
    assert len(both) == 2


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Rules(), "--modality visible"),
        (Rules(Modality.VISIBLE, camera="a", cameras=NamePattern("a", "b")), "not both"),
        (Rules(layout="llama"), "unknown layout"),
    ],
)
def test_mistakes_are_said(tmp_path, rules, said):
    image(1, 2, 3).save(tmp_path / "a.png")
    with pytest.raises(FmcnetError, match=said):
        read_sources([tmp_path], rules)


def test_a_folder_that_only_looks_like_a_dataset_is_asked_about(tmp_path):
    for name in ("cam1", "cam2"):
        (tmp_path / name).mkdir()
        image(1, 2, 3).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="--layout images"):
        read_sources([tmp_path], Rules(Modality.VISIBLE))
    assert len(read_sources([tmp_path], Rules(Modality.VISIBLE, layout="images")).images) == 2


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no such"):
        read_sources([tmp_path / "gone"], Rules(Modality.VISIBLE))
    with pytest.raises(
        DataError, match=r"no such image or folder: .*gone\.CSV"
    ):  # before it is asked what it is
        read_sources([tmp_path / "gone.CSV"], Rules())
    for read in (list_images, lambda sources: read_sources(sources, Rules(Modality.VISIBLE))):
        with pytest.raises(DataError, match="an empty text is no image or folder"):
            read([tmp_path, ""])


FIVE = (
    ("a", "anna", "visible"),
    ("b", "anna", "infrared"),
    ("c", "bob", "visible"),
    ("d", "carl", "visible"),
)


def write_table(folder, rows, header="path,pid,modality"):
    for name in "abcd":
        image(1, 2, 3).save(folder / f"{name}.png")
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "t.csv"


def test_everybody_of_a_table_is_there_also_who_cannot_be_learnt_from(tmp_path):
    table = write_table(tmp_path, [f"{name}.png,{who},{kind}" for name, who, kind in FIVE])
    found = read_sources([table], Rules())
    assert [(one.pid, one.tags) for one in found.images] == [
        (who, ()) for who in ("anna", "anna", "bob", "carl")
    ]
    day = read_sources([write_table(tmp_path, ["a.png,anna,visible", "c.png,bob,visible"])], Rules())
    assert len(day.images) == 2
    split = ["a.png,anna,visible,train", "b.png,anna,infrared,test", "c.png,,visible,"]
    shared = read_sources([write_table(tmp_path, split, "path,pid,modality,split")], Rules())
    assert [one.pid for one in shared.images] == ["anna", "anna", None]  # in two splits; and nobody known
    assert shared.images[2].tags == ()


def test_a_table_to_index_needs_no_identities_and_takes_the_modality_said(tmp_path):
    table = write_table(tmp_path, ["a.png", "b.png"], "path")
    with pytest.raises(DataError, match=r"no column modality.*--modality"):
        read_sources([table], Rules())
    found = read_sources([table], Rules(Modality.INFRARED)).images
    assert [(one.modality, one.pid) for one in found] == [(Modality.INFRARED, None)] * 2
    mixed = write_table(tmp_path, ["a.png,", "b.png,visible", "c.png,ir"], "path,modality")
    chosen = read_sources([mixed], Rules(Modality.INFRARED))
    assert [one.path.name for one in chosen.images] == ["a.png", "c.png"]
    assert chosen.not_chosen == {"--modality infrared": 1}


def test_near_names_are_sought_for_the_listed_faults_only(tmp_path, monkeypatch):
    sought = []
    monkeypatch.setattr(sources_module, "near_file", lambda *path: sought.append(path) or "; near")
    table = write_table(tmp_path, ["a.png,1,ir", *(f"gone{number}.png,1,ir" for number in range(50))])
    faults = read_sources([table], Rules()).faults
    assert len(faults) == 50
    assert len(sought) == sum("; near" in fault.reason for fault in faults) == 20


def test_rows_that_an_option_leaves_out_are_counted(tmp_path):
    rows = ["a.png,1,visible,train", "b.png,1,infrared,test", "c.png,2,visible,test"]
    table = write_table(tmp_path, rows, "path,pid,modality,split")
    found = read_sources([table], Rules(Modality.VISIBLE, split="test"))
    assert (len(found.images), found.not_chosen) == (1, {"--split test": 1, "--modality visible": 1})
    assert read_sources([table], Rules()).not_chosen == {}


def test_a_dataset_keeps_everybody_when_it_is_indexed(tiny_sysu, tmp_path):
    root = tmp_path / "sysu"
    shutil.copytree(tiny_sysu, root)
    someone = read_dataset(root).select(split="train").path[0].split("/")[1]
    for camera in (3, 6):
        for file in (root / f"cam{camera}" / someone).glob("*"):
            file.unlink()
    assert int(someone) not in read_dataset(root).pid
    assert str(int(someone)) in {one.pid for one in read_sources([root], Rules()).images}


def test_columns_of_a_gallery(tmp_path):
    header = "path,pid,modality,camera,track,timestamp,tags,source,wether"
    row = 'a.png,anna,visible,gate,t1,2026-03-01,"vip; staff",https://nvr/7,sunny'
    found = read_sources([write_table(tmp_path, [row], header)], Rules())
    (one,) = found.images
    assert (one.camera, one.track, one.source) == ("gate", "t1", "https://nvr/7")
    assert one.tags == ("vip", "staff")
    assert one.time == datetime(2026, 3, 1, tzinfo=UTC)
    assert [note.split(";")[0] for note in found.notes] == [
        "the column 'timestamp' is read as 'time'",
        "the column 'wether' is not read",
    ]
    dated = write_table(tmp_path, ["a.png,visible,2026-03-01,9:15"], "path,modality,date,time")
    assert read_sources([dated], Rules()).images[0].time == datetime(2026, 3, 1, 9, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        (['"red, bag"', "hat"], "'red, bag'"),
        (["red|bag", ""], "'red|bag'"),
        (["\"['red', 'bag']\"", "hat"], "\"['red', 'bag']\""),
        (['"red, bag"', "hat; bag"], None),  # the file knows the separator
        (["red", "hat"], None),
    ],
)
def test_tags_with_other_separators_are_told(tmp_path, cells, shown):
    rows = [f"{name}.png,visible,{cell}" for name, cell in zip("ab", cells, strict=True)]
    notes = read_sources([write_table(tmp_path, rows, "path,modality,tags")], Rules()).notes
    told = [note for note in notes if "tags" in note]
    assert told == ([f"tags are separated by semicolons, so {shown} is one tag"] if shown else [])


def test_one_file_by_several_names_is_indexed_once_and_told(tmp_path):
    image(1, 2, 3).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    found = read_sources([tmp_path / "a.png", tmp_path], Rules(Modality.VISIBLE))
    assert [one.path.name for one in found.images] == ["a.png"]
    assert [fault.name for fault in found.same] == [str(tmp_path / "hard.png"), str(tmp_path / "link.png")]
    assert f"same file as {tmp_path / 'a.png'}" in found.same[0].reason


def test_modality_never_relabels_what_a_dataset_says(tiny_sysu, tmp_path):
    with pytest.raises(FmcnetError, match="a call of its own, or say --layout images"):
        read_sources([tiny_sysu, tmp_path], Rules(Modality.VISIBLE))
    with pytest.raises(FmcnetError, match="a call of its own, or say --layout images"):
        read_sources([tmp_path, write_table(tmp_path, ["a.png,1,visible"])], Rules(Modality.VISIBLE))
    with pytest.raises(FmcnetError, match="holds datasets"):
        read_sources([tiny_sysu.parent], Rules(Modality.VISIBLE))
    with pytest.raises(FmcnetError, match="cam3 is infrared in the sysu dataset"):
        read_sources([tiny_sysu / "cam1", tiny_sysu / "cam3"], Rules(Modality.VISIBLE))
    night = read_sources([tiny_sysu / "cam3"], Rules(Modality.INFRARED)).images
    assert {one.modality for one in night} == {Modality.INFRARED}
    assert len(read_sources([tiny_sysu / "cam3"], Rules(Modality.VISIBLE, layout="images")).images) == len(
        night
    )


def test_images_that_a_folders_table_does_not_list_are_named(tmp_path):
    table = write_table(tmp_path, ["a.png,1,visible", "b.png,1,infrared"])
    assert read_sources([tmp_path], Rules()).not_listed == (str(tmp_path / "c.png"), str(tmp_path / "d.png"))
    assert read_sources([table], Rules()).not_listed == ()  # of the table alone it was asked


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EIO, "it cannot be read: Input/output"), (errno.ELOOP, "there is no file")],
)
def test_a_file_on_a_disk_that_fails_is_not_one_that_is_gone(tmp_path, monkeypatch, number, said):
    def fails(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "stat", fails)
    with pytest.raises(DataError, match=said):
        _file_key(tmp_path / "a.png")


def test_a_row_of_a_folder_is_left_out_and_named(tmp_path):
    (tmp_path / "tracklet").mkdir()
    table = write_table(tmp_path, ["a.png,1,visible", "tracklet,2,visible"])
    sources = read_sources([table], Rules())
    assert [image.path.name for image in sources.images] == ["a.png"]
    (fault,) = sources.faults
    assert fault.reason == "it is a folder: give each of its images a row"


def test_times_of_long_ago_are_told(tmp_path):
    rows = ["a.png,1,visible,2000-01-01T00:05:12", f"b.png,1,visible,{datetime.now(UTC):%Y-%m-%d}"]
    (note,) = read_sources([write_table(tmp_path, rows, "path,pid,modality,time")], Rules()).notes
    assert note == (
        f"1 of 2 images have a time of over ten years ago, the first {tmp_path / 'a.png'} 2000-01-01 00:05:12 UTC: "
        "gallery expire removes them; check the camera's clock"
    )


def test_tracks_and_cameras_that_are_written_as_unknown_are_none(tmp_path):
    rows = [
        "a.png,1,visible,-1,unknown",
        "b.png,1,visible,nan,None",
        "c.png,1,visible,-1.0,NA",
        "d.png,1,visible,7,x",
    ]
    found = read_sources([write_table(tmp_path, rows, "path,pid,modality,track,camera")], Rules())
    assert [(one.track, one.camera) for one in found.images] == [(None, None)] * 3 + [("7", "x")]


def test_times_to_come_are_told(tmp_path):
    rows = ["a.png,1,visible,2034-03-15", "b.png,1,visible,2020-01-01", "c.png,1,visible,2026030122"]
    found = read_sources([write_table(tmp_path, rows, "path,pid,modality,time")], Rules())
    assert found.notes[0].startswith(
        f"1 of 2 images have a time in the future, the first {tmp_path / 'a.png'} 2034-03-15"
    )
    assert "'2026030122' is 2026-03-01T22:00 or," in found.faults[0].reason
