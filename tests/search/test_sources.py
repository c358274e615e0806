"""What names and tables tell of pictures."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcnet.errors import DataError, FmcnetError
from fmcnet.search.names import NamePattern, TimePattern, moment, zone
from fmcnet.search.sources import Rules, read_sources
from fmcnet.types import Modality
from tests.search.fakes import picture

UTC = timezone.utc


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["x_", "cam3-", ""]))
def test_a_time_written_in_a_name_is_found(seen, before):
    seen = seen.replace(microsecond=0, tzinfo=UTC)
    name = f"gate/{before}{seen:%Y%m%d_%H%M%S}_07.jpg"
    assert TimePattern("%Y%m%d_%H%M%S").find(name) == seen


def test_times_have_the_zone_of_the_name_or_the_one_given():
    berlin = zone("Europe/Berlin")
    assert TimePattern("%Y-%m-%dT%H%M", berlin).find("2026-07-01T1200.png").utcoffset() == timedelta(hours=2)
    assert TimePattern("%Y%m%d%H%M%z").find("a202607011200+0530b.png") == datetime(
        2026, 7, 1, 6, 30, tzinfo=UTC
    )
    with pytest.raises(DataError, match="holds no time"):
        TimePattern("%Y%m%d").find("20261350.jpg")
    for wrong in ("%Q", "no directive", "%Y%Y", "50%"):
        with pytest.raises(FmcnetError, match="--time-from-name"):
            TimePattern(wrong)


def test_times_as_people_give_them():
    assert moment("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
    assert moment("2026-03-01T10:00:00Z") == datetime(2026, 3, 1, 10, tzinfo=UTC)
    with pytest.raises(FmcnetError, match="no time"):
        moment("yesterday")
    with pytest.raises(FmcnetError, match="unknown"):
        zone("Europe/Nowhere")


def test_patterns():
    assert NamePattern("cam([0-9]+)", "--camera-from-name").find("a/cam12/x.jpg") == "12"
    assert NamePattern("[a-z]+", "--track-from-name").find("ab12") == "ab"
    assert NamePattern("_([0-9]+)", "--pid-from-name").number("x_0007.jpg") == 7
    with pytest.raises(DataError, match="does not match"):
        NamePattern("cam([0-9]+)", "--camera-from-name").find("x.jpg")
    with pytest.raises(DataError, match="no whole number"):
        NamePattern("_(.+)[.]", "--pid-from-name").number("x_ab.jpg")
    for wrong in ("(", "(a)(b)"):
        with pytest.raises(FmcnetError, match="--pid-from-name"):
            NamePattern(wrong, "--pid-from-name")


def test_folders_and_files_once_each_with_what_their_names_tell(tmp_path):
    for name in ("cam1/p3_t9_20260301.png", "cam2/p4_t8_20260302.png", "other.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(1, 2, 3).save(tmp_path / name)
    rules = Rules(
        Modality.INFRARED,
        cameras=NamePattern("cam([0-9])", "--camera-from-name"),
        times=TimePattern("%Y%m%d"),
        tracks=NamePattern("_(t[0-9])", "--track-from-name"),
        pids=NamePattern("p([0-9])", "--pid-from-name"),
    )
    found = read_sources([tmp_path, tmp_path / "other.png"], rules)
    first, second = found.pictures
    assert first.path == tmp_path / "cam1/p3_t9_20260301.png"
    assert (first.camera, first.pid, first.track) == ("1", 3, "t9")
    assert first.time == datetime(2026, 3, 1, tzinfo=UTC)
    assert first.modality is Modality.INFRARED
    assert first.id != second.id
    assert first.id == read_sources([first.path], Rules(Modality.VISIBLE)).pictures[0].id
    assert [fault.name for fault in found.faults] == [str(tmp_path / "other.png")] * 2


def test_a_table_tells_modality_camera_person_and_time(tmp_path):
    for name in ("a", "b"):
        picture(1, 2, 3).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "path,pid,modality,camid,time\na.png,anna,visible,3,2026-03-01T10:00:00\nb.png,anna,ir,,\n"
    )
    day, night = read_sources([tmp_path / "t.csv"], Rules(zone=zone("Europe/Berlin"))).pictures
    assert (day.modality, day.camera, day.pid, day.tags) == (Modality.VISIBLE, "3", 0, ("anna",))
    assert day.time == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert (night.modality, night.camera, night.time) == (Modality.INFRARED, None, None)
    assert read_sources([tmp_path], Rules(Modality.INFRARED)).pictures == (night,)
    both = read_sources([tmp_path], Rules(Modality.INFRARED, layout="images")).pictures
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
    picture(1, 2, 3).save(tmp_path / "a.png")
    with pytest.raises(FmcnetError, match=said):
        read_sources([tmp_path], rules)


def test_a_folder_that_only_looks_like_a_dataset_is_asked_about(tmp_path):
    for name in ("cam1", "cam2"):
        (tmp_path / name).mkdir()
        picture(1, 2, 3).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="--layout images"):
        read_sources([tmp_path], Rules(Modality.VISIBLE))
    assert len(read_sources([tmp_path], Rules(Modality.VISIBLE, layout="images")).pictures) == 2


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no such"):
        read_sources([tmp_path / "gone"], Rules(Modality.VISIBLE))
