"""`fmcnet push`."""

from __future__ import annotations

from typing import Annotated

import typer

from fmcnet.cli.console import Json, Model, print_json, show


def push(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Of the repository on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; otherwise it is private.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Push a model to the Hugging Face Hub: weights, card, calibration and README.md, no images.

    fmcnet push runs/sysu me/fmcnet-sysu

    Then Encoder.from_pretrained("me/fmcnet-sysu") fetches it. Log in once with: hf auth login
    """
    from fmcnet.models.hub import push as write
    from fmcnet.models.shipped import find_model

    address = write(find_model(model), name, public=public, message=message)
    if json_:
        print_json({"model": str(model), "name": name, "commit": address})
    else:
        show("pushed", {"name": name}, {"commit": address})
