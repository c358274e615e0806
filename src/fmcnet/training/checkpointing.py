"""Checkpoints of a training under way: everything that an exact resume needs, in safetensors and JSON.

A checkpoint is a folder `RUN/checkpoints/step-NNNNNN`:

- `model.safetensors`, `model.json`: the weights as trained at that step, which load as a model;
- `state.safetensors`: both optimisers, averaged weights, look-alikes of the sampler, and of every process its random
  numbers' state and, where there are several, its running statistics and their averages;
- `state.json`: the step (from which follow the sampler's position and the learning rates), the scaler, the best
  validated weights, what must not change before a resume, and SHA-256 digests of the other files and of itself.

It is written under another name, brought to disk, and renamed. A damaged one is passed over for the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmcnet.errors import CheckpointError
from fmcnet.files import remove_left, to_disk
from fmcnet.models.checkpoint import CARD, WEIGHTS, ModelCard, load_weights, save_pretrained, save_tensors
from fmcnet.training.train_step import Game

STATE = "state.safetensors"
FACTS = "state.json"

logger = logging.getLogger(__name__)


def process_state(game: Game) -> dict[str, Tensor]:
    """What is one process's own: random numbers' state and, where there are several, running statistics."""
    own = {"rng": torch.get_rng_state()}
    if game.place.device.type == "cuda":
        own["cuda_rng"] = torch.cuda.get_rng_state(game.place.device)
    if game.place.world > 1:
        own |= {f"buffer.{k}": v.detach().cpu() for k, v in game.model.named_buffers()}
        averaged = game.ema.values if game.ema else {}
        own |= {f"ema.{k}": averaged[k].cpu() for k, _ in game.model.named_buffers() if k in averaged}
    return own


def save_checkpoint(
    run: Path,
    step: int,
    game: Game,
    everybody: Sequence[dict[str, Tensor]],
    card: ModelCard,
    facts: dict[str, Any],
    *,
    keep: int,
    extra: dict[str, Tensor],
) -> Path:
    """Write the checkpoint of `step`, then drop all but the newest `keep`; for rank 0.

    Args:
        run: the run folder. step: steps done. game: the training. card: of the weights.
        everybody: the `process_state` of every process, by rank.
        facts: JSON values to come back as they are. extra: tensors, likewise.

    Raises:
        OSError: when it cannot be written; the checkpoints that were there still are.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        save_pretrained(game.model, card, building)
        tensors, scalars = _optimizer_states(game)
        tensors |= {f"rank{rank}.{k}": v for rank, own in enumerate(everybody) for k, v in own.items()}
        tensors |= {f"ema.{k}": v for k, v in (game.ema.values if game.ema else {}).items()}
        tensors |= {f"extra.{k}": v for k, v in extra.items()}
        save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, building / STATE)
        digests = {name: file_digest(building / name) for name in (WEIGHTS, CARD, STATE)}
        whole = {
            "step": step,
            "scalars": scalars,
            "scaler": game.scaler.state_dict(),
            "digests": digests,
            **facts,
        }
        text = json.dumps({**whole, "sha256": _facts_digest(whole)})
        (building / FACTS).write_text(text, encoding="utf-8")
        for path in (*building.iterdir(), building):
            to_disk(path)
        if folder.exists():  # passed over as damaged
            _drop(folder)
        building.rename(folder)
        to_disk(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    drop_others(run, step, keep)
    return folder


def drop_others(run: Path, step: int, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` up to `step`, the last that was written or taken up.

    Newer ones were passed over as damaged: kept, they would push whole ones out.
    """
    done = [path for path in checkpoints(run) if _step(path) <= step]
    for path in set(checkpoints(run)) - set(done[-keep:]):
        _drop(path)


def _drop(folder: Path) -> None:
    """Remove a checkpoint; killed in the midst of it, this leaves none that is half there."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old.tmp")))


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=_step)


def recorded(run: Path, name: str) -> list[Any]:
    """One of the facts, of every checkpoint of a run that can be read."""
    found = []
    for folder in checkpoints(run):
        with contextlib.suppress(CheckpointError):
            found.append(_read_facts(folder)[name])
    return found


def remove_half_written(run: Path) -> None:
    """Remove the half-written checkpoints and best weights of a killed training."""
    for path in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (run / "checkpoints").glob("best-*"):
        remove_left(path)


def load_newest(
    run: Path, game: Game, check: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Take up the newest checkpoint that is whole; passes over damaged ones, with a warning.

    Args:
        run: the run folder. game: gets everything. check: is shown the facts and raises if they do not suit.

    Returns:
        Its facts ("step" among them) and extra tensors; None when there is no checkpoint.

    Raises:
        CheckpointError: when there are some, all damaged.
    """
    found = checkpoints(run)
    for at, folder in enumerate(reversed(found)):
        try:
            facts, tensors = _read(folder, game)
        except CheckpointError as error:
            before = found[-2 - at].name if at + 1 < len(found) else None
            if before is None:
                raise CheckpointError(
                    f"{error}; there is no other checkpoint: start again in a new folder, or delete {run}"
                ) from error
            if game.place.main:
                logger.warning("%s: going back to the one before, %s", error, before)
            continue
        check(facts)
        _take_up(facts, tensors, game)
        return facts, _under("extra", tensors)
    return None


def _read(folder: Path, game: Game) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors; the weights are loaded already."""
    facts = _read_facts(folder)
    try:
        for name, digest in facts["digests"].items():
            if file_digest(folder / name) != digest:
                raise CheckpointError(f"{name} is not what was written")
        tensors = load_file(folder / STATE)
        load_weights(game.model, folder / WEIGHTS)
    except (FileNotFoundError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged ({error})") from error
    return facts, tensors


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts.pop("sha256") != _facts_digest(facts):
            raise CheckpointError(f"{FACTS} is not what was written")
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        CheckpointError,
    ) as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged ({error})") from error
    return facts


def _facts_digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _take_up(facts: dict[str, Any], tensors: dict[str, Tensor], game: Game) -> None:
    rank = f"rank{game.place.rank}"
    _load_optimizers(game, {**tensors, **facts["scalars"]})
    game.scaler.load_state_dict(facts["scaler"])
    if game.ema:
        game.ema.load({**_under("ema", tensors), **_under(f"{rank}.ema", tensors)})
    buffers = dict(game.model.named_buffers())
    for key, value in _under(f"{rank}.buffer", tensors).items():
        buffers[key].copy_(value)
    torch.set_rng_state(tensors[f"{rank}.rng"])
    if f"{rank}.cuda_rng" in tensors and game.place.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"{rank}.cuda_rng"], game.place.device)


def _optimizer_states(game: Game) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, optimizer in game.optimizers.items():
        for index, entry in (optimizer.state_dict()["state"] if optimizer else {}).items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}.{index}.{key}"] = value
                elif value is not None:
                    scalars[f"{name}.{index}.{key}"] = value
    return tensors, scalars


def _load_optimizers(game: Game, flat: dict[str, Any]) -> None:
    for name, optimizer in game.optimizers.items():
        if optimizer is None:
            continue
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in flat.items():
            owner, index, field = ([*key.split(".", 2), "", ""])[:3]
            if owner == name:
                own = parameters[int(index)]
                if isinstance(value, Tensor) and value.shape == own.shape and value.dim():
                    value = torch.empty_like(own).copy_(value)  # laid in memory as the weights are
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
