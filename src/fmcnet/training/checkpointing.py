"""Checkpoints of a training: everything that an exact resume needs, in safetensors and JSON.

A checkpoint is a folder `RUN/checkpoints/step-NNNNNN`:

- `model.safetensors`, `model.json`: the weights as trained at that step, which load as a model;
- `state.safetensors`: both optimisers, and of every process its random-number state and, with several processes,
  its running statistics;
- `state.json`: the step (it determines the sampler's position and the learning rates), its terms, the scaler, mAP
  and step of the best validated weights, `INVARIANTS`, and SHA-256 digests of the other files and of itself.

It is written under a temporary name, flushed to disk, and renamed. A resume skips checkpoints that are damaged or
cannot be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmcnet.distributed import DistributedContext, agree, agree_on_errors, gather, mark_agreed
from fmcnet.errors import CheckpointError
from fmcnet.files import file_digest, to_disk
from fmcnet.models.card import CARD, TRAINING_STATE, WEIGHTS, ModelCard, read_card
from fmcnet.models.checkpoint import load_weights, save_pretrained, save_tensors
from fmcnet.parsing import read_json
from fmcnet.training.loggers import StepLogger
from fmcnet.training.optimizers import restore_schedule
from fmcnet.training.run_folder import changed_settings
from fmcnet.training.selection import ModelSelection
from fmcnet.training.train_step import TrainStep

STATE = "state.safetensors"

INVARIANTS = {
    "data": "other images or identities",
    "processes": "another number of processes",
    "steps": "other steps",
    "precision": "another precision",
    "device": "another kind of device",
    "pixels": "images that looked different",
    "discriminators": "another optimiser of the discriminators",
    "own_terms": "other loss terms of train(terms=...)",
    "modalities": "images of another modality",
    "validation": "other images to validate on",
}
"""What must not change between a checkpoint and its resume, beside the settings, and how a message names a change."""
UNRECORDED = ("modalities", "validation")
"""Those that checkpoints of 0.1.0 lack."""

logger = logging.getLogger(__name__)


class _UnusableError(CheckpointError):
    """A checkpoint that is damaged or cannot be read."""

    def __init__(self, folder: Path, error: Exception) -> None:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        denied = isinstance(error, OSError) and not missing
        super().__init__(f"the checkpoint {folder} {'cannot be read' if denied else 'is damaged'} ({error})")


class Checkpointer:
    """Writes and restores the checkpoints of one training.

    The log of `step_logger` is flushed to disk before each checkpoint, which stores its last terms. `invariants` are
    the values of `INVARIANTS` in this training.
    """

    def __init__(
        self,
        run: Path,
        ctx: DistributedContext,
        train_step: TrainStep,
        card: ModelCard,
        selection: ModelSelection,
        step_logger: StepLogger,
        invariants: dict[str, Any],
    ) -> None:
        self._run, self._ctx, self._train_step, self._card = run, ctx, train_step, card
        self._selection, self._logger = selection, step_logger
        self._invariants, self._steps = invariants, int(invariants["steps"])
        self._saved = time.monotonic()  # last attempt, successful or not

    def restore(self) -> int:
        """Restore the newest undamaged checkpoint; returns the steps done, 0 without one.

        Raises:
            CheckpointError: when it is of other data, steps or processes, or all are damaged.
        """
        with agree_on_errors(self._ctx):
            facts = self._load_newest()
        done = facts["step"] if facts else 0
        if any(agree([len(set(gather(done, self._ctx))) > 1], self._ctx)):
            raise mark_agreed(
                CheckpointError(
                    f"the processes do not find the same checkpoint in {self._run}: all must see one folder"
                )
            )
        if facts is None:
            if self._ctx.main:
                logger.info("there is no checkpoint in %s: starting from the first step", self._run)
            return 0
        self._logger.terms = facts["terms"]
        with agree_on_errors(self._ctx):
            self._selection.restore(facts["selection"])
        if self._ctx.main and done == self._steps:
            logger.info("%s had finished already: writing its model again", self._run)
        elif self._ctx.main:
            logger.info("resuming %s from step %d of %d", self._run, done, self._steps)
        return int(done)

    def _load_newest(self) -> dict[str, Any] | None:
        """Load the newest undamaged checkpoint; returns its facts, None without a checkpoint."""
        folders = checkpoints(self._run)
        while folders:
            folder = folders.pop()
            try:
                facts = _read_facts(folder)
                self._check_invariants(facts, folder)  # first, since the weights may not fit other data
                tensors = _read_tensors(folder, facts, self._train_step)
            except _UnusableError as error:
                if not folders:
                    raise CheckpointError(
                        f"{error}; there is no other checkpoint: start again in a new folder, or delete {self._run}"
                    ) from error
                if self._ctx.main:
                    logger.warning("%s: going back to the one before, %s", error, folders[-1].name)
                continue
            self._load_state(facts, tensors)
            return facts
        return None

    def _check_invariants(self, facts: dict[str, Any], folder: Path) -> None:
        changed = [
            f"{INVARIANTS[key]} ({facts.get(key, 'not recorded')} there, {value} now)"
            for key, value in self._invariants.items()
            if facts.get(key) != value and (key in facts or key not in UNRECORDED)
        ]
        with contextlib.suppress(CheckpointError):  # a damaged card is told with the other files
            settings = changed_settings(read_card(folder).config, self._card.config)
            changed += [f"{key} ({change})" for key, change in settings.items()]
        if changed:
            raise CheckpointError(
                f"{self._run} cannot be resumed exactly: it was made with {', '.join(changed)}. Give "
                "the same as there, or another --out"
            )

    def _load_state(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        _load_optimizers(self._train_step, tensors)
        for scheduler in self._train_step.schedulers:
            restore_schedule(scheduler, facts["step"])
        self._train_step.scaler.load_state_dict(facts["scaler"])
        prefix = f"rank{self._ctx.rank}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, buffer in self._train_step.model.named_buffers():
            if f"buffer.{key}" in own:
                buffer.copy_(own[f"buffer.{key}"])
        torch.set_rng_state(own["rng"])
        if "cuda_rng" in own and self._ctx.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_rng"], self._ctx.device)

    def late(self) -> bool:
        """Return whether `training.checkpoint_minutes` have passed since a checkpoint was written or tried."""
        minutes = (time.monotonic() - self._saved) / 60
        return 0 < self._card.config.training.checkpoint_minutes < minutes

    def save(self, done: int, must: bool) -> None:
        """Write a checkpoint after `done` steps; every process must call.

        Raises:
            CheckpointError: when it cannot be written and `must` is true; otherwise a warning is logged.
        """
        self._saved = time.monotonic()
        with agree_on_errors(self._ctx):
            # These differ between processes: random-number states and, with several processes, running statistics.
            state = {"rng": torch.get_rng_state()}
            if self._ctx.device.type == "cuda":
                state["cuda_rng"] = torch.cuda.get_rng_state(self._ctx.device)
            if self._ctx.world > 1:
                state |= {f"buffer.{k}": v.detach().cpu() for k, v in self._train_step.model.named_buffers()}
            states = gather(state, self._ctx)
            if not self._ctx.main:
                return
            try:
                self._write(done, states)
            except OSError as error:
                existing = checkpoints(self._run)
                newest = f"The last one is {existing[-1].name}" if existing else "There is none yet"
                problem = (
                    f"no checkpoint of step {done} could be written into {self._run / 'checkpoints'}: "
                    f"{error.strerror or error}. {newest}"
                )
                if must:
                    raise CheckpointError(
                        f"{problem}: make room, then {'go on from there' if existing else 'start anew'} with --resume"
                    ) from error
                logger.warning("%s; training goes on and tries again at the next", problem)
                return
            recorded = []
            for folder in checkpoints(self._run):
                with contextlib.suppress(CheckpointError):
                    recorded.append(_read_facts(folder)["selection"])
            self._selection.forget(recorded)

    def _write(self, step: int, states: Sequence[dict[str, Tensor]]) -> None:
        """Write the checkpoint of `step`, then remove all but the newest; an `OSError` leaves the earlier ones."""
        self._logger.flush()  # a checkpoint newer than the log would leave a gap in it
        folder = self._run / "checkpoints" / f"step-{step:06d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            save_pretrained(self._train_step.model, replace(self._card, step=step), temporary)
            tensors = _optimizer_states(self._train_step)
            tensors |= {f"rank{rank}.{k}": v for rank, state in enumerate(states) for k, v in state.items()}
            save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / STATE)
            facts = {
                "step": step,
                "scaler": self._train_step.scaler.state_dict(),
                "digests": {name: file_digest(temporary / name) for name in (WEIGHTS, CARD, STATE)},
                "terms": self._logger.terms,
                "selection": dict(self._selection.best),
                **self._invariants,
            }
            text = json.dumps({**facts, "sha256": _facts_digest(facts)})
            (temporary / TRAINING_STATE).write_text(text, encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                to_disk(path)
            if folder.exists():  # damaged, so the resume skipped it
                _remove(folder)
            temporary.rename(folder)
            to_disk(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        drop_others(self._run, step, self._card.config.training.keep)


def drop_others(run: Path, step: int, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` up to `step`, the last that was written or restored.

    Newer ones are damaged, so they do not count among those to keep.
    """
    undamaged = [path for path in checkpoints(run) if _step_number(path) <= step]
    for path in set(checkpoints(run)) - set(undamaged[-keep:]):
        _remove(path)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; renamed first, so that a kill leaves no partial checkpoint under its name."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old.tmp")))


def checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first; raises `CheckpointError` when their folder cannot be read."""
    folder = run / "checkpoints"
    try:
        entries = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    return sorted((path for path in entries if re.fullmatch(r"step-\d+", path.name)), key=_step_number)


def _read_tensors(folder: Path, facts: dict[str, Any], train_step: TrainStep) -> dict[str, Tensor]:
    """Load the weights into the model, and return the tensors of `state.safetensors`."""
    try:
        for name, digest in facts["digests"].items():
            if file_digest(folder / name) != digest:
                raise CheckpointError(f"{name} is not what was written")
        tensors = load_file(folder / STATE)
        load_weights(train_step.model, folder / WEIGHTS)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise _UnusableError(folder, error) from error
    return tensors


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = read_json(folder / TRAINING_STATE)
        if facts.pop("sha256") != _facts_digest(facts):
            raise CheckpointError(f"{TRAINING_STATE} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
        raise _UnusableError(folder, error) from error
    return facts


def _facts_digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _step_number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _optimizer_states(train_step: TrainStep) -> dict[str, Tensor]:
    """The state of every parameter by "optimizer.index.name"; the optimisers used here store tensors only."""
    tensors = {
        f"{name}.{index}.{key}": value
        for name, optimizer in train_step.optimizers.items()
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
        if value is not None
    }
    assert all(isinstance(value, Tensor) for value in tensors.values()), "a resume would not be exact"
    return tensors


def _load_optimizers(train_step: TrainStep, tensors: dict[str, Tensor]) -> None:
    for name, optimizer in train_step.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                _, index, field = key.split(".")
                parameter = parameters[int(index)]
                if value.shape == parameter.shape and value.dim():
                    value = torch.empty_like(parameter).copy_(value)  # in the memory format of the weights
                state[int(index)][field] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": dict(state), "param_groups": groups})
