"""A run of a study: one training and its evaluation."""

from __future__ import annotations

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
from fmcnet.experiments.model_card import write_model_card
from fmcnet.experiments.writing import write_json, write_text
from fmcnet.files import lock_file, write_atomically
from fmcnet.models.card import CARD, versions
from fmcnet.parsing import read_json, read_npz
from fmcnet.synthetic import MANIFEST
from fmcnet.training.folder import CONFIG
from fmcnet.training.trainer import train

RESULT = "result.json"
QUERIES = "queries.npz"


@dataclass(frozen=True)
class StudyRun:
    """One training and its evaluation on the test identities.

    Attributes:
        name: the folder's name: a row's key, the seed and the start of the digest.
        digest: 16 hex digits of configuration and data. Runs of equal digest are one run.
        config: every setting.
        data: the dataset's folder or CSV.
        study: the study's folder, which has the run's files in `plans/` and `runs/`.
        rows: keys of the table rows that show the run.
        seed: of the training.
    """

    name: str
    digest: str
    config: Config
    data: Path
    study: Path
    rows: tuple[str, ...] = ()
    seed: int = 0

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
        return read_dataset(self.data, layout=self.config.data.layout, trial=self.config.data.split)

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`; None while the run is not finished."""
        try:
            found: dict[str, Any] = read_json(self.folder / RESULT)
        except (OSError, ValueError):
            return None
        return found if found.get("digest") == self.digest else None

    def queries(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The scores of each query by direction: "row", "ap" and "hit", each (Q,)."""
        found: dict[str, dict[str, NDArray[Any]]] = {}
        for name, values in read_npz(self.folder / QUERIES).items():
            direction, column = name.split("_")
            found.setdefault(direction, {})[column] = values
        return found

    def complete(self, device: str = "auto", progress: bool | None = None) -> dict[str, Any]:
        """Train from the newest checkpoint if there is one, evaluate, write `result.json` and `queries.npz`.

        A finished run is only read. A run that another process works on is waited for.

        Args:
            device: where to train and embed.
            progress: show bars; None: on a terminal only.

        Returns:
            The content of `result.json`.

        Raises:
            FmcnetError: for unusable data or settings; `TrainingError` when training diverges.
            KeyboardInterrupt: on Ctrl-C; the next call goes on from the checkpoint.
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
        if not (folder / CARD).is_file():
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
        trained = time.perf_counter()
        judged = evaluate_model(folder, table, device=device, progress=progress)
        _write_queries(judged, folder / QUERIES)
        card, model = judged.encoder.card, judged.encoder.model
        result = {
            "name": self.name,
            "digest": self.digest,
            "commands": list(self.commands()),
            "commit": commit(),
            "split": "test",
            "device": str(judged.encoder.device),
            "versions": versions(),
            "variant": model.variant,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dimensions": int(judged.embeddings.features.shape[1]),
            "steps": card.step,
            "images_seen": card.step * 2 * self.config.data.identities * self.config.data.images,
            "steps_of_last_call": steps,
            "seconds_of_last_call": {"train": seconds, "evaluate": time.perf_counter() - trained},
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "evaluations": [one.to_dict() for one in judged.evaluations],
        }
        write_model_card(folder, card, result, generated=is_generated(table))
        write_json(folder / RESULT, result)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a finished run does not need them
        return result


def is_generated(table: Table) -> bool:
    """Whether a dataset is of the generated benchmark, whose figures compare with no published one."""
    return (table.root / MANIFEST).is_file()


def _write_queries(judged: EvaluatedRun, path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for one in judged.evaluations:
        masks = role_masks(judged.table)
        scores = query_scores(judged.embeddings, one.protocol, distance=one.result.distance, **masks)
        arrays |= {f"{one.direction}_{column}": getattr(scores, column) for column in ("row", "ap", "hit")}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def commit() -> str:
    """The git commit of this code, "+ changes" where files differ from it, "" outside its repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails where another repository is around us
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "..")
        return git("rev-parse", "--short=12", "HEAD") + (" + changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return ""
