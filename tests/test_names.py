"""Characters that a reader cannot see are found, whatever Unicode calls them; spellings that may be one name."""

from __future__ import annotations

import pytest

from fmcnet.errors import DataError
from fmcnet.identities import near_identities, parse_identity
from fmcnet.names import hidden_character, near_cameras, nearest, printable, spelling

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
    "ℹ\ufe0f",
    "↔\ufe0f",
    "。\ufe00",
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
        "–\ufe03",
        "€\ufe07",
        "«\ufe00",
        "·\ufe01",
        "´\ufe0f",
        "＿\ufe0f",
        "。\ufe0f",
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
    (note,) = near_cameras([f"{one}口", f"{other}口", "北口"])
    assert r"'葛\U000e0100城口', '葛\U000e0101城口'" in note  # told apart by what is seen
    with pytest.raises(DataError, match=r"U\+E0100"):
        parse_identity("7\U000e0100")


@pytest.mark.parametrize(
    "names",
    [
        ("1", "01", "1.0", "cam1", "Cam 01", "camera_1", "c001"),
        ("gate1", "Gate-01", "gate 1"),
        ("1", "\uff11"),
    ],
)
def test_spellings_of_one_name(names):
    assert len({spelling(name) for name in names}) == 1
    (note,) = near_cameras(names)
    assert note.startswith(f"the cameras {', '.join(map(repr, sorted(names)))} may be one")


def test_different_names_stay_apart():
    names = ["1", "10", "100", "1_2", "12", "1.2", "1,000", "gate", "gate2", "camp", "hall"]
    assert near_cameras(names) == []


def test_the_nearest_known_name():
    assert nearest("Hall", ["hall", "gate"]) == "hall"
    assert nearest("trak", ["track", "time"]) == "track"
    assert nearest("cam01", ["2", "1"]) == "1"
    assert nearest("Cam1", ["01", "1", "Cam 1", "cam1"]) == "cam1"
    assert nearest("weather", ["track", "time"]) is None
