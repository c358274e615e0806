"""Worker processes of one CPU thread each: the runs of a study, and the trainings of the demo."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING

from fmcnet.errors import FmcnetError, Interrupted

if TYPE_CHECKING:
    from fmcnet.experiments.runs import StudyRun

logger = logging.getLogger(__name__)

LOGS = "logs"
PATIENCE = 30.0
"""Seconds for a worker to write a checkpoint and end."""


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads for `work_in_process`, and the file descriptor that it takes.

    At the end of the block, on Ctrl-C, on SIGTERM, and if this process is killed, that descriptor ends. Each training
    in a worker then writes a checkpoint and ends.
    """
    previous_handler = None
    with contextlib.suppress(ValueError):  # outside the main thread
        previous_handler = signal.signal(signal.SIGTERM, _raise_interrupted)
    lifeline, end = os.pipe()
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool, lifeline
    finally:
        os.close(end)
        pool.shutdown(cancel_futures=True)
        os.close(lifeline)
        if previous_handler is not None:
            signal.signal(signal.SIGTERM, previous_handler)


def _raise_interrupted(*_: object) -> None:
    raise Interrupted("terminated; the same command continues", 143)


def work_in_process(work: Callable[[], object], log: Path, lifeline: int) -> str:
    """Call `work` in a process of one CPU thread; the reason where it fails, else "".

    Args:
        work: can be pickled.
        log: gets, at its end, what the process prints.
        lifeline: of `worker_pool`.
    """
    # As multiprocessing starts a process: with the parent's path and main module, which may register a backbone.
    preparation = spawn.get_preparation_data("worker")
    del preparation["authkey"]  # it may not be pickled
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from fmcnet.experiments.workers import do_work; do_work()"
    )
    command = [sys.executable, "-c", code, pickle.dumps((preparation, pickle.dumps(work))).hex()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        with log.open("ab") as stream:
            ended = subprocess.run(
                command, stdin=lifeline, stdout=subprocess.PIPE, stderr=stream, env=environment
            )
    except OSError as failure:
        return f"its worker process cannot be started: {failure}"
    if ended.returncode == 0:
        return ended.stdout.decode()
    lines = log.read_text(errors="replace").splitlines()[-3:] if log.is_file() else []
    return f"its worker process ended (exit code {ended.returncode}); {log} ends with: {' | '.join(lines)}"


def do_work() -> None:
    """In a worker: do the work that the argument holds, and answer with the reason where it fails, else ""."""
    if hasattr(signal, "pthread_sigmask"):  # on Ctrl-C, the parent ends this process
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer = os.dup(1)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reason = ""
    try:
        preparation, work = pickle.loads(bytes.fromhex(sys.argv[1]))
        spawn.prepare(preparation)
        pickle.loads(work)()
    except KeyboardInterrupt:  # SIGTERM: a checkpoint is written
        reason = "interrupted"
    except FmcnetError as error:
        reason = str(error)
    except Exception as failure:  # such as GPU memory: the next run may succeed
        logger.exception("it failed")
        reason = f"{type(failure).__name__}: {failure}"
    with contextlib.suppress(OSError):  # the parent was killed
        os.write(answer, reason.encode(errors="replace"))
        sys.stdout.flush()
    os._exit(0)  # an orderly exit may hang


def _end_with_parent() -> None:
    """When the lifeline ends, let the training write a checkpoint, and end this process."""
    os.read(0, 1)
    faulthandler.dump_traceback_later(
        PATIENCE, exit=True
    )  # a training that has just ended ignores the signal
    os.kill(os.getpid(), signal.SIGTERM)


def find_devices(device: str) -> tuple[str, ...]:
    """Every GPU for "auto" and "cuda" where there are several, else the named device."""
    import torch

    if device in ("auto", "cuda") and (count := torch.cuda.device_count()) > 1:
        return tuple(f"cuda:{number}" for number in range(count))
    return (device,)


def complete_runs(
    runs: Sequence[StudyRun], workers: int = 1, *, device: str = "auto", progress: bool | None = None
) -> None:
    """Complete all runs that are not finished, and log each with its scores. One that fails does not stop the others.

    Args:
        runs: in order.
        workers: processes of one CPU thread each, at least one a device; 1: this process.
        device: "auto" and "cuda" use all GPUs.
        progress: show a bar for each training (one worker only).

    Raises:
        FmcnetError: at the end, when runs failed, with the reason of each.
        KeyboardInterrupt: on Ctrl-C, when all trainings have written a checkpoint.
    """
    unfinished = [run for run in runs if run.result() is None]
    devices = find_devices(device)
    workers = min(max(workers, len(devices)), len(unfinished))
    if workers > 1:
        completed = _complete_in_processes(unfinished, workers, devices)
    else:
        completed = ((run, _complete_or_reason(run, devices[0], progress)) for run in unfinished)
    started, done, failures = time.perf_counter(), 0, {}
    with contextlib.closing(completed):
        for run, reason in completed:
            if reason:
                failures[run.name] = reason
                logger.warning("%s failed: %s", run.name, reason)
                continue
            done += 1
            left = len(unfinished) - done
            minutes = (time.perf_counter() - started) / done * left / 60
            number = f"{len(runs) - left}/{len(runs)}"
            logger.info("%s %s: %s; about %.0f min left", number, run.name, run.scores(), minutes)
    if failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        others = "" if len(failures) == len(runs) else "; the others are done"
        raise FmcnetError(f"{len(failures)} of {len(runs)} runs failed{others}:\n{listed}")


def _complete_or_reason(run: StudyRun, device: str, progress: bool | None) -> str:
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
    folder = runs[0].study / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    idle = deque(range(workers))

    def complete(run: StudyRun) -> str:
        number = idle.popleft()
        work = partial(run.complete, devices[number % len(devices)], progress=False)
        try:
            return work_in_process(work, folder / f"worker-{number}.log", lifeline)
        finally:
            idle.append(number)

    with worker_pool(workers) as (pool, lifeline):
        futures = {pool.submit(complete, run): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
