"""The model card of weights that a study leaves: what they are, how they came about, what they found, what for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmcnet.experiments.rows import DIRECTIONS
from fmcnet.experiments.writing import markdown_table, write_text
from fmcnet.models.card import WEIGHTS, ModelCard
from fmcnet.models.checkpoint import weights_digest

MODEL_CARD = "README.md"

_LIMITS = """## For what, and for what not

Trained on GENERATED pictures of bodies that a renderer draws: for trying the commands, for tests, for comparing
methods under equal conditions. It has never seen a photograph: what it says of real people is worth nothing. To
search real cameras, train on them. Whatever the weights, a similarity is no proof of identity, and finding people
across cameras is subject to law.
"""

_REAL_LIMITS = """## For what, and for what not

For research on the dataset named above, under its agreement. A similarity is no proof of identity; figures on other
cameras, seasons and people than those of the dataset are unknown; finding people across cameras is subject to law.
"""


def write_model_card(run: str | Path, card: ModelCard, result: dict[str, Any], *, generated: bool) -> Path:
    """Write `README.md` beside the weights, in the form that model hubs read.

    Args:
        run: the folder with `model.safetensors`. card: its `model.json`.
        result: the run's `result.json`. generated: trained on the generated benchmark, so under our own licence.

    Raises:
        CheckpointError: when the weights cannot be read.
    """
    run = Path(run)
    digest, size = weights_digest(run / WEIGHTS), (run / WEIGHTS).stat().st_size
    config = card.config
    what = "A baseline in FMCNet's engine: two stems, one shared tail, no FMCNet module (settings below)"
    if result["variant"] != "base":
        what = f"FMCNet (CVPR 2022), variant `{result['variant']}`"
    kind = "the **generated** benchmark, in the layout of " if generated else ""
    lines = [
        "---",
        f"license: {'apache-2.0' if generated else 'other'}",
        "library_name: fmcnet",
        "tags: [person-re-identification, visible-infrared]",
        "---",
        "",
        f"# {result['name']}",
        "",
        f"{what}: {result['parameters']:,} weights, {size / 1e6:.1f} MB."
        f" An image of one person ({config.data.height} x {config.data.width}, visible or infrared) becomes a "
        f"descriptor of {result['dimensions']:,} numbers, compared by {card.similarity}.",
        "",
        "| | |",
        "|---|---|",
        f"| trained on | {kind}{card.dataset}, {card.classes} identities |",
        f"| command | `{result['commands'][0]}` |",
        f"| seed | {config.training.seed} |",
        f"| steps, images seen | {result['steps']:,}, {result['images_seen']:,} |",
        f"| weights kept | {card.selected} |",
        f"| code | fmcnet {result['versions']['fmcnet']}"
        + (f", commit {result['commit']}" if result["commit"] else "")
        + f"; torch {result['versions']['torch']}; {result['device']} |",
        f"| finished | {result['finished']} |",
        f"| SHA-256 of the weights (`fmcnet info --json`) | `{digest}` |",
        "",
        "## Figures",
        "",
        f"Percent, {result['split']} identities, none of them trained on.",
        "",
    ]
    head = ("direction", "Rank-1", "Rank-10", "Rank-20", "mAP", "mINP", "random order, Rank-1")
    rows = []
    for one in result["evaluations"]:
        scores = [one["mean"][key] for key in ("rank1", "rank10", "rank20", "mAP", "mINP")]
        scores = [f"{100 * score:.2f}" for score in (*scores, one["chance_rank1"])]
        rows.append([DIRECTIONS[one["direction"]], *scores])
    lines += markdown_table(head, rows)
    protocols = dict.fromkeys(one["protocol"] for one in result["evaluations"])
    lines += [*(f"- {protocol}" for protocol in protocols), "", _LIMITS if generated else _REAL_LIMITS]
    settings = json.dumps(config.model_dump(mode="json"), indent=1)
    lines += ["## Every setting", "", "```json", settings, "```", ""]
    return write_text(run / MODEL_CARD, "\n".join(lines))
