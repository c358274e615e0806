"""The report folder: what was measured, how, and pictures of it."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.evaluate_model import DirectionResult, EvaluatedRun, roles
from fmcnet.evaluation.metrics import METRICS
from fmcnet.evaluation.verification import verification
from fmcnet.experiments import figures
from fmcnet.files import write_atomically
from fmcnet.models.checkpoint import versions
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

TITLES = {
    "base": "Base",
    "sfd": "+ SFD",
    "fmc": "+ FMC (concatenation)",
    "full": "FMCNet (full)",
}


def write_report(
    judged: dict[str, EvaluatedRun],
    runs: dict[str, Path],
    out: str | Path,
    *,
    extra: dict[str, Any] | None = None,
    pictures: bool | None = None,
) -> Path:
    """Write `report.md`, `report.json` and `figures/` for one or several runs on one test set.

    Args:
        judged: embeddings and evaluations by title; the last is the one that ranked lists and maps are of.
        runs: run folder by title, for training curves.
        out: the folder.
        extra: facts for both files (dataset, seeds, timings).
        pictures: None draws them where matplotlib and scikit-learn (fmcnet[plot]) are installed.

    Returns:
        The path of report.md.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    main = list(judged.values())[-1]
    made: dict[str, str] = {}
    if pictures is None:
        pictures = all(find_spec(module) for module in ("matplotlib", "sklearn"))
        if not pictures:
            logger.warning("no pictures in the report: pip install 'fmcnet[plot]' brings what draws them")
    if pictures:
        made = {title: path.relative_to(out).as_posix() for title, path in _draw(judged, runs, out).items()}
    facts = _facts(judged, runs, extra or {})
    facts["verification"] = _verification(main)
    text = json.dumps({**facts, "figures": made}, indent=1) + "\n"
    write_atomically(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    page = _page(judged, facts, made)
    return write_atomically(out / "report.md", lambda path: path.write_text(page, encoding="utf-8"))


def _draw(judged: dict[str, EvaluatedRun], runs: dict[str, Path], out: Path) -> dict[str, Path]:
    """All figures by title; those that the data do not allow are left out."""
    main = list(judged.values())[-1]
    ranked = "Ranked lists (green: right, red: wrong; first trial, plain ranking, queries drawn at random)"
    drawn = {
        "CMC": figures.cmc_curves(judged, out / "figures" / "cmc.png"),
        "Training curves": figures.training_curves(runs, out / "figures" / "curves.png"),
        ranked: figures.ranked_lists(main, out / "figures" / "ranked.png"),
    }
    try:
        title = "Similarity of pairs across the modalities"
        drawn[title] = figures.similarity_histogram(main, out / "figures" / "similarity.png")
    except ProtocolError as error:
        logger.warning("no similarity histogram: %s", error)
    if main.encoder.model.decomposition.has_specific:
        path = figures.feature_map(main.encoder, main.table, out / "figures" / "features.png")
        drawn["Feature maps, test identities"] = path
    return drawn


def _verification(judged: EvaluatedRun) -> dict[str, Any] | None:
    """Is this the same person? Rates of the main run's first direction; None where no false pairs exist."""
    try:
        return verification(
            judged.embeddings,
            judged.evaluations[0].protocol,
            distance=judged.evaluations[0].result.distance,
            query_mask=roles(judged.table, "query"),
            gallery_mask=roles(judged.table, "gallery"),
        ).to_dict()
    except ProtocolError:
        return None


def _facts(judged: dict[str, EvaluatedRun], runs: dict[str, Path], extra: dict[str, Any]) -> dict[str, Any]:
    main = list(judged.values())[-1]
    table = main.table
    return {
        "dataset": {
            "name": table.name,
            "root": str(table.root),
            "generated": (table.root / "generated.json").is_file(),
            "identities": len(np.unique(table.pid)),
            "visible": len(table.select(modality=Modality.VISIBLE)),
            "infrared": len(table.select(modality=Modality.INFRARED)),
        },
        "versions": versions(),
        "runs": {
            title: {
                "run": str(runs[title]),
                "variant": one.encoder.model.variant,
                "seed": one.encoder.card.config.training.seed,
                "step": one.encoder.card.step,
                "selected_on": one.encoder.card.selected,
                "parameters": sum(p.numel() for p in one.encoder.model.parameters()),
                "evaluations": [evaluation.to_dict() for evaluation in one.evaluations],
            }
            for title, one in judged.items()
        },
        **extra,
    }


def _page(judged: dict[str, EvaluatedRun], facts: dict[str, Any], made: dict[str, str]) -> str:
    data = facts["dataset"]
    lines = [
        "# fmcnet report",
        "",
        f"Test set: {'GENERATED data in the layout of ' if data['generated'] else ''}{data['name']} at "
        f"`{data['root']}`, {data['identities']} identities, "
        f"{data['visible']} visible and {data['infrared']} infrared images.",
        "",
    ]
    for direction in (e.direction for e in next(iter(judged.values())).evaluations):
        rows = [
            (title, evaluation)
            for title, one in judged.items()
            for evaluation in one.evaluations
            if evaluation.direction == direction
        ]
        lines += [f"## {_direction(direction)}", "", rows[0][1].result.protocol, ""]
        lines += markdown_table(rows)
    if any(run["selected_on"] == "test" for run in facts["runs"].values()):
        lines += [
            "**SELECTED ON THE TEST SET: these figures are optimistic and compare with none that are not.**",
            "",
        ]
    lines += _verification_lines(list(judged)[-1], facts["verification"])
    lines += [
        "## Runs",
        "",
        "| run | variant | seed | step | weights | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for title, run in facts["runs"].items():
        lines.append(
            f"| {title} | {run['variant']} | {run['seed']} | {run['step']} | {run['selected_on']} | "
            f"{run['parameters']:,} |"
        )
    lines += [
        "",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        "",
    ]
    for key, value in facts.items():
        if key == "seconds":
            lines += ["Seconds: " + ", ".join(f"{what} {took:.0f}" for what, took in value.items()), ""]
        elif isinstance(value, (str, int, float)):
            lines += [f"{key.replace('_', ' ')}: {value}", ""]
    for title, path in made.items():
        lines += [f"## {title}", "", f"![{title}]({path})", ""]
    return "\n".join(lines)


def _verification_lines(title: str, verified: dict[str, Any] | None) -> list[str]:
    if not verified:
        return []
    lines = [
        "## Same person or not",
        "",
        f"{title}: {verified['positives']:,} true and {verified['negatives']:,} false pairs across the modalities, "
        f"nothing drawn, {verified['distance']}. Area under the ROC curve {verified['auc']:.4f}.",
        "",
        "| false-match rate | true-match rate | at the threshold |",
        "|---|---|---|",
    ]
    for rate, found in verified["true_match_rate"].items():
        cells = (
            f"{100 * found['rate']:.2f} % | {found['threshold']:.3f}" if found else "too few false pairs | -"
        )
        lines.append(f"| {100 * float(rate):g} % | {cells} |")
    return [*lines, ""]


def markdown_table(rows: list[tuple[str, DirectionResult]]) -> list[str]:
    """Figures in percent, mean and population standard deviation over trials."""
    lines = [
        "| | " + " | ".join(METRICS) + " | Rank-1 over chance |",
        "|---|" + "---|" * (len(METRICS) + 1),
    ]
    for title, one in rows:
        kinds = [(title, one.result)]
        if one.result.plain is not None:  # extras are never shown without the plain figure
            kinds = [
                (f"{title}, plain", one.result.plain),
                (f"{title} + {' + '.join(one.result.extras)}", one.result),
            ]
        for name_of_row, result in kinds:
            mean, std = result.mean, result.std
            cells = [f"{100 * mean[name]:.2f} ± {100 * std[name]:.2f}" for name in METRICS]
            times = mean["rank1"] / one.chance if one.chance else float("nan")
            lines.append(
                f"| {name_of_row} | " + " | ".join(cells) + f" | {times:.1f} x ({100 * one.chance:.2f} %) |"
            )
    return [*lines, ""]


def _direction(direction: str) -> str:
    return {"i2v": "Infrared to visible", "v2i": "Visible to infrared"}[direction]
