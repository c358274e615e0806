"""Plots: training curves, CMC curves, ranked lists, similarities, a study's rows and pairs. PNG, by matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from fmcnet.data.images import load_image
from fmcnet.data.table import Table
from fmcnet.errors import require
from fmcnet.evaluation.evaluate_model import EvaluatedRun, role_masks
from fmcnet.evaluation.protocols import Protocol
from fmcnet.evaluation.ranking import ranked_lists as nearest
from fmcnet.evaluation.verification import Verification
from fmcnet.experiments.rows import DIRECTION_NAMES
from fmcnet.files import make_private
from fmcnet.training import health
from fmcnet.training.loggers import read_log
from fmcnet.training.train_step import NO_TERMS

RIGHT, WRONG, INK = "#1a7f37", "#cf222e", "#24292f"
Plots = list[tuple[str, Path]]
"""Title and file of each."""


def can_draw() -> bool:
    """Whether the packages of the extra `plot` are installed."""
    return all(find_spec(module) for module in ("matplotlib", "sklearn"))


def new_axes(
    rows: int, columns: int, size: tuple[float, float], layout: str | None = "constrained", **options: Any
) -> tuple[Any, Any]:
    """A figure of `size` inches and its (rows, columns) axes, drawn without a screen.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    require("matplotlib", "plot").use("Agg")
    pyplot = require("matplotlib.pyplot", "plot")
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout=layout, **options)
    return figure, axes


def write_png(figure: Any, path: Path) -> Path:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Its font lacks some scripts (Chinese, Thai): names in them are drawn as boxes, without a warning for each.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(
            path, dpi=120, pil_kwargs={"compress_level": 3}
        )  # photographs: 13 % larger, a third of the time
    require("matplotlib.pyplot", "plot").close(figure)
    return path


def training_curves(evaluated: dict[str, EvaluatedRun], path: Path) -> Path:
    """Loss terms of each run (by title), below them its health, with the mAP on validation identities, by step."""
    logs = {title: read_log(str(run.encoder.folder)) for title, run in evaluated.items()}
    healthy = any(name in record for records in logs.values() for record in records for name in health.NAMES)
    figure, axes = new_axes(1 + healthy, len(logs), (5.6 * len(logs), 4.4 + 3.2 * healthy))
    for column, (title, records) in zip(axes.T, logs.items(), strict=True):
        steps = [record for record in records if "step" in record]
        names = list(dict.fromkeys(name for record in steps for name in record))  # some terms begin later
        terms = [name for name in names if name not in NO_TERMS]
        validated = [record for record in records if "validated_step" in record]
        _plot_means(column[0], steps, terms, "loss term (weighted, moving mean)", validated)
        column[0].set(title=title)
        if healthy:
            shown = [name for name in names if name in health.NAMES]
            _plot_means(column[1], steps, shown, "fusion and compensation (moving mean)")
    return write_png(figure, path)


def _plot_means(
    ax: Any,
    steps: list[dict[str, Any]],
    names: list[str],
    label: str,
    validated: Sequence[dict[str, Any]] = (),
) -> None:
    """Draw the moving mean of each named value against the step, and the validations' mAP on the right axis."""
    for number, name in enumerate(names):
        points = [(record["step"], record[name]) for record in steps if name in record]
        positions, values = np.array(points, dtype=float).T
        window = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        style = "-" if number < 10 else "--"  # ten colours, then the same dashed
        ax.plot(positions[window - 1 :], smooth, style, label=name, color=f"C{number}", linewidth=1.4)
    if not names and not validated:
        ax.axis("off")  # as for Base, without fusion and compensation
        return
    handles, labels = ax.get_legend_handles_labels()
    if validated:
        right_axis = ax.twinx()
        validations = np.array([(record["validated_step"], 100 * record["mAP"]) for record in validated])
        (line,) = right_axis.plot(*validations.T, "o--", color=INK, markersize=4)
        right_axis.set(ylabel="mAP on validation identities, %", ylim=(0, None))
        handles, labels = [*handles, line], [*labels, "validation mAP (right axis)"]
    ax.set(xlabel="step", ylabel=label)
    ax.grid(alpha=0.25)
    ax.legend(handles, labels, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def cmc_curves(evaluated: dict[str, EvaluatedRun], path: Path) -> Path:
    """CMC of each run's first direction, mean over trials, with chance at rank 1."""
    figure, [[ax]] = new_axes(1, 1, (5.4, 4.4))
    lines = []
    for title, run in evaluated.items():
        result = run.evaluations[0].result
        lines.append((" + ".join([title, *result.extras]), result))
        if result.plain is not None:  # scores with extras never stand without the plain ones
            lines.append((f"{title}, plain", result.plain))
    for number, (title, result) in enumerate(lines):
        length = min(50, *(len(trial.cmc) for trial in result.trials))
        curve = np.mean([trial.cmc[:length] for trial in result.trials], axis=0)
        label = f"{fill(title, 60)}: R1 {100 * curve[0]:.1f} %, mAP {100 * result.mean['mAP']:.1f} %"
        ax.plot(np.arange(1, length + 1), 100 * curve, color=f"C{number}", label=label)
    chance = next(iter(evaluated.values())).evaluations[0].result.chance
    ax.axhline(100 * chance, color=INK, linestyle=":", label=f"chance at rank 1: {100 * chance:.2f} %")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="rank", ylabel="queries with a match up to this rank, %", ylim=(0, 100))
    ax.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=7)
    return write_png(figure, path)


