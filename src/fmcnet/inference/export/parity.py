"""Compare the forms of a model (eager PyTorch, ONNX float32, ONNX int8): size, speed, embeddings and scores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmcnet.config import EvaluationConfig
from fmcnet.data.table import Table
from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.evaluate_model import protocols_for, role_masks
from fmcnet.inference.backends import Backend
from fmcnet.inference.encoder import embed_batches, keep
from fmcnet.inference.projection import l2_normalize
from fmcnet.markdown import markdown_page, markdown_table
from fmcnet.types import FloatArray, IntArray, Modality

SPEED_BATCHES = (1, 32)
"""Batch sizes whose speed is measured."""
EMBED_BATCH = 32
"""Images at once when the embeddings of forms are compared."""


class Form(NamedTuple):
    """One form of a model, to be compared."""

    name: str  # for people
    backend: Backend
    bytes: int  # of its files
    kept: tuple[str, ...] = ()  # layers that int8 leaves in float32


@dataclass(frozen=True)
class BackendReport:
    """One form of a model, compared with the eager one."""

    name: str  # for people
    bytes: int  # of its files
    largest_difference: float  # between numbers of unit-length embeddings
    smallest_cosine: float  # between embeddings
    scores: dict[str, dict[str, float]]  # by direction "rank1" and "mAP", in percent; empty without a table
    images_per_second: dict[str, float]  # by batch size, the forward pass alone, median of the rounds
    kept: tuple[str, ...] = ()  # layers that int8 leaves in float32

    def loss(self, other: BackendReport) -> float:
        """Points of mAP (percent) that this form loses against `other`, in the worst direction; 0 without scores."""
        lost = [other.scores[direction]["mAP"] - self.scores[direction]["mAP"] for direction in self.scores]
        return max(lost, default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def scores(features: FloatArray, table: Table, config: EvaluationConfig) -> dict[str, dict[str, float]]:
    """Rank-1 and mAP in percent, by direction, under the protocols of the table's benchmark."""
    embeddings = keep(features, table, None)
    both_directions = config.model_copy(update={"direction": "both"})
    scores_by_direction = {}
    for direction, protocol in protocols_for(table, both_directions).items():
        mean = evaluate(embeddings, protocol, distance=config.distance, **role_masks(table)).mean
        scores_by_direction[direction] = {"rank1": 100 * mean["rank1"], "mAP": 100 * mean["mAP"]}
    return scores_by_direction


def rates(
    backends: Sequence[Backend],
    images: NDArray[np.uint8],
    modality: Modality,
    *,
    batches: Sequence[int] = SPEED_BATCHES,
    rounds: int = 3,
    seconds: float = 0.3,
) -> list[dict[int, list[float]]]:
    """Images/s by backend and batch size, one figure a round of at least `seconds`.

    Backends take turns, so that a busy machine slows all alike. Images (N, H, W, 3) are repeated as needed.
    """
    figures: list[dict[int, list[float]]] = [{size: [] for size in batches} for _ in backends]
    for size in batches:
        batch = images[np.arange(size) % len(images)]
        for backend in backends:
            backend(batch, modality)  # warm
        for _ in range(rounds):
            for index, backend in enumerate(backends):
                count, start = 0, time.perf_counter()
                while (spent := time.perf_counter() - start) < seconds or not count:
                    backend(batch, modality)
                    count += size
                figures[index][size].append(count / spent)
    return figures


def compare(
    forms: Sequence[Form],
    images: NDArray[np.uint8],
    modality: NDArray[np.uint8],
    table: Table | None,
    config: EvaluationConfig,
    *,
    seconds: float = 0.3,
) -> list[BackendReport]:
    """Compare forms of one model with the first of them, on images (N, H, W, 3) and, if given, their labels."""
    speeds = rates([backend for _, backend, *_ in forms], images, Modality.VISIBLE, seconds=seconds)
    rows = np.arange(len(images))
    reports: list[BackendReport] = []
    first: FloatArray | None = None
    for (name, backend, size, kept), speed in zip(forms, speeds, strict=True):
        features = l2_normalize(embed_batches(backend, images, modality, rows, EMBED_BATCH, progress=False))
        first = features if first is None else first
        reports.append(
            BackendReport(
                name,
                size,
                float(np.abs(features - first).max()),
                float(np.einsum("ne,ne->n", features, first, dtype=np.float64).min().clip(-1, 1)),
                {} if table is None else scores(features, table, config),
                {str(batch): statistics.median(figures) for batch, figures in speed.items()},
                kept,
            )
        )
    return reports


def choose(modality: NDArray[np.uint8], count: int) -> IntArray:
    """Rows of at most `count` images, half of each modality, drawn at random but always the same."""
    generator = np.random.default_rng(0)
    parts = [generator.permutation(np.flatnonzero(modality == kind.code))[: count // 2] for kind in Modality]
    return np.sort(np.concatenate(parts))


def markdown(forms: Sequence[BackendReport], remarks: Sequence[str] = ()) -> str:
    """The forms as a table, with remarks below."""
    directions = list(forms[0].scores)
    heads = ["form", "MiB", "largest difference", "smallest cosine"]
    heads += [f"{label} {direction}" for direction in directions for label in ("Rank-1", "mAP")]
    heads += [f"images/s, batch {size}" for size in forms[0].images_per_second]
    rows, first = [], forms[0]
    for form in forms:
        cells = [form.name, f"{form.bytes / 2**20:.1f}"]
        cells += [f"{form.largest_difference:.1e}", f"{form.smallest_cosine:.6f}"]
        values = [
            (f"{score:.2f}", f"{score - first.scores[direction][key]:+.2f}")
            for direction in directions
            for key, score in form.scores[direction].items()
        ]
        values += [
            (f"{rate:.0f}", f"{rate / first.images_per_second[size]:.2f} x")
            for size, rate in form.images_per_second.items()
        ]
        cells += [value if form is first else f"{value} ({change})" for value, change in values]
        rows.append(cells)
    return markdown_page([markdown_table(heads, rows), "\n".join(f"- {remark}" for remark in remarks)])
