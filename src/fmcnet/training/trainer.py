"""Training: one loop over batches, with validation, checkpoints and exact resume."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.cache import ImageCache
from fmcnet.data.loader import TrainingBatch, TrainingImages, load_batches, make_sampler
from fmcnet.data.readers import check_split, detect_layout, read_dataset
from fmcnet.data.table import Table, fingerprint, hold_out, sample_images, seen_identities
from fmcnet.distributed import (
    DistributedContext,
    agree,
    agree_on_errors,
    distributed_context,
    keep_freed_memory,
    mark_agreed,
    resident_bytes,
)
from fmcnet.errors import CheckpointError, ConfigError, Interrupted, TrainingError, translate_errors
from fmcnet.losses.criterion import ExtraTerm, check_extra_terms
from fmcnet.models.backbones import make_backbone
from fmcnet.models.build import build_model, last_stride_matters
from fmcnet.models.card import ModelCard, read_card
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import is_model, load_pretrained
from fmcnet.models.shipped import find_model
from fmcnet.processes import StopAtStepEnd
from fmcnet.progress import Progress
from fmcnet.training.checkpointing import Checkpointer, checkpoints, drop_others
from fmcnet.training.loggers import StepLogger, Tracker, check_trackers
from fmcnet.training.profile import StepProfile
from fmcnet.training.run_folder import check_folder, open_folder, split_folder
from fmcnet.training.selection import (
    STATISTICS_BATCHES,
    ModelSelection,
    estimate_statistics,
    write_projection,
)
from fmcnet.training.train_step import NO_TERMS, NotFinite, TrainStep, precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """What `train` did.

    Attributes:
        run: the run folder.
        variant: row of the paper's Table 2: "base", "sfd", "fmc" or "full".
        dataset: name of the table.
        steps: of the whole training.
        resumed_from: steps done before this call.
        seconds: time of the steps of this call, with validation.
        images_per_second: in that time.
        images: number of training images.
        identities: number of training identities.
        parameters: of the model.
        last_terms: of the last step, by name.
        selected: how the weights were picked: "last", "val" or "test".
    """

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
        FmcnetError: for unusable data, configuration or folder; `TrainingError` when a loss term becomes NaN or
            infinite, naming the term and the last good checkpoint.
        Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"config is of type {type(config).__name__}: give what load_config returns")
    run = Path(out)
    with distributed_context(device) as ctx, ExitStack() as stack:
        if ctx.device.type == "cpu":
            keep_freed_memory()
        with agree_on_errors(ctx):
            make_backbone(config.model.arch)  # raises for an unknown name before images are read
            extra_terms = check_extra_terms(terms, config.losses, NO_TERMS)
            if ctx.main:
                check_folder(run, config, resume)
                check_trackers([name for name in trackers if isinstance(name, str)])
        with agree_on_errors(ctx):
            table = data
            if not isinstance(table, Table):
                table = read_dataset(table, layout=config.data.layout, regdb_split=config.data.split)
            if not resume:  # a resume keeps the settings of its run
                check_split(config, table.name)
        trainer = Trainer(config, table, run, ctx, extra_terms, stack, resume=resume, progress=progress)
        return trainer.fit(description, trackers, profile)


def train_splits(
    config: Config,
    data: str | Path,
    out: Path,
    splits: Sequence[int],
    *,
    resume: bool = False,
    device: str = "auto",
    **options: Any,
) -> list[TrainingSummary]:
    """Train one run for each of RegDB's splits (1 to 10), in `out/split-NN`; `options` are further ones of `train`.

    Raises:
        ConfigError: for a dataset without splits.
        FmcnetError: as `train`; what a split lacks, or a folder that may not be used, is told before the first step.
    """
    layout = config.data.layout if config.data.layout != "auto" else detect_layout(data)
    if layout != "regdb":
        raise ConfigError(f"--splits is for RegDB; {data} is {layout}, which has one split")
    options |= {"resume": resume, "device": device}
    runs = []  # of each split its number, folder and settings
    for split in splits:
        data_config = config.data.model_copy(update={"split": split})
        runs.append((split, split_folder(out, split), config.model_copy(update={"data": data_config})))
    summaries = []
    with distributed_context(device) as ctx:  # joins the process group once, not once a split
        with agree_on_errors(ctx):
            for split, folder, split_config in runs:
                if ctx.main:
                    check_folder(folder, split_config, resume)
                read_dataset(data, layout=layout, regdb_split=split)
        for split, folder, split_config in runs:
            summaries.append(train(split_config, data, folder, description=f"split {split}", **options))
    return summaries


class Trainer:
    """One training: its images, model and optimisers, then the loop over steps with log, validation and checkpoints.

    Arguments as of `train`; `stack` gets the lock of the run folder. Every process must call.
    """

    def __init__(
        self,
        config: Config,
        table: Table,
        run: Path,
        ctx: DistributedContext,
        terms: Mapping[str, ExtraTerm],
        stack: ExitStack,
        *,
        resume: bool,
        progress: bool | None,
    ) -> None:
        data, seed = config.data, config.training.seed
        self._config, self._run, self._ctx, self._terms = config, run, ctx, terms
        self._resume, self._progress = resume, progress
        self._first, self._started = 0, 0.0  # steps done before `fit`, and when it started
        self._last: FMCNet | None = None  # the model after the last step, if it was validated
        with agree_on_errors(ctx):
            table = hold_out(table, config)
            rows = table.select(split=data.train_splits)
            self._labels, pids = rows.labels()
            self._sampler = make_sampler(config, rows, self._labels, ctx.rank, ctx.world)
            self._steps_per_epoch = self._sampler.steps // config.training.accumulate
            self._steps = config.training.epochs * self._steps_per_epoch
            self._selection = ModelSelection(config, table, run, ctx)
            precision(config.training.precision, ctx.device)  # raises if the device lacks it
            if ctx.main:
                for note in (*table.notes, *self._sampler.notes):
                    logger.info("%s", note)
            self._cache = ImageCache(rows, data.height, data.width, folder=data.cache, progress=progress)
            torch.manual_seed(seed)
            model = build_model(config.model, len(pids))
            if not (resume and checkpoints(run)):
                load_pretrained(model, config.model.pretrained, config.model.arch)
            if ctx.main and config.model.last_stride != 1 and not last_stride_matters(config.model):
                logger.warning(
                    "model.last_stride=%d does nothing here: a tail of model.tail_blocks=%s blocks ends before it",
                    config.model.last_stride,
                    config.model.tail_blocks,
                )
            torch.manual_seed((seed * 1_000_003 + ctx.rank) % 2**63)  # for draws of own terms
            self._card = ModelCard(
                config=config,
                pids=tuple(int(pid) for pid in pids),
                dataset=table.name,
                step=0,
                data=fingerprint(table),
                identities=tuple(np.unique(rows.identity_numbers()).tolist()),
                samples=sample_images(self._cache.table) if ctx.main else (),
                start_samples=_start_samples(config, run, resume) if ctx.main else (),
            )
            _warn_of_seen_identities(self._card, table)
        with agree_on_errors(ctx):  # after the data, whose errors leave no run folder; before the GPU is used
            if ctx.main:
                stack.enter_context(open_folder(run, config))
            self._pixels = self._cache.digest()
        self._train_step = TrainStep(config, model, ctx, self._sampler.identities, self._steps, terms)
        self._logger = StepLogger(run, config, self._steps)
        self._checkpointer = Checkpointer(
            run, ctx, self._train_step, self._card, self._selection, self._logger, self._invariants()
        )

    def fit(self, description: str, trackers: Sequence[str | Tracker], profile: bool) -> TrainingSummary:
        """Train from the newest checkpoint (or the start) to the last step, and write the model."""
        ctx, accumulate = self._ctx, self._config.training.accumulate
        self._started = time.perf_counter()
        self._first = self._checkpointer.restore() if self._resume else 0
        bar = Progress(description, self._steps, self._first, show=self._progress if ctx.main else False)
        profiler = StepProfile(self._run, ctx.device.type == "cuda") if profile and ctx.main else None
        batches = self._batches(self._config.augment, self._first * accumulate, self._steps * accumulate)
        try:
            with agree_on_errors(ctx):
                if ctx.main:
                    self._logger.open(trackers, self._first)
            with StopAtStepEnd() as stop:
                with profiler or nullcontext(), bar:
                    for step in range(self._first, self._steps):
                        with record_function("fmcnet: data"):
                            step_batches = list(islice(batches, accumulate))
                        with translate_errors(compiled=self._config.training.compile):
                            self._train_step.step(step_batches, step)
                        if profiler:
                            profiler.step()
                        self._after_step(step + 1, stop, bar)
                return self._finish()
        finally:
            self._logger.close()

    def _after_step(self, done: int, stop: StopAtStepEnd, bar: Progress) -> None:
        """Log, validate, save and stop, each if due after `done` steps."""
        training = self._config.training
        epoch_ends = done % self._steps_per_epoch == 0
        stopping, late = agree([stop.signals > 0, self._ctx.main and self._checkpointer.late()], self._ctx)
        saves = done < self._steps and (stopping or late or done % training.checkpoint_every == 0)
        logs = epoch_ends or saves or done % training.log_every == 0
        if logs:
            self._write_log(done)
        bar.advance(self._note(done) if logs else "", line=epoch_ends)
        if epoch_ends and self._selection.due(done // self._steps_per_epoch):
            self._validate(done)
        if saves:
            self._checkpointer.save(done, must=stopping)
            if stopping:
                raise Interrupted(
                    f"stopped after step {done} of {self._steps}; the checkpoint is in {self._run / 'checkpoints'}",
                    143 if stop.terminated else 130,
                )

    def _finish(self) -> TrainingSummary:
        """Write the last checkpoint and the model; the summary."""
        seconds = time.perf_counter() - self._started
        if self._first < self._steps:
            self._checkpointer.save(self._steps, must=True)
        elif self._ctx.main:
            drop_others(self._run, self._steps, self._config.training.keep)
        model = self._last or self._export()
        with agree_on_errors(self._ctx):
            if self._ctx.main:
                self._selection.write_model(model, replace(self._card, step=self._steps), self._run)
                if self._config.model.descriptor == "discriminant":
                    write_projection(self._run, self._cache.table, self._ctx.device, self._progress)
        return TrainingSummary(
            run=self._run,
            variant=model.variant,
            dataset=self._card.dataset,
            steps=self._steps,
            resumed_from=self._first,
            seconds=seconds,
            images_per_second=self._images_per_second(self._steps, seconds),
            images=len(self._cache),
            identities=self._card.classes,
            parameters=sum(p.numel() for p in model.parameters()),
            last_terms=self._logger.terms,
            selected=self._selection.selected,
        )

    def _batches(self, augment: AugmentConfig, first: int, last: int) -> Iterator[TrainingBatch]:
        """Batches `first` to `last - 1` of the training, on the device."""
        dataset = TrainingImages(
            self._cache.images,
            self._labels,
            self._cache.table.modality,
            augment,
            seed=self._config.training.seed,
            draws=self._sampler.identities * self._sampler.images * self._ctx.world,
        )
        return load_batches(dataset, self._sampler, self._ctx.device, first, last)

    def _invariants(self) -> dict[str, Any]:
        """What must be the same when the training is resumed: the values of `INVARIANTS`."""
        table = self._cache.table
        return {
            "data": fingerprint(table, table.split),
            "processes": self._ctx.world,
            "steps": self._steps,
            "precision": str(self._train_step.precision).removeprefix("torch."),
            "device": self._ctx.device.type,
            "pixels": self._pixels,
            "discriminators": "Adam, betas 0.5 and 0.999" if self._train_step.model.compensation else None,
            "own_terms": ", ".join(sorted(self._terms)) or None,
            "modalities": fingerprint(table, table.modality.astype(str)),
            "validation": self._selection.digest,
        }

    def _write_log(self, done: int) -> None:
        """Log the steps since the last call; waits for the device."""
        try:
            records = self._train_step.read()
        except NotFinite as error:
            saved = checkpoints(self._run)
            last = f"the last good checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"
            raise mark_agreed(
                TrainingError(
                    f"step {error.step}: {', '.join(error.names)} became NaN or infinite; {last}. "
                    "Train anew with a lower training.lr, with training.clip, or training.precision=fp32 (fmcnet "
                    "train: into a new --out)."
                )
            ) from error
        for record in records:
            record["epoch"] = (int(record["step"]) - 1) // self._steps_per_epoch + 1
        self._logger.write_steps(records)
        if self._ctx.main:
            values = ", ".join(f"{name} {value:.4g}" for name, value in self._logger.terms.items())
            logger.debug("step %d: %s", done, values)

    def _note(self, done: int) -> str:
        """Text beside the progress bar: loss, speed, memory and, at the end of an epoch, its number."""
        terms, device = self._logger.terms, self._ctx.device
        epoch, step_in_epoch = divmod(done, self._steps_per_epoch)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
        parts = (
            f"loss {terms['loss']:.2f}" if "loss" in terms else "",
            f"{self._images_per_second(done, time.perf_counter() - self._started):.0f} images/s",
            f"{memory / 2**30:.1f} GiB" if memory else "",
            "" if step_in_epoch else f"epoch {epoch}/{self._config.training.epochs}",
        )
        return ", ".join(filter(None, parts))

    def _images_per_second(self, done: int, seconds: float) -> float:
        return (done - self._first) * self._images_per_batch() * self._config.training.accumulate / seconds

    def _images_per_batch(self) -> int:
        """Images of both modalities in a batch of all processes."""
        return 2 * self._sampler.identities * self._sampler.images * self._ctx.world

    def _validate(self, done: int) -> None:
        """Measure the model on held-out identities, and write it if it is the best so far."""
        model = self._export()
        if done == self._steps:
            self._last = model
        record = self._selection.validate(model, replace(self._card, step=done))
        self._logger.write([record] if record else [], "validated_step")
        with agree_on_errors(self._ctx):
            self._selection.write()

    def _export(self) -> FMCNet:
        """The model as it is validated, selected and written (every process must call)."""
        model = self._train_step.export()
        if self._config.model.normalization == "modality" or self._config.model.standardized:
            no_augmentation = AugmentConfig(pad=0, flip=0, erase=0, channel="none")
            first = self._steps * self._config.training.accumulate  # batches that no step trains on
            last = first + min(STATISTICS_BATCHES, -(-len(self._cache) // self._images_per_batch()))
            estimate_statistics(model, lambda: self._batches(no_augmentation, first, last), self._ctx.world)
        return model


def _start_samples(config: Config, run: Path, resume: bool) -> tuple[str, ...]:
    """Training samples of the model that the training starts from; a resumed run reads them from its checkpoint."""
    for folder in reversed(checkpoints(run)) if resume else ():
        with contextlib.suppress(CheckpointError):
            return read_card(folder).start_samples
    source = config.model.pretrained
    if source is None or not is_model(source):
        return ()
    start_card = read_card(find_model(source))
    return tuple(sorted({*start_card.samples, *start_card.start_samples}))


def _warn_of_seen_identities(card: ModelCard, table: Table) -> None:
    """Warn of evaluation identities that the pretrained model was trained on."""
    evaluation_rows = table.take(~np.isin(table.split, card.config.data.train_splits))
    if card.start_samples and len(seen := seen_identities(card.start_samples, evaluation_rows)):
        logger.warning(
            "%d of %d identities that are not trained on here have images that %s was trained on, the first is %s: "
            "evaluate and calibrate on others, or move them to the split train",
            len(seen),
            len(np.unique(evaluation_rows.pid)),
            card.config.model.pretrained,
            table.pid_name(int(seen[0])),
        )
