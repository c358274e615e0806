"""The report of a study: results.md, results.json and plots."""

from __future__ import annotations

import logging
import textwrap
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcnet.experiments import plots
from fmcnet.experiments.features import draw_study
from fmcnet.experiments.plots import Plots
from fmcnet.experiments.report import SELECTED_ON_TEST
from fmcnet.experiments.results import COMPARED_METRICS, MIN_SEEDS, interval, study_facts, too_few
from fmcnet.experiments.rows import DIRECTION_NAMES, Study
from fmcnet.experiments.runs import StudyRun, commit
from fmcnet.files import write_json, write_text
from fmcnet.markdown import markdown_page, markdown_table
from fmcnet.models.card import versions

if TYPE_CHECKING:
    from fmcnet.experiments.study import StudyOptions

logger = logging.getLogger(__name__)

RUN_FACTS = (
    "name", "steps", "images_seen", "parameters", "device", "commands", "commit", "finished", "versions",
)  # fmt: skip
"""Keys of each run's result that results.json repeats."""
STATISTICS = {
    "shared_specific": ("specific centre to the nearest shared centre", "large"),
    "specific_spread": ("specific centre to the farthest specific one", "below the line above: (4)"),
    "mixing": ("one identity's visible and infrared shared features mixed", "1"),
    "cross_ratio": ("its distance across the modalities over that within", "1"),
    "probe_shared": ("linear probe tells the modality from shared features", "0.5, chance"),
    "probe_specific": ("linear probe tells the modality from specific features", "near 1"),
    "generated_rank": ("rank of the nearest real feature of the identity, from a generated one", "1"),
    "generated_chance": ("the same, drawn blindly", "-"),
    "generated_first": ("share of generated features with rank 1", "1"),
    "generated_distance": ("generated feature to its identity's real centre", "below the next line"),
    "between_centers": ("two identities' real centres", "-"),
    "w1": ("w1 at the end", "-"),
    "w2": ("w2 at the end", "-"),
}
"""Title of each statistic, and the value that the paper's claim implies; in the order of the report."""
KEPT = {"last": "last", "val": "best on validation identities", "test": "best on the test identities"}
"""The weights that each `training.select` keeps."""


def write_study(
    studies: Sequence[Study],
    runs: Sequence[StudyRun],
    options: StudyOptions,
    data: dict[str, Any],
    failed: str,
    progress: bool | None,
) -> dict[str, Any]:
    """Write results.md, results.json and figures/ from those of the runs that are finished.

    `data` are facts of the dataset, `failed` says which runs failed, and why. Returns the content of results.json,
    and "report", the path of results.md.
    """
    out, seeds = options.report or options.out / "report", options.seeds
    finished = [(run, result) for run in runs if (result := run.result()) is not None]
    by_row: dict[str, dict[int, StudyRun]] = defaultdict(dict)
    for run, _ in finished:
        for key in run.rows:
            by_row[key][run.seed] = run
    facts: dict[str, Any] = {
        "command": options.command(),
        "written": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": versions(),
        "data": data,
        "seeds": list(seeds),
        "crossed": options.crossed,
        "selected": sorted({run.config.training.select for run, _ in finished}),
        "steps": sorted({result["steps"] for _, result in finished}),
        "images_seen": sorted({result["images_seen"] for _, result in finished}),
        "failed": failed,
        "studies": [study_facts(study, by_row, seeds, crossed=options.crossed) for study in studies],
        "runs": [
            {**{key: result[key] for key in RUN_FACTS}, "rows": list(run.rows), "seed": run.seed}
            for run, result in finished
        ],
        "pictures": {},
    }
    if plots.can_draw():
        for study, content in zip(studies, facts["studies"], strict=True):
            if study.maps:
                content["numbers"], drawn = draw_study(study, by_row, out / "figures", progress)
            else:
                drawn = _draw_table(content, out / "figures")
            facts["pictures"][study.name] = [
                (title, path.relative_to(out).as_posix()) for title, path in drawn
            ]
    else:
        logger.warning("no plots and no numbers of Figures 4 and 5: pip install 'fmcnet[plot]' brings both")
    write_json(out / "results.json", facts)
    report = write_text(out / "results.md", study_page(facts))
    return {**facts, "report": str(report)}


