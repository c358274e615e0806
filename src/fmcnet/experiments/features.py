"""Shared, specific and generated features of test images, and statistics that quantify Figures 4 and 5.

The paper shows maps. Each statistic has a value that follows from the claim: shared features of the modalities
overlap, specific ones lie apart from them, generated ones coincide with the real ones. The statistics are ours.
Features have unit length, as for the cosine similarity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from fmcnet.data.table import Table
from fmcnet.errors import DataError, require
from fmcnet.inference.encoder import Encoder
from fmcnet.types import IntArray, Modality

Matrix = NDArray[np.float64]
Pair = tuple[Matrix, Matrix]
"""Features (N_m, D) of the visible and of the infrared images."""

Identities = tuple[IntArray, IntArray]
OF_SPECIFIC = (
    "probe_specific", "shared_specific", "specific_spread", "generated_rank", "generated_chance", "generated_first",
    "generated_distance", "between_centers",
)  # fmt: skip
"""Statistics that need specific features."""

PROBE_SPLITS = 5
"""Number of random halvings of the identities for the linear probe."""


@dataclass(frozen=True)
class Features:
    """Features of test images, by modality of the IMAGE (0 visible, 1 infrared)."""

    pid: Identities
    shared: Pair  # F_sh
    specific: Pair | None  # F_sp, None where the model has none
    generated: Pair | None  # F'_sp of the OTHER modality, of these images' F_sh; None likewise


@torch.inference_mode()
def collect(
    encoder: Encoder,
    table: Table,
    rows: IntArray | None = None,
    *,
    batch: int = 64,
    progress: bool | None = None,
) -> Features:
    """Compute the features of images of a table.

    Args:
        encoder: a trained model.
        table: test images of both modalities.
        rows: positions of the images; None: all.
        batch: images per forward pass.
        progress: show a bar; None: on a terminal only.

    Raises:
        DataError: when a modality has no image.
    """
    images = encoder.cached_images(table, progress)
    rows = np.arange(len(table)) if rows is None else rows
    halves: list[list[Matrix | None]] = []
    pids: list[IntArray] = []
    for modality in Modality:
        positions = rows[table.modality[rows] == modality.code]
        if not len(positions):
            raise DataError(f"{table.origin} has no {modality} test image")
        parts = []
        for start in range(0, len(positions), batch):
            pixels = torch.from_numpy(np.ascontiguousarray(images[positions[start : start + batch]]))
            parts.append(encoder.model.features(pixels.permute(0, 3, 1, 2).to(encoder.device), modality))
        halves.append(
            [
                None if batches[0] is None else torch.cat(batches).double().cpu().numpy()
                for batches in zip(*parts, strict=True)
            ]
        )
        pids.append(table.pid[positions])
    shared, specific, generated = (
        None if v is None or i is None else (v, i) for v, i in zip(*halves, strict=True)
    )
    assert shared is not None
    return Features((pids[0], pids[1]), shared, specific, generated)


def measure(features: Features) -> dict[str, float | None]:
    """Figures 4 and 5 as numbers by name; None if the model lacks the features.

    Args:
        features: of test images. Identities that lack a modality are left out.

    Returns:
        mixing: overlap of visible and infrared shared features of one identity. Share of features whose nearest
            other feature of that identity is of the other modality, relative to chance: 1 mixed, 0 apart.
        cross_ratio: mean distance across the modalities over that within, of one identity's shared features; 1 mixed.
        probe_shared, probe_specific: balanced accuracy of a linear probe that predicts the modality, on identities
            that it was not fitted on, 0..1; 0.5 is chance.
        shared_specific: mean distance from a specific centre to the nearest shared centre of its modality, 0..2.
        specific_spread: mean distance from a specific centre to the farthest one of its modality, 0..2; (4) wants
            it smaller than `shared_specific`.
        generated_rank: mean rank of the nearest real feature of the right identity among all real specific
            features of that modality, by distance to a generated one; 1 is best. `generated_chance`: at random.
        generated_first: share of generated features at rank 1, 0..1.
        generated_distance: mean distance from a generated feature to its identity's real centre in that modality;
            `between_centers`: mean distance between two identities' real centres, to compare.

    Raises:
        DataError: when fewer than four identities have both modalities.
    """
    common_pids = np.intersect1d(*features.pid)
    if len(common_pids) < 4:
        raise DataError(
            f"only {len(common_pids)} identities have both modalities: the probe needs at least 4"
        )
    keep_v, keep_i = (np.isin(pid, common_pids) for pid in features.pid)
    pid = features.pid[0][keep_v], features.pid[1][keep_i]
    shared, specific, generated = (
        (unit(pair[0][keep_v]), unit(pair[1][keep_i])) if pair else None
        for pair in (features.shared, features.specific, features.generated)
    )
    assert shared is not None
    statistics = {**_overlap(shared, pid), "probe_shared": probe(shared, pid), **dict.fromkeys(OF_SPECIFIC)}
    if specific:
        statistics |= _centre_distances(shared, specific, pid) | {"probe_specific": probe(specific, pid)}
    if specific and generated:
        statistics |= _generated_statistics(specific, generated, pid)
    return statistics


def unit(x: Matrix) -> Matrix:
    """Rows of unit length."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _centres(x: Matrix, pid: IntArray) -> Matrix:
    """Centres of identities in ascending order (P, D)."""
    return np.stack([x[pid == p].mean(axis=0) for p in np.unique(pid)])


