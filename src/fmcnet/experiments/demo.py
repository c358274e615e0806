"""`fmcnet demo`: generate a benchmark, train Base and FMCNet, evaluate on unseen identities, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from fmcnet.config import Config, load_config
from fmcnet.data.loader import total_steps
from fmcnet.data.readers import read_dataset
from fmcnet.errors import FmcnetError, TrainingError
from fmcnet.evaluation.evaluate import METRICS
from fmcnet.evaluation.evaluate_model import EvaluatedRun, evaluate_model
from fmcnet.experiments.report import VARIANT_TITLES, write_report
from fmcnet.experiments.study import CONFIGS, check_folder
from fmcnet.experiments.workers import WorkerPool
from fmcnet.models.card import CARD
from fmcnet.progress import Progress
from fmcnet.synthetic import generate
from fmcnet.training.loggers import read_log
from fmcnet.training.run_folder import resumed_config
from fmcnet.training.trainer import train
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

DEMO_VARIANTS = ("base", "full")
DEMO_FILES = ("data", "base", "full", "base.log", "full.log", "report")
DEMO_SETTINGS = {"tiny": (), "small": ("training.epochs=10",)}
"""Settings of the demo on top of the configuration: 800 steps, nine minutes for both trainings side by side."""


def run_demo(
    out: str | Path,
    *,
    preset: str = "small",
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the whole path without data and without a GPU. The same call continues an interrupted demo.

    Base and FMCNet train side by side, each in a process with one thread. On a small CPU that is faster than one
    after the other with two threads. Both have the same settings, seed, batches and number of steps.

    `out` gets `data/`, `base/`, `full/` and `report/`; `quiet` prints no table.

    Returns:
        The figures and the paths, as printed by `--json`.

    Raises:
        FmcnetError: for an unknown preset or a folder that holds something else.
    """
    if preset not in CONFIGS:
        raise FmcnetError(f"unknown preset '{preset}' for the demo: choose {' or '.join(CONFIGS)}")
    out = Path(out)
    check_folder(out, DEMO_FILES)
    started = time.perf_counter()
    settings = [*DEMO_SETTINGS[preset], f"training.seed={seed}"]
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
    configs: dict[str, Config] = {}
    for variant in DEMO_VARIANTS:
        if not (out / variant / CARD).is_file():
            overrides = (f"model.variant={variant}", *settings)
            configs[variant] = resumed_config(out / variant, None, overrides) or load_config(
                CONFIGS[preset], overrides
            )
    _train_all(configs, out, total_steps(config, table), progress)
    seconds = {"generate": generated - started, "train": time.perf_counter() - generated}
    by_title = {VARIANT_TITLES[variant]: out / variant for variant in DEMO_VARIANTS}
    evaluated = {title: evaluate_model(run, table, progress=progress) for title, run in by_title.items()}
    extra = {"seed": seed, "preset": preset, "seconds": {k: round(v, 1) for k, v in seconds.items()}}
    report = write_report(evaluated, out / "report", extra=extra)
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


def _train_all(configs: Mapping[str, Config], out: Path, steps: int, progress: bool | None) -> None:
    """Train each variant in a process, with one bar for all. If one fails, the others write a checkpoint and end."""
    if not configs:
        return
    title = f"training {' and '.join(VARIANT_TITLES[variant] for variant in configs)}"
    done = sum(_last_step(out / variant)[0] for variant in configs)
    bar = Progress(title, steps * len(configs), done, show=progress)
    with WorkerPool(len(configs)) as pool, bar:
        trainings = {}
        for variant, config in configs.items():
            work = partial(train, config, out / "data", out / variant, resume=True, progress=False)
            trainings[variant] = pool.submit(pool.work_in_process, work, out / f"{variant}.log")
        alive = True
        while alive:
            alive = bool(wait(trainings.values(), timeout=1.0).not_done)
            for variant, training in trainings.items():
                if training.done() and (reason := training.result()):
                    raise TrainingError(f"training {variant} failed: {reason}")
            last_steps = {variant: _last_step(out / variant) for variant in configs}
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
        mean, chance = run.evaluations[0].result.mean, run.evaluations[0].result.chance
        scores = (f"{100 * mean[name]:.2f}" for name in METRICS)
        table.add_row(title, *scores, f"{mean['rank1'] / chance:.1f} x")
    console = Console(emoji=False)
    console.print(table)
    console.print(first.evaluations[0].result.protocol, soft_wrap=True)
    console.print(
        f"report: {result['report']}\nruns:   {', '.join(result['runs'].values())}\n"
        f"data:   {result['data']}\ntook:   {result['seconds']['all']:.0f} s",
        soft_wrap=True,
        highlight=False,
    )
