"""A learned projection of descriptors to fewer values: a small file beside the weights, readable without PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import CheckpointError
from fmcnet.files import write_atomically
from fmcnet.parsing import parse_json
from fmcnet.types import FloatArray

PROJECTION_FORMAT = "fmcnet-projection-1"
Method = Literal["discriminant", "pca"]
METHODS: tuple[Method, ...] = ("discriminant", "pca")


def l2_normalize(features: FloatArray) -> FloatArray:
    """Rows (N, E) brought to unit length; a row of zeros stays."""
    length = np.sqrt(np.einsum("...e,...e->...", features, features))
    return cast(FloatArray, features / np.maximum(length, np.float32(1e-12))[..., None])


@dataclass(frozen=True)
class Projection:
    """A linear map of unit-length descriptors x to fewer values: (x - mean) @ matrix.

    Attributes:
        mean: (E,) float32.
        matrix: (E, D) float32, D <= E.
        method: how it was learnt, one of `METHODS`.
        source: digest of the model without it.
        facts: what it was learnt from, for information.
    """

    mean: FloatArray
    matrix: FloatArray
    method: Method = "discriminant"
    source: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """D, the number of values that are left."""
        return int(self.matrix.shape[1])

    def __call__(self, features: FloatArray) -> FloatArray:
        """Descriptors (N, E) of any length but zero to (N, D), not brought to unit length."""
        if features.shape[1] != len(self.mean):
            raise CheckpointError(
                f"the projection takes descriptors of {len(self.mean)} values and the model gives "
                f"{features.shape[1]}: it was made for another model; make it again with fmcnet project"
            )
        return cast(FloatArray, (l2_normalize(features) - self.mean) @ self.matrix)

    def save(self, path: Path) -> Path:
        """A safetensors file, whole or not at all; equal projections give equal files."""
        from safetensors.numpy import save

        description = {
            "format": PROJECTION_FORMAT,
            "method": self.method,
            "source": self.source,
            "facts": self.facts,
        }
        # One entry: safetensors writes several in no fixed order, and the model's digest is of the bytes.
        metadata = {"fmcnet": json.dumps(description, sort_keys=True)}
        content = save({"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}, metadata)
        return write_atomically(path, lambda temporary: temporary.write_bytes(content))

    @staticmethod
    def load(path: Path) -> Projection:
        """Read what `save` wrote; raises `CheckpointError` that names what is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as stored:
                description = parse_json((stored.metadata() or {}).get("fmcnet", "{}"))
                mean, matrix = stored.get_tensor("mean"), stored.get_tensor("matrix")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is missing or damaged: {error}; make it again with fmcnet project"
            ) from error
        fault = _find_fault(description, mean, matrix)
        if fault:
            raise CheckpointError(f"{path}: {fault}; make it again with fmcnet project")
        return Projection(
            mean, matrix, description["method"], description.get("source", ""), description.get("facts", {})
        )


def _find_fault(description: Any, mean: NDArray[Any], matrix: NDArray[Any]) -> str:
    if not isinstance(description, dict) or description.get("format") != PROJECTION_FORMAT:
        return f"it is not of format {PROJECTION_FORMAT}"
    if description.get("method") not in METHODS:
        return f"method is {description.get('method')!r}, not one of {', '.join(METHODS)}"
    for name, array in (("mean", mean), ("matrix", matrix)):
        if array.dtype != np.float32 or not np.isfinite(array).all():
            return f"{name} must hold finite float32 numbers"
    if mean.ndim != 1 or matrix.ndim != 2 or not 0 < matrix.shape[1] <= matrix.shape[0] == len(mean):
        return f"mean has shape {mean.shape} and matrix {matrix.shape}: (E,) and (E, D), D <= E, are needed"
    return ""
