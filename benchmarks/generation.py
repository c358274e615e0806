"""Images per second of the generated benchmark on one core, rendering and JPEG writing included.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--repeats 5] [--images 400] [--layout sysu] [--height 128]

Prints JSON: images/s of each repeat, their median and range, and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import processor
from PIL import __version__ as pillow_version

from fmcnet.synthetic.generate import write_images
from fmcnet.synthetic.plan import make_plan, resolve_preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--layout", default="sysu")
    parser.add_argument("--height", type=int, default=128)
    args = parser.parse_args()
    size = (args.height, args.height // 2)
    plan = make_plan(args.layout, resolve_preset(args.layout, "small"), 0)
    planned = list(plan.images.items())
    images = planned[:: max(1, len(planned) // args.images)][: args.images]
    rates, cpu_rates = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), *size, images[:40])  # scenes drawn, files cached
        for _ in range(args.repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            write_images(Path(folder), *size, images)
            rates.append(len(images) / (time.perf_counter() - wall))
            cpu_rates.append(len(images) / (time.process_time() - cpu))
    report = {
        "what": f"{args.layout}, {size[0]}x{size[1]} (H x W), one process, render + encode + write",
        "images": len(images),
        "images_per_second": [round(rate, 1) for rate in rates],
        "median": round(statistics.median(rates), 1),
        "range": [round(min(rates), 1), round(max(rates), 1)],
        "per_cpu_second_median": round(statistics.median(cpu_rates), 1),
        "machine": {
            "cpu": processor(),
            "cpus": os.cpu_count(),
            "load": [round(v, 2) for v in os.getloadavg()],
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "pillow": pillow_version,
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
