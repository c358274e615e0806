"""Counts by camera and day, in any timezone."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from fmcnet.retrieval import Entry, Gallery, Where
from fmcnet.retrieval.entry_columns import DayCount, count_days
from fmcnet.retrieval.records import EPOCH, NONE, to_micros
from fmcnet.types import Modality
from tests.retrieval.people import add, crops, entries, matches

UTC = timezone.utc


@pytest.mark.parametrize("where", [None, Where(cameras=["gate"]), Where(modality=Modality.INFRARED)])
def test_a_gallery_is_counted_by_camera_and_day(location, where):
    zone, rows = ZoneInfo("Asia/Kathmandu"), entries(60)  # 12:00 to 22:00 UTC is two days there
    expected = Counter(
        (one.camera, one.time and one.time.astimezone(zone).date()) for one in rows if matches(one, where)
    )
    with Gallery(location) as gallery:
        assert gallery.days() == ()
        add(gallery, crops(60), rows)
        found = gallery.days(where, zone)
        assert {(one.camera, one.day): one.entries for one in found} == expected
        assert len(found) == len(expected) > 2
        gallery.remove(Where(cameras=["gate"]))
        assert "gate" not in {one.camera for one in gallery.days()}


@pytest.mark.parametrize(
    "name", ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia", "Africa/Monrovia", "Asia/Kathmandu"]
)
def test_days_start_at_local_midnight(name):
    """Also where clocks change at midnight, or a day is left out."""
    zone, random = ZoneInfo(name), np.random.default_rng(3)
    times = [EPOCH - timedelta(days=800) + timedelta(seconds=int(s)) for s in random.integers(0, 2**31, 3000)]
    for day in range(400):  # the last and the first microsecond of each local day
        midnight = datetime(2011, 6, 1, tzinfo=zone) + timedelta(days=day)
        times += [midnight.astimezone(UTC), midnight.astimezone(UTC) - timedelta(microseconds=1)]
    expected = Counter(time.astimezone(zone).date() for time in times)
    micros = np.array([to_micros(time) for time in times])
    found = count_days(np.zeros(len(times), np.int64), ["gate"], micros, zone)
    assert {one.day: one.entries for one in found} == expected


def test_the_newest_day_comes_first_and_unknown_times_last():
    times = [datetime(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 3, 2, 12, tzinfo=UTC)]
    micros = np.array([to_micros(times[0]), to_micros(times[1]), int(NONE), to_micros(times[1])])
    found = count_days(np.array([0, 1, 0, -1]), ["hall", "gate"], micros, UTC)
    assert found == (
        DayCount(None, date(2026, 3, 2), 1),
        DayCount("gate", date(2026, 3, 2), 1),
        DayCount("hall", date(2026, 3, 1), 1),
        DayCount("hall", None, 1),
    )


@pytest.mark.parametrize("hours", [-12, 14])
def test_the_first_and_the_last_day_of_all(hours):
    zone = timezone(timedelta(hours=hours))
    ends = [datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    micros = np.array([to_micros(time) for time in ends])
    found = count_days(np.zeros(2, np.int64), ["gate"], micros, zone)
    assert [one.day for one in found] == [date(9999, 12, 31), date(1, 1, 1)]


def test_entry_fields_are_those_that_are_counted(location):
    with Gallery(location) as gallery:
        add(gallery, crops(1), [Entry("a", Modality.VISIBLE)])
        assert gallery.days() == (DayCount(None, None, 1),)
