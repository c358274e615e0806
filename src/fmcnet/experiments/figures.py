"""Figures: training curves, ranked lists, 2-D maps of features, CMC curves. PNG files, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.data.images import load_image
from fmcnet.data.table import Table
from fmcnet.evaluation.evaluate_model import EvaluatedRun, roles
from fmcnet.evaluation.protocols import Protocol
from fmcnet.evaluation.ranked_lists import ranked_lists as nearest
from fmcnet.evaluation.verification import verification
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.image_input import read_pixels
from fmcnet.optional import require
from fmcnet.training.loggers import read_log
from fmcnet.types import Modality

RIGHT, WRONG, INK = "#1a7f37", "#cf222e", "#24292f"
COLOURS = {"shared": "#0969da", "specific": "#1a7f37", "generated": "#d4730b"}


def new_axes(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of `size` inches and its (rows, columns) axes, drawn without a screen.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    matplotlib = require("matplotlib", "plot")
    matplotlib.use("Agg")
    pyplot = require("matplotlib.pyplot", "plot")
    made: tuple[Any, Any] = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **options
    )
    return made


def write_png(figure: Any, path: Path) -> Path:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    require("matplotlib.pyplot", "plot").close(figure)
    return path


def training_curves(runs: dict[str, Path], path: Path) -> Path:
    """Loss terms of each run and the mAP on validation identities, where measured, against the step.

    Args:
        runs: run folder by title. path: the PNG to write.
    """
    figure, axes = new_axes(1, len(runs), (5.6 * len(runs), 4.4))
    for ax, (title, run) in zip(axes[0], runs.items(), strict=True):
        records = read_log(run)
        steps = [r for r in records if "step" in r]
        every = dict.fromkeys(name for record in steps for name in record)  # some terms begin later
        names = [name for name in every if name not in ("step", "epoch", "rate", "loss", "w1", "w2")]
        for number, name in enumerate(names):
            having = [r for r in steps if name in r]
            values = np.array([r[name] for r in having], dtype=float)
            at, smooth = _smooth(np.array([r["step"] for r in having]), values)
            style = "-" if number < 10 else "--"  # ten colours, then the same ones dashed
            ax.plot(at, smooth, style, label=name, color=f"C{number}", linewidth=1.4)
        ax.set(title=title, xlabel="step", ylabel="loss term (weighted, moving mean)")
        ax.grid(alpha=0.25)
        validated = [r for r in records if "validated_step" in r]
        handles, labels = ax.get_legend_handles_labels()
        if validated:
            twin = ax.twinx()
            (line,) = twin.plot(
                [r["validated_step"] for r in validated],
                [100 * r["mAP"] for r in validated],
                "o--",
                color=INK,
                markersize=4,
            )
            twin.set(ylabel="mAP on validation identities, %", ylim=(0, None))
            handles, labels = [*handles, line], [*labels, "validation mAP (right axis)"]
        ax.legend(handles, labels, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return write_png(figure, path)


def _smooth(at: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    window = max(1, len(values) // 40)
    if window == 1:
        return at, values
    return at[window - 1 :], np.convolve(values, np.ones(window) / window, mode="valid")


def cmc_curves(judged: dict[str, EvaluatedRun], path: Path) -> Path:
    """CMC of each run's first direction, mean over trials, with chance at rank 1."""
    figure, axes = new_axes(1, 1, (5.4, 4.4))
    ax = axes[0][0]
    lines = []
    for title, one in judged.items():
        result = one.evaluations[0].result
        lines.append((" + ".join([title, *result.extras]), result))
        if result.plain is not None:  # never the extra without the plain figure
            lines.append((f"{title}, plain", result.plain))
    for number, (title, result) in enumerate(lines):
        length = min(50, *(len(trial.cmc) for trial in result.trials))
        curve = np.mean([trial.cmc[:length] for trial in result.trials], axis=0)
        label = f"{fill(title, 60)}: R1 {100 * curve[0]:.1f} %, mAP {100 * result.mean['mAP']:.1f} %"
        ax.plot(np.arange(1, length + 1), 100 * curve, color=f"C{number}", label=label)
    chance = next(iter(judged.values())).evaluations[0].chance
    ax.axhline(100 * chance, color=INK, linestyle=":", label=f"chance at rank 1: {100 * chance:.2f} %")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="rank", ylabel="probes with a match up to this rank, %", ylim=(0, 100))
    ax.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=7)
    return write_png(figure, path)


def ranked_lists(judged: EvaluatedRun, path: Path, queries: int = 6, top: int = 10, seed: int = 0) -> Path:
    """Queries and their ten best answers in the first trial; right ones framed green, wrong ones red.

    The queries are drawn at random from those that have a match, one an identity: not the prettiest.
    """
    one, table = judged.evaluations[0], judged.table
    picked = _pick_queries(judged, one.protocol, queries, seed)
    lists = nearest(
        judged.embeddings,
        one.protocol,
        queries=picked,
        k=top,
        distance=one.result.distance,
        query_mask=roles(table, "query"),
        gallery_mask=roles(table, "gallery"),
    )
    figure, axes = new_axes(len(lists), top + 1, (0.82 * (top + 1), 1.62 * len(lists) + 0.3))
    for line, (row, answers) in enumerate(zip(picked, lists, strict=True)):
        _show(axes[line][0], table, row, f"pid {table.pid[row]} cam {table.camid[row]}", INK)
        for place in range(top):
            ax = axes[line][place + 1]
            if place >= len(answers.gallery):
                ax.axis("off")
                continue
            colour = RIGHT if answers.correct[place] else WRONG
            _show(ax, table, int(answers.gallery[place]), f"{answers.similarity[place]:.2f}", colour)
    axes[0][0].set_title("query", fontsize=9)
    for place in range(top):
        axes[0][place + 1].set_title(str(place + 1), fontsize=9)
    return write_png(figure, path)


