"""The gallery against bare FAISS, in one run: adding, searching, filtering, opening, disk.

    python benchmarks/gallery.py                        # 10k, 100k, 1M x 512 (hours, 12 GB of disk)
    python benchmarks/gallery.py --rows 2000            # a smoke run
    python benchmarks/gallery.py --rows 1000000 --add-threads 2 --compact-up-to 100000   # two graphs, not three

Results go to benchmarks/gallery.json, with machine and date; a case of so many rows replaces the one that is there.
Searches take one thread; each is timed alone, those that read all rows in turn, then the others in turn: after a scan
of all rows whatever comes next finds the caches cold;
`recall` is that of the first 20 against FAISS flat of the allowed rows. `ratios` are what is to be compared between
machines. FAISS's HNSW is one graph of all rows, as one would have it without
the gallery; where filtered, FAISS's own filter (IDSelector) is at work in it.

The embeddings are made up after those of the shipped model (fmcnet-generated, 2,611 crops of 250 identities of a
generated world). There, cosines are 0.51 between crops of one person within a modality, 0.25 across, 0.04 +- 0.14
between persons; 44 of 256 dimensions carry the variance (participation ratio), and of the 36 entries nearest to
an infrared crop 73 % are infrared, 36 % being so. Here: Gaussian parts in `WITHIN` dimensions, a person's own, a
person's own in this modality, a track's and a crop's, of variances `PARTS`, a constant of the modality, and a little
noise in all dimensions; `cosines` in the results says what came of it. Vectors that fill all dimensions evenly are
no model of embeddings: between those all distances are alike, and every graph fails.

A track is ten rows, one person before one camera in one modality, ten seconds; people have two tracks on average,
at random times; seven cameras of ten are visible. Queries are further infrared crops of such people.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.retrieval import Gallery, Where, faiss_index
from fmcnet.retrieval.faiss_index import EF_BUILD, LINKS

faiss = faiss_index.faiss()

HERE = Path(__file__).parent
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
BATCH = 5_000
TOP = 20
TRACK = 10
CAMERAS = [f"camera-{i}" for i in range(10)]
INFRARED = 7
"""Cameras from this one on are infrared."""
WITHIN = 48
PARTS = {"person": 0.25, "person in a modality": 0.27, "track": 0.24, "crop": 0.24}
MODALITY = 0.13
"""Length of the constant between the modalities."""
NOISE = 0.02


class World:
    """Rows in the order of their adding.

    Attributes:
        vectors: (rows, dimension) of unit length. cameras, seconds, pids, kinds: (rows,); kind 1 is infrared.
    """

    def __init__(self, rows, dimension):
        self.random = np.random.default_rng(0)
        people, tracks = max(rows // (2 * TRACK), 1), -(-rows // TRACK)
        basis = np.linalg.qr(self.random.standard_normal((dimension, min(WITHIN, dimension))))[0]
        self.basis = basis.astype(np.float32).T
        self.person = self._draw("person", people)
        self.shape = [self._draw("person in a modality", people) for _ in range(2)]
        self.offset = self._draw("person", 2)
        self.offset *= MODALITY / np.linalg.norm(self.offset[0] - self.offset[1])
        pids, cameras = self.random.integers(people, size=tracks), self.random.integers(10, size=tracks)
        each = np.arange(rows) // TRACK
        self.pids, self.cameras = pids[each], cameras[each]
        self.seconds = np.arange(rows)
        self.kinds = (self.cameras >= INFRARED).astype(np.int64)
        self.vectors = np.empty((rows, dimension), np.float32)
        for start in range(0, rows, 10_000):
            span = slice(start, start + 10_000)
            self.vectors[span] = self.crops(self.pids[span], self.kinds[span])

    def _draw(self, part, count):
        scale = np.sqrt(PARTS[part] / len(self.basis))
        return self.random.standard_normal((count, len(self.basis)), np.float32) * np.float32(scale)

    def crops(self, pids, kinds):
        """New crops of people; each run of `TRACK` rows is a track."""
        inside = self.person[pids] + np.where(kinds[:, None] == 1, self.shape[1][pids], self.shape[0][pids])
        inside += self.offset[kinds] + self._draw("crop", len(pids))
        inside += np.repeat(self._draw("track", -(-len(pids) // TRACK)), TRACK, axis=0)[: len(pids)]
        out = inside @ self.basis
        noise = self.random.standard_normal(out.shape, np.float32)
        out += noise * np.float32(np.sqrt(NOISE / out.shape[1]))
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def queries(self, count):
        """Infrared crops that are not in the gallery, each of a track of its own."""
        pids = np.repeat(self.random.integers(len(self.person), size=count), TRACK)
        return np.ascontiguousarray(self.crops(pids, np.ones(len(pids), np.int64))[::TRACK])

    def cosines(self):
        """Mean and deviation of similarities, of 2,000 rows."""
        some = self.random.choice(len(self.vectors), min(2000, len(self.vectors)), replace=False)
        some = np.concatenate([some, (some // TRACK * TRACK + (some + 5) % TRACK) % len(self.vectors)])
        value, pid, kind = self.vectors[some] @ self.vectors[some].T, self.pids[some], self.kinds[some]
        same, alike = pid[:, None] == pid, kind[:, None] == kind
        apart = some[:, None] != some
        cases = {
            "same person, same modality": same & alike & apart,
            "same person, across": same & ~alike,
            "other person": ~same,
        }
        return {
            name: [round(float(value[at].mean()), 3), round(float(value[at].std()), 3)]
            for name, at in cases.items()
            if at.any()
        }


def seconds(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def spread_of(times):
    """p50 and p95 in milliseconds."""
    return {
        "p50_ms": round(float(np.percentile(times, 50)) * 1e3, 3),
        "p95_ms": round(float(np.percentile(times, 95)) * 1e3, 3),
    }


def in_turn(queries, contenders):
    """Each query to each contender in turn: {name: ([ids of each query], [seconds])}."""
    found: dict[str, tuple[list[Any], list[float]]] = {name: ([], []) for name in contenders}
    for query in queries:
        for name, search in contenders.items():
            ids, took = seconds(lambda search=search, query=query: search(query))
            found[name][0].append(ids)
            found[name][1].append(took)
    return found


def judged(found, truth):
    """Times, and recall against the contender `truth`."""
    right = found[truth][0]
    return {
        name: spread_of(times)
        | {
            "recall": round(
                float(
                    np.mean([len(set(a) & set(b)) / max(len(b), 1) for a, b in zip(ids, right, strict=True)])
                ),
                4,
            )
        }
        for name, (ids, times) in found.items()
    }


def rows_of(hits):
    return [int(hit.id) for hit in hits]


def said(text):
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def ratio(a, b):
    return round(a / b, 3)


def looking_at(gallery, candidates, query, where):
    """A search whose graph looks at so many candidates."""
    before, faiss_index.EF_SEARCH = faiss_index.EF_SEARCH, candidates
    try:
        return rows_of(gallery.search(query, TOP, where))
    finally:
        faiss_index.EF_SEARCH = before


def filled(world, path, dtype, compact):
    """A gallery of the world's rows, and what making it took; one that is there with its `.json` is taken."""
    note, rows, took = path.with_suffix(".json"), len(world.vectors), {}
    gallery = Gallery(path, model="benchmark", dtype=dtype)
    if note.is_file():
        return gallery, json.loads(note.read_text(encoding="utf-8"))

    def fill():
        for start in range(0, rows, BATCH):
            span = range(start, min(start + BATCH, rows))
            gallery.add(
                world.vectors[start : start + BATCH],
                ids=[f"{i:08d}" for i in span],
                modality=["infrared" if world.kinds[i] else "visible" for i in span],
                camera=[CAMERAS[world.cameras[i]] for i in span],
                time=[START + timedelta(seconds=int(world.seconds[i])) for i in span],
                pid=[int(world.pids[i]) for i in span],
                track=[f"track-{i // TRACK}" for i in span],
            )

    took["add_rows_per_s"] = round(rows / seconds(fill)[1])
    if compact:  # it takes into the graph what it misses, too
        took["compact_s"] = round(seconds(gallery.compact)[1], 2)
    note.write_text(json.dumps(took), encoding="utf-8")
    return gallery, took


