"""A run of a study: one training, its evaluation, and the model card of its weights."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.config import Config
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.evaluation.evaluate import query_scores
from fmcnet.evaluation.evaluate_model import EvaluatedRun, evaluate_model, role_masks
from fmcnet.experiments.rows import DIRECTION_NAMES
from fmcnet.files import lock_file, write_atomically, write_json, write_text
from fmcnet.markdown import markdown_page, markdown_table
from fmcnet.models.card import CARD, PROJECTION, WEIGHTS, ModelCard, versions
from fmcnet.models.checkpoint import weights_digest
from fmcnet.parsing import read_json, read_npz
from fmcnet.synthetic import MANIFEST
from fmcnet.training.run_folder import CONFIG
from fmcnet.training.trainer import train

RESULT = "result.json"
QUERIES = "queries.npz"
MODEL_CARD = "README.md"

_LIMITS = """## For what, and for what not

Trained on GENERATED images of bodies that a renderer draws: for trying the commands, for tests, for comparing
methods under equal conditions. It has never seen a photograph: what it says of real people is worth nothing. To
search real cameras, train on them. Whatever the weights, a similarity is no proof of identity, and finding people
across cameras is subject to law."""

_REAL_LIMITS = """## For what, and for what not

For research on the dataset named above, under its agreement. A similarity is no proof of identity; figures on other
cameras, seasons and people than those of the dataset are unknown; finding people across cameras is subject to law."""


@dataclass(frozen=True)
class StudyRun:
    """One training and its evaluation on the test identities."""

    name: str  # the folder's name: a row's key, the seed and the start of the digest
    digest: str  # 16 hex digits of configuration and data; runs of equal digest are one run
    config: Config
    data: Path  # the dataset's folder or CSV
    study: Path  # the study's folder, which has the run's files in `plans/` and `runs/`
    rows: tuple[str, ...] = ()  # keys of the table rows that show the run
    seed: int = 0  # of the training

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.study / "runs" / self.name

    def commands(self) -> tuple[str, str]:
        """The commands that train and evaluate the same run."""
        return (
            f"fmcnet train --config {self._config_file} --data {self.data} --out {self.folder}",
            f"fmcnet evaluate {self.folder} --data {self.data} --both",
        )

    def write_config(self) -> None:
        """Write the configuration that `commands` names."""
        path, text = self._config_file, self.config.to_yaml()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def table(self) -> Table:
        """Read the dataset."""
        return read_dataset(self.data, layout=self.config.data.layout, regdb_split=self.config.data.split)

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`; None while the run is not finished."""
        try:
            result: dict[str, Any] = read_json(self.folder / RESULT)
        except (OSError, ValueError):
            return None
        return result if result.get("digest") == self.digest else None

    def scores(self) -> str:
        """Rank-1 and mAP of each direction, in percent, for the log."""
        return ", ".join(
            f"{result['direction']} R1 {100 * result['mean']['rank1']:.2f} mAP {100 * result['mean']['mAP']:.2f}"
            for result in (self.result() or {}).get("evaluations", [])
        )

    def queries(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The scores of each query by direction: "row", "ap" and "hit", each (Q,)."""
        scores: dict[str, dict[str, NDArray[Any]]] = {}
        for name, values in read_npz(self.folder / QUERIES).items():
            direction, column = name.split("_")
            scores.setdefault(direction, {})[column] = values
        return scores

    def complete(self, device: str = "auto", progress: bool | None = None) -> dict[str, Any]:
        """Train from the newest checkpoint if there is one, evaluate, write `result.json` and `queries.npz`.

        A finished run is only read. If another process works on the run, wait for it. Returns the content of
        `result.json`.

        Raises:
            FmcnetError: for unusable data or settings; `TrainingError` when training diverges.
            KeyboardInterrupt: on Ctrl-C; the next call continues from the checkpoint.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(self.folder.with_name(f".{self.name}.lock"), timeout=-1):
            return self.result() or self._train_and_evaluate(device, progress)

    @property
    def _config_file(self) -> Path:
        return self.study / "plans" / f"{self.name}.yaml"

    def _train_and_evaluate(self, device: str, progress: bool | None) -> dict[str, Any]:
        folder, table = self.folder, self.table()
        seconds, steps = 0.0, 0
        written_last = PROJECTION if self.config.model.descriptor == "discriminant" else CARD
        if not (folder / written_last).is_file():
            if folder.is_dir() and not (folder / CONFIG).is_file():
                shutil.rmtree(folder)  # killed before training began
            summary = train(
                self.config,
                table,
                folder,
                resume=True,
                device=device,
                progress=progress,
                description=self.name,
            )
            seconds, steps = summary.seconds, summary.steps - summary.resumed_from
        evaluation_start = time.perf_counter()
        evaluated = evaluate_model(folder, table, device=device, progress=progress)
        _write_queries(evaluated, folder / QUERIES)
        card, model = evaluated.encoder.card, evaluated.encoder.model
        result = {
            "name": self.name,
            "digest": self.digest,
            "commands": list(self.commands()),
            "commit": commit(),
            "split": "test",
            "device": str(evaluated.encoder.device),
            "versions": versions(),
            "variant": model.variant,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dimensions": int(evaluated.embeddings.features.shape[1]),
            "steps": card.step,
            "images_seen": card.step * images_per_step(self.config),
            "steps_of_last_call": steps,
            "seconds_of_last_call": {"train": seconds, "evaluate": time.perf_counter() - evaluation_start},
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "evaluations": [evaluation.to_dict() for evaluation in evaluated.evaluations],
        }
        write_model_card(folder, card, result, generated=is_generated(table))
        write_json(folder / RESULT, result)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a finished run does not need them
        return result


def is_generated(table: Table) -> bool:
    """Whether a dataset is the generated benchmark, whose figures are not comparable with published ones."""
    return (table.root / MANIFEST).is_file()


def images_per_step(config: Config) -> int:
    """Images of both modalities in a step of one process."""
    return 2 * config.data.identities * config.data.images * config.training.accumulate


def _write_queries(evaluated: EvaluatedRun, path: Path) -> None:
    arrays: dict[str, Any] = {}
    masks = role_masks(evaluated.table)
    for one in evaluated.evaluations:
        scores = query_scores(evaluated.embeddings, one.protocol, distance=one.result.distance, **masks)
        arrays |= {f"{one.direction}_{column}": getattr(scores, column) for column in ("row", "ap", "hit")}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))


