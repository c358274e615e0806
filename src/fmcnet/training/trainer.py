"""Training: one loop over batches, with validation, checkpoints and exact resume."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.readers import detect_layout, read_dataset
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
from fmcnet.models.backbones import make_backbone
from fmcnet.models.fmcnet import FMCNet
from fmcnet.progress import Progress
from fmcnet.training.checkpointing import Checkpointer, checkpoints, drop_others
from fmcnet.training.loggers import StepLogger, StepProfile, Tracker, check_trackers
from fmcnet.training.prepare import (
    TrainingInputs,
    check_folder,
    check_split,
    open_folder,
    prepare,
    split_folder,
)
from fmcnet.training.selection import BATCHES, estimate_statistics
from fmcnet.training.train_step import MEASURED, NotFinite, TrainStep

logger = logging.getLogger(__name__)

LOGGED = ("loss", "rate", "lr", "step", "epoch", "validated_step")
"""Keys of log records that are not loss terms."""


@dataclass(frozen=True)
class TrainingSummary:
    """What `train` did.

    Attributes:
        run: the run folder.
        variant: row of the paper's Table 2: "base", "sfd", "fmc" or "full".
        dataset: name of the table.
        steps: of the whole training.
        resumed_from: steps done before this call.
        seconds: time of this call.
        images_per_second: of this call.
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
            table = data
            if not isinstance(table, Table):
                table = read_dataset(table, layout=config.data.layout, trial=config.data.split)
            if not resume:  # runs of an earlier version may have it
                check_split(config, table.name)
            inputs = prepare(config, table, run, ctx, resume=resume, progress=progress)
        with ExitStack() as stack:
            with agree_on_errors(ctx):  # last, so that an error in data or settings leaves no run folder
                if ctx.main:
                    stack.enter_context(open_folder(run, config))
            trainer = Trainer(config, inputs, run, ctx, extra_terms)
            return trainer.fit(
                resume=resume,
                progress=progress,
                description=description,
                trackers=trackers,
                profile=profile,
            )


def train_splits(
    config: Config,
    data: str | Path,
    out: Path,
    splits: Sequence[int],
    *,
    resume: bool = False,
    device: str = "auto",
    progress: bool | None = None,
    trackers: Sequence[str] = (),
    profile: bool = False,
) -> list[TrainingSummary]:
    """Train one run for each split in `out/split-NN`.

    Args:
        config: all settings but `data.split`.
        data: RegDB's folder.
        out: the folder of all runs.
        splits: numbers, 1 to 10.
        resume: continue each run from its newest checkpoint; finished ones are kept.
        device: as that of `train`, and so are the following.
        progress: show a bar; None: on a terminal only.
        trackers: names, beside the log.
        profile: profile a few steps of each run.

    Raises:
        ConfigError: for a dataset without splits.
    """
    layout = config.data.layout if config.data.layout != "auto" else detect_layout(data)
    if layout != "regdb":
        raise ConfigError(f"--splits is for RegDB; {data} is {layout}, which has one split")
    summaries = []
    with distributed_context(device):  # joins the process group once, not once a split
        for split in splits:
            data_config = config.data.model_copy(update={"split": split})
            summary = train(
                config.model_copy(update={"data": data_config}),
                data,
                split_folder(out, split),
                resume=resume,
                device=device,
                progress=progress,
                description=f"split {split}",
                trackers=trackers,
                profile=profile,
            )
            summaries.append(summary)
    return summaries


