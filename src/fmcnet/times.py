"""Parses times in texts and file names; incomplete and ambiguous ones are refused, and doubtful ones get a note."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock
from typing import Literal
from zoneinfo import ZoneInfo

from fmcnet.errors import DataError, FmcnetError

Doubtful = Literal["refuse", "earlier", "later"]

DIRECTIVES = {
    "%Y": r"\d{4}",
    "%m": r"0[1-9]|1[0-2]",
    "%d": r"0[1-9]|[12]\d|3[01]",
    "%H": r"[01]\d|2[0-3]",
    "%M": r"[0-5]\d",
    "%S": r"[0-5]\d",
    "%f": r"\d{1,6}",
    "%j": r"[0-2]\d\d|3[0-6]\d",
    "%y": r"\d{2}",
    "%z": r"Z|[+-]\d{2}:?\d{2}",
    "%s": r"\d{10}",
    "%Q": r"\d{13}",
    "%%": "%",
}
"""Directives of a pattern, as in `datetime.strptime`; `%s` are seconds and `%Q` milliseconds since 1970."""

CLOCKS_FROM = datetime(1971, 1, 1, tzinfo=timezone.utc)
"""A clock that was never set starts at the beginning of 1970."""
OLD = timedelta(days=3653)

_NEEDS = (("%f", ("%S", "%s")), ("%S", ("%M",)), ("%M", ("%H",)))
"""A directive, and directives of which it needs one."""
_ISO = re.compile(r"\d{4}-?\d\d-?\d\d(?:[T _].+)?")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?([.,]\d+)?")
_CLOCK_PARTS = frozenset({"%H", "%M", "%S", "%f"})
_APART = r"(?:(?<!\d)|(?!\d))"
"""Not between two digits."""
_BEGINS_NUMBER = re.compile(r"\d*%[a-zA-Z]")
_ENDS_NUMBER = re.compile(r".*%[a-zA-Z]\d*", re.DOTALL)
_HALF_DAY = re.compile(
    r"\d*([\s._-]?[AP]\.?M(?![A-Za-z0-9])|[ap]\.?m(?![A-Za-z0-9])|[\s._-][ap]\.?m\.?(?=\.\w+$|$))"
)
"""AM or PM behind a time. Small letters apart from it count at the name's end alone: "am" is a German word."""
_ZONE = re.compile(
    rf"(?:{_HALF_DAY.pattern})?\d*(?:[.,]\d+)?"
    r"(?:[Zz]|[\s_-]?(?i:UTC|GMT)(?P<named>[+-](?:0?\d|1[0-4])(?::?(?:00|15|30|45))?(?!\d))?"
    r"|(?P<alone>\+(?:0\d|1[0-4]):?(?:00|15|30|45)|-(?:0\d|1[0-2]):(?:00|30|45)))(?![A-Za-z0-9:])"
)
"""A timezone behind a time. Alone, an offset west of Greenwich has a colon and stands behind seconds: -0100 may be a
counter, 10:15-11:00 a while."""
_EPOCH = re.compile(r"(?P<s>\d{10})(?:[.,](?P<f>\d{1,6})\d*)?|(?P<Q>\d{13})(?:[.,]0+)?")


def parse_timezone(name: str) -> tzinfo:
    """A timezone by its name, as "UTC" or "Europe/Berlin"; FmcnetError for one that the system does not know."""
    if name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError) as error:
        raise FmcnetError(f"--timezone {name}: unknown; say UTC or a name as Europe/Berlin") from error