def _centre_distances(shared: Pair, specific: Pair, pid: Identities) -> dict[str, float]:
    nearest, widest = [], []
    for sh, sp, pids in zip(shared, specific, pid, strict=True):
        c_sh, c_sp = _centres(sh, pids), _centres(sp, pids)
        nearest.append(cdist(c_sp, c_sh).min(axis=1))
        widest.append(cdist(c_sp, c_sp).max(axis=1))
    return {"shared_specific": float(np.mean(nearest)), "specific_spread": float(np.mean(widest))}


def _overlap(shared: Pair, pid: Identities) -> dict[str, float]:
    """`mixing` and `cross_ratio`, means over identities."""
    mixing, ratios = [], []
    for p in np.unique(pid[0]):
        v, i = (x[pids == p] for x, pids in zip(shared, pid, strict=True))
        features, modality = np.concatenate([v, i]), np.repeat([0, 1], [len(v), len(i)])
        distances = cdist(features, features)
        np.fill_diagonal(distances, np.inf)
        if len(v) + len(i) > 2:
            nearest_is_other = modality[distances.argmin(axis=1)] != modality
            chance = np.where(modality == 0, len(i), len(v)) / (len(features) - 1)
            mixing.append(nearest_is_other.mean() / chance.mean())
        same_modality = distances[modality[:, None] == modality[None]]
        finite = same_modality[np.isfinite(same_modality)]
        if len(finite) and finite.mean() > 0:
            ratios.append(distances[: len(v), len(v) :].mean() / finite.mean())
    means = (float(np.mean(x)) if x else float("nan") for x in (mixing, ratios))
    return dict(zip(("mixing", "cross_ratio"), means, strict=True))


def probe(kinds: Pair, pid: Identities, splits: int = PROBE_SPLITS) -> float:
    """Balanced accuracy, 0..1, of a logistic regression that separates visible and infrared features.

    It is fitted on half of the identities and tested on the other half; mean over `splits` random halvings. 0.5 is
    chance.
    """
    linear = require("sklearn.linear_model", "plot")
    x, pids = np.concatenate(kinds), np.concatenate(pid)
    y = np.repeat([0, 1], [len(kind) for kind in kinds])
    identities = np.unique(pids)
    accuracies = []
    for split in range(splits):
        train_identities = np.random.default_rng(split).permutation(identities)[: len(identities) // 2]
        train = np.isin(pids, train_identities)
        # One scale for all dimensions: a scale per dimension would inflate those that only unseen identities use.
        mean, std = x[train].mean(axis=0), x[train].std() + 1e-12
        model = linear.LogisticRegression(max_iter=500, class_weight="balanced")
        model.fit((x[train] - mean) / std, y[train])
        correct = model.predict((x[~train] - mean) / std) == y[~train]
        accuracies.append(np.mean([correct[y[~train] == kind].mean() for kind in (0, 1)]))
    return float(np.mean(accuracies))


def _generated_statistics(specific: Pair, generated: Pair, pid: Identities) -> dict[str, float]:
    """Both directions: features generated from one modality, against real ones of the other."""
    ranks, chances, centre_distances, between = [], [], [], []
    for source, target in ((0, 1), (1, 0)):
        fake, real = generated[source], specific[target]
        distances = cdist(fake, real)
        same_identity = pid[source][:, None] == pid[target][None]  # (N, M)
        nearest_match = np.where(same_identity, distances, np.inf).min(axis=1)
        ranks.append(1 + ((distances <= nearest_match[:, None]) & ~same_identity).sum(axis=1))
        matches = same_identity.sum(axis=1)
        chances.append((len(real) + 1) / (matches + 1))  # expected rank of the first of `matches` among all
        centres, identities = _centres(real, pid[target]), np.unique(pid[target])
        index = np.searchsorted(identities, pid[source])
        centre_distances.append(np.linalg.norm(fake - centres[index], axis=1))
        between.append(cdist(centres, centres)[~np.eye(len(centres), dtype=bool)])
    rank, chance = np.concatenate(ranks), np.concatenate(chances)
    return {
        "generated_rank": float(rank.mean()),
        "generated_chance": float(chance.mean()),
        "generated_first": float((rank == 1).mean()),
        "generated_distance": float(np.concatenate(centre_distances).mean()),
        "between_centers": float(np.concatenate(between).mean()),
    }
