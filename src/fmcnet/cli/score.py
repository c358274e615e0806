"""`fmcnet score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Json, echo, print_json


def score(
    file: Annotated[
        Path, typer.Argument(help="An .npz with features, pid, cam, index; see docs/concepts/protocols.md.")
    ],
    protocol: Annotated[str, typer.Option(help="sysu, regdb or llcm.")] = "sysu",
    mode: Annotated[str, typer.Option(help="SYSU-MM01: all or indoor.")] = "all",
    shots: Annotated[int, typer.Option(help="SYSU-MM01: 1 or 10.")] = 1,
    draw: Annotated[str, typer.Option(help="SYSU-MM01: official or seeded.")] = "official",
    permutation: Annotated[
        Path | None, typer.Option(help="rand_perm_cam.mat, for the official draw.")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="i2v, v2i (RegDB: t2v, v2t); default: the benchmark's.")
    ] = None,
    reading: Annotated[str, typer.Option(help="LLCM: a, b or c.")] = "a",
    cmc: Annotated[str, typer.Option(help="RegDB: image or identity.")] = "image",
    distance: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    json_: Json = False,
) -> None:
    """Score embeddings made by any code with a named protocol.

    FILE holds features (N, D), pid (N,), cam (N,), index (N,): the 1-based position among the sorted images of that
    identity and camera; and modality (N,), 0 visible, 1 infrared, where the camera does not tell (LLCM, CSV). Or
    query_features, query_pid, query_cam and the same with gallery_, as drawn by somebody else.
    """
    from fmcnet.evaluation.score import score_file

    result = score_file(
        file,
        protocol,
        mode=mode,
        shots=shots,
        draw=draw,
        permutation=permutation,
        direction=direction,
        reading=reading,
        cmc=cmc,
        distance=distance,
    )
    if json_:
        print_json(result.to_dict())
    else:
        echo(result.summary())