def _draw_table(content: dict[str, Any], out: Path) -> Plots:
    drawn: Plots = []
    if any(row["figures"] for row in content["rows"]):
        path = plots.rows_plot(content, out / f"{content['name']}.png")
        drawn.append((f"{content['title']}: mean, spread and each seed", path))
    if content["pairs"]:
        path = plots.pairs_plot(content, out / f"{content['name']}-paired.png")
        drawn.append(("Paired differences of mAP", path))
    return drawn


def study_page(facts: dict[str, Any]) -> str:
    """The report in Markdown, of the content of results.json."""
    parts = ["# Results of the study", *_head(facts), *_protocols(facts)]
    for study in facts["studies"]:
        parts.append(f"## {study['title']}")
        if not study["maps"]:
            parts += _table(study, facts["data"]["comparable"])
        parts += [*_pairs(study), *_order(study), *_statistics_table(study), *_sources(study)]
        for title, path in facts["pictures"].get(study["name"], []):
            parts += [f"![{title}]({path})", f"*{title}.*"]
    return markdown_page(_wrapped(part) for part in [*parts, *_runs(facts)])


def _wrapped(part: str) -> str:
    """Prose in lines of at most 100 columns; tables, headings, plots and code as they are."""
    if part.startswith(("|", "#", "!", "```")):
        return part
    lines = []
    for line in part.split("\n"):
        indent = "  " if line.startswith("- ") else ""
        lines += textwrap.wrap(
            line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)


def _head(facts: dict[str, Any]) -> list[str]:
    data, versions_used = facts["data"], facts["versions"]
    at_commit = f" at commit {facts['commit']}" if facts["commit"] else ""
    generated = "**GENERATED** data in the layout of " if data["generated"] else ""
    datasets = "one dataset for all seeds" if facts["crossed"] else "each seed has a dataset of its own"
    kept = " or ".join(KEPT[select] for select in facts["selected"])
    parts = [
        f"Written by `{facts['command']}`, {facts['written']}, fmcnet {versions_used['fmcnet']}{at_commit}, torch "
        f"{versions_used['torch']}.",
        f"Data: {generated}{data['name']}, {data['test_identities']} test identities never trained on, "
        f"{data['train_identities']} training identities. Training seeds: {', '.join(map(str, facts['seeds']))}; "
        f"{datasets}.",
        f"Weights are each run's {kept}, of {_alternatives(facts['steps'])} steps and "
        f"{_alternatives(facts['images_seen'])} images. Figures are percent: mean ± sample standard deviation over "
        "seeds. Differences are paired by query; their intervals hold 95 % of 2,000 bootstrap draws of seeds and "
        "queries.",
    ]
    if "test" in facts["selected"]:
        parts.append(SELECTED_ON_TEST)
    if len(facts["images_seen"]) > 1:
        parts.append("**Not all runs saw equally many images: see the table of runs.**")
    if not data["comparable"]:
        parts.append(
            "The paper's figures are of SYSU-MM01 and stand beside no figure here; its ORDER is compared."
        )
    if warning := too_few(len(facts["seeds"])):
        parts.append(f"**{warning}. Every difference and order below is of these runs alone.**")
    if facts["failed"]:
        parts.append(f"**Not finished:** {facts['failed']}")
    return parts


def _protocols(facts: dict[str, Any]) -> list[str]:
    """Each direction's protocol and chance, once."""
    rows = [row for study in facts["studies"] for row in study["rows"]]
    lines = []
    for direction, name in DIRECTION_NAMES.items():
        if scores := next((row["figures"][direction] for row in rows if direction in row["figures"]), None):
            chance = f"A random order expects Rank-1 {scores['chance_rank1']:.2f}."
            flags = f" Not as published: {', '.join(scores['flags'])}." if scores.get("flags") else ""
            lines.append(f"- {name.capitalize()}: {scores['protocol']}{flags} {chance}")
    return ["\n".join(lines)] if lines else []


def _alternatives(values: list[int]) -> str:
    return " or ".join(f"{value:,}" for value in values) or "no"


def _plus_minus(spread: dict[str, Any] | None, digits: int = 2, deviation_digits: int = 2) -> str:
    if not spread:
        return "-"
    deviation = "" if spread["std"] is None else f" ± {spread['std']:.{deviation_digits}f}"
    return f"{spread['mean']:.{digits}f}{deviation}"


