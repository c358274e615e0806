"""`fmcnet study`: plan the runs, do those that are not done, write one report."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.config import Config
from fmcnet.data.check import TITLES
from fmcnet.data.readers import detect_layout, read_dataset
from fmcnet.data.table import Table
from fmcnet.distributed import pick_device
from fmcnet.errors import FmcnetError
from fmcnet.experiments.execute import execute
from fmcnet.experiments.jobs import Job
from fmcnet.experiments.plan import Plan, Settings, make_plan
from fmcnet.experiments.rows import STUDIES, chosen
from fmcnet.experiments.write import write_study
from fmcnet.files import write_atomically
from fmcnet.synthetic import MANIFEST, generate

logger = logging.getLogger(__name__)

CONFIGS = {"tiny": "tiny", "small": "generated"}
"""The configuration that goes with each preset of the generated benchmark."""

OWN = ("data", "plans", "runs", "logs", "report")


@dataclass(frozen=True)
class Ordered:
    """What was asked for.

    Attributes:
        name: of the study, or "all". out: the folder of everything.
        data: a dataset's folder or CSV; None: the generated benchmark of `preset` in out/data.
        config: a YAML file or the name of a shipped one; None: what goes with the data.
        overrides: settings of all rows. seeds: of training.
        budget: steps of each run; None: the configuration's.
        rows: keys of the only rows wanted; empty: all.
        worlds: "same": all seeds train on generated world 0; "own": seed s on world s.
        jobs: processes. device: "auto" takes every GPU.
        report: folder of results.md, results.json and figures/; None: out/report.
    """

    name: str
    out: Path
    data: Path | None = None
    preset: str = "small"
    config: str | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: int | None = None
    rows: tuple[str, ...] = ()
    worlds: str = "same"
    jobs: int = 1
    device: str = "auto"
    report: Path | None = None

    @property
    def crossed(self) -> bool:
        """Whether all seeds have one test set."""
        return self.data is not None or self.worlds == "same"

    def command(self) -> str:
        """The command that asks for this."""
        words = ["fmcnet", "study", self.name, "--out", str(self.out)]
        words += ["--data", str(self.data)] if self.data else ["--preset", self.preset]
        words += ["--config", self.config] if self.config else []
        words += ["--seeds", ",".join(map(str, self.seeds))]
        words += ["--budget", str(self.budget)] if self.budget else []
        words += ["--rows", ",".join(self.rows)] if self.rows else []
        words += ["--worlds", self.worlds] if self.worlds != "same" else []
        return shlex.join([*words, *self.overrides])


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0,1,2" as numbers.

    Raises:
        FmcnetError: for anything else.
    """
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise FmcnetError(f"--seeds {text}: write numbers of 0 or more, as 0,1,2")
    return seeds


def parse_rows(text: str | None) -> tuple[str, ...]:
    """ "base,full" as keys of rows; None: none, which stands for all.

    Raises:
        FmcnetError: for a key that no study has, with those there are.
    """
    keys = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    known = list(dict.fromkeys(row.key for study in STUDIES.values() for row in study.rows))
    if unknown := [key for key in keys if key not in known]:
        raise FmcnetError(f"--rows {', '.join(unknown)}: no such row; there are {', '.join(known)}")
    return keys


