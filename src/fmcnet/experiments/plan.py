"""From studies to the runs they need: each distinct configuration once, whatever number of rows shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmcnet.config import Config, load_config
from fmcnet.data.table import Table, fingerprint
from fmcnet.errors import ConfigError
from fmcnet.experiments.rows import STUDIES, Row, Study
from fmcnet.synthetic import MANIFEST


@dataclass(frozen=True)
class PlannedRun:
    """One training and its evaluation.

    Attributes:
        name: of its folder: a row's key, the seed and the start of the digest.
        digest: 16 hex digits of configuration and data; equal digests are one run.
        config: everything that defines it. data: the dataset.
        rows: keys of the rows that show it. seed: of the training.
    """

    name: str
    digest: str
    config: Config
    data: Path
    rows: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Plan:
    """All runs of some studies.

    Attributes:
        runs: in the order of rows, all rows of the first seed first.
        names: the run's name by (row's key, seed).
    """

    runs: tuple[PlannedRun, ...]
    names: dict[tuple[str, int], str]

    def run(self, name: str) -> PlannedRun:
        """The run of a name."""
        return next(run for run in self.runs if run.name == name)


@dataclass(frozen=True)
class Settings:
    """What all rows of a study start from.

    Attributes:
        source: a YAML file or the name of a shipped one. overrides: the user's.
        budget: steps of each run; None: the configuration's.
    """

    source: str
    overrides: tuple[str, ...] = ()
    budget: int | None = None

    def config(self, row: Row | None = None, seed: int = 0) -> Config:
        """The configuration of a row (None: of none), the row's settings over the user's.

        Raises:
            ConfigError: for faults in any of them.
        """
        given = load_config(self.source, list(self.overrides))
        items = [*self.overrides, *_budget(given, self.budget), "evaluation.direction=both"]
        items += [*(row.overrides if row else ()), f"training.seed={seed}"]
        return load_config(self.source, items)


def _budget(config: Config, steps: int | None) -> list[str]:
    """Overrides that make a run `steps` long, in epochs of the configured length where that goes."""
    if steps is None:
        return []
    if steps < 1:
        raise ConfigError(f"a budget of {steps} steps is none: give 1 or more")
    each = config.training.steps_per_epoch
    epochs, rest = divmod(steps, each) if each else (1, 1)
    if rest:
        return ["training.epochs=1", f"training.steps_per_epoch={steps}"]
    return [f"training.epochs={epochs}", f"training.steps_per_epoch={each}"]


def data_digest(table: Table) -> str:
    """16 hex digits that name a dataset; two generated worlds differ by their seed, though not in file names."""
    manifest = table.root / MANIFEST
    content = manifest.read_bytes() if manifest.is_file() else b""
    return hashlib.sha256(fingerprint(table, table.split).encode() + content).hexdigest()[:16]


def make_plan(
    studies: Sequence[Study], settings: Settings, seeds: Sequence[int], data: Callable[[int], Table]
) -> Plan:
    """The runs of some studies.

    Args:
        studies: whose rows are wanted.
        settings: the rows' common start.
        seeds: of training.
        data: the dataset of a seed.

    Raises:
        ConfigError: when a row's settings do not fit the configuration.
    """
    wanted = {row.key for study in studies for row in study.rows}
    # Names come from the order of ALL rows, so that a run has one name whichever studies are asked for.
    every = {row.key: row for study in STUDIES.values() for row in study.rows}
    every |= {row.key: row for study in studies for row in study.rows}
    runs: list[PlannedRun] = []
    names: dict[tuple[str, int], str] = {}
    for seed in seeds:
        table = data(seed)
        digests: dict[str, list[str]] = {}
        configs: dict[str, Config] = {}
        marked = data_digest(table)
        for key, row in every.items():
            config = settings.config(row, seed)
            digest = hashlib.sha256(f"{config.model_dump_json()}|{marked}".encode()).hexdigest()[:16]
            digests.setdefault(digest, []).append(key)
            configs[digest] = config
        for digest, keys in digests.items():
            shown = tuple(key for key in keys if key in wanted)
            if not shown:
                continue
            name = f"{keys[0]}-seed{seed}-{digest[:8]}"
            runs.append(PlannedRun(name, digest, configs[digest], table.root, shown, seed))
            names |= {(key, seed): name for key in shown}
    return Plan(tuple(runs), names)
