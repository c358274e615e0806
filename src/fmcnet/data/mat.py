"""MATLAB files, read by SciPy in a subprocess: some damaged ones crash the process or fill its memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 2**30
"""Bytes that a file may take (Linux)."""
SECONDS = 300
_CODE = """import json, sys
sys.path[:] = json.loads(sys.argv[3])
from fmcnet.data.mat import _load_variable, limit_memory
limit_memory()
print(json.dumps(_load_variable(*sys.argv[1:3]), default=str))"""
_DAMAGED = "it is damaged, or unpacks to more than a list of images needs: copy it again"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def read_mat(path: Path, name: str) -> list[Any]:
    """A variable of a MATLAB file: nested lists of its rows; of a cell array the list of its cells.

    Raises:
        ValueError: of one line: it is no such file, is damaged, or lacks the variable.
    """
    no_interpreter = getattr(sys, "frozen", False) or not sys.executable  # there is no interpreter to start
    answer = _load_variable(str(path), name) if no_interpreter else _read_in_subprocess(path, name)
    if "fault" in answer:
        raise ValueError(answer["fault"])
    found: list[Any] = answer["found"]
    return found


def _read_in_subprocess(path: Path, name: str) -> dict[str, Any]:
    import_paths = [str(Path(entry).absolute()) for entry in sys.path]  # "" is the working folder
    command = [sys.executable, "-I", "-c", _CODE, str(path.absolute()), name, json.dumps(import_paths)]
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"fault": f"it cannot be read ({error})"}
    if process.returncode < 0:  # a signal
        return {"fault": _DAMAGED}
    try:
        answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        lines = process.stderr.decode(errors="replace").splitlines()
        return {"fault": f"it cannot be read ({lines[-1] if lines else f'exit code {process.returncode}'})"}


def limit_memory() -> None:
    """Limit this process to `MEMORY` more than it uses now, if the system supports it."""
    with contextlib.suppress(ImportError, OSError, ValueError, StopIteration):
        import resource

        import scipy.io  # noqa: F401  (so that SciPy's own memory is not counted)

        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEMORY,) * 2)


def _load_variable(path: str, name: str) -> dict[str, Any]:
    """{"found": the variable's value} or {"fault": why it cannot be read}."""
    from scipy.io import loadmat, whosmat

    try:
        stored = loadmat(path, variable_names=[name])
        if name in stored:
            return {"found": _to_lists(stored[name])}
        stored_names = ", ".join(variable for variable, *_ in whosmat(path)) or "nothing"
        return {"fault": f"it has no variable '{name}'; it holds {stored_names}"}
    except NotImplementedError:
        return {"fault": "it has the format of MATLAB 7.3: save it again with -v7"}
    except MemoryError:
        return {"fault": _DAMAGED}
    except Exception as error:  # SciPy raises many kinds
        return {"fault": f"it is not a readable MATLAB file ({error}): copy it again"}


def _to_lists(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return [_to_lists(cell) for cell in value.ravel()]
    return value.tolist() if hasattr(value, "tolist") else value
