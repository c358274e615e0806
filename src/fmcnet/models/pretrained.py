"""Published weights of a backbone into FMCNet's two stems and three tails."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fmcnet.errors import CheckpointError, FmcnetError, first_of
from fmcnet.models.backbones import make_backbone
from fmcnet.models.fmcnet import FMCNet
from fmcnet.models.shipped import find_model, shipped_models

logger = logging.getLogger(__name__)

NOT_PUBLISHED = {"head", "pool", "norm"}
"""Parts of a tail that published weights lack."""
_NOT_TRANSFERRED = re.compile(r"classify\w*\.linear\.|^standard\.")
"""Depends on a model's identities and cameras: classifiers and the statistics of its descriptor."""


def load_pretrained(model: FMCNet, source: str | None, arch: str) -> None:
    """Initialise both stems and every tail from one state dict, as the paper does.

    Args:
        model: changed in place; not changed when the weights do not fit.
        source: "imagenet" (the source that the backbone names), a path to a `.pth` or `.safetensors` file with the
            published key names, the folder of a run or the name of a shipped model (`load_model`), or None: random
            initialisation, with a warning.
        arch: name of the architecture.

    Raises:
        CheckpointError: when the weights are missing or do not fit, naming the keys or shapes that differ.
    """
    if source is None:
        logger.log(
            logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG,  # once in a job
            "RANDOM INITIALISATION: model.pretrained is empty. Published results start from ImageNet: set "
            "model.pretrained=imagenet, or a path to a file of weights.",
        )
        return
    if is_model(source):
        load_model(model, source, arch)
        return
    published = _imagenet_weights(arch) if source == "imagenet" else _read_state_dict(source)
    state = make_backbone(arch).rename(published)
    parts = _backbone_parts(model)
    expected = {key: value for part in parts.values() for key, value in _backbone_state(part).items()}
    if fault := _difference(state, expected, source, arch, list(published)):
        raise CheckpointError(fault)
    for part in parts.values():
        part.load_state_dict({k: state[k] for k in _backbone_state(part) if k in state}, strict=False)
    tails = sum(not name.startswith("stem") for name in parts)
    logger.info("initialised two stems and %d tails from %s", tails, source)


def is_model(source: str) -> bool:
    """Whether a source of weights is a trained model: a run's folder or the name of a shipped one."""
    return source != "imagenet" and (source in shipped_models() or Path(source).expanduser().is_dir())


def load_model(model: FMCNet, source: str, arch: str) -> None:
    """Initialise from a trained model: stems, tails, and all other tensors of the same name and shape.

    A specific or frozen tail that the source lacks is initialised from its shared tail. The linear layers of
    classifiers and the statistics of the descriptor start anew: identities differ. Arguments and errors as
    `load_pretrained`.
    """
    from fmcnet.models.checkpoint import load_pretrained_model

    trained, card = load_pretrained_model(find_model(source))
    settings, sfd, trained_sfd = card.config.model, model.decomposition, trained.decomposition
    if settings.arch != arch:
        raise CheckpointError(
            f"model.pretrained={source} is of {settings.arch}, not of {arch}: set model.arch={settings.arch}"
        )
    if (trained_sfd.stem_shared is None) != (sfd.stem_shared is None):
        raise CheckpointError(
            f"model.pretrained={source} has model.specific_stages={settings.specific_stages}: set that"
        )
    if sfd.stem_visible is sfd.stem_infrared and trained_sfd.stem_visible is not trained_sfd.stem_infrared:
        raise CheckpointError(
            f"model.pretrained={source} has a stem of each modality: set model.single_stream=false"
        )
    parts, trained_parts = _backbone_parts(model), _backbone_parts(trained)
    for name, part in parts.items():
        layers = _backbone_state(trained_parts.get(name, trained_sfd.shared))
        if _difference(layers, _backbone_state(part), source, arch, list(layers)):
            blocks = "null" if settings.tail_blocks is None else settings.tail_blocks
            raise CheckpointError(
                f"model.pretrained={source} has other layers: set model.width={settings.width} "
                f"model.tail_blocks={blocks}"
            )
    for name, part in parts.items():
        if name not in trained_parts:  # with pooling and head, where their shapes fit
            part.load_state_dict(_fitting(trained_sfd.shared, part), strict=False)
    fitting = _fitting(trained, model)
    transferred = {key: value for key, value in fitting.items() if not _NOT_TRANSFERRED.search(key)}
    model.load_state_dict(transferred, strict=False)
    logger.info("initialised %d of %d tensors from %s", len(transferred), len(model.state_dict()), source)


