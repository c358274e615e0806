"""The network as ONNX, one graph a modality: uint8 images in, descriptors out, any batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fmcnet.errors import CheckpointError
from fmcnet.inference.manifest import INPUT, OUTPUT
from fmcnet.inference.projection import Projection
from fmcnet.models.fmcnet import FMCNet
from fmcnet.optional import require
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
        found = self.model.embed(images.permute(0, 3, 1, 2), self.modality)
        if not self.projected:
            return found
        return (nn.functional.normalize(found, dim=1) - self.mean) @ self.matrix


def write_graph(
    model: FMCNet,
    modality: Modality,
    height: int,
    width: int,
    path: Path,
    projection: Projection | None = None,
) -> int:
    """Write one modality's graph and check it.

    Args:
        model: in eval mode, on the CPU. height, width: of the input. path: the .onnx file.
        projection: of the descriptors to fewer values, if there is one.

    Returns:
        The version of ONNX's operators.

    Raises:
        MissingDependencyError: without onnx or onnxscript.
        CheckpointError: when the graph does not take every batch.
    """
    onnx = require("onnx", "export")
    require("onnxscript", "export")
    example = torch.zeros((2, height, width, 3), dtype=torch.uint8)
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
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    written = onnx.load(str(path))
    free = [
        bool(one.type.tensor_type.shape.dim[0].dim_param)
        for one in (*written.graph.input, *written.graph.output)
    ]
    if not all(free):  # the exporter says nothing when something in the model fixes the batch
        raise CheckpointError(
            f"this model exports for batches of {len(example)} only: please report it with model.json"
        )
    return max(int(entry.version) for entry in written.opset_import if entry.domain == "")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of exporters and quantisers on how they go about it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
