"""One training and its evaluation, done once: what it leaves says that it is finished."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.evaluation.evaluate import query_scores
from fmcnet.evaluation.evaluate_model import EvaluatedRun, evaluate_model, roles
from fmcnet.experiments.card import write_model_card
from fmcnet.files import write_atomically
from fmcnet.models.checkpoint import CARD, versions
from fmcnet.synthetic import MANIFEST
from fmcnet.training.folder import CONFIG
from fmcnet.training.trainer import train

logger = logging.getLogger(__name__)

RESULT = "result.json"
QUERIES = "queries.npz"


@dataclass(frozen=True)
class Job:
    """What to train and how to judge it.

    Attributes:
        name: for people. digest: of configuration and data; a result with another digest is not this job's.
        config: a YAML file. data: a dataset's folder or CSV. run: the run folder, ours to clear.
        split: identities it is judged on. device: where it runs.
        keep: False: once it is judged the run folder keeps its result only (searches).
    """

    name: str
    digest: str
    config: str
    data: str
    run: str
    split: str = "test"
    device: str = "auto"
    keep: bool = True

    def commands(self) -> tuple[str, ...]:
        """What does the same by hand."""
        lines = [f"fmcnet train --config {self.config} --data {self.data} --out {self.run}"]
        if self.split == "test":
            lines.append(f"fmcnet evaluate {self.run} --data {self.data} --both")
        return tuple(lines)

    def result(self) -> dict[str, Any] | None:
        """What it found; None until it is finished."""
        try:
            found: dict[str, Any] = json.loads((Path(self.run) / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.get("digest") == self.digest else None


def do_job(job: Job, progress: bool | None = None) -> dict[str, Any]:
    """Train (from the newest checkpoint, if there is one), judge, write `result.json` and `queries.npz`.

    Done before, it only reads. Another process at the same job is waited for.

    Raises:
        FmcnetError: for unusable data or settings; `TrainingError` when training diverges.
        KeyboardInterrupt: on Ctrl-C; the next call goes on from the checkpoint.
    """
    run = Path(job.run)
    with _alone(run):
        done = job.result()
        if done is not None:
            return done
        config = load_config(job.config)
        table = read_dataset(job.data, layout=config.data.layout, trial=config.data.split)
        started = time.perf_counter()
        seconds, steps = 0.0, 0
        if not (run / CARD).is_file():
            if run.is_dir() and not (run / CONFIG).is_file():
                shutil.rmtree(run)  # killed before it had begun
            summary = train(
                config, table, run, resume=True, device=job.device, progress=progress, description=job.name
            )
            seconds, steps = summary.seconds, summary.steps - summary.resumed_from
        trained = time.perf_counter()
        judged = evaluate_model(run, table, split=job.split, device=job.device, progress=progress)
        _save_queries(judged, run / QUERIES)
        result = {
            "name": job.name,
            "digest": job.digest,
            "commands": list(job.commands()),
            "commit": commit(),
            "split": job.split,
            "device": str(judged.encoder.device),
            "versions": versions(),
            "variant": judged.encoder.model.variant,
            "parameters": sum(p.numel() for p in judged.encoder.model.parameters()),
            "dimensions": int(judged.embeddings.features.shape[1]),
            "steps": judged.encoder.card.step,
            "images_seen": judged.encoder.card.step * 2 * config.data.identities * config.data.images,
            "steps_of_last_call": steps,
            "seconds_of_last_call": {"train": seconds, "evaluate": time.perf_counter() - trained},
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "evaluations": [one.to_dict() for one in judged.evaluations],
        }
        if job.keep:
            write_model_card(run, judged.encoder.card, result, generated=(table.root / MANIFEST).is_file())
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(run / RESULT, lambda path: path.write_text(text, encoding="utf-8"))
        # Only now: a finished run is whole without them, and a study has many.
        for leftover in ("checkpoints",) if job.keep else ("checkpoints", "embeddings", "model.safetensors"):
            path = run / leftover
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        logger.debug("%s: %.0f s", job.name, time.perf_counter() - started)
        return result


def load_queries(run: str | Path) -> dict[str, dict[str, NDArray[Any]]]:
    """What `do_job` kept of each query: by direction "row", "ap" and "hit", each (Q,)."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    with np.load(Path(run) / QUERIES, allow_pickle=False) as stored:
        for name in stored.files:
            direction, column = name.split("_")
            found.setdefault(direction, {})[column] = stored[name]
    return found


def _save_queries(judged: EvaluatedRun, path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for one in judged.evaluations:
        scored = query_scores(
            judged.embeddings,
            one.protocol,
            distance=one.result.distance,
            query_mask=roles(judged.table, "query"),
            gallery_mask=roles(judged.table, "gallery"),
        )
        arrays |= {
            f"{one.direction}_row": scored.row,
            f"{one.direction}_ap": scored.ap,
            f"{one.direction}_hit": scored.hit,
        }

    def write(target: Path) -> None:
        with target.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def commit() -> str:
    """The git commit of the code that runs, "+ changes" where files differ from it, "" outside a repository."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)  # not some repository around us
        if not head or not tracked:
            return ""
        return head + (
            " + changes" if git("status", "--porcelain", "--untracked-files=no", "--", "..") else ""
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""


def at(job: Job, device: str) -> Job:
    """The job on another device."""
    return replace(job, device=device)


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep other processes from the same run; the lock goes with the process, whatever ends it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_name(f".{run.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
