"""Times that say too little, too much or something doubtful."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from fmcnet.cli.console import make_filter
from fmcnet.errors import DataError, FmcnetError
from fmcnet.retrieval.indexing import leave_out_expired
from fmcnet.retrieval.inputs import expires_before
from fmcnet.retrieval.sources import NamePattern, Rules, read_sources
from fmcnet.times import TimePattern, parse_capture_time, parse_time, parse_timezone, shown_time
from fmcnet.types import Modality
from tests.retrieval.fakes import image

UTC = timezone.utc
BERLIN = parse_timezone("Europe/Berlin")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("%H%M%S", "lacks %Y and %m and %d"),
        ("%m%d_%H%M", "lacks %Y:"),
        ("%Y%m", "lacks %d:"),
        ("%Y_%H", "lacks %m and %d"),
        ("%j", "lacks %Y:"),
        ("%f", "lacks"),
        ("%Y%m%d_%M", "%M without %H"),
        ("%Y%m%d_%H%S", "%S without %M"),
        ("%Y%m%d.%f", "%f without %S"),
        ("%y%Y%m%d", "twice"),
        ("%Y%j%d", "twice"),
        ("%s_%H", "beside the seconds since 1970"),
        ("%s%Q", "beside the seconds since 1970"),
    ],
)
def test_a_pattern_that_is_no_whole_time_is_refused_with_what_is_missing(pattern, said):
    with pytest.raises(FmcnetError, match="--time-from-name") as caught:
        TimePattern(pattern)
    assert said in str(caught.value)


def test_the_date_may_stand_in_the_folder_or_as_the_day_of_the_year():
    seen = datetime(2026, 3, 1, 22, 15, 30, tzinfo=UTC)
    assert TimePattern("%Y-%m-%d/%H%M%S").find("2026-03-01/221530.jpg") == seen
    assert TimePattern("%Y-%m-%d/*_%H%M%S").find("2026-03-01/cam2/7_221530.jpg") == seen
    assert TimePattern("%y%j %H%M%S").find("a/26060 221530.jpg") == seen
    assert TimePattern("%Y%j").find("2024366.jpg") == datetime(2024, 12, 31, tzinfo=UTC)
    with pytest.raises(DataError, match="holds no time"):  # as of February 30
        TimePattern("%Y%j").find("2026366.jpg")


@pytest.mark.parametrize(
    "text", ["1709294400", "1709294400.0", "1709294400,0", "1709294400000", "1709294400000.0"]
)
def test_a_table_may_write_times_since_1970_as_decimals(text):
    assert parse_capture_time(text) == datetime(2024, 3, 1, 12, tzinfo=UTC)
    with pytest.raises(DataError, match="is no time"):
        parse_capture_time("1709294400000.5")


def test_seconds_and_milliseconds_since_1970():
    seen = datetime(2024, 3, 1, 12, 0, 0, tzinfo=UTC)
    assert TimePattern("%s").find(f"cam1_{int(seen.timestamp())}_7.jpg") == seen
    assert TimePattern("%Q").find(f"cam1_{int(seen.timestamp())}250.jpg") == seen + timedelta(
        milliseconds=250
    )
    assert TimePattern("%s.%f").find(f"{int(seen.timestamp())}.5.jpg") == seen + timedelta(milliseconds=500)
    for pattern, name in (
        ("%s", "1709294400250.jpg"),
        ("%Q", "1709294400.jpg"),
        ("%s", "20260301221530.jpg"),
    ):
        with pytest.raises(DataError, match="holds no time"):
            TimePattern(pattern).find(name)  # other lengths are other units
    assert parse_time("1709294400") == parse_time("1709294400000") == parse_time("1709294400.0") == seen


@pytest.mark.parametrize(
    ("pattern", "name", "time"),
    [
        ("%Y-%m-%d/*%H%M%S", "2026-11-28/cam12345678_221500.jpg", "2026-11-28T22:15:00"),
        ("%Y-%m-%d/*%H%M%S", "2026-11-28/999999_221501_7.jpg", "2026-11-28T22:15:01"),  # 99 is no hour
        ("%Y%m%d*%H%M%S", "20261128221501.jpg", "2026-11-28T22:15:01"),
        ("%Y%m%d*%H%M%S", "20261128/20261128_221501.jpg", "2026-11-28T22:15:01"),  # twice the same
        ("20%y%m%d", "20261128.jpg", "2026-11-28T00:00:00"),
        ("cam1*%Y%m%d", "cam12_20261128.jpg", "2026-11-28T00:00:00"),
        ("-%Y%m%d", "20261127-20261128.jpg", "2026-11-28T00:00:00"),
        ("%Y%m%d_%H%M%S.%f", "20261128_221501.123456789.jpg", "2026-11-28T22:15:01.123456"),
    ],
)
def test_a_time_is_no_part_of_a_longer_number(pattern, name, time):
    assert TimePattern(pattern).find(name) == datetime.fromisoformat(time).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("%Y-%m-%d/*%H%M%S", "2026-11-28/22150212_frame.jpg"),
        ("%d%m%y*%H%M%S", "gate_28112026_101500.jpg"),
        ("20%y%m%d", "120261128.jpg"),
        ("*%Y%m%d", "120261128.jpg"),
        ("%Y%m%d*", "202611281.jpg"),
        ("%Y%m%d**%H%M", "20261128_22151.jpg"),
        ("%Y%m%d**%H%M", "202611281_2215.jpg"),
        ("%Y%m%d_%H%M", "20261128_221501.jpg"),
    ],
)
def test_a_part_of_a_longer_number_is_no_time(pattern, name):
    with pytest.raises(DataError, match="holds no time"):
        TimePattern(pattern).find(name)


@pytest.mark.parametrize(
    ("pattern", "name", "times"),
    [
        ("%Y-%m-%d/*%H%M%S", "2026-11-28/000123_221501.jpg", "2026-11-28 00:01:23, 2026-11-28 22:15:01"),
        ("%Y%m%d", "20261127/20261128_7.jpg", "2026-11-27 00:00:00, 2026-11-28 00:00:00"),
        ("%Y%m%d*_%H%M", "20261127/20261128_2215.jpg", "2026-11-27 22:15:00, 2026-11-28 22:15:00"),
        ("%s", "1709294400_1709294460.jpg", "2024-03-01 12:00:00, 2024-03-01 12:01:00"),
    ],
)
def test_a_name_with_several_times_is_refused(pattern, name, times):
    with pytest.raises(DataError) as caught:
        TimePattern(pattern).find(name)
    assert str(caught.value) == (
        f"its name holds several times as --time-from-name '{pattern}' ({times}): write more of the name into the "
        "pattern"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026030122", "is 2026-03-01T22:00 or, in seconds since 1970, 2034-03-15T10:08:42Z"),
        ("2026030122.0", "is 2026-03-01T22:00 or, in seconds since 1970, 2034-03-15T10:08:42Z"),
        ("2603012215", "is 2026-03-01T22:15 or, in seconds since 1970, 2052-06-26T10:56:55Z"),
    ],
)
def test_a_number_that_may_be_a_date_is_refused(text, said):
    for read in (parse_time, parse_capture_time):
        with pytest.raises(FmcnetError, match=f"'{text}' {said}: write the one that is meant"):
            read(text)


@pytest.mark.parametrize("text", ["1772402400", "1710101010", "2026133022", "2026030122000"])
def test_a_number_that_is_no_date_or_recent_is_in_seconds_since_1970(text):
    assert parse_time(text).timestamp() == int(text[:10])


@pytest.mark.parametrize(
    ("text", "zone", "start"),
    [
        ("2026-04-24", "Africa/Cairo", "2026-04-23T22:00:00Z"),
        ("2026-11-01", "America/Havana", "2026-11-01T04:00:00Z"),
        ("2026-03-29", "Europe/Berlin", "2026-03-28T23:00:00Z"),
        ("0001-01-01", "Asia/Tokyo", "0001-01-01T00:00:00Z"),
    ],
)
def test_a_date_alone_is_the_start_of_the_local_day(text, zone, start):
    assert parse_time(text, parse_timezone(zone)).astimezone(UTC) == parse_time(start)
    where = make_filter(None, text, text, zone)
    assert where.since == where.until == parse_time(start)
    if text > "1":
        name = TimePattern("%Y%m%d", parse_timezone(zone)).find(f"{text.replace('-', '')}.jpg")
        assert name.astimezone(UTC) == parse_time(start)


def test_a_clock_that_was_never_set_is_told():
    for name in ("19000101_221530.jpg", "12000101_000000.jpg", "19700101_000512.jpg", "19700120_000000.jpg"):
        with pytest.raises(DataError, match="before 1971, as of a clock that was never set"):
            TimePattern("%Y%m%d_%H%M%S").find(name)
    with pytest.raises(DataError, match="of 1970-01-01, before 1971"):
        TimePattern("%s").find("0000000312.jpg")
    for text in ("1900-01-01T10:00:00", "1970-01-01T00:05:12Z", "0000000312"):
        with pytest.raises(DataError, match="before 1971"):
            parse_capture_time(text)
    with pytest.raises(DataError, match="lacks the date"):
        parse_capture_time("22:15:30")
    assert parse_time("1900-01-01").year == 1900  # a bound of a filter may be long ago


@pytest.mark.parametrize(
    ("text", "how", "earlier", "later"),
    [
        ("2026-10-25T02:30:00", "comes twice", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
        ("2026-03-29T02:30:00", "does not exist", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"),
    ],
)
def test_a_doubtful_local_time_is_refused_or_settled(text, how, earlier, later):
    name = text.replace("-", "").replace(":", "").replace("T", "_") + ".jpg"
    pattern = "%Y%m%d_%H%M%S"
    for read in (lambda: parse_time(text, BERLIN), lambda: TimePattern(pattern, BERLIN).find(name)):
        with pytest.raises(DataError, match=f"{how} in Europe/Berlin.*--doubtful-times"):
            read()
    assert (
        parse_time(text, BERLIN, "earlier")
        == TimePattern(pattern, BERLIN, "earlier").find(name)
        == parse_time(earlier)
    )
    assert (
        parse_time(text, BERLIN, "later")
        == TimePattern(pattern, BERLIN, "later").find(name)
        == parse_time(later)
    )
    assert parse_time(text + "+02:00", BERLIN) == parse_time(text + "+02:00")  # an offset leaves no doubt


def test_a_row_with_a_wrong_time_is_named_and_the_others_are_taken(tmp_path):
    for name in "abc":
        image(1, 2, 3).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "path,pid,modality,time\n"
        "a.png,1,visible,12:00\nb.png,2,visible,2026-10-25 02:30\nc.png,3,visible,1709294400\n"
    )
    found = read_sources([tmp_path / "t.csv"], Rules(zone=BERLIN))
    assert [one.time for one in found.images] == [datetime(2024, 3, 1, 12, tzinfo=UTC)]
    assert [fault.name for fault in found.faults] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert "lacks the date" in found.faults[0].reason
    assert "comes twice" in found.faults[1].reason
    settled = read_sources([tmp_path / "t.csv"], Rules(zone=BERLIN, doubtful="later"))
    assert settled.images[0].time == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_times_are_shown_in_the_timezone_asked_for():
    seen = datetime(2026, 7, 1, 22, 15, 30, tzinfo=UTC)
    assert shown_time(None, UTC) is None
    assert shown_time(seen, UTC) == "2026-07-01 22:15:30 UTC"
    assert shown_time(seen, BERLIN) == "2026-07-02 00:15:30 CEST"
    assert str(shown_time(datetime(1, 1, 1, tzinfo=UTC), parse_timezone("America/New_York"))).endswith(
        "1-01-01 00:00:00 UTC"
    )


def test_an_option_about_times_or_identities_that_no_image_has_is_noted(tmp_path):
    image(250, 20, 20).save(tmp_path / "7_20260301.png")
    plain = Rules(modality=Modality.VISIBLE)
    assert read_sources([tmp_path], plain).notes == ()
    asked = replace(plain, zone=BERLIN, pid_prefix="a-")
    told = " ".join(read_sources([tmp_path], asked).notes)
    assert "--pid-prefix has no effect" in told
    assert "--timezone and --doubtful-times have no effect" in told
    found = replace(
        asked, times=TimePattern("%Y%m%d", BERLIN), pids=NamePattern("([0-9])_", "--pid-from-name")
    )
    assert read_sources([tmp_path], found).notes == ()
    timeless = leave_out_expired(read_sources([tmp_path], plain), expires_before("1d"), "--keep 1d")
    assert timeless.notes == ("--keep 1d: 1 of 1 images have no time, are indexed and never expire",)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("%Y-%m-%d/*%H%M%S", "2026-11-28/cam1_221500123_000012.jpg"),
        ("%Y-%m-%d/*%H%M%S", "2026-11-28/20261128221500_000012.jpg"),
        ("%Y%m%d*%H%M%S", "20240101_221500123_000001.jpg"),
        ("%Y%m%d*%H%M", "20240101_221500_0001.jpg"),
    ],
)
def test_a_counter_beside_a_longer_time_is_not_taken_for_it(pattern, name):
    with pytest.raises(DataError, match=r"several times .*22:15:00\): write more of the name"):
        TimePattern(pattern).find(name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("%s", "1709294400_0000000012.jpg"), ("%Y%m%d_%H%M", "20240301_1200_00010101_0000.jpg")],
)
def test_a_counter_before_1971_is_no_second_time(pattern, name):
    assert TimePattern(pattern).find(name) == datetime(2024, 3, 1, 12, tzinfo=timezone.utc)


def test_digits_behind_the_seconds_are_hinted_at():
    for name in ("frame.jpg", "120240101_120000.jpg"):
        with pytest.raises(DataError, match=r"as --time-from-name '%Y%m%d_%H%M%S'$"):
            TimePattern("%Y%m%d_%H%M%S").find(name)
    name = "PXL_20260301_221530123.jpg"
    with pytest.raises(DataError, match=r"holds no time .*; write %f for digits behind the seconds"):
        TimePattern("%Y%m%d_%H%M%S").find(name)
    assert TimePattern("%Y%m%d_%H%M%S%f").find(name).microsecond == 123_000
    with pytest.raises(DataError, match=r"as --time-from-name '%Y-%m-%d'$"):
        TimePattern("%Y-%m-%d").find(name)


@pytest.mark.parametrize(
    ("behind", "hour"),
    [
        ("Z", 22), ("+0100", 21), ("+05:30", 16), ("_UTC", 22), ("_PM_UTC", 22), ("", 21), ("-0100", 21), ("-01", 21),
        ("+0100200", 21), ("Zed", 21), ("+25", 21),
        ("GMT+8", 14), ("_GMT+08-00", 14), ("UTC-0500", 3), ("UTC+01:00", 21), (".123Z", 22), ("_UTC-0001", 22),
        ("+0012", 21), ("-05:00", 3), (".123456-05:00", 3), ("-05:10", 21), ("z", 22), ("_utc", 22), ("zed", 21),
        ("-11:00:00", 21),
    ],
)  # fmt: skip
def test_a_timezone_behind_a_time_counts(behind, hour):
    """Not a counter or a word; the option's zone, Berlin's, is that of the others."""
    clock = "10-15-30" if "PM" in behind else "22-15-30"
    found = TimePattern("%Y%m%dT%H-%M-%S", parse_timezone("Europe/Berlin")).find(
        f"cam_20260301T{clock}{behind}_7.jpg"
    )
    assert (found.astimezone(timezone.utc).hour, found.minute) == (hour, 15)


@pytest.mark.parametrize(
    ("pattern", "name", "hour"),
    [
        ("%Y%m%dT%H%M%SZ", "20260301T221500Z.jpg", 22),
        ("%Y%m%dT%H%M%S.%fZ", "20260301T221500.1234567Z.jpg", 22),
        ("%Y%m%dT%H%M%S_UTC", "20260301T221500_UTC_7.jpg", 22),
        ("%Y%m%dT%H%M%S+0100", "20260301T221500+0100.jpg", 21),
        ("%Y%m%d_%H%M%S*.jpg", "20260301_221500Z.jpg", 22),
        ("%Y%m%d_%H%M00*.jpg", "20260301_221500Z.jpg", 22),
        ("%Y-%m-%d at %H.%M.%S PM", "Screen 2026-03-01 at 10.15.00 PM.png", 3),
        ("%Y%m%d_%H%M%S*cam", "20260301_101500PM_cam.jpg", 3),
        ("%H%M%S*_%Y%m%d", "101500PM_20260301.jpg", 3),
        ("%H%M%S_%Y%m%d", "221500_20260301Z.jpg", 22),
        ("%Y%m%d_%H.%M PM %z", "20260301_10.15 PM +0100.jpg", 21),
        ("%Y-%m-%d_%H:%M", "2026-03-01_22:15-11:00.jpg", 3),
        ("%Y-%m-%d_%H:%M", "2026-03-01_22:15+01:00.jpg", 21),
        ("%Y%m%dT%H%M%SZone", "20260301T221500Zone.jpg", 3),
    ],
)
def test_a_timezone_and_a_half_of_the_day_that_the_pattern_spells_out_count(pattern, name, hour):
    found = TimePattern(pattern, parse_timezone("America/New_York")).find(name)
    assert (found.astimezone(timezone.utc).hour, found.minute) == (hour, 15)


@pytest.mark.parametrize(
    ("name", "hour"),
    [
        ("gate_2026-03-01_10-15-58PM.jpg", 22),
        ("2026-03-01_10-15-58 p.m..jpg", 22),
        ("2026-03-01_12-15-58\u202fPM.jpg", 12),
        ("2026-03-01_12-15-58_AM_7.jpg", 0),
        ("2026-03-01_08-15-58am.jpg", 8),
        ("2026-03-01_22-15-58PM.jpg", 22),
        ("2026-03-01_10-15-58_pm2.jpg", 10),
        ("2026-03-01_10-15-58_amsel.jpg", 10),
        ("2026-03-01_12-15-58 am Tor.jpg", 12),
        ("2026-03-01_12-15-58 am.jpg", 0),
        ("PM_2026-03-01_10-15-58.jpg", 10),
    ],
)
def test_am_and_pm_behind_a_time_count(name, hour):
    found = TimePattern("%Y-%m-%d_%H-%M-%S").find(name)
    assert found == datetime(2026, 3, 1, hour, 15, 58, tzinfo=timezone.utc)
    assert TimePattern("%Y-%m-%d").find("2026-03-01_10PM.jpg").hour == 0
    with pytest.raises(FmcnetError, match="AM and PM behind %H are read by themselves"):
        TimePattern("%Y-%m-%d_%I-%M-%S%p")
