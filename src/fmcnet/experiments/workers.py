"""Complete the runs of a study, one after another or by worker processes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from fmcnet.errors import FmcnetError
from fmcnet.interrupt import ignored

if TYPE_CHECKING:
    from fmcnet.experiments.runs import StudyRun

logger = logging.getLogger(__name__)

LOGS = "logs"
SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 30.0
"""Seconds for a worker to write a checkpoint and end."""


def find_devices(device: str) -> tuple[str, ...]:
    """Every GPU for "auto" and "cuda" where there are several, else the named device."""
    import torch

    if device in ("auto", "cuda") and (count := torch.cuda.device_count()) > 1:
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
        workers: processes of one CPU thread each, at least one a device; 1: this process.
        device: "auto" and "cuda" use all GPUs.
        progress: show a bar for each training (one worker only).
        report: called after each run with the run, the number of finished runs, and the number of all.

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
    done, failures = len(runs) - len(unfinished), {}
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
    logs = [folder / f"worker-{worker}.log" for worker in range(workers)]
    queue, idle = deque(runs), deque(range(workers))
    running: dict[Connection, tuple[StudyRun, int, BaseProcess]] = {}
    try:
        while queue or running:
            if queue and idle:
                run, worker = queue.popleft(), idle.popleft()
                receiver, sender = SPAWN.Pipe(duplex=False)
                arguments = (run, devices[worker % len(devices)], logs[worker], sender)
                process: BaseProcess = SPAWN.Process(target=_run_worker, args=arguments)
                try:
                    with sender, ignored("SIGPIPE"), _one_thread_without_ctrl_c():
                        process.start()
                        running[receiver] = run, worker, process  # before Ctrl-C can come
                except OSError as failure:
                    idle.append(worker)
                    yield run, f"its worker process cannot be started: {failure}"
                continue
            ready = wait(list(running))
            for receiver in [connection for connection in running if connection in ready]:
                run, worker, process = running.pop(receiver)
                error = _receive_reason(receiver, process, logs[worker])
                idle.append(worker)
                yield run, error
    finally:  # on Ctrl-C: each training writes a checkpoint and ends
        for _, _, process in running.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for _, _, process in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()


def _receive_reason(receiver: Connection, process: BaseProcess, log: Path) -> str:
    """The reason where the run of a worker failed, else ""; ends the process."""
    try:
        reason: str = receiver.recv()
    except (EOFError, OSError):  # it ended before or while it answered
        process.join()
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.is_file() else []
        ended = f"its worker process ended (exit code {process.exitcode})"
        return f"{ended}; {log} ends with: {' | '.join(lines)}"
    process.join(PATIENCE)
    process.kill()  # if it hangs at exit
    return reason


@contextlib.contextmanager
def _one_thread_without_ctrl_c() -> Iterator[None]:
    """Processes started here have one CPU thread and ignore Ctrl-C: this process ends them by SIGTERM."""
    can_mask, threads = hasattr(signal, "pthread_sigmask"), os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    if can_mask:
        resource_tracker.ensure_running()  # its start would lift the mask, so start it first
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        if can_mask:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _run_worker(run: StudyRun, device: str, log: Path, sender: Connection) -> None:
    """Complete a run in this process of its own, and send the reason where it fails, else ""."""
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        error = _complete_or_reason(run, device, progress=False)
    except KeyboardInterrupt:  # SIGTERM: a checkpoint is written
        return
    except Exception as failure:  # such as GPU memory: the next run may succeed
        logger.exception("%s failed", run.name)
        error = f"{type(failure).__name__}: {failure}"
    sender.send(error)


def _end_with_parent() -> None:
    """If the study is killed, let the training write a checkpoint, and end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:  # a training that has just ended ignores the first signal
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
