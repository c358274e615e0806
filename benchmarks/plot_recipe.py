"""Draw what the trials of a recipe search found, from their log: one dot a trial, a row a method.

python benchmarks/plot_recipe.py benchmarks/recipe_trials.jsonl --out docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

GROUPS = {
    "base": "Base",
    "hc": "Hetero-centre",
    "agw": "AGW's recipe",
    "sfd": "+ SFD",
    "f": "FMCNet",
    "p": "fmcnet-plus",
}
"""What a trial's name begins with, and the row it is drawn in."""


def group(name: str) -> str:
    key = name.split("-")[0]
    if key not in GROUPS:
        raise SystemExit(f"trial {name}: its name begins with none of {', '.join(GROUPS)}")
    return key


def mean(figures: dict[str, float]) -> float:
    return float(np.mean(list(figures.values())))


def draw_trials(records: list[dict[str, Any]], steps: int, path: Path) -> None:
    """One dot a trial of `steps` steps, a row a method."""
    fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for row, (key, title) in enumerate(GROUPS.items()):
        found = [
            mean(r["mAP"]["all"])
            for r in records
            if group(r["name"]) == key and r["steps"] == steps and "mAP" in r
        ]
        ax.scatter(found, [row] * len(found), s=36, alpha=0.55, linewidths=0)
        if found:
            ax.scatter([np.mean(found)], [row], marker="|", s=500, color="black")
            ax.text(max(found) + 0.25, row, f"{title}: {len(found)} trials", va="center", fontsize=9)
    ax.set_yticks([])
    ax.set_xlim(right=ax.get_xlim()[1] + 4)
    ax.set_xlabel(f"mAP, percent, mean of both directions, 150 validation identities, {steps} steps")
    ax.set_title("Every trial of the search; the bar is the row's mean", fontsize=10)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("log", type=Path)
    p.add_argument("--steps", type=int, default=800)
    p.add_argument("--out", type=Path, default=Path("docs/images"))
    a = p.parse_args()
    records = [json.loads(line) for line in a.log.read_text(encoding="utf-8").splitlines()]
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"recipe-trials-{a.steps}.png"
    draw_trials(records, a.steps, path)
    print(path)


if __name__ == "__main__":
    main()
