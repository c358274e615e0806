"""`fmcnet info | export | push`: what a model is, and how it leaves this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Json, Model, echo, print_json, show
from fmcnet.errors import FmcnetError


def info(run: Model, json_: Json = False) -> None:
    """Show what a run is: model, data, settings, versions."""
    from fmcnet.inference.info import model_info

    facts = model_info(run)
    if json_:
        print_json(facts)
        return
    config = facts.pop("config")
    sections = {"versions": facts.pop("versions"), **config}
    listed = {name: ", ".join(f"{k} {v}" for k, v in section.items()) for name, section in sections.items()}
    paths: dict[str, str] = {key: facts.pop(key) for key in ("weights", "made_from") if key in facts}
    show(facts.pop("run"), {**facts, **listed}, paths)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a shipped model's name.")],
    to: Annotated[str, typer.Option(help="The format: onnx.")] = "onnx",
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise to int8; refused when it loses more than 0.5 points of mAP."),
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="For --int8: a dataset or CSV whose images give the ranges.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A dataset or CSV to compare Rank-1 and mAP on; default: that of --calibrate."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="For --int8: images that ranges are learnt from; default 256.", min=2),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; default RUN/onnx or RUN/onnx-int8.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --int8: keep a model that loses too much.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export of another model that is there.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write a model for ONNX Runtime, and a report on what that changes.

    fmcnet export runs/mine --int8 --calibrate data

    The folder works wherever a run folder does (fmcnet embed, Encoder.from_pretrained), without PyTorch. It holds a
    graph a modality, and parity.md: differences, accuracy, size and speed beside PyTorch, from this very run.
    """
    if to != "onnx":
        raise FmcnetError(f"--to {to}: onnx is the one format there is")
    for_int8 = {"--images": images not in (None, 256), "--force": force}
    for_int8["--calibrate"] = calibrate is not None and data is not None  # alone it is --data, too
    if not int8 and (named := [name for name, given in for_int8.items() if given]):
        raise FmcnetError(
            f"{' and '.join(named)} would do nothing without --int8: leave it out, or give --int8"
        )
    from fmcnet.inference.export.parity import markdown
    from fmcnet.inference.export.write import export as write

    result = write(
        run,
        int8=int8,
        calibrate=calibrate,
        data=data,
        images=images or 256,
        out=out,
        force=force,
        overwrite=overwrite,
        progress=False if json_ else None,
    )
    if json_:
        print_json(result.to_dict())
        return
    echo(markdown(result.forms, result.remarks))
    echo(f"model: {result.out}")


def push(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Name of the repository on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; otherwise it is private.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
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
