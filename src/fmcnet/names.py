"""Hidden characters in names, and spellings that may be one name."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (with directions and zero width), surrogate, line and paragraph separator."""
CONTROL = frozenset({"Cc", "Zl", "Zp"})
"""Categories of control characters and line breaks, which are refused in tables."""
LINE_BREAKS = "\n\r\v\f\x85\u2028\u2029"

_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Of other categories, but shown by no program (Default_Ignorable_Code_Point of Unicode): fillers, selectors."""
_MONGOLIAN_SELECTORS = "\u180b\u180c\u180d\u180f"
_CJK_STOPS = "、。！，．：；？"
"""With the selectors FE00 and FE01 in Unicode's StandardizedVariants.txt."""
_EMOJI = re.compile(
    "[©®‼⁉™ℹ\u2194-\u2199\u21a9\u21aa\u231a\u231b⌨⏏\u23e9-\u23f3\u23f8-\u23fa"
    "Ⓜ▪▫▶◀\u25fb-\u25fe\u2600-\u27bf⤴⤵\u2b05-\u2b07⬛⬜⭐⭕〰〽㊗㊙\U0001f000-\U0001faff]"
)
"""The characters of Unicode's emoji-variation-sequences.txt; those of two blocks by the block."""
_SELECTORS = re.compile(f"[{_MONGOLIAN_SELECTORS}\ufe00-\ufe0f\U000e0100-\U000e01ef]")

_SEPARATOR = r"[\s_.\-\u2010-\u2015\u2212]+"
SEPARATORS = re.compile(rf"(?<!\d){_SEPARATOR}|{_SEPARATOR}(?!\d)")
"""Spaces, underscores, dots and dashes, those of typesetting too (U+2010 to U+2015, U+2212). All except those between
two digits: gate_1 is gate1, but 1_2 is not 12."""
LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
FRACTION = re.compile(r"(?<=[0-9])(?:\.0+|,00?)$")
"""Of a whole number in a column that a spreadsheet or pandas took for decimals; 1,000 is a thousand."""
_PREFIX = re.compile(r"^(?:camera|cam|c)(?=\d)")


def hidden_character(text: str) -> str:
    """The first hidden character of `text`; "" if there is none.

    A variation selector is not hidden behind a character whose form it selects: an ideograph (Japanese names), a
    Mongolian letter, a CJK stop, an emoji, a keycap's digit. Anywhere else it is invisible.
    """
    if text.isprintable() and not _IGNORABLE.search(text):  # most names: ten times as fast
        return ""
    return next((character for index, character in enumerate(text) if _is_hidden(text, index)), "")


def control_fault(text: str, what: str) -> str:
    """The fault of a cell of the column `what` that holds a line break or another control character, or ""."""
    if text.isprintable():
        return ""
    control = next((character for character in text if unicodedata.category(character) in CONTROL), "")
    if not control:
        return ""
    kind = "line break" if control in LINE_BREAKS else "control character"
    return f"{what} '{printable(text[:80])}' holds the {kind} U+{ord(control):04X}: remove it"


def printable(text: str, keep: str = "") -> str:
    r"""Replace hidden characters by escapes, as \u202e, except those in `keep`."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in keep and _is_hidden(text, index)
        else character
        for index, character in enumerate(text)
    )


def without_selectors(text: str) -> str:
    """Remove the variation selectors of a text."""
    return _SELECTORS.sub("", text)


def _is_hidden(text: str, index: int) -> bool:
    character = text[index]
    if _SELECTORS.match(character):
        return index == 0 or not _takes_selector(text[index - 1], character, text[index + 1 : index + 2])
    return unicodedata.category(character) in HIDDEN or _IGNORABLE.match(character) is not None


def _takes_selector(base: str, selector: str, after: str) -> bool:
    """Whether Unicode has forms of `base` for a selector; a keycap's digit is known by the mark `after` it."""
    if selector in _MONGOLIAN_SELECTORS:
        return "\u1820" <= base <= "\u18aa"
    if unicodedata.name(base, "").startswith("CJK UNIFIED IDEOGRAPH"):
        return True
    if selector in "\ufe00\ufe01":
        return base in _CJK_STOPS
    if selector not in "\ufe0e\ufe0f":
        return False
    return _EMOJI.match(base) is not None or (base in "#*0123456789" and after == "\u20e3")


def quoted(name: str) -> str:
    """The name in quotes; as escapes variation selectors, and all of a name that is not in NFC, as macOS has them."""
    shown = repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)
    return _SELECTORS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), shown)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice with the nearest spelling; None if no spelling is near."""
    names = sorted(choices)
    if alike := [name for name in names if spelling(name) == spelling(word)]:
        return max(alike, key=lambda name: SequenceMatcher(None, name.casefold(), word.casefold()).ratio())
    matches = get_close_matches(word.casefold(), [name.casefold() for name in names], 1, 0.6)
    return next((name for name in names if name.casefold() == matches[0]), None) if matches else None


def spelling(name: str) -> str:
    """A key that spellings of one camera share: "1", "01", "1.0", "cam1", "Cam 01" and "camera_1" all give "1".

    Letter case, width and variation selectors are ignored.
    """
    folded = unicodedata.normalize("NFKC", without_selectors(name)).casefold()
    return LEADING_ZEROS.sub("", _PREFIX.sub("", SEPARATORS.sub("", FRACTION.sub("", folded))))


def near_cameras(names: Iterable[str]) -> list[str]:
    """A note for each group of cameras with the same `spelling`: they may be one."""
    groups = defaultdict[str, set[str]](set)
    for name in names:
        groups[spelling(name)].add(name)
    return [
        f"the cameras {', '.join(map(quoted, group))} may be one: they are taken as {len(group)}, and a filter finds "
        "only the spelling that it names"
        for group in sorted(sorted(group) for group in groups.values() if len(group) > 1)
    ]
