"""The whole path once: generate, read back, train Base and FMCNet, evaluate on unseen identities, report."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.errors import FmcnetError, Interrupted, TrainingError
from fmcnet.evaluation.evaluate_model import EvaluatedRun, evaluate_model
from fmcnet.evaluation.metrics import METRICS
from fmcnet.experiments.report import TITLES, write_report
from fmcnet.models.checkpoint import CARD
from fmcnet.progress import Progress
from fmcnet.synthetic import generate
from fmcnet.training.loggers import read_log
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

VARIANTS = ("base", "full")
OWN = ("data", "base", "full", "base.log", "full.log", "report")
CONFIGS = {"tiny": "tiny", "small": "generated"}
LONGER = {"tiny": (), "small": ("training.epochs=10",)}
"""Settings of the demo over the configuration: with 800 steps both trainings take nine minutes side by side."""


def run_demo(
    out: str | Path,
    *,
    preset: str = "small",
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Do the main job without data and without a GPU; called again, go on where it was.

    Base and FMCNet train at the same time, a process with one thread each: on a small CPU that is faster than
    one after the other with two threads (measured: shared stack notes). Both have the same settings, seed,
    batches and number of steps.

    Args:
        out: gets `data/`, `base/`, `full/` and `report/`.
        preset: "tiny" or "small". seed: of data and training.
        overrides: settings as "training.epochs=1". quiet: print no table.

    Returns:
        The figures and the paths, as printed by `--json`.

    Raises:
        FmcnetError: for an unknown preset or a folder that holds something else.
    """
    if preset not in CONFIGS:
        raise FmcnetError(f"unknown preset '{preset}' for the demo: choose {' or '.join(CONFIGS)}")
    out = Path(out)
    foreign = [p.name for p in out.iterdir() if p.name not in OWN] if out.is_dir() else []
    if foreign:
        raise FmcnetError(
            f"{out} holds other things ({', '.join(sorted(foreign)[:5])}): give a new folder as --out"
        )
    started = time.perf_counter()
    overrides = (*LONGER[preset], *overrides)
    load_config(CONFIGS[preset], [*overrides, f"training.seed={seed}"])  # faults are told before any work
    made = generate("sysu", preset, seed, out / "data", progress=not quiet)
    logger.info(
        "%d images of %d identities in SYSU-MM01's layout: %s", made.images, made.identities, made.out
    )
    table = read_dataset(out / "data")
    generated = time.perf_counter()
    _train_both(out, CONFIGS[preset], [*overrides, f"training.seed={seed}"], quiet)
    trained = time.perf_counter()
    runs = {TITLES[variant]: out / variant for variant in VARIANTS}
    judged = {
        title: evaluate_model(run, table, progress=False if quiet else None) for title, run in runs.items()
    }
    seconds = {"generate": generated - started, "train": trained - generated}
    extra = {"seed": seed, "preset": preset, "seconds": {k: round(v, 1) for k, v in seconds.items()}}
    report = write_report(judged, runs, out / "report", extra=extra)
    result = {
        "report": str(report),
        "data": str(out / "data"),
        "runs": {title: str(run) for title, run in runs.items()},
        "figures": {title: one.evaluations[0].to_dict() for title, one in judged.items()},
        "seconds": {**seconds, "all": time.perf_counter() - started},
    }
    if not quiet:
        _show(judged, result)
    return result


def _train_both(out: Path, config: str, settings: list[str], quiet: bool) -> None:
    waiting = [variant for variant in VARIANTS if not (out / variant / CARD).is_file()]
    together = (os.cpu_count() or 1) > 1
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if together else dict(os.environ)
    running: dict[str, subprocess.Popen[bytes]] = {}
    groups = [waiting] if together else [[variant] for variant in waiting]
    for group in groups:
        for variant in group:
            command = [sys.executable, "-m", "fmcnet", "train", "--config", config, "--resume", "--json"]
            command += ["--data", str(out / "data"), "--out", str(out / variant), f"model.variant={variant}"]
            with (out / f"{variant}.log").open("wb") as log:
                running[variant] = subprocess.Popen(
                    [*command, *settings], stdout=log, stderr=log, env=environment
                )
        before = signal.signal(signal.SIGTERM, _terminated) if _main_thread() else None
        try:
            _watch(out, {variant: running[variant] for variant in group}, config, settings, quiet)
        except BaseException:
            _stop(running.values())
            raise
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminated(*_: object) -> None:
    raise Interrupted("terminated; the same command goes on", 143)


def _stop(running: Iterable[subprocess.Popen[bytes]]) -> None:
    """Let the trainings write a checkpoint and end; after half a minute end them."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    for process in running:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def _watch(
    out: Path, running: dict[str, subprocess.Popen[bytes]], config: str, settings: list[str], quiet: bool
) -> None:
    """One bar for all trainings; raises when one fails, with the end of its log."""
    from fmcnet.training.trainer import total_steps

    if not running:
        return
    each = total_steps(load_config(config, settings), read_dataset(out / "data"))
    done = {variant: _steps_done(out / variant) for variant in running}
    names = " and ".join(TITLES[variant] for variant in running)
    with Progress(
        f"training {names}", each * len(running), sum(done.values()), show=False if quiet else None
    ) as bar:
        while True:
            alive = any(process.poll() is None for process in running.values())
            for variant, process in running.items():
                records = [r for r in read_log(out / variant) if "step" in r]
                now = records[-1]["step"] if records else 0
                loss = f"{variant} loss {records[-1]['loss']:.2f}" if records else ""
                bar.advance(loss, now - done[variant])
                done[variant] = now
                if process.poll() not in (None, 0):
                    tail = (out / f"{variant}.log").read_text(errors="replace").strip().splitlines()[-3:]
                    raise TrainingError(f"training {variant} failed: " + "\n".join(tail))
            if not alive:
                return
            time.sleep(1.0)


def _steps_done(run: Path) -> int:
    return max((int(record["step"]) for record in read_log(run) if "step" in record), default=0)


def _show(judged: dict[str, EvaluatedRun], result: dict[str, Any]) -> None:
    first = next(iter(judged.values()))
    ids = len(set(first.table.select(modality=Modality.INFRARED).pid.tolist()))
    table = RichTable(
        title=f"Infrared to visible, {ids} identities never seen in training, percent", title_justify="left"
    )
    for column in ("", *METRICS, "over chance"):
        table.add_column(column, justify="left" if not column else "right")
    for title, one in judged.items():
        evaluation = one.evaluations[0]
        mean = evaluation.result.mean
        times = mean["rank1"] / evaluation.chance
        table.add_row(title, *(f"{100 * mean[name]:.2f}" for name in METRICS), f"{times:.1f} x")
    console = Console()
    console.print(table)
    console.print(first.evaluations[0].result.protocol, soft_wrap=True)
    console.print(
        f"report: {result['report']}\nruns:   {', '.join(result['runs'].values())}\n"
        f"data:   {result['data']}\ntook:   {result['seconds']['all']:.0f} s",
        soft_wrap=True,
        highlight=False,
    )