def _table(study: dict[str, Any], comparable: bool) -> list[str]:
    rows, metrics = study["rows"], {"rank1": "Rank-1", "mAP": "mAP", "mINP": "mINP"}
    paper = comparable and any(row["paper"] for row in rows)
    head = ["", *(f"{name} {metric}" for name in ("I→V", "V→I") for metric in metrics.values())]
    head += ["paper Rank-1", "paper mAP"] if paper else []
    lines = []
    for row in rows:
        done, missing = len(row["runs"]), len(row["missing"])
        cells = [row["title"] + (f" ({done} of {done + missing} seeds)" if missing else "")]
        for direction in DIRECTION_NAMES:
            scores = row["figures"].get(direction, {})
            cells += [_plus_minus(scores.get(metric)) for metric in metrics]
        if paper:
            cells += [f"{value:.2f}" for value in row["paper"] or ()] or ["-", "-"]
        lines.append(cells)
    warning = too_few(min((len(row["runs"]) for row in rows if row["runs"]), default=MIN_SEEDS))
    parts = [markdown_table(head, lines), *([f"Rows of {warning}."] if warning else [])]
    flags = {flag for row in rows for scores in row["figures"].values() for flag in scores.get("flags", ())}
    if paper and flags:
        parts.append(
            f"The paper's figures are of the published protocol; ours are not: {', '.join(sorted(flags))}."
        )
    return parts


def _pairs(study: dict[str, Any]) -> list[str]:
    if not study["pairs"]:
        return []
    rows = []
    for pair in study["pairs"]:
        rows.append([pair["title"], DIRECTION_NAMES[pair["direction"]]])
        for metric in COMPARED_METRICS:
            bold = "**" if pair[metric]["clear"] and pair[metric]["enough"] else ""
            rows[-1].append(f"{bold}{interval(pair[metric])}{bold}")
    table = markdown_table(("paired difference", "direction", "Rank-1", "mAP"), rows)
    parts = [table, "Bold: the interval is clear of zero."]
    if warning := _few_seeds(study):
        parts.append(f"Not bold in any case, differences of {warning}.")
    return parts


def _few_seeds(study: dict[str, Any]) -> str:
    return too_few(min(pair["mAP"]["seeds"] for pair in study["pairs"]))


def _order(study: dict[str, Any]) -> list[str]:
    if study["order"]:
        return ["**Orders otherwise than in the paper:**", "\n".join(f"- {line}" for line in study["order"])]
    if study["pairs"] and any(row["paper"] for row in study["rows"]):
        note = f" ({warning})." if (warning := _few_seeds(study)) else "."
        return [f"Every row orders as in the paper, in both directions and both figures{note}"]
    return []


def _statistics_table(study: dict[str, Any]) -> list[str]:
    measured = study.get("numbers")
    if not measured:
        return []
    lines = []
    for name, (title, wanted) in STATISTICS.items():
        spreads = [values.get(name) for values in measured.values()]
        digits = 1 if name in ("generated_rank", "generated_chance") else 3
        if any(spreads):
            lines.append([title, wanted, *(_plus_minus(spread, digits, 3) for spread in spreads)])
    return [
        markdown_table(["", "claim wants", *measured], lines),
        "Features of test identities, of unit length; mean ± deviation over seeds.",
    ]


def _sources(study: dict[str, Any]) -> list[str]:
    lines = []
    for row in study["rows"]:
        if row["source"]:
            deviations = f" Deviations: {'; '.join(row['deviations'])}." if row["deviations"] else ""
            lines.append(f"- **{row['title']}**: {row['source']}.{deviations} `{' '.join(row['settings'])}`")
    return ["\n".join(lines)] if lines else []


def _runs(facts: dict[str, Any]) -> list[str]:
    rows = []
    for run in facts["runs"]:
        counts = [f"{run[key]:,}" for key in ("steps", "images_seen", "parameters")]
        names = [run["name"], ", ".join(run["rows"]), run["seed"]]
        rows.append([*names, *counts, run["device"], run["commit"] or "-"])
    head = ("run", "rows", "seed", "steps", "images seen", "parameters", "device", "commit")
    commands = [run["commands"][0].replace(" --", " \\\n  --") for run in facts["runs"][:1]]
    return [
        "## Runs",
        markdown_table(head, rows),
        "Each by hand, with the configuration that the study wrote; here the first, the others likewise "
        "(results.json). Figures: `fmcnet evaluate RUN` with the same `--data` and `--both`.",
        "\n".join(["```", *commands, "```"]),
    ]
