"""Random damage to every file of a gallery with a live write-ahead log: the right answer, or one clear refusal."""

from __future__ import annotations

import logging
import os
import random
import shutil

import numpy as np
import pytest

from fmcnet.errors import FmcnetError, GalleryDamagedError
from fmcnet.retrieval import Gallery, Where
from fmcnet.retrieval.backup import recover
from tests.retrieval.people import MODEL, WHERES, Plain, add, crops, entries

DAMAGES = int(os.environ.get("FMCNET_DAMAGES", "100"))
"""More by FMCNET_DAMAGES=2000."""
NEW = "crop-77777"
QUERY = crops(1, 16, seed=99)[0]


def made(folder, seed):
    """A gallery as a killed writer leaves it: rows in its main file, in its log, and in neither index file."""
    plain, kept = Plain(), folder.with_name(f"{folder.name}.kept")
    with Gallery(folder, index="hnsw", flush_rows=30) as gallery:
        for part, n in enumerate((20, 20, 20, 9)):
            first = 900 if part == 3 else 20 * part
            vectors, rows = crops(n, 16, seed=seed + part), entries(n, seed=seed + part, first=first)
            add(gallery, vectors, rows, thumbnails=[row.id.encode() for row in rows])
            plain.add(vectors, rows)
            if part == 1:
                gone = Where(ids=["crop-00007", "crop-00030"])
                plain.remove(gone)
                gallery.remove(gone)  # which empties the log
        gallery.update(["crop-00003"], camera="moved")
        plain.update(["crop-00003"], camera="moved")
        shutil.copytree(folder, kept)
    assert (kept / "gallery.sqlite-wal").stat().st_size
    return kept, plain


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    return made(root / "a", 0), made(root / "b", 50)


def damage(path, other, draw):
    """One damage of one file; what was done."""
    kind = draw.choice(
        ["byte"] * 6 + ["zeros", "cut", "longer", "empty", "missing", "folder", "noise", "swapped"]
    )
    data = bytearray(path.read_bytes())
    used = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))  # pages are mostly empty
    place = int(draw.choice(used)) if len(used) and draw.random() < 0.7 else draw.randrange(len(data) or 1)
    if kind == "byte" and data:
        data[place] ^= draw.randrange(1, 256)
    elif kind == "zeros":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    elif kind == "cut":
        del data[place:]
    elif kind == "longer":
        data += draw.randbytes(1000)
    elif kind == "empty":
        data.clear()
    elif kind == "noise":
        data[:] = draw.randbytes(len(data))
    elif kind == "swapped":
        twin = next(
            (
                p
                for p in other.iterdir()
                if p.name.split("-")[0] == path.name.split("-")[0] and p.name[-4:] == path.name[-4:]
            ),
            None,
        )
        data[:] = twin.read_bytes() if twin else b"other"
    path.write_bytes(data)
    if kind in ("missing", "folder"):
        path.unlink()
    if kind == "folder":
        path.mkdir()
    return f"{path.name}: {kind} at {place}"


def right(gallery, plain):
    """Everything that a gallery answers is the dictionary's."""
    assert len(gallery) == len(plain.rows)
    found = {entry.id: (entry, vector) for entry, vector in gallery.scan()}
    assert {name: entry for name, (entry, _) in found.items()} == {n: e for n, (e, _) in plain.rows.items()}
    got, wanted = (np.stack([rows[name][1] for name in plain.rows]) for rows in (found, plain.rows))
    assert np.abs(got - wanted).max() < 1e-6
    for where in (None, WHERES[1], WHERES[3]):
        hits, expected = gallery.search(QUERY, 400, where), plain.search(QUERY, 400, where)
        assert [hit.id for hit in hits] == [entry.id for _, entry in expected]
        assert max(abs(hit.similarity - value) for hit, (value, _) in zip(hits, expected, strict=True)) < 1e-5
    for name in ("crop-00003", "crop-00045", "crop-00905"):
        assert gallery.get(name) == plain.rows[name][0]
        assert gallery.thumbnail(name) == name.encode()


def changed(gallery, plain):
    vector, row = crops(1, 16, seed=3), entries(1, first=int(NEW[-5:]))
    add(gallery, vector, row, thumbnails=[b"new"])
    plain.add(vector, row)
    gallery.remove(Where(ids=["crop-00011"]))
    plain.remove(Where(ids=["crop-00011"]))


def copy_of(plain):
    new = Plain()
    new.rows = dict(plain.rows)
    return new


def faults_of_recovery(folder, plain, what):
    """What is wrong with what `recover` makes of it: nothing, or one line, or entries that were there."""
    new = folder.with_name("recovered")
    try:
        recover(folder, new, MODEL)
        with Gallery(new, read_only=True) as gallery:
            for entry, vector in gallery.scan():
                vectors = [vector - kept for _, kept in plain.rows.values()]
                changed = not entry.id.startswith("crop") or entry.id == "crop-00003"  # the log had it
                known = changed or plain.rows[entry.id][0] == entry
                if not known or min(np.abs(one).max() for one in vectors) > 1e-6:
                    return [f"{what}: recovered {entry}"]
    except GalleryDamagedError:
        pass
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return []


def test_it_answers_right_or_refuses(two, tmp_path, small_graphs, caplog):
    caplog.set_level(logging.CRITICAL, "fmcnet")
    (whole, plain), (other, _) = two
    names = sorted(path.name for path in whole.iterdir() if path.name != "writer.lock")
    refused, faults = 0, []
    for seed in range(DAMAGES):
        draw = random.Random(seed)
        folder = tmp_path / f"g{seed}"
        shutil.copytree(whole, folder)
        what = damage(folder / draw.choice(names), other, draw)
        expected = copy_of(plain)
        try:
            if draw.random() < 0.25:
                with Gallery(folder) as gallery:
                    right(gallery, expected)
                    changed(gallery, expected)
                    right(gallery, expected)
            with Gallery(folder, read_only=True) as gallery:
                right(gallery, expected)
        except FmcnetError as error:
            refused += 1
            if "swapped" not in what and draw.random() < 0.3:
                faults += faults_of_recovery(folder, expected, what)
            if "\n" in str(error) or str(folder) not in str(error):
                faults.append(f"damage {seed}, {what}: {error}")
        except Exception as error:
            faults.append(f"damage {seed}, {what}: {error!r}"[:300])
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)
    assert DAMAGES / 20 < refused < DAMAGES / 2
