"""What smaller embeddings cost: mAP, Rank-1 and bytes of one model's descriptors, in full, in float16 and projected.

    python benchmarks/compact.py --run RUN --data DATA [--also DATA...] [--dims 128 64] [--json FILE]

RUN is a run folder or a shipped model's name. Projections are learnt as `fmcnet project` learns them, from the
training images of DATA, and judged on its test images and on those of every other dataset named; none of these people
was learnt from. float16: both sides of every comparison are rounded. Percent, by the dataset's protocol; no timing:
the same on any machine, up to rounding.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.readers import read_dataset
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.export.parity import scores
from fmcnet.inference.fit_projection import fit_projection, learnt_from
from fmcnet.inference.projection import METHODS, l2_normalize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    encoder = Encoder.from_pretrained(arguments.run, device="cpu")
    config = encoder.card.config

    def read(root):
        return read_dataset(root, layout=config.data.layout, regdb_split=config.data.split)

    def embed(table):
        return encoder.embed_table(table, progress=False).features

    train = learnt_from(encoder.card, read(arguments.data))
    features = embed(train)
    width = features.shape[1]
    maps = {f"{width}, as it is": l2_normalize}
    for method in METHODS:
        for dim in (width, *arguments.dims):
            maps[f"{dim}, {method}"] = fit_projection(features, train.pid, dim, method)
    tests = [(root, read(root).select(split="test")) for root in (arguments.data, *arguments.also)]
    known = [(root, table, embed(table)) for root, table in tests]
    rows = []
    for name, smaller in maps.items():
        for kind in ("float32", "float16"):
            row: dict[str, Any] = {
                "form": name,
                "dtype": kind,
                "bytes": int(name.split(",")[0]) * np.dtype(kind).itemsize,
            }
            for root, table, found in known:
                kept = l2_normalize(smaller(found)).astype(kind).astype(np.float32)
                row[name_of(root)] = scores(kept, table, config.evaluation)
            rows.append(row)
    report = {
        "what": f"{arguments.run}, digest {encoder.digest}: descriptors of {width} values",
        "learnt_from": f"{len(train)} training images of {len(np.unique(train.pid))} identities, "
        f"{name_of(arguments.data)}",
        "test": {
            name_of(root): f"{len(t)} images of {len(np.unique(t.pid))} identities" for root, t in tests
        },
        "rows": rows,
    }
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def name_of(root: Path) -> str:
    """What a dataset is: of the generated benchmark, how it was made; else its folder's name."""
    made = root / "generated.json"
    if not made.is_file():
        return root.name
    facts = json.loads(made.read_text())
    return f"generated {facts['layout']}, {facts['preset']}, seed {facts['seed']}"


def show(report: dict) -> None:
    """The report as a table; changes are against the descriptors as they are."""
    rows, worlds = report["rows"], list(report["test"])
    ways = list(rows[0][worlds[0]])
    heads = ["values", "kept as", "bytes"]
    heads += [f"{world}: {label} {way}" for world in worlds for way in ways for label in ("Rank-1", "mAP")]
    print(f"{report['what']}; {report['learnt_from']}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in rows:
        cells = [row["form"], row["dtype"], str(row["bytes"])]
        for world in worlds:
            for way in ways:
                first = rows[0][world][way]["mAP"]
                found = row[world][way]
                change = "" if row is rows[0] else f" ({found['mAP'] - first:+.2f})"
                cells += [f"{found['rank1']:.2f}", f"{found['mAP']:.2f}{change}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
