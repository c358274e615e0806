"""What the names of picture files tell: camera, time, track, identity."""

from __future__ import annotations

import re
from datetime import datetime, timezone, tzinfo
from zoneinfo import ZoneInfo

from fmcnet.errors import DataError, FmcnetError

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
    "%%": "%",
}
"""What a pattern of times may hold, as `datetime.strptime` means it."""


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


def moment(text: str, where: tzinfo = timezone.utc) -> datetime:
    """A time as a person or a table gives it: ISO 8601, a date alone being its midnight.

    Args:
        text: as "2026-03-01" or "2026-03-01T22:15:00+01:00". where: the timezone of a text that names none.

    Raises:
        FmcnetError: for anything else.
    """
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise FmcnetError(f"'{text}' is no time: give it as 2026-03-01 or 2026-03-01T22:15:00") from error
    return found if found.utcoffset() is not None else found.replace(tzinfo=where)


class NamePattern:
    """A regular expression with one group, looked for in a name.

    Args:
        pattern: as "cam([0-9]+)"; without a group the whole match counts. option: named in messages.

    Raises:
        FmcnetError: when it is no regular expression, or has several groups.
    """

    def __init__(self, pattern: str, option: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise FmcnetError(f"{option} '{pattern}' is no regular expression: {error}") from error
        if self._pattern.groups > 1:
            raise FmcnetError(f"{option} '{pattern}' has {self._pattern.groups} groups (...): give one")
        self._option = option

    def find(self, name: str) -> str:
        """The group's text.

        Raises:
            DataError: when the name does not match, or the group is empty.
        """
        found = self._pattern.search(name)
        text = found[self._pattern.groups] if found else None
        if not text:
            raise DataError(f"its name does not match {self._option} '{self._pattern.pattern}'")
        return text

    def number(self, name: str) -> int:
        """The group as a whole number.

        Raises:
            DataError: as `find`, or when it is none.
        """
        text = self.find(name)
        if not (text.isascii() and text.isdigit() and int(text) < 2**63):
            raise DataError(f"{self._option} finds '{text[:40]}', which is no whole number of 64 bits")
        return int(text)


class TimePattern:
    """A time written in names, by the directives of `datetime.strptime`.

    Args:
        pattern: as "%Y%m%d_%H%M%S", found anywhere in a name; other characters stand for themselves.
        where: the timezone of names that tell none (%z).

    Raises:
        FmcnetError: for a directive that is not in `DIRECTIVES`, or none at all.
    """

    def __init__(self, pattern: str, where: tzinfo = timezone.utc) -> None:
        parts = re.split(r"(%.?)", pattern)
        unknown = [part for part in parts if part.startswith("%") and part not in DIRECTIVES]
        used = [part for part in parts if part in DIRECTIVES and part != "%%"]
        if unknown or not used or len(set(used)) < len(used):
            raise FmcnetError(
                f"--time-from-name '{pattern}': write it with {', '.join(DIRECTIVES)}, each at most once, as "
                "'%Y%m%d_%H%M%S'"
            )
        self._format, self._where = pattern, where
        self._pattern = re.compile("".join(DIRECTIVES.get(part) or re.escape(part) for part in parts))

    def find(self, name: str) -> datetime:
        """The moment, with its timezone.

        Raises:
            DataError: when the name holds none.
        """
        for found in self._pattern.finditer(name):
            try:
                moment = datetime.strptime(found[0], self._format)
            except ValueError:
                continue  # digits that are no time, as month 13
            return moment if moment.utcoffset() is not None else moment.replace(tzinfo=self._where)
        raise DataError(f"its name holds no time as --time-from-name '{self._format}'")