def shown_time(moment: datetime | None, zone: tzinfo) -> str | None:
    """The local time, to the second, with the name of its offset (CET, CEST); None stays None."""
    if moment is None:
        return None
    with contextlib.suppress(OverflowError):  # a wrong clock, in the year 1
        moment = moment.astimezone(zone)
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def localize(naive: datetime, zone: tzinfo, doubtful: Doubtful = "refuse") -> datetime:
    """A local time with its timezone.

    Args:
        naive: without a timezone.
        zone: the timezone.
        doubtful: for a time that comes twice (clocks go back) or never (clocks go forward): "refuse" it, or take
            the "earlier" or "later" of the two possible times.

    Raises:
        DataError: for a doubtful time that is refused.
    """
    candidates = [naive.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    try:
        first, second = (candidate.astimezone(timezone.utc) for candidate in candidates)
    except OverflowError as error:
        raise DataError(f"{naive:%Y-%m-%d} is outside the years 1 to 9999 in UTC") from error
    if first == second:
        return candidates[0]
    if doubtful == "refuse":
        fault = "comes twice" if first < second else "does not exist"
        raise DataError(
            f"{naive:%Y-%m-%d %H:%M:%S} {fault} in {zone}, where the clocks change: say --doubtful-times earlier or "
            f"later, or write {' or '.join(candidate.isoformat() for candidate in candidates)}"
        )
    return min(first, second) if doubtful == "earlier" else max(first, second)


def start_of_day(day: date, zone: tzinfo) -> datetime:
    """When a local day starts: midnight, the first of two; where there is none, the moment that clocks go forward.

    A day that starts before the year 1 in UTC starts with that year.
    """
    return max(datetime.combine(day, clock(), zone), datetime.min.replace(tzinfo=timezone.utc))


def parse_time(text: str, zone: tzinfo = timezone.utc, doubtful: Doubtful = "refuse") -> datetime:
    """Parse a time of a command or a table.

    Args:
        text: ISO 8601, as "2026-03-01T22:15:00+01:00", or seconds (10 digits) or milliseconds (13) since 1970. A date
            alone is the start of its day.
        zone: the timezone of a text that names none.
        doubtful: as `localize`.

    Raises:
        DataError: for a doubtful time that is refused.
        FmcnetError: for any other text.
    """
    text = text.strip()
    if number := _EPOCH.fullmatch(text):
        since_1970 = _since_1970(**number.groupdict())
        if text >= "2" and number["s"]:  # of the year 2033 or later
            with contextlib.suppress(ValueError):
                time = datetime.strptime(number["s"], "%Y%m%d%H" if text < "21" else "%y%m%d%H%M")
                raise FmcnetError(
                    f"'{text}' is {time:%Y-%m-%dT%H:%M} or, in seconds since 1970, "
                    f"{since_1970:%Y-%m-%dT%H:%M:%SZ}: write the one that is meant"
                )
        return since_1970
    if _CLOCK.fullmatch(text):
        raise FmcnetError(f"'{text}' lacks the date: give it as 2026-03-01T22:15:00")
    try:
        if not _ISO.fullmatch(text):
            raise ValueError(text)
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise FmcnetError(
            f"'{text}' is no time: give it as 2026-03-01 or 2026-03-01T22:15:00, or as seconds since 1970 (10 digits)"
        ) from error
    if time.utcoffset() is not None:
        return time
    return localize(time, zone, doubtful) if len(text) > len("2026-03-01") else start_of_day(time, zone)


def parse_capture_time(text: str, zone: tzinfo = timezone.utc, doubtful: Doubtful = "refuse") -> datetime:
    """`parse_time` and `check_clock` for an image's time; raises `DataError` for any fault."""
    try:
        return check_clock(parse_time(text, zone, doubtful), f"time '{text}'")
    except DataError:
        raise
    except FmcnetError as error:
        raise DataError(f"time {error}") from error


class TimePattern:
    """A pattern of the time in file names, written with the directives of `datetime.strptime`, `%s` and `%Q`.

    Args:
        pattern: as "%Y%m%d_%H%M%S", found anywhere in a name; * stands for any characters, others for themselves.
            It must hold the date: %Y (or %y) with %m and %d, or with %j; or else seconds (%s) or milliseconds (%Q)
            since 1970. No directive takes a part of a longer number.
        zone: the timezone of names without one (%z).
        doubtful: as `localize`.

    Raises:
        FmcnetError: for a directive that is not in `DIRECTIVES`, or a pattern without a complete date and time.
    """

    def __init__(self, pattern: str, zone: tzinfo = timezone.utc, doubtful: Doubtful = "refuse") -> None:
        parts = re.split(r"(%.?)", pattern)
        unknown = [part for part in parts if part.startswith("%") and part not in DIRECTIVES]
        used = [part for part in parts if part in DIRECTIVES and part != "%%"]
        if unknown or not used or len(set(used)) < len(used):
            halves = "; AM and PM behind %H are read by themselves" if {"%I", "%p"} & {*unknown} else ""
            raise FmcnetError(
                f"--time-from-name '{pattern}': write it with {', '.join(DIRECTIVES)}, each at most once, as "
                f"'%Y%m%d_%H%M%S'{halves}"
            )
        if fault := _pattern_fault(used):
            raise FmcnetError(f"--time-from-name '{pattern}' {fault}")
        self._pattern, self._zone, self._doubtful, self._used = pattern, zone, doubtful, used
        self._epoch = bool({"%s", "%Q"} & set(used))
        self._regexes = [re.compile(_pattern_regex(pattern, longest)) for longest in (False, True)]
        self._longer_regexes = [
            re.compile(_pattern_regex(pattern, longest, digits_behind=True)) for longest in (False, True)
        ]

    def find(self, name: str) -> datetime:
        """The time in a name, with its timezone; AM or PM behind it counts, as do Z, UTC, GMT+8 and +01:00.

        Raises:
            DataError: for no time, several, one before 1971, or a doubtful one that is refused.
        """
        exact, longer = self._places(self._regexes, name), self._places(self._longer_regexes, name)
        if not exact:
            hint = "; write %f for digits behind the seconds" if longer and "%S" in self._used else ""
            raise DataError(f"its name '{name}' holds no time as --time-from-name '{self._pattern}'{hint}")
        places = exact | longer  # a counter beside a time with milliseconds is not the time
        counters = {time for time in places if time.replace(tzinfo=timezone.utc) < CLOCKS_FROM}
        if len(places) > len(counters):
            places = {time: match for time, match in places.items() if time not in counters}
        if len(places) > 1:
            times = ", ".join(time.isoformat(" ").removesuffix("+00:00") for time in sorted(places)[:3])
            raise DataError(
                f"its name holds several times as --time-from-name '{self._pattern}' ({times}): write more of "
                "the name into the pattern"
            )
        ((time, match),) = places.items()
        is_date = "%H" not in self._used
        if not is_date:
            # Behind the time of day, or behind all; the pattern may spell out what stands there, as in %M%SZ.
            clock = max(self._used.index(directive) for directive in _CLOCK_PARTS & {*self._used})
            ends = match.end(clock + 2), match.end(len(self._used) + 1)
            halves, zones = ([regex.match(name, end) for end in ends] for regex in (_HALF_DAY, _ZONE))
            if (half := next(filter(None, halves), None)) and 1 <= time.hour <= 12:
                time = time.replace(hour=time.hour % 12 + 12 * ("P" in half[1].upper()))
            zone = next(filter(None, zones), None)
            is_while = zone and (zone["alone"] or "").startswith("-") and "%S" not in self._used
            if zone and not is_while and time.utcoffset() is None:
                time = time.replace(tzinfo=_offset(zone["named"] or zone["alone"] or "+0"))
        if time.utcoffset() is None:
            time = start_of_day(time, self._zone) if is_date else localize(time, self._zone, self._doubtful)
        return check_clock(time, f"its time '{match[1]}'")

    def _places(self, regexes: list[re.Pattern[str]], name: str) -> dict[datetime, re.Match[str]]:
        """* as short and as long as fits: the first and the last number that may be the time."""
        return {
            time: match
            for regex in regexes
            for match in regex.finditer(name)
            if (time := self._parse(match.groups()[1:])) is not None
        }

    def _parse(self, values: tuple[str, ...]) -> datetime | None:
        """The time of these values of the directives; None for none, as of February 30."""
        if self._epoch:
            return _since_1970(**{key[1]: text for key, text in zip(self._used, values, strict=True)})
        try:
            time = datetime.strptime(" ".join(values), " ".join(self._used))
        except ValueError:
            return None
        is_day = "%j" not in self._used or time.timetuple().tm_yday == int(values[self._used.index("%j")])
        return time if is_day else None  # strptime counts day 366 on into the next year


def _offset(text: str) -> timezone:
    """The timezone of "+8", "-0530" or "+05:30"."""
    digits = text[1:].replace(":", "")
    hours, minutes = (digits[:-2], digits[-2:]) if len(digits) > 2 else (digits, "0")
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if text[0] == "-" else offset)