def _pick_queries(judged: EvaluatedRun, protocol: Protocol, count: int, seed: int) -> list[int]:
    query, gallery = protocol.trials(
        judged.embeddings,
        query_mask=roles(judged.table, "query"),
        gallery_mask=roles(judged.table, "gallery"),
    )[0]
    e = judged.embeddings
    order = np.random.default_rng(seed).permutation(query)
    picked: list[int] = []
    for row in order.tolist():
        if e.pid[row] in e.pid[picked] or len(picked) == count:
            continue
        at = slice(row, row + 1)
        skipped = protocol.skip.mask(e.pid[at], e.camid[at], e.pid[gallery], e.camid[gallery])[0]
        if ((e.pid[gallery] == e.pid[row]) & ~skipped).any():
            picked.append(row)
    return picked


def _show(ax: Any, table: Table, row: int, caption: str, colour: str) -> None:
    ax.imshow(load_image(table.full_path(row)), aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(caption, fontsize=6.5, labelpad=2)
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=2.5)


def feature_map(encoder: Encoder, table: Table, path: Path, identities: int = 16, per: int = 6) -> Path:
    """2-D maps (t-SNE) as the paper's Figures 4 and 5.

    Left: shared and specific features of both modalities (Fig. 4). Right: specific features and those
    generated for the same modality (Fig. 5). Features are brought to unit length first, as the cosine sees them.

    Args:
        encoder: a model with a specific branch. table: test images.
        identities: how many identities, at most. per: images of each in each modality.
    """
    features = collect_features(encoder, table, identities, per)
    manifold = require("sklearn.manifold", "plot")
    names = list(features)
    stacked = np.concatenate([features[name] for name in names])
    stacked = stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)
    places = manifold.TSNE(
        perplexity=min(30, len(stacked) // 4), init="pca", random_state=0, max_iter=600
    ).fit_transform(stacked)
    ends = np.cumsum([len(features[name]) for name in names])
    at = dict(zip(names, np.split(places, ends[:-1]), strict=True))
    figure, axes = new_axes(1, 2, (10.4, 5.0), sharex=True, sharey=True)
    panels = {
        "shared and specific (the paper's Fig. 4)": ("shared", "specific"),
        "with generated (the paper's Fig. 5)": ("shared", "specific", "generated"),
    }
    for ax, (title, kinds) in zip(axes[0], panels.items(), strict=True):
        for kind in kinds:
            for modality, marker in ((Modality.VISIBLE, "o"), (Modality.INFRARED, "^")):
                name = f"{kind} {modality}"
                if name in at:
                    ax.scatter(
                        *at[name].T,
                        s=16,
                        marker=marker,
                        facecolors=COLOURS[kind] if marker == "o" else "none",
                        edgecolors=COLOURS[kind],
                        linewidths=0.8,
                        label=name,
                    )
        ax.set(title=title, xticks=[], yticks=[])
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return write_png(figure, path)


@torch.inference_mode()
def collect_features(
    encoder: Encoder, table: Table, identities: int, per: int
) -> dict[str, NDArray[np.float32]]:
    """Features by name ("shared visible", "generated infrared", ...), each (M, D).

    "generated infrared" is G_{V-I} of visible images: it should fall on "specific infrared".
    """
    both = sorted(
        set(table.select(modality=Modality.VISIBLE).pid.tolist())
        & set(table.select(modality=Modality.INFRARED).pid.tolist())
    )
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for pid in both[:identities]:
        images = []
        for modality in Modality:
            rows = np.flatnonzero((table.pid == pid) & (table.modality == modality.code))[:per]
            crops = np.stack(
                [read_pixels(table.full_path(int(row)), encoder.height, encoder.width) for row in rows]
            )
            images.append(torch.from_numpy(crops).permute(0, 3, 1, 2).to(encoder.device))
        output = encoder.model(*images)
        for modality in Modality:
            half = output.of(modality)
            named = {
                f"shared {modality}": half.shared,
                f"specific {modality}": half.specific,
                f"generated {modality.other}": half.generated,
            }
            for name, feature in named.items():
                if feature is not None:
                    parts.setdefault(name, []).append(feature.float().cpu().numpy())
    return {name: np.concatenate(several) for name, several in parts.items()}


def similarity_histogram(judged: EvaluatedRun, path: Path, bins: int = 80) -> Path:
    """Similarities of pairs of one identity and of two, across the modalities."""
    result = verification(
        judged.embeddings,
        judged.evaluations[0].protocol,
        bins=bins,
        distance=judged.evaluations[0].result.distance,
        query_mask=roles(judged.table, "query"),
        gallery_mask=roles(judged.table, "gallery"),
    )
    figure, axes = new_axes(1, 1, (5.2, 3.6))
    ax = axes[0][0]
    width = np.diff(result.edges)
    for name, counts, colour in (
        ("same identity", result.positive_histogram, RIGHT),
        ("different identities", result.negative_histogram, WRONG),
    ):
        ax.stairs(
            counts / max(1, counts.sum()) / width,
            result.edges,
            fill=True,
            alpha=0.45,
            color=colour,
            label=name,
        )
    marked = result.true_match_rates[0.01]
    if marked:
        rate, (found, threshold) = 0.01, marked
        ax.axvline(threshold, color=INK, linestyle=":", linewidth=1)
        ax.set_title(
            f"AUC {result.auc:.3f}; {100 * found:.1f} % of true pairs pass at {100 * rate:g} % false ones",
            fontsize=9,
        )
    ax.set(xlabel=f"similarity ({result.distance}), visible against infrared", ylabel="density")
    ax.legend(fontsize=8)
    return write_png(figure, path)
