"""`fmcnet export` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Json, echo, print_json
from fmcnet.errors import FmcnetError


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a shipped model's name.")],
    to: Annotated[str, typer.Option(help="The format: onnx.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="In int8; refused when it loses more than 0.5 points of mAP.")
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="For --int8: a dataset or CSV whose images give the ranges.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A dataset or CSV to compare Rank-1 and mAP on; default: that of --calibrate."),
    ] = None,
    images: Annotated[int, typer.Option(help="Images that int8 ranges are learnt from.", min=2)] = 256,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; default RUN/onnx or RUN/onnx-int8.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep an int8 model that loses too much.")] = False,
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
    from fmcnet.inference.export.parity import markdown
    from fmcnet.inference.export.write import export as write

    result = write(
        run,
        int8=int8,
        calibrate=calibrate,
        data=data,
        images=images,
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
