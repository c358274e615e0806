"""Made-up people for the gallery's tests, and a gallery that is a plain dictionary: slow, obvious, right."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from fmcnet.retrieval import Entry, Hit, Where
from fmcnet.types import Modality

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
MODEL = "sha256:abc"


def crops(n, dimension=32, people=7, seed=0):
    """(n, dimension) unit vectors around a few centres."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((people, dimension))
    vectors = centres[random.integers(people, size=n)] + 0.7 * random.standard_normal((n, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def entries(n, seed=0, first=0):
    """Entries with every kind of value, unknown ones too."""
    random = np.random.default_rng(seed + 1000)

    def some(values):
        return values[int(random.integers(len(values)))]

    return [
        Entry(
            f"crop-{first + i:05d}",
            some(list(Modality)),
            some([None, "3", "anna", str(2**40)]),
            some([None, "gate", "hall", "süd 1"]),
            some([None, NOON + timedelta(minutes=int(random.integers(600)), microseconds=1)]),
            some([None, f"/crops/{i}.jpg"]),
            some([None, "t1", "t2", "t3"]),
            some([(), ("red",), ("bag", "red"), ("tall",)]),
        )
        for i in range(n)
    ]


def add(gallery, vectors, rows, **options):
    """Add entries given as such."""
    names = ("modality", "pid", "camera", "time", "source", "track", "tags")
    values = {name: [getattr(row, name) for row in rows] for name in names}
    return gallery.add(vectors, ids=[row.id for row in rows], model=MODEL, **values, **options)


def matches(entry, where):
    """Each condition of `Where`, spelled out."""
    if where is None:
        return True
    timed = entry.time is not None
    return (
        (where.ids is None or entry.id in where.ids)
        and (where.pids is None or entry.pid in where.pids)
        and (where.cameras is None or entry.camera in where.cameras)
        and (where.tracks is None or entry.track in where.tracks)
        and (where.modality is None or entry.modality is where.modality)
        and (where.since is None or (timed and entry.time >= where.since))
        and (where.until is None or (timed and entry.time < where.until))
        and (where.tags is None or set(where.tags) <= set(entry.tags))
    )


class Plain:
    """A dictionary of (entry, vector)."""

    def __init__(self):
        self.rows = {}

    def add(self, vectors, rows):
        for vector, entry in zip(vectors, rows, strict=True):
            self.rows.pop(entry.id, None)  # a replaced one goes to the end
            self.rows[entry.id] = (entry, vector.astype(np.float64))

    def update(self, ids, **change):
        for name in ids:
            entry, vector = self.rows[name]
            self.rows[name] = (replace(entry, **change), vector)

    def remove(self, where):
        gone = [name for name, (entry, _) in self.rows.items() if matches(entry, where)]
        for name in gone:
            del self.rows[name]
        return len(gone)

    def search(self, query, top, where=None):
        """[(similarity, entry)], best first, ties by id."""
        query = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
        scored = [(float(v @ query), e) for e, v in self.rows.values() if matches(e, where)]
        return sorted(scored, key=lambda pair: (-round(pair[0], 6), pair[1].id))[:top]


WHERES = [
    None,
    Where(cameras=["gate", "süd 1"]),
    Where(cameras=[]),
    Where(modality=Modality.INFRARED, tags=["red"]),
    Where(since=NOON + timedelta(hours=2), until=NOON + timedelta(hours=5)),
    Where(until=NOON + timedelta(hours=1)),
    Where(pids=[2**40, 3, 99]),
    Where(tracks=["t2"], cameras=["hall", "gate"]),
    Where(tags=["bag", "red"]),
    Where(ids=["crop-00001", "crop-00007", "nobody"]),
]


def same(hits, expected, tolerance=1e-5):
    """A gallery's answer is the plain one: entries, similarities, order."""

    assert [hit.similarity for hit in hits] == [pytest.approx(value, abs=tolerance) for value, _ in expected]
    assert [replace(hit, similarity=0.0) for hit in hits] == [
        Hit(similarity=0.0, **vars(entry)) for _, entry in expected
    ]


def long_same(hits, plain, query, top, where=None):
    """`same` for lists so long that some similarities differ by less than float32 tells: those in any order."""
    by_id = {entry.id: value for value, entry in plain.search(query, 10**6, where)}
    best = sorted(by_id.values(), reverse=True)[:top]
    assert [hit.similarity for hit in hits] == pytest.approx(best, abs=1e-6)
    assert [hit.similarity for hit in hits] == pytest.approx([by_id[hit.id] for hit in hits], abs=1e-6)
    assert len({hit.id for hit in hits}) == len(hits)


def answers(gallery, plain, query, top, where=None):
    """The dictionary's answer, by whatever index the gallery has, and compared with every entry."""
    expected = plain.search(query, top, where)
    same(gallery.search(query, top, where), expected)
    same(gallery.search(query, top, where, exact=True), expected)
