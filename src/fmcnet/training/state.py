"""Checkpoints of a training under way: everything that an exact resume needs, in safetensors and JSON.

Batches, augmentation and learning rates are pure functions of (seed, step), so weights, optimiser states and
the step's number are all there is to keep.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmcnet.errors import CheckpointError
from fmcnet.model.checkpoint import WEIGHTS, ModelCard, load_weights, save_pretrained
from fmcnet.model.fmcnet import FMCNet

KEEP = 2
_STATE = "state.safetensors"
_FACTS = "state.json"


def save_checkpoint(
    run: Path,
    step: int,
    model: FMCNet,
    card: ModelCard,
    optimizers: dict[str, torch.optim.Optimizer | None],
    facts: dict[str, Any],
) -> Path:
    """Write `run/checkpoints/step-NNNNNN` under another name, rename it, drop all but the newest `KEEP`."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_pretrained(model, card, building)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        for index, entry in (optimizer.state_dict()["state"] if optimizer else {}).items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}.{index}.{key}"] = value.detach().cpu().contiguous()
                elif value is not None:
                    scalars[f"{name}.{index}.{key}"] = value
    save_file(tensors, building / _STATE)
    (building / _FACTS).write_text(json.dumps({"step": step, "scalars": scalars, **facts}), encoding="utf-8")
    for file in building.iterdir():
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())  # whole on disk before it takes its name
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(
    folder: Path, model: FMCNet, optimizers: dict[str, torch.optim.Optimizer | None]
) -> dict[str, Any]:
    """Load weights and optimiser states in place and return the stored facts, `step` among them.

    Raises:
        CheckpointError: when a file is missing or damaged.
    """
    try:
        load_weights(model, folder / WEIGHTS)
        tensors = load_file(folder / _STATE)
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError, CheckpointError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}): delete this folder to resume from the one before it"
        ) from error
    flat: dict[str, Any] = {**tensors, **facts.pop("scalars")}
    for name, optimizer in optimizers.items():
        if optimizer is None:
            continue
        state: dict[int, dict[str, Any]] = {}
        for key, value in flat.items():
            owner, index, field = key.split(".", 2)
            if owner == name:
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts
