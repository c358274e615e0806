"""What a gallery of so many crops costs: building, disk, memory, latency; and what encoding costs.

    python benchmarks/capacity.py                           # 0.1 and 0.3 million x 512
    python benchmarks/capacity.py --rows 1000000 --keep G   # hours, and 6 GB of disk
    python benchmarks/capacity.py --rows 2000 --queries 20  # a smoke run

Results go to benchmarks/capacity.json; a case of so many rows and that index replaces
the one that is there. The embeddings are
those of benchmarks/gallery.py. One thread builds and searches. Times are CPU seconds of the process beside wall
seconds: on a machine that others use, the CPU seconds are what a core of one's own would take. Memory is that of a
fresh process that has opened the gallery and searched, with the pages of mapped files that it touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from gallery import TOP, World, filled, spread_of
from machine import processor

from fmcnet.inference.encoder import Encoder
from fmcnet.models.shipped import shipped_models
from fmcnet.retrieval import Gallery, Where

HERE = Path(__file__).parent
ENCODED = 64


def timed(work):
    """The result, CPU seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def searched(path, queries):
    """In a process of its own: opening, latencies and memory, as a dictionary."""
    file = path.with_suffix(".npy")
    np.save(file, queries)
    command = [sys.executable, __file__, "--search", str(path), "--queries-file", str(file)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def search(path, queries):
    """What `searched` runs."""
    faiss.omp_set_num_threads(1)
    before = resident()
    gallery, cpu, wall = timed(lambda: Gallery(path, read_only=True))
    found = {"open_s": round(wall, 3), "open_cpu_s": round(cpu, 3)}
    cases = {"all": None, "infrared": Where(modality="infrared"), "one camera": Where(cameras=["camera-1"])}
    for name, where in cases.items():
        for query in queries[:3]:
            gallery.search(query, TOP, where)  # warm
        each = [
            timed(lambda query=query, where=where: gallery.search(query, TOP, where)) for query in queries
        ]
        found[name] = {
            "cpu": spread_of([cpu for _, cpu, _ in each]),
            "wall": spread_of([w for *_, w in each]),
        }
    gallery.close()
    return found | {"memory_bytes": resident() - before, "process_bytes": resident()}


def resident():
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def case(rows, dimension, count, folder, index):
    faiss.omp_set_num_threads(1)
    world, path = World(rows, dimension), folder / f"{rows}-{index}.gallery"
    Gallery(path, index=index).close()  # the choice stays with the gallery
    (gallery, _), cpu, wall = timed(lambda: filled(world, path, "float32", compact=False))
    out = {"rows": rows, "dimension": dimension, "queries": count, "index": gallery.info().index}
    out |= {"build_cpu_s": round(cpu, 1), "build_s": round(wall, 1)}
    out["unindexed"] = gallery.info().unindexed
    gallery.close()
    with Gallery(path, read_only=True) as opened:
        out["disk_bytes"] = opened.info().bytes
    out["disk_bytes_per_crop"] = round(out["disk_bytes"] / rows)
    return out | searched(path, world.queries(count))


def encoding():
    """CPU milliseconds an image of the shipped models, one thread, by PyTorch; and values of an embedding."""
    images = list(np.random.default_rng(0).integers(0, 255, (ENCODED, 128, 64, 3), np.uint8))
    found = {}
    for name in shipped_models():
        encoder = Encoder.from_pretrained(name, device="cpu", threads=1)
        encoder.encode(images[:8], "infrared", progress=False)
        result, cpu, wall = timed(lambda encoder=encoder: encoder.encode(images, "infrared", progress=False))
        found[name] = {
            "values": result.features.shape[1],
            "cpu_ms": round(1e3 * cpu / ENCODED, 2),
            "wall_ms": round(1e3 * wall / ENCODED, 2),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--index", choices=["auto", "exact"], default="auto", help="exact: builds no graph")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="of galleries, made once and searched again"
    )
    parser.add_argument("--out", type=Path, default=HERE / "capacity.json")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--queries-file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search:
        print(json.dumps(search(given.search, np.load(given.queries_file))))
        return
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": processor(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "encoding": encoding(),
    }
    held = json.loads(given.out.read_text(encoding="utf-8"))["cases"] if given.out.is_file() else []
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for rows in given.rows:
            found = case(rows, given.dimension, given.queries, folder, given.index)
            found["load_average"] = round(os.getloadavg()[0], 1)
            print(json.dumps(found, indent=1), flush=True)
            others = [c for c in held if (c["rows"], c["index"]) != (rows, found["index"])]
            held = sorted([*others, found], key=lambda c: (c["rows"], c["index"]))
            given.out.write_text(json.dumps({**report, "cases": held}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
