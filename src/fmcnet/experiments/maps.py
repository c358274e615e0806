"""Figures 4 and 5: 2-D maps of features by t-SNE, and their statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import Table
from fmcnet.errors import require
from fmcnet.experiments.features import Features, collect, measure, unit
from fmcnet.experiments.plots import Plots, fusion_plot, new_axes, write_png
from fmcnet.experiments.results import Runs, spread_of
from fmcnet.experiments.rows import Study
from fmcnet.experiments.runs import StudyRun
from fmcnet.files import write_json
from fmcnet.inference.encoder import Encoder, load
from fmcnet.parsing import read_json
from fmcnet.training.loggers import read_log
from fmcnet.types import IntArray, Modality

COLOURS = {"shared": "#0969da", "specific": "#1a7f37", "generated": "#d4730b"}
STATISTICS_FILE = "numbers.json"
MAP_IDENTITIES, MAP_IMAGES = 16, 6
"""A map shows at most this many identities, and images of each in each modality."""

Clouds = dict[tuple[str, Modality], NDArray[Any]]
"""Features, or their positions on a map, by kind and by the modality that they are of."""


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
