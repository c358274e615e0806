"""How hard the generated benchmark is: Rank-1 of chance, a handcrafted matcher, untrained and trained features.

    python benchmarks/hardness.py --data DATA --run RUN

DATA is a generated tree, RUN a trained single-stream network on it (one network for both modalities, identity loss
only):

    fmcnet data generate --preset small --seed 0 --out DATA
    fmcnet train --config generated --data DATA --out RUN model.variant=base model.single_stream=true

Prints a Markdown table (percent, mean of ten draws of one gallery image an identity, never the query's own camera)
and, with --json FILE, keeps it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from handcrafted import handcrafted_features, rank1

from fmcnet.data.images import load_image
from fmcnet.data.readers import read_dataset
from fmcnet.inference.backends import TorchBackend
from fmcnet.inference.encoder import Encoder, load
from fmcnet.models.build import build_model
from fmcnet.types import Modality

PAIRS = (("visible", "visible"), ("infrared", "infrared"), ("infrared", "visible"), ("visible", "infrared"))


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = read_dataset(arguments.data).select(split="test")
    trained = load(arguments.run, "cpu")
    torch.manual_seed(0)
    blank = build_model(trained.card.config.model, trained.card.classes).eval()
    untrained = Encoder(TorchBackend(blank, torch.device("cpu")), trained.card)
    matchers = {
        "handcrafted": handcrafted_features(np.stack([load_image(p) for p in table.full_paths()])),
        "untrained network": unit(untrained.embed_table(table, progress=False).features),
        "trained single-stream network": unit(trained.embed_table(table, progress=False).features),
    }
    rows: dict[str, Any] = {}
    for name, features in matchers.items():
        cells = []
        for query, gallery in PAIRS:
            q = np.flatnonzero(table.modality == Modality(query).code)
            g = np.flatnonzero(table.modality == Modality(gallery).code)
            found, chance = rank1(
                features[q], features[g], table.pid[q], table.pid[g], table.camid[q], table.camid[g]
            )
            cells.append((found, chance))
        rows.setdefault("chance", [c for _, c in cells])
        rows[name] = [f for f, _ in cells]
    print("| matcher | " + " | ".join(f"{q} to {g}" for q, g in PAIRS) + " |\n|---|---|---|---|---|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    if arguments.json:
        facts = {"data": str(arguments.data), "run": str(arguments.run), "rank1_percent": rows}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
