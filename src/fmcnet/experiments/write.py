"""The folder of a study's report: results.md, results.json, figures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.readers import read_dataset
from fmcnet.experiments import pictures
from fmcnet.experiments.features import Features, collect, numbers
from fmcnet.experiments.jobs import Job, commit
from fmcnet.experiments.page import page
from fmcnet.experiments.plan import Plan
from fmcnet.experiments.results import study_facts
from fmcnet.experiments.rows import Study
from fmcnet.files import write_atomically
from fmcnet.inference.encoder import load
from fmcnet.models.checkpoint import versions
from fmcnet.training.loggers import read_log

logger = logging.getLogger(__name__)

NUMBERS = "numbers.json"
Pictures = list[tuple[str, Path]]


def write_study(
    studies: Sequence[Study],
    plan: Plan,
    jobs: Sequence[Job],
    out: Path,
    *,
    seeds: Sequence[int],
    crossed: bool,
    data: dict[str, Any],
    command: str,
    failed: str = "",
    progress: bool | None = None,
) -> dict[str, Any]:
    """Write results.md, results.json and figures/ from what is finished.

    Args:
        studies: tables and figures wanted. plan: whose runs. jobs: the runs' jobs, finished or not.
        out: the folder. seeds: asked for. crossed: all seeds have one test set.
        data: facts of the dataset. command: that asked for the study. failed: which runs failed and why.
        progress: show bars; None: on a terminal only.

    Returns:
        The facts, with "report" (the path of results.md).
    """
    by_name = {job.name: job for job in jobs}
    finished = [(run, result) for run in plan.runs if (result := by_name[run.name].result()) is not None]
    facts: dict[str, Any] = {
        "command": command,
        "written": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": versions(),
        "data": data,
        "seeds": list(seeds),
        "crossed": crossed,
        "steps": sorted({result["steps"] for _, result in finished}),
        "images_seen": sorted({result["images_seen"] for _, result in finished}),
        "failed": failed,
        "studies": [],
        "runs": [
            {
                **{key: result[key] for key in ("name", "steps", "images_seen", "parameters", "device")},
                **{key: result[key] for key in ("commands", "commit", "finished", "versions")},
                "rows": list(run.rows),
                "seed": run.seed,
            }
            for run, result in finished
        ],
    }
    drawable = all(find_spec(module) for module in ("matplotlib", "sklearn"))
    if not drawable:
        logger.warning(
            "no pictures and no numbers of Figures 4 and 5: pip install 'fmcnet[plot]' brings both"
        )
    drawn: dict[str, Pictures] = {}
    for study in studies:
        found = study_facts(study, plan.names, by_name, seeds, crossed=crossed)
        if drawable:
            if study.maps:
                found["numbers"], drawn[study.name] = _figure(study, plan, by_name, seeds, out, progress)
            else:
                drawn[study.name] = _table_pictures(found, out)
        facts["studies"].append(found)
    out.mkdir(parents=True, exist_ok=True)
    places = {
        name: [(title, path.relative_to(out).as_posix()) for title, path in several]
        for name, several in drawn.items()
    }
    facts["pictures"] = places
    text, content = page(facts, places), json.dumps(facts, indent=1) + "\n"
    write_atomically(out / "results.json", lambda path: path.write_text(content, encoding="utf-8"))
    report = write_atomically(out / "results.md", lambda path: path.write_text(text, encoding="utf-8"))
    return {**facts, "report": str(report)}


def _table_pictures(found: dict[str, Any], out: Path) -> Pictures:
    made: Pictures = []
    if any(row["figures"] for row in found["rows"]):
        path = out / "figures" / f"{found['name']}.png"
        made.append((f"{found['title']}: mean, spread and each seed", pictures.rows_picture(found, path)))
    if found["pairs"]:
        path = out / "figures" / f"{found['name']}-paired.png"
        made.append(("Paired differences of mAP", pictures.pairs_picture(found, path)))
    return made


def _figure(
    study: Study,
    plan: Plan,
    jobs: dict[str, Job],
    seeds: Sequence[int],
    out: Path,
    progress: bool | None,
) -> tuple[dict[str, Any], Pictures]:
    """Numbers by row's title (mean and spread over seeds), maps of the first seed, w1 and w2 over training."""
    measured: dict[str, Any] = {}
    clouds: dict[str, Features] = {}
    logs: dict[str, list[dict[str, Any]]] = {}
    for row in study.rows:
        title = {"md-none": "without L_MD", "md-all": "with L_MD"}.get(row.key, row.title)
        several: list[dict[str, float | None]] = []
        for seed in seeds:
            job = jobs[plan.names[row.key, seed]]
            if job.result() is None:
                continue
            features = None
            if title not in clouds:
                features = clouds[title] = _features(job, progress)
            several.append(_numbers(job, features, progress))
            logs[f"{title}, seed {seed}"] = read_log(job.run)
        if several:
            measured[title] = {name: _spread([one[name] for one in several]) for name in several[0]}
    if not clouds:
        return {}, []
    made: Pictures = []
    if study.name == "figure5":
        path = pictures.figure5(list(clouds.values())[-1], out / "figures" / "figure5.png")
        made.append((f"t-SNE, test identities, seed {seeds[0]}", path))
        weights = pictures.fusion_picture(logs, out / "figures" / "fusion.png")
        if weights:
            made.append(("w1 and w2 of (15) over training", weights))
    else:
        path = pictures.figure4(clouds, out / "figures" / f"{study.name}.png")
        made.append((f"t-SNE, test identities, seed {seeds[0]}", path))
    return measured, made


def _features(job: Job, progress: bool | None) -> Features:
    encoder = load(job.run, job.device)
    config = encoder.card.config
    table = read_dataset(job.data, layout=config.data.layout, trial=config.data.split)
    return collect(encoder, table.select(split=job.split), progress=progress)


def _numbers(job: Job, features: Features | None, progress: bool | None) -> dict[str, float | None]:
    """Measured once and kept beside the run's result."""
    kept = Path(job.run) / NUMBERS
    try:
        stored: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if stored.pop("digest") == job.digest:
            return stored
    except (OSError, ValueError, KeyError):
        pass
    found = numbers(features or _features(job, progress)).to_dict()
    fusion = load(job.run, "cpu").model.fusion
    weights = [float(weight) for weight in fusion.weights()] if fusion else [None, None]
    found |= dict(zip(("w1", "w2"), weights, strict=True))
    text = json.dumps({"digest": job.digest, **found}, indent=1) + "\n"
    write_atomically(kept, lambda path: path.write_text(text, encoding="utf-8"))
    return found


def _spread(values: list[float | None]) -> dict[str, float | None] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": std}
