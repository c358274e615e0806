"""`fmcnet docs`, the pages and example scripts that come with the package, and `fmcnet doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import FmcnetError
from fmcnet.names import nearest

DOCS_FOLDER = Path(__file__).parents[1] / "docs"
EXAMPLES_FOLDER = Path(__file__).parents[1] / "examples"
MIN_PAGE_WORDS = 80
"""A page of fewer words is filled when the site is built: its source says nothing."""


def complete_page(incomplete: str) -> list[str]:
    """Names for the shell's completion."""
    return [name for name in _pages() if name.startswith(incomplete)]


def docs(
    page: Annotated[
        str | None,
        Argument(
            help="A page's or an example's name, as search or own_loss; without it all are listed.",
            autocompletion=complete_page,
        ),
    ] = None,
    where: Annotated[bool, Option("--path", help="Print the page's file name instead.")] = False,
    json_: console.Json = False,
) -> None:
    """Show a page of the documentation, or an example script.

    fmcnet docs search
    """
    pages = _pages()
    if page is None:
        titles = {name: _read_title(path) for name, path in pages.items()}
        if json_:
            console.print_json({name: {"title": titles[name], "path": str(pages[name])} for name in pages})
            return
        for name, title in titles.items():
            console.echo(f"{name}: {pages[name] if where else title}")
        console.echo("fmcnet docs NAME shows one, --path where it lies")
        return
    if page not in pages:
        similar = nearest(page, pages)
        suggestion = f", did you mean '{similar}'?" if similar else ":"
        raise FmcnetError(f"there is no page '{page}'{suggestion} choose of {', '.join(pages)}")
    if json_:
        console.print_json({"title": _read_title(pages[page]), "path": str(pages[page])})
    elif where:
        console.echo(str(pages[page]))
    elif pages[page].suffix == ".ipynb":
        console.echo(f"a notebook, for Jupyter: {pages[page]}")
    elif pages[page].suffix == ".md" and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        terminal = Console()
        with terminal.pager(styles=True):
            terminal.print(Markdown(pages[page].read_text(encoding="utf-8")))
    else:
        console.echo(pages[page].read_text(encoding="utf-8"), nl=False)


def _pages() -> dict[str, Path]:
    """Files by name."""
    pages: dict[str, Path] = {}
    for path in (DOCS_FOLDER / "getting-started.md", *sorted(DOCS_FOLDER.glob("*/*.md"))):
        if path.is_file() and len(path.read_text(encoding="utf-8").split()) >= MIN_PAGE_WORDS:
            pages[path.stem] = path
    pages |= {
        path.stem: path for path in sorted(EXAMPLES_FOLDER.glob("*.*")) if path.suffix in (".py", ".ipynb")
    }
    if not pages:
        raise FmcnetError(
            f"the documentation is not in this installation ({DOCS_FOLDER}): see docs/ of the sources"
        )
    return pages


def _read_title(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = json.loads(text)["cells"][0]["source"][0]
    return text.partition("\n")[0].removeprefix("# ").strip('"').rstrip(".")


def doctor(
    model: Annotated[str | None, Option(help="A model to try; default: the gallery's.")] = None,
    gallery: Annotated[
        str | None, Option(help="A gallery: does it fit the model? A folder or milvus://host:port/name.")
    ] = None,
    calibration: Annotated[Path | None, Option(help="A calibration; default: that of the model.")] = None,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Report versions, devices, threads and extras; exit code 1 if something must be mended.

    fmcnet doctor --model fmcnet-lite --gallery people.gallery

    With a model, a gallery and a calibration it says whether they fit together. It writes nothing.
    """
    from fmcnet.doctor import diagnose

    report = diagnose(model, gallery, calibration, device)
    console.print_report(report, json_)
    if not report.ok:
        raise typer.Exit(1)
