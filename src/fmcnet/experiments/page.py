"""The report of a study as Markdown."""

from __future__ import annotations

from typing import Any

from fmcnet.experiments.paired import FEWEST, too_few
from fmcnet.experiments.rows import DIRECTIONS

NUMBERS = {
    "shared_specific": ("specific centre to the nearest shared centre", "large", "{:.3f}"),
    "specific_spread": (
        "specific centre to the farthest specific one",
        "below the line above: (4)",
        "{:.3f}",
    ),
    "mixing": ("one identity's visible and infrared shared features mixed", "1", "{:.3f}"),
    "cross_ratio": ("its distance across the modalities over that within", "1", "{:.3f}"),
    "probe_shared": ("linear probe tells the modality from shared features", "0.5, chance", "{:.3f}"),
    "probe_specific": ("linear probe tells the modality from specific features", "near 1", "{:.3f}"),
    "generated_rank": (
        "rank of the nearest real feature of the identity, from a generated one",
        "1",
        "{:.1f}",
    ),
    "generated_chance": ("the same, drawn blindly", "-", "{:.1f}"),
    "generated_first": ("share of generated features with rank 1", "1", "{:.3f}"),
    "generated_distance": (
        "generated feature to its identity's real centre",
        "below the next line",
        "{:.3f}",
    ),
    "between_centers": ("two identities' real centres", "-", "{:.3f}"),
    "w1": ("w1 at the end", "-", "{:.3f}"),
    "w2": ("w2 at the end", "-", "{:.3f}"),
}
"""Title, what the paper's claim wants, format; in the order of the report."""


def page(facts: dict[str, Any], pictures: dict[str, list[tuple[str, str]]]) -> str:
    """The whole report.

    Args:
        facts: as written to results.json. pictures: (title, relative path) by the study's name.
    """
    lines = ["# Results of the study", "", *_head(facts), *_protocols(facts)]
    for study in facts["studies"]:
        lines += [f"## {study['title']}", ""]
        if not study["maps"]:
            lines += _table(study, facts["data"]["comparable"])
        lines += _pairs(study)
        lines += _order(study)
        lines += _numbers(study)
        lines += _sources(study)
        for title, path in pictures.get(study["name"], []):
            lines += [f"![{title}]({path})", "", f"*{title}.*", ""]
    return "\n".join([*lines, *_runs(facts)])


def _head(facts: dict[str, Any]) -> list[str]:
    data = facts["data"]
    kind = "**GENERATED** data in the layout of " if data["generated"] else ""
    seeds = ", ".join(map(str, facts["seeds"]))
    lines = [
        f"Written by `{facts['command']}`, {facts['written']}, fmcnet {facts['versions']['fmcnet']}"
        + (f" at commit {facts['commit']}" if facts["commit"] else "")
        + f", torch {facts['versions']['torch']}.",
        "",
        f"Data: {kind}{data['name']}, {data['test_identities']} test identities never trained on, "
        f"{data['train_identities']} training identities. Training seeds: {seeds}; "
        + ("one dataset for all seeds." if facts["crossed"] else "each seed has a dataset of its own."),
        "",
        f"Each run does {_numbers_of(facts['steps'])} steps and sees {_numbers_of(facts['images_seen'])} images. "
        "Figures are percent: mean ± sample standard deviation over seeds. Differences are paired by query; their "
        "intervals hold 95 % of 2,000 bootstrap draws of seeds and queries. Weights are each run's last.",
        "",
    ]
    if len(facts["images_seen"]) > 1:
        lines += ["**Not all runs saw equally many images: see the table of runs.**", ""]
    if not data["comparable"]:
        lines += [
            "The paper's figures are of SYSU-MM01 and stand beside no figure here; its ORDER is compared.",
            "",
        ]
    if few := too_few(len(facts["seeds"])):
        lines += [f"**{few}. Every difference and order below is of these runs alone.**", ""]
    if facts["failed"]:
        lines += [f"**Not finished:** {facts['failed']}", ""]
    return lines


def _protocols(facts: dict[str, Any]) -> list[str]:
    """Each direction's protocol and chance, once."""
    rows = [row for study in facts["studies"] for row in study["rows"]]
    lines = []
    for direction, words in DIRECTIONS.items():
        figures = next((row["figures"][direction] for row in rows if direction in row["figures"]), None)
        if figures:
            chance = f"A random order expects Rank-1 {figures['chance_rank1']:.2f}."
            lines.append(f"- {words.capitalize()}: {figures['protocol']} {chance}")
    return [*lines, ""]


