"""`fmcnet docs`: the documentation's pages, which come with the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Json, echo, print_json
from fmcnet.errors import FmcnetError

FOLDER = Path(__file__).parents[1] / "docs"
SHORT = 80
"""A page of fewer words is filled when the site is built: its source says nothing."""


def docs(
    page: Annotated[
        str | None, typer.Argument(help="A page's name, as search or train; without it all are listed.")
    ] = None,
    where: Annotated[bool, typer.Option("--path", help="Print the page's file name instead.")] = False,
    json_: Json = False,
) -> None:
    """Show a page of the documentation.

    fmcnet docs search
    """
    pages = _pages()
    if page is None:
        titles = {name: _title(path) for name, path in pages.items()}
        if json_:
            print_json({name: {"title": titles[name], "path": str(pages[name])} for name in pages})
            return
        for name, title in titles.items():
            echo(f"{name}: {pages[name] if where else title}")
        return
    if page not in pages:
        raise FmcnetError(f"there is no page '{page}': choose of {', '.join(pages)}")
    if json_:
        print_json({"title": _title(pages[page]), "path": str(pages[page])})
    elif where:
        echo(str(pages[page]))
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        with console.pager(styles=True):
            console.print(Markdown(pages[page].read_text(encoding="utf-8")))
    else:
        echo(pages[page].read_text(encoding="utf-8"), nl=False)


def _pages() -> dict[str, Path]:
    """Files by name."""
    found: dict[str, Path] = {}
    for path in (FOLDER / "getting-started.md", *sorted(FOLDER.glob("*/*.md"))):
        if path.is_file() and len(path.read_text(encoding="utf-8").split()) >= SHORT:
            found[path.stem] = path
    if not found:
        raise FmcnetError(
            f"the documentation is not in this installation ({FOLDER}): see docs/ of the sources"
        )
    return found


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