def _fitting(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """The tensors of `source` that `target` has under the same name in the same shape."""
    shapes = {key: value.shape for key, value in target.state_dict().items()}
    return {key: value for key, value in source.state_dict().items() if value.shape == shapes.get(key)}


def _backbone_parts(model: FMCNet) -> dict[str, nn.Module]:
    """The stems and tails that a model has, by name."""
    names = (
        "stem_visible",
        "stem_infrared",
        "stem_shared",
        "shared",
        "specific_visible",
        "specific_infrared",
    )
    parts = {name: getattr(model.decomposition, name) for name in names} | {"frozen": model.frozen}
    return {name: part for name, part in parts.items() if part is not None}


def _backbone_state(module: nn.Module) -> dict[str, Tensor]:
    return {
        key: value for key, value in module.state_dict().items() if key.partition(".")[0] not in NOT_PUBLISHED
    }


def _difference(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, arch: str, published: list[str]
) -> str:
    """How layers of the model differ from those of the same names in `state`; "" if they do not."""
    layers = {key.partition(".")[0] for key in expected}
    present = {key: value for key, value in state.items() if key.partition(".")[0] in layers}
    if not present:
        return (
            f"{source} does not hold the weights of {arch}: no key fits. Its keys: {first_of(published, 3, '; ')}. "
            "Set model.arch to the network of the file."
        )
    missing = sorted(expected.keys() - present.keys())
    faults = [f"missing {key}" for key in missing if not key.endswith("num_batches_tracked")]
    faults += [f"unexpected {key}" for key in sorted(present.keys() - expected.keys())]
    if faults:
        return (
            f"{source} does not hold the weights of {arch}: {first_of(faults, 3, '; ')}. "
            "Set model.arch to the network of the file, or take a complete file."
        )
    shapes = [
        f"{key} {tuple(present[key].shape)} in the file, {tuple(value.shape)} in the model"
        for key, value in sorted(expected.items())
        if key in present and present[key].shape != value.shape
    ]
    if shapes:
        advice = "" if source == "imagenet" else "Set model.width to that of the file. "
        return (
            f"{source} holds weights of {arch} at another width: {first_of(shapes, 3, '; ')}. "
            f"{advice}Published weights have model.width=64."
        )
    return ""


def _imagenet_weights(arch: str) -> dict[str, Tensor]:
    """The published weights of a backbone, under the names of their publication."""
    try:
        return make_backbone(arch).imagenet()
    except FmcnetError:
        raise
    except Exception as error:  # from another package
        raise CheckpointError(
            f"model.pretrained=imagenet: the backbone {arch} gave no weights ({type(error).__name__}: {error}). "
            "Mend its imagenet(), or set model.pretrained to the path of a state dict, or to null."
        ) from error


def _read_state_dict(source: str) -> dict[str, Tensor]:
    path = Path(source).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"model.pretrained: no file or run {path}. Give a file of weights, a run's folder, 'imagenet', null or a "
            f"shipped model: {', '.join(shipped_models())}."
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"model.pretrained: cannot read {path}: {error.strerror}") from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's message is long and advises weights_only=False
        raise CheckpointError(
            f"model.pretrained: {path} is not a readable file of weights. It is damaged, or not a state dict in "
            "PyTorch's or safetensors' format."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(
            f"model.pretrained: {path} is not a state dict (names to tensors). Save only the network's state_dict()."
        )
    return loaded