class Trainer:
    """The loop over steps, with its log, validation and checkpoints.

    Args:
        config: settings.
        inputs: images and model.
        run: the run folder, which exists.
        ctx: device and rank.
        terms: losses of your own, by name.
    """

    def __init__(
        self,
        config: Config,
        inputs: TrainingInputs,
        run: Path,
        ctx: DistributedContext,
        terms: Mapping[str, ExtraTerm],
    ) -> None:
        self._config, self._inputs, self._run, self._ctx = config, inputs, run, ctx
        self._selection = inputs.selection
        sampler, accumulate = inputs.sampler, config.training.accumulate
        self._steps_per_epoch = sampler.steps // accumulate
        self._steps = config.training.epochs * self._steps_per_epoch
        self._images_per_step = 2 * sampler.identities * sampler.images * accumulate * ctx.world
        self._train_step = TrainStep(config, inputs.model, ctx, sampler.identities, self._steps, terms)
        self._logger = StepLogger(run, config, self._steps)
        invariants = {
            "data": fingerprint(inputs.cache.table, inputs.cache.table.split),
            "processes": ctx.world,
            "steps": self._steps,
            "precision": str(self._train_step.precision).removeprefix("torch."),
            "device": ctx.device.type,
            "pixels": inputs.cache.digest(),
            "discriminators": "Adam, betas 0.5 and 0.999" if inputs.model.compensation else None,
            "own_terms": ", ".join(sorted(terms)) or None,
        }
        self._checkpointer = Checkpointer(
            run, ctx, self._train_step, inputs.card, inputs.selection, self._logger, invariants
        )
        self._first = 0
        self._started = time.perf_counter()

    def fit(
        self,
        *,
        resume: bool,
        progress: bool | None,
        description: str,
        trackers: Sequence[str | Tracker],
        profile: bool,
    ) -> TrainingSummary:
        """Train from the newest checkpoint (or the start) to the last step, and write the model."""
        config, ctx = self._config, self._ctx
        self._started = time.perf_counter()
        self._first = self._checkpointer.restore() if resume else 0
        bar = Progress(description, self._steps, self._first, show=progress if ctx.main else False)
        profiler = StepProfile(self._run, ctx.device.type == "cuda") if profile and ctx.main else None
        accumulate = config.training.accumulate
        batches = self._inputs.batches(
            config.augment, self._first * accumulate, self._steps * accumulate, ctx
        )
        try:
            with agree_on_errors(ctx):
                if ctx.main:
                    self._logger.open(trackers, self._first)
            with StopAtStepEnd() as stop:
                with bar, profiler or nullcontext():
                    for step in range(self._first, self._steps):
                        with record_function("fmcnet: data"):
                            step_batches = list(islice(batches, accumulate))
                        with translate_errors(compiled=config.training.compile):
                            self._train_step.step(step_batches, step)
                        if profiler:
                            profiler.step()
                        self._after_step(step + 1, stop, bar)
                return self._finish(progress)
        finally:
            self._logger.close()
            if profiler and profiler.table:
                logger.info("%s\nthe profile: %s", profiler.table, profiler.folder)

    def _after_step(self, done: int, stop: StopAtStepEnd, bar: Progress) -> None:
        """Log, validate, save and stop, each if due after `done` steps."""
        training = self._config.training
        epoch, step_in_epoch = divmod(done, self._steps_per_epoch)
        epoch_ends, last = step_in_epoch == 0, done == self._steps
        late = self._ctx.main and self._checkpointer.late()
        stopping, late = agree([stop.signals > 0, late], self._ctx)
        save_due = not last and (stopping or late or done % training.checkpoint_every == 0)
        note = ""
        if epoch_ends or last or save_due or done % training.log_every == 0:
            self._write_log(done)
            note = self._note(done)
        bar.advance(note, line=epoch_ends)
        if epoch_ends and self._selection.due(epoch):
            self._validate(done)
        if save_due:
            self._checkpointer.save(done, must=stopping)
        if stopping and not last:
            raise Interrupted(
                f"stopped after step {done} of {self._steps}; the checkpoint is in {self._run / 'checkpoints'}",
                143 if stop.terminated else 130,
            )

    def _write_log(self, done: int) -> None:
        """Log the steps since the last call; waits for the device."""
        try:
            records = self._train_step.read()
        except NotFinite as error:
            saved = checkpoints(self._run)
            last_saved = (
                f"the last good checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"
            )
            raise mark_agreed(
                TrainingError(
                    f"step {error.step}: {', '.join(error.names)} became NaN or infinite; {last_saved}. "
                    "Train into a new --out with a lower training.lr, with training.clip, or training.precision=fp32."
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
        terms = self._logger.terms
        epoch, step_in_epoch = divmod(done, self._steps_per_epoch)
        parts = (
            f"loss {terms['loss']:.2f}" if "loss" in terms else "",
            f"{self._images_per_second(done, time.perf_counter() - self._started):.0f} images/s",
            _memory_text(self._ctx.device),
            "" if step_in_epoch else f"epoch {epoch}/{self._config.training.epochs}",
        )
        return ", ".join(filter(None, parts))

    def _images_per_second(self, done: int, seconds: float) -> float:
        return (done - self._first) * self._images_per_step / seconds

    def _validate(self, done: int) -> None:
        """Measure the model on held-out identities, and write it if it is the best so far."""
        record = self._selection.validate(self._export(), replace(self._inputs.card, step=done), done)
        self._logger.write([record] if record else [], "validated_step")
        with agree_on_errors(self._ctx):
            self._selection.write()

    def _export(self) -> FMCNet:
        """The model as it is validated, selected and written (every process must call)."""
        model = self._train_step.export()
        if self._config.model.normalization == "modality" or self._config.model.standardized:
            no_augmentation = AugmentConfig(pad=0, flip=0, erase=0, channel="none")
            first_batch = self._steps * self._config.training.accumulate
            images_per_batch = self._config.data.identities * self._config.data.images * 2 * self._ctx.world
            batches_per_pass = -(-len(self._inputs.cache) // images_per_batch)
            last_batch = first_batch + min(BATCHES, batches_per_pass)
            estimate_statistics(
                model,
                lambda: self._inputs.batches(no_augmentation, first_batch, last_batch, self._ctx),
                self._ctx.world,
            )
        return model

    def _finish(self, progress: bool | None) -> TrainingSummary:
        """Write the last checkpoint and the model."""
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
                    self._checkpointer.write_projection(self._inputs.cache.table, progress)
        return TrainingSummary(
            run=self._run,
            variant=exported.variant,
            dataset=self._inputs.card.dataset,
            steps=self._steps,
            resumed_from=self._first,
            seconds=seconds,
            images_per_second=self._images_per_second(self._steps, seconds),
            images=len(self._inputs.cache),
            identities=self._inputs.card.classes,
            parameters=sum(p.numel() for p in exported.parameters()),
            last_terms=self._logger.terms,
            selected=self._checkpointer.selected(),
        )


class StopAtStepEnd:
    """Ctrl-C or SIGTERM ends the training after the current step, with a checkpoint; a third signal ends it at once.

    Two signals count as one: a terminal and a parent process may both deliver the same Ctrl-C.

    Attributes:
        signals: number of signals received.
        terminated: whether one was SIGTERM.
    """

    def __init__(self) -> None:
        self.signals = 0
        self.terminated = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopAtStepEnd:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, *_: object) -> None:
        self.signals += 1
        self.terminated |= number == signal.SIGTERM
        if self.signals > 2:
            raise KeyboardInterrupt


def _memory_text(device: torch.device) -> str:
    """Peak memory of the GPU, else memory of the process."""
    size = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
    return f"{size / 2**30:.1f} GiB" if size else ""
