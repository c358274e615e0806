"""Spelling variants: the nearest name to a word, and camera names that may be one."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

from fmcnet.characters import without_selectors
from fmcnet.identities import LEADING_ZEROS, SEPARATORS

_PREFIX = re.compile(r"^(?:camera|cam|c)(?=\d)")


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelled most like a word; None where none is near."""
    names = sorted(choices)
    if alike := [name for name in names if spelling(name) == spelling(word)]:
        return max(alike, key=lambda name: SequenceMatcher(None, name.casefold(), word.casefold()).ratio())
    found = get_close_matches(word.casefold(), [name.casefold() for name in names], 1, 0.6)
    return next((name for name in names if name.casefold() == found[0]), None) if found else None


def spelling(name: str) -> str:
    """What several spellings of one name share: "1", "01", "cam1", "Cam 01" and "camera_1" are all "1".

    Letter case, width and variation selectors do not count.
    """
    folded = unicodedata.normalize("NFKC", without_selectors(name)).casefold()
    return LEADING_ZEROS.sub("", _PREFIX.sub("", SEPARATORS.sub("", folded)))


def near_cameras(names: Iterable[str]) -> list[str]:
    """A note for each group of two or more cameras that share a `spelling`, as they may be one."""
    groups = defaultdict[str, set[str]](set)
    for name in names:
        groups[spelling(name)].add(name)
    return [
        f"the cameras {', '.join(map(repr, group))} may be one: they are taken as {len(group)}, and a filter finds "
        "only the spelling that it names"
        for group in sorted(sorted(group) for group in groups.values() if len(group) > 1)
    ]
