"""A run of a study is `train` and `evaluate`. Runs are completed one after another, or by worker processes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.config import Config
from fmcnet.data.readers import read_dataset
from fmcnet.data.table import Table
from fmcnet.errors import FmcnetError
from fmcnet.evaluation.evaluate import query_scores
from fmcnet.evaluation.evaluate_model import EvaluatedRun, evaluate_model, role_masks
from fmcnet.experiments.model_card import write_model_card
from fmcnet.experiments.writing import write_json, write_text
from fmcnet.files import lock_file, write_atomically
from fmcnet.interrupt import ignored_broken_pipes
from fmcnet.models.card import CARD, versions
from fmcnet.parsing import read_json, read_npz
from fmcnet.synthetic import MANIFEST
from fmcnet.training.folder import CONFIG
from fmcnet.training.trainer import train

logger = logging.getLogger(__name__)

RESULT = "result.json"
QUERIES = "queries.npz"
LOGS = "logs"
SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 30.0
"""Seconds that a worker has to write a checkpoint and end."""


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


def find_devices(device: str) -> tuple[str, ...]:
    """Every GPU for "auto" and "cuda" where there are several, else the named device."""
    count = torch.cuda.device_count()
    if device in ("auto", "cuda") and count > 1:
        return tuple(f"cuda:{number}" for number in range(count))
    return (device,)


def complete_runs(
    runs: Sequence[StudyRun],
    workers: int = 1,
    *,
    device: str = "auto",
    progress: bool | None = None,
    report: Callable[[StudyRun, int, int], None] = lambda run, done, total: None,
) -> None:
    """Complete all runs that are not finished. A run that fails does not stop the others.

    Args:
        runs: in order.
        workers: processes of one CPU thread each, at least one a device; 1: this process. A script that asks for
            several needs `if __name__ == "__main__":`, as `multiprocessing` does.
        device: "auto" and "cuda" use all GPUs.
        progress: show a bar for each training (one worker only).
        report: called after each run with the run, the number of finished runs and of all.

    Raises:
        FmcnetError: at the end, when runs failed, with the reason of each.
        KeyboardInterrupt: on Ctrl-C, when all trainings have written a checkpoint.
    """
    waiting = [run for run in runs if run.result() is None]
    devices = find_devices(device)
    workers = min(max(workers, len(devices)), len(waiting))
    done, failures = len(runs) - len(waiting), {}
    completed: Generator[tuple[StudyRun, str], None, None]
    if workers > 1:
        completed = _complete_in_processes(waiting, workers, devices)
    else:
        completed = ((run, _try(run, devices[0], progress)) for run in waiting)
    with contextlib.closing(completed):
        for run, error in completed:
            if error:
                failures[run.name] = error
                logger.warning("%s failed: %s", run.name, error)
            else:
                done += 1
                report(run, done, len(runs))
    if failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise FmcnetError(f"{len(failures)} of {len(runs)} runs failed; the others are done:\n{listed}")


def _try(run: StudyRun, device: str, progress: bool | None) -> str:
    """Complete a run; the reason where it fails, else ""."""
    try:
        run.complete(device, progress)
    except FmcnetError as error:
        return str(error)
    return ""


def _complete_in_processes(
    runs: Sequence[StudyRun], workers: int, devices: tuple[str, ...]
) -> Generator[tuple[StudyRun, str], None, None]:
    """Complete runs in a process each, `workers` at a time; each run with the reason where it failed, else ""."""
    logs = runs[0].study / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    waiting, idle = deque(runs), list(range(workers))
    running: dict[Connection, tuple[StudyRun, int, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                run, worker = waiting.popleft(), idle.pop(0)
                answer, sender = SPAWN.Pipe(duplex=False)
                work = (run, devices[worker % len(devices)], logs / f"worker-{worker}.log", sender)
                process: BaseProcess = SPAWN.Process(target=_work, args=work)
                try:
                    with ignored_broken_pipes(), _one_thread_without_ctrl_c():
                        process.start()
                        running[answer] = run, worker, process
                except OSError as reason:
                    answer.close()
                    idle.append(worker)
                    yield run, f"its worker process cannot be started: {reason}"
                finally:
                    sender.close()
            ready = wait(list(running))
            for answer in [one for one in running if one in ready]:
                run, worker, process = running.pop(answer)
                try:
                    error = answer.recv()
                    process.join(PATIENCE)
                    process.kill()  # one that hangs while it ends
                except (EOFError, OSError):  # it ended before or while it answered
                    process.join()
                    log = logs / f"worker-{worker}.log"
                    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
                    code, end = process.exitcode, " | ".join(lines[-3:])
                    error = f"its worker process ended (exit code {code}); {log} ends with: {end}"
                idle.append(worker)
                yield run, error
    finally:  # on Ctrl-C: each training writes a checkpoint and ends
        for _, _, process in running.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for _, _, process in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()


@contextlib.contextmanager
def _one_thread_without_ctrl_c() -> Iterator[None]:
    """Processes started here have one CPU thread and ignore Ctrl-C: this process ends them by SIGTERM."""
    masks, threads = hasattr(signal, "pthread_sigmask"), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    if masks:
        resource_tracker.ensure_running()  # its start, else within the first process's, lifts the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
        if masks:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _work(run: StudyRun, device: str, log: Path, answer: Connection) -> None:
    """Complete a run in this process of its own, and send the reason where it fails, else ""."""
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        error = _try(run, device, progress=False)
    except KeyboardInterrupt:  # SIGTERM: a checkpoint is written
        return
    except Exception as fault:  # as a GPU that ran out of memory: the next run has a chance
        logger.exception("%s failed", run.name)
        error = f"{type(fault).__name__}: {fault}"
    answer.send(error)


def _end_with_parent() -> None:
    """When the study is killed, training writes a checkpoint and this process ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:  # a training that has just ended does not hear the first signal
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
