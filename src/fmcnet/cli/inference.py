"""`fmcnet embed | calibrate | project | adapt`: images to embeddings, and what a model learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fmcnet.cli.console import Device, Json, Model, Range, check_choice, echo, print_json
from fmcnet.errors import FmcnetError

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in the folder.")]


def embed(
    run: Model,
    out: Annotated[Path, typer.Option(help="The .npz to write, which fmcnet score reads.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images, or folders of images; with --modality.")
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="visible (vis, rgb) or infrared (ir, nir, thermal): what all these images are."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Instead of images: a dataset or CSV, with identities, cameras and modalities."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of --data: train, val, test (default) or all.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 64,
    on_error: Annotated[
        str | None,
        typer.Option(
            help="raise (default): stop at broken images and name them; skip: leave them out and name them."
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="The old name of --on-error skip.", hidden=True)
    ] = False,
    range_: Range = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not bring embeddings to unit length.")] = False,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Turn images into embeddings; a dot product of two is their cosine similarity.

    fmcnet embed runs/mine --data data --out e.npz; fmcnet score e.npz

    The .npz holds features (N, E) float32, pid, camid, modality (0 visible, 1 infrared), index and name, all (N,).
    Of images without --data identity and camera are unknown (-1).
    """
    from fmcnet.data.listing import Ignored, ignored_facts, ignored_line
    from fmcnet.data.value_range import RANGE_UNUSED, Remarks, parse_range
    from fmcnet.inference.embed import embed_dataset, embed_files

    skip = check_choice("--on-error", on_error, ("raise", "skip")) == "skip" or skip_unreadable
    for_images: dict[str, object] = {
        "images": images,
        "--modality": modality,
        "--on-error": on_error or skip_unreadable,
        "--range": range_,
    }
    facts: dict[str, Any] = {}
    lines: list[str] = []
    if data is not None:
        others = [name for name, value in for_images.items() if value]
        if others:
            raise FmcnetError(
                f"--data is a dataset, so {' and '.join(others)} would do nothing: leave it out"
            )
        count, dim = embed_dataset(
            run, data, out, split=split or "test", batch=batch, normalize=not raw, device=device
        )
    elif not images or modality is None:
        raise FmcnetError("give images and their --modality, or a dataset as --data")
    elif split is not None:
        raise FmcnetError("--split is of a dataset: give it as --data")
    else:
        remarks = Remarks()
        ignored: list[Ignored] = []
        count, dim = embed_files(
            run,
            images,
            modality,
            out,
            batch=batch,
            normalize=not raw,
            skip=skip,
            device=device,
            value_range=None if range_ is None else parse_range(range_),
            remarks=remarks,
            ignored=ignored,
        )
        notes = remarks.lines()
        if range_ is not None and not remarks.ranged():
            notes.append(RANGE_UNUSED)
        left = tuple(ignored)
        facts = {"modality": modality, "ignored": ignored_facts(left), "notes": notes}
        lines = [ignored_line(left), *notes]
    if json_:
        print_json({"out": str(out), "images": count, "dim": dim, **facts})
        return
    echo(f"{count} embeddings of length {dim}: {out}")
    for line in filter(None, lines):
        echo(line, err=True)


