"""2-D maps of features by t-SNE, as the paper's Figures 4 and 5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import Table
from fmcnet.errors import require
from fmcnet.experiments.features import Features, collect, unit
from fmcnet.experiments.figures import new_axes, write_png
from fmcnet.inference.encoder import Encoder
from fmcnet.types import IntArray, Modality

COLOURS = {"shared": "#0969da", "specific": "#1a7f37", "generated": "#d4730b"}
IDENTITIES, IMAGES = 16, 6
"""A map shows at most this many identities, and images of each in each modality."""

Clouds = dict[tuple[str, Modality], NDArray[Any]]
"""Features, or their positions on a map, by kind and by the modality that they are of."""


def feature_map(encoder: Encoder, table: Table, path: Path) -> Path | None:
    """Draw one t-SNE map of test images in two panels: without and with the generated features.

    A generated infrared feature is G_{V-I} of a visible image; it should coincide with the specific infrared ones.
    Returns None where the model has no specific branch, or no identity is seen in both modalities.
    """
    infrared = table.modality == Modality.INFRARED.code
    common_pids = np.intersect1d(table.pid[infrared], table.pid[~infrared])[:IDENTITIES]
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


def figure4(features: dict[str, Features], path: Path) -> Path:
    """Draw a map of shared and specific features for each model, by title (the paper's Fig. 4)."""
    return _draw({title: _clouds(replace(one, generated=None)) for title, one in features.items()}, path)


def figure5(features: Features, path: Path) -> Path:
    """Draw a map of real and generated specific features for each direction (the paper's Fig. 5)."""
    clouds = _clouds(features)
    panels = {}
    for target in (Modality.INFRARED, Modality.VISIBLE):
        shown = ("shared", target.other), ("specific", target), ("generated", target)
        panels[f"{target}: generated from {target.other} images"] = {key: clouds[key] for key in shown}
    return _draw(panels, path)


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
    rows = [_first_images(pid, np.unique(pid)[:IDENTITIES]) for pid in features.pid]
    kinds = {"shared": features.shared, "specific": features.specific, "generated": features.generated}
    for kind, pair in kinds.items():
        if pair is None:
            continue
        for image in Modality:
            feature_of = image.other if kind == "generated" else image
            clouds[kind, feature_of] = unit(pair[image.code][rows[image.code]])
    return clouds


def _first_images(pid: IntArray, identities: IntArray) -> IntArray:
    """Rows of the first `IMAGES` images of each identity."""
    return np.concatenate([np.flatnonzero(pid == identity)[:IMAGES] for identity in identities])


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
