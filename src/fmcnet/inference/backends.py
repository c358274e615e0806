"""What computes embeddings: PyTorch, or ONNX Runtime from a folder that `fmcnet export` wrote.

Neither is imported before it is needed, so that an exported model runs without PyTorch. `export.json` (`Manifest`)
describes the graphs of an exported model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fmcnet.errors import CheckpointError, FmcnetError, MissingDependencyError, require
from fmcnet.files import file_digest, write_json
from fmcnet.inference.projection import Projection
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, model_digest, read_card
from fmcnet.parsing import first_fault, read_json
from fmcnet.types import FloatArray, Modality

if TYPE_CHECKING:
    import torch

    from fmcnet.models.fmcnet import FMCNet

RuntimeName = Literal["auto", "torch", "onnxruntime"]
CUDA = "CUDAExecutionProvider"

EXPORT_MANIFEST = "export.json"
ONNX_FOLDER = "onnx"
"""In a run folder."""
EXPORT_FORMAT = "fmcnet-onnx-1"
GRAPHS = {modality: f"model-{modality}.onnx" for modality in Modality}
INPUT, OUTPUT = "images", "embedding"
"""Names in the graphs: (batch, H, W, 3) uint8 to (batch, E) float32."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """What an exported model is.

    In fp32 it has the digest of the weights, whose embeddings it reproduces up to rounding; in int8 another one.
    """

    digest: Digest  # names the model
    source: Digest  # of the weights it was made from
    precision: Literal["fp32", "int8"]
    dim: Positive  # E
    height: Positive  # of the input, in pixels
    width: Positive  # of the input, in pixels
    opset: Positive  # version of ONNX's operators
    sha256: dict[str, Sha256]  # of each graph's file, by file name
    versions: dict[str, str]  # of the packages that made it
    kept: tuple[str, ...] = ()  # layers that int8 leaves in float32

    def save(self, folder: Path) -> None:
        """Write `export.json`."""
        write_json(folder / EXPORT_MANIFEST, {"format": EXPORT_FORMAT, **asdict(self)})


def read_manifest(folder: str | Path) -> Manifest:
    """Read `export.json`.

    Raises:
        CheckpointError: when it is missing, damaged, or not fmcnet's; names the field that is wrong.
    """
    path = Path(folder) / EXPORT_MANIFEST
    try:
        tree = read_json(path)
        if tree.pop("format") != EXPORT_FORMAT:
            raise CheckpointError(f"{path} is not an exported model of this version (format {EXPORT_FORMAT})")
        manifest = TypeAdapter(Manifest).validate_python(tree)
        if set(manifest.sha256) != set(GRAPHS.values()):
            names = ", ".join(manifest.sha256) or "nothing"
            raise CheckpointError(
                f"{path} is damaged: sha256 names {names}, not {', '.join(GRAPHS.values())}; export the model again"
            )
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {first_fault(error)}; export the model again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}; export the model again") from error
    expected = (
        manifest.source if manifest.precision == "fp32" else int8_digest(manifest.source, manifest.sha256)
    )
    if manifest.digest != expected:
        raise CheckpointError(
            f"{path} is damaged: digest is {manifest.digest}, of this {manifest.precision} model it is {expected}; "
            "export the model again"
        )
    return manifest


def int8_digest(source: str, sha256: dict[str, str]) -> str:
    """The digest of an int8 model, from that of its source weights and its graphs."""
    content = "".join(sha256[GRAPHS[modality]] for modality in Modality)
    return hashlib.sha256(f"{source} int8 {content}".encode()).hexdigest()[:16]


class Backend(Protocol):
    """A network that is ready to embed.

    Attributes:
        name: "torch" or "onnxruntime".
        device: where it computes; a torch.device or, of ONNX Runtime, "cpu", "cuda" or "cuda:N".
    """

    name: str
    device: Any

    def __call__(self, images: NDArray[Any], modality: Modality) -> FloatArray:
        """Descriptors of images of one modality, not brought to unit length.

        Args:
            images: (N, H, W, 3) uint8 of the model's input size; the network normalises them itself.
            modality: of all images.

        Returns:
            (N, E) float32.
        """
        ...


class TorchBackend:
    """The network as it was trained.

    Args:
        model: in evaluation mode, on `device`.
        device: where it computes.
        projection: of its embeddings to fewer values; None: nothing projects.
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
    """The graphs of an exported model; on a CPU a graph is loaded when first needed.

    Args:
        folder: holds them.
        device: "auto" and "cpu": the CPU; "cuda" or "cuda:N" where this ONNX Runtime can. Nothing falls back to the
            CPU unasked: a GPU that cannot be used is an error.
        threads: that compute; None: $OMP_NUM_THREADS, else ONNX Runtime's choice.

    Raises:
        CheckpointError: when a file is missing, or is not the one that was exported.
        FmcnetError: for a device that cannot be used here; on a GPU both graphs are loaded now, to test that.
        MissingDependencyError: without onnxruntime.
    """

    name = "onnxruntime"

    def __init__(self, folder: str | Path, device: str = "auto", threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self._runtime: Any = require("onnxruntime", "runtime")
        self.device, self._providers = _select_providers(self._runtime, device)
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
        """(N, H, W, 3) uint8 to (N, E) float32; raises `FmcnetError` when the device fails."""
        session = self._session(modality)
        try:
            out: FloatArray = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
        except Exception as error:  # its errors have no public base class
            raise FmcnetError(
                f"ONNX Runtime failed on {self.device} with {len(images)} images: {_first_line(error)}"
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
                    raise FmcnetError(_unusable_message(self.device, _first_line(error))) from error
                raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
            if self.device != "cpu" and CUDA not in session.get_providers():  # ONNX Runtime raises nothing
                raise FmcnetError(_unusable_message(self.device, "its CUDA provider did not start"))
            manifest = self.manifest
            for name, expected, actual in (
                ("height, width", [manifest.height, manifest.width, 3], session.get_inputs()[0].shape[1:]),
                ("dim", [manifest.dim], session.get_outputs()[0].shape[1:]),
            ):
                if actual != expected:
                    raise CheckpointError(
                        f"{self.folder / EXPORT_MANIFEST} is damaged: {name} should give {expected} and {path.name} "
                        f"has {actual}; export the model again"
                    )
            self._sessions[modality] = session
        return self._sessions[modality]


def open_backend(
    folder: Path, device: str, runtime: RuntimeName, threads: int | None
) -> tuple[Backend, ModelCard, str]:
    """The backend of a model, its card and its digest; arguments and errors as `Encoder.from_pretrained`."""
    card = read_card(folder)
    if _choose_runtime(folder, runtime) == "onnxruntime":
        onnx = OnnxBackend(folder, device, threads)
        size = (onnx.manifest.height, onnx.manifest.width)
        if size != (card.config.data.height, card.config.data.width):
            raise CheckpointError(
                f"{folder}: {EXPORT_MANIFEST} is of images of {size[0]} x {size[1]} (H x W), {CARD} of "
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
    torch_device = pick_device(device)
    model, card = load_pretrained_model(folder, torch_device)
    path = folder / PROJECTION
    projection = Projection.load(path) if path.exists() else None
    if projection is None and card.config.model.descriptor == "discriminant":
        raise CheckpointError(
            f"{folder} lacks {PROJECTION}, the last thing that its training writes: finish it with "
            "fmcnet train --resume, or fetch the file from where the weights come from"
        )
    return TorchBackend(model, torch_device, projection), card, model_digest(folder)


def _choose_runtime(folder: Path, runtime: str) -> str:
    """The runtime of a folder's model, "torch" or "onnxruntime"."""
    available = {"torch": (folder / WEIGHTS).is_file(), "onnxruntime": (folder / EXPORT_MANIFEST).is_file()}
    if runtime not in ("auto", *available):
        raise FmcnetError(f"runtime='{runtime}': say auto, torch or onnxruntime")
    if runtime != "auto":
        if not available[runtime]:
            missing = {
                "torch": f"{WEIGHTS}; give the run that it was exported from",
                "onnxruntime": f"{EXPORT_MANIFEST} (fmcnet export makes it)",
            }[runtime]
            raise CheckpointError(f"{folder} holds no model for {runtime}: it lacks {missing}")
        return runtime
    if all(available.values()):
        return "torch" if _importable("torch") else "onnxruntime"
    return "onnxruntime" if available["onnxruntime"] else "torch"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _select_providers(runtime: Any, device: str) -> tuple[str, list[Any]]:
    kind, colon, number = device.partition(":")
    if device in ("auto", "cpu"):
        return "cpu", ["CPUExecutionProvider"]
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise FmcnetError(
            f"device '{device}' cannot be used by this ONNX Runtime: say auto, cpu, cuda or cuda:N"
        )
    available = runtime.get_available_providers()
    if CUDA not in available:
        raise FmcnetError(_unusable_message(device, f"it has {', '.join(available)} only"))
    return device, [(CUDA, {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _unusable_message(device: str, reason: str) -> str:
    return (
        f"device '{device}' cannot be used by this ONNX Runtime: {reason}. Say --device cpu; or, for a GPU, install "
        "onnxruntime-gpu in the place of onnxruntime, with the CUDA and cuDNN that it names"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
