"""Training: one loop over batches, with validation, checkpoints and exact resume."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.loader import TrainingBatch, TrainingImages, load_batches
from fmcnet.data.overlap import sample_pictures
from fmcnet.data.readers import read_dataset
from fmcnet.data.samplers import make_sampler
from fmcnet.data.table import Table, fingerprint
from fmcnet.distributed import (
    DistributedContext,
    agree,
    agree_on_errors,
    distributed_context,
    keep_freed_memory,
    mark_agreed,
    resident_bytes,
)
from fmcnet.errors import ConfigError, Interrupted, TrainingError, translate_errors
from fmcnet.losses.criterion import ExtraTerm, check_extra_terms
from fmcnet.models.backbone import make_backbone
from fmcnet.models.build import build_model
from fmcnet.models.card import ModelCard
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import load_pretrained
from fmcnet.progress import Progress
from fmcnet.training.checkpointing import Checkpointer, checkpoints, drop_others
from fmcnet.training.folder import check_folder, open_folder
from fmcnet.training.loggers import StepLogger, Tracker, check_trackers
from fmcnet.training.profiler import StepProfile
from fmcnet.training.selection import BATCHES, ModelSelection, estimate_statistics, hold_out
from fmcnet.training.train_step import MEASURED, NotFinite, TrainStep, precision

logger = logging.getLogger(__name__)

LOGGED = ("loss", "rate", "lr", "step", "epoch", "validated_step")
"""Names of a record of the log that are no terms."""


@dataclass(frozen=True)
class TrainingSummary:
    """What `train` did; `steps` are those of the whole training, `seconds` the time of this call."""

    run: Path
    variant: str
    dataset: str
    steps: int
    resumed_from: int
    seconds: float
    images_per_second: float
    images: int
    identities: int
    parameters: int
    last_terms: dict[str, float]
    selected: str

    def to_dict(self) -> dict[str, Any]:
        """Convert for `--json`."""
        return {**asdict(self), "run": str(self.run)}


def train(
    config: Config,
    data: str | Path | Table,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    progress: bool | None = None,
    description: str = "training",
    trackers: Sequence[str | Tracker] = (),
    profile: bool = False,
    terms: Mapping[str, ExtraTerm] | None = None,
) -> TrainingSummary:
    """Train FMCNet or a variant, and write a run folder that evaluates and embeds.

    Args:
        config: all settings of the run.
        data: a dataset's folder or CSV, or a table.
        out: the run folder: config.yaml, log.jsonl, checkpoints/, model.safetensors, model.json.
        resume: continue from the newest undamaged checkpoint in `out`. The result equals an uninterrupted run, bit
            for bit on the CPU. Without a checkpoint the training starts.
        device: "auto", "cpu", "cuda", "cuda:1", "mps". Started by `torchrun`, each process takes its own.
        progress: show a bar; None: on a terminal only.
        description: shown beside the bar.
        trackers: beside the log: "tensorboard", "wandb", or objects with the methods of `Tracker`.
        profile: profile a few steps and write RUN/profile.
        terms: losses of your own by name: functions of a batch's `FMCNetOutput` and its labels (P*K,) that give a
            scalar. `config.losses.terms` weighs them. They are part of the total and of the log. A resume needs terms
            of the same names.

    Returns:
        The summary, on every process.

    Raises:
        FmcnetError: for unusable data, configuration or folder; `TrainingError` when a loss term is no
            longer finite, naming the term and the last good checkpoint.
        Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    run = Path(out)
    with distributed_context(device) as ctx:
        if ctx.device.type == "cpu":
            keep_freed_memory()
        with agree_on_errors(ctx):
            make_backbone(config.model.arch)  # raises for an unknown name before images are read
            extra_terms = check_extra_terms(terms, config.losses, {*MEASURED, *LOGGED})
            if ctx.main:
                check_folder(run, config, resume)
                check_trackers([name for name in trackers if isinstance(name, str)])
        with agree_on_errors(ctx):
            if not isinstance(data, Table):
                data = read_dataset(data, layout=config.data.layout, trial=config.data.split)
            if config.data.split != 1 and data.name != "regdb":
                raise ConfigError(
                    f"data.split is for RegDB; the data are {data.name}, which has one: leave it out"
                )
            trainer = Trainer(config, data, run, ctx, resume=resume, progress=progress, terms=extra_terms)
        with ExitStack() as stack:
            with agree_on_errors(ctx):  # only now, so that an error in data or settings leaves no run folder
                if ctx.main:
                    stack.enter_context(open_folder(run, config))
            return trainer.fit(description, trackers, profile)


