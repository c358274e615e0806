"""Ctrl-C while the program is still importing: one line, exit code 130, whatever is being imported."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from fmcnet import processes

SCRIPT = str(Path(sys.executable).with_name("fmcnet"))
MOMENTS = ["typer", "rich.console", "fmcnet.cli.console", "pydantic", "numpy", "torch.types"]
"""Modules after whose import the signal is sent: of the command line's own, then of the command."""
ENDS = (130, -signal.SIGINT)
"""Both are 130 for a shell. Python ends by the signal where that hit code inside an `exec`, as a dataclass has."""


def stopped_after(module: str, program: list[str]) -> subprocess.CompletedProcess[str]:
    """`fmcnet info fmcnet-generated`, interrupted when it has imported `module`; stderr without import times."""
    command = [sys.executable, "-X", "importtime", *program, "info", "fmcnet-generated"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = False
    rest = []
    for line in process.stderr:
        if not line.startswith("import time:"):
            rest.append(line)
        elif not seen and line.rpartition("|")[2].strip() == module:
            process.send_signal(signal.SIGINT)
            seen = True
    assert process.stdout is not None
    told = process.stdout.read()
    assert seen, f"{module} is not imported"
    return subprocess.CompletedProcess(command, process.wait(timeout=60), told, "".join(rest))


@pytest.mark.parametrize("module", MOMENTS)
def test_an_early_ctrl_c_ends_with_one_line_and_130(module):
    done = stopped_after(module, ["-m", "fmcnet"])
    assert (done.stdout, done.stderr) == ("", "fmcnet: interrupted\n")
    assert done.returncode in ENDS


@pytest.mark.skipif(not Path(SCRIPT).is_file(), reason="fmcnet is not installed beside this Python")
def test_so_does_the_installed_command():
    done = stopped_after("typer", [SCRIPT])
    assert (done.stdout, done.stderr) == ("", "fmcnet: interrupted\n")
    assert done.returncode in ENDS


def test_the_installed_command_starts_where_the_signal_is_handled():
    (found,) = entry_points(group="console_scripts", name="fmcnet")
    assert found.value == "fmcnet.__main__:main"


def test_who_handles_the_signal_already_keeps_it():
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.SIG_IGN, lambda *_: None):
            signal.signal(signal.SIGINT, handler)
            processes.end_early(True)
            assert signal.getsignal(signal.SIGINT) is handler
            processes.end_early(False)
            assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.default_int_handler)
        processes.end_early(True)
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        processes.end_early(False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
