"""The door: whatever comes in, it becomes a checked batch or a `GalleryError` that says what is wrong."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmcnet.errors import FmcnetError, GalleryError
from fmcnet.retrieval import Gallery, Where, group, pool
from fmcnet.retrieval.inputs import as_duration, make_batch, new_id
from fmcnet.retrieval.notes import filter_notes
from fmcnet.retrieval.records import Entry, Hit, as_pid, from_micros, to_micros
from fmcnet.retrieval.similarity import rank_pooled, unit_vectors
from fmcnet.retrieval.sqlite_connection import checksum
from fmcnet.retrieval.sqlite_database import to_entry, to_values, with_checksum
from fmcnet.types import Modality, parse_modality
from tests.retrieval.people import crops

NOTHING = {
    "ids": None,
    "pid": None,
    "camera": None,
    "time": None,
    "source": None,
    "track": None,
    "tags": None,
}


def batch(n=2, **given_):
    return make_batch(crops(n), **{"modality": "visible", **NOTHING, **given_})


def test_one_value_is_for_all_and_n_are_one_each():
    made = batch(pid=[1, np.int64(2)], camera="gate", source=Path("a/b.jpg"), tags=["x", "a", "x"])
    assert [e.pid for e in made.entries] == ["1", "2"]
    assert {e.camera for e in made.entries} == {"gate"}
    assert made.entries[0].source == "a/b.jpg"
    assert made.entries[1].tags == ("a", "x")
    each = batch(tags=[["b"], ()], modality=["visible", Modality.INFRARED], pid=np.array([-1.0, 5]))
    assert [e.tags for e in each.entries] == [("b",), ()]
    assert [e.modality for e in each.entries] == list(Modality)
    assert [e.pid for e in each.entries] == [None, "5"]  # -1 is the tables' word for unknown


def test_as_many_tags_for_all_as_rows_are_told(caplog):
    for tags in (["red"], {"red", "hat", "coat"}, [["red"], ["hat"]]):
        batch(tags=tags)
    assert not caplog.messages
    made = batch(tags=["red", "hat"])
    assert {e.tags for e in made.entries} == {("hat", "red")}
    assert caplog.messages == ["tags: each of the 2 entries gets all 2 tags; for one each give 2 lists"]


class Cam(str, Enum):
    GATE = "gate"


def test_a_text_of_an_enum_is_its_value(tmp_path):
    names = {"camera": Cam.GATE, "track": Cam.GATE, "source": Cam.GATE, "pid": Cam.GATE}
    seen = {"camera": "gate", "track": "gate", "source": "gate", "pid": "gate", "tags": ("gate",)}
    with Gallery(tmp_path / "g", model="m") as gallery:
        gallery.add(np.eye(2), modality="visible", ids=[Cam.GATE, "b"], tags=[Cam.GATE], **names)
        gallery.update(["b"], **dict.fromkeys(names), tags=[])
        assert gallery.update([Cam.GATE], **names, tags=[Cam.GATE]) == 1
        entry = gallery.get(Cam.GATE)
        assert {name: getattr(entry, name) for name in seen} == seen
        assert Cam.GATE in gallery
        for name in ("ids", "pids", "cameras", "tracks", "tags"):
            assert gallery.count(Where(**{name: [Cam.GATE]})) == 1
            assert filter_notes(gallery, Where(**{name: [Cam.GATE]})) == ()
    assert parse_modality(Enum("M", {"IR": "infrared"}, type=str).IR) == Modality.INFRARED


class NaT(datetime):
    """As that of pandas."""

    def __ne__(self, other):
        return True

    def utcoffset(self):
        raise ValueError("NaTType does not support utcoffset")


def test_a_time_that_is_none_of_pandas_is_unknown():
    assert [e.time for e in batch(time=[NaT(1, 1, 1), None]).entries] == [None, None]
    with pytest.raises(GalleryError, match=r"Where\(since\) must be a datetime"):
        Where(since=NaT(1, 1, 1))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_scan_of_no_entries_at_once_is_refused(tmp_path, chunk):
    with Gallery(tmp_path / "g", model="m") as gallery:
        gallery.add(np.eye(2), modality="visible")
        with pytest.raises(GalleryError, match=f"chunk={chunk} must be a whole number, 1 or more"):
            list(gallery.scan(chunk=chunk))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"modality": "x-ray"}, "unknown modality 'x-ray': say visible or infrared"),
        ({"modality": None}, "unknown modality 'None'"),
        ({"pid": [1]}, "'pid' has 1 values for 2 embeddings"),
        ({"pid": 1.5}, "pid must be a text or a whole number"),
        ({"pid": True}, "pid must be a text or a whole number"),
        ({"pid": 2**63}, "64 bits"),
        ({"pid": "a\u200bb"}, "U\\+200B"),
        ({"camera": ""}, "must not be empty"),
        ({"camera": "a\0b"}, "NUL"),
        ({"camera": "x" * 257}, "257 bytes"),
        ({"camera": 3}, "must be a text"),
        ({"track": "\ud800"}, "not valid Unicode"),
        ({"time": datetime(2026, 1, 1)}, "has no timezone"),
        ({"time": "2026-01-01"}, "must be a datetime"),
        ({"time": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=3)))}, "years 1 to 9999"),
        ({"tags": "red"}, "give a list"),
        ({"tags": [["red"], "blue"]}, "not the text 'blue'"),
        ({"tags": [[1], []]}, "must be a text"),
        ({"tags": [5, 6]}, "must be a list of texts"),
        ({"tags": [[str(i) for i in range(65)], []]}, "65 tags"),
        ({"ids": "ab"}, "not one text"),
        ({"ids": ["a"]}, "1 values for 2"),
        ({"ids": ["a", 2]}, "must be a text"),
        ({"ids": ["a", "a"]}, "comes twice"),
        ({"ids": ["a", ""]}, "must not be empty"),
        ({"ids": ["a", "b\n"]}, "control character"),
        ({"ids": ["a", "\x7f"]}, "control character"),
        ({"ids": ["a", "b\u2028c"]}, "line break"),
        ({"ids": ["a", "\u202eb"]}, r"U\+202E"),
        ({"camera": "gate\n2"}, r"U\+000A"),
        ({"track": "t\u200b1"}, r"U\+200B"),
        ({"source": "a\x1b[2Jb.png"}, r"U\+001B"),
        ({"tags": [["red\u2066"], []]}, r"U\+2066"),
        ({"ids": ["a", ".."]}, "no address could name it"),
        ({"ids": ["a", "b/../a"]}, "no address could name it"),
        ({"ids": ["a", "./a"]}, "no address could name it"),
        ({"ids": ["a", "x" * 257]}, "257 bytes"),
        ({"ids": {"a", "b"}}, "'ids' is a set, which has no order: give a list of 2 values"),
        ({"camera": frozenset("ab")}, "'camera' is a set"),
        ({"tags": {("a",), ("b",)}}, "'tags' is a set"),
        ({"pid": {"x": "anna", "y": "ben"}}, "'pid' is a dict: give a list of 2 values"),
        ({"pid": np.array([20260301, 7], np.float32)}, "pid 20260300 is a float32"),
        ({"camera": "1E+03"}, "camera '1E\\+03' is a number in scientific notation"),
        ({"track": ["1.70E+10", "2"]}, "track '1.70E\\+10' is a number in scientific notation"),
        (
            {"time": datetime(1970, 1, 1, 0, 5, tzinfo=timezone.utc)},
            "before 1971, as of a clock that was never",
        ),
    ],
)
def test_bad_metadata_is_named(fault, words):
    with pytest.raises(GalleryError, match=words):
        batch(**fault)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 2, 2)),
        np.zeros((2, 0)),
        [[1.0, 2.0], [3.0]],
        [["a", "b"]],
        np.array([[1 + 2j, 0]]),
        np.array([[True, False]]),
        [],
        None,
        5.0,
        [[1e-300, 0]],
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(bad):
    with pytest.raises(GalleryError):
        unit_vectors(bad)


def test_any_real_numbers_come_to_unit_length():
    for values in ([[3, 4]], np.array([[3e38, 4e37]], np.float32), np.array([[6e-8, 6e-8]], np.float16)):
        made = unit_vectors(values)
        assert made.dtype == np.float32
        assert np.linalg.norm(made) == pytest.approx(1, abs=1e-6)
    assert unit_vectors([3, 4]).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


@example(vectors=[[0.0, 1.0]], columns=dict.fromkeys(NOTHING) | {"tags": 0})
@example(vectors=[[0.0, 1.0]], columns=dict.fromkeys(NOTHING) | {"track": object()})
@settings(max_examples=200, deadline=None)
@given(
    vectors=st.one_of(
        st.none(),
        st.text(),
        st.lists(st.floats(width=32), max_size=5),
        st.lists(st.lists(st.floats(), min_size=2, max_size=3), max_size=3),
    ),
    columns=st.fixed_dictionaries(
        {
            name: st.one_of(
                st.none(),
                st.text(max_size=4),
                st.integers(),
                st.floats(),
                st.datetimes(),
                st.binary(max_size=3),
                st.lists(st.one_of(st.none(), st.text(max_size=2), st.integers()), max_size=3),
            )
            for name in NOTHING
        }
    ),
)
def test_whatever_is_given_there_is_a_batch_or_a_clear_word(vectors, columns):
    try:
        made = make_batch(vectors, modality="visible", **columns)
    except FmcnetError:
        return
    assert np.isfinite(made.vectors).all()
    assert len(made.entries) == len(made.vectors)


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_times_are_kept_to_the_microsecond(moment):
    assert from_micros(to_micros(moment)) == moment


def known(value):
    """The identity of a value; None for one that is refused."""
    try:
        return as_pid(value)
    except GalleryError:
        return None


@given(
    st.builds(
        Entry,
        id=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1),
        modality=st.sampled_from(Modality),
        pid=st.none() | (st.integers() | st.text()).map(known),
        camera=st.none() | st.text(min_size=1),
        time=st.none() | st.datetimes(timezones=st.just(timezone.utc)),
        tags=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    )
)
def test_a_stored_entry_comes_back(entry):
    assert to_entry(to_values(7, entry)) == entry


def test_checksums_tell_rows_and_fields_apart():
    assert checksum(1, "a", None) != checksum(1, None, "a")
    assert checksum(1, "ab") != checksum(1, "a", "b")
    assert with_checksum(1, b"abcd") != with_checksum(2, b"abcd")


def test_durations():
    assert as_duration("30d") == timedelta(days=30)
    assert as_duration(" 90 m ") == timedelta(minutes=90)
    for bad in ("30", "d", "-3d", "1.5h", "0s"):
        with pytest.raises(GalleryError, match="keep="):
            as_duration(bad)


def test_new_ids_sort_by_time():
    ids = [new_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert [i[:12] for i in ids] == sorted(i[:12] for i in ids)


def test_conditions_are_checked():
    for bad in ({"cameras": "gate"}, {"pids": 3}, {"tags": "red"}, {"ids": b"x"}):
        with pytest.raises(GalleryError, match="give a list"):
            Where(**bad)
    with pytest.raises(GalleryError, match="no timezone"):
        Where(since=datetime(2026, 1, 1))
    with pytest.raises(GalleryError, match="visible"):
        Where(modality="x-ray")
    for word in ("infrared", "IR", "thermal", Modality.INFRARED):
        assert Where(modality=word).modality is Modality.INFRARED
    assert Where().unconditional
    assert not Where(pids=[]).unconditional


def test_pooling_is_the_mean_of_unit_vectors():
    vectors = crops(5)
    mean = sum(v.astype(np.float64) / np.linalg.norm(v) for v in vectors) / 5
    np.testing.assert_allclose(
        pool(vectors * [[1], [9], [2], [3], [4]]), mean / np.linalg.norm(mean), atol=1e-6
    )
    np.testing.assert_allclose(pool(vectors[0]), vectors[0], atol=1e-6)
    for bad, words in ((np.empty((0, 3)), "nothing to pool"), ([[1.0, 0], [-1, 0]], "cancel out")):
        with pytest.raises(GalleryError, match=words):
            pool(bad)


def test_groups_keep_the_order_of_their_best():
    hits = [
        Hit("a", Modality.VISIBLE, similarity=0.9, pid="1", track="t"),
        Hit("b", Modality.VISIBLE, similarity=0.8),
        Hit("c", Modality.VISIBLE, similarity=0.7, pid="2", track="t"),
        Hit("d", Modality.VISIBLE, similarity=0.6),
    ]
    found = group(hits, "track")
    assert [(g.key, g.similarity, [h.id for h in g.hits]) for g in found] == [
        ("t", 0.9, ["a", "c"]),
        (None, 0.8, ["b"]),
        (None, 0.6, ["d"]),
    ]
    assert [g.key for g in group(hits, "pid")] == ["1", None, "2", None]
    night = [*hits, Hit("e", Modality.INFRARED, similarity=0.5, track="t")]
    assert [[h.id for h in g.hits] for g in group(night, "track")] == [["a", "c", "e"], ["b"], ["d"]]
    apart = group(night, "track", modalities_apart=True)
    assert [[h.id for h in g.hits] for g in apart] == [["a", "c"], ["b"], ["d"], ["e"]]
    with pytest.raises(GalleryError, match="'track' or 'pid'"):
        group(hits, "camera")


def test_pooling_a_group_whose_entries_went_or_cancel_out():
    hits = [
        Hit(name, Modality.VISIBLE, similarity=0.9, track=track)
        for name, track in (("a", "t"), ("b", "u"), ("c", "v"))
    ]
    query = np.array([1.0, 0.0], np.float32)

    def stored(name, track, *vector):
        return Entry(name, Modality.VISIBLE, track=track), np.array(vector, np.float32)

    entries = [
        stored("a", "t", 0.6, 0.8),
        stored("a2", "t", 1, 0),
        stored("c", "v", 0, 1),
        stored("c2", "v", 0, -1),
    ]
    found = rank_pooled(query, group(hits, "track", modalities_apart=True), entries, "track")
    assert [(g.key, g.pooled) for g in found] == [("t", 2), ("v", 2)]
    assert [g.similarity for g in found] == pytest.approx([0.8 / np.sqrt(0.8), 0.0])


def test_locations_that_are_no_gallery(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for location, options, words in (
        (tmp_path / "file", {}, "is a file"),
        (tmp_path / "full", {}, "holds no gallery"),
        (tmp_path / "none", {"read_only": True}, "there is no gallery"),
        (tmp_path / "none", {"create": False}, "there is no gallery"),
        (tmp_path / "file" / "below", {}, "cannot be made"),
        ("http://host/x", {}, "milvus://"),
        (tmp_path / "new", {"dtype": "int8"}, "dtype"),
        (tmp_path / "new", {"index": "ivf"}, "index"),
    ):
        with pytest.raises(GalleryError, match=words):
            Gallery(location, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