def _pattern_regex(pattern: str, longest: bool, digits_behind: bool = False) -> str:
    """The regular expression of a `TimePattern`, which matches before each place; its group 1 is the whole place.

    A directive neither begins nor ends inside a longer number, unless the pattern itself goes on with digits.

    Args:
        pattern: with directives.
        longest: whether * takes as many characters as fit, or as few.
        digits_behind: whether milliseconds or microseconds may follow a time (behind %M seconds, too) that the
            pattern does not read, and * may be empty behind a date of eight digits.
    """
    pieces = re.split(r"\*+", pattern.strip("*"))
    begins = [_APART if _BEGINS_NUMBER.match(piece) else "" for piece in pieces]
    ends = [_APART if _ENDS_NUMBER.fullmatch(piece) else "" for piece in pieces]
    behind = ""
    if digits_behind and pieces[-1].endswith(("%M", "%S")):
        behind = (r"(?:[0-5]\d)?" if pieces[-1].endswith("%M") else "") + r"(?:\d{3}){0,2}"
        if len(pieces) > 1 and begins[-1]:
            begins[-1] = rf"(?:{_APART}|(?<=(?<!\d)\d{{8}}))"
    inner = begins[0]
    for number, piece in enumerate(pieces):
        if number:  # an empty * joins two directives
            before, after = ends[number - 1], begins[number]
            inner += f"(?:{before}.*{after}|)" if longest else f"(?:|{before}.*?{after})"
        for part in re.split(r"(%.)", piece):
            digits = DIRECTIVES.get(part)
            inner += re.escape(part) if digits is None else part[1] if part == "%%" else f"({digits})"
            inner += r"\d*" * (part == "%f")  # more digits than microseconds have
    return f"(?=({inner}){behind}{ends[-1]})"


