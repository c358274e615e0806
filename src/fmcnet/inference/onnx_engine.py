"""Descriptors by ONNX Runtime, from a folder that `fmcnet export` wrote; PyTorch is not imported.

Such a folder holds `model.json` (the model card, as beside the weights), a graph a modality, and `export.json`, which
says what they are and what their SHA-256 is.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import CheckpointError, FmcnetError
from fmcnet.optional import require
from fmcnet.types import FloatArray, Modality

MANIFEST = "export.json"
FORMAT = "fmcnet-onnx-1"
GRAPHS = {modality: f"model-{modality}.onnx" for modality in Modality}
INPUT, OUTPUT = "images", "embedding"
"""Names in the graphs: (batch, H, W, 3) uint8 to (batch, E) float32."""


@dataclass(frozen=True)
class Manifest:
    """What an exported model is.

    Attributes:
        digest: names the model; in fp32 it is the digest of the weights it was made from, whose embeddings it
            reproduces up to rounding, and another one in int8.
        source: the digest of those weights.
        precision: "fp32" or "int8". kept: layers that int8 leaves in float32.
        dim: E. height, width: of the input. opset: of ONNX.
        sha256: of each graph's file, by file name.
        versions: of what made it.
    """

    digest: str
    source: str
    precision: str
    dim: int
    height: int
    width: int
    opset: int
    sha256: dict[str, str]
    versions: dict[str, str]
    kept: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As written to `export.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """Read `export.json`.

    Raises:
        CheckpointError: when it is missing, damaged, or not fmcnet's.
    """
    path = Path(folder) / MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise CheckpointError(f"{path} is not an exported model of this version (format {FORMAT})")
        return Manifest(**{**tree, "kept": tuple(tree.get("kept", ()))})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}; export the model again") from error


class OnnxEngine:
    """An `Engine` around the graphs of an exported model; a graph is loaded when first needed.

    Args:
        folder: holds them.
        device: "auto" and "cpu": the CPU; "cuda" or "cuda:N" where this ONNX Runtime can.
        threads: that compute; None: $OMP_NUM_THREADS, else ONNX Runtime's choice.

    Raises:
        CheckpointError: when a file is missing, or is not the one that was exported.
        FmcnetError: for a device that cannot be used here.
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
            if not path.is_file() or sha256_of(path) != self.manifest.sha256.get(path.name):
                raise CheckpointError(f"{path} is missing or damaged: export the model again")

    def __call__(self, images: NDArray[Any], modality: Modality) -> FloatArray:
        """(N, H, W, 3) uint8 to (N, E) float32."""
        out: FloatArray = self._session(modality).run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
        return out

    def _session(self, modality: Modality) -> Any:
        if modality not in self._sessions:
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            path = self.folder / GRAPHS[modality]
            try:
                session = self._runtime.InferenceSession(str(path), options, providers=self._providers)
            except Exception as error:  # its errors have no public base class
                raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
            self._sessions[modality] = session
        return self._sessions[modality]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _providers(runtime: Any, device: str) -> tuple[str, list[Any]]:
    kind, _, number = device.partition(":")
    if kind in ("auto", "cpu"):
        return "cpu", ["CPUExecutionProvider"]
    if kind == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        cuda = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
        return device, [cuda, "CPUExecutionProvider"]
    raise FmcnetError(
        f"device '{device}' cannot be used by this ONNX Runtime: say cpu, or install onnxruntime-gpu for cuda"
    )
