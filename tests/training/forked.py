"""Jobs of one or several processes in a second: forked from a process that has imported everything, not started.

A test calls `apart(function, arguments)`; the function runs in a process of its own, where `job` forks.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


def apart(function, timeout=300, **arguments):
    """Call a module's function in a fresh process, with arguments that JSON can carry; its failure is the test's."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.training.forked",
            function.__module__,
            function.__name__,
            json.dumps(arguments, default=str),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def job(work, world=1):
    """Fork `world` processes that do `work()`, each with the environment that torchrun would give it; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if world > 1:
            facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in facts.items()})
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return children


def ends(children):
    """Wait; the exit statuses, as `os.waitstatus_to_exitcode` gives them (-9: killed)."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(**json.loads(sys.argv[3]))
