"""Similarities between embeddings, block by block, on CPU or GPU, in one defined arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcnet.distributed import check_device
from fmcnet.errors import DataError, ProtocolError
from fmcnet.types import Embeddings, IntArray

DOUBLE_BELOW = 2**37
"""With "auto", products of up to this many multiplications use float64, larger ones float32."""


@dataclass(frozen=True)
class Similarity:
    """How similar two embeddings are: larger is more alike.

    The cosine of L2-normalised embeddings, or minus half the squared Euclidean distance, up to a constant per query,
    which ranks alike.
    """

    dtype: torch.dtype  # torch.float32 or torch.float64
    device: torch.device  # where products are made
    # (D,) float64 subtracted before a Euclidean product: distances stay, cancellation shrinks; None: cosine
    centre: NDArray[np.float64] | None
    tie: float  # similarities that differ by less are equal
    radius: float = 1.0  # or the largest distance of an embedding from the centre

    @property
    def precision(self) -> str:
        """The arithmetic's name, for reports."""
        return "float64" if self.dtype == torch.float64 else "float32"

    @staticmethod
    def prepare(
        embeddings: Embeddings,
        query: IntArray,
        gallery: IntArray,
        *,
        distance: str,
        device: str | torch.device = "cpu",
        precision: str = "auto",
    ) -> Similarity:
        """The similarity of query rows with gallery rows; `distance`, `device` and `precision` are of `evaluate`.

        Raises:
            ProtocolError: on an unknown option.
            FmcnetError: for a device that this machine does not have.
            DataError: when squared Euclidean distances overflow or lose digits.
        """
        if distance not in ("cosine", "euclidean"):
            raise ProtocolError(f"unknown distance '{distance}': use cosine or euclidean")
        if precision not in ("auto", "float32", "float64"):
            raise ProtocolError(f"unknown precision '{precision}': use auto, float32 or float64")
        torch_device = check_device(device)
        products = len(query) * len(gallery) * embeddings.features.shape[1]
        double = precision == "float64" or (precision == "auto" and products <= DOUBLE_BELOW)
        dtype = torch.float64 if double and torch_device.type != "mps" else torch.float32
        # By how many units products of equal embeddings differ with the product's shape, which orders their sums. In
        # float64 no more than the bound of any order: embeddings of float32 do not differ by as little. In float32
        # that bound would hide differences; 4 hold for most products (AVX2).
        units = float(embeddings.features.shape[1]) if dtype == torch.float64 else 4.0
        rounding = float(torch.finfo(dtype).eps) * units
        if distance == "cosine":
            return Similarity(dtype, torch_device, None, rounding)
        centre, largest = _centre_and_largest(embeddings, np.union1d(query, gallery), dtype)
        if largest and not torch.finfo(dtype).tiny ** 0.8 < largest < torch.finfo(dtype).max / 4:
            raise DataError(
                f"the embeddings differ by up to {largest**0.5:.3g}, whose square "
                f"{str(dtype).removeprefix('torch.')} does not hold: scale all by one factor"
            )
        return Similarity(dtype, torch_device, centre, rounding * 1.5 * largest, largest**0.5)

    def load(self, embeddings: Embeddings, rows: IntArray) -> Tensor:
        """(n, D): the embeddings of `rows` as they enter the product.

        Raises:
            DataError: when the distance is cosine and an embedding is all zeros, or of a length whose square
                overflows or loses digits (names the row).
        """
        selected = np.take(embeddings.features, rows, axis=0)
        block = torch.from_numpy(selected).to(self.device, self.dtype)
        if self.centre is not None:
            return block - torch.from_numpy(self.centre).to(self.device, self.dtype)
        length = torch.linalg.vector_norm(block, dim=1, keepdim=True)
        fits = (length > torch.finfo(self.dtype).tiny ** 0.4) & (length < torch.inf)
        if not bool(fits.all()):
            row = rows[int(fits[:, 0].to(torch.uint8).argmin())]
            label = f" ({embeddings.name[row]})" if embeddings.name[row] else ""
            fault = f"has a length that {self.precision} does not hold: scale all embeddings by one factor"
            if not embeddings.features[row].any():
                fault = (
                    "is all zeros, which has no cosine similarity: check the model, drop the row, or use the "
                    "Euclidean distance"
                )
            raise DataError(f"embedding {row}{label}, pid {int(embeddings.pid[row])}, {fault}")
        return block.div_(length)

    def block(self, query: Tensor, gallery: Tensor) -> Tensor:
        """(Q, G) similarities of loaded embeddings; they compare only within one query."""
        product = query @ gallery.T
        return product if self.centre is None else product.sub_(_half_squared_norms(gallery))

    def between(self, query: Tensor, gallery: Tensor) -> Tensor:
        """(Q, G) similarities that also compare between queries: cosine, or minus half the squared distance."""
        values = self.block(query, gallery)
        return values if self.centre is None else values.sub_(_half_squared_norms(query)[:, None])

    def readable(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of `between` as reported: cosine in -1..1, or minus the Euclidean distance."""
        return values if self.centre is None else -np.sqrt(np.maximum(-2 * values, 0))


def _half_squared_norms(loaded: Tensor) -> Tensor:
    return (loaded * loaded).sum(1).div_(2)


def _centre_and_largest(
    embeddings: Embeddings, rows: IntArray, dtype: torch.dtype
) -> tuple[NDArray[np.float64], float]:
    """Mean of the embeddings, and the largest squared distance from it as products of `dtype` see it."""
    parts = [rows[s : s + 4096] for s in range(0, len(rows), 4096)]
    total = np.zeros(embeddings.features.shape[1])
    for part in parts:
        total += np.take(embeddings.features, part, axis=0).sum(axis=0, dtype=np.float64)
    centre = total / max(len(rows), 1)
    largest = 0.0
    for part in parts:
        features = torch.from_numpy(np.take(embeddings.features, part, axis=0)).to(dtype)
        offset = (features - torch.from_numpy(centre).to(dtype)).double()
        largest = max(largest, float((offset * offset).sum(1).max()))
    return centre, largest
