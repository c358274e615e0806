"""Times as people, tables and file names write them, and whether they say enough to be one moment."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo

from fmcnet.errors import DataError, FmcnetError

Doubtful = Literal["refuse", "earlier", "later"]
DOUBTFUL = ("refuse", "earlier", "later")

DIRECTIVES = {
    "%Y": r"\d{4}",
    "%m": r"\d{2}",
    "%d": r"\d{2}",
    "%H": r"\d{2}",
    "%M": r"\d{2}",
    "%S": r"\d{2}",
    "%f": r"\d{1,6}",
    "%j": r"\d{3}",
    "%y": r"\d{2}",
    "%z": r"(?:Z|[+-]\d{2}:?\d{2})",
    "%s": r"\d{10}",
    "%Q": r"\d{13}",
    "%%": "%",
}
"""What a pattern may hold, as `datetime.strptime` means it; `%s` are seconds and `%Q` milliseconds since 1970."""

_NEEDS = (("%f", ("%S", "%s")), ("%S", ("%M",)), ("%M", ("%H",)))
"""A directive, and those of which one must stand beside it: seconds of no minute are no time."""
_ISO = re.compile(r"\d{4}-?\d\d-?\d\d(?:[T _].+)?")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?([.,]\d+)?")
_EPOCH = re.compile(r"(\d{10})(?:\.(\d{1,6})\d*)?|(\d{13})")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def zone(name: str) -> tzinfo:
    """A timezone by its name, as "UTC" or "Europe/Berlin".

    Raises:
        FmcnetError: for a name that the system does not know.
    """
    if name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError) as error:
        raise FmcnetError(f"--timezone {name}: unknown; say UTC or a name as Europe/Berlin") from error


def placed(naive: datetime, where: tzinfo, doubtful: Doubtful = "refuse") -> datetime:
    """A local time as a moment.

    Args:
        naive: without a timezone. where: the timezone.
        doubtful: for a time that comes twice (clocks go back) or never (clocks go forward): refuse it, or take the
            earlier or later of the two moments that it may mean.

    Raises:
        DataError: for a doubtful time that is to be refused.
    """
    both = [naive.replace(tzinfo=where, fold=fold) for fold in (0, 1)]
    try:
        first, second = (one.astimezone(timezone.utc) for one in both)
    except OverflowError as error:
        raise DataError(f"{naive:%Y-%m-%d} is outside the years 1 to 9999 in UTC") from error
    if first == second:
        return both[0]
    if doubtful == "refuse":
        how = "comes twice" if first < second else "does not exist"
        raise DataError(
            f"{naive:%Y-%m-%d %H:%M:%S} {how} in {where}, where the clocks change: say --doubtful-times earlier or "
            "later, or write the time with its offset"
        )
    return min(first, second) if doubtful == "earlier" else max(first, second)


def moment(text: str, where: tzinfo = timezone.utc, doubtful: Doubtful = "refuse") -> datetime:
    """A time as a person or a table gives it.

    Args:
        text: ISO 8601, as "2026-03-01T22:15:00+01:00", a date alone being its midnight; or seconds (10 digits) or
            milliseconds (13) since 1970. where: the timezone of a text that names none. doubtful: as `placed`.

    Raises:
        DataError: for a doubtful time that is to be refused. FmcnetError: for anything else.
    """
    text = text.strip()
    number = _EPOCH.fullmatch(text)
    if number:
        seconds, fraction, milliseconds = number.groups()
        if milliseconds:
            return EPOCH + timedelta(milliseconds=int(milliseconds))
        return EPOCH + timedelta(seconds=int(seconds), microseconds=int((fraction or "0").ljust(6, "0")))
    if _CLOCK.fullmatch(text):
        raise FmcnetError(f"'{text}' lacks the date: give it as 2026-03-01T22:15:00")
    try:
        if not _ISO.fullmatch(text):
            raise ValueError(text)
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise FmcnetError(
            f"'{text}' is no time: give it as 2026-03-01 or 2026-03-01T22:15:00, or as seconds since 1970 (10 digits)"
        ) from error
    return found if found.utcoffset() is not None else placed(found, where, doubtful)


def seen_at(text: str, where: tzinfo = timezone.utc, doubtful: Doubtful = "refuse") -> datetime:
    """`moment` of a picture: not before 1970, which a clock that was never set says.

    Raises:
        DataError: saying what is wrong with it.
    """
    try:
        return _plausible(moment(text, where, doubtful), f"time '{text}'")
    except DataError:
        raise
    except FmcnetError as error:
        raise DataError(f"time {error}") from error


def _plausible(found: datetime, what: str) -> datetime:
    if found < EPOCH:
        raise DataError(f"{what} is of {found:%Y-%m-%d}, before 1970: mend it, or leave the time out")
    return found


class TimePattern:
    """A time written in names, by the directives of `datetime.strptime`, `%s` and `%Q`.

    Args:
        pattern: as "%Y%m%d_%H%M%S", found anywhere in a name; * stands for any characters, others for themselves. It
            must say the date: %Y (or %y) with %m and %d, or with %j; or seconds (%s) or milliseconds (%Q) since 1970.
        where: the timezone of names that tell none (%z). doubtful: as `placed`.

    Raises:
        FmcnetError: for a directive that is not in `DIRECTIVES`, or a pattern that is no whole time; says what is
            missing.
    """

    def __init__(self, pattern: str, where: tzinfo = timezone.utc, doubtful: Doubtful = "refuse") -> None:
        parts = re.split(r"(%.?)", pattern)
        unknown = [part for part in parts if part.startswith("%") and part not in DIRECTIVES]
        used = [part for part in parts if part in DIRECTIVES and part != "%%"]
        if unknown or not used or len(set(used)) < len(used):
            raise FmcnetError(
                f"--time-from-name '{pattern}': write it with {', '.join(DIRECTIVES)}, each at most once, as "
                "'%Y%m%d_%H%M%S'"
            )
        fault = _fault(used)
        if fault:
            raise FmcnetError(f"--time-from-name '{pattern}' {fault}")
        self._pattern, self._where, self._doubtful = pattern, where, doubtful
        self._used = used
        self._epoch = bool({"%s", "%Q"} & set(used))
        inner = "".join(
            f"({DIRECTIVES[part]})" if part in used else DIRECTIVES.get(part) or _literal(part)
            for part in parts
        )
        self._found = re.compile(rf"(?<!\d){inner}(?!\d)" if self._epoch else inner)

    def find(self, name: str) -> datetime:
        """The moment, with its timezone.

        Raises:
            DataError: when the name holds none, one before 1970, or a doubtful one that is to be refused.
        """
        for found in self._found.finditer(name):
            if self._epoch:
                return _since_1970(dict(zip(self._used, found.groups(), strict=True)))
            try:
                moment = datetime.strptime(" ".join(found.groups()), " ".join(self._used))
            except ValueError:
                continue  # digits that are no time, as month 13
            if moment.utcoffset() is None:
                moment = placed(moment, self._where, self._doubtful)
            return _plausible(moment, f"its time '{found[0]}'")
        raise DataError(f"its name holds no time as --time-from-name '{self._pattern}'")


def _literal(text: str) -> str:
    return ".*?".join(map(re.escape, text.split("*")))


def _since_1970(parts: dict[str, str]) -> datetime:
    if "%Q" in parts:
        return EPOCH + timedelta(milliseconds=int(parts["%Q"]))
    return EPOCH + timedelta(seconds=int(parts["%s"]), microseconds=int(parts.get("%f", "0").ljust(6, "0")))


def _fault(used: Collection[str]) -> str:
    """Why these directives are no whole time; "" where they are."""
    has = set(used)
    epoch = has & {"%s", "%Q"}
    if epoch:
        beside = has - epoch - ({"%f"} if "%s" in has else set())
        if len(epoch) > 1 or beside:
            return f"has {', '.join(sorted(has - {'%s'}))} beside the seconds since 1970: leave them out"
        return ""
    lacks = [] if has & {"%Y", "%y"} else ["%Y"]
    if "%j" not in has:
        lacks += [one for one in ("%m", "%d") if one not in has]
    if lacks:
        return (
            f"lacks {' and '.join(lacks)}: a time without its whole date is no moment, and would expire at once. The "
            "date may stand in the folder, as '%Y-%m-%d/*%H%M%S'"
        )
    if has >= {"%Y", "%y"} or ("%j" in has and has & {"%m", "%d"}):
        return "says the year or the day twice: leave one out"
    for one, needed in _NEEDS:
        if one in has and not has & set(needed):
            return f"has {one} without {needed[0]}"
    return ""