def total_steps(config: Config, table: Table, world: int = 1) -> int:
    """Count the steps that `train` will take on this table."""
    rows = hold_out(table, config).select(split=config.data.train_splits)
    sampler = make_sampler(config, rows, rows.labels()[0], 0, world)
    return config.training.epochs * sampler.steps // config.training.accumulate


class Trainer:
    """One training: reads the images and builds the model; `fit` trains it. Arguments and errors as `train`."""

    def __init__(
        self,
        config: Config,
        table: Table,
        run: Path,
        ctx: DistributedContext,
        *,
        resume: bool,
        progress: bool | None,
        terms: Mapping[str, ExtraTerm],
    ) -> None:
        self._config, self._run, self._ctx = config, run, ctx
        self._resume, self._progress, self._terms = resume, progress, terms
        table = hold_out(table, config)
        rows = table.select(split=config.data.train_splits)
        self._labels, pids = rows.labels()
        self._sampler = make_sampler(config, rows, self._labels, ctx.rank, ctx.world)
        self._selection = ModelSelection(config, table, run, ctx)
        precision(config.training.precision, ctx.device)  # raises where the device lacks it
        if ctx.main:
            for note in (*table.notes, *self._sampler.notes):
                logger.info("%s", note)
        folder = cache_folder(config.data.cache, table.root)
        self._cache = ImageCache(
            rows, config.data.height, config.data.width, folder=folder, progress=progress
        )
        torch.manual_seed(config.training.seed)
        self._model = build_model(config.model, len(pids))
        if not (resume and checkpoints(run)):
            load_pretrained(self._model, config.model.pretrained, config.model.arch)
        # Dropout differs between processes.
        torch.manual_seed((config.training.seed * 1_000_003 + ctx.rank) % 2**63)
        self._card = ModelCard(
            *(config, tuple(int(pid) for pid in pids), table.name, 0, fingerprint(table)),
            samples=sample_pictures(self._cache.table) if ctx.main else (),
        )
        accumulate = config.training.accumulate
        self._epoch = self._sampler.steps // accumulate  # its number of steps
        self._steps = config.training.epochs * self._epoch
        self._images = 2 * self._sampler.identities * self._sampler.images * accumulate * ctx.world

    def fit(self, description: str, trackers: Sequence[str | Tracker], profile: bool) -> TrainingSummary:
        """Train from the newest checkpoint (or the start) to the last step, and write the model."""
        config, ctx = self._config, self._ctx
        self._step = TrainStep(config, self._model, ctx, self._sampler.identities, self._steps, self._terms)
        self._logger = StepLogger(self._run, config, self._steps)
        self._checkpointer = Checkpointer(
            self._run, ctx, self._step, self._card, self._selection, self._logger, self._invariants()
        )
        self._started = time.perf_counter()
        self._first = first = self._checkpointer.restore() if self._resume else 0
        bar = Progress(description, self._steps, first, show=self._progress if ctx.main else False)
        profiler = StepProfile(self._run, ctx.device.type == "cuda") if profile and ctx.main else None
        accumulate = config.training.accumulate
        batches = self._load(config.augment, first * accumulate, self._steps * accumulate)
        try:
            with agree_on_errors(ctx):
                if ctx.main:
                    self._logger.open(trackers, first)
            self._checkpointer.saved = time.monotonic()
            with StopAtStepEnd() as stop:
                with bar, profiler or nullcontext():
                    for step in range(first, self._steps):
                        with record_function("fmcnet: data"):
                            drawn = list(islice(batches, accumulate))
                        with translate_errors(compiled=config.training.compile):
                            self._step.step(drawn, step)
                        if profiler:
                            profiler.step()
                        self._after(step + 1, stop, bar)
                return self._finish()
        finally:
            self._logger.close()
            if profiler and profiler.table:
                logger.info("%s\nthe profile: %s", profiler.table, profiler.folder)

    def _invariants(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resume, beside the settings."""
        return {
            "data": fingerprint(self._cache.table, self._cache.table.split),
            "processes": self._ctx.world,
            "steps": self._steps,
            "precision": str(self._step.precision).removeprefix("torch."),
            "device": self._ctx.device.type,
            "pixels": self._cache.digest(),
            "discriminators": "Adam, betas 0.5 and 0.999" if self._model.compensation else None,
            "own_terms": ", ".join(sorted(self._terms)) or None,
        }

    def _load(self, augment: AugmentConfig, first: int, last: int) -> Iterator[TrainingBatch]:
        """Batches `first` to `last - 1` on the device."""
        dataset = TrainingImages(
            self._cache.images,
            self._labels,
            self._cache.table.modality,
            augment,
            seed=self._config.training.seed,
            draws=self._sampler.identities * self._sampler.images * self._ctx.world,
        )
        return load_batches(dataset, self._sampler, self._ctx.device, first, last)

    def _after(self, done: int, stop: StopAtStepEnd, bar: Progress) -> None:
        """What follows a step: reading its values, validation, a checkpoint, stopping."""
        training = self._config.training
        minutes = (time.monotonic() - self._checkpointer.saved) / 60
        late = self._ctx.main and 0 < training.checkpoint_minutes < minutes
        stopping, due = agree([stop.signals > 0, late], self._ctx)
        validates = done % self._epoch == 0 and self._selection.due(done // self._epoch)
        saves = done < self._steps and (stopping or due or done % training.checkpoint_every == 0)
        note, ends = "", done % self._epoch == 0
        if done % training.log_every == 0 or ends or saves or done == self._steps:
            self._read()
            rate = (done - self._first) * self._images / (time.perf_counter() - self._started)
            epoch = f"epoch {done // self._epoch}/{training.epochs}" if ends else ""
            terms = self._logger.terms
            loss = f"loss {terms['loss']:.2f}" if "loss" in terms else ""
            note = ", ".join(filter(None, (loss, f"{rate:.0f} images/s", _memory(self._ctx.device), epoch)))
            if self._ctx.main:
                every = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                logger.debug("step %d: %s", done, every)
        bar.advance(note, line=ends)
        if validates:
            record = self._selection.validate(self._export(), replace(self._card, step=done), done)
            self._logger.write([record] if record else [], "validated_step")
            with agree_on_errors(self._ctx):
                self._selection.write()
        if saves:
            self._checkpointer.save(done, must=stopping)
        if stopping and done < self._steps:
            raise Interrupted(
                f"stopped after step {done} of {self._steps}; the checkpoint is in {self._run / 'checkpoints'}",
                143 if stop.terminated else 130,
            )

    def _read(self) -> None:
        try:
            records = self._step.read()
        except NotFinite as error:
            good = checkpoints(self._run)
            where = f"the last good checkpoint is {good[-1]}" if good else "there was no checkpoint yet"
            raise mark_agreed(
                TrainingError(
                    f"step {error.step}: {', '.join(error.names)} became NaN or infinite; {where}. "
                    "Train into a new --out with a lower training.lr, with training.clip, or training.precision=fp32."
                )
            ) from error
        for record in records:
            record["epoch"] = (int(record["step"]) - 1) // self._epoch + 1
        self._logger.write_steps(records)

    def _export(self) -> FMCNet:
        """The model for inference: validated, selected and written in this form (every process must call)."""
        model = self._step.export()
        if self._config.model.normalization == "modality" or self._config.model.standardized:
            plain = AugmentConfig(pad=0, flip=0, erase=0, channel="none")
            first = self._steps * self._config.training.accumulate
            batch = self._config.data.identities * self._config.data.images * 2 * self._ctx.world
            one_pass = -(-len(self._cache) // batch)
            last = first + min(BATCHES, one_pass)
            estimate_statistics(model, lambda: self._load(plain, first, last), self._ctx.world)
        return model

    def _finish(self) -> TrainingSummary:
        seconds = time.perf_counter() - self._started
        if self._first < self._steps:
            self._checkpointer.save(self._steps, must=True)
        elif self._ctx.main:
            drop_others(self._run, self._steps, self._config.training.keep)
        exported = self._export()
        with agree_on_errors(self._ctx):
            if self._ctx.main:
                self._checkpointer.write_model(exported)
                if self._config.model.descriptor == "discriminant":
                    self._checkpointer.write_projection(self._cache.table, self._progress)
        return TrainingSummary(
            run=self._run,
            variant=exported.variant,
            dataset=self._card.dataset,
            steps=self._steps,
            resumed_from=self._first,
            seconds=seconds,
            images_per_second=(self._steps - self._first) * self._images / seconds,
            images=len(self._cache),
            identities=self._card.classes,
            parameters=sum(p.numel() for p in exported.parameters()),
            last_terms=self._logger.terms,
            selected=self._checkpointer.selected(),
        )


def _memory(device: torch.device) -> str:
    """Peak memory of the GPU, else memory of the process."""
    size = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
    return f"{size / 2**30:.1f} GiB" if size else ""


class StopAtStepEnd:
    """Ctrl-C or SIGTERM ends the training after the current step, with a checkpoint; a third signal ends it at once.

    Two signals count as one: a terminal and a parent process may both deliver the same Ctrl-C.
    """

    def __init__(self) -> None:
        self.signals = 0
        self.terminated = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopAtStepEnd:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, *_: object) -> None:
        self.signals += 1
        self.terminated |= number == signal.SIGTERM
        if self.signals > 2:
            raise KeyboardInterrupt
