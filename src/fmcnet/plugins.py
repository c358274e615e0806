"""Plugins: backbones and readers of other installed packages, by entry points, loaded on first use.

A package declares them in its `pyproject.toml`:

    [project.entry-points."fmcnet.backbones"]
    plain = "my_package:Plain"

    [project.entry-points."fmcnet.readers"]
    day-night = "my_package:read_day_night"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fmcnet.errors import ConfigError, one_line

BACKBONES, READERS = "fmcnet.backbones", "fmcnet.readers"


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of `BACKBONES` or `READERS` by name, not loaded; the first one of each name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, point)
    return found


def describe(point: EntryPoint) -> str:
    """Name an entry point, the object behind it and the package that brings it."""
    package = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"the plugin {point.name} = {point.value}{package}"


def load_plugin(point: EntryPoint) -> Any:
    """Import the object of an entry point; raises `ConfigError`, in one line, when that fails for any reason."""
    try:
        plugin = point.load()
    except Exception as error:
        reason = one_line(error)
        raise ConfigError(
            f"{describe(point)} cannot be loaded ({reason}). Mend or uninstall that package."
        ) from error
    if not callable(plugin):
        raise ConfigError(
            f"{describe(point)} is a {type(plugin).__name__}: it must be a function or a class."
        )
    return plugin
