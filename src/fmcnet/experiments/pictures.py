"""Pictures of a study: rows with their spread, paired differences, and the maps of Figures 4 and 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.experiments.features import Features, Matrix, unit
from fmcnet.experiments.figures import COLOURS, INK, RIGHT, WRONG, new_axes, write_png
from fmcnet.experiments.rows import DIRECTIONS
from fmcnet.optional import require
from fmcnet.types import IntArray

MAP_IDENTITIES, MAP_IMAGES = 16, 6


def rows_picture(study: dict[str, Any], path: Path) -> Path:
    """mAP and Rank-1 of each row: mean, spread and each seed; both directions."""
    rows = [row for row in study["rows"] if row["figures"]]
    figure, axes = new_axes(1, 2, (10.4, 0.42 * len(rows) + 1.6), sharey=True)
    for ax, (metric, title) in zip(axes[0], (("rank1", "Rank-1"), ("mAP", "mAP")), strict=True):
        for number, direction in enumerate(DIRECTIONS):
            for line, row in enumerate(rows):
                spread = row["figures"].get(direction, {}).get(metric)
                if not spread:
                    continue
                at = line + 0.16 * (2 * number - 1)
                label = DIRECTIONS[direction] if line == 0 else None
                ax.errorbar(
                    spread["mean"],
                    at,
                    xerr=spread["std"] or 0,
                    fmt="os"[number],
                    color=f"C{number}",
                    capsize=3,
                    label=label,
                )
                ax.scatter(spread["seeds"], [at] * len(spread["seeds"]), s=8, color=f"C{number}", alpha=0.5)
        ax.set(xlabel=f"{title}, %", yticks=range(len(rows)), yticklabels=[row["title"] for row in rows])
        ax.grid(alpha=0.25)
    axes[0][0].invert_yaxis()
    axes[0][1].legend(fontsize=8)
    return write_png(figure, path)


def pairs_picture(study: dict[str, Any], path: Path) -> Path:
    """Paired differences of mAP with their intervals; green: clear of zero up, red: down (of enough seeds)."""
    pairs = study["pairs"]
    figure, axes = new_axes(1, 1, (8.4, 0.36 * len(pairs) + 1.2))
    ax = axes[0][0]
    for line, pair in enumerate(pairs):
        one = pair["mAP"]
        sure = one["clear"] and one["enough"]
        colour = INK if not sure else RIGHT if one["low"] > 0 else WRONG
        ax.plot([one["low"], one["high"]], [line, line], color=colour)
        ax.plot(one["mean"], line, "o", color=colour)
    ax.axvline(0, color=INK, linestyle=":", linewidth=1)
    labels = [f"{pair['title']} ({pair['direction']})" for pair in pairs]
    ax.set(
        xlabel="mAP difference, points, 95 %",
        yticks=range(len(pairs)),
        yticklabels=labels,
    )
    ax.tick_params(axis="y", labelsize=8)
    ax.margins(y=0.02)
    ax.invert_yaxis()
    ax.grid(alpha=0.25)
    return write_png(figure, path)


def figure4(features: dict[str, Features], path: Path) -> Path:
    """t-SNE of shared and specific features of both modalities, a panel a model (the paper's Fig. 4)."""
    panels = {}
    for title, one in features.items():
        clouds = {"shared": one.shared, **({"specific": one.specific} if one.specific else {})}
        panels[title] = {
            (kind, m): _few(pair[m], one.pid[m]) for kind, pair in clouds.items() for m in (0, 1)
        }
    return _maps(panels, path)


def figure5(features: Features, path: Path) -> Path:
    """t-SNE of real and generated specific features, a panel a direction (the paper's Fig. 5)."""
    assert features.specific is not None
    assert features.generated is not None
    panels = {}
    for target, title in (
        (1, "infrared: generated from visible images"),
        (0, "visible: generated from infrared images"),
    ):
        source = 1 - target
        panels[title] = {
            ("shared", source): _few(features.shared[source], features.pid[source]),
            ("specific", target): _few(features.specific[target], features.pid[target]),
            ("generated", target): _few(features.generated[source], features.pid[source]),
        }
    return _maps(panels, path)


def fusion_picture(records: dict[str, list[dict[str, Any]]], path: Path) -> Path | None:
    """w1 and w2 over training, a line a run; None where the logs do not hold them."""
    logged = {name: [r for r in rows if "w1" in r and "w2" in r] for name, rows in records.items()}
    if not any(logged.values()):
        return None
    figure, axes = new_axes(1, 1, (5.6, 3.6))
    ax = axes[0][0]
    for number, (name, rows) in enumerate(logged.items()):
        for weight, style in (("w1", "-"), ("w2", "--")):
            ax.plot(
                [r["step"] for r in rows],
                [r[weight] for r in rows],
                style,
                color=f"C{number}",
                label=f"{weight}, {name}",
            )
    ax.set(xlabel="step", ylabel="weight in (15)")
    ax.legend(fontsize=7)
    ax.grid(alpha=0.25)
    return write_png(figure, path)


def _few(x: Matrix, pid: IntArray) -> Matrix:
    """At most `MAP_IMAGES` features of each of the first `MAP_IDENTITIES` identities, of unit length."""
    rows = [np.flatnonzero(pid == p)[:MAP_IMAGES] for p in np.unique(pid)[:MAP_IDENTITIES]]
    return unit(x[np.concatenate(rows)])


def _maps(panels: dict[str, dict[tuple[str, int], Matrix]], path: Path) -> Path:
    manifold = require("sklearn.manifold", "plot")
    figure, axes = new_axes(1, len(panels), (5.2 * len(panels), 5.0))
    for ax, (title, clouds) in zip(axes[0], panels.items(), strict=True):
        stacked = np.concatenate(list(clouds.values()))
        places: NDArray[Any] = manifold.TSNE(
            perplexity=min(30, len(stacked) // 4), init="pca", random_state=0, max_iter=600
        ).fit_transform(stacked)
        ends = np.cumsum([len(cloud) for cloud in clouds.values()])[:-1]
        for (kind, modality), at in zip(clouds, np.split(places, ends), strict=True):
            ax.scatter(
                *at.T,
                s=16,
                marker="o^"[modality],
                facecolors="none" if modality else COLOURS[kind],
                edgecolors=COLOURS[kind],
                linewidths=0.8,
                label=f"{kind} {('visible', 'infrared')[modality]}",
            )
        ax.set(title=title, xticks=[], yticks=[])
        ax.legend(fontsize=7)
    return write_png(figure, path)
