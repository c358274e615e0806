"""Images per second of one trained model on one core: eager PyTorch, ONNX Runtime in fp32 and in int8, in one run.

    OMP_NUM_THREADS=1 python benchmarks/inference.py --run RUN --data DATA [--rounds 7] [--seconds 1] [--json FILE]

RUN is a run folder or a shipped model's name; DATA a dataset with train and test images. The three forms take turns,
round after round, so that a busy moment hits all alike; a ratio is of two figures of one round, and what is shown is
the median of the rounds. Accuracy is that of the test images, by the dataset's protocol, in both directions. The int8
form is what `fmcnet export --int8 --calibrate DATA` writes: within 0.5 points of mAP, or none, which the table then
says. Prints a table and writes JSON: every figure of every round, and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from machine import processor

from fmcnet.data.cache import ImageCache
from fmcnet.data.readers import read_dataset
from fmcnet.errors import FmcnetError
from fmcnet.inference.backends import GRAPHS, OnnxBackend
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.export.parity import compare, rates
from fmcnet.inference.export.write import export
from fmcnet.models.card import WEIGHTS
from fmcnet.types import Modality

GOALS = {("fp32", 1): 1.5, ("fp32", 32): 2.0, ("int8", 1): 5.0, ("int8", 32): 5.0}
"""Times eager PyTorch: issue 6."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=256, help="that int8 ranges are learnt from")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    eager = Encoder.from_pretrained(arguments.run, device="cpu", runtime="torch", threads=arguments.threads)
    config = eager.card.config
    table = read_dataset(arguments.data, layout=config.data.layout, regdb_split=config.data.split).select(
        split="test"
    )
    images = ImageCache(table, eager.height, eager.width, progress=False).images
    with tempfile.TemporaryDirectory() as scratch:
        common = {"data": arguments.data, "seconds": 0.001, "progress": False}
        export(arguments.run, out=Path(scratch) / "fp32", **common)
        int8 = {"int8": True, "calibrate": arguments.data, "images": arguments.images}
        names, refused = ["fp32", "int8"], None
        try:
            export(arguments.run, out=Path(scratch) / "int8", **int8, **common)
        except FmcnetError as error:  # it loses too much: there is no such model
            names, refused = ["fp32"], str(error).splitlines()[0]
        forms: list[Any] = [("eager", eager.backend, (Path(eager.folder or "") / WEIGHTS).stat().st_size, ())]
        for name in names:
            folder = Path(scratch) / name
            engine = Encoder.from_pretrained(folder, threads=arguments.threads).backend
            size = sum((folder / graph).stat().st_size for graph in GRAPHS.values())
            assert isinstance(engine, OnnxBackend)
            forms.append((name, engine, size, engine.manifest.kept))
        compared = compare(forms, images, table.modality, table, config.evaluation, seconds=0.001)
        measured = rates(
            [engine for _, engine, *_ in forms],
            np.ascontiguousarray(images[np.flatnonzero(table.modality == Modality.VISIBLE.code)[:256]]),
            Modality.VISIBLE,
            batches=arguments.batches,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
        )
    rows = []
    for form, speed in zip(compared, measured, strict=True):
        facts = {key: value for key, value in form.to_dict().items() if key != "images_per_second"}
        facts["mAP_lost"] = form.loss(compared[0])
        facts["speed"] = {}
        for batch, figures in speed.items():
            ratios = [mine / base for mine, base in zip(figures, measured[0][batch], strict=True)]
            goal = GOALS.get((form.name, batch))
            facts["speed"][str(batch)] = {
                "images_per_second": [round(figure, 1) for figure in figures],
                "median": round(statistics.median(figures), 1),
                "times_eager": round(statistics.median(ratios), 2),
                "times_eager_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "goal": goal,
                "reached": None if goal is None else statistics.median(ratios) >= goal,
            }
        rows.append(facts)
    report = {
        "what": f"{arguments.run}: {config.model.arch}, width {config.model.width}, {config.model.variant}, "
        f"{eager.height}x{eager.width} (H x W); the forward pass from uint8 to embedding, visible path",
        "digest": eager.digest,
        "data": f"{len(table)} test images of {arguments.data}",
        "forms": rows,
        "int8_refused": refused,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def show(report: dict) -> None:
    """The report as a table."""
    rows = report["forms"]
    ways, batches = list(rows[0]["scores"]), list(rows[0]["speed"])
    heads = ["form", "MiB", *(f"mAP {way}" for way in ways), *(f"Rank-1 {way}" for way in ways)]
    heads += [cell for batch in batches for cell in (f"images/s, batch {batch}", "times eager", "goal")]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in rows:
        cells = [row["name"], f"{row['bytes'] / 2**20:.1f}"]
        cells += [f"{row['scores'][way][key]:.2f}" for key in ("mAP", "rank1") for way in ways]
        for batch in batches:
            speed = row["speed"][batch]
            low, high = speed["times_eager_range"]
            goal = (
                ""
                if speed["goal"] is None
                else f"{speed['goal']:g} {'reached' if speed['reached'] else 'MISSED'}"
            )
            cells += [f"{speed['median']:.0f}", f"{speed['times_eager']:.2f} ({low:.2f}..{high:.2f})", goal]
        print(f"| {' | '.join(cells)} |")
    if report["int8_refused"]:
        print(report["int8_refused"])
        return
    lost, kept = rows[-1]["mAP_lost"], rows[-1]["kept"]
    print(f"int8: {len(kept)} layers kept in float32; loses {lost:+.2f} points of mAP in the worse direction")


if __name__ == "__main__":
    main()
