"""The service under load: searches a second and their latency against concurrency, then a soak with memory readings.

    python benchmarks/service.py --model RUN  # 1 to 32 callers, then 30 minutes of soak
    python benchmarks/service.py --model RUN --seconds 2 --soak 0.1 --rows 200  # a smoke run

RUN is a run folder or a shipped model's name. The gallery is made up: random embeddings of the model's length; the
queries are random images, sent over HTTP on loopback, a connection a caller. Load and service share the machine's
cores. 503 (too much at once) is counted apart and is no latency. Memory is the service's resident set, by /proc. In
the soak every tenth request adds a crop and removes it again. Results go to benchmarks/service.json, and a plot of
them beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import httpx2 as httpx
import numpy as np
from PIL import Image

from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval import Gallery
from fmcnet.types import Modality

HERE = Path(__file__).parent


def random_images(count, height, width):
    """JPEGs of coarse random patterns."""
    random, out = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 4, 3), dtype=np.uint8))
        data = io.BytesIO()
        coarse.resize((width, height)).save(data, "JPEG", quality=90)
        out.append(data.getvalue())
    return out


def fill(location, encoder, rows):
    """A gallery of random unit vectors, of the model's digest."""
    blank = np.zeros((1, encoder.height, encoder.width, 3), np.uint8)
    dimension = encoder.backend(blank, Modality.VISIBLE).shape[1]
    random = np.random.default_rng(1)
    with Gallery(location, model=encoder.digest) as gallery:
        for start in range(0, rows, 5000):
            n = min(5000, rows - start)
            gallery.add(
                random.standard_normal((n, dimension), np.float32),
                modality="visible",
                camera=[f"camera-{i % 10}" for i in range(n)],
            )


