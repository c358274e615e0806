"""The model card `model.json`, stored beside the weights and readable without PyTorch, and the model's digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import fmcnet
from fmcnet.config import Config, load_config
from fmcnet.errors import CheckpointError, ConfigError
from fmcnet.parsing import first_fault, read_json

CARD_FORMAT = "fmcnet-model-1"
WEIGHTS = "model.safetensors"
CARD = "model.json"
TRAINING_STATE = "state.json"  # a checkpoint has it, too
PROJECTION = "projection.safetensors"
"""Projection of the descriptors to fewer values, if the model has one; see `inference/projection.py`."""


@dataclass(frozen=True)
class ModelCard:
    """The model card: what is stored beside the weights.

    Attributes:
        config: the run's whole configuration; data.height and data.width are the input size.
        pids: training identities (C,), in label order.
        dataset: name of the training table.
        step: optimisation steps done.
        data: the training dataset's `fingerprint`.
        identities: `Table.identity_numbers` of the training images; a model of 0.1.0 has none.
        samples: `fmcnet.data.table.sample_images` of the training images; a model of 0.1.0 has none.
        start_samples: `samples` and `start_samples` of the model that the training started from, and samples of
            what a projection was learnt from.
        selected: how the weights were picked: "last", "val" or "test".
        similarity: what embeddings are compared by.
        adapted: what `fmcnet adapt` estimated statistics from; empty if it was not used.
        weights: `fmcnet.files.file_digest` of the weights' file as it was written; "" if unknown.
        versions: of fmcnet, torch and Python.
    """

    config: Config
    pids: tuple[int, ...]
    dataset: str
    step: int
    data: str = ""
    identities: tuple[int, ...] = ()
    samples: tuple[str, ...] = ()
    start_samples: tuple[str, ...] = ()
    selected: str = "last"
    similarity: str = "cosine"
    adapted: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    versions: dict[str, str] = field(default_factory=lambda: versions())

    @property
    def classes(self) -> int:
        """Number of training identities."""
        return len(self.pids)

    @property
    def seen_samples(self) -> tuple[str, ...]:
        """Samples of all images trained on, here and in the model that the training started from."""
        return (*self.samples, *self.start_samples)

    def to_dict(self) -> dict[str, Any]:
        """As written to `model.json`."""
        tree = asdict(self) | {"config": self.config.model_dump(mode="json"), "pids": list(self.pids)}
        return {"format": CARD_FORMAT, **tree}


def versions(*packages: str) -> dict[str, str]:
    """Versions of fmcnet, torch, Python and `packages`; "" for a package that is not installed."""
    return {
        "fmcnet": fmcnet.__version__,
        **{name: _version(name) for name in ("torch", *packages)},
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def read_card(folder: str | Path) -> ModelCard:
    """Read `model.json`; raises `CheckpointError` when it is missing, damaged, or not fmcnet's."""
    path = Path(folder) / CARD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {CARD}: give the folder of a finished run (fmcnet train --out FOLDER)"
        )
    try:
        tree = read_json(path)
        if not isinstance(tree, dict) or tree.get("format") != CARD_FORMAT:
            raise CheckpointError(f"{path} is not a model card of this version (format {CARD_FORMAT})")
        tree.pop("format")
        if unknown := tree.keys() - {field.name for field in fields(ModelCard)}:
            raise ConfigError(f"unknown entry '{min(unknown)}'")
        if not isinstance(tree["config"], dict):
            raise TypeError("config is no section")
        tree["config"] = load_config(tree["config"], trained=True)
        return TypeAdapter(ModelCard).validate_python(tree)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} does not fit this version of fmcnet ({fmcnet.__version__}): another version wrote it, or it was "
            f"edited since: {error}"
        ) from error
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {first_fault(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def model_digest(folder: str | Path) -> str:
    """16 hex digits that identify what computes embeddings: weights, architecture, input size, projection.

    The digest is of the files, so it stays the same when a later version of fmcnet has more settings.
    """
    card, weights, projection = (Path(folder) / name for name in (CARD, WEIGHTS, PROJECTION))
    try:
        config = read_json(card)["config"]
        facts = [config["model"], config["data"]["height"], config["data"]["width"]]
        content = weights.read_bytes()
        if projection.exists():
            content += projection.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: the model is missing or damaged: {error}") from error
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + content).hexdigest()[:16]
