"""The command line `fmcnet`, one file a group of commands.

User mistakes end with one clear message and exit code 2; Ctrl-C with 130. Commands import NumPy, PyTorch and FAISS
when they run, so `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from typer import Option

from fmcnet import __version__
from fmcnet.cli.console import PrintableFormatter
from fmcnet.cli.data import app as data_app
from fmcnet.cli.data import crop
from fmcnet.cli.experiments import compare, demo, evaluate, score, study
from fmcnet.cli.gallery import app as gallery_app
from fmcnet.cli.help import docs, doctor
from fmcnet.cli.index import index
from fmcnet.cli.models import adapt, calibrate, embed, export, info, project, push
from fmcnet.cli.search import search
from fmcnet.cli.serve import keys_app, serve
from fmcnet.cli.train import config, train
from fmcnet.errors import FmcnetError, PrintedBy
from fmcnet.names import printable
from fmcnet.processes import end_early


class _Group(typer.core.TyperGroup):
    """Names the groups that have the command, where the typed group lacks it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            top = {"": ctx.find_root().command}
            groups = top | {f"{name} ": command for name, command in top[""].commands.items()}
            names = [
                f"'fmcnet {group}{args[0]}'"
                for group, command in groups.items()
                if args[0] in getattr(command, "commands", {})
            ]
            if names:
                ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(names)}?")
        return super().resolve_command(ctx, args)


class _Commands(_Group):
    """Turns user mistakes into one message and exit code 2, Ctrl-C into 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:  # a path would be the working folder, other options would not be given
            ctx.fail(
                "An argument is empty, as of a shell variable that is not set: leave it out, or give a value."
            )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            end_early(False)
            return super().invoke(ctx)
        except FmcnetError as error:
            _fail(str(error), 2, error)
        except KeyboardInterrupt as stop:
            _fail(": ".join(filter(None, ("interrupted", str(stop)))), getattr(stop, "code", 130), stop)
        except OSError as error:
            name = error.filename2 or error.filename or "a file"  # of a copy, the second could not be written
            _fail(f"{name}: {error.strerror or error}", 2, error)


app = typer.Typer(
    name="fmcnet",
    cls=_Commands,
    help="Visible-infrared person re-identification: train, evaluate and use FMCNet (CVPR 2022).\n\n"
    "Start with: fmcnet demo. The documentation: fmcnet docs",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
JOBS = ("train", "evaluate", "config", "info", "docs", "doctor")
"""The commands whose work the processes of torchrun share, or that only print."""
report_app = typer.Typer(help="Compare runs.", no_args_is_help=True)
for command in (
    demo, train, config, evaluate, embed, score, study, calibrate, project, adapt, export, crop, index, search, serve,
    info, docs, push, doctor,
):  # fmt: skip
    app.command()(command)
report_app.command()(compare)
app.add_typer(data_app, name="data", cls=_Group)
app.add_typer(report_app, name="report", cls=_Group)
app.add_typer(gallery_app, name="gallery", cls=_Group)
app.add_typer(keys_app, name="keys")


def _fail(message: str, code: int, error: BaseException) -> NoReturn:
    """Print the message and exit. Of several processes (torchrun) with the same message, one prints it."""
    default = PrintedBy.ONE if isinstance(error, KeyboardInterrupt) else PrintedBy.ONE_PER_MACHINE
    if os.environ.get(getattr(error, "printed_by", default).value, "0") == "0":
        text = escape(printable(message, keep="\n\t"))
        Console(stderr=True, soft_wrap=True, emoji=False).print(
            f"[bold red]fmcnet:[/] {text}", highlight=False
        )
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Print more, such as every loss term of a training.")
    ] = False,
    threads: Annotated[int, Option(help="CPU threads of PyTorch; 0: PyTorch's choice.", min=0)] = 0,
) -> None:
    if version:
        typer.echo(f"fmcnet {__version__}")
        raise typer.Exit
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(
            console=Console(stderr=True, emoji=False), show_path=False, show_time=False, markup=False
        )
        handler.setFormatter(PrintableFormatter("%(message)s"))
    else:  # in a file each message is one line, whatever its length
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter("%(levelname)-8s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("fmcnet").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in ("matplotlib", "PIL", "torch", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Image size .*decompression bomb")  # our notes tell of large images
    if (
        ctx.invoked_subcommand not in JOBS
        and os.environ.get("RANK")
        and os.environ.get("WORLD_SIZE", "1") != "1"
    ):
        error = FmcnetError(
            f"{ctx.invoked_subcommand} does not run under torchrun: start it alone, or unset WORLD_SIZE"
        )
        error.printed_by = PrintedBy.ONE
        raise error
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # PyTorch is imported by the command
