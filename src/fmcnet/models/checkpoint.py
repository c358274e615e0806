"""A model on disk: `model.safetensors` beside `model.json` (`card.py`), which holds everything else."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmcnet.distributed import check_device
from fmcnet.errors import CheckpointError, first_of
from fmcnet.files import as_os_error, file_digest, write_atomically, write_json
from fmcnet.models.build import build_model
from fmcnet.models.card import CARD, TRAINING_STATE, WEIGHTS, ModelCard, read_card
from fmcnet.models.fmcnet import FMCNet

logger = logging.getLogger(__name__)


def save_pretrained(model: FMCNet, card: ModelCard, folder: str | Path) -> Path:
    """Write `model.safetensors` and `model.json`; each appears whole or not at all.

    Args:
        model: the weights.
        card: stored beside them.
        folder: created if it does not exist.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda path: save_tensors(tensors, path))
    write_json(folder / CARD, replace(card, weights=file_digest(folder / WEIGHTS)).to_dict())
    return folder


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises `OSError` when that fails (safetensors has an error class of its own)."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise as_os_error(error, path) from error


def load_pretrained_model(folder: str | Path, device: str | torch.device = "cpu") -> tuple[FMCNet, ModelCard]:
    """Load the model of a run.

    Args:
        folder: of the run, or of a checkpoint.
        device: where the weights go.

    Returns:
        The model in evaluation mode, and its card.

    Raises:
        CheckpointError: unless every weight fits.
        FmcnetError: for a device that this machine does not have.
    """
    torch_device = check_device(device)
    card = read_card(folder)
    model = build_described(card, Path(folder) / WEIGHTS)
    load_weights(model, Path(folder) / WEIGHTS)
    if card.weights and file_digest(Path(folder) / WEIGHTS) != card.weights:
        logger.warning(
            "%s is not the file that %s was written with: unless you changed it, it is damaged; copy the model again",
            Path(folder) / WEIGHTS,
            CARD,
        )
    estimated = card.config.model.standardized or card.config.model.normalization == "modality"
    if estimated and (Path(folder) / TRAINING_STATE).is_file():
        logger.warning(
            "%s is a checkpoint, without the statistics that the end of a training estimates, so its descriptors are "
            "not those of the finished run: finish it with --resume, or estimate them with fmcnet adapt",
            folder,
        )
    return model.to(torch_device).eval(), card


def build_described(card: ModelCard, weights: Path) -> FMCNet:
    """The model of a card, randomly initialised.

    Raises:
        CheckpointError: when the file of weights is missing, or too small for such a model. So a damaged card
            cannot exhaust the memory.
    """
    if not weights.is_file():
        raise CheckpointError(f"no weights at {weights}")
    config = card.config.model
    large = config.width > 64 or (config.dim or 0) > 4096 or card.classes > 5000
    if large:  # takes 2 s, so only for large models
        try:
            with torch.device("meta"):
                meta_model = build_model(config, card.classes)
        except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
            raise CheckpointError(
                f"{weights.with_name(CARD)} describes a model that cannot be built: {str(error).splitlines()[0]}"
            ) from error
        needed, size = sum(value.nbytes for value in meta_model.state_dict().values()), weights.stat().st_size
        if needed > 4 * size:  # weights may be stored in fewer bits
            raise CheckpointError(
                f"{weights} is damaged or of another model: it has {size:,} bytes, and the model that {CARD} "
                f"describes {needed:,}"
            )
    return build_model(config, card.classes)


def weights_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of all weights and buffers in a safetensors file: names, types, shapes and values.

    Two files with the same digest hold the same model, bit for bit, whatever else differs between the files.
    """
    state = _read_weights(path)
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def load_weights(model: FMCNet, path: Path) -> None:
    """Load a safetensors file strictly into `model`; raises `CheckpointError` naming the first keys that differ."""
    state, expected = _read_weights(path), model.state_dict()
    faults = [f"missing {key}" for key in expected if key not in state]
    faults += [f"unexpected {key}" for key in state if key not in expected]
    faults += [
        f"{key} is {tuple(state[key].shape)}, should be {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if faults:
        raise CheckpointError(
            f"{path} holds the weights of another model than {path.with_name(CARD).name} describes: "
            f"{first_of(faults, 3, '; ')}"
        )
    model.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
