"""Figures 4 and 5: shared, specific and generated features of test images, on 2-D maps by t-SNE and as statistics.

The paper shows maps. Each statistic has a value that follows from the claim: shared features of the modalities
overlap, specific ones lie apart from them, generated ones coincide with the real ones. The statistics are ours.
Features have unit length, as for the cosine similarity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from fmcnet.data.table import Table
from fmcnet.errors import DataError, require
from fmcnet.experiments.plots import Plots, fusion_plot, new_axes, write_png
from fmcnet.experiments.results import Runs, spread_of
from fmcnet.experiments.rows import Study
from fmcnet.experiments.runs import StudyRun
from fmcnet.files import write_json
from fmcnet.inference.encoder import Encoder, load
from fmcnet.parsing import read_json
from fmcnet.training.loggers import read_log
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

COLOURS = {"shared": "#0969da", "specific": "#1a7f37", "generated": "#d4730b"}
STATISTICS_FILE = "numbers.json"
MAP_IDENTITIES, MAP_IMAGES = 16, 6
"""A map shows at most this many identities, and images of each in each modality."""

Clouds = dict[tuple[str, Modality], NDArray[Any]]
"""Features, or their positions on a map, by kind and by the modality that they are of."""


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
    """Compute the features of a table's images, or of those at `rows`, `batch` in a forward pass.

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


def feature_map(encoder: Encoder, table: Table, path: Path) -> Path | None:
    """Draw one t-SNE map of test images in two panels: without and with the generated features.

    A generated infrared feature is G_{V-I} of a visible image; it should coincide with the specific infrared ones.
    Returns None where the model has no specific branch, or no identity is seen in both modalities.
    """
    infrared = table.modality == Modality.INFRARED.code
    common_pids = np.intersect1d(table.pid[infrared], table.pid[~infrared])[:MAP_IDENTITIES]
    if not len(common_pids) or not encoder.model.decomposition.has_specific:
        return None
    rows = [_first_images(np.where(mask, table.pid, -1), common_pids) for mask in (infrared, ~infrared)]
    points = _tsne(_clouds(collect(encoder, table, np.concatenate(rows), progress=False)))
    real = {key: positions for key, positions in points.items() if key[0] != "generated"}
    figure, axes = new_axes(1, 2, (10.4, 5.0), sharex=True, sharey=True)
    _scatter(axes[0][0], "shared and specific (the paper's Fig. 4)", real)
    _scatter(axes[0][1], "with generated (the paper's Fig. 5)", points)
    figure.legend(*axes[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return write_png(figure, path)


def draw_study(study: Study, runs: Runs, out: Path, progress: bool | None) -> tuple[dict[str, Any], Plots]:
    """Draw Figure 4 or 5 of a study's rows: maps of each row's first run; for Figure 5 also w1 and w2 over training.

    Returns the statistics by row's title, each with mean and deviation over seeds, and the plots.
    """
    titles = {"md-none": "without L_MD", "md-all": "with L_MD"}
    finished = {
        titles.get(row.key, row.title): [*runs[row.key].values()] for row in study.rows if runs[row.key]
    }
    if not finished:
        return {}, []
    features = {title: _features(done[0], progress) for title, done in finished.items()}
    statistics = {}
    for title, (first, *others) in finished.items():
        measured = [_statistics(first, features[title], progress)]
        measured += [_statistics(run, None, progress) for run in others]
        statistics[title] = {name: _spread([values[name] for values in measured]) for name in measured[0]}
    shown_seeds = " and ".join(map(str, sorted({done[0].seed for done in finished.values()})))
    caption, path = f"t-SNE, test identities, seed {shown_seeds}", out / f"{study.name}.png"
    if study.name != "figure5":
        shown = {title: _clouds(replace(one, generated=None)) for title, one in features.items()}
        return statistics, [(caption, _draw(shown, path))]
    clouds, panels = _clouds(list(features.values())[-1]), {}
    for target in (Modality.INFRARED, Modality.VISIBLE):
        kinds = ("shared", target.other), ("specific", target), ("generated", target)
        panels[f"{target}: generated from {target.other} images"] = {key: clouds[key] for key in kinds}
    plots = [(caption, _draw(panels, path))]
    logs = {
        f"{title}, seed {run.seed}": read_log(run.folder) for title, done in finished.items() for run in done
    }
    if fusion_path := fusion_plot(logs, out / "fusion.png"):
        plots.append(("w1 and w2 of (15) over training", fusion_path))
    return statistics, plots


def _features(run: StudyRun, progress: bool | None) -> Features:
    return collect(load(run.folder), run.table().select(split="test"), progress=progress)


def _statistics(run: StudyRun, features: Features | None, progress: bool | None) -> dict[str, float | None]:
    """Statistics of a run's features and w1, w2; computed once and stored in the run folder."""
    path = run.folder / STATISTICS_FILE
    try:
        stored: dict[str, Any] = read_json(path)
        if stored.pop("digest") == run.digest:
            return stored
    except (OSError, ValueError, KeyError):
        pass
    fusion = load(run.folder, "cpu").model.fusion
    w1, w2 = [float(weight.detach()) for weight in fusion.weights()] if fusion else [None, None]
    statistics = {**measure(features or _features(run, progress)), "w1": w1, "w2": w2}
    write_json(path, {"digest": run.digest, **statistics})
    return statistics


def _spread(values: list[float | None]) -> dict[str, float | None] | None:
    """Mean and deviation of the values that are not None; None without any."""
    spread = spread_of([value for value in values if value is not None])
    return spread and {"mean": spread["mean"], "std": spread["std"]}


def _draw(panels: dict[str, Clouds], path: Path) -> Path:
    """A map of its own in each panel."""
    figure, axes = new_axes(1, len(panels), (5.2 * len(panels), 5.0))
    for ax, (title, clouds) in zip(axes[0], panels.items(), strict=True):
        _scatter(ax, title, _tsne(clouds))
        ax.legend(fontsize=7)
    return write_png(figure, path)


def _clouds(features: Features) -> Clouds:
    """Unit-length features of the images on a map."""
    clouds: Clouds = {}
    rows = [_first_images(pid, np.unique(pid)[:MAP_IDENTITIES]) for pid in features.pid]
    kinds = {"shared": features.shared, "specific": features.specific, "generated": features.generated}
    for kind, pair in kinds.items():
        if pair is None:
            continue
        for image in Modality:
            feature_of = image.other if kind == "generated" else image
            clouds[kind, feature_of] = unit(pair[image.code][rows[image.code]])
    return clouds


def _first_images(pid: IntArray, identities: IntArray) -> IntArray:
    """Rows of the first `MAP_IMAGES` images of each identity."""
    return np.concatenate([np.flatnonzero(pid == identity)[:MAP_IMAGES] for identity in identities])


def _tsne(clouds: Clouds) -> Clouds:
    """Positions (N, 2) of all features in one map."""
    stacked = np.concatenate(list(clouds.values()))
    manifold = require("sklearn.manifold", "plot")
    tsne = manifold.TSNE(perplexity=min(30, len(stacked) // 4), init="pca", random_state=0, max_iter=600)
    ends = np.cumsum([len(cloud) for cloud in clouds.values()])[:-1]
    return dict(zip(clouds, np.split(tsne.fit_transform(stacked), ends), strict=True))


def _scatter(ax: Any, title: str, points: Clouds) -> None:
    for (kind, modality), positions in points.items():
        infrared = modality is Modality.INFRARED
        ax.scatter(
            *positions.T,
            s=16,
            marker="^" if infrared else "o",
            facecolors="none" if infrared else COLOURS[kind],
            edgecolors=COLOURS[kind],
            linewidths=0.8,
            label=f"{kind} {modality}",
        )
    ax.set(title=title, xticks=[], yticks=[])