def commit() -> str:
    """The git commit of this code, "+ changes" where files differ from it, "" outside its repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails inside another repository
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "..")
        return git("rev-parse", "--short=12", "HEAD") + (" + changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def write_model_card(run: Path, card: ModelCard, result: dict[str, Any], *, generated: bool) -> Path:
    """Write `README.md` beside the weights, in the form that model hubs read.

    `generated`: trained on the generated benchmark, so under our own licence.

    Raises:
        CheckpointError: when the weights cannot be read.
    """
    digest, size = weights_digest(run / WEIGHTS), (run / WEIGHTS).stat().st_size
    config = card.config
    description = f"FMCNet (CVPR 2022), variant `{result['variant']}`"
    if result["variant"] == "base":
        description = (
            "A baseline in FMCNet's engine: two stems, one shared tail, no FMCNet module (settings below)"
        )
    benchmark = "the **generated** benchmark, in the layout of " if generated else ""
    commit_note = f", commit {result['commit']}" if result["commit"] else ""
    facts = {
        "trained on": f"{benchmark}{card.dataset}, {card.classes} identities",
        "command": f"`{result['commands'][0]}`",
        "seed": config.training.seed,
        "steps, images seen": f"{result['steps']:,}, {result['images_seen']:,}",
        "weights kept": card.selected,
        "code": f"fmcnet {result['versions']['fmcnet']}{commit_note}; torch {result['versions']['torch']}; "
        f"{result['device']}",
        "finished": result["finished"],
        "SHA-256 of names and tensors (`weights_sha256` of `fmcnet info`)": f"`{digest}`",
    }
    rows = []
    for evaluation in result["evaluations"]:
        scores = [evaluation["mean"][key] for key in ("rank1", "rank10", "rank20", "mAP", "mINP")]
        scores = [f"{100 * score:.2f}" for score in (*scores, evaluation["chance_rank1"])]
        distance = "" if evaluation["distance"] == "cosine" else f", {evaluation['distance']}"
        rows.append([DIRECTION_NAMES[evaluation["direction"]] + distance, *scores])
    head = ("direction", "Rank-1", "Rank-10", "Rank-20", "mAP", "mINP", "random order, Rank-1")
    protocols = dict.fromkeys(evaluation["protocol"] for evaluation in result["evaluations"])
    settings = json.dumps(config.model_dump(mode="json"), indent=1)
    parts = [
        f"---\nlicense: {'apache-2.0' if generated else 'other'}\nlibrary_name: fmcnet\n"
        "tags: [person-re-identification, visible-infrared]\n---",
        f"# {result['name']}",
        f"{description}: {result['parameters']:,} weights, {size / 1e6:.1f} MB."
        f" An image of one person ({config.data.height} x {config.data.width}, visible or infrared) becomes a "
        f"descriptor of {result['dimensions']:,} numbers, compared by {card.similarity}.",
        markdown_table(("", ""), facts.items()),
        "## Figures",
        f"Percent, {result['split']} identities, none of them trained on.",
        markdown_table(head, rows),
        "\n".join(f"- {protocol}" for protocol in protocols),
        _LIMITS if generated else _REAL_LIMITS,
        "## Every setting",
        f"```json\n{settings}\n```",
    ]
    return write_text(run / MODEL_CARD, markdown_page(parts))
