"""`fmcnet data generate | check | summary | cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Json, Layout, explain_resume, print_json, show

app = typer.Typer(help="Generate, check and summarise datasets.", no_args_is_help=True)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Folder to write; continued if it was interrupted.")],
    layout: Annotated[str, typer.Option(help="sysu, regdb or llcm.")] = "sysu",
    preset: Annotated[
        str, typer.Option(help="tiny (seconds), small (the demo), full (the real sizes).")
    ] = "small",
    seed: Annotated[int, typer.Option(help="Same seed, same pixels.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.", min=0)] = 0,
    json_: Json = False,
) -> None:
    """Write the generated two-modality benchmark in the layout of SYSU-MM01, RegDB or LLCM."""
    from fmcnet.synthetic import generate

    with explain_resume():
        summary = generate(layout, preset, seed, out, workers=workers or None, progress=not json_)
    if json_:
        print_json(summary.as_dict())
        return
    shown = summary.as_dict()
    shown["seconds"] = f"{summary.seconds:.1f}"
    shown["images_per_second"] = f"{summary.images_per_second:.0f}"
    show("generated", shown, {"out": shown.pop("out")})


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="The dataset's folder or CSV.")],
    layout: Layout = "auto",
    images: Annotated[bool, typer.Option(help="Decode every image, too.")] = True,
    json_: Json = False,
) -> None:
    """Tell what a dataset has, what it lacks and where to get it; exit code 1 if something is wrong."""
    from fmcnet.data.check import check

    report = check(root, layout, images=images, progress=False if json_ else None)
    if json_:
        print_json(report.to_dict())
    else:
        for line in report.lines():
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def summary(
    root: Annotated[Path, typer.Argument(help="The dataset's folder or CSV.")],
    layout: Layout = "auto",
    split: Annotated[int, typer.Option(help="RegDB: which of the ten splits.", min=1, max=10)] = 1,
    json_: Json = False,
) -> None:
    """Identities, images and cameras by split and modality."""
    from fmcnet.data.readers import read_dataset
    from fmcnet.data.summary import summary

    found = summary(read_dataset(root, layout=layout, trial=split))
    if json_:
        print_json(found.to_dict())
    else:
        for line in found.lines():
            typer.echo(line)


@app.command()
def cache(
    folder: Annotated[
        Path | None, typer.Option(help="Default: $FMCNET_CACHE, else ~/.cache/fmcnet.", show_default=False)
    ] = None,
    prune: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove what was not used for so long, as 30d or 12h; 0d: all."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the decoded images kept on disk, and remove those no longer used; they can always be built again."""
    from fmcnet.data.cache import default_folder
    from fmcnet.data.cache_folder import look, parse_age
    from fmcnet.data.cache_folder import prune as remove

    place = folder or default_folder()
    found = look(place) if prune is None else remove(place, parse_age(prune))
    if json_:
        print_json(found.to_dict())
    else:
        for line in found.lines():
            typer.echo(line)
