"""An ONNX graph in int8: static quantisation by ONNX Runtime, its ranges learnt from images.

Weights are rounded per output channel, and to 7 bits: on CPUs without VNNI instructions sums of 8-bit products
overflow in silence, so that a model that was right where it was made would be wrong elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.inference.export.graph import quiet
from fmcnet.inference.manifest import INPUT
from fmcnet.optional import require

SCHEMES = ("full", "mixed")
"""In int8: every layer; every layer but the first and the last ones."""

OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu")
BATCH = 16


def quantize(source: Path, target: Path, images: NDArray[np.uint8], scheme: str) -> tuple[str, ...]:
    """Write an int8 form of a float32 graph.

    Args:
        source: the float32 graph. target: the file to write.
        images: (N, H, W, 3) uint8 that ranges of activations are learnt from.
        scheme: one of `SCHEMES`.

    Returns:
        Names of the layers (convolutions and matrix products) that stay in float32.

    Raises:
        MissingDependencyError: without onnx or onnxruntime.
    """
    onnx, tools = require("onnx", "export"), require("onnxruntime.quantization", "export")
    nodes = list(onnx.load(str(source)).graph.node)
    layers = _ends(nodes) if scheme == "mixed" else []
    with quiet():  # its advice to pre-process fails on graphs of PyTorch's exporter
        tools.quantize_static(
            str(source),
            str(target),
            _reader(tools, images),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=[*_around(nodes), *layers],
        )
    onnx.checker.check_model(str(target), full_check=True)
    return tuple(layers)


def _around(nodes: list[Any]) -> list[str]:
    """What comes before the first convolution (normalising the image) and adds features behind the last pooling."""
    first = next(at for at, node in enumerate(nodes) if node.op_type == "Conv")
    last = max(at for at, node in enumerate(nodes) if node.op_type == "Conv")
    return [node.name for at, node in enumerate(nodes) if at < first or (at > last and node.op_type == "Add")]


def _ends(nodes: list[Any]) -> list[str]:
    """The first convolution, the last one before each pooling at the end, and all fully connected layers."""
    convolutions = [at for at, node in enumerate(nodes) if node.op_type == "Conv"]
    pools = [at for at, node in enumerate(nodes) if node.op_type in ("ReduceMean", "GlobalAveragePool")]
    last = {max(at for at in convolutions if at < pool) for pool in pools if pool > convolutions[0]}
    kept = sorted({convolutions[0], *last})
    return [nodes[at].name for at in kept] + [n.name for n in nodes if n.op_type in ("Gemm", "MatMul")]


def _reader(tools: Any, images: NDArray[np.uint8]) -> Any:
    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(images), BATCH)
            self.batches = iter([{INPUT: np.ascontiguousarray(images[at : at + BATCH])} for at in starts])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.batches, None)

    return Reader()
