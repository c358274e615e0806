"""`fmcnet study`: plan the runs, complete those that are not finished, write one report."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from fmcnet.config import Config, load_config, shipped
from fmcnet.data.check import TITLES, unpublished_counts
from fmcnet.data.readers import check_split, detect_layout, read_dataset, warn_of_other_benchmark
from fmcnet.data.table import Table, fingerprint
from fmcnet.distributed import pick_device
from fmcnet.errors import ConfigError, FmcnetError
from fmcnet.experiments.report import dataset_facts
from fmcnet.experiments.rows import STUDIES, Study, TableRow, select_studies
from fmcnet.experiments.runs import StudyRun, is_generated
from fmcnet.experiments.study_report import write_study
from fmcnet.experiments.workers import LOGS, complete_runs
from fmcnet.synthetic import MANIFEST, generate

logger = logging.getLogger(__name__)

CONFIGS = {"tiny": "tiny", "small": "generated"}
"""The configuration of each preset of the generated benchmark."""


@dataclass(frozen=True)
class StudyOptions:
    """The options of `fmcnet study`."""

    name: str  # of the study, or "all"
    out: Path  # the study's folder
    data: Path | None = None  # a dataset's folder or CSV; None: generated data of `preset` in out/data
    preset: str = "small"  # of the generated benchmark
    config: str | None = None  # a YAML file or the name of a shipped one; None: the one for the data
    overrides: tuple[str, ...] = ()  # settings of all rows; a row's own settings win
    seeds: tuple[int, ...] = (0, 1, 2)  # of training
    budget: int | None = None  # steps of each run; None: the configuration's
    rows: tuple[str, ...] = ()  # keys of the rows to run; empty: all
    worlds: str = "same"  # all seeds train on generated world 0; "own": seed s on world s
    jobs: int = 1  # number of processes
    device: str = "auto"  # takes every GPU
    report: Path | None = None  # folder of results.md, results.json and figures/; None: out/report

    @property
    def crossed(self) -> bool:
        """Whether all seeds have one test set."""
        return self.data is not None or self.worlds == "same"

    def command(self) -> str:
        """The command with these options."""
        arguments = ["fmcnet", "study", self.name, "--out", str(self.out)]
        arguments += ["--data", str(self.data)] if self.data else ["--preset", self.preset]
        arguments += ["--config", self.config] if self.config else []
        arguments += ["--seeds", ",".join(map(str, self.seeds))]
        arguments += ["--budget", str(self.budget)] if self.budget else []
        arguments += ["--rows", ",".join(self.rows)] if self.rows else []
        arguments += ["--worlds", self.worlds] if self.worlds != "same" else []
        return shlex.join([*arguments, *self.overrides])

    @cached_property
    def source(self) -> str:
        """The configuration that all rows start from: a YAML file or the name of a shipped one."""
        if self.config is not None:
            return self.config
        if self.data is None:
            if self.preset not in CONFIGS:
                raise FmcnetError(
                    f"unknown preset '{self.preset}' for a study: choose {' or '.join(CONFIGS)}, or give --config"
                )
            return CONFIGS[self.preset]
        layout = detect_layout(self.data)
        return layout if layout in shipped() else "generated"

    def row_config(self, row: TableRow | None = None, seed: int = 0) -> Config:
        """Build the configuration of a row, or of the study without a row.

        Raises:
            ConfigError: for faults in any setting.
        """
        overrides = [*self.overrides, *self._budget_settings, "evaluation.direction=both"]
        overrides += [*(row.overrides if row else ()), f"training.seed={seed}"]
        return load_config(self.source, overrides)

    def check_overrides(self) -> None:
        """Refuse settings that the study's own options replace."""
        replaced = {
            "training.seed": "--seeds gives the seeds",
            "evaluation.direction": "a study takes both directions",
        }
        if self.budget is not None:
            replaced |= dict.fromkeys(
                [item.partition("=")[0] for item in self._budget_settings if item not in self.overrides],
                f"--budget {self.budget} gives the steps",
            )
        for item in self.overrides:
            if reason := replaced.get(item.partition("=")[0].strip()):
                raise FmcnetError(f"{reason}, so {item} would do nothing: leave it out")

    @cached_property
    def _budget_settings(self) -> list[str]:
        """Settings for a run of `budget` steps, in epochs of the configured length if that divides it."""
        if self.budget is None:
            return []
        if self.budget < 1:
            raise ConfigError(f"a budget of {self.budget} steps is none: give 1 or more")
        length = load_config(self.source, self.overrides).training.steps_per_epoch
        if not length or self.budget % length:
            return ["training.epochs=1", f"training.steps_per_epoch={self.budget}"]
        return [f"training.epochs={self.budget // length}", f"training.steps_per_epoch={length}"]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read "0,1,2" as numbers.

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


