"""Jobs of one or several processes in a second: forked from a process that has imported PyTorch, not started.

A test calls `apart(function, arguments)`; the function runs in a process of its own, where `job` forks. `script` runs
a file as `python FILE` does, but for what an interpreter does at its end (`atexit`, threads). Nothing of fmcnet is
imported beforehand: what a job needs, it imports itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def _server():
    """A process that forks for each line it reads; it ends with this one, whose pipe closes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _say(asked):
    """What the server answers, a line."""
    server = _server()
    server.stdin.write(json.dumps(asked, default=str) + "\n")
    server.stdin.flush()
    return server.stdout.readline().strip()


class Running:
    """A process in a session of its own, used as a `subprocess.Popen` of texts: by default the `fmcnet` command.

    Args:
        arguments: of the command.
        together: standard error goes where standard output goes.
        call: a module's function to call instead, and arguments that JSON can carry.
        cwd: the folder that it runs in.
        environment: all of its variables.
    """

    def __init__(self, *arguments, together=False, call=None, cwd=ROOT, environment=None):
        self._folder = tempfile.TemporaryDirectory()
        self._out = Path(self._folder.name, "out")
        self._error = self._out if together else Path(self._folder.name, "error")
        self._error.touch()
        asked = {
            "cwd": cwd,
            "out": self._out,
            "error": self._error,
            "environment": {**(environment or os.environ), "OMP_NUM_THREADS": "1"},
            "timeout": 0,
            "call": call
            or ["tests.forked", "_command", {"arguments": [*map(str, arguments)], "processes": 1}],
        }
        self.pid = int(_say({**asked, "background": True}))
        self.returncode = None

    @property
    def said(self):
        """The lines on standard error so far."""
        return self._error.read_text().splitlines(keepends=True)

    def poll(self):
        if self.returncode is None and (status := _say({"poll": self.pid})):
            self.returncode = int(status)
        return self.returncode

    def wait(self, timeout=60):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fmcnet", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=60):
        self.wait(timeout)
        return self._out.read_text(), self._error.read_text()


def _ask(cwd, timeout, more=None, **what):
    """Exit code, standard output and standard error of a forked process; `more` goes into its environment."""
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder, "out"), Path(folder, "error")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
        asked = {
            "cwd": cwd, "out": out, "error": error, "environment": environment, "timeout": timeout, **what
        }  # fmt: skip
        return int(_say(asked)), out.read_text(), error.read_text()


def apart(function, timeout=300, **arguments):
    """Call a module's function in a fresh process, with arguments that JSON can carry; its failure is the test's."""
    code, out, error = _ask(ROOT, timeout, call=[function.__module__, function.__name__, arguments])
    assert code == 0, out + error


def script(path, *arguments, cwd, timeout=300, environment=None):
    """(exit code, standard output, standard error) of `python PATH ARGUMENTS`, started in a folder."""
    return _ask(cwd, timeout, environment, script=[str(path), *map(str, arguments)])


def fmcnet(*arguments, processes=2, timeout=300):
    """(largest exit status, all that was printed) of the command in so many processes, as torchrun starts them."""
    given = {"arguments": [*map(str, arguments)], "processes": processes}
    code, out, error = _ask(ROOT, timeout, call=["tests.forked", "_command", given])
    return code, out + error


def _command(arguments, processes):
    from fmcnet.__main__ import main

    sys.argv = ["fmcnet", *arguments]
    if processes == 1:
        main()
    sys.exit(max(map(abs, ends(job(main, processes)))))


def _do(asked):
    """What was asked for, in the process forked for it."""
    for place, mode, number in ((os.devnull, "r", 0), (asked["out"], "a", 1), (asked["error"], "a", 2)):
        with Path(place).open(mode) as stream:
            os.dup2(stream.fileno(), number)
    os.setsid()
    signal.alarm(asked["timeout"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    if "script" in asked:
        sys.argv = asked["script"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        module, name, arguments = asked["call"]
        getattr(importlib.import_module(module), name)(**arguments)


def _serve():
    """Fork for each line; print the exit status of what was forked, or the process id of what was started."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if pid else "", flush=True)
            continue
        child = os.fork()
        if not child:
            _exit_after(lambda asked=asked: _do(asked))
        if "background" in asked:
            print(child, flush=True)
            continue
        status = ends([child])
        with contextlib.suppress(ProcessLookupError):  # what it forked, if it was ended by its alarm
            os.killpg(child, signal.SIGKILL)
        print(*status, flush=True)


def _exit_after(work):
    """Do it; end this forked process without the ends of the one that it was forked from."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
        _exit_after(work)
    return children


def ends(children):
    """Wait; the exit statuses, as `os.waitstatus_to_exitcode` gives them (-9: killed)."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    import faiss  # noqa: F401
    import fastapi  # noqa: F401
    import pytest  # noqa: F401
    import torch._dynamo
    import typer  # noqa: F401
    import uvicorn  # noqa: F401

    torch.set_num_threads(1)
    _serve()
