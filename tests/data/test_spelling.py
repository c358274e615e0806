"""Spellings that may be one name."""

from __future__ import annotations

import pytest

from fmcnet.data.spelling import near_cameras, nearest, spelling


@pytest.mark.parametrize(
    "names",
    [("1", "01", "cam1", "Cam 01", "camera_1", "c001"), ("gate1", "Gate-01", "gate 1"), ("1", "\uff11")],
)
def test_spellings_of_one_name(names):
    assert len({spelling(name) for name in names}) == 1
    (note,) = near_cameras(names)
    assert note.startswith(f"the cameras {', '.join(map(repr, sorted(names)))} may be one")


def test_different_names_stay_apart():
    names = ["1", "10", "100", "1_2", "12", "gate", "gate2", "camp", "hall"]
    assert near_cameras(names) == []


def test_the_nearest_known_name():
    assert nearest("Hall", ["hall", "gate"]) == "hall"
    assert nearest("trak", ["track", "time"]) == "track"
    assert nearest("cam01", ["2", "1"]) == "1"
    assert nearest("Cam1", ["01", "1", "Cam 1", "cam1"]) == "cam1"
    assert nearest("weather", ["track", "time"]) is None
