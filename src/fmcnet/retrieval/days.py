"""How many entries each camera has on each day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from datetime import time as clock

import numpy as np

from fmcnet.retrieval.columns import NONE
from fmcnet.retrieval.records import to_micros
from fmcnet.types import IntArray

DAY = 86_400_000_000
"""Microseconds."""
FIRST = date(1970, 1, 1).toordinal()


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
    found = []
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        day, camera = divmod(pair, len(names) + 1)
        found.append(
            DayCount(names[camera - 1] if camera else None, None if day < 0 else starts[day][1], count)
        )
    found.sort(key=lambda one: one.camera or "")
    return tuple(sorted(found, key=lambda one: one.day or date.min, reverse=True))


def _midnights(days: IntArray, zone: tzinfo) -> list[tuple[int, date]]:
    """The starts of all local days that touch these UTC days (days since 1970), rising, and their dates."""
    wanted = {FIRST + day + near for day in days.tolist() for near in (-1, 0, 1)}
    starts = []
    for ordinal in sorted(wanted):
        if not 1 <= ordinal <= date.max.toordinal():
            continue
        day = date.fromordinal(ordinal)
        try:
            starts.append((to_micros(datetime.combine(day, clock(), zone)), day))
        except OverflowError:  # before the year 1 in UTC: at the start of all times
            starts.append((int(NONE) + 1, day))
    return starts
