"""The engine against per-probe loops like the public ones, and against the machine's arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py            # all, about six minutes
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py sysu1 huge # some cases

Results go to benchmarks/evaluation.json, with machine and date. Every ratio is measured in one run, alternating the
two sides where they are short, on random embeddings over the real structure of the SYSU-MM01 test split
(../shared/golden) or, without it, a made-up structure of the same size. Where a loop would take minutes it runs on
one trial of ten (one of each mode) and the result says so (`loop_trials`).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from evaluation_loops import agw_like, agw_like_ranking, mpanet_like
from machine import processor

from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.protocols import custom, llcm, regdb, sysu
from fmcnet.types import Embeddings

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "shared" / "golden"
REPEATS = 5


def made(pid, camid, modality, index, dimensions, seed=0):
    """Random embeddings of unit length: the hardest case for any shortcut, for nothing is easy to rank."""
    random = np.random.default_rng(seed)
    features = np.empty((len(pid), dimensions), dtype=np.float32)
    for start in range(0, len(pid), 100_000):
        part = random.standard_normal((min(100_000, len(pid) - start), dimensions), dtype=np.float32)
        features[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    name = np.full(len(pid), "", dtype="<U1")
    columns = [np.asarray(c, dtype=np.int64) for c in (pid, camid, index)]
    return Embeddings(features, columns[0], columns[1], np.asarray(modality, np.uint8), columns[2], name)


def structured(people, cameras, each):
    """pid, camid, index of a regular structure."""
    grid = np.meshgrid(np.arange(1, people + 1), cameras, np.arange(1, each + 1), indexing="ij")
    return [column.ravel() for column in grid]


def sysu_structure():
    """(pid, cam, index), whether it is the real one, and the draw it allows."""
    if GOLDEN.is_dir():
        with np.load(GOLDEN / "sysu_features.npz") as stored:
            return (stored["pid"], stored["cam"], stored["index"]), {
                "draw": "official",
                "permutation": GOLDEN / "rand_perm_cam.mat",
            }
    visible, infrared = structured(96, (1, 2, 4, 5), 18), structured(96, (3, 6), 20)
    return tuple(np.concatenate(pair) for pair in zip(visible, infrared, strict=True)), {"draw": "seeded"}


def peak(work):
    """Result, seconds, and by how many MB the process's resident memory rose at most (None where unknown)."""
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what an earlier case left does not hide this one's need
        Path("/proc/self/clear_refs").write_text("5")
        before = resident(status, "VmRSS")
    except OSError:
        before = None
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return result, seconds, None if before is None else round(resident(status, "VmHWM") - before, 1)


def resident(status, name):
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def log(text):
    print(text, flush=True)


def evaluate_each(e, protocols, **options):
    return [evaluate(e, protocol, **options) for protocol in protocols]


def sysu_case(shots, dimensions, loops, loop_trials=10, golden=False):
    (pid, cam, index), options = sysu_structure()
    infrared = np.isin(cam, (3, 6))
    e = made(pid, cam, infrared, index, dimensions)
    if golden and GOLDEN.is_dir():
        with np.load(GOLDEN / "sysu_features.npz") as stored:
            e = replace(e, features=stored["features"])
    protocols = [sysu(mode, shots, **options) for mode in ("all", "indoor")]
    evaluate_each(e, protocols)  # warm: files read, buffers there
    ours, memory = [], 0.0
    slow: dict[str, list[float]] = {name: [] for name in loops}
    agreement = 0.0
    for _ in range(REPEATS):
        found, seconds, used = peak(lambda: evaluate_each(e, protocols))
        ours.append(seconds)
        memory = max(memory, used or 0.0)
    for name in loops:
        for protocol, one in zip(protocols, found, strict=True):
            for (query, gallery), scores in list(zip(protocol.trials(e), one.trials, strict=True))[
                :loop_trials
            ]:
                seconds, average = LOOPS[name](e, query, gallery)
                slow[name].append(seconds * 10 / loop_trials)
                agreement = max(agreement, abs(average - scores.mAP))
    for _ in range(REPEATS):
        ours.append(peak(lambda: evaluate_each(e, protocols))[1])
    single = [timed(lambda: evaluate_each(e, protocols, precision="float32")) for _ in range(REPEATS)]
    product, gflop = product_time(e, protocols)
    case = {
        "what": f"SYSU-MM01, ten all-search and ten indoor trials, {shots} shot, {e.features.shape[1]}-D",
        "precision": found[0].precision,
        "ours_s": round(statistics.median(ours), 4),
        "ours_best_s": round(min(ours), 4),
        "ours_float32_s": round(statistics.median(single), 4),
        "ours_peak_mb": memory,
        "product_alone_s": round(product, 4),
        "product_gflop": round(gflop, 1),
        "loop_trials": loop_trials,
        "largest_difference_of_mAP": agreement,
    }
    for name in loops:
        case[f"{name}_s"] = round(sum(slow[name]), 2)
        case[f"{name}_ratio"] = round(sum(slow[name]) / statistics.median(ours), 1)
        case[f"{name}_ratio_float32"] = round(sum(slow[name]) / statistics.median(single), 1)
        case[f"{name}_ratio_if_only_the_product_cost"] = round(sum(slow[name]) / product, 1)
    return case


