"""Published ResNet weights into FMCNet's two stems and three tails."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from fmcnet.errors import CheckpointError
from fmcnet.model.fmcnet import FMCNet

logger = logging.getLogger(__name__)

IMAGENET_ADDRESSES = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
}
"""torchvision's public ImageNet-1k files (IMAGENET1K_V1), by architecture."""

_STEM = ("conv1.", "bn1.", "layer1.", "layer2.")
_TAIL = ("layer3.", "layer4.")


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
    state = _read(source, arch)
    sfd = model.decomposition
    tails = (sfd.shared, sfd.specific_visible, sfd.specific_infrared)
    stems = [sfd.stem_visible, sfd.stem_infrared, *([sfd.stem_shared] if sfd.stem_shared else [])]
    for module, prefixes in [(stem, _prefixes(stem)) for stem in stems] + [
        (tail, _TAIL) for tail in tails if tail is not None
    ]:
        part = {key: value for key, value in state.items() if key.startswith(prefixes)}
        wanted = {
            key: value for key, value in module.state_dict().items() if not key.startswith(("pool.", "norm."))
        }
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
    logger.info("initialised two stems and %d tails from %s", sum(t is not None for t in tails), source)


def _prefixes(stem: nn.Module) -> tuple[str, ...]:
    """Those of `_STEM` that this stem, or what stems share, consists of."""
    return tuple(f"{name}." for name, child in stem.named_children() if f"{name}." in _STEM)


def _read(source: str, arch: str) -> dict[str, Tensor]:
    if source == "imagenet":
        try:
            loaded = torch.hub.load_state_dict_from_url(IMAGENET_ADDRESSES[arch], check_hash=True)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"could not fetch {IMAGENET_ADDRESSES[arch]} ({error}). Without network: fetch it elsewhere and "
                "set model.pretrained to its path, or to null for random initialisation."
            ) from error
        return dict(loaded)
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
