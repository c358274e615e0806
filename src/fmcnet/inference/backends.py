"""What computes embeddings: PyTorch, or ONNX Runtime from a folder that `fmcnet export` wrote.

Neither is imported before it is needed, so that an exported model runs without PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import CheckpointError, FmcnetError, MissingDependencyError, require
from fmcnet.files import file_digest
from fmcnet.inference.manifest import GRAPHS, INPUT, MANIFEST, OUTPUT, read_manifest
from fmcnet.inference.projection import Projection
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, model_digest, read_card
from fmcnet.types import FloatArray, Modality

if TYPE_CHECKING:
    import torch

    from fmcnet.models.fmcnet import FMCNet

RuntimeName = Literal["auto", "torch", "onnxruntime"]
CUDA = "CUDAExecutionProvider"


class Backend(Protocol):
    """A network that is ready to embed.

    Attributes:
        name: "torch" or "onnxruntime".
        device: where it computes; a torch.device or, of ONNX Runtime, "cpu" or "cuda".
    """

    name: str
    device: Any

    def __call__(self, images: NDArray[Any], modality: Modality) -> FloatArray:
        """Descriptors of images of one modality, not brought to unit length.

        Args:
            images: (N, H, W, 3) uint8 of the model's input size; the network normalises them itself.

        Returns:
            (N, E) float32.
        """
        ...


class TorchBackend:
    """The network as it was trained.

    Args:
        model: in eval mode, on `device`.
        device: where it computes.
        projection: of its embeddings to fewer values.
    """

    name = "torch"

    def __init__(self, model: FMCNet, device: torch.device, projection: Projection | None = None) -> None:
        self.model, self.device, self.projection = model, device, projection

    def __call__(self, images: NDArray[Any], modality: Modality) -> FloatArray:
        """(N, H, W, 3) uint8 to (N, E) float32."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(self.device)
            out: FloatArray = self.model.embed(batch, modality).float().cpu().numpy()
        return out if self.projection is None else self.projection(out)


class OnnxBackend:
    """The graphs of an exported model; a graph is loaded when first needed.

    Args:
        folder: holds them.
        device: "auto" and "cpu": the CPU; "cuda" or "cuda:N" where this ONNX Runtime can. Nothing falls back to the
            CPU unasked: a GPU that cannot be used is an error.
        threads: that compute; None: $OMP_NUM_THREADS, else ONNX Runtime's choice.

    Raises:
        CheckpointError: when a file is missing, or is not the one that was exported.
        FmcnetError: for a device that cannot be used here; on a GPU both graphs are loaded at once, to know.
        MissingDependencyError: without onnxruntime.
    """

    name = "onnxruntime"

    def __init__(self, folder: str | Path, device: str = "auto", threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self._runtime: Any = require("onnxruntime", "runtime")
        self.device, self._providers = _providers(self._runtime, device)
        self._threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
        self._sessions: dict[Modality, Any] = {}
        for modality in Modality:
            path = self.folder / GRAPHS[modality]
            if not path.is_file() or file_digest(path) != self.manifest.sha256.get(path.name):
                raise CheckpointError(f"{path} is missing or damaged: export the model again")
        if self.device != "cpu":
            for modality in Modality:
                self._session(modality)

    def __call__(self, images: NDArray[Any], modality: Modality) -> FloatArray:
        """(N, H, W, 3) uint8 to (N, E) float32.

        Raises:
            FmcnetError: when the device fails.
        """
        session = self._session(modality)
        try:
            out: FloatArray = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
        except Exception as error:  # its errors have no public base class
            raise FmcnetError(
                f"ONNX Runtime failed on {self.device} with {len(images)} images: {_line(error)}"
                + ("" if self.device == "cpu" else "; try fewer at once, or say --device cpu")
            ) from error
        return out

    def _session(self, modality: Modality) -> Any:
        if modality not in self._sessions:
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            path = self.folder / GRAPHS[modality]
            try:
                session = self._runtime.InferenceSession(
                    str(path), options, providers=self._providers, enable_fallback=0
                )
            except Exception as error:
                if self.device != "cpu":
                    raise FmcnetError(_unusable(self.device, _line(error))) from error
                raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
            if self.device != "cpu" and CUDA not in session.get_providers():  # it goes on without, in silence
                raise FmcnetError(_unusable(self.device, "its CUDA provider did not start"))
            self._check_shapes(path, session)
            self._sessions[modality] = session
        return self._sessions[modality]

    def _check_shapes(self, path: Path, session: Any) -> None:
        """The graph takes and gives what the manifest says."""
        said = self.manifest
        for what, wanted, found in (
            ("height, width", [said.height, said.width, 3], session.get_inputs()[0].shape[1:]),
            ("dim", [said.dim], session.get_outputs()[0].shape[1:]),
        ):
            if found != wanted:
                raise CheckpointError(
                    f"{self.folder / MANIFEST} is damaged: {what} should give {wanted} and {path.name} has {found}; "
                    "export the model again"
                )


def open_backend(
    folder: Path, device: str, runtime: RuntimeName, threads: int | None
) -> tuple[Backend, ModelCard, str]:
    """The backend of a model, its card and its digest; arguments and errors as `Encoder.from_pretrained`."""
    card = read_card(folder)
    if _choose(folder, runtime) == "onnxruntime":
        onnx = OnnxBackend(folder, device, threads)
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
    return TorchBackend(model, chosen, projection), card, model_digest(folder)


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


def _providers(runtime: Any, device: str) -> tuple[str, list[Any]]:
    kind, colon, number = device.partition(":")
    if device in ("auto", "cpu"):
        return "cpu", ["CPUExecutionProvider"]
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise FmcnetError(
            f"device '{device}' cannot be used by this ONNX Runtime: say auto, cpu, cuda or cuda:N"
        )
    there = runtime.get_available_providers()
    if CUDA not in there:
        raise FmcnetError(_unusable(device, f"it has {', '.join(there)} only"))
    return device, [(CUDA, {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _unusable(device: str, why: str) -> str:
    return (
        f"device '{device}' cannot be used by this ONNX Runtime: {why}. Say --device cpu; or, for a GPU, install "
        "onnxruntime-gpu in the place of onnxruntime, with the CUDA and cuDNN that it names"
    )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