def _since_1970(s: str | None = None, f: str | None = None, Q: str | None = None) -> datetime:
    """The time for seconds (s) with their fraction (f), or for milliseconds (Q), since 1970."""
    start = datetime.fromtimestamp(0, timezone.utc)
    if Q:
        return start + timedelta(milliseconds=int(Q))
    return start + timedelta(seconds=int(s or 0), microseconds=int((f or "0").ljust(6, "0")))


def check_clock(time: datetime, what: str) -> datetime:
    """Return an image's time; raises `DataError` for one before 1971, when the clock was never set."""
    if time < CLOCKS_FROM:
        raise DataError(
            f"{what} is of {time.year:04}-{time:%m-%d}, before 1971, as of a clock that was never set: mend it, or "
            "leave the time out"
        )
    return time


def _pattern_fault(used: Collection[str]) -> str:
    """Why these directives do not give a complete time; "" if they do."""
    present = set(used)
    epoch = present & {"%s", "%Q"}
    if epoch:
        others = present - epoch - ({"%f"} if "%s" in present else set())
        if len(epoch) > 1 or others:
            return f"has {', '.join(sorted(present - {'%s'}))} beside the seconds since 1970: leave them out"
        return ""
    absent = [] if present & {"%Y", "%y"} else ["%Y"]
    if "%j" not in present:
        absent += [directive for directive in ("%m", "%d") if directive not in present]
    if absent:
        return (
            f"lacks {' and '.join(absent)}: without the whole date an entry would expire at once. The date may stand "
            "in the folder, as '%Y-%m-%d/*%H%M%S'"
        )
    if present >= {"%Y", "%y"} or ("%j" in present and present & {"%m", "%d"}):
        return "holds the year or the day twice: leave one out"
    unmet = [
        (directive, needed[0])
        for directive, needed in _NEEDS
        if directive in present and not present & set(needed)
    ]
    return f"has {unmet[0][0]} without {unmet[0][1]}" if unmet else ""


def doubtful_times(times: Iterable[tuple[str, datetime | None]]) -> list[str]:
    """A note on (name, time) later than tomorrow, and one on those more than `OLD` ago: both are of wrong clocks."""
    now, images = datetime.now(timezone.utc), list(times)
    known = [(name, time) for name, time in images if time is not None]
    late = [image for image in known if image[1] > now + timedelta(days=1)]
    old = [image for image in known if image[1] < now - OLD]
    notes = []
    for kind, effect, affected in (
        ("in the future", "they expire late; check how times are written", late),
        ("of over ten years ago", "gallery expire removes them; check the camera's clock", old),
    ):
        if affected:
            name, first = affected[0]
            shown = shown_time(first, first.tzinfo or timezone.utc)
            notes.append(
                f"{len(affected)} of {len(images)} images have a time {kind}, the first {name} {shown}: {effect}"
            )
    return notes
