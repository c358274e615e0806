"""Durations as people write them: 30d, 12h."""

from __future__ import annotations

import re
from datetime import timedelta

from fmcnet.errors import ConfigError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_duration(text: str) -> timedelta:
    """A whole number and a unit of s, m (minutes), h, d or w, as "30d"; `timedelta.max` for more than it can hold.

    Raises:
        ConfigError: for any other text.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*([smhdw])\s*", text)
    if not found:
        raise ConfigError(f"'{text}' is no duration: write a whole number and a unit (s, m, h, d, w), as 30d")
    try:
        return timedelta(seconds=int(found[1]) * UNITS[found[2]])
    except OverflowError:
        return timedelta.max
