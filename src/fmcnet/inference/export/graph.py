"""The network as ONNX, one graph a modality, in float32 and in int8."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmcnet.errors import CheckpointError, require
from fmcnet.inference.backends import INPUT, OUTPUT
from fmcnet.inference.projection import Projection
from fmcnet.models.fmcnet import FMCNet
from fmcnet.types import Modality


class ModalityGraph(nn.Module):
    """What is traced: the single-modality path, with layout, normalisation and projection inside."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, model: FMCNet, modality: Modality, projection: Projection | None = None) -> None:
        super().__init__()
        self.model, self.modality, self.projected = model, modality, projection is not None
        if projection is not None:
            self.register_buffer("mean", torch.from_numpy(projection.mean))
            self.register_buffer("matrix", torch.from_numpy(projection.matrix))

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, E) float32."""
        embeddings = self.model.embed(images.permute(0, 3, 1, 2), self.modality)
        if not self.projected:
            return embeddings
        return (nn.functional.normalize(embeddings, dim=1) - self.mean) @ self.matrix


def write_graph(
    model: FMCNet,
    modality: Modality,
    height: int,
    width: int,
    path: Path,
    projection: Projection | None = None,
) -> int:
    """Write one modality's graph of a model in evaluation mode, on the CPU, and check it.

    Returns:
        The version of ONNX's operators.

    Raises:
        MissingDependencyError: without onnx or onnxscript.
        CheckpointError: when the graph does not take every batch.
    """
    onnx = require("onnx", "export")
    require("onnxscript", "export")
    example = torch.randint(
        0, 256, (2, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    graph = ModalityGraph(model, modality, projection).eval()
    with quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**16)}},
        )
    assert program is not None
    proto = program.model_proto
    for owner in (proto.graph, *proto.graph.node, *proto.graph.value_info):
        owner.ClearField("metadata_props")  # paths of source files, which differ from machine to machine
    onnx.save(proto, str(path))
    onnx.checker.check_model(str(path), full_check=True)
    dynamic = [
        bool(value.type.tensor_type.shape.dim[0].dim_param)
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    if not all(dynamic):  # the exporter says nothing when something in the model fixes the batch
        raise CheckpointError(
            f"this model exports for batches of {len(example)} only: please report it with model.json"
        )
    return max(int(entry.version) for entry in proto.opset_import if entry.domain == "")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log messages and warnings of exporters and quantisers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


SCHEMES = ("full", "mixed")
"""What becomes int8: every layer; every layer but the first and the last ones."""

OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu")
RANGE_BATCH = 16
"""Images at once when ranges of activations are learnt."""


def quantize(source: Path, target: Path, images: NDArray[np.uint8], scheme: str) -> tuple[str, ...]:
    """Write an int8 form `target` of the float32 graph `source`, by one of `SCHEMES`.

    Ranges of activations are learnt from `images` (N, H, W, 3) uint8.

    Returns:
        Names of the layers (convolutions and matrix products) that stay in float32.
    """
    onnx, tools = require("onnx", "export"), require("onnxruntime.quantization", "export")
    nodes = list(onnx.load(str(source)).graph.node)
    layers = _end_layers(nodes) if scheme == "mixed" else []
    with quiet():  # its advice to pre-process fails on graphs of PyTorch's exporter
        tools.quantize_static(
            str(source),
            str(target),
            _calibration_reader(tools, images),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=[*_outer_nodes(nodes), *layers],
        )
    onnx.checker.check_model(str(target), full_check=True)
    return tuple(layers)


def _outer_nodes(nodes: list[Any]) -> list[str]:
    """Nodes before the first convolution (image normalisation), and additions of features after the last one."""
    first = next(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    last = max(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    return [
        node.name
        for index, node in enumerate(nodes)
        if index < first or (index > last and node.op_type == "Add")
    ]


def _end_layers(nodes: list[Any]) -> list[str]:
    """The first convolution, the last one before each pooling at the end, and all fully connected layers."""
    convolutions = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    pools = [index for index, node in enumerate(nodes) if node.op_type in ("ReduceMean", "GlobalAveragePool")]
    last = {max(index for index in convolutions if index < pool) for pool in pools if pool > convolutions[0]}
    kept = sorted({convolutions[0], *last})
    return [nodes[index].name for index in kept] + [n.name for n in nodes if n.op_type in ("Gemm", "MatMul")]


def _calibration_reader(tools: Any, images: NDArray[np.uint8]) -> Any:
    starts = range(0, len(images), RANGE_BATCH)

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        batches = iter(
            [{INPUT: np.ascontiguousarray(images[start : start + RANGE_BATCH])} for start in starts]
        )

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.batches, None)

    return Reader()
