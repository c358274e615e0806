"""Training: one loop, exact resume, every term by name."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmcnet.config import Config, load_config
from fmcnet.data.augment import augment
from fmcnet.data.benchmarks import read_dataset
from fmcnet.data.cache import ImageCache
from fmcnet.data.sampler import IdentityModalitySampler
from fmcnet.data.table import Table, fingerprint
from fmcnet.errors import CheckpointError, DataError, TrainingError
from fmcnet.files import write_atomically
from fmcnet.model.build import build_model
from fmcnet.model.checkpoint import ModelCard, save_pretrained
from fmcnet.model.fmcnet import FMCNet
from fmcnet.model.weights import load_pretrained
from fmcnet.objective import discriminator_objective, objective, total
from fmcnet.progress import Progress
from fmcnet.runtime import (
    Runtime,
    any_rank,
    average_buffers,
    average_gradients,
    move,
    runtime,
    seeded_generator,
)
from fmcnet.training.log import TrainingLog
from fmcnet.training.optim import build_optimizers, rate, set_rate
from fmcnet.training.selection import ModelSelection, hold_out
from fmcnet.training.state import checkpoints, load_checkpoint, save_checkpoint
from fmcnet.training.stop import StopAtStepEnd
from fmcnet.types import IntArray, Modality

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"


@dataclass(frozen=True)
class TrainingSummary:
    """What `train` did: where the run is, how many steps this call did and in which time."""

    run: Path
    variant: str
    dataset: str
    steps: int
    resumed_from: int
    seconds: float
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
) -> TrainingSummary:
    """Train FMCNet, or a variant of it, and leave a run folder that evaluates and embeds.

    Args:
        config: everything that defines the run.
        data: a dataset's folder or CSV, or a table.
        out: the run folder: config.yaml, log.jsonl, checkpoints/, model.safetensors, model.json.
        resume: go on from the newest checkpoint in `out`; the result equals an uninterrupted run, bit for
            bit on the CPU. With nothing there yet the training starts.
        device: "auto", "cpu", "cuda", "cuda:1", "mps". Started by `torchrun`, each process takes its own.
        progress: show a bar; None: on a terminal only.

    Raises:
        FmcnetError: for unusable data, configuration or folder; `TrainingError` when a loss term is no
            longer finite, naming the term and the last good checkpoint.
    """
    run = Path(out)
    with runtime(device) as place:
        if place.main:
            _check_folder(run, config, resume)
        table = (
            data
            if isinstance(data, Table)
            else read_dataset(data, layout=config.data.layout, trial=config.data.split)
        )
        table = hold_out(table, config)
        rows = table.select(split=config.data.train_splits)
        labels, pids = rows.labels()
        sampler = IdentityModalitySampler(
            labels,
            rows.modality,
            identities=config.data.identities,
            images=config.data.images,
            seed=config.training.seed,
            rank=place.rank,
            world=place.world,
            steps=config.training.steps_per_epoch,
        )
        if place.main:
            for note in (*table.notes, *sampler.notes):
                logger.info("%s", note)
        cache = ImageCache(rows, config.data.height, config.data.width, progress=progress)
        torch.manual_seed(config.training.seed)
        model = build_model(config.model, len(pids))
        if not (resume and checkpoints(run)):
            load_pretrained(model, config.model.pretrained, config.model.arch)
        card = ModelCard(config, tuple(int(pid) for pid in pids), table.name, 0, fingerprint(table))
        job = _Job(config, run, place, model.to(place.device), card, sampler, cache, labels, table)
        if place.main:  # only now: a mistake in data or settings leaves no half-made run behind
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / CONFIG, lambda path: path.write_text(config.to_yaml(), encoding="utf-8"))
        return job.run_all(resume, progress, description)


def total_steps(config: Config, table: Table, world: int = 1) -> int:
    """How many steps `train` will do on this table."""
    rows = hold_out(table, config).select(split=config.data.train_splits)
    sampler = IdentityModalitySampler(
        rows.pid,
        rows.modality,
        identities=config.data.identities,
        images=config.data.images,
        world=world,
        steps=config.training.steps_per_epoch,
    )
    return config.training.epochs * sampler.steps


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
        table: Table,
    ) -> None:
        self.config, self.path, self.place, self.model, self.card = config, run, place, model, card
        self.sampler, self.cache, self.labels = sampler, cache, torch.from_numpy(labels)
        self.optimizer, self.judge_optimizer = build_optimizers(model, config.training)
        self.optimizers = {"main": self.optimizer, "judge": self.judge_optimizer}
        self.steps = config.training.epochs * sampler.steps
        self.selection = ModelSelection(config, table, run, place)
        self.table = table
        self._epoch, self._plan = -1, list[tuple[IntArray, IntArray]]()

    def run_all(self, resume: bool, progress: bool | None, description: str) -> TrainingSummary:
        """All steps from the newest checkpoint (or the start) to the last."""
        started, first, terms = time.perf_counter(), 0, {}
        stored = checkpoints(self.path) if resume else []
        if stored:
            facts = load_checkpoint(stored[-1], self.model, self.optimizers)
            self._check_same(facts, stored[-1])
            first, terms = int(facts["step"]), facts["terms"]
            self.selection.restore(facts["selection"])
            if self.place.main:
                logger.info("resuming %s from step %d of %d", self.path, first, self.steps)
        log = TrainingLog(self.path, first) if self.place.main else None
        stop = StopAtStepEnd()
        try:
            with (
                stop,
                Progress(description, self.steps, first, show=progress if self.place.main else False) as bar,
            ):
                for step in range(first, self.steps):
                    terms = self._step(step)
                    if log:
                        log.write({"step": step + 1, "epoch": step // self.sampler.steps + 1, **terms})
                    bar.advance(_shown(terms))
                    done = step + 1
                    if done % self.sampler.steps == 0 and self.selection.due(done // self.sampler.steps):
                        average_buffers(self.model, self.place.world)
                        record = self.selection.validate(self.model, replace(self.card, step=done), done)
                        if log:
                            log.write(record)
                    stopping = any_rank(stop.asked > 0, self.place)
                    if stopping or (done % self.config.training.checkpoint_every == 0 and done < self.steps):
                        self._save(done, terms, log)
                    if stopping:
                        raise KeyboardInterrupt(
                            f"stopped after step {done} of {self.steps}; the same command with --resume goes on there"
                        )
        finally:
            if log:
                log.close()
        self._save(self.steps, terms, None)
        if self.place.main:
            chosen, at = self.selection.chosen(self.model)
            final = replace(self.card, step=at or self.steps, selected=self.config.training.select)
            save_pretrained(chosen, final, self.path)
        return TrainingSummary(
            run=self.path,
            variant=self.model.variant,
            dataset=self.table.name,
            steps=self.steps,
            resumed_from=first,
            seconds=time.perf_counter() - started,
            images=len(self.cache),
            identities=self.card.classes,
            parameters=sum(p.numel() for p in self.model.parameters()),
            last_terms=terms,
            selected=self.config.training.select,
        )

    def _identity(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resume, beside the settings."""
        return {
            "data": fingerprint(self.cache.table, self.cache.table.split),
            "processes": self.place.world,
            "steps": self.steps,
        }

    def _check_same(self, facts: dict[str, Any], folder: Path) -> None:
        names = {
            "data": "other images or identities",
            "processes": "another number of processes",
            "steps": "other steps",
        }
        now = self._identity()
        changed = [
            f"{names[key]} ({facts[key]} there, {now[key]} now)" for key in now if facts[key] != now[key]
        ]
        if changed:
            raise CheckpointError(
                f"{folder} cannot be resumed exactly: it was made with {', '.join(changed)}"
            )

    def _step(self, step: int) -> dict[str, float]:
        """One step of the game: discriminators, then everything else. Pure in (weights, seed, step)."""
        config = self.config
        factor = rate(step, self.steps, config.training)
        set_rate(self.optimizer, factor)
        set_rate(self.judge_optimizer, factor)
        visible, infrared, labels = self._batch(step)
        self.model.train()
        autocast = torch.autocast(
            self.place.device.type, torch.bfloat16, enabled=config.training.precision == "bf16"
        )
        with autocast:
            output = self.model(visible, infrared)
            judged = discriminator_objective(self.model, output)
        if self.judge_optimizer is not None:
            self._check(judged, step)
            self._descend(self.judge_optimizer, total(judged), step, "discriminator gradient")
        with autocast:
            terms = objective(self.model, output, labels, config.data.identities, config.losses)
        self._check(terms, step)
        self._descend(self.optimizer, total(terms), step, "gradient", config.training.clip)
        names = [*terms, *judged]
        values = torch.stack([*terms.values(), *judged.values()]).detach().double().cpu().tolist()
        return {"loss": sum(values[: len(terms)]), **dict(zip(names, values, strict=True)), "rate": factor}

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two aligned, augmented halves (P*K, 3, H, W) and their labels (P*K,)."""
        config, device = self.config, self.place.device
        epoch, start = divmod(step, self.sampler.steps)
        if self._epoch != epoch:
            self._plan, self._epoch = list(self.sampler.batches(epoch)), epoch
        halves = []
        for modality, rows in zip(Modality, self._plan[start], strict=True):
            images = move(torch.from_numpy(self.cache.images[rows]).permute(0, 3, 1, 2), device)
            generator = seeded_generator(device, config.training.seed, step, self.place.rank, modality.code)
            halves.append(augment(images, modality, config.augment, generator))
        return halves[0], halves[1], move(self.labels[self._plan[start][0]], device)

    def _descend(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, step: int, name: str, clip: float = 0.0
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters, self.place.world)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip or torch.inf)
        self._check({name: norm}, step)  # before the weights are touched: a checkpoint never holds NaN
        optimizer.step()

    def _check(self, terms: dict[str, Tensor], step: int) -> None:
        values = torch.stack([term.detach().float() for term in terms.values()])
        if torch.isfinite(values).all():
            return
        bad = [name for name, value in zip(terms, values.tolist(), strict=True) if not np.isfinite(value)]
        good = checkpoints(self.path)
        where = f"the last good checkpoint is {good[-1]}" if good else "there was no checkpoint yet"
        raise TrainingError(
            f"step {step + 1}: {', '.join(bad)} became NaN or infinite; {where}. "
            "Train into a new --out with a lower training.lr, with training.clip, or training.precision=fp32."
        )

    def _save(self, done: int, terms: dict[str, float], log: TrainingLog | None) -> None:
        average_buffers(self.model, self.place.world)
        if not self.place.main:
            return
        if log:
            log.flush()
        facts = {"terms": terms, "selection": self.selection.facts(), **self._identity()}
        save_checkpoint(self.path, done, self.model, replace(self.card, step=done), self.optimizers, facts)
        self.selection.forget()


def _shown(terms: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in terms.items() if name != "rate")


def _check_folder(run: Path, config: Config, resume: bool) -> None:
    """Refuse to overwrite a run, to resume another one, or to write into somebody's folder."""
    stored = run / CONFIG
    if stored.is_file():
        if not resume:
            raise CheckpointError(
                f"{run} already holds a run: go on with --resume (in Python: resume=True), or give another --out"
            )
        old, new = (_flat(tree.model_dump(mode="json")) for tree in (load_config(stored), config))
        changed = [f"{key}: {old[key]} there, {new[key]} now" for key in old if old[key] != new[key]]
        if changed:
            raise CheckpointError(f"{run} was started with other settings ({'; '.join(changed[:5])})")
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise DataError(f"{run} exists and is not an fmcnet run: give a new or empty folder as --out")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}