def run_study(ordered: Ordered, *, quiet: bool = False) -> dict[str, Any]:
    """Do a study; called again, go on where it was, repeating no finished run.

    Args:
        ordered: what is wanted. quiet: no bars.

    Returns:
        The facts of the report, as in report/results.json, and the paths.

    Raises:
        FmcnetError: for a mistake in what was asked for, and at the end for runs that failed.
    """
    studies = tuple(study.only(ordered.rows) for study in chosen(ordered.name))
    studies = tuple(study for study in studies if study.rows)
    if not studies:
        raise FmcnetError(f"study {ordered.name} has none of the rows {', '.join(ordered.rows)}")
    pick_device(ordered.device)
    out = ordered.out
    foreign = [p.name for p in out.iterdir() if p.name not in OWN] if out.is_dir() else []
    if foreign:
        raise FmcnetError(
            f"{out} holds other things ({', '.join(sorted(foreign)[:5])}): give a new folder as --out"
        )
    settings = Settings(_source(ordered), ordered.overrides, ordered.budget)
    base = settings.config()
    for study in studies:
        for row in study.rows:
            settings.config(row)  # faults are told before any work
    tables = _tables(ordered, base, quiet)
    plan = make_plan(studies, settings, ordered.seeds, lambda seed: tables[seed])
    jobs = make_jobs(plan, out, ordered.data)
    started = time.perf_counter()
    logger.info(
        "%d rows are %d runs, %d of them done",
        sum(len(study.rows) for study in studies) * len(ordered.seeds),
        len(jobs),
        sum(job.result() is not None for job in jobs),
    )
    failure: FmcnetError | None = None
    try:
        execute(
            jobs,
            ordered.jobs,
            out / "logs",
            device=ordered.device,
            progress=False if quiet else None,
            told=_tell(started, sum(job.result() is not None for job in jobs)),
        )
    except FmcnetError as error:
        failure = error
        if not any(job.result() for job in jobs):
            raise
    facts = write_study(
        studies,
        plan,
        jobs,
        ordered.report or out / "report",
        seeds=ordered.seeds,
        crossed=ordered.crossed,
        data=data_facts(tables[ordered.seeds[0]], base),
        command=ordered.command(),
        failed=str(failure) if failure else "",
        progress=False if quiet else None,
    )
    if failure:
        raise failure
    return facts


def make_jobs(plan: Plan, out: Path, data: Path | None = None) -> list[Job]:
    """The runs as jobs below `out`, their configurations written to out/plans; `data` as the user gave it."""
    (out / "plans").mkdir(parents=True, exist_ok=True)
    jobs = []
    for run in plan.runs:
        path, text = out / "plans" / f"{run.name}.yaml", run.config.to_yaml()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        folder = str(out / "runs" / run.name)
        jobs.append(Job(run.name, run.digest, str(path), str(data or run.data), folder))
    return jobs


def data_facts(table: Table, config: Config) -> dict[str, Any]:
    """What a report says of the data; `comparable`: whether the paper's figures may stand beside."""
    generated = (table.root / MANIFEST).is_file()
    people = {
        name: len(np.unique(table.select(split=splits).pid))
        for name, splits in (("test", "test"), ("train", config.data.train_splits))
    }
    return {
        "name": TITLES.get(table.name, table.name),
        "root": str(table.root),
        "generated": generated,
        "test_identities": people["test"],
        "train_identities": people["train"],
        "comparable": table.name == "sysu" and not generated and config.evaluation.mode == "all",
    }


def _source(ordered: Ordered) -> str:
    if ordered.config:
        return ordered.config
    if ordered.data is None:
        if ordered.preset not in CONFIGS:
            raise FmcnetError(
                f"unknown preset '{ordered.preset}' for a study: choose {' or '.join(CONFIGS)}, or give --config"
            )
        return CONFIGS[ordered.preset]
    layout = detect_layout(ordered.data)
    return layout if layout != "csv" else "generated"


def _tables(ordered: Ordered, config: Config, quiet: bool) -> dict[int, Table]:
    """The dataset of each seed."""
    if ordered.worlds not in ("same", "own"):
        raise FmcnetError(f"--worlds {ordered.worlds}: say same or own")
    if ordered.data is not None:
        if ordered.worlds == "own":
            raise FmcnetError("--worlds own is for the generated benchmark: real data have one world")
        table = read_dataset(ordered.data, layout=config.data.layout, trial=config.data.split)
        return dict.fromkeys(ordered.seeds, table)
    tables: dict[int, Table] = {}
    for world in dict.fromkeys(0 if ordered.worlds == "same" else seed for seed in ordered.seeds):
        folder = ordered.out / "data" / f"world-{world}"
        generate("sysu", ordered.preset, world, folder, progress=not quiet)
        tables[world] = read_dataset(folder)
    return {seed: tables[0 if ordered.worlds == "same" else seed] for seed in ordered.seeds}


def _tell(started: float, before: int) -> Any:
    def told(job: Job, done: int, of: int) -> None:
        found = job.result() or {}
        figures = ", ".join(
            f"{e['direction']} R1 {100 * e['mean']['rank1']:.2f} mAP {100 * e['mean']['mAP']:.2f}"
            for e in found.get("evaluations", [])
        )
        took = time.perf_counter() - started
        left = took / max(1, done - before) * (of - done)
        logger.info("%d/%d %s: %s; about %.0f min left", done, of, job.name, figures, left / 60)

    return told