def calibrate(
    run: Model,
    data: Annotated[
        Path,
        typer.Option("--data", help="A labelled dataset: a folder or a CSV (fmcnet docs datasets)."),
    ],
    fmr: Annotated[
        float, typer.Option(help="False-match rate of the default threshold, of one comparison.")
    ] = 0.001,
    prior: Annotated[
        float,
        typer.Option(help="Default probability, before comparing, that two images show one person."),
    ] = 0.5,
    split: Annotated[
        str, typer.Option(help="auto (identities not trained on), all, train, val or test.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write, for --calibration of search and serve; default: calibration.json in the model's "
            "folder, which is found by itself."
        ),
    ] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Learn from a labelled table what a similarity means: probability of "same person", thresholds.

    fmcnet calibrate runs/mine --data labels.csv --fmr 0.001

    Kept beside the weights, for each pair of modalities; figures are of identities that were not learnt from.
    """
    from fmcnet.inference.fit_calibration import calibrate_model, calibration_lines

    found, path = calibrate_model(
        run,
        data,
        split=split,
        fmr=fmr,
        prior=prior,
        out=out,
        device=device,
        progress=False if json_ else None,
    )
    if json_:
        print_json({"out": str(path), **found.to_dict()})
        return
    for line in calibration_lines(found):
        echo(line)
    if out is not None:
        echo(f"use it: fmcnet search GALLERY IMAGE --calibration {path} (or fmcnet serve)")
    echo(f"calibration: {path}")


def project(
    run: Model,
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="The dataset or CSV it was trained on; its training images are learnt from."
        ),
    ],
    dim: Annotated[int, typer.Option(help="Values of an embedding.", min=1)],
    method: Annotated[str, typer.Option(help="discriminant, or pca (more values than identities).")] = (
        "discriminant"
    ),
    out: Annotated[Path | None, typer.Option(help="The folder to write; default RUN/projected-DIM.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Make a model of smaller embeddings: a linear map behind the network, learnt from its training images.

    fmcnet project runs/mine --data data --dim 256

    The folder works wherever a run does (fmcnet evaluate, export, index). It is another model: galleries and
    calibrations of the one it was made from are refused.
    """
    from fmcnet.inference.fit_projection import project_model
    from fmcnet.models.card import model_digest

    found, folder = project_model(
        run,
        data,
        dim=dim,
        method=method,  # type: ignore[arg-type]  # `fit` says which there are
        out=out,
        overwrite=overwrite,
        device=device,
        progress=False if json_ else None,
    )
    facts = {"dim": found.dim, "from": len(found.mean), "method": found.method, **found.facts}
    if json_:
        said = {"out": str(folder), "digest": model_digest(folder), "source": found.source, **facts}
        print_json(said)
        return
    echo(
        f"{len(found.mean)} values to {found.dim} ({found.method}), learnt from {facts['images']:,} images of "
        f"{facts['identities']:,} identities"
    )
    echo(f"model: {folder}\nwhat it costs: fmcnet evaluate {folder} --data {data} --both")


def adapt(
    run: Model,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Images of both modalities: a dataset's folder or a CSV. Identities are not used."
        ),
    ] = None,
    visible: Annotated[
        list[Path] | None, typer.Option(help="A visible image or a folder of them; repeatable.")
    ] = None,
    infrared: Annotated[
        list[Path] | None, typer.Option(help="An infrared image or a folder of them; repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 64,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Adapt a model to your cameras with unlabelled crops: only statistics change, no weights.

    fmcnet adapt fmcnet-lite --visible day --infrared night --out adapted

    The folder works wherever a run does. It is another model: index into a new gallery and calibrate again.
    """
    from dataclasses import asdict

    from fmcnet.data.readers import read_dataset
    from fmcnet.inference.adapt import Crops, adapt_model
    from fmcnet.inference.image_input import list_images

    if (data is None) == (not visible and not infrared):
        raise FmcnetError("give either a dataset or CSV, or --visible and --infrared")
    if data is not None:
        crops = Crops.of_table(read_dataset(data))
    elif visible and infrared:
        crops = Crops.of(list_images(visible), list_images(infrared))
    else:
        lacks = "--infrared" if visible else "--visible"
        raise FmcnetError(f"adapting needs images of both modalities: give {lacks}, too")
    found = adapt_model(
        run, crops, out, overwrite=overwrite, batch=batch, device=device, progress=False if json_ else None
    )
    if json_:
        print_json({"out": str(found.folder), **asdict(found)})
        return
    echo(
        f"statistics of {found.images['visible']:,} visible and {found.images['infrared']:,} infrared images"
    )
    echo(f"model: {found.folder} (digest {found.digest})")
    before = "" if found.digest == found.source else f"; one of model {found.source} does not hold"
    echo(f"calibration: none{before}. Learn one: fmcnet calibrate {found.folder} --data TABLE")