def run_study(options: StudyOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Run a study; `quiet` shows no bars. The same call continues it and repeats no finished run.

    Returns:
        The content of report/results.json, and the path of the report.

    Raises:
        FmcnetError: for a mistake in the options, and at the end for runs that failed.
    """
    studies = [study.only(options.rows) for study in select_studies(options.name)]
    studies = [study for study in studies if study.rows]
    if not studies:
        raise FmcnetError(f"study {options.name} has none of the rows {', '.join(options.rows)}")
    pick_device(options.device)
    check_folder(options.out, ("data", "plans", "runs", LOGS, "report"))
    for study in studies:
        for row in study.rows:
            options.row_config(row)  # faults are reported before any work
    base = options.row_config()
    tables = _read_tables(options, base, quiet)
    runs = plan_runs(studies, options, tables)
    for run in runs:
        run.write_config()
    finished = sum(run.result() is not None for run in runs)
    rows = sum(len(study.rows) for study in studies) * len(options.seeds)
    logger.info("%d rows are %d runs, %d of them done", rows, len(runs), finished)
    progress = False if quiet else None
    failure: FmcnetError | None = None
    try:
        complete_runs(runs, options.jobs, device=options.device, progress=progress)
    except FmcnetError as error:
        failure = error
        if not any(run.result() for run in runs):
            raise
    data = _data_facts(tables[options.seeds[0]], base)
    facts = write_study(studies, runs, options, data, str(failure or ""), progress)
    if failure:
        raise failure
    return facts


def check_folder(out: Path, own: Sequence[str]) -> None:
    """Refuse a folder that holds anything but the entries in `own`.

    Raises:
        FmcnetError: naming the other entries.
    """
    foreign = sorted(path.name for path in out.iterdir() if path.name not in own) if out.is_dir() else []
    if foreign:
        raise FmcnetError(f"{out} holds other things ({', '.join(foreign[:5])}): give a new folder as --out")


def plan_runs(studies: Sequence[Study], options: StudyOptions, tables: Mapping[int, Table]) -> list[StudyRun]:
    """List the runs of some studies: each distinct configuration once, even if several rows share it.

    They stand in the order of rows, all rows of the first seed first; `tables` are the datasets by seed.

    Raises:
        ConfigError: when a row's settings do not fit the configuration.
    """
    wanted = {row.key for study in studies for row in study.rows}
    # A run is named after the first of ALL rows that show it, so its name does not depend on the study.
    rows = {row.key: row for study in (*STUDIES.values(), *studies) for row in study.rows}
    runs: list[StudyRun] = []
    for seed in options.seeds:
        data = data_digest(tables[seed])
        configs = {key: options.row_config(row, seed) for key, row in rows.items()}
        keys_by_digest: dict[str, list[str]] = {}
        for key, config in configs.items():
            keys_by_digest.setdefault(run_digest(config, data), []).append(key)
        for digest, keys in keys_by_digest.items():
            if row_keys := tuple(key for key in keys if key in wanted):
                name = f"{keys[0]}-seed{seed}-{digest[:8]}"
                data_path = options.data or tables[seed].root
                runs.append(StudyRun(name, digest, configs[keys[0]], data_path, options.out, row_keys, seed))
    return runs


def data_digest(table: Table) -> str:
    """16 hex digits of a dataset. Two generated worlds differ by the seed in their manifest, not in file names."""
    content = (table.root / MANIFEST).read_bytes() if is_generated(table) else b""
    return hashlib.sha256(fingerprint(table, table.split).encode() + content).hexdigest()[:16]


def run_digest(config: Config, data: str) -> str:
    """16 hex digits of a configuration and a dataset.

    Settings are hashed in the order of `digest_settings.json`; a removed setting has its value there. A setting that
    is newer counts only if it differs from its default. So a finished run keeps its digest in later versions.
    """
    recorded = json.loads(files("fmcnet.experiments").joinpath("digest_settings.json").read_text("utf-8"))
    now, default = (tree.model_dump(mode="json") for tree in (config, Config()))
    hashed = {}
    for section, values in recorded.items():
        settings = now.get(section, {})
        hashed[section] = values | {
            name: value
            for name, value in settings.items()
            if name in values or value != default[section][name]
        }
    return hashlib.sha256(to_json(hashed) + f"|{data}".encode()).hexdigest()[:16]


def _data_facts(table: Table, config: Config) -> dict[str, Any]:
    """The dataset in a report; `comparable`: whether the paper's figures may stand beside."""
    test, settings = dataset_facts(table.select(split="test")), config.evaluation
    split = f" split {config.data.split}" if table.name == "regdb" else ""
    other = test["generated"] or unpublished_counts(table.name, test)
    return {
        "name": TITLES.get(table.name, table.name) + split,
        "root": test["root"],
        "generated": test["generated"],
        "test_identities": test["identities"],
        "train_identities": len(np.unique(table.select(split=config.data.train_splits).pid)),
        "comparable": table.name == "sysu" and (settings.mode, settings.shots) == ("all", 1) and not other,
    }


def _read_tables(options: StudyOptions, config: Config, quiet: bool) -> dict[int, Table]:
    """The dataset of each seed; generates worlds that are missing."""
    options.check_overrides()
    if options.worlds not in ("same", "own"):
        raise FmcnetError(f"--worlds {options.worlds}: say same or own")
    if options.data is not None:
        if options.worlds == "own":
            raise FmcnetError("--worlds own is for the generated benchmark: real data have one world")
        warn_of_other_benchmark(options.config, options.data)
        table = read_dataset(options.data, layout=config.data.layout, regdb_split=config.data.split)
        check_split(config, table.name)
        return dict.fromkeys(options.seeds, table)
    check_split(config, "sysu")
    worlds = {seed: 0 if options.worlds == "same" else seed for seed in options.seeds}
    tables: dict[int, Table] = {}
    for world in dict.fromkeys(worlds.values()):
        folder = options.out / "data" / f"world-{world}"
        generate("sysu", options.preset, world, folder, progress=not quiet)
        tables[world] = read_dataset(folder)
    return {seed: tables[world] for seed, world in worlds.items()}
