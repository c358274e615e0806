"""The files of an exported model: graphs and the manifest that says what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.inference.encoder import Encoder
from fmcnet.inference.export.graph import write_graph
from fmcnet.inference.export.int8 import quantize
from fmcnet.inference.onnx_engine import GRAPHS, MANIFEST, Manifest, OnnxEngine, int8_digest, sha256_of
from fmcnet.models.card import versions
from fmcnet.types import Modality


def float_graphs(encoder: Encoder, folder: Path) -> Path:
    """Write both float32 graphs and their manifest into a new folder."""
    folder.mkdir()
    opset = 0
    for modality in Modality:
        path = folder / GRAPHS[modality]
        opset = write_graph(encoder.model, modality, encoder.height, encoder.width, path, encoder.projection)
    sample = np.zeros((1, encoder.height, encoder.width, 3), dtype=np.uint8)
    dim = encoder.engine(sample, Modality.VISIBLE).shape[1]
    manifest = Manifest(
        encoder.digest,
        encoder.digest,
        "fp32",
        dim,
        encoder.height,
        encoder.width,
        opset,
        {},
        versions("onnx", "onnxscript", "onnxruntime"),
    )
    _write_manifest(folder, manifest)
    return folder


def int8_graphs(floats: Path, folder: Path, ranges: dict[Modality, NDArray[np.uint8]], scheme: str) -> Path:
    """Write int8 forms of the graphs in `floats`, by one of `int8.SCHEMES`, into a new folder."""
    folder.mkdir()
    kept: list[str] = []
    for modality in Modality:
        name = GRAPHS[modality]
        kept += [
            f"{modality} {one}" for one in quantize(floats / name, folder / name, ranges[modality], scheme)
        ]
    manifest = OnnxEngine(floats).manifest
    digest = int8_digest(manifest.source, _digests(folder))
    _write_manifest(folder, replace(manifest, digest=digest, precision="int8", kept=tuple(kept)))
    return folder


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(replace(manifest, sha256=_digests(folder)).to_json(), encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    return {GRAPHS[modality]: sha256_of(folder / GRAPHS[modality]) for modality in Modality}


def form(name: str, folder: Path) -> tuple[str, Any, int, tuple[str, ...]]:
    """A built form as `parity.compare` takes it, with as many threads as PyTorch."""
    engine = OnnxEngine(folder, threads=torch.get_num_threads())
    size = sum((folder / GRAPHS[modality]).stat().st_size for modality in Modality)
    return name, engine, size, engine.manifest.kept
