"""Training: one loop, exact resume, every term by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from fmcnet.config import Config
from fmcnet.data.benchmarks import read_dataset
from fmcnet.data.cache import ImageCache, cache_folder
from fmcnet.data.sampler import IdentityModalitySampler
from fmcnet.data.table import Table, fingerprint
from fmcnet.errors import CheckpointError, Interrupted, TrainingError
from fmcnet.model.build import build_model
from fmcnet.model.checkpoint import ModelCard, save_pretrained
from fmcnet.model.fmcnet import FMCNet
from fmcnet.model.weights import load_pretrained
from fmcnet.parallel import agree, from_main, gather, known_to_all, together
from fmcnet.progress import Progress
from fmcnet.runtime import Runtime, keep_freed_memory, resident_bytes, runtime
from fmcnet.training.batches import Batches
from fmcnet.training.feed import identities_of, look_alikes, make_sampler
from fmcnet.training.folder import alone_in, check_folder, make_folder, unwritable
from fmcnet.training.game import GRADIENT, Game, NotFinite, precision
from fmcnet.training.log import TrainingLog
from fmcnet.training.profile import StepProfile
from fmcnet.training.selection import ModelSelection, hold_out
from fmcnet.training.state import (
    checkpoints,
    drop_others,
    load_newest,
    process_state,
    recorded,
    save_checkpoint,
)
from fmcnet.training.stop import StopAtStepEnd
from fmcnet.training.track import Tracker, check_trackers, make_trackers
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
        self.pixels = cache.digest()
        self.log: TrainingLog | None = None
        self.trackers: list[Tracker] = []
        self.terms: dict[str, float] = {}
        self.saved = 0.0  # when, by the clock

    def run_all(
        self,
        resume: bool,
        progress: bool | None,
        description: str,
        trackers: Sequence[str | Tracker],
        profile: bool,
    ) -> TrainingSummary:
        """All steps from the newest checkpoint (or the start) to the last."""
        started, first = time.perf_counter(), self._restore() if resume else 0
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
                    self._open_log(trackers, first)
            self.saved = time.monotonic()
            with stop:
                with bar, batches, watch or nullcontext():
                    stream = iter(batches)
                    for step in range(first, self.steps):
                        self._look_for_alikes(step)
                        with record_function("fmcnet: data"):
                            drawn = list(islice(stream, several))
                        with _said_plainly(self.config):
                            self.game.step(drawn, step)
                        if watch:
                            watch.step()
                        self._after(step + 1, stop, bar, started, first)
                return self._finish(first, started)
        finally:
            for tracker in self.trackers:
                with _warning_of(tracker):
                    tracker.close()
            if self.log:
                self.log.close()
                self.log = None
            if watch and watch.table:
                logger.info("%s\nthe profile: %s", watch.table, watch.folder)

    def _open_log(self, trackers: Sequence[str | Tracker], first: int) -> None:
        try:
            self.log = TrainingLog(self.path, first)
        except OSError as error:
            raise unwritable(self.path, error) from error
        named = [name for name in trackers if isinstance(name, str)]
        self.trackers = make_trackers(named, self.path, self.config, first)
        self.trackers += [tracker for tracker in trackers if not isinstance(tracker, str)]

    def _after(self, done: int, stop: StopAtStepEnd, bar: Progress, started: float, first: int) -> None:
        """What follows a step: reading, validation, a checkpoint, stopping."""
        training = self.config.training
        late = (
            training.checkpoint_minutes and time.monotonic() - self.saved > 60 * training.checkpoint_minutes
        )
        stopping, due = agree([stop.asked > 0, bool(late) and self.place.main], self.place)
        validates = done % self.epoch == 0 and self.selection.due(done // self.epoch)
        saves = done < self.steps and (stopping or due or done % training.checkpoint_every == 0)
        note = ""
        if done % training.log_every == 0 or validates or saves or done == self.steps:
            self._read()
            rate = (done - first) * self.images / (time.perf_counter() - started)
            note = f"{rate:.0f} images/s  {_memory(self.place)}  {_shown(self.terms)}"
        bar.advance(note)
        if validates:
            record = self.selection.validate(self.game.export(), replace(self.card, step=done), done)
            self._write([record] if record else [], "validated_step")
            with together(self.place):
                self._keep_best(done)
        if saves:
            self._save(done, must=stopping)
        if stopping and done < self.steps:
            raise Interrupted(
                f"stopped after step {done} of {self.steps}; the checkpoint is in {self.path / 'checkpoints'}",
                143 if stop.terminated else 130,
            )

    def _read(self) -> None:
        try:
            records = self.game.read()
        except NotFinite as found:
            good = checkpoints(self.path)
            where = f"the last good checkpoint is {good[-1]}" if good else "there was no checkpoint yet"
            error = TrainingError(
                f"step {found.step}: {', '.join(found.names)} became NaN or infinite; {where}. "
                "Train into a new --out with a lower training.lr, with training.clip, or training.precision=fp32."
            )
            raise known_to_all(error) from found
        for record in records:
            record["epoch"] = (int(record["step"]) - 1) // self.epoch + 1
        if records:
            self.terms = {k: v for k, v in records[-1].items() if k not in ("step", "epoch")}
        self._write(records, "step")

    def _write(self, records: Sequence[dict[str, Any]], key: str) -> None:
        """To the log and the trackers (rank 0); a full disk does not end a training."""
        if not self.log or not records:
            return
        try:
            self.log.write(*records)
        except OSError as error:
            logger.warning("%s: %s; its last steps wait for room", self.log.path, error.strerror)
        for record in records:
            for tracker in self.trackers:
                with _warning_of(tracker):
                    tracker.log(
                        int(record[key]), {k: v for k, v in record.items() if k not in (key, "epoch")}
                    )

    def _look_for_alikes(self, step: int) -> None:
        if self.config.data.hard and step % self.epoch == 0 and step:
            weights = self.game.model.decomposition.classify_shared.linear.weight
            self.sampler.neighbors = look_alikes(weights, self.sampler.pids, self.place)

    def _identity(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resume, beside the settings."""
        return {
            "data": fingerprint(self.cache.table, self.cache.table.split),
            "processes": self.place.world,
            "steps": self.steps,
            "precision": str(self.game.precision).removeprefix("torch."),
            "device": self.place.device.type,
            "pixels": self.pixels,
        }

    def _restore(self) -> int:
        """Take up the newest whole checkpoint; the number of steps done."""
        with together(self.place):
            stored = load_newest(self.path, self.game, self._check_same)
        at = stored[0]["step"] if stored else 0
        if any(agree([at != int(from_main(torch.tensor([at]), self.place))], self.place)):
            raise known_to_all(
                CheckpointError(
                    f"the processes do not find the same checkpoint in {self.path}: all must see one folder"
                )
            )
        if stored is None:
            if self.place.main:
                logger.info("there is no checkpoint in %s: starting from the first step", self.path)
            return 0
        facts, extra = stored
        self.terms = facts["terms"]
        with together(self.place):
            self.selection.restore(facts["selection"])
        if "neighbors" in extra:
            self.sampler.neighbors = extra["neighbors"].numpy()
        if self.place.main:
            if facts["step"] == self.steps:
                logger.info("%s had finished already: writing its model again", self.path)
            else:
                logger.info("resuming %s from step %d of %d", self.path, facts["step"], self.steps)
        return int(facts["step"])

    def _check_same(self, facts: dict[str, Any]) -> None:
        names = {
            "data": "other images or identities",
            "processes": "another number of processes",
            "steps": "other steps",
            "precision": "another precision",
            "device": "another kind of device",
            "pixels": "images that looked different",
        }
        now = self._identity()
        changed = [
            f"{names[key]} ({facts.get(key)} there, {now[key]} now)"
            for key in now
            if facts.get(key) != now[key]
        ]
        if changed:
            raise CheckpointError(
                f"{self.path} cannot be resumed exactly: it was made with {', '.join(changed)}"
            )

    def _keep_best(self, done: int) -> None:
        """The best weights cannot be made up for: without them the training ends."""
        try:
            self.selection.keep()
        except OSError as error:
            raise CheckpointError(
                f"the best weights so far, of step {done}, could not be written into {self.path / 'checkpoints'}: "
                f"{error.strerror or error}: make room, then go on from the last checkpoint with --resume"
            ) from error

    def _save(self, done: int, must: bool) -> None:
        """Write a checkpoint. One that cannot be written ends the training only if it must be."""
        with together(self.place):
            self._save_or_warn(done, must)

    def _save_or_warn(self, done: int, must: bool) -> None:
        facts = {"terms": self.terms, "selection": self.selection.facts(), **self._identity()}
        neighbors = self.sampler.neighbors
        extra = {} if neighbors is None else {"neighbors": torch.from_numpy(neighbors)}
        self.saved = time.monotonic()
        everybody = gather(process_state(self.game), self.place)
        if not self.place.main:
            return
        try:
            if self.log:  # a checkpoint beyond the log's end would leave a gap there
                self.log.flush()
            card = replace(self.card, step=done)
            keep = self.config.training.keep
            save_checkpoint(self.path, done, self.game, everybody, card, facts, keep=keep, extra=extra)
        except OSError as error:
            good = checkpoints(self.path)
            said = (
                f"no checkpoint of step {done} could be written into {self.path / 'checkpoints'}: "
                f"{error.strerror or error}. {f'The last one is {good[-1].name}' if good else 'There is none yet'}"
            )
            if must:
                raise CheckpointError(f"{said}: make room, then go on from there with --resume") from error
            logger.warning("%s; training goes on and tries again at the next", said)
            return
        self.selection.forget(recorded(self.path, "selection"))

    def _finish(self, first: int, started: float) -> TrainingSummary:
        seconds = time.perf_counter() - started
        if first < self.steps:
            self._save(self.steps, must=True)
        elif self.place.main:
            drop_others(self.path, self.steps, self.config.training.keep)
        exported = self.game.export()
        with together(self.place):
            if self.place.main:
                self._write_model(exported)
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
            last_terms=self.terms,
            selected=self._selected(),
        )

    def _selected(self) -> str:
        """How the weights were picked; the last, where nothing was ever validated."""
        return self.config.training.select if self.selection.best else "last"

    def _write_model(self, exported: FMCNet) -> None:
        chosen, at = self.selection.chosen(exported)
        final = replace(self.card, step=at or self.steps, selected=self._selected())
        try:
            save_pretrained(chosen, final, self.path)
        except OSError as error:
            raise CheckpointError(
                f"the model could not be written into {self.path}: {error.strerror or error}. Nothing is lost: "
                "make room, then the same command with --resume writes it"
            ) from error