def _numbers_of(values: list[int]) -> str:
    return " or ".join(f"{value:,}" for value in values) or "no"


def _plus_minus(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.2f}" + (f" ± {spread['std']:.2f}" if spread["std"] is not None else "")


def _table(study: dict[str, Any], comparable: bool) -> list[str]:
    rows = study["rows"]
    paper = comparable and any(row["paper"] for row in rows)
    head = [f"{name} {metric}" for name in ("I→V", "V→I") for metric in ("Rank-1", "mAP", "mINP")]
    head += ["paper Rank-1", "paper mAP"] if paper else []
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for row in rows:
        cells = []
        for direction in DIRECTIONS:
            figures = row["figures"].get(direction)
            cells += [_plus_minus(figures[m]) if figures else "-" for m in ("rank1", "mAP", "mINP")]
        if paper:
            cells += [f"{value:.2f}" for value in row["paper"] or ()] or ["-", "-"]
        few = (
            f" ({len(row['runs'])} of {len(row['runs']) + len(row['missing'])} seeds)"
            if row["missing"]
            else ""
        )
        lines.append(f"| {row['title']}{few} | " + " | ".join(cells) + " |")
    said = too_few(min((len(row["runs"]) for row in rows if row["runs"]), default=FEWEST))
    return [*lines, "", *([f"Rows of {said}.", ""] if said else [])]


def _pairs(study: dict[str, Any]) -> list[str]:
    if not study["pairs"]:
        return []
    lines = ["| paired difference | direction | Rank-1 | mAP |", "|---|---|---|---|"]
    for pair in study["pairs"]:
        cells = []
        for metric in ("rank1", "mAP"):
            one = pair[metric]
            text = f"{one['mean']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"
            cells.append(f"**{text}**" if one["clear"] and one["enough"] else text)
        lines.append(f"| {pair['title']} | {DIRECTIONS[pair['direction']]} | {cells[0]} | {cells[1]} |")
    lines += ["", "Bold: the interval is clear of zero.", ""]
    fewest = min(pair["mAP"]["seeds"] for pair in study["pairs"])
    return (
        [*lines, f"Not bold in any case, differences of {too_few(fewest)}.", ""] if too_few(fewest) else lines
    )


def _order(study: dict[str, Any]) -> list[str]:
    if study["order"]:
        return ["**Orders otherwise than in the paper:**", "", *(f"- {line}" for line in study["order"]), ""]
    if study["pairs"] and any(row["paper"] for row in study["rows"]):
        few = too_few(min(pair["mAP"]["seeds"] for pair in study["pairs"]))
        return [
            "Every row orders as in the paper, in both directions and both figures"
            + (f" ({few})." if few else "."),
            "",
        ]
    return []


def _numbers(study: dict[str, Any]) -> list[str]:
    measured = study.get("numbers") or {}
    if not measured:
        return []
    titles = list(measured)
    lines = ["| | claim wants | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
    for name, (title, wanted, form) in NUMBERS.items():
        spreads = [measured[row].get(name) for row in titles]
        if any(spreads):
            cells = [
                form.format(s["mean"]) + (f" ± {s['std']:.3f}" if s["std"] is not None else "") if s else "-"
                for s in spreads
            ]
            lines.append(f"| {title} | {wanted} | " + " | ".join(cells) + " |")
    return [*lines, "", "Features of test identities, of unit length; mean ± deviation over seeds.", ""]


def _sources(study: dict[str, Any]) -> list[str]:
    lines = []
    for row in study["rows"]:
        if row["source"]:
            apart = f" Deviations: {'; '.join(row['deviations'])}." if row["deviations"] else ""
            settings = " ".join(row["settings"])
            lines.append(f"- **{row['title']}**: {row['source']}.{apart} `{settings}`")
    return [*lines, ""] if lines else []


def _runs(facts: dict[str, Any]) -> list[str]:
    lines = [
        "## Runs",
        "",
        "| run | rows | seed | steps | images seen | parameters | device | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in facts["runs"]:
        counts = " | ".join(f"{run[key]:,}" for key in ("steps", "images_seen", "parameters"))
        where = f"{run['device']} | {run['commit'] or '-'}"
        lines.append(f"| {run['name']} | {', '.join(run['rows'])} | {run['seed']} | {counts} | {where} |")
    lines += [
        "",
        "Each by hand, with the configuration that the study wrote (figures: `fmcnet evaluate RUN` with the",
    ]
    lines += ["same `--data` and `--both`):", "", "```"]
    lines += [run["commands"][0] for run in facts["runs"]]
    return [*lines, "```", ""]
