"""The gallery against bare FAISS, in one run: adding, searching, filtering, opening, disk.

    OMP_NUM_THREADS=1 python benchmarks/gallery.py                     # 10k, 100k, 1M x 512 (an hour, 12 GB of disk)
    OMP_NUM_THREADS=1 python benchmarks/gallery.py --rows 2000         # a smoke run

Results go to benchmarks/gallery.json, with machine and date. The embeddings are made up: identities of about 20 crops
around random centres. Queries are further crops of such identities. Each search is timed alone, gallery and FAISS in
turn; `recall` is that of the first 20 against FAISS flat (of the allowed rows, where filtered).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import faiss
import numpy as np

from fmcnet.gallery import Gallery, Where
from fmcnet.gallery.embedded.nearest import EF_BUILD, EF_SEARCH, LINKS, selector

HERE = Path(__file__).parent
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
BATCH = 5_000
TOP = 20
CAMERAS = [f"camera-{i}" for i in range(10)]


def crops(rows, dimension, seed, spread=0.9):
    """(rows, dimension) unit vectors: a centre an identity, the noise `spread` times as long as the centre."""
    people = max(rows // 20, 1)
    centres = np.random.default_rng(0).standard_normal((people, dimension), dtype=np.float32)
    random = np.random.default_rng(seed + 1)
    out = np.empty((rows, dimension), np.float32)
    for start in range(0, rows, 50_000):
        n = min(50_000, rows - start)
        part = centres[random.integers(people, size=n)] + spread * random.standard_normal(
            (n, dimension), np.float32
        )
        out[start : start + n] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def queries_of(rows, dimension, count):
    """Crops of the same identities that are not in the gallery."""
    people = max(rows // 20, 1)
    centres = np.random.default_rng(0).standard_normal((people, dimension), dtype=np.float32)
    random = np.random.default_rng(99)
    made = centres[random.integers(people, size=count)]
    made = made + 0.9 * random.standard_normal((count, dimension), np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


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
    found = {name: ([], []) for name in contenders}
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


def case(rows, dimension, count, folder, dtype="float32"):
    vectors, queries = crops(rows, dimension, 0), queries_of(rows, dimension, count)
    cameras = np.arange(rows) % 10
    minutes = np.arange(rows)
    out = {"rows": rows, "dimension": dimension, "queries": count, "dtype": dtype}

    path = folder / f"{rows}.gallery"
    gallery = Gallery(path, model="benchmark", dtype=dtype)

    def fill():
        for start in range(0, rows, BATCH):
            span = range(start, min(start + BATCH, rows))
            gallery.add(
                vectors[start : start + BATCH],
                ids=[f"{i:08d}" for i in span],
                modality=["visible" if i % 3 else "infrared" for i in span],
                camera=[CAMERAS[cameras[i]] for i in span],
                time=[START + timedelta(minutes=int(minutes[i])) for i in span],
            )

    _, took = seconds(fill)
    out["add_rows_per_s"] = round(rows / took)
    _, took = seconds(gallery.compact)
    out["compact_s"] = round(took, 2)
    out["index"] = gallery.info().index
    out["disk_bytes"] = gallery.info().bytes
    out["disk_per_embedding_bytes"] = round(gallery.info().bytes / (rows * vectors[0].nbytes), 3)
    gallery.close()

    flat = faiss.IndexFlatIP(dimension)
    _, took = seconds(lambda: flat.add(vectors))
    out["faiss_flat_add_rows_per_s"] = round(rows / took)
    hnsw = faiss.IndexHNSWFlat(dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efConstruction, hnsw.hnsw.efSearch = EF_BUILD, EF_SEARCH
    _, took = seconds(lambda: hnsw.add(vectors))
    out["faiss_hnsw_add_rows_per_s"] = round(rows / took)

    opened = []
    for _ in range(5):
        gallery, took = seconds(lambda: Gallery(path))
        opened.append(took)
        _, first = seconds(lambda gallery=gallery: gallery.search(queries[0], TOP))
        gallery.close()
    out["open_ms"] = round(float(np.median(opened)) * 1e3, 2)
    out["first_search_ms"] = round(first * 1e3, 2)

    with Gallery(path) as gallery:
        contenders = {
            "faiss_flat": lambda q: flat.search(q[None], TOP)[1][0].tolist(),
            "gallery_exact": lambda q: rows_of(gallery.search(q, TOP, exact=True)),
            "faiss_hnsw": lambda q: hnsw.search(q[None], TOP)[1][0].tolist(),
            "gallery": lambda q: rows_of(gallery.search(q, TOP)),
        }
        in_turn(queries[:3], contenders)  # warm
        out["unfiltered"] = judged(in_turn(queries, contenders), "faiss_flat")
        exact, bare = out["unfiltered"]["gallery_exact"], out["unfiltered"]["faiss_flat"]
        out["exact_over_faiss_flat"] = round(exact["p50_ms"] / bare["p50_ms"], 3)
        filters = {
            "five_cameras_50_percent": (Where(cameras=CAMERAS[:5]), cameras < 5),
            "infrared_33_percent": (Where(modality="infrared"), np.arange(rows) % 3 == 0),
            "last_tenth_of_time": (
                Where(since=START + timedelta(minutes=rows * 9 // 10)),
                minutes >= rows * 9 // 10,
            ),
            "one_camera_1_percent_of_time": (
                Where(cameras=CAMERAS[:1], since=START + timedelta(minutes=rows * 9 // 10)),
                (cameras == 0) & (minutes >= rows * 9 // 10),
            ),
        }
        for name, (where, mask) in filters.items():
            chosen = faiss.SearchParameters(sel=selector(mask))
            contenders = {
                "faiss_flat": lambda q, chosen=chosen: flat.search(q[None], TOP, params=chosen)[1][
                    0
                ].tolist(),
                "gallery": lambda q, where=where: rows_of(gallery.search(q, TOP, where)),
            }
            out[name] = {"allowed": int(mask.sum())} | judged(in_turn(queries, contenders), "faiss_flat")
    shutil.rmtree(path)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--out", type=Path, default=HERE / "gallery.json")
    given = parser.parse_args()
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": faiss.omp_get_max_threads(),
        "python": sys.version.split()[0],
        "faiss": faiss.__version__,
        "cases": [],
    }
    with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
        for rows in given.rows:
            report["cases"].append(case(rows, given.dimension, given.queries, Path(folder), given.dtype))
            print(json.dumps(report["cases"][-1], indent=1), flush=True)
            given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