@contextmanager
def _said_plainly(config: Config) -> Iterator[None]:
    """What a person can do something about, in a person's words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory does not hold a step: {str(error).splitlines()[0]} Try training.recompute=true, "
            "training.accumulate=2 with half of data.identities, or smaller images (docs/training.md)"
        ) from error
    except Exception as error:
        if config.training.compile and type(error).__module__.startswith(
            ("torch._dynamo", "torch._inductor")
        ):
            raise TrainingError(
                f"torch.compile failed ({str(error).strip().splitlines()[0]}): it needs a C++ compiler, on GPUs "
                "Triton; train with training.compile=false"
            ) from error
        raise


@contextmanager
def _warning_of(tracker: Tracker) -> Iterator[None]:
    """A tracker that fails does not end a training, whatever it raises."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "%s: %s; numbers are missing there",
            type(tracker).__name__,
            getattr(error, "strerror", None) or error,
        )


def _shown(terms: dict[str, float]) -> str:
    return " ".join(
        f"{k} {v:.2f}" for k, v in terms.items() if k not in ("rate", "w1", "w2") and GRADIENT not in k
    )


def _memory(place: Runtime) -> str:
    """Of the GPU at its fullest, else of the process."""
    taken = torch.cuda.max_memory_allocated(place.device) if place.device.type == "cuda" else resident_bytes()
    return f"{taken / 2**30:.1f} GiB" if taken else ""
