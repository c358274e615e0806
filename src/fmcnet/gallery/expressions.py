"""Conditions in Milvus's language."""

from __future__ import annotations

import json
from collections.abc import Collection

from fmcnet.gallery.records import Where, to_micros

NO_PID = -(2**63)
"""A pid that is not known; outside what a gallery takes."""
NO_TIME = -(10**18)
"""A time that is not known, before the year 1."""


def text(value: str) -> str:
    """A text as a literal: quotes, backslashes and control characters escaped."""
    return json.dumps(value, ensure_ascii=False)


def texts(values: Collection[str]) -> str:
    """A list of literals."""
    return "[" + ", ".join(text(value) for value in sorted(values)) + "]"


def expression(where: Where | None) -> str | None:
    """The condition as an expression, "" for none; None where nothing can match."""
    if where is None:
        return ""
    parts: list[str] = []
    for name, values in (("id", where.ids), ("camera", where.cameras), ("track", where.tracks)):
        if values is not None:
            if not values:
                return None
            parts.append(f"{name} in {texts(values)}")
    if where.pids is not None:
        fitting = sorted(pid for pid in where.pids if abs(pid) < 2**63)
        if not fitting:
            return None
        parts.append(f"pid in {fitting}")
    if where.modality is not None:
        parts.append(f"modality == {where.modality.code}")
    if where.since is not None:
        parts.append(f"time >= {to_micros(where.since)}")
    if where.until is not None:
        parts.append(f"time < {to_micros(where.until)}")
        parts.append(f"time > {NO_TIME}")
    if where.tags:
        parts.append(f"array_contains_all(tags, {texts(where.tags)})")
    return " and ".join(parts)