def product_time(e, protocols):
    """The matrix product alone that every evaluator needs at least once: probes x distinct gallery images."""
    trials = [t for p in protocols for t in p.trials(e)]
    union = np.unique(np.concatenate([g for _, g in trials]))
    a, b = torch.from_numpy(e.features[trials[0][0]]), torch.from_numpy(e.features[union])
    best = min(timed(lambda: torch.mm(a, b.T)) for _ in range(3))
    return best, 2 * len(a) * len(b) * a.shape[1] / 1e9


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_agw(e, query, gallery):
    q, g = e.features[query].astype(np.float64), e.features[gallery].astype(np.float64)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    start = time.perf_counter()
    found = agw_like(q, g, e.pid[query], e.pid[gallery], e.camid[query], e.camid[gallery])
    return time.perf_counter() - start, found[1]


def run_mpanet(e, query, gallery):
    q, g = (torch.nn.functional.normalize(torch.from_numpy(e.features[rows])) for rows in (query, gallery))
    cam = np.where(e.camid[query] == 3, 2, e.camid[query])
    start = time.perf_counter()
    found = mpanet_like(q, g, e.pid[query], e.pid[gallery], cam, e.camid[gallery])
    return time.perf_counter() - start, found[1]


LOOPS = {"agw_like": run_agw, "mpanet_like": run_mpanet}


def plain_case(name, e, protocol, trials):
    """RegDB and LLCM: the AGW-like loop on one trial; its camera rule (3, 2) stands for the rule's cost."""
    evaluate(e, protocol)
    (found, ours, memory) = peak(lambda: evaluate(e, protocol))
    ours = statistics.median([ours, *(timed(lambda: evaluate(e, protocol)) for _ in range(2))])
    query, gallery = protocol.trials(e)[0]
    q, g = e.features[query].astype(np.float64), e.features[gallery].astype(np.float64)
    slow = timed(
        lambda: agw_like_ranking(-(q @ g.T), e.pid[query], e.pid[gallery], e.camid[query], e.camid[gallery])
    )
    return {
        "what": name,
        "precision": found.precision,
        "queries": len(query),
        "gallery": len(gallery),
        "ours_s": round(ours, 4),
        "ours_peak_mb": memory,
        "loop_trials": 1,
        "agw_like_s": round(slow * trials, 2),
        "agw_like_ratio": round(slow * trials / ours, 1),
    }


def regdb_case():
    pid, camid, index = structured(206, (1, 2), 10)
    e = made(pid, camid, camid == 2, index, 2048)
    return plain_case("RegDB, one split, 2048-D", e, regdb(), 1)


def llcm_case():
    pid, camid, index = structured(351, range(1, 9), 3)
    visible = made(pid, camid, np.zeros(len(pid)), index, 2048)
    infrared = made(pid, camid, np.ones(len(pid)), index, 2048, seed=1)
    e = Embeddings(
        *(np.concatenate(pair) for pair in zip(vars(visible).values(), vars(infrared).values(), strict=True))
    )
    return plain_case("LLCM reading (a), ten trials, 351 ids x 8 cameras x 3, 2048-D", e, llcm("a"), 10)


def huge_case(gallery=1_000_000, probes=2_000, dimensions=256, people=100_000):
    pid = np.concatenate([np.arange(gallery) % people, np.arange(probes) % people])
    e = made(pid, np.full(len(pid), -1), np.arange(len(pid)) >= gallery, np.zeros(len(pid)), dimensions)
    found, seconds, memory = peak(lambda: evaluate(e, custom(cmc="identity")))
    a = torch.from_numpy(e.features[gallery:])
    b = torch.from_numpy(e.features[:16384])
    rate = 2 * len(a) * len(b) * dimensions / min(timed(lambda: torch.mm(a, b.T)) for _ in range(5))
    limit = 2 * gallery * probes * dimensions / rate
    return {
        "what": f"{gallery} gallery embeddings x {probes} probes, {dimensions}-D, {people} identities, identity CMC",
        "precision": found.precision,
        "ours_s": round(seconds, 1),
        "embeddings_mb": round(e.features.nbytes / 2**20),
        "ours_peak_mb_beyond_the_embeddings": memory,
        "full_matrix_would_be_mb": round(gallery * probes * 4 / 2**20),
        "measured_gflop_per_s": round(rate / 1e9, 1),
        "arithmetic_limit_s": round(limit, 1),
        "times_the_limit": round(seconds / limit, 1),
    }


CASES = {
    "sysu1": lambda: sysu_case(1, 2048, ("agw_like", "mpanet_like")),
    "sysu1-512": lambda: sysu_case(1, 512, ("agw_like",)),
    "sysu1-golden": lambda: sysu_case(1, 8, ("agw_like",), golden=True),
    "sysu10": lambda: sysu_case(10, 2048, ("agw_like", "mpanet_like"), loop_trials=1),
    "regdb": regdb_case,
    "llcm": llcm_case,
    "huge": huge_case,
}


def machine():
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def main():
    chosen = sys.argv[1:] or list(CASES)
    path = HERE / "evaluation.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in chosen:
        here = machine()
        log(f"{name}...")
        results[name] = {**CASES[name](), "machine": here}
        log(json.dumps({k: v for k, v in results[name].items() if k != "machine"}, indent=1))
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
