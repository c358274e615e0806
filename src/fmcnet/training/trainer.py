"""Training: one loop, exact resume, every term by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from fmcnet.config import AugmentConfig, Config
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.readers import read_dataset
from fmcnet.data.samplers import IdentityModalitySampler
from fmcnet.data.table import Table, fingerprint
from fmcnet.distributed import agree, known_to_all, together
from fmcnet.errors import Interrupted
from fmcnet.models.backbone import make_backbone
from fmcnet.models.build import build_model
from fmcnet.models.checkpoint import ModelCard
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.pretrained import load_pretrained
from fmcnet.progress import Progress
from fmcnet.runtime import Runtime, keep_freed_memory, resident_bytes, runtime
from fmcnet.training.batches import Batch, Batches
from fmcnet.training.checkpointing import checkpoints, drop_others
from fmcnet.training.faults import not_finite, said_plainly
from fmcnet.training.feed import identities_of, look_alikes, make_sampler
from fmcnet.training.folder import alone_in, check_folder, make_folder
from fmcnet.training.keeper import Keeper
from fmcnet.training.profiler import StepProfile
from fmcnet.training.records import Records
from fmcnet.training.selection import ModelSelection, hold_out
from fmcnet.training.statistics import BATCHES, estimate_statistics
from fmcnet.training.stop import StopAtStepEnd
from fmcnet.training.track import Tracker, check_trackers
from fmcnet.training.train_step import Game, NotFinite, precision
from fmcnet.types import IntArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """What `train` did: where the run is, how many steps this call did and in which time."""

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
        """For `--json`."""
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
) -> TrainingSummary:
    """Train FMCNet, or a variant of it, and leave a run folder that evaluates and embeds.

    Args:
        config: everything that defines the run.
        data: a dataset's folder or CSV, or a table.
        out: the run folder: config.yaml, log.jsonl, checkpoints/, model.safetensors, model.json.
        resume: go on from the newest checkpoint in `out` that is whole; the result equals an uninterrupted run, bit
            for bit on the CPU. With nothing there yet the training starts.
        device: "auto", "cpu", "cuda", "cuda:1", "mps". Started by `torchrun`, each process takes its own.
        progress: show a bar; None: on a terminal only.
        trackers: beside the log: "tensorboard", "wandb", or objects with the methods of `Tracker`.
        profile: watch a few steps and write RUN/profile.

    Raises:
        FmcnetError: for unusable data, configuration or folder; `TrainingError` when a loss term is no
            longer finite, naming the term and the last good checkpoint.
        Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    run = Path(out)
    with runtime(device) as place:
        if place.device.type == "cpu":
            keep_freed_memory()
        with together(place):
            make_backbone(config.model.arch)  # raises for an unknown one, before images are read
            if place.main:
                check_folder(run, config, resume)
                check_trackers([name for name in trackers if isinstance(name, str)])
        with together(place):
            table = (
                data
                if isinstance(data, Table)
                else read_dataset(data, layout=config.data.layout, trial=config.data.split)
            )
            table = hold_out(table, config)
            rows = table.select(split=config.data.train_splits)
            labels, pids = rows.labels()
            sampler = make_sampler(config, rows, labels, place.rank, place.world)
            selection = ModelSelection(config, table, run, place)
            precision(config.training.precision, place.device)  # raises where the device has it not
            if place.main:
                for note in (*table.notes, *sampler.notes):
                    logger.info("%s", note)
            folder = cache_folder(config.data.cache, table.root)
            cache = ImageCache(rows, config.data.height, config.data.width, folder=folder, progress=progress)
            torch.manual_seed(config.training.seed)
            model = build_model(config.model, len(pids))
            if not (resume and checkpoints(run)):
                load_pretrained(model, config.model.pretrained, config.model.arch)
        # Dropout differs between processes.
        torch.manual_seed((config.training.seed * 1_000_003 + place.rank) % 2**63)
        card = ModelCard(config, tuple(int(pid) for pid in pids), table.name, 0, fingerprint(table))
        job = _Job(config, run, place, model, card, sampler, cache, labels, selection)
        with ExitStack() as stack:
            with together(place):  # only now: a mistake in data or settings leaves no half-made run behind
                if place.main:
                    stack.enter_context(alone_in(run))
                    make_folder(run, config)
            return job.run_all(resume, progress, description, trackers, profile)


def total_steps(config: Config, table: Table, world: int = 1) -> int:
    """How many steps `train` will do on this table."""
    rows = hold_out(table, config).select(split=config.data.train_splits)
    sampler = make_sampler(config, rows, rows.labels()[0], 0, world)
    return config.training.epochs * sampler.steps // config.training.accumulate


