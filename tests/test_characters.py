"""What a reader cannot see is found, whatever Unicode calls it; what has a shape is not."""

from __future__ import annotations

import pytest

from fmcnet.characters import hidden_character, printable

HIDDEN = [
    "\x1b",
    "\x9b",
    "\n",
    "\u202e",
    "\u200b",
    "\u2028",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\U000e0041",
    "\ud800",
]
IGNORABLE = ["\u034f", "\u115f", "\u3164", "\uffa0", "\u180b", "\ufe0f", "\ufff0", "\U000e0100"]


@pytest.mark.parametrize("one", HIDDEN + IGNORABLE, ids=ascii)
def test_hidden_characters_are_found_and_escaped(one):
    assert hidden_character(f"gate{one}2") == one
    assert printable(f"gate{one}2").isascii()


@pytest.mark.parametrize("text", ["Tür 3", "門", "वॉक", "a b", "é", "👤", "ga\u0301te"])
def test_letters_marks_and_signs_are_no_hidden_characters(text):
    assert hidden_character(text) == ""
    assert printable(text) == text
