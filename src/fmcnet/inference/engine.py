"""What computes descriptors: one small face, for PyTorch and for ONNX Runtime."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fmcnet.types import FloatArray, Modality


class Engine(Protocol):
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


def unit(features: FloatArray) -> FloatArray:
    """Rows (N, E) brought to unit length; a row of zeros stays."""
    length = np.sqrt(np.einsum("...e,...e->...", features, features))
    return cast(FloatArray, features / np.maximum(length, np.float32(1e-12))[..., None])
