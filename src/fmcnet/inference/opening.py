"""From a model's folder to what computes: PyTorch or ONNX Runtime, by what lies there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from fmcnet.errors import CheckpointError, FmcnetError, MissingDependencyError
from fmcnet.inference.engine import Engine
from fmcnet.inference.onnx_engine import MANIFEST, OnnxEngine
from fmcnet.inference.projection import Projection
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, model_digest, read_card

RuntimeName = Literal["auto", "torch", "onnxruntime"]


def open_engine(
    folder: Path, device: str, runtime: RuntimeName, threads: int | None
) -> tuple[Engine, ModelCard, str]:
    """The engine of a model, its card and its digest; arguments and errors as `Encoder.from_pretrained`."""
    card = read_card(folder)
    if _choose(folder, runtime) == "onnxruntime":
        onnx = OnnxEngine(folder, device, threads)
        size = (onnx.manifest.height, onnx.manifest.width)
        if size != (card.config.data.height, card.config.data.width):
            raise CheckpointError(
                f"{folder}: {MANIFEST} is of images of {size[0]} x {size[1]} (H x W), {CARD} of "
                f"{card.config.data.height} x {card.config.data.width}: export the model again"
            )
        return onnx, card, onnx.manifest.digest
    if not _importable("torch"):
        raise MissingDependencyError(
            f"{folder} holds weights for PyTorch, which is not installed: pip install torch, or make a form for "
            "ONNX Runtime with fmcnet export where it is"
        )
    import torch

    from fmcnet.distributed import pick_device
    from fmcnet.inference.torch_engine import TorchEngine
    from fmcnet.models.checkpoint import load_pretrained_model

    if threads:
        torch.set_num_threads(threads)
    chosen = pick_device(device)
    model, card = load_pretrained_model(folder, chosen)
    beside = folder / PROJECTION
    projection = Projection.load(beside) if beside.exists() else None
    if projection is None and card.config.model.descriptor == "discriminant":
        raise CheckpointError(
            f"{folder} lacks {PROJECTION}, the last thing that its training writes: finish it with "
            "fmcnet train --resume, or fetch the file from where the weights come from"
        )
    return TorchEngine(model, chosen, projection), card, model_digest(folder)


def _choose(folder: Path, wanted: str) -> str:
    """Which of the two a folder is for."""
    has = {"torch": (folder / WEIGHTS).is_file(), "onnxruntime": (folder / MANIFEST).is_file()}
    if wanted not in ("auto", *has):
        raise FmcnetError(f"runtime='{wanted}': say auto, torch or onnxruntime")
    if wanted != "auto":
        if not has[wanted]:
            lacks = WEIGHTS if wanted == "torch" else f"{MANIFEST} (fmcnet export makes it)"
            raise CheckpointError(f"{folder} holds no model for {wanted}: it lacks {lacks}")
        return wanted
    if all(has.values()):
        return "torch" if _importable("torch") else "onnxruntime"
    return "onnxruntime" if has["onnxruntime"] else "torch"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
