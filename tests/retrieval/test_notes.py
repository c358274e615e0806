"""Notes on filters: what no entry has is told with the nearest name, whatever is filtered by, in bounded time."""

from time import process_time

import numpy as np
import pytest

from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval import notes as notes_module
from fmcnet.retrieval.notes import FIELDS, add_notes, filter_notes


@pytest.fixture
def gallery(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as opened:
        tags = [["red", "hat"], ["hat"], []]
        names = {
            "camera": ["gate", "door", None],
            "track": ["walk10", "run", None],
            "pid": ["anna", "ben", None],
        }
        opened.add(np.eye(3), modality="visible", tags=tags, ids=list("abc"), **names)
        yield opened


@pytest.mark.parametrize(
    ("where", "noun", "asked", "near"),
    [
        (Where(cameras=["gat"]), "camera", "gat", "gate"),
        (Where(tracks=["walk1"]), "track", "walk1", "walk10"),
        (Where(tags=["rad"]), "tag", "rad", "red"),
        (Where(tags=["RED"]), "tag", "RED", "red"),
        (Where(pids=["ana"]), "identity", "ana", "anna"),
    ],
)
def test_the_nearest_name_is_told_of_what_no_entry_has(gallery, where, noun, asked, near):
    assert filter_notes(gallery, where) == (f"no entry has the {noun} '{asked}': did you mean '{near}'?",)
    gallery.remove(Where(ids=["a"]))
    assert all(f"'{near}'" not in note for note in filter_notes(gallery, where))  # it is gone


def test_nothing_is_told_of_what_entries_have(gallery):
    where = Where(cameras=["gate"], tracks=["run"], tags=["hat", "red"], pids=["ben"], modality="visible")
    assert filter_notes(gallery, where) == ()
    assert gallery.tags() == ["hat", "red"]


def test_a_name_that_is_near_nothing_gets_no_guess(gallery):
    where = Where(tracks=["xyz"], tags=["q"], pids=["zoe"])
    assert filter_notes(gallery, where) == (
        "no entry has the track 'xyz'",
        "no entry has the tag 'q'",
        "no entry has the identity 'zoe'",
    )


@pytest.mark.parametrize(("names", "guesses"), [(1, 20), (9, 3), (25, 1), (28, 0)])
def test_few_characters_are_compared_in_large_galleries(tmp_path, monkeypatch, names, guesses):
    monkeypatch.setattr(notes_module, "MOST_COMPARED", 1000)
    compared = []

    def nearest(word, choices):
        compared.append(len(word) * len("".join(choices)))
        return choices[0]

    monkeypatch.setattr(notes_module, "nearest", nearest)
    with Gallery(tmp_path / "g", model="0123456789abcdef") as opened:
        opened.add(np.ones((names, 2)), modality="visible", track=[f"t{n:03}" for n in range(names)])
        found = filter_notes(opened, Where(tracks=[f"missing-{letter}" for letter in "abcdefghijklmnopqrst"]))
        assert len(found) == 20
        assert sum("did you mean 't000'?" in note for note in found) == len(compared) == guesses
        assert sum(compared) <= 1000
        assert filter_notes(opened, Where(tracks=[f"missing-{n}" for n in range(21)])) == ()


def test_long_names_do_not_hold_up_a_request(tmp_path):
    names = [f"{'/mnt/cam/gate-north-2026-03-01T12-00-00' * 4}/track-{n:05}" for n in range(5000)]
    with Gallery(tmp_path / "g", model="0123456789abcdef") as opened:
        tags = [[name] for name in names]
        given = {"track": names, "camera": names, "pid": names}
        opened.add(np.ones((5000, 2)), modality="visible", tags=tags, **given)
        tags = [names[n] for n in range(20)]
        for field in FIELDS:
            for values in ([names[5] + "x"], tags, [f"{name}x" for name in tags]):
                start = process_time()
                notes = filter_notes(opened, Where(**{field.condition: values}))
                assert process_time() - start < 0.4
                assert len(notes) == sum(value not in names for value in values)
        start = process_time()
        added = opened.add(np.ones((1, 2)), modality="visible", camera="new", pid="new", track="new")
        assert add_notes(opened, added, {"camera": "new", "pid": "new", "track": "new", "time": None}) == []
        assert process_time() - start < 0.4


def test_tracks_and_tags_are_listed_only_where_one_is_missing(gallery, monkeypatch):
    for name in ("tracks", "tags"):
        monkeypatch.setattr(Gallery, name, lambda self: pytest.fail("listed"))
    fields = tuple(field._replace(stored=getattr(Gallery, field.condition, field.stored)) for field in FIELDS)
    monkeypatch.setattr(notes_module, "FIELDS", fields)
    assert filter_notes(gallery, Where(tracks=["run"], tags=["hat"])) == ()
    for where in (Where(tracks=["ran"]), Where(tags=["hut"])):
        with pytest.raises(pytest.fail.Exception, match="listed"):
            filter_notes(gallery, where)


@pytest.mark.parametrize("given", ["葛\U000e0100口", "葛口"])
def test_near_cameras_are_told_of_names_with_variation_selectors_too(tmp_path, given):
    values = {"camera": given, "pid": None, "time": None, "track": None}
    with Gallery(tmp_path / "g", model="0123456789abcdef") as opened:
        opened.add(np.eye(2), modality="visible", camera=["葛\U000e0100口", "葛口"])
        added = opened.add(np.ones((1, 2)), modality="visible", camera=given)
        (note,) = add_notes(opened, added, values)
        assert note.startswith(r"the cameras '葛口', '葛\U000e0100口' may be one")
        assert add_notes(opened, added, {**values, "camera": "gate"}) == []
