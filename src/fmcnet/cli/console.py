"""Options, JSON, tables and messages that the commands share."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer import Argument, Option

from fmcnet.errors import FmcnetError, Interrupted
from fmcnet.names import printable

if TYPE_CHECKING:
    from datetime import datetime

    from fmcnet.retrieval.records import Where

# ---- options ----

Json = Annotated[bool, Option("--json", help="Print one JSON object on standard output, nothing else.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.")]
Range = Annotated[
    str | None,
    Option(
        "--range",
        metavar="LOW:HIGH",
        help="Values that become black and white, of images deeper than 8 bits (16-bit, float): 15:40. Without it "
        "each such image may be stretched by itself.",
    ),
]
Data = Annotated[
    Path, Option("--data", help="A SYSU-MM01, RegDB or LLCM folder, or a CSV (fmcnet docs datasets).")
]
Layout = Annotated[str, Option(help="auto, sysu, regdb, llcm, csv, or the name of a reader of yours.")]
Batch = Annotated[int, Option(help="Images at once.", min=1)]
CalibrationFile = Annotated[
    Path | None,
    Option("--calibration", help="A file of fmcnet calibrate; default: calibration.json of the model."),
]
Model = Annotated[Path, Argument(help="The folder of a run or an exported model, or a shipped model's name.")]
TrainedModel = Annotated[Path, Argument(help="A run folder, or a shipped model's name.")]
GalleryModel = Annotated[
    str | None, Option(help="Folder of a run or exported model, or a shipped name; default: as indexed.")
]
GalleryPath = Annotated[
    str, Argument(metavar="GALLERY", help="A gallery's folder or milvus://host:port/name.")
]
Zone = Annotated[str, Option(help="Timezone of times without one: UTC, Europe/Berlin...")]
ShownZone = Annotated[
    str, Option(help="Timezone of shown times, and of times without one: UTC, Europe/Berlin...")
]
DoubtfulTimes = Annotated[
    str,
    Option(
        help="Local times that come twice, or never, when clocks change: refuse, or take the earlier or later."
    ),
]
Cameras = Annotated[list[str] | None, Option("--camera", help="Only entries of this camera; repeatable.")]
Since = Annotated[str | None, Option(help="Only entries seen since 2026-03-01, or 2026-03-01T22:15:00.")]
Until = Annotated[str | None, Option(help="Only entries seen before this time.")]


def make_filter(
    cameras: list[str] | None,
    since: str | None,
    until: str | None,
    timezone: str,
    *,
    modality: str | None = None,
    **others: list[str] | None,
) -> Where:
    """The filter that the options describe."""
    from fmcnet.errors import DataError
    from fmcnet.retrieval.records import Where
    from fmcnet.times import parse_time, parse_timezone

    zone = parse_timezone(timezone)

    def moment(option: str, text: str | None) -> datetime | None:
        try:
            return None if text is None else parse_time(text, zone)
        except DataError as error:  # the clocks change: no option settles it here
            reason = str(error).replace("say --doubtful-times earlier or later, or ", "")
            raise FmcnetError(f"{option}: {reason}") from error

    return Where(
        cameras=cameras or None,
        modality=modality,
        since=moment("--since", since),
        until=moment("--until", until),
        **{name: values or None for name, values in others.items()},
    )


def check_choice(option: str, value: str | None, choices: Sequence[str]) -> Any:
    """The value, or None where the option is not given.

    Raises:
        FmcnetError: for a value that is not among the choices.
    """
    if value is not None and value not in choices:
        raise FmcnetError(f"{option} {value}: say {', '.join(choices[:-1])} or {choices[-1]}")
    return value


def check_first(value: object, command: str) -> None:
    """Refuse a setting in the place of the first argument, which `command` shows before the settings.

    Raises:
        FmcnetError: for a text such as mode=indoor that is no path either.
    """
    from fmcnet.config import Config, EvaluationConfig

    name, equals, _ = str(value).partition("=")
    section, dot, _ = name.partition(".")
    known = Config.model_fields if dot else EvaluationConfig.model_fields
    if equals and section in known and not Path(str(value)).exists():
        raise FmcnetError(f"'{value}' is a setting, and settings come last: {command} {value}")


# ---- questions ----


def check_can_ask(json_: bool, answered: bool) -> None:
    """Refuse to ask where only JSON is printed."""
    if json_ and not answered:
        raise FmcnetError("--json cannot ask: give --yes, or --dry-run")


def confirm(verb: Literal["Remove", "Relocate"], count: int, entries: int) -> None:
    """Ask before `count` of a gallery's `entries` change.

    Raises:
        typer.Abort: the answer is no.
        FmcnetError: nobody is there to answer.
    """
    everything = verb == "Remove" and count == entries
    amount = f"ALL {entries:,}" if everything else f"{count:,} of {entries:,}"
    try:
        agreed = typer.confirm(f"{verb} {amount} entries{' for good' if verb == 'Remove' else ''}?")
    except typer.Abort:
        participle = f"{verb.lower()}d"
        raise FmcnetError(
            f"{count:,} entries were to be {participle}, and nobody answered: nothing was {participle}. --yes does "
            "it without asking, --dry-run only counts"
        ) from None
    if not agreed:
        raise typer.Abort


@contextlib.contextmanager
def explain_resume() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, report that the same command continues the work."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted("the same command continues it", getattr(stop, "code", 130)) from None


# ---- output ----


class PrintableFormatter(logging.Formatter):
    """Log lines without hidden characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with escapes."""
        return printable(super().format(record), keep="\n\t")


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print text; hidden characters, of a camera's name say, become escapes, so that they cannot forge a line."""
    typer.echo(printable(str(text), keep="\n\t"), err=err, nl=nl)


def print_json(content: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(content, indent=1, default=str))


def print_report(report: Any, json_: bool) -> None:
    """A report as JSON or as its lines."""
    if json_:
        print_json(report.to_dict())
    else:
        echo("\n".join(report.lines()))


def show(title: str, facts: Mapping[str, Any], paths: Mapping[str, str | Path] | None = None) -> None:
    """A title, a short table and, below it, paths: each whole on a line of its own, to be copied and piped."""
    echo(title)
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, _cell(value))
    Console(emoji=False).print(table)  # ":b:" in a name stays what it is
    for name, path in (paths or {}).items():
        echo(f"{name}: {printable(str(path))}")


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows with equal names; columns in which no row has a value are left out."""
    if not rows:
        return
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    Console(emoji=False).print(table)  # ":b:" in a name stays what it is


def _cell(value: object) -> str:
    """A value for a Rich table, on one line; "" for None."""
    return "" if value is None else escape(printable(str(value)))
