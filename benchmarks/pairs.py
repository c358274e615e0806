"""What pairs of two cameras side by side give: fmcnet-lite, adapted, and trained by `--config pairs`.

    OMP_NUM_THREADS=1 python benchmarks/pairs.py --out scratch/pairs
    OMP_NUM_THREADS=1 python benchmarks/pairs.py --out scratch/pairs --people ../shared/real

Generated people stand before a visible and a thermal camera that are registered to each other. The training knows
which crops are of one moment, and in the second case which moments are of one person, but no name. Scored are other
people: a query's gallery holds everybody's crops of the other camera, of its own person those of other moments only.

With `--people`, the real people of a folder with people.csv and its evaluate.py: each sequence is searched by models
that were adapted to, or trained on the pairs of, the other sequences (leave one sequence out), by the rules of
evaluate.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from numpy.typing import NDArray
from PIL import Image

import fmcnet
from fmcnet.data.pairs import make_pairs
from fmcnet.inference.adapt import Crops, adapt_model
from fmcnet.inference.encoder import Encoder
from fmcnet.synthetic.image import render_pair
from fmcnet.types import Modality

HEIGHT, WIDTH = 192, 96
UNSEEN = 1001
"""Number of the first person who is searched."""
Floats = NDArray[np.float32]


def render(root: Path, people: Sequence[int], moments: int, seed: int) -> None:
    """Write ROOT/visible/PERSON/MOMENT.png and ROOT/infrared/PERSON/MOMENT.png."""
    for person in people:
        for moment in range(1, moments + 1):
            images = None
            for at, modality in enumerate(Modality):
                file = root / str(modality) / f"{person:04}" / f"{moment:02}.png"
                if not file.is_file():
                    images = images or render_pair(seed, person, moment, HEIGHT, WIDTH)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(images[at]).save(file, compress_level=1)


def score(similarity: Floats, queries: Sequence[Path], gallery: Sequence[Path]) -> dict[str, float]:
    """Rank-1 and mAP in percent; the crop of the query's own moment is left out."""
    first, precision = [], []
    for row, query in zip(similarity, queries, strict=True):
        others = [at for at, one in enumerate(gallery) if one.parts[-2:] != query.parts[-2:]]
        order = sorted(others, key=lambda at: (-row[at], at))
        hits = np.flatnonzero([gallery[at].parent.name == query.parent.name for at in order])
        first.append(hits[0] == 0)
        precision.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return {"rank1": round(100 * float(np.mean(first)), 1), "mAP": round(100 * float(np.mean(precision)), 1)}


def search(encoder: Encoder, root: Path) -> dict[str, dict[str, float]]:
    """Both directions, on the people of a folder."""
    files = {m: sorted((root / str(m)).rglob("*.png")) for m in Modality}
    found = {m: np.asarray(encoder.encode([str(f) for f in files[m]], m)) for m in Modality}
    night, day = files[Modality.INFRARED], files[Modality.VISIBLE]
    similarity = found[Modality.INFRARED] @ found[Modality.VISIBLE].T
    return {"i2v": score(similarity, night, day), "v2i": score(similarity.T, day, night)}


def trained(folder: Path, table: Path, settings: Sequence[str]) -> Encoder:
    """A model trained on pairs."""
    run = folder / "run"
    fmcnet.train(
        fmcnet.load_config("pairs", list(settings)),
        fmcnet.read_dataset(table),
        run,
        resume=True,
        device="cpu",
    )
    return fmcnet.load(run, device="cpu")


def generated(args: argparse.Namespace) -> dict[str, Any]:
    """Each way of using the cameras' crops, on people whom no training saw."""
    seen, unseen = args.out / "seen", args.out / "unseen"
    render(seen, range(1, 1 + args.train), args.moments, args.seed)
    render(unseen, range(UNSEEN, UNSEEN + args.test), 4, args.seed)
    day, night = seen / "visible", seen / "infrared"
    crops = Crops.of(day, night)
    adapt_model("fmcnet-lite", crops, args.out / "adapted", overwrite=True, device="cpu", progress=False)
    results: dict[str, dict[str, Any]] = {
        "fmcnet-lite": search(fmcnet.load("fmcnet-lite", device="cpu"), unseen),
        "adapted": search(fmcnet.load(args.out / "adapted", device="cpu"), unseen),
    }
    for name, folders in (("pairs", False), ("pairs, tracks known", True)):
        folder = args.out / name.replace(", ", "-").replace(" ", "-")
        (folder / "pairs.csv").unlink(missing_ok=True)
        report = make_pairs(day, night, folder / "pairs.csv", folders=folders)
        encoder = trained(folder, report.table, args.settings)
        results[name] = {"identities": report.identities, **search(encoder, unseen)}
        print(name, json.dumps(results[name]), flush=True)
    return results


def real(args: argparse.Namespace) -> dict[str, Any]:
    """Leave one sequence out."""
    spec = importlib.util.spec_from_file_location("evaluate", args.people / "evaluate.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{args.people} has no evaluate.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    night, day = rules.read(args.people)
    rows: dict[str, dict[int, Floats]] = {"adapted": {}, "pairs": {}}
    columns: dict[str, dict[int, Floats]] = {"adapted": {}, "pairs": {}}
    for held in sorted({row["sequence"] for row in night}):
        folder = args.out / f"without-{held}"
        for word, side in (("day", day), ("night", night)):
            shutil.rmtree(folder / word, ignore_errors=True)
            (folder / word).mkdir(parents=True)
            for row in side:
                if row["sequence"] != held:
                    path = Path(row["path"]).resolve()
                    (folder / word / path.name.replace("_vi.", "_vis.")).symlink_to(path)
        (folder / "pairs.csv").unlink(missing_ok=True)
        report = make_pairs(folder / "day", folder / "night", folder / "pairs.csv")
        print(f"without {held}: {report.pairs} pairs", flush=True)
        crops = Crops.of(folder / "day", folder / "night")
        adapted = folder / "adapted"
        adapt_model("fmcnet-lite", crops, adapted, overwrite=True, device="cpu", progress=False)
        encoders = {
            "adapted": fmcnet.load(adapted, device="cpu"),
            "pairs": trained(folder, report.table, args.settings),
        }
        for name, encoder in encoders.items():
            found = [
                np.asarray(encoder.encode([row["path"] for row in side], kind))
                for side, kind in ((night, "infrared"), (day, "visible"))
            ]
            similarity = found[0] @ found[1].T
            rows[name] |= {at: similarity[at] for at, row in enumerate(night) if row["sequence"] == held}
            columns[name] |= {at: similarity[:, at] for at, row in enumerate(day) if row["sequence"] == held}
    return {
        f"leave one sequence out, {name}": {
            "i2v": rules.measure(np.stack([rows[name][at] for at in range(len(night))]), night, day),
            "v2i": rules.measure(np.stack([columns[name][at] for at in range(len(day))]), day, night),
        }
        for name in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=Path, help="real people, with evaluate.py")
    parser.add_argument("--train", type=int, default=300, help="people in the pairs")
    parser.add_argument("--moments", type=int, default=3, help="of each of them")
    parser.add_argument("--test", type=int, default=100, help="other people, who are searched")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="of the training, as training.lr=0.001")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = real(args) if args.people else generated(args)
    content = {"machine": processor(), "command": " ".join(sys.argv[1:]), "results": results}
    print(json.dumps(content, indent=1))
    if not args.people:  # figures of real people go to README by hand
        (args.out / "pairs.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
