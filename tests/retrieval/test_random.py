"""Random operations by two writers in turn, read by a third: always the plain dictionary's answers."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from fmcnet.retrieval import Gallery, Where
from tests.retrieval.people import NOON, WHERES, Plain, add, answers, crops, entries


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {"flush_rows": 40}),
        (1, {"flush_rows": 10**6}),
        (2, {"flush_rows": 25, "index": "hnsw"}),
        (3, {"flush_rows": 60, "index": "auto", "hnsw_above": 150}),
    ],
)
@pytest.mark.usefixtures("small_graphs")
def test_any_order_of_operations(tmp_path, seed, options):
    random = np.random.default_rng(seed)
    path = tmp_path / "people.gallery"
    galleries = [Gallery(path, **options), Gallery(path, **options), Gallery(path, create=False)]
    plain, made = Plain(), 0
    for step in range(60):
        writer = galleries[int(random.integers(2))]
        match int(random.integers(9)):
            case 0 | 1 | 2 | 3:
                n = int(random.integers(1, 50))
                vectors, rows = crops(n, seed=step), entries(n, seed=step, first=made)
                add(writer, vectors, rows)
                plain.add(vectors, rows)
                made += n
            case 4 if made:
                n = min(made, int(random.integers(1, 10)))
                first = int(random.integers(made - n + 1))
                vectors, rows = crops(n, seed=step + 500), entries(n, seed=step + 500, first=first)
                add(writer, vectors, rows, on_duplicate="replace")
                plain.add(vectors, rows)
            case 5:
                first = int(random.integers(max(made, 1)))
                where = Where(ids=[f"crop-{i:05d}" for i in range(first, first + 7)])
                assert writer.remove(where) == plain.remove(where)
            case 6 if plain.rows:
                names = [
                    str(n) for n in random.choice(sorted(plain.rows), min(5, len(plain.rows)), replace=False)
                ]
                change = {
                    "camera": f"new {step}",
                    "time": NOON + timedelta(minutes=step),
                    "tags": ("red", str(step)),
                }
                writer.update(names, **change)
                plain.update(names, **{**change, "tags": tuple(sorted(change["tags"]))})
            case 7 if step % 3 == 0:
                writer.compact()
            case 8:
                turn = int(random.integers(2))
                galleries[turn].close()
                galleries[turn] = Gallery(path, **options)
        where = WHERES[step % len(WHERES)]
        query = crops(1, seed=step + 99)[0]
        for gallery in galleries:
            answers(gallery, plain, query, 7, where)
            assert len(gallery) == len(plain.rows)
    assert [e for e, _ in galleries[2].scan()] == [e for e, _ in plain.rows.values()]
    for entry, vector in galleries[2].scan(WHERES[1]):
        np.testing.assert_allclose(vector, plain.rows[entry.id][1], atol=1e-6)
    assert galleries[0].check() == []
    for gallery in galleries:
        gallery.close()
