"""`fmcnet demo`: generate a benchmark, train Base and FMCNet, evaluate on unseen identities, report."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.sampler import total_steps
from fmcnet.errors import FmcnetError, Interrupted, TrainingError
from fmcnet.evaluation.evaluate import METRICS
from fmcnet.evaluation.evaluate_model import EvaluatedRun, evaluate_model
from fmcnet.experiments.report import TITLES, write_report
from fmcnet.experiments.study import CONFIGS, check_folder
from fmcnet.models.card import CARD
from fmcnet.progress import Progress
from fmcnet.synthetic import generate
from fmcnet.training.loggers import read_log
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

VARIANTS = ("base", "full")
OWN = ("data", "base", "full", "base.log", "full.log", "report")
LONGER = {"tiny": (), "small": ("training.epochs=10",)}
"""Settings of the demo on top of the configuration: 800 steps, nine minutes for both trainings side by side."""


def run_demo(
    out: str | Path,
    *,
    preset: str = "small",
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the whole path without data and without a GPU. The same call continues an interrupted demo.

    Base and FMCNet train side by side, each in a process with one thread. On a small CPU that is faster than one
    after the other with two threads. Both have the same settings, seed, batches and number of steps.

    Args:
        out: gets `data/`, `base/`, `full/` and `report/`.
        preset: "tiny" or "small".
        seed: of data and training.
        overrides: settings as "training.epochs=1".
        quiet: print no table.

    Returns:
        The figures and the paths, as printed by `--json`.

    Raises:
        FmcnetError: for an unknown preset or a folder that holds something else.
    """
    if preset not in CONFIGS:
        raise FmcnetError(f"unknown preset '{preset}' for the demo: choose {' or '.join(CONFIGS)}")
    out = Path(out)
    check_folder(out, OWN)
    started = time.perf_counter()
    settings = [*LONGER[preset], *overrides, f"training.seed={seed}"]
    config = load_config(CONFIGS[preset], settings)  # faults are reported before any work
    summary = generate("sysu", preset, seed, out / "data", progress=not quiet)
    logger.info(
        "%d images of %d identities in SYSU-MM01's layout: %s",
        summary.images,
        summary.identities,
        summary.out,
    )
    table = read_dataset(out / "data")
    generated = time.perf_counter()
    progress = False if quiet else None
    runs = {variant: out / variant for variant in VARIANTS}
    unfinished = [variant for variant, run in runs.items() if not (run / CARD).is_file()]
    with _training_processes(unfinished, out, CONFIGS[preset], settings) as running:
        _wait_for_trainings(running, out, total_steps(config, table), progress)
    seconds = {"generate": generated - started, "train": time.perf_counter() - generated}
    by_title = {TITLES[variant]: run for variant, run in runs.items()}
    evaluated = {title: evaluate_model(run, table, progress=progress) for title, run in by_title.items()}
    extra = {"seed": seed, "preset": preset, "seconds": {k: round(v, 1) for k, v in seconds.items()}}
    report = write_report(evaluated, by_title, out / "report", extra=extra)
    result = {
        "report": str(report),
        "data": str(out / "data"),
        "runs": {title: str(run) for title, run in by_title.items()},
        "figures": {title: one.evaluations[0].to_dict() for title, one in evaluated.items()},
        "seconds": {**seconds, "all": time.perf_counter() - started},
    }
    if not quiet:
        _print_table(evaluated, result)
    return result


@contextlib.contextmanager
def _training_processes(
    variants: Sequence[str], out: Path, config: str, settings: Sequence[str]
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Train each variant in a process. At the end of the block, or on an error, each writes a checkpoint and ends."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    previous_handler = None
    with contextlib.suppress(ValueError):  # outside the main thread
        previous_handler = signal.signal(signal.SIGTERM, _raise_interrupted)
    try:
        for variant in variants:
            command = [sys.executable, "-m", "fmcnet", "train", "--config", config, "--resume", "--json"]
            command += ["--data", str(out / "data"), "--out", str(out / variant)]
            command += [f"model.variant={variant}", *settings]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with (out / f"{variant}.log").open("wb") as log:
                running[variant] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
        if previous_handler is not None:
            signal.signal(signal.SIGTERM, previous_handler)


def _raise_interrupted(*_: object) -> None:
    raise Interrupted("terminated; the same command goes on", 143)


def _wait_for_trainings(
    running: Mapping[str, subprocess.Popen[bytes]], out: Path, steps: int, progress: bool | None
) -> None:
    """Show one bar for all trainings until they end. If one fails, raise with the end of its log."""
    if not running:
        return
    names = " and ".join(TITLES[variant] for variant in running)
    done = sum(_last_step(out / variant)[0] for variant in running)
    alive = True
    with Progress(f"training {names}", steps * len(running), done, show=progress) as bar:
        while alive:
            time.sleep(1.0)
            alive = any(process.poll() is None for process in running.values())
            for variant, process in running.items():
                if process.poll():
                    log = (out / f"{variant}.log").read_text(errors="replace").strip().splitlines()
                    raise TrainingError(f"training {variant} failed: " + "\n".join(log[-3:]))
            last_steps = {variant: _last_step(out / variant) for variant in running}
            note = ", ".join(
                f"{variant} loss {loss:.2f}" for variant, (step, loss) in last_steps.items() if step
            )
            bar.advance(note, sum(step for step, _ in last_steps.values()) - done)
            done = sum(step for step, _ in last_steps.values())


def _last_step(run: Path) -> tuple[int, float]:
    """The last step in a run's log, and its loss."""
    records = [record for record in read_log(run) if "step" in record]
    return (records[-1]["step"], records[-1]["loss"]) if records else (0, float("nan"))


def _print_table(evaluated: dict[str, EvaluatedRun], result: dict[str, Any]) -> None:
    first = next(iter(evaluated.values()))
    ids = len(set(first.table.select(modality=Modality.INFRARED).pid.tolist()))
    title = f"Infrared to visible, {ids} identities never seen in training, percent"
    table = RichTable(title=title, title_justify="left")
    for column in ("", *METRICS, "over chance"):
        table.add_column(column, justify="left" if not column else "right")
    for title, run in evaluated.items():
        mean, chance = run.evaluations[0].result.mean, run.evaluations[0].chance
        scores = (f"{100 * mean[name]:.2f}" for name in METRICS)
        table.add_row(title, *scores, f"{mean['rank1'] / chance:.1f} x")
    console = Console()
    console.print(table)
    console.print(first.evaluations[0].result.protocol, soft_wrap=True)
    console.print(
        f"report: {result['report']}\nruns:   {', '.join(result['runs'].values())}\n"
        f"data:   {result['data']}\ntook:   {result['seconds']['all']:.0f} s",
        soft_wrap=True,
        highlight=False,
    )
