"""Characters that a reader cannot see, or that reorder others: control, direction and zero-width characters."""

from __future__ import annotations

import re
import unicodedata

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (with directions and zero width), surrogate, line and paragraph separator."""

_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Of other categories, but shown by no program (Default_Ignorable_Code_Point of Unicode): fillers, selectors."""
_MONGOLIAN_SELECTORS = "\u180b\u180c\u180d\u180f"
_SELECTORS = re.compile(f"[{_MONGOLIAN_SELECTORS}\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def hidden_character(text: str) -> str:
    """The first hidden character of `text`; "" where there is none.

    A variation selector is not hidden behind a character whose form it selects: an ideograph (Japanese names), a
    Mongolian letter, a symbol or emoji, a keycap's digit. Anywhere else it is invisible.
    """
    return next((one for at, one in enumerate(text) if _is_hidden(text, at)), "")


def printable(text: str, keep: str = "") -> str:
    r"""Replace hidden characters by escapes, as \u202e, except those in `keep`."""
    return "".join(
        one.encode("unicode_escape").decode("ascii") if one not in keep and _is_hidden(text, at) else one
        for at, one in enumerate(text)
    )


def without_selectors(text: str) -> str:
    """A text without its variation selectors: what the variants of its characters have in common."""
    return _SELECTORS.sub("", text)


def _is_hidden(text: str, at: int) -> bool:
    one = text[at]
    if _SELECTORS.match(one):
        return at == 0 or not _takes_selector(text[at - 1], one, text[at + 1 : at + 2])
    return unicodedata.category(one) in HIDDEN or _IGNORABLE.match(one) is not None


def _takes_selector(base: str, selector: str, after: str) -> bool:
    """Whether Unicode has forms of `base` for a selector; a keycap's digit is known by the mark `after` it."""
    if selector in _MONGOLIAN_SELECTORS:
        return "\u1820" <= base <= "\u18aa"
    if unicodedata.name(base, "").startswith("CJK UNIFIED IDEOGRAPH"):
        return True
    if selector > "\ufe0f":
        return False
    if base.isascii():
        return base in "#*0123456789" and after == "\u20e3"
    return unicodedata.category(base)[0] in "SP"
