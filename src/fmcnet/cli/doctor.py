"""`fmcnet doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Device, Json, echo, print_json


def doctor(
    model: Annotated[
        str | None, typer.Option(help="A model to try; without it the one that the gallery notes.")
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="A gallery: does it fit the model? A folder or milvus://host:port/name."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration; without it the one in the model's folder.")
    ] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Report versions, devices, threads and extras; exit code 1 if something must be mended.

    fmcnet doctor --model fmcnet-lite --gallery people.gallery

    With a model, a gallery and a calibration it says whether they fit together. It writes nothing.
    """
    from fmcnet.doctor import diagnose

    found = diagnose(model, gallery, calibration, device)
    if json_:
        print_json(found.to_dict())
    else:
        echo("\n".join(found.lines()))
    if not found.ok:
        raise typer.Exit(1)
