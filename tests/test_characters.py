"""What a reader cannot see is found, whatever Unicode calls it; what has a shape is not."""

from __future__ import annotations

import pytest

from fmcnet.characters import hidden_character, printable
from fmcnet.data.spelling import near_cameras
from fmcnet.errors import DataError
from fmcnet.identities import near_identities, parse_identity

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


VARIANTS = [
    "葛\U000e0100城",
    "渡邉\U000e0102",
    "神\ufe00",
    "☎\ufe0f",
    "❤\ufe0e",
    "‼\ufe0f",
    "©\ufe0f",
    "1\ufe0f\u20e3",
    "\u1820\u180b",
]
"""A variation selector behind a character that has variants."""


@pytest.mark.parametrize("text", ["Tür 3", "門", "वॉक", "a b", "é", "👤", "ga\u0301te", *VARIANTS])
def test_letters_marks_and_signs_are_no_hidden_characters(text):
    assert hidden_character(text) == ""
    assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\U000e0100葛",
        "葛\U000e0100\U000e0101",
        "a\U000e0100",
        "か\U000e0100",
        "☎\U000e0100",
        "1\ufe0f",
        "+\ufe0f",
        "葛\u180b",
        "👩\u200d💻",
        "葛\U000e0041",
        "葛\u3164",
    ],
    ids=ascii,
)
def test_selectors_without_their_character_and_all_else_that_hides_are_found(text):
    assert hidden_character(text)
    assert "\\" in printable(text)


def test_variants_of_a_name_are_two_with_a_note():
    """Neither merged in silence nor told apart in silence."""
    one, other = "葛\U000e0100城", "葛\U000e0101城"
    assert parse_identity(f" {one} ") == one
    assert parse_identity(other) == other
    assert len(near_identities([one, other, "葛城", "葛飾"])) == 1
    assert len(near_cameras([f"{one}口", f"{other}口", "北口"])) == 1
    with pytest.raises(DataError, match=r"U\+E0100"):
        parse_identity("7\U000e0100")
