"""Characters that a reader cannot see, or that reorder others: control, direction and zero-width characters."""

from __future__ import annotations

import unicodedata

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (with directions and zero width), surrogate, line and paragraph separator."""

IGNORABLE = frozenset(
    map(
        chr,
        (
            *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0),
            *(
                *range(0x180B, 0x1810),
                *range(0xFE00, 0xFE10),
                *range(0xFFF0, 0xFFF9),
                *range(0xE0000, 0xE1000),
            ),
        ),
    )
)
"""Of other categories, but shown by no program (Default_Ignorable_Code_Point of Unicode): fillers, selectors."""


def _is_hidden(one: str) -> bool:
    return unicodedata.category(one) in HIDDEN or one in IGNORABLE


def hidden_character(text: str) -> str:
    """The first hidden character of `text`; "" where there is none."""
    return next(filter(_is_hidden, text), "")


def printable(text: str, keep: str = "") -> str:
    r"""Replace hidden characters by escapes, as \u202e, except those in `keep`."""
    return "".join(
        one.encode("unicode_escape").decode("ascii") if one not in keep and _is_hidden(one) else one
        for one in text
    )