def ranked_lists(evaluated: EvaluatedRun, path: Path) -> Path:
    """Six queries and their ten best answers in the first trial; correct ones framed green, wrong ones red.

    The queries are drawn at random from those that have a match, one per identity.
    """
    first, table = evaluated.evaluations[0], evaluated.table
    query_rows = _pick_queries(evaluated, first.protocol, 6)
    lists = nearest(
        evaluated.embeddings,
        first.protocol,
        queries=query_rows,
        distance=first.result.distance,
        **role_masks(table),
    )
    # One plot with a cell of 1 x 1 for each image: 66 plots took 0.5 s more.
    margins = {"left": 0, "right": 1, "bottom": 0, "top": 1}
    figure, [[ax]] = new_axes(1, 1, (9, 1.62 * len(lists) + 0.3), layout=None, gridspec_kw=margins)
    ax.set(xlim=(0, 11), ylim=(len(lists), -0.18))
    ax.axis("off")
    for column, title in enumerate(("query", *range(1, 11))):
        ax.text(column + 0.5, -0.02, title, ha="center", va="bottom", fontsize=9)
    for line, (row, answers) in enumerate(zip(query_rows, lists, strict=True)):
        name = table.pid_name(int(table.pid[row]))  # a caption is as wide as its image
        who = f"pid {name}" if len(name) <= 6 else f"{name[:3]}…{name[-4:]}"
        caption = f"{who} cam {table.camid[row]}"
        _show_image(ax, (0, line), table, row, caption, INK)
        hits = zip(answers.gallery.tolist(), answers.similarity, answers.correct, strict=True)
        for column, (gallery_row, similarity, correct) in enumerate(hits, start=1):
            colour = RIGHT if correct else WRONG
            _show_image(ax, (column, line), table, gallery_row, f"{similarity:.2f}", colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_private(path)  # it shows people
    return write_png(figure, path)


def _pick_queries(evaluated: EvaluatedRun, protocol: Protocol, count: int) -> list[int]:
    """Rows of queries drawn at random that have a true match in the first trial, one per identity."""
    embeddings = evaluated.embeddings
    pid = embeddings.pid
    query, gallery = protocol.trials(embeddings, **role_masks(evaluated.table))[0]
    rows: list[int] = []
    for row in np.random.default_rng(0).permutation(query).tolist():
        if len(rows) == count:
            break
        hidden = protocol.skip.hidden(embeddings, row, gallery)
        if pid[row] not in pid[rows] and ((pid[gallery] == pid[row]) & ~hidden).any():
            rows.append(row)
    return rows


def _show_image(
    ax: Any, corner: tuple[float, float], table: Table, row: int, caption: str, colour: str
) -> None:
    """Draw a framed image and its caption into the cell of 1 x 1 below and right of `corner`."""
    left, top = corner[0] + 0.06, corner[1] + 0.02
    right, bottom = left + 0.88, top + 0.86
    extent = (left, right, bottom, top)
    ax.imshow(load_image(table.full_path(row)), extent=extent, aspect="auto")
    ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linewidth=2.5)
    centre = (left + right) / 2
    # A name with $ is no formula.
    ax.text(centre, bottom + 0.02, caption, ha="center", va="top", fontsize=6.5, parse_math=False)


