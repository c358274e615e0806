"""Worker processes of one CPU thread each: the runs of a study, and the trainings of the demo."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcnet.errors import FmcnetError, Interrupted
from fmcnet.processes import start_fork_server, starting_workers

if TYPE_CHECKING:
    from fmcnet.experiments.runs import StudyRun

logger = logging.getLogger(__name__)

LOGS = "logs"
PATIENCE = 30.0
"""Seconds for a worker to write a checkpoint and end."""
PRELOADED = ("fmcnet.experiments.runs", "torch._dynamo")


class WorkerPool(ThreadPoolExecutor):
    """Threads that wait for worker processes: submit `work_in_process`.

    At the end of its block, also on Ctrl-C and SIGTERM, the workers get SIGTERM, and if this process is killed they
    send it to themselves: a training then writes a checkpoint and ends.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._processes: set[BaseProcess] = set()
        self._starting = threading.Lock()
        self._ended = False
        # A server that has imported PyTorch forks the workers. Where there is none, each imports it.
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks and sys.version_info >= (3, 11):
            self._context.set_forkserver_preload([*PRELOADED])

    def __enter__(self) -> WorkerPool:
        start_fork_server()
        self._handler = None
        with contextlib.suppress(ValueError):  # outside the main thread
            self._handler = signal.signal(signal.SIGTERM, _raise_interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        self._ended = True
        with self._starting:  # whatever starts now
            pass
        for process in list(self._processes):
            process.terminate()
        for process in list(self._processes):
            process.join(PATIENCE)
            process.kill()  # a training that has just ended ignores SIGTERM
        self.shutdown()
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def work_in_process(self, work: Callable[[], object], log: Path) -> str:
        """Call `work` (pickled) in a process of one CPU thread, and wait; the reason where it fails, else "".

        What the process prints is added to `log`.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work_and_answer, args=(pickle.dumps(work), log, sender))
        logged = log.stat().st_size if log.is_file() else 0
        try:
            with self._starting, starting_workers():
                if self._ended:
                    return "interrupted"
                process.start()
                self._processes.add(process)
        except (OSError, EOFError) as failure:
            # EOFError: the fork server was killed. The next start makes another.
            return f"its worker process cannot be started: {failure}"
        sender.close()
        try:
            return str(receiver.recv())
        except EOFError:
            pass
        finally:
            process.join()
            self._processes.discard(process)
        reason = f"its worker process ended (exit code {process.exitcode})"
        text = log.read_bytes()[logged:].decode(errors="replace") if log.is_file() else ""
        return f"{reason}; {log} ends with: {' | '.join(text.splitlines()[-3:])}" if text else reason


def _raise_interrupted(*_: object) -> None:
    raise Interrupted("terminated; the same command continues", 143)


def _work_and_answer(pickled: bytes, log: Path, answer: Connection) -> None:
    """In a worker: do the pickled work, and answer with the reason where it fails, else ""."""
    if hasattr(signal, "pthread_sigmask"):  # on Ctrl-C, the parent ends this process
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reason = ""
    try:
        pickle.loads(pickled)()
    except KeyboardInterrupt:  # SIGTERM: a checkpoint is written
        reason = "interrupted"
    except FmcnetError as error:
        reason = str(error)
    except Exception as failure:  # such as GPU memory: the next run may succeed
        logger.exception("it failed")
        reason = f"{type(failure).__name__}: {failure}"
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # the parent was killed
        answer.send(reason)
    os._exit(0)  # an orderly exit may hang


def _end_with_parent() -> None:
    """When the parent is killed, let the training write a checkpoint, and end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)  # a training that has just ended ignores the signal
    os._exit(1)


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

    There are `workers` processes of one CPU thread, at least one a device; a single worker is this process, and only
    it shows `progress`. The devices "auto" and "cuda" are all GPUs.

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
            return pool.work_in_process(work, folder / f"worker-{number}.log")
        finally:
            idle.append(number)

    with WorkerPool(workers) as pool:
        futures = {pool.submit(complete, run): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