def resident_mib(pid):
    """Of one process."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found
    return int(found[1]) / 1024


class Load:
    """Callers that each ask, wait for the answer, and ask again."""

    def __init__(self, address, images):
        self.address, self.images = address, images
        self.seconds, self.busy, self.failed, self.changed = [], 0, 0, 0

    async def caller(self, client, number, until, mixed):
        turn = number
        while time.monotonic() < until:
            turn += 1
            image = ("q.jpg", self.images[turn % len(self.images)], "image/jpeg")
            start = time.perf_counter()
            reply = await client.post("/v1/search", files={"images": image}, data={"modality": "infrared"})
            spent = time.perf_counter() - start
            if reply.status_code == 503:
                self.busy += 1
                await asyncio.sleep(float(reply.headers["retry-after"]))
            elif reply.status_code != 200:
                self.failed += 1
            else:
                self.seconds.append(spent)
            if mixed and turn % 10 == 0:
                await self.change(client, image)

    async def change(self, client, image):
        """Add a crop, and remove it again."""
        added = await client.post("/v1/entries", files={"images": image}, data={"modality": "visible"})
        if added.status_code == 503:
            self.busy += 1
            return
        self.failed += added.status_code != 201
        for entry_id in added.json().get("ids", []):
            gone = await client.delete(f"/v1/entries/{entry_id}")
            self.failed += gone.status_code != 200
            self.changed += gone.status_code == 200

    async def run(self, callers, seconds, mixed=False):
        # One client for all: each would read the certificates of the machine first, while the others wait.
        limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
        async with httpx.AsyncClient(base_url=self.address, timeout=120, limits=limits) as client:
            until = time.monotonic() + seconds
            await asyncio.gather(*(self.caller(client, n, until, mixed) for n in range(callers)))


def measured(address, images, callers, seconds):
    """After a quarter of the time unmeasured: a batch of a new size costs more the first time."""
    asyncio.run(Load(address, images).run(callers, seconds / 4))
    load, start = Load(address, images), time.perf_counter()
    asyncio.run(load.run(callers, seconds))
    spent = time.perf_counter() - start
    if not load.seconds:
        raise SystemExit(f"no search was answered with {callers} callers: give more --seconds")
    p50, p99 = np.percentile(load.seconds, [50, 99]) * 1e3
    return {
        "callers": callers, "searches": len(load.seconds), "per_second": round(len(load.seconds) / spent, 2),
        "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "busy": load.busy, "failed": load.failed,
    }  # fmt: skip


def soak(address, images, callers, seconds, pid, readings=120):
    """Memory while it works: `growth_mib` is of the last third's median over the second third's."""
    load, times, memory = Load(address, images), [], []
    start = time.monotonic()

    async def read():
        for _ in range(readings):
            await asyncio.sleep(seconds / readings)
            times.append(round(time.monotonic() - start, 1))
            memory.append(round(resident_mib(pid), 1))

    async def both():
        await asyncio.gather(load.run(callers, seconds, mixed=True), read())

    asyncio.run(both())
    third = readings // 3
    growth = np.median(memory[-third:]) - np.median(memory[third:-third])
    return {
        "seconds": seconds, "callers": callers, "searches": len(load.seconds), "added_and_removed": load.changed,
        "busy": load.busy, "failed": load.failed, "at_seconds": times, "resident_mib": memory,
        "growth_mib": round(float(growth), 1),
    }  # fmt: skip


def plot(report, path):
    """Searches a second and p99 against callers; memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    rows = report["concurrency"]
    callers = [row["callers"] for row in rows]
    left.plot(callers, [row["per_second"] for row in rows], "o-", color="#1f4fa3", label="searches a second")
    left.set(xscale="log", xlabel="callers", ylabel="searches a second", xticks=callers, xticklabels=callers)
    left.set_ylim(bottom=0)
    late = left.twinx()
    late.plot(callers, [row["p99_ms"] for row in rows], "s--", color="#c77f00", label="p99, ms")
    late.set_ylabel("p99, ms")
    late.set_ylim(bottom=0)
    left.minorticks_off()
    figure.legend(handles=[*left.lines, *late.lines], frameon=False, loc="outside upper left", ncols=2)
    if "soak" in report:
        right.plot(
            np.array(report["soak"]["at_seconds"]) / 60, report["soak"]["resident_mib"], color="#1f4fa3"
        )
        right.set(xlabel="minutes of the soak", ylabel="resident, MiB")
        right.set_ylim(0, 1.2 * max(report["soak"]["resident_mib"]))
    else:
        right.set_axis_off()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=10_000, help="entries of the gallery")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of callers")
    parser.add_argument("--soak", type=float, default=30.0, metavar="MINUTES", help="0: none")
    parser.add_argument("--threads", type=int, default=1, help="that compute")
    parser.add_argument("--out", type=Path, default=HERE / "service.json")
    given = parser.parse_args()
    encoder = Encoder.from_pretrained(given.model, device="cpu", threads=given.threads)
    images = random_images(64, encoder.height, encoder.width)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": sys.version.split()[0], "engine": encoder.backend.name, "threads": given.threads,
        "rows": given.rows, "concurrency": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        gallery = Path(folder) / "people.gallery"
        fill(gallery, encoder, given.rows)
        command = [
            sys.executable, "-m", "fmcnet", "serve", str(gallery), "--model", given.model, "--port", "0",
            "--device", "cpu", "--threads", str(given.threads), "--max-requests", "64",
        ]  # fmt: skip
        with (Path(folder) / "log").open("w+") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                address = wait_for(Path(folder) / "log", process)
                for callers in given.callers:
                    report["concurrency"].append(measured(address, images, callers, given.seconds))
                    print(json.dumps(report["concurrency"][-1]), flush=True)
                if given.soak:
                    report["soak"] = soak(address, images, 4, 60 * given.soak, process.pid)
                    shown = {k: v for k, v in report["soak"].items() if not isinstance(v, list)}
                    print(json.dumps(shown), flush=True)
            finally:
                process.send_signal(signal.SIGTERM)
            report["exit_code"] = process.wait(120)
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(report, given.out.with_suffix(".png"))


def wait_for(log, process):
    """The service's address, once it is ready."""
    for _ in range(6000):
        if process.poll() is not None:
            break
        found = re.search(r"page:\s+(http://\S+?)/\s", log.read_text())
        try:
            if found and httpx.get(f"{found[1]}/readyz").status_code == 200:
                return found[1]
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")


if __name__ == "__main__":
    main()
