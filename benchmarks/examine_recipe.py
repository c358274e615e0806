"""Train a list of named settings on the search's world and say what each part of the descriptor finds.

    python benchmarks/examine_recipe.py trials.txt --out scratch/examine --steps 800 --seeds 0 --jobs 2

A line of the list is `name: section.key=value section.key=value ...` over `--config`; `#` begins a comment. The world
has other people and cameras than any study's (seed 1000), and its 150 validation identities are searched: mAP in
percent, both directions. Besides the whole descriptor it measures its parts: F_sh alone, F_fu alone, the image's
own specific feature against the other modality's generated one and the other way round. Every trial is a line of
OUT/log.jsonl; a finished one is never repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fmcnet.config import Config, load_config
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.errors import TrainingError
from fmcnet.experiments.runs import commit
from fmcnet.synthetic import generate

WORLD = 1000
AMOUNTS = {"val_ids": 150, "test_ids": 2}


def read_trials(path: Path) -> dict[str, tuple[str, ...]]:
    """Overrides by the trial's name."""
    trials: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            name, _, settings = text.partition(":")
            trials[name.strip()] = tuple(settings.split())
    return trials


def parts(run: Path, table: Table, config: Config) -> dict[str, dict[str, float]]:
    """mAP in percent of each part of the descriptor, by direction."""
    import numpy as np
    import torch

    from fmcnet.data.cache import ImageCache
    from fmcnet.evaluation.evaluate import evaluate
    from fmcnet.evaluation.evaluate_model import protocols_for
    from fmcnet.inference.encoder import load
    from fmcnet.types import Embeddings, Modality

    rows = table.select(split="val")
    encoder = load(run, "auto")
    model, size = encoder.model, config.data
    images = ImageCache(rows, size.height, size.width, folder=size.cache).images
    whole = encoder.embed_table(rows)
    found: dict[str, Any] = {"all": torch.from_numpy(whole.features)}
    if model.decomposition.has_specific:
        features: dict[str, Any] = {}
        with torch.inference_mode():
            for modality in Modality:
                mine = np.flatnonzero(rows.modality == modality.code)
                for at in range(0, len(mine), 128):
                    batch = mine[at : at + 128]
                    x = torch.from_numpy(np.ascontiguousarray(images[batch])).permute(0, 3, 1, 2)
                    x = x.to(encoder.device)
                    sh, sp, made = model.features(x, modality)
                    values = {"shared": sh, "own": sp}
                    if made is not None:
                        values["made"] = made
                        if model.fusion is not None:
                            values["fused"] = model.fusion(sh, sp, made)[:, sh.shape[1] :]
                    for key, value in values.items():
                        assert value is not None
                        there = features.setdefault(key, torch.zeros(len(rows), value.shape[1]))
                        there[batch] = value.float().cpu()
        found["shared"] = features["shared"]
        for key in ("own", "fused"):
            if key in features:
                found[key] = features[key]
        if "made" in features:
            night = torch.from_numpy(rows.modality == Modality.INFRARED.code)[:, None]
            found["own night, made day"] = torch.where(night, features["own"], features["made"])
            found["made night, own day"] = torch.where(night, features["made"], features["own"])
            if "fused" in features:
                unit = torch.nn.functional.normalize
                day_first = torch.cat([found["made night, own day"], found["own night, made day"]], dim=1)
                found["side by side"] = torch.cat([features["shared"], day_first], dim=1)
                for weight in (0.5, 1.0):
                    found[f"fused at {weight:g}"] = torch.cat(
                        [unit(features["shared"]), weight * unit(features["fused"])], dim=1
                    )
        if "made" in features:
            for weight in (0.0, 0.25, 0.35, 0.5, 0.7):
                model.specific_weight = weight
                found[f"weight {weight:g}"] = torch.from_numpy(encoder.embed_table(rows).features)
    out: dict[str, dict[str, float]] = {}
    for name, feature in found.items():
        embedded = Embeddings(
            feature.numpy(), whole.pid, whole.camid, whole.modality, whole.index, whole.name
        )
        out[name] = {
            d: round(100 * evaluate(embedded, p).mean["mAP"], 3)
            for d, p in protocols_for(rows, config.evaluation).items()
        }
    return out


def do(name: str, settings: tuple[str, ...], seed: int, a: argparse.Namespace) -> None:
    """One trial, in this process; a line of the log."""
    from fmcnet.experiments.features import collect, measure
    from fmcnet.inference.encoder import load
    from fmcnet.training.loggers import read_log
    from fmcnet.training.trainer import train

    logging.getLogger("fmcnet.models").setLevel(logging.ERROR)
    items = [*a.override, *settings, "evaluation.direction=both", "evaluation.draw=seeded"]
    items += ["training.validate_every=0", f"training.seed={seed}", "training.epochs=1"]
    config = load_config(a.config, [*items, f"training.steps_per_epoch={a.steps}"])
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    log = a.out / "log.jsonl"
    held = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    if any(json.loads(line)["digest"] == digest for line in held):
        return
    table = read_dataset(a.data)
    run = a.out / "runs" / digest
    started = time.perf_counter()
    record: dict[str, Any] = {"name": name, "settings": list(settings), "seed": seed, "steps": a.steps}
    try:
        train(config, table, run, resume=run.is_dir(), device=a.device, progress=False)
        record["mAP"] = parts(run, table, config)
        features = collect(load(run, "auto"), table.select(split="val"), progress=False)
        record["numbers"] = measure(features)
        record["last"] = read_log(run)[-1]
    except TrainingError as error:  # a trial that diverges is a finding
        record["failed"] = str(error)
    record |= {"seconds": round(time.perf_counter() - started), "digest": digest, "commit": commit()}
    shutil.rmtree(run, ignore_errors=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    shown = {k: round(sum(v.values()) / len(v), 2) for k, v in record.get("mAP", {}).items()}
    print({k: round(v, 2) for k, v in record.get("numbers", {}).items() if v is not None})
    print(f"{name} seed {seed}: {record.get('failed') or shown}  {record['seconds']} s", flush=True)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("trials", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--data", type=Path, help="the world, where it is already made; default: OUT/data")
    p.add_argument("--config", default="generated")
    p.add_argument("--steps", type=int, default=800)
    p.add_argument("--seeds", default="0")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--device", default="auto")
    p.add_argument("--override", action="append", default=[], help="a setting of all trials, key.sub=value")
    p.add_argument("--only", help=argparse.SUPPRESS)
    return p


def main() -> None:
    a = parser().parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    a.data = a.data or a.out / "data"
    trials = read_trials(a.trials)
    if a.only:
        name, seed = a.only.rsplit("@", 1)
        do(name, trials[name], int(seed), a)
        return
    generate("sysu", "small", WORLD, a.data, progress=True, **AMOUNTS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(one: str) -> None:
        subprocess.run([sys.executable, *sys.argv, "--only", one], env=environment, check=True)

    with ThreadPoolExecutor(a.jobs) as pool:
        list(pool.map(start, [f"{name}@{seed}" for seed in a.seeds.split(",") for name in trials]))


if __name__ == "__main__":
    main()
