"""What the names of picture files tell: camera, track, identity."""

from __future__ import annotations

import re

from fmcnet.errors import DataError, FmcnetError


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