def similarity_histogram(result: Verification, path: Path) -> Path:
    """Histogram of query-gallery similarities: same identity against different identities."""
    figure, [[ax]] = new_axes(1, 1, (5.2, 3.6))
    width = np.diff(result.edges)
    for name, counts, colour in (
        ("same identity", result.positive_histogram, RIGHT),
        ("different identities", result.negative_histogram, WRONG),
    ):
        density = counts / max(1, counts.sum()) / width
        ax.stairs(density, result.edges, fill=True, alpha=0.45, color=colour, label=name)
    if at_one_percent := result.true_match_rates[0.01]:
        true_match_rate, threshold = at_one_percent
        ax.axvline(threshold, color=INK, linestyle=":", linewidth=1)
        title = f"AUC {result.auc:.3f}; {100 * true_match_rate:.1f} % of true pairs pass at 1 % false ones"
        ax.set_title(title, fontsize=9)
    ax.set(xlabel=f"similarity of query and gallery ({result.distance})", ylabel="density")
    ax.legend(fontsize=8)
    return write_png(figure, path)


def rows_plot(study: dict[str, Any], path: Path) -> Path:
    """mAP and Rank-1 of each row: mean, spread and each seed; both directions."""
    rows = [row for row in study["rows"] if row["figures"]]
    figure, axes = new_axes(1, 2, (10.4, 0.42 * len(rows) + 1.6), sharey=True)
    for ax, (metric, title) in zip(axes[0], (("rank1", "Rank-1"), ("mAP", "mAP")), strict=True):
        for number, direction in enumerate(DIRECTION_NAMES):
            colour, marker = f"C{number}", "os"[number]
            for line, row in enumerate(rows):
                if not (spread := row["figures"].get(direction, {}).get(metric)):
                    continue
                height = line + 0.16 * (2 * number - 1)
                label = DIRECTION_NAMES[direction] if line == 0 else None
                bar = {"xerr": spread["std"] or 0, "fmt": marker, "color": colour, "capsize": 3}
                ax.errorbar(spread["mean"], height, label=label, **bar)
                ax.scatter(spread["seeds"], [height] * len(spread["seeds"]), s=8, color=colour, alpha=0.5)
        ax.set(xlabel=f"{title}, %", yticks=range(len(rows)), yticklabels=[row["title"] for row in rows])
        ax.grid(alpha=0.25)
    axes[0][0].invert_yaxis()
    axes[0][1].legend(fontsize=8)
    return write_png(figure, path)


def pairs_plot(study: dict[str, Any], path: Path) -> Path:
    """Paired differences of mAP with their intervals; green: clear of zero up, red: down (of enough seeds)."""
    pairs = study["pairs"]
    figure, [[ax]] = new_axes(1, 1, (8.4, 0.36 * len(pairs) + 1.2))
    for line, pair in enumerate(pairs):
        difference = pair["mAP"]
        colour = INK
        if difference["clear"] and difference["enough"]:
            colour = RIGHT if difference["low"] > 0 else WRONG
        ax.plot([difference["low"], difference["high"]], [line, line], color=colour)
        ax.plot(difference["mean"], line, "o", color=colour)
    ax.axvline(0, color=INK, linestyle=":", linewidth=1)
    labels = [f"{pair['title']} ({pair['direction']})" for pair in pairs]
    ax.set(xlabel="mAP difference, points, 95 %", yticks=range(len(pairs)), yticklabels=labels)
    ax.tick_params(axis="y", labelsize=8)
    ax.margins(y=0.02)
    ax.invert_yaxis()
    ax.grid(alpha=0.25)
    return write_png(figure, path)


def fusion_plot(records: dict[str, list[dict[str, Any]]], path: Path) -> Path | None:
    """w1 and w2 over training, one line per run; None if the logs lack them."""
    logged = {name: [r for r in rows if "w1" in r and "w2" in r] for name, rows in records.items()}
    if not any(logged.values()):
        return None
    figure, [[ax]] = new_axes(1, 1, (5.6, 3.6))
    for number, (name, rows) in enumerate(logged.items()):
        for weight, style in (("w1", "-"), ("w2", "--")):
            steps, values = [r["step"] for r in rows], [r[weight] for r in rows]
            ax.plot(steps, values, style, color=f"C{number}", label=f"{weight}, {name}")
    ax.set(xlabel="step", ylabel="weight in (15)")
    ax.legend(fontsize=7)
    ax.grid(alpha=0.25)
    return write_png(figure, path)