class _Job:
    """One training under way."""

    def __init__(
        self,
        config: Config,
        run: Path,
        place: Runtime,
        model: FMCNet,
        card: ModelCard,
        sampler: IdentityModalitySampler,
        cache: ImageCache,
        labels: IntArray,
        selection: ModelSelection,
    ) -> None:
        self.config, self.path, self.place, self.card = config, run, place, card
        self.sampler, self.cache, self.labels, self.selection = sampler, cache, labels, selection
        self.epoch = sampler.steps // config.training.accumulate  # steps of one
        self.steps = config.training.epochs * self.epoch
        self.game = Game(config, model, place, identities_of(config, place.world), self.steps)
        self.images = 2 * sampler.identities * sampler.images * config.training.accumulate * place.world
        self.records = Records(run, config, self.steps)
        identity = {
            "data": fingerprint(cache.table, cache.table.split),
            "processes": place.world,
            "steps": self.steps,
            "precision": str(self.game.precision).removeprefix("torch."),
            "device": place.device.type,
            "pixels": cache.digest(),
            "discriminators": "Adam, betas 0.5 and 0.999" if model.compensation else None,
        }
        self.keeper = Keeper(run, place, self.game, card, sampler, selection, self.records, identity)

    def run_all(
        self,
        resume: bool,
        progress: bool | None,
        description: str,
        trackers: Sequence[str | Tracker],
        profile: bool,
    ) -> TrainingSummary:
        """All steps from the newest checkpoint (or the start) to the last."""
        started, first = time.perf_counter(), self.keeper.restore() if resume else 0
        main, several = self.place.main, self.config.training.accumulate
        bar = Progress(description, self.steps, first, show=progress if main else False)
        stop = StopAtStepEnd()
        batches = Batches(
            self.cache.images,
            self.labels,
            self.sampler,
            self.config.augment,
            self.config.training.seed,
            self.place,
            first=first * several,
            last=self.steps * several,
        )
        watch = StepProfile(self.path, self.place.device.type == "cuda") if profile and main else None
        try:
            with together(self.place):
                if main:
                    self.records.open(trackers, first)
            self.keeper.saved = time.monotonic()
            with stop:
                with bar, batches, watch or nullcontext():
                    stream = iter(batches)
                    for step in range(first, self.steps):
                        self._look_for_alikes(step)
                        with record_function("fmcnet: data"):
                            drawn = list(islice(stream, several))
                        with said_plainly(self.config):
                            self.game.step(drawn, step)
                        if watch:
                            watch.step()
                        self._after(step + 1, stop, bar, started, first)
                return self._finish(first, started, progress)
        finally:
            self.records.close()
            if watch and watch.table:
                logger.info("%s\nthe profile: %s", watch.table, watch.folder)

    def _after(self, done: int, stop: StopAtStepEnd, bar: Progress, started: float, first: int) -> None:
        """What follows a step: reading, validation, a checkpoint, stopping."""
        training = self.config.training
        late = (
            training.checkpoint_minutes
            and time.monotonic() - self.keeper.saved > 60 * training.checkpoint_minutes
        )
        stopping, due = agree([stop.asked > 0, bool(late) and self.place.main], self.place)
        validates = done % self.epoch == 0 and self.selection.due(done // self.epoch)
        saves = done < self.steps and (stopping or due or done % training.checkpoint_every == 0)
        note = ""
        if done % training.log_every == 0 or validates or saves or done == self.steps:
            self._read()
            rate = (done - first) * self.images / (time.perf_counter() - started)
            note = f"{rate:.0f} images/s  {_memory(self.place)}  {self.records.shown()}"
        bar.advance(note)
        if validates:
            record = self.selection.validate(self._export(), replace(self.card, step=done), done)
            self.records.write([record] if record else [], "validated_step")
            with together(self.place):
                self.keeper.keep_best(done)
        if saves:
            self.keeper.save(done, must=stopping)
        if stopping and done < self.steps:
            raise Interrupted(
                f"stopped after step {done} of {self.steps}; the checkpoint is in {self.path / 'checkpoints'}",
                143 if stop.terminated else 130,
            )

    def _read(self) -> None:
        try:
            records = self.game.read()
        except NotFinite as found:
            raise known_to_all(not_finite(found, self.path)) from found
        for record in records:
            record["epoch"] = (int(record["step"]) - 1) // self.epoch + 1
        self.records.steps(records)

    def _look_for_alikes(self, step: int) -> None:
        if self.config.data.hard and step % self.epoch == 0 and step:
            weights = self.game.model.decomposition.classify_shared.linear.weight
            self.sampler.neighbors = look_alikes(weights, self.sampler.pids, self.place)

    def _plain_batches(self) -> Iterator[Batch]:
        """Batches that would follow the last step, without augmentation."""
        first = self.steps * self.config.training.accumulate
        batches = Batches(
            self.cache.images,
            self.labels,
            self.sampler,
            AugmentConfig(pad=0, flip=0, erase=0, channel="none"),
            self.config.training.seed,
            self.place,
            first=first,
            last=first + BATCHES,
        )
        with batches:
            yield from batches

    def _export(self) -> FMCNet:
        """The model as it is searched with: validated, selected and written alike (every process must call)."""
        model = self.game.export()
        if self.config.model.normalization == "modality":
            estimate_statistics(model, self._plain_batches(), self.place.world)
        return model

    def _finish(self, first: int, started: float, progress: bool | None) -> TrainingSummary:
        seconds = time.perf_counter() - started
        if first < self.steps:
            self.keeper.save(self.steps, must=True)
        elif self.place.main:
            drop_others(self.path, self.steps, self.config.training.keep)
        exported = self._export()
        with together(self.place):
            if self.place.main:
                self.keeper.write_model(exported)
                if self.config.model.descriptor == "discriminant":
                    self.keeper.write_projection(self.cache.table, progress)
        return TrainingSummary(
            run=self.path,
            variant=exported.variant,
            dataset=self.card.dataset,
            steps=self.steps,
            resumed_from=first,
            seconds=seconds,
            images_per_second=(self.steps - first) * self.images / seconds,
            images=len(self.cache),
            identities=self.card.classes,
            parameters=sum(p.numel() for p in exported.parameters()),
            last_terms=self.records.terms,
            selected=self.keeper.selected(),
        )


def _memory(place: Runtime) -> str:
    """Of the GPU at its fullest, else of the process."""
    taken = torch.cuda.max_memory_allocated(place.device) if place.device.type == "cuda" else resident_bytes()
    return f"{taken / 2**30:.1f} GiB" if taken else ""
