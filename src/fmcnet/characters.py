"""Characters that a reader cannot see, or that reorder others: control, direction and zero-width characters."""

from __future__ import annotations

import unicodedata

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (with directions and zero width), surrogate, line and paragraph separator."""


def hidden_character(text: str) -> str:
    """The first hidden character of `text`; "" where there is none."""
    return next((one for one in text if unicodedata.category(one) in HIDDEN), "")


def printable(text: str, keep: str = "") -> str:
    r"""Replace hidden characters by escapes, as \u202e, except those in `keep`."""
    return "".join(
        one.encode("unicode_escape").decode("ascii")
        if one not in keep and unicodedata.category(one) in HIDDEN
        else one
        for one in text
    )
