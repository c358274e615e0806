"""A process that does jobs: one JSON line in, one out, until its input ends or its parent is gone.

    python -m fmcnet.experiments.worker

It watches its parent: when that is killed, training stops at the next step with a checkpoint, so that the same
command can go on at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time

from fmcnet.errors import FmcnetError
from fmcnet.experiments.jobs import Job, do_job

EVERY = 0.5  # seconds between two looks at the parent


def main() -> None:
    """Do the jobs of standard input; answer {"name": ...} or {"name": ..., "error": ...} on standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever prints goes to the log
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    try:
        for line in sys.stdin:
            job = Job(**json.loads(line))
            answer = {"name": job.name}
            try:
                do_job(job, progress=False)
            except FmcnetError as error:
                answer["error"] = str(error)
            answers.write(json.dumps(answer) + "\n")
    except KeyboardInterrupt:
        sys.exit(130)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)  # between two steps: training writes a checkpoint first


if __name__ == "__main__":
    main()
