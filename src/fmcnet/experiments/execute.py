"""Do a list of jobs: here one after the other, or in worker processes, across devices; finished ones are skipped."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fmcnet.errors import FmcnetError
from fmcnet.experiments.jobs import Job, at, do_job

logger = logging.getLogger(__name__)

Told = Callable[[Job, int, int], None]


def devices(device: str) -> tuple[str, ...]:
    """Where jobs may run: every GPU for "auto" and "cuda" where there are several, else the one named."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count()))
    return (device,)


def execute(
    jobs: Sequence[Job],
    workers: int,
    logs: Path,
    *,
    device: str = "auto",
    progress: bool | None = None,
    told: Told | None = None,
) -> None:
    """Do all jobs that are not finished.

    Args:
        jobs: in order. A job that fails does not keep the others from being done.
        workers: processes, each with one CPU thread; 1 does them in this process. More than one device: a process
            each at least.
        logs: folder for what the workers say.
        device: "auto" and "cuda" are spread over all GPUs.
        progress: a bar for each training (one worker only).
        told: called after each job with (job, done, of).

    Raises:
        FmcnetError: at the end, when jobs failed, with the reason of each.
        KeyboardInterrupt: on Ctrl-C, when all have stopped with a checkpoint.
    """
    waiting = [job for job in jobs if job.result() is None]
    places = devices(device) if waiting else (device,)
    workers = min(max(workers, len(places)), len(waiting))
    counted = _Counter(len(jobs) - len(waiting), len(jobs), told)
    failed: dict[str, str] = {}
    if workers > 1:
        failed = _Pool(waiting, workers, places, logs, counted).run()
    else:
        for job in waiting:
            try:
                do_job(at(job, places[0]), progress)
                counted.one(job)
            except FmcnetError as error:
                failed[job.name] = str(error)
                logger.warning("%s failed: %s", job.name, error)
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise FmcnetError(f"{len(failed)} of {len(jobs)} runs failed; the others are done:\n{listed}")


class _Counter:
    def __init__(self, done: int, total: int, told: Told | None) -> None:
        self.done, self.total, self.told, self.lock = done, total, told, threading.Lock()

    def one(self, job: Job) -> None:
        with self.lock:
            self.done += 1
            if self.told:
                self.told(job, self.done, self.total)


class _Pool:
    """Worker processes, a thread here for each to hand it jobs."""

    def __init__(
        self, jobs: Sequence[Job], workers: int, places: tuple[str, ...], logs: Path, counted: _Counter
    ) -> None:
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self.jobs.put(job)
        self.counted, self.places = counted, places
        self.failed: dict[str, str] = {}
        self.stopping = False
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"worker-{n}.log" for n in range(workers)]
        self.processes = [self._start(log) for log in self.logs]

    def _start(self, log: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "fmcnet.experiments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
            )

    def run(self) -> dict[str, str]:
        """Hand out all jobs and wait; failures by job."""
        threads = [
            threading.Thread(target=self._feed, args=(n,), daemon=True) for n in range(len(self.processes))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # so that Ctrl-C is heard
        finally:
            self.stopping = True
            self._stop()
        while not self.jobs.empty():  # every worker has died
            self.failed[self.jobs.get().name] = "not begun: no worker process was left"
        return self.failed

    def _feed(self, number: int) -> None:
        process, place = self.processes[number], self.places[number % len(self.places)]
        assert process.stdin is not None
        assert process.stdout is not None
        while not self.stopping:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                return
            try:
                process.stdin.write(json.dumps(vars(at(job, place))) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except (OSError, ValueError):
                line = ""
            if not line:
                if not self.stopping:
                    tail = self.logs[number].read_text(errors="replace").strip().splitlines()[-3:]
                    self.failed[job.name] = "its process ended: " + " / ".join(tail)
                return
            answer = json.loads(line)
            if "error" in answer:
                self.failed[job.name] = answer["error"]
                logger.warning("%s failed: %s", job.name, answer["error"])
            else:
                self.counted.one(job)

    def _stop(self) -> None:
        """Idle workers end; busy ones write a checkpoint and end; after half a minute they are ended."""
        for process in self.processes:
            if process.poll() is None and process.stdin is not None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