def case(rows, dimension, count, folder, dtype="float32", threads=1, bare=True, compact=True, others=()):
    faiss.omp_set_num_threads(threads)
    world = World(rows, dimension)
    vectors, queries = world.vectors, world.queries(count)
    out = {"rows": rows, "dimension": dimension, "queries": count, "dtype": dtype}
    out |= {
        "candidates": faiss_index.EF_SEARCH,
        "threads": {"add": threads, "search": 1},
        "cosines": world.cosines(),
    }
    ratios = out["ratios"] = {}

    path = folder / f"{rows}.gallery"
    gallery, took = filled(world, path, dtype, compact)
    out |= took
    out["index"] = gallery.info().index
    out["unindexed"] = gallery.info().unindexed
    out["disk_bytes"] = gallery.info().bytes
    ratios["disk over embeddings"] = ratio(gallery.info().bytes, rows * vectors[0].nbytes)
    gallery.close()

    said(f"{rows}: added")
    if bare:
        hnsw = faiss.IndexHNSWFlat(dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
        hnsw.hnsw.efConstruction, hnsw.hnsw.efSearch = EF_BUILD, faiss_index.EF_SEARCH
        _, took = seconds(lambda: hnsw.add(vectors))
        out["faiss_hnsw_add_rows_per_s"] = round(rows / took)
        ratios["add rate over FAISS HNSW"] = ratio(out["add_rows_per_s"], out["faiss_hnsw_add_rows_per_s"])
        flat = faiss.downcast_index(hnsw.storage)  # a flat index of its own; one copy is enough
    else:
        flat = faiss.IndexFlatIP(dimension)
        flat.add(vectors)
    faiss.omp_set_num_threads(1)
    said(f"{rows}: searching")

    opened, first = [], []
    for _ in range(5):
        gallery, took = seconds(lambda: Gallery(path))
        opened.append(took)
        first.append(seconds(lambda gallery=gallery: gallery.search(queries[0], TOP))[1])
        gallery.close()
    out["open_ms"] = round(float(np.median(opened)) * 1e3, 2)
    out["first_search_ms"] = round(float(np.median(first)) * 1e3, 2)

    everything = np.ones(rows, np.bool_)
    last_fifth = START + timedelta(seconds=rows * 4 // 5)
    late, day = world.seconds >= rows * 4 // 5, world.kinds == 0
    few = Where(cameras=CAMERAS[:1], since=START + timedelta(seconds=rows * 9 // 10))
    cases = {
        "unfiltered": (None, everything),
        "visible": (Where(modality="visible"), day),
        "infrared": (Where(modality="infrared"), ~day),
        "four cameras, a fifth of the time": (
            Where(cameras=CAMERAS[2:6], since=last_fifth),
            late & (world.cameras >= 2) & (world.cameras < 6),
        ),
        "visible, a fifth of the time": (Where(modality="visible", since=last_fifth), late & day),
        "five cameras": (Where(cameras=CAMERAS[:5]), world.cameras < 5),
        "one camera, a tenth of the time": (few, (world.cameras == 0) & (world.seconds >= rows * 9 // 10)),
    }
    with Gallery(path) as gallery:
        for name, (where, mask) in cases.items():
            bits = np.packbits(mask, bitorder="little")
            chosen = None if where is None else faiss.IDSelectorBitmap(bits)
            contenders = {
                "faiss_flat": lambda q, chosen=chosen: flat.search(
                    q[None], TOP, params=faiss.SearchParameters(sel=chosen)
                )[1][0].tolist(),
                "faiss_hnsw": lambda q, chosen=chosen: hnsw.search(
                    q[None],
                    TOP,
                    params=faiss.SearchParametersHNSW(sel=chosen, efSearch=faiss_index.EF_SEARCH),
                )[1][0].tolist(),
                "gallery_exact": lambda q, where=where: rows_of(gallery.search(q, TOP, where, exact=True)),
                "gallery": lambda q, where=where: rows_of(gallery.search(q, TOP, where)),
            }
            for candidates in others if out["index"] == "hnsw" else ():
                contenders[f"gallery, {candidates} candidates"] = (
                    lambda q, where=where, candidates=candidates: looking_at(gallery, candidates, q, where)
                )
            if not bare:
                del contenders["faiss_hnsw"]
            found: dict[str, Any] = {}
            for kind in (
                ("faiss_flat", "gallery_exact"),
                contenders.keys() - {"faiss_flat", "gallery_exact"},
            ):
                some = {one: search for one, search in contenders.items() if one in kind}
                in_turn(queries[:3], some)  # warm
                found |= in_turn(queries, some)
            found = judged(found, "faiss_flat")
            out[name] = {"allowed": int(mask.sum())} | found
            for one, other in (
                ("gallery_exact", "faiss_flat"),
                ("gallery", "faiss_flat"),
                ("gallery", "faiss_hnsw"),
            ):
                if other not in found:
                    continue
                ratios[f"{name}: {one} over {other}, p50"] = ratio(
                    found[one]["p50_ms"], found[other]["p50_ms"]
                )
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--add-threads", type=int, default=1, help="that build graphs; searches take one")
    parser.add_argument(
        "--bare-hnsw-up-to",
        type=int,
        default=1_000_000,
        metavar="ROWS",
        help="above: no bare HNSW",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="of galleries, made once and searched again"
    )
    parser.add_argument("--compact-up-to", type=int, default=1_000_000, metavar="ROWS")
    parser.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[],
        help="that searches of a graph look at, beside the default",
    )
    parser.add_argument("--out", type=Path, default=HERE / "gallery.json")
    given = parser.parse_args()
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "faiss": faiss.__version__,
    }
    held = json.loads(given.out.read_text(encoding="utf-8"))["cases"] if given.out.is_file() else []
    with contextlib.ExitStack() as stack:
        folder = given.keep or stack.enter_context(tempfile.TemporaryDirectory(dir=given.out.parent))
        for rows in given.rows:
            found = case(
                rows,
                given.dimension,
                given.queries,
                Path(folder),
                given.dtype,
                given.add_threads,
                rows <= given.bare_hnsw_up_to,
                rows <= given.compact_up_to,
                given.candidates,
            )
            print(json.dumps(found, indent=1), flush=True)
            held = sorted([*(c for c in held if c["rows"] != rows), found], key=lambda c: c["rows"])
            given.out.write_text(json.dumps({**report, "cases": held}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
