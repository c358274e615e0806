"""Notes on times that come from wrong clocks, and entries counted by local day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock

import numpy as np

from fmcnet.retrieval.records import EPOCH, NONE, to_micros
from fmcnet.times import shown_time
from fmcnet.types import IntArray

OLD = timedelta(days=3653)
DAY = 86_400_000_000
"""Microseconds."""


def doubtful_times(times: Iterable[tuple[str, datetime | None]]) -> list[str]:
    """A note on times later than tomorrow, and one on times more than `OLD` ago, which come from wrong clocks.

    Args:
        times: name and time of each picture.
    """
    now, pictures = datetime.now(timezone.utc), list(times)
    known = [(name, time) for name, time in pictures if time is not None]
    late = [picture for picture in known if picture[1] > now + timedelta(days=1)]
    old = [picture for picture in known if picture[1] < now - OLD]
    notes = []
    for kind, effect, affected in (
        ("in the future", "they expire late; check how times are written", late),
        ("of over ten years ago", "gallery expire removes them; check the camera's clock", old),
    ):
        if affected:
            name, first = affected[0]
            shown = shown_time(first, first.tzinfo or timezone.utc)
            notes.append(
                f"{len(affected)} of {len(pictures)} pictures have a time {kind}, the first {name} {shown}: {effect}"
            )
    return notes


@dataclass(frozen=True)
class DayCount:
    """The entries of one camera on one day.

    Attributes:
        camera: None: those without a camera.
        day: from local midnight to the next. None: those without a time.
        entries: how many, at least 1.
    """

    camera: str | None
    day: date | None
    entries: int


def count_days(
    cameras: IntArray, names: Sequence[str], times: IntArray, zone: tzinfo
) -> tuple[DayCount, ...]:
    """Count entries by camera and day.

    Args:
        cameras: (N,) positions in `names`; -1 where unknown.
        names: of the cameras.
        times: (N,) microseconds since 1970; `NONE` where unknown.
        zone: whose days.

    Returns:
        The newest day first, those without a time last; then by camera.
    """
    known = times != NONE
    starts = _midnights(np.unique(times[known] // DAY), zone)
    moments = np.array([micros for micros, _ in starts], np.int64)
    days = np.full(len(times), -1, np.int64)
    days[known] = np.maximum(np.searchsorted(moments, times[known], side="right") - 1, 0)
    pairs, counts = np.unique(days * (len(names) + 1) + cameras + 1, return_counts=True)
    day_counts = []
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        day, camera = divmod(pair, len(names) + 1)
        day_counts.append(
            DayCount(names[camera - 1] if camera else None, None if day < 0 else starts[day][1], count)
        )
    day_counts.sort(key=lambda count: (-(count.day or date.min).toordinal(), count.camera or ""))
    return tuple(day_counts)


def _midnights(days: IntArray, zone: tzinfo) -> list[tuple[int, date]]:
    """The starts of all local days that touch these UTC days (days since 1970), rising, and their dates."""
    first = EPOCH.toordinal()
    ordinals = {first + day + offset for day in days.tolist() for offset in (-1, 0, 1)}
    starts = []
    for ordinal in sorted(ordinals):
        if not 1 <= ordinal <= date.max.toordinal():
            continue
        day = date.fromordinal(ordinal)
        try:
            starts.append((to_micros(datetime.combine(day, clock(), zone)), day))
        except OverflowError:  # before the year 1 in UTC: at the start of all times
            starts.append((int(NONE) + 1, day))
    return starts
