"""What every gallery does, whatever the backend: compared with a plain dictionary."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta, timezone

import numpy as np
import pytest

from fmcnet.errors import DuplicateIdError, GalleryError
from fmcnet.retrieval import Where
from fmcnet.types import Modality
from tests.retrieval.people import MODEL, NOON, WHERES, Plain, add, crops, entries, long_same, same


@pytest.fixture
def filled(location, opened):
    """A gallery and the dictionary with the same 200 entries."""
    gallery, plain = opened(location), Plain()
    vectors, rows = crops(200), entries(200)
    for start in range(0, 200, 80):
        done = add(gallery, vectors[start : start + 80], rows[start : start + 80])
        plain.add(vectors[start : start + 80], rows[start : start + 80])
        assert done.ids == tuple(row.id for row in rows[start : start + 80])
        assert done.added == len(done.ids)
    return gallery, plain


def agree(gallery, plain, queries=3):
    if gallery.location.startswith("milvus"):
        queries = 1  # a consistent read takes a cluster a fifth of a second
    for query in crops(queries, seed=9):
        for where in WHERES:
            same(gallery.search(query, 8, where), plain.search(query, 8, where))
            assert gallery.count(where) == len(plain.search(query, 10**6, where))
    assert len(gallery) == len(plain.rows)
    assert [e for e, _ in gallery.scan(chunk=64)] == [e for e, _ in plain.rows.values()]


def test_searches_and_counts_are_those_of_the_dictionary(filled):
    agree(*filled)


def test_another_opening_sees_the_same(filled, location, opened):
    gallery, plain = filled
    agree(opened(location), plain, queries=1)
    gallery.close()
    agree(opened(location, read_only=True), plain, queries=1)


def test_remove_by_each_condition(filled, location, opened):
    gallery, plain = filled
    reader = opened(location, read_only=True)
    assert len(reader) == 200
    for where in (
        Where(ids=["crop-00001", "crop-00009", "nobody"]),
        Where(pids=["anna"]),
        Where(cameras=["hall"]),
        Where(tracks=["t1"]),
        Where(until=NOON + timedelta(hours=3)),
        Where(tags=["bag"], modality=Modality.VISIBLE),
    ):
        assert gallery.remove(where) == plain.remove(where) > 0
        assert gallery.remove(where) == 0
        assert len(reader) == len(plain.rows)
    agree(gallery, plain)
    agree(reader, plain, queries=1)
    gallery.compact()
    agree(gallery, plain)
    agree(reader, plain, queries=1)


def test_update_sets_and_clears_metadata(filled):
    gallery, plain = filled
    names = ["crop-00003", "crop-00004", "crop-00150"]
    for change in (
        {"pid": "77", "camera": "roof", "tags": ("late", "seen")},
        {"pid": None, "camera": None, "track": None, "time": None, "source": None, "tags": ()},
        {"modality": Modality.INFRARED, "time": NOON + timedelta(hours=4), "track": "t2", "source": "x"},
    ):
        assert gallery.update(names, **change) == 3
        plain.update(names, **change)
        assert gallery.get("crop-00150") == plain.rows["crop-00150"][0]
    agree(gallery, plain)
    with pytest.raises(GalleryError, match="no entry 'nobody'"):
        gallery.update(["crop-00005", "nobody"], pid=1)
    agree(gallery, plain, queries=1)
    with pytest.raises(GalleryError, match="nothing to update"):
        gallery.update(names)


def test_duplicate_ids_are_refused_replaced_or_skipped(filled):
    gallery, plain = filled
    vectors, rows = crops(3, seed=5), entries(3, seed=5, first=198)  # two are there, one is new
    with pytest.raises(DuplicateIdError, match=r"2 of 3 ids.*crop-00198"):
        add(gallery, vectors, rows)
    assert len(gallery) == 200
    skipped = add(gallery, vectors, rows, on_duplicate="skip")
    assert (skipped.added, skipped.replaced, skipped.skipped) == (1, 0, 2)
    plain.add(vectors[2:], rows[2:])
    agree(gallery, plain, queries=1)
    replaced = add(gallery, vectors, rows, on_duplicate="replace")
    assert (replaced.added, replaced.replaced, replaced.skipped) == (0, 3, 0)
    plain.add(vectors, rows)
    agree(gallery, plain, queries=1)
    with pytest.raises(DuplicateIdError, match="'twin' comes twice"):
        gallery.add(vectors[:2], ids=["twin", "twin"], modality="visible", model=MODEL)


def test_an_update_keeps_what_is_not_given_and_adds_nobody(filled):
    gallery, plain = filled
    vectors, rows = crops(3, seed=6), entries(3, seed=6, first=198)  # two are there, one is not
    given = [
        replace(rows[0], track=None, tags=()),
        replace(rows[1], pid=None, camera=None, time=None),
        rows[2],
    ]
    done = add(gallery, vectors, given, on_duplicate="update")
    assert (done.added, done.replaced, done.skipped) == (0, 2, 1)
    kept = []
    for entry in given[:2]:
        old, _ = plain.rows[entry.id]
        for name in ("pid", "camera", "time", "source", "track", "tags"):
            if getattr(entry, name) in (None, ()):
                entry = replace(entry, **{name: getattr(old, name)})
        kept.append(entry)
    assert kept != given[:2]
    plain.add(vectors[:2], kept)
    agree(gallery, plain, queries=1)


def test_ids_are_made_up_in_order(location, opened):
    gallery = opened(location, model=MODEL)
    ids = gallery.add(crops(50), modality="visible").ids
    assert len(set(ids)) == 50
    assert [e.id for e, _ in gallery.scan()] == list(ids)
    assert ids[7] in gallery
    assert "nobody" not in gallery


def test_another_model_or_dimension_is_refused(filled, location, opened):
    gallery, _ = filled
    vectors = crops(1)
    with pytest.raises(GalleryError, match=f"model '{MODEL}', these are of 'other'"):
        gallery.add(vectors, modality="visible", model="other")
    with pytest.raises(GalleryError, match="another gallery"):
        gallery.search(vectors[0], model="other")
    with pytest.raises(GalleryError, match="32 values, these have 16"):
        gallery.add(crops(1, dimension=16), modality="visible", model=MODEL)
    with pytest.raises(GalleryError, match="32 values, these have 16"):
        gallery.search(crops(1, dimension=16)[0])
    with pytest.raises(GalleryError, match="say which model"):
        gallery.add(vectors, modality="visible")
    with pytest.raises(GalleryError, match="another gallery"):
        opened(location, model="other")
    assert (gallery.settings.dimension, gallery.settings.model) == (32, MODEL)
    assert len(gallery) == 200


@pytest.mark.parametrize(
    ("spoil", "words"), [(np.nan, "NaN"), (np.inf, "NaN or infinity"), (0.0, "zero vector")]
)
def test_bad_vectors_are_refused_whole(filled, spoil, words):
    gallery, plain = filled
    vectors = crops(4, seed=3)
    vectors[2] = spoil
    with pytest.raises(GalleryError, match=f"embedding 2 .'n2'. of 4.*{words}"):
        gallery.add(vectors, ids=["n0", "n1", "n2", "n3"], modality="visible", model=MODEL)
    with pytest.raises(GalleryError, match=words):
        gallery.search(vectors[2])
    assert len(gallery) == len(plain.rows)


def test_equal_similarities_are_ordered_by_id(location, opened):
    gallery = opened(location)
    one, other = crops(2, people=2, seed=4)
    names = [f"{i * 7919 % 1000:03d}" for i in range(300)]
    gallery.add(np.tile(one, (300, 1)), ids=names, modality="visible", model=MODEL)
    gallery.add(other[None], ids=["zz"], modality="visible", model=MODEL)
    assert [h.id for h in gallery.search(one, 40)] == sorted(names)[:40]
    assert [h.id for h in gallery.search(other, 4)] == ["zz", *sorted(names)[:3]]


def test_many_entries_are_compared_one_by_one(location, opened):
    """More than Milvus lists in one answer, and than it needs before it searches new rows by an index of its own."""
    gallery, plain = opened(location), Plain()
    vectors, rows = crops(17_000, dimension=16, people=300), entries(17_000)
    add(gallery, vectors, rows)
    plain.add(vectors, rows)
    queries = crops(2, dimension=16, people=300)
    for where in (None, Where(pids=[3]), Where(cameras=["gate"], tags=["bag"], since=NOON)):
        for query, hits in zip(queries, gallery.search_each(queries, 50, where), strict=True):
            same(hits, plain.search(query, 50, where))
    long_same(gallery.search(queries[0], 3000), plain, queries[0], 3000)
    assert [e.id for e, _ in gallery.scan()] == list(plain.rows)
    some = list(plain.rows)[:16_500]
    assert gallery.count(Where(ids=some)) == len(some)
    assert gallery.remove(Where(ids=some)) == plain.remove(Where(ids=some)) == len(some)
    assert [e.id for e, _ in gallery.scan()] == list(plain.rows)


def test_several_crops_make_one_query(filled):
    gallery, plain = filled
    several = crops(4, seed=11)
    mean = several.astype(np.float64).mean(axis=0)
    same(gallery.search(several * [[1], [5], [0.1], [2]], 6), plain.search(mean, 6))
    for query, hits in zip(several, gallery.search_each(several, 6, Where(cameras=["gate"])), strict=True):
        same(hits, plain.search(query, 6, Where(cameras=["gate"])))


def test_groups_hold_a_track_each(filled):
    gallery, plain = filled
    query = crops(1, seed=9)[0]
    groups = gallery.search_groups(query, "track", top=5)
    best = {}
    for similarity, entry in plain.search(query, 200):
        best.setdefault(entry.track or entry.id, similarity)
    assert [g.key or g.hits[0].id for g in groups] == list(best)[:5]
    assert [g.similarity for g in groups] == pytest.approx(list(best.values())[:5], abs=1e-5)
    assert all(hit.track == g.key for g in groups for hit in g.hits)
    everyone = gallery.search_groups(query, "pid", top=1000)
    assert sum(len(g.hits) for g in everyone) == 200


@pytest.mark.parametrize("by", ["track", "pid"])
def test_pooled_groups_are_judged_by_all_their_entries(filled, by):
    gallery, plain = filled
    for query in crops(2, seed=9):
        for where in (None, Where(cameras=["gate", "hall"]), Where(modality="infrared")):
            members = {}
            for _, entry in plain.search(query, 200, where):
                value = getattr(entry, by)
                key = entry.id if value is None else (value, entry.modality)
                members.setdefault(key, []).append(plain.rows[entry.id][1])
            expected = {}
            for key, vectors in members.items():
                units = [v / np.linalg.norm(v) for v in np.float64(vectors)]
                mean = sum(units) / len(units)
                expected[key] = float(mean @ query / np.linalg.norm(mean) / np.linalg.norm(query))
            groups = gallery.search_groups(
                query, by, top=100, where=where, pooled=True
            )  # looks at all there are
            found = {g.hits[0].id if g.key is None else (g.key, g.hits[0].modality): g for g in groups}
            assert len(found) == len(groups) == len(expected)
            assert [g.similarity for g in groups] == pytest.approx(sorted(expected.values())[::-1], abs=1e-5)
            for key, one in found.items():
                assert one.similarity == pytest.approx(expected[key], abs=1e-5)
                assert one.pooled == len(members[key]) == len(one.hits)
            three = gallery.search_groups(query, by, top=3, where=where, pooled=True)
            assert {g.pooled for g in three} <= {len(rows) for rows in members.values()}
            nearest = gallery.search_groups(query, by, top=100, where=where)
            assert all(g.pooled == 0 and g.similarity == g.hits[0].similarity for g in nearest)
    for bad in (0, True, 10**6, 2.0):
        with pytest.raises(GalleryError, match="top="):
            gallery.search_groups(query, by, top=bad, pooled=True)


def test_expire_removes_what_is_older(filled):
    gallery, plain = filled
    now = NOON + timedelta(hours=5)
    assert gallery.expire("3h", now=now) == plain.remove(Where(until=now - timedelta(hours=3))) > 0
    agree(gallery, plain, queries=1)
    assert gallery.expire(timedelta(weeks=10**8)) == 0
    for bad in ("3 years", "", "0d", timedelta(0)):
        with pytest.raises(GalleryError, match="keep="):
            gallery.expire(bad)


def test_times_of_any_zone_come_back_in_utc(location, opened):
    gallery = opened(location)
    zone = timezone(timedelta(hours=5, minutes=30))
    moment = (NOON + timedelta(microseconds=123_457)).astimezone(zone)
    gallery.add(crops(1), ids=["a"], modality="infrared", time=moment, model=MODEL)
    assert gallery.get("a").time == moment
    assert gallery.get("a").time.tzinfo is timezone.utc
    assert gallery.count(Where(since=moment, until=moment + timedelta(microseconds=1))) == 1
    assert gallery.count(Where(until=moment)) == 0


def test_embeddings_come_back_at_unit_length(location, opened):
    gallery = opened(location)
    vectors = crops(3)
    gallery.add(vectors * 17, ids=list("abc"), modality="visible", model=MODEL)
    np.testing.assert_allclose(gallery.embedding("b"), vectors[1], atol=1e-6)
    with pytest.raises(GalleryError, match="no entry 'd'"):
        gallery.embedding("d")


def test_an_empty_gallery_answers(location, opened):
    gallery = opened(location)
    assert gallery.settings is None
    assert len(gallery) == 0
    assert gallery.search(crops(1)[0]) == []
    assert gallery.remove(Where(pids=[1])) == 0
    assert gallery.expire("1d") == 0
    assert list(gallery.scan()) == []
    assert gallery.add(np.empty((0, 32)), modality="visible", model=MODEL).ids == ()
    gallery.compact()
    assert gallery.info().entries == 0


def test_export_is_the_same_file(filled, tmp_path):
    gallery, plain = filled
    where = Where(cameras=["gate", "süd 1"])
    expected = [(e, v) for e, v in plain.rows.values() if e.camera in where.cameras]
    assert gallery.export(tmp_path / "x.parquet", where) == len(expected) > 0
    rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "x.parquet").to_pylist()
    for row, (entry, vector) in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row.pop("embedding"), vector, atol=1e-6)
        assert row == {**vars(entry), "modality": entry.modality.value, "tags": list(entry.tags)}
    assert gallery.export(tmp_path / "x.npz") == len(plain.rows)
    with np.load(tmp_path / "x.npz") as arrays:
        assert list(arrays["id"]) == list(plain.rows)
        assert str(arrays["model"]) == MODEL


def test_what_cannot_be_asked(filled, location, opened):
    gallery, _ = filled
    with pytest.raises(GalleryError, match="needs a condition"):
        gallery.remove(Where())
    for top in (0, -1, 10**6, True):
        with pytest.raises(GalleryError, match="top="):
            gallery.search(crops(1)[0], top)
    reader = opened(location, read_only=True)
    for change in (
        lambda: reader.remove(Where(pids=[3])),
        lambda: reader.update(["crop-00001"], pid=1),
        lambda: reader.add(crops(1), modality="visible", model=MODEL),
        reader.compact,
    ):
        with pytest.raises(GalleryError, match="read-only"):
            change()
    gallery.close()
    with pytest.raises(GalleryError, match="closed"):
        gallery.search(crops(1)[0])


def test_info_counts(filled):
    gallery, plain = filled
    assert gallery.remove(Where(cameras=["gate"])) == plain.remove(Where(cameras=["gate"]))
    info = gallery.info()
    assert info.entries == len(plain.rows)
    assert info.settings == gallery.settings
    assert gallery.check() == []


def test_texts_with_quotes_and_signs_are_only_texts(location, opened):
    gallery = opened(location)
    odd = ["it's", 'say "hi"', "a\\b", "%_", "camera in ['x'] or 1 == 1", "\u4eba\U0001f642", "a: b; c"]
    gallery.add(
        crops(7),
        ids=odd,
        camera=odd,
        track=odd,
        tags=[[text] for text in odd],
        modality="visible",
        model=MODEL,
    )
    for text in odd:
        entry = text.replace("\n", " ")
        for where in (Where(ids=[entry]), Where(cameras=[text]), Where(tracks=[text]), Where(tags=[text])):
            assert [h.id for h in gallery.search(crops(1)[0], 9, where)] == [entry]
    assert gallery.remove(Where(cameras=odd[:3])) == 3
    assert sorted(e.id for e, _ in gallery.scan()) == sorted(text.replace("\n", " ") for text in odd[3:])
