"""What a training step costs as the work grows: images/s and memory against batch, size, identities and processes.

    python benchmarks/training_cost.py                    # all rows, about ten minutes on two cores
    python benchmarks/training_cost.py --rows identities processes
    python benchmarks/training_cost.py --device cuda --arch resnet50 --width 64
    python benchmarks/training_cost.py --draw             # only the table and the plot, from the results

Every row is a process of its own (two for "processes", by torchrun): FMCNet in full, random images in a memory-mapped
file, real batches and augmentation, one thread a process on a CPU. Warm-up steps are not counted; the rate is the
median step's. Memory is one process's own (Python and PyTorch are in it, the mapped images are not), or the GPU's.
Rows that only one thing tells apart share the base row. Results go to benchmarks/training_cost.json, the plot and the
table into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation import log, machine

from fmcnet.config import load_config
from fmcnet.data.loader import TrainingImages, load_batches, make_sampler
from fmcnet.data.table import Record, Table
from fmcnet.distributed import (
    DistributedContext,
    distributed_context,
    keep_freed_memory,
    resident_bytes,
)
from fmcnet.models.build import build_model
from fmcnet.training.train_step import TrainStep
from fmcnet.types import Modality

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BASE = {"identities": 8, "images": 4, "height": 128, "width": 64, "classes": 400, "processes": 1}
GRID: dict[str, list[dict[str, int]]] = {
    "P": [{"identities": p} for p in (4, 8, 16, 32)],
    "K": [{"images": k} for k in (1, 2, 4, 8)],
    "size": [{"height": h, "width": h // 2} for h in (64, 96, 128, 192, 288)],
    "identities": [{"classes": c} for c in (100, 1000, 10_000)],
    "processes": [{"processes": 1}, {"processes": 2}, {"processes": 2, "sync": 1}],
}


def settings(row: dict[str, int], arch: str, width: int) -> list[str]:
    sync = "true" if row.get("sync") else "false"
    return [
        f"data.identities={row['identities']}",
        f"data.images={row['images']}",
        f"data.height={row['height']}",
        f"data.width={row['width']}",
        f"model.arch={arch}",
        f"model.width={width}",
        f"training.sync_batchnorm={sync}",
        f"training.sync_centers={sync}",
    ]


def images(row: dict[str, int], folder: Path) -> np.ndarray[Any, Any]:
    """Random images of every identity, as many as a batch takes of each, in a memory-mapped file."""
    shape = (2 * row["classes"] * row["images"], row["height"], row["width"], 3)
    path = folder / f"{'x'.join(map(str, shape))}.npy"
    if not path.is_file():
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        rng = np.random.default_rng(0)
        for at in range(0, len(out), 1024):
            block = out[at : at + 1024]
            block[:] = np.frombuffer(rng.bytes(block.size), dtype=np.uint8).reshape(block.shape)
        out.flush()
        del out
    loaded: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
    return loaded


def table(row: dict[str, int]) -> Table:
    kinds = (Modality.VISIBLE, Modality.INFRARED)
    records = [
        Record(path=f"{kind}/{pid}/{k}.png", pid=pid, modality=kind, split="train")
        for kind in kinds
        for pid in range(row["classes"])
        for k in range(row["images"])
    ]
    return Table.from_records("random", Path(), records)


def one(
    row: dict[str, int], arch: str, width: int, device: str, folder: Path, seconds: float
) -> dict[str, Any]:
    """Measure in this process; the result is rank 0's."""
    config = load_config("generated", settings(row, arch, width))
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    with distributed_context(device) as ctx:
        assert isinstance(ctx, DistributedContext)
        rows = table(row)
        labels, pids = rows.labels()
        sampler = make_sampler(config, rows, labels, ctx.rank, ctx.world)
        started = time.perf_counter()
        sampler.plan(0)
        planned = time.perf_counter() - started
        torch.manual_seed(0)
        train_step = TrainStep(
            config, build_model(config.model, len(pids)), ctx, config.data.identities, 10**9
        )
        times, peak = [], 0
        draws = config.data.identities * config.data.images * ctx.world
        dataset = TrainingImages(
            images(row, folder), labels, rows.modality, config.augment, seed=0, draws=draws
        )
        batches = load_batches(dataset, sampler, ctx.device, 0, 10**9)
        begun = time.perf_counter()
        for step, batch in enumerate(batches):
            before = time.perf_counter()
            train_step.step([batch], step)
            train_step.read()  # waits for the device: a step's time is whole
            times.append(time.perf_counter() - before)
            peak = max(peak, resident_bytes())  # freed memory is kept, so nothing is missed between two steps
            # The same number of steps on every process: rank 0 says when it is enough.
            enough = torch.tensor(float(time.perf_counter() - begun > seconds and step >= 5))
            if ctx.world > 1:
                torch.distributed.broadcast(enough, 0, group=ctx.control)
            if enough:
                break
        waited = time.perf_counter() - begun - sum(times)
        count = 2 * config.data.identities * config.data.images * ctx.world
        cuda = ctx.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else peak
        middle = statistics.median(times[2:])
        return {
            "rank": ctx.rank,
            "images_in_a_step": count,
            "ms_a_step": round(1e3 * middle, 1),
            "images_per_s": round(count / middle, 1),
            "peak_gib": round(peak / 2**30, 2),
            "plan_of_an_epoch_s": round(planned, 3),
            "waiting_for_data": round(waited / (waited + sum(times)), 4),
            "steps": len(times),
        }


