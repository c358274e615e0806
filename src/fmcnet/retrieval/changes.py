"""What an update sets, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fmcnet.errors import GalleryError
from fmcnet.retrieval import inputs
from fmcnet.retrieval.records import as_modality

KEEP: Any = type("Keep", (), {"__repr__": lambda _: "KEEP"})()
"""An attribute that `update` leaves alone."""
CHECKS: dict[str, Callable[[Any], object]] = {
    "pid": inputs.as_pid,
    "modality": as_modality,
    "camera": lambda value: inputs.optional_text(value, "camera"),
    "time": inputs.as_time,
    "source": lambda value: inputs.optional_text(value, "source"),
    "track": lambda value: inputs.optional_text(value, "track"),
    "tags": inputs.as_tags,
}


def make_change(**values: Any) -> dict[str, Any]:
    """The attributes of `Entry` that are not `KEEP`, by their names.

    Raises:
        GalleryError: for a bad value, or when nothing is left.
    """
    change = {name: CHECKS[name](value) for name, value in values.items() if value is not KEEP}
    if not change:
        raise GalleryError("nothing to update: give at least one of " + ", ".join(CHECKS))
    return change
