"""Options, JSON, tables and messages that the commands share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Range = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW:HIGH",
        help="Values that become black and white, of pictures deeper than 8 bits (16-bit, float): 15:40. Without it "
        "each such picture may be stretched by itself.",
        show_default=False,
    ),
]
Data = Annotated[
    Path,
    typer.Option("--data", help="A SYSU-MM01, RegDB or LLCM folder, or a CSV (docs/reference/datasets.md)."),
]
Layout = Annotated[str, typer.Option(help="auto, sysu, regdb, llcm or csv.")]
Model = Annotated[
    Path, typer.Argument(help="A run folder, an exported model's (fmcnet export), or a shipped model's name.")
]


def print_json(content: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(content, indent=1, default=str))


def show(title: str, facts: Mapping[str, Any], paths: Mapping[str, str | Path] | None = None) -> None:
    """A title, a short table and, below it, paths: each whole on a line of its own, to be copied and piped."""
    typer.echo(title)
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    Console().print(table)
    for name, path in (paths or {}).items():
        typer.echo(f"{name}: {path}")


@contextlib.contextmanager
def explain_resume() -> Iterator[None]:
    """On Ctrl-C, report that the same command continues the work."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it was") from None
