"""`fmcnet evaluate`: one run, or the ten of RegDB, by the dataset's protocol, with a report."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fmcnet.config import Config, DataConfig, EvaluationConfig, load_config
from fmcnet.data.check import unpublished_counts
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.distributed import agree, distributed_context, world_size
from fmcnet.errors import CheckpointError, ConfigError, DataError, ProtocolError, collect_warnings
from fmcnet.evaluation.evaluate import pool
from fmcnet.evaluation.evaluate_model import (
    EMBEDDINGS,
    DirectionResult,
    EvaluatedRun,
    check_settings,
    evaluate_model,
    standard_settings,
)
from fmcnet.evaluation.protocol_file import camera_names, read_protocol
from fmcnet.evaluation.protocols import DEFAULT_DIRECTIONS
from fmcnet.experiments.report import VARIANT_TITLES, dataset_facts, write_report
from fmcnet.experiments.runs import is_generated
from fmcnet.inference.embed import all_as_test, embed_shared
from fmcnet.inference.encoder import load
from fmcnet.models.card import CARD, ModelCard, read_card
from fmcnet.models.shipped import find_model, is_shipped
from fmcnet.training.checkpointing import checkpoints
from fmcnet.training.run_folder import check_splits, split_runs, unfinished_splits
from fmcnet.types import NO_PID

logger = logging.getLogger(__name__)

BATCH_AND_DISTANCE = ("batch", "distance")
"""Evaluation settings that are not part of a protocol."""
REGDB_DIRECTIONS = {"direction=v2t": "direction=v2i", "direction=t2v": "direction=i2v"}
STAMP = "SELECTED ON THE TEST SET: optimistic, and comparable with no figure that is not."


@dataclass(frozen=True)
class EvaluateResult:
    """Figures by direction, and where the report is."""

    run: Path  # what was evaluated
    runs: tuple[Path, ...]  # the run folders (several for RegDB's splits)
    evaluations: tuple[DirectionResult, ...]  # by direction; trials of several splits are pooled
    # A warning that must stand beside the figures, or "": weights selected on the test set, splits left out.
    stamp: str
    report: Path | None  # the path of report.md, None where none was written
    notes: tuple[str, ...] = ()  # one sentence for each thing that the dataset's reader left out or renamed
    warnings: tuple[str, ...] = ()  # what was logged besides, a sentence each

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that the figures are the mean of; none for a single run."""
        return () if self.runs == (self.run,) else tuple(run.name for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """For `--json` and `evaluation.json`."""
        return {
            "run": str(self.run),
            "runs": [str(run) for run in self.runs],
            "evaluations": [evaluation.to_dict() for evaluation in self.evaluations],
            "stamp": self.stamp,
            "report": str(self.report) if self.report else None,
            "notes": [*self.notes, *self.warnings],
        }


def evaluate_run(
    run: str | Path,
    data: str | Path,
    overrides: list[str] | None = None,
    *,
    flip: bool = False,
    rerank: bool = False,
    expand: bool = False,
    out: Path | None = None,
    report: bool = True,
    device: str = "auto",
    progress: bool | None = None,
    protocol: str | Path | None = None,
) -> EvaluateResult:
    """Evaluate a run, or a folder of RegDB splits, on a dataset's test identities.

    Args:
        run: a run folder, one that holds `split-NN` runs, or a shipped model's name.
        data: the dataset.
        overrides: evaluation settings that differ from the run's, as "mode=indoor". Without mode, shots or direction:
            all standard protocols of the benchmark (SYSU-MM01: all-search and indoor-search, single-shot).
        flip: as of `evaluate_model`; likewise `rerank`, `expand`, `device` and `progress`.
        out: where the report goes; None: `report` in the run's folder, or none where that is read-only or a shipped
            model's.
        report: whether to write one.
        protocol: a YAML file (`fmcnet.evaluation.protocol_file`) in place of the dataset's protocols.

    Returns:
        The figures and where the report is. Started by `torchrun`, the processes share the embedding; rank 0 does the
        rest, and the result is empty elsewhere.

    Raises:
        CheckpointError: when there is no run.
        ConfigError: for settings that the protocol file states.
        DataError, ProtocolError: when data and protocol do not fit, or a setting is another benchmark's.
    """
    overrides = overrides or []
    if protocol is not None:
        _refuse_protocol_settings(overrides, protocol)
    run = find_model(run)
    runs = _find_runs(run)
    if world_size() > 1:
        if not is_shipped(run):  # the package is read-only: rank 0 computes these embeddings
            given = [item for name, item in _setting_names(overrides).items() if name == "batch"]
            batches = {folder: _settings(read_card(folder), given).batch for folder in runs}
            _embed_together(batches, data, protocol is not None, flip, device, progress)
        if int(os.environ["RANK"]):
            return EvaluateResult(run, runs, (), "", None)
    options: dict[str, Any] = {"flip": flip, "rerank": rerank, "expand": expand}
    options |= {"device": device, "progress": progress}
    with collect_warnings() as warnings:
        evaluated = [_evaluate_one(folder, data, overrides, protocol, options) for folder in runs]
        parts = [part for part, _ in evaluated]
        notes = tuple(dict.fromkeys(note for _, part_notes in evaluated for note in part_notes))
        stamps = [STAMP] if any(part.encoder.card.selected == "test" for part in parts) else []
        if runs != (run,) and (unfinished := unfinished_splits(run)):
            names = ", ".join(path.name for path in unfinished)
            stamps.append(f"NOT FINISHED and left out of the mean: {names}. Train on with --resume.")
        stamp = " ".join(stamps)
        pooled = _pool(parts)
        folder = out or (None if is_shipped(run) else run / "report")
        report_path = None
        if folder is not None and report:
            title = VARIANT_TITLES[pooled.encoder.model.variant]
            extra: dict[str, Any] = {"notes": [*notes, *warnings]}
            extra |= {"splits": len(parts), "stamp": stamp} if runs != (run,) or stamp else {}
            try:
                report_path = write_report({title: pooled}, folder, extra=extra, keep=True)
            except OSError as error:
                if out is not None:
                    raise
                logger.warning(
                    "no report in %s (%s): --out FOLDER writes one elsewhere", folder, error.strerror
                )
    return EvaluateResult(run, runs, pooled.evaluations, stamp, report_path, notes, tuple(warnings))


def _setting_names(overrides: Sequence[str]) -> dict[str, str]:
    """Each override, as "mode=indoor", by the name of its evaluation setting."""
    for item in overrides:
        if "=" not in item:
            raise ConfigError(
                f"'{item}' is no setting (key=value, as shots=10): the run is the first argument, the dataset the "
                "option --data"
            )
        section, dot, _ = item.partition("=")[0].strip().partition(".")
        if dot and section in Config.model_fields and section != "evaluation":
            raise ConfigError(
                f"override '{item}': an evaluation takes settings of the section evaluation, as shots=10; those of "
                f"the section {section} are the run's"
            )
    return {item.partition("=")[0].strip().removeprefix("evaluation."): item for item in overrides}


def _refuse_protocol_settings(overrides: Sequence[str], protocol: str | Path) -> None:
    """Refuse a benchmark's name in place of a protocol file, and settings that the file states."""
    if str(protocol) in DEFAULT_DIRECTIONS and not Path(protocol).exists():
        raise ConfigError(
            f"--protocol {protocol}: evaluate takes a YAML file here. Without --protocol it uses the "
            "benchmark's own protocols"
        )
    for name, item in _setting_names(overrides).items():
        if name in EvaluationConfig.model_fields and name not in BATCH_AND_DISTANCE:
            raise ConfigError(
                f"{item} beside --protocol {protocol}: the file states the protocol; only "
                f"{' and '.join(BATCH_AND_DISTANCE)} may be given"
            )


def _find_runs(run: Path) -> tuple[Path, ...]:
    """The run itself, or the RegDB splits in its folder."""
    if (run / CARD).is_file():
        return (run,)
    if runs := split_runs(run):
        check_splits(runs)
        return tuple(runs)
    if unfinished := checkpoints(run):
        raise CheckpointError(
            f"{run} is not finished (it stopped at {unfinished[-1].name}): train on with --resume"
        )
    raise CheckpointError(f"{run} holds no finished run: give the --out folder of fmcnet train")


def _evaluate_one(
    run: Path,
    data: str | Path,
    overrides: Sequence[str],
    protocol: str | Path | None,
    options: dict[str, Any],
) -> tuple[EvaluatedRun, list[str]]:
    """Evaluate one run, with `options` of `evaluate_model`; the notes are sentences for the user."""
    card = read_card(run)
    table = all_as_test(_read_table(data, card.config.data, unknown=protocol is not None), data, card)
    if table.name == "regdb":
        overrides = [REGDB_DIRECTIONS.get(item.removeprefix("evaluation."), item) for item in overrides]
    names = _setting_names(overrides)  # refuses other sections
    settings = _settings(card, overrides)
    if is_shipped(run) and "direction" not in names:
        # It is for several benchmarks, each with its own direction.
        settings = settings.model_copy(update={"direction": "auto"})
    check_settings(table, names)
    notes = ["GENERATED data: these figures compare with no published one"] if is_generated(table) else []
    if not notes and protocol is None:
        counts = unpublished_counts(table.name, dataset_facts(table.select(split="test")))
        notes += [counts] if counts else []
    notes += [note for note in table.notes if not note.startswith(("train: ", "val: "))]
    standard = standard_settings(table, settings)
    if protocol is not None:
        rules = read_protocol(protocol, table.select(split="test"))
        if rules.skip.pairs and (cameras := camera_names(table)):
            notes.append(f"cameras: {cameras}")
        options = {**options, "given": {"custom": rules}}
    elif len(standard) > 1 and not names.keys() & {"mode", "shots", "direction"}:
        try:
            return evaluate_model(run, table, standard, **options), notes
        except ProtocolError as error:  # a part of SYSU-MM01 may lack the indoor cameras
            notes.append(f"indoor-search was left out: {error}")
    return evaluate_model(run, table, settings, **options), notes


def _settings(card: ModelCard, overrides: Sequence[str]) -> EvaluationConfig:
    """The run's evaluation settings with those given."""
    stored = {"evaluation": card.config.evaluation.model_dump(mode="json")}
    items = [f"evaluation.{item.removeprefix('evaluation.')}" for item in overrides]
    return load_config(stored, items).evaluation


def _read_table(data: str | Path, settings: DataConfig, *, unknown: bool) -> Table:
    """Read the dataset; with `unknown`, also a CSV with unknown identities, which a protocol may use."""
    try:
        return read_dataset(data, layout=settings.layout, regdb_split=settings.split)
    except DataError:
        if unknown:
            with contextlib.suppress(DataError):
                table = read_dataset(data, layout=settings.layout, training=False)
                if (table.pid == NO_PID).any() and all(map(Path.is_file, table.full_paths())):
                    return table
        raise


def _pool(parts: Sequence[EvaluatedRun]) -> EvaluatedRun:
    """The last run, with the trials of all runs pooled in each evaluation."""
    if len(parts) == 1:
        return parts[0]
    pooled = []
    for results in zip(*(part.evaluations for part in parts), strict=True):
        pooled.append(replace(results[0], result=pool([result.result for result in results])))
    return replace(parts[-1], evaluations=tuple(pooled), parts=tuple(parts))


def _embed_together(
    batches: dict[Path, int], data: str | Path, unknown: bool, flip: bool, device: str, progress: bool | None
) -> None:
    """Compute the runs' embeddings on all processes and store them for the evaluation.

    `batches` has for each run how many images are embedded at once; `unknown` as `_read_table`.
    """
    with distributed_context(device) as ctx:
        for run, batch in batches.items():
            encoder = load(run, str(ctx.device))
            table = _read_table(data, encoder.card.config.data, unknown=unknown)
            table = all_as_test(table, data, encoder.card).select(split="test")
            store = run / EMBEDDINGS
            for mirror in (False, True) if flip else (False,):
                embeddings_file = encoder.kept_at(table, mirror, store)
                [missing] = agree([embeddings_file is None or not embeddings_file.is_file()], ctx)
                if missing:
                    embed_shared(
                        encoder, table, ctx, batch_size=batch, flip=mirror, store=store, progress=progress
                    )
