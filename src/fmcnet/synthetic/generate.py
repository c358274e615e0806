"""Generate a benchmark on disk: deterministic, in several processes, continued where it was interrupted."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from fmcnet.errors import DataError
from fmcnet.synthetic.claim import claimed, write_manifest
from fmcnet.synthetic.image import ImageKey, render_image
from fmcnet.synthetic.plan import Job, Plan, make_plan
from fmcnet.synthetic.presets import Preset, resolve_preset
from fmcnet.synthetic.writers import side_files, write_atomic, write_images

VERSION = 3
"""Raised whenever the same seed would give other pixels or files."""

_CHUNK = 32
_ALONE_BELOW = 300


@dataclass(frozen=True)
class GeneratedSummary:
    """What `generate` did.

    Attributes:
        out: the dataset's root.
        layout: "sysu", "regdb" or "llcm".
        preset: "tiny", "small" or "full".
        seed: seed of the world.
        identities: how many.
        images: images in the dataset.
        written: images rendered by this call.
        reused: images that were there already.
        seconds: wall time of this call.
        images_per_second: written / seconds, 0 when none was written.
        workers: processes used.
        digest: 64 hex digits that identify the world: SHA-256 over all paths and the pixels of eight of the images,
            rendered anew (independent of JPEG, of workers and of what was reused).
    """

    out: Path
    layout: str
    preset: str
    seed: int
    identities: int
    images: int
    written: int
    reused: int
    seconds: float
    images_per_second: float
    workers: int
    digest: str

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {**asdict(self), "out": str(self.out)}


def generate(
    layout: str,
    preset: str,
    seed: int,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: bool = False,
    **overrides: int,
) -> GeneratedSummary:
    """Write a generated benchmark in a public dataset's own layout.

    Args:
        layout: "sysu" (visible, near infrared), "regdb" (visible, thermal) or "llcm" (low light, near infrared).
        preset: "tiny" (tests), "small" (demo) or "full" (the real dataset's numbers).
        seed: non-negative; same seed, same pixels.
        out: folder to write; new, empty, or one that this function began with the same arguments (it continues).
        workers: processes; None takes the CPUs this process may use.
        progress: show a bar, on a terminal only.
        overrides: single numbers of `Preset`, for example `train_ids=40, height=96, width=48`.

    Returns:
        What was done.

    Raises:
        ConfigError: an unknown layout, preset or override.
        DataError: `out` holds something else, or another process is writing to it.
    """
    begin = time.perf_counter()
    amounts = resolve_preset(layout, preset, overrides)
    if seed < 0:
        raise DataError(f"the seed must be 0 or more, got {seed}")
    root = Path(out)
    wanted = {
        "version": VERSION,
        "layout": layout,
        "preset": preset,
        "seed": seed,
        "amounts": asdict(amounts),
    }
    with claimed(root, wanted):
        plan = make_plan(layout, amounts, seed)
        missing = tuple(job for job in plan.jobs if not (root / job.path).is_file())
        files = side_files(plan, seed)
        for path, content in files.items():
            if not (root / path).is_file():
                write_atomic(root, path, content)
        processes = _processes(workers, len(missing))
        with _bar(progress, len(plan.jobs), len(plan.jobs) - len(missing)) as bar:
            processes = _render_all(root, layout, seed, missing, amounts, processes, bar)
        digest = world_digest(plan, amounts, seed)
        write_manifest(root, {**wanted, "complete": True, "images": len(plan.jobs), "digest": digest})
    seconds = time.perf_counter() - begin
    return GeneratedSummary(
        out=root,
        layout=layout,
        preset=preset,
        seed=seed,
        identities=len(plan.pids),
        images=len(plan.jobs),
        written=len(missing),
        reused=len(plan.jobs) - len(missing),
        seconds=seconds,
        images_per_second=len(missing) / seconds if missing else 0.0,
        workers=processes,
        digest=digest,
    )


def world_digest(plan: Plan, amounts: Preset, seed: int) -> str:
    """SHA-256 (64 hex digits) over a plan's paths and the raw pixels of eight of its images."""
    sha = hashlib.sha256("\n".join(job.path for job in plan.jobs).encode())
    count = min(8, len(plan.jobs))
    for i in range(count):
        job = plan.jobs[i * (len(plan.jobs) - 1) // max(1, count - 1)]
        key = ImageKey(seed, plan.layout, job.pid, job.camid, job.infrared, job.index)
        sha.update(render_image(key, amounts.height, amounts.width).tobytes())
    return sha.hexdigest()


def _processes(workers: int | None, images: int) -> int:
    if workers is not None and workers < 1:
        raise DataError(f"workers must be 1 or more, got {workers}")
    if workers is None:
        available = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        )
        workers = available if images >= _ALONE_BELOW else 1
    return max(1, min(workers, -(-images // _CHUNK)))


class _Advance(Protocol):
    def __call__(self, images: int) -> None: ...


@contextmanager
def _bar(progress: bool, total: int, done: int) -> Iterator[_Advance]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not (progress and sys.stderr.isatty()):
        yield lambda images: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("generating", total=total, completed=done)
        yield lambda images: shown.advance(task, images)


def _render_all(
    root: Path,
    layout: str,
    seed: int,
    jobs: tuple[Job, ...],
    amounts: Preset,
    processes: int,
    advance: _Advance,
) -> int:
    """Render the jobs; returns the number of processes that did it."""
    chunks = [jobs[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
    arguments = (str(root), layout, seed)
    size = (amounts.height, amounts.width)
    if processes > 1:
        try:
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                pending: set[Future[int]] = {
                    pool.submit(write_images, *arguments, chunk, *size) for chunk in chunks
                }
                try:
                    while pending:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        for future in done:
                            advance(future.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            return processes
        except (
            BrokenProcessPool
        ):  # a script without `if __name__ == "__main__":`, or a killed worker: go on alone
            chunks = [tuple(j for j in chunk if not (root / j.path).is_file()) for chunk in chunks]
    for chunk in chunks:
        advance(write_images(*arguments, chunk, *size))
    return 1
