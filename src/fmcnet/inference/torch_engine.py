"""Descriptors by PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.inference.projection import Projection
from fmcnet.models.fmcnet import FMCNet
from fmcnet.types import FloatArray, Modality


class TorchEngine:
    """An `Engine` around the network as it was trained.

    Args:
        model: in eval mode, on `device`.
        device: where to compute.
        projection: of its descriptors to fewer values, if there is one.
    """

    name = "torch"

    def __init__(self, model: FMCNet, device: torch.device, projection: Projection | None = None) -> None:
        self.model, self.device, self.projection = model, device, projection

    @torch.inference_mode()
    def __call__(self, images: NDArray[Any], modality: Modality) -> FloatArray:
        """(N, H, W, 3) uint8 to (N, E) float32."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(self.device)
        out: FloatArray = self.model.embed(batch, modality).float().cpu().numpy()
        return out if self.projection is None else self.projection(out)