def start(row: dict[str, int], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure a row in processes of its own."""
    images(row, folder)
    world = row["processes"]
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    )
    command = [sys.executable, *launch, __file__, "--one", json.dumps(row), "--folder", str(folder)]
    command += ["--device", args.device, "--arch", args.arch, "--width", str(args.width)]
    command += ["--seconds", str(args.seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
    found = [line for line in lines if line["rank"] == 0]
    if not found:
        raise SystemExit(f"{row}: {done.stderr[-2000:]}")
    found[0].pop("rank")
    return {**row, **found[0]}


def draw(results: dict[str, Any]) -> None:
    """The table in benchmarks/README.md, the plot as docs/images/training-cost.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["rows"]
    axes_of = {
        "P": ("identities", "P, identities in a batch"),
        "K": ("images", "K, images of each and modality"),
        "size": ("height", "height in pixels (width is half)"),
        "identities": ("classes", "identities in the training set"),
    }
    drawn = [row for name in axes_of for row in rows.get(name, [])]
    top, fullest = (1.1 * max(row[key] for row in drawn) for key in ("images_per_s", "peak_gib"))
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), sharey=True, layout="constrained")
    for axis, (name, (key, label)) in zip(axes, axes_of.items(), strict=True):
        found = rows.get(name, [])
        x = [row[key] for row in found]
        axis.plot(x, [row["images_per_s"] for row in found], "o-", color="tab:blue")
        axis.set(xlabel=label, xscale="log", ylim=(0, top))
        axis.set_xticks(x, [f"{value:,}" for value in x])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        memory = axis.twinx()
        memory.plot(x, [row["peak_gib"] for row in found], "s--", color="tab:orange")
        memory.set_ylim(0, fullest)
        memory.tick_params(axis="y", colors="tab:orange", labelright=axis is axes[-1])
    axes[0].set_ylabel("images/s", color="tab:blue")
    memory.set_ylabel("peak memory, GiB", color="tab:orange")
    (DOCS / "images").mkdir(parents=True, exist_ok=True)
    figure.savefig(DOCS / "images" / "training-cost.png", dpi=110)
    lines = [
        "| what grows | P | K | size | identities | processes | images in a step | ms a step | images/s | peak GiB | "
        "plan of an epoch, s | waiting for data |",
        "|---|" + "---:|" * 11,
    ]
    for name, found in rows.items():
        for row in found:
            sync = ", synchronised" if row.get("sync") else ""
            lines.append(
                f"| {name} | {row['identities']} | {row['images']} | {row['height']}x{row['width']} | "
                f"{row['classes']:,} | {row['processes']}{sync} | {row['images_in_a_step']} | {row['ms_a_step']} | "
                f"{row['images_per_s']} | {row['peak_gib']} | {row['plan_of_an_epoch_s']} | "
                f"{100 * row['waiting_for_data']:.1f} % |"
            )
    page, (before, after) = HERE / "README.md", ("<!-- cost: begin -->", "<!-- cost: end -->")
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(before)
    page.write_text(
        head + before + "\n" + "\n".join(lines) + "\n" + after + rest.split(after)[1], encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", choices=list(GRID), default=list(GRID))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=12.0, help="of a row")
    parser.add_argument("--out", type=Path, default=HERE / "training_cost.json")
    parser.add_argument("--draw", action="store_true", help="table and plot only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = one(json.loads(args.one), args.arch, args.width, args.device, args.folder, args.seconds)
        if found["rank"] == 0:
            print(json.dumps(found), flush=True)
        return
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": {}}
    if not args.draw:
        results |= {"machine": machine(), "arch": args.arch, "width": args.width, "device": args.device}
        with tempfile.TemporaryDirectory() as folder:
            for name in args.rows:
                results["rows"][name] = []
                for change in GRID[name]:
                    row = start({**BASE, **change}, args, Path(folder))
                    log(f"{name}: {json.dumps(row)}")
                    results["rows"][name].append(row)
                    args.out.write_text(json.dumps(results, indent=1) + "\n")
    draw(results)


if __name__ == "__main__":
    main()
