"""Published ResNet weights into FMCNet's two stems and three tails."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from fmcnet.errors import CheckpointError
from fmcnet.model.backbone import make_backbone
from fmcnet.model.fmcnet import FMCNet

logger = logging.getLogger(__name__)

OWN = {"head", "pool", "norm"}
"""Parts of a tail that no published file has."""


def load_pretrained(model: FMCNet, source: str | None, arch: str) -> None:
    """Initialise both stems and every tail from one ResNet state dict, as the paper does.

    Args:
        model: changed in place.
        source: "imagenet" (the public address; cached by torch.hub), a path to a `.pth` or `.safetensors`
            file with torchvision's key names, or None: random initialisation, which is said loudly.
        arch: the architecture's name, which picks the address.

    Raises:
        CheckpointError: when the file is missing or does not fit, naming the keys or shapes that differ.
    """
    if source is None:
        logger.warning(
            "RANDOM INITIALISATION: no ImageNet weights were asked for (model.pretrained is empty). Published "
            "results start from ImageNet: set model.pretrained=imagenet or a path to torchvision's file."
        )
        return
    backbone = make_backbone(arch)
    state = backbone.rename(backbone.imagenet() if source == "imagenet" else _read(source))
    sfd = model.decomposition
    tails = [tail for tail in (sfd.shared, sfd.specific_visible, sfd.specific_infrared) if tail is not None]
    stems = [sfd.stem_visible, sfd.stem_infrared, *([sfd.stem_shared] if sfd.stem_shared else [])]
    for module in (*stems, *tails):
        names = {name for name, _ in module.named_children()} - OWN
        part = {key: value for key, value in state.items() if key.partition(".")[0] in names}
        wanted = {key: value for key, value in module.state_dict().items() if key.partition(".")[0] in names}
        counters = {key for key in wanted if key.endswith("num_batches_tracked")}
        missing = sorted(wanted.keys() - part.keys() - counters)
        extra = sorted(part.keys() - wanted.keys())
        shapes = [
            f"{key} {tuple(part[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
            for key in sorted(wanted.keys() & part.keys())
            if part[key].shape != wanted[key].shape
        ]
        if missing or extra or shapes:
            first = [f"missing {key}" for key in missing] + [f"unexpected {key}" for key in extra] + shapes
            raise CheckpointError(
                f"{source} does not hold the weights of {arch} at this width: {'; '.join(first[:4])}"
                f"{f' and {len(first) - 4} more' if len(first) > 4 else ''}. Check model.arch and model.width."
            )
        module.load_state_dict(part, strict=False)
    logger.info("initialised two stems and %d tails from %s", len(tails), source)


def _read(source: str) -> dict[str, Tensor]:
    path = Path(source).expanduser()
    if not path.is_file():
        raise CheckpointError(f"model.pretrained: no file {path}; give a path, 'imagenet' or null")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable file of weights: {error}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} is not a state dict (names to tensors) as torchvision publishes it")
    return loaded
