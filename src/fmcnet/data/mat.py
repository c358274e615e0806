"""MATLAB files, read by SciPy in a process of its own: some damaged ones end the process or fill its memory."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 2**30
"""Bytes that reading may take (Linux)."""
SECONDS = 60
_CODE = """import sys
sys.path = [place for place in sys.path if place]  # no module of the working folder
from fmcnet.data.mat import _print_variable
_print_variable()"""
_DAMAGED = "it is damaged, or unpacks to more than a list of images needs"


def read_mat(path: Path, name: str) -> list[Any]:
    """A variable of a MATLAB file: nested lists of its rows; of a cell array the list of its cells.

    Raises:
        ValueError: of one line: it is no such file, is damaged, or lacks the variable.
    """
    command = [sys.executable, "-c", _CODE, str(path.absolute()), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        answer = json.loads(done.stdout)
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:  # no answer: the process ended
        raise ValueError(_DAMAGED) from error
    if "fault" in answer:
        raise ValueError(answer["fault"])
    found: list[Any] = answer["found"]
    return found


def _print_variable() -> None:
    """In the process of its own: the variable, or what is wrong, as JSON."""
    from scipy.io import loadmat, whosmat

    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    path, name = sys.argv[1:]
    try:
        stored = loadmat(path, variable_names=[name])
        if name in stored:
            answer = {"found": _plain(stored[name])}
        else:
            held = ", ".join(one for one, *_ in whosmat(path)) or "nothing"
            answer = {"fault": f"it has no variable '{name}'; it holds {held}"}
    except NotImplementedError:
        answer = {"fault": "it has the format of MATLAB 7.3: save it again with -v7"}
    except MemoryError:
        answer = {"fault": _DAMAGED}
    except Exception as error:  # SciPy raises many kinds
        answer = {"fault": f"it is not a readable MATLAB file ({error})"}
    print(json.dumps(answer, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return [_plain(cell) for cell in value.ravel()]
    return value.tolist() if hasattr(value, "tolist") else value
