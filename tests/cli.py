"""Run a command of `fmcnet` in this process."""

from __future__ import annotations

import functools
from typing import Any

import typer.testing
from click.testing import Result
from typer.testing import CliRunner

from fmcnet.cli.app import app

# The runner builds all commands anew for each call, which takes longer than most of what they do.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def run_command(*words: Any, code: int | None = 0, **settings: Any) -> Result:
    """`fmcnet WORDS`, which must exit with `code`; None: with any."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="fmcnet", **settings)
    told = f"exit code {result.exit_code}\n{result.output}{result.exception}"
    assert code is None or result.exit_code == code, told
    assert "Traceback" not in result.output
    return result
