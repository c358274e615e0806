"""`fmcnet info | embed | calibrate | project | adapt | export | push`: what a model is, gives, learns and becomes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import FmcnetError, collect_warnings

Overwrite = Annotated[bool, Option("--overwrite", help="Replace the model that is in the folder.")]


def info(run: console.Model, json_: console.Json = False) -> None:
    """Show what a run is: model, data, settings, versions."""
    from fmcnet.inference.info import model_info

    facts = model_info(run)
    if json_:
        console.print_json(facts)
        return
    config = facts.pop("config")
    sections = {"versions": facts.pop("versions"), **config}
    texts = {name: ", ".join(f"{k} {v}" for k, v in section.items()) for name, section in sections.items()}
    if "weights_sha256" in facts:
        facts["weights_sha256"] += " (of names and tensors)"
    paths: dict[str, str] = {key: facts.pop(key) for key in ("weights", "made_from") if key in facts}
    console.show(facts.pop("run"), {**facts, **texts}, paths)


def embed(
    run: console.Model,
    out: Annotated[Path, Option(help="The .npz to write, which fmcnet score reads.")],
    images: Annotated[list[Path] | None, Argument(help="Images or folders, with --modality.")] = None,
    modality: Annotated[
        str | None,
        Option(help="visible (vis, rgb) or infrared (ir, nir, thermal): what all these images are."),
    ] = None,
    data: Annotated[
        Path | None,
        Option(help="Instead of images: a dataset or CSV, with identities, cameras and modalities."),
    ] = None,
    split: Annotated[str | None, Option(help="Part of --data: train, val, test (default) or all.")] = None,
    batch: console.Batch = 64,
    on_error: Annotated[
        str | None,
        Option(
            help="raise (default): stop at broken images and name them; skip: leave them out and name them."
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool, Option("--skip-unreadable", help="The old name of --on-error skip.", hidden=True)
    ] = False,
    range_: console.Range = None,
    raw: Annotated[bool, Option("--raw", help="Do not bring embeddings to unit length.")] = False,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Turn images into embeddings; a dot product of two is their cosine similarity.

    fmcnet embed runs/mine --data data --out e.npz; fmcnet score e.npz

    The .npz holds features (N, E) float32, pid, camid, modality (0 visible, 1 infrared), index and name, all (N,),
    and pid_name and camera_name where there are names. Of images without --data identity and camera are unknown (-1).
    """
    from fmcnet.data.listing import Ignored, ignored_facts, ignored_line
    from fmcnet.data.pixels import RANGE_UNUSED, Remarks, parse_range
    from fmcnet.inference.embed import embed_dataset, embed_files

    skip = console.check_choice("--on-error", on_error, ("raise", "skip")) == "skip" or skip_unreadable
    for_images = {"images": images, "--modality": modality, "--on-error": on_error or skip, "--range": range_}
    used = [name for name, value in for_images.items() if value]
    facts: dict[str, Any] = {}
    lines: list[str] = []
    if data is not None:
        if used:
            raise FmcnetError(f"--data is a dataset, so {' and '.join(used)} would do nothing: leave it out")
        count, dim = embed_dataset(
            run,
            data,
            out,
            split="test" if split is None else split,
            batch=batch,
            normalize=not raw,
            device=device,
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
        facts = {"modality": modality, "ignored": ignored_facts(tuple(ignored)), "notes": notes}
        lines = [ignored_line(tuple(ignored)), *notes]
    if json_:
        console.print_json({"out": str(out), "images": count, "dim": dim, **facts})
        return
    console.echo(f"{count} embeddings of length {dim}: {out}")
    for line in filter(None, lines):
        console.echo(line, err=True)


def calibrate(
    run: console.Model,
    data: Annotated[Path, Option("--data", help="A labelled dataset, folder or CSV: fmcnet docs datasets.")],
    fmr: Annotated[
        float, Option(help="False-match rate of the default threshold, of one comparison.")
    ] = 0.001,
    prior: Annotated[
        float, Option(help="Default probability, before comparing, that two images show one person.")
    ] = 0.5,
    split: Annotated[str, Option(help="auto (identities not trained on), all, train, val or test.")] = "auto",
    out: Annotated[
        Path | None,
        Option(
            help="The file to write, for --calibration of search and serve; default: calibration.json in "
            "the model's folder, which is found by itself."
        ),
    ] = None,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Learn from a labelled table what a similarity means: probability of "same person", thresholds.

    fmcnet calibrate runs/mine --data labels.csv --fmr 0.001

    Kept beside the weights, for each pair of modalities; figures are of identities that were not learnt from.
    """
    from fmcnet.inference.fit_calibration import calibrate_model, calibration_lines, threshold_notes

    with collect_warnings() as warnings:
        calibration, path = calibrate_model(
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
        notes = [*warnings, *threshold_notes(calibration)]
        console.print_json({"out": str(path), **calibration.to_dict(), "notes": notes})
        return
    for line in calibration_lines(calibration):
        console.echo(line)
    if out is not None:
        console.echo(f"use it: fmcnet search GALLERY IMAGE --calibration {path} (or fmcnet serve)")
    console.echo(f"calibration: {path}")


def project(
    run: console.TrainedModel,
    data: Annotated[
        Path,
        Option("--data", help="The dataset or CSV it was trained on; its training images are learnt from."),
    ],
    dim: Annotated[int, Option(help="Values of an embedding.", min=1)],
    method: Annotated[str, Option(help="discriminant, or pca (more values than identities).")] = (
        "discriminant"
    ),
    out: Annotated[Path | None, Option(help="The folder to write; default RUN/projected-DIM.")] = None,
    overwrite: Overwrite = False,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Make a model of smaller embeddings: a linear map behind the network, learnt from its training images.

    fmcnet project runs/mine --data data --dim 256

    The folder works wherever a run does (fmcnet evaluate, export, index). It is another model: galleries and
    calibrations of the one it was made from are refused.
    """
    from fmcnet.inference.fit_projection import project_model
    from fmcnet.models.card import model_digest

    result, folder = project_model(
        run,
        data,
        dim=dim,
        method=method,  # type: ignore[arg-type]  # `fit_projection` says which there are
        out=out,
        overwrite=overwrite,
        device=device,
        progress=False if json_ else None,
    )
    facts = {"dim": result.dim, "from": len(result.mean), "method": result.method, **result.facts}
    if json_:
        content = {"out": str(folder), "digest": model_digest(folder), "source": result.source, **facts}
        console.print_json(content)
        return
    console.echo(
        f"{len(result.mean)} values to {result.dim} ({result.method}), learnt from {facts['images']:,} "
        f"images of {facts['identities']:,} identities"
    )
    console.echo(f"model: {folder}\nwhat it costs: fmcnet evaluate {folder} --data {data} --both")


def adapt(
    run: console.TrainedModel,
    out: Annotated[Path, Option(help="The folder to write.")],
    data: Annotated[
        Path | None, Argument(help="A dataset or CSV with both modalities; identities are not used.")
    ] = None,
    visible: Annotated[list[Path] | None, Option(help="A visible image or folder; repeatable.")] = None,
    infrared: Annotated[list[Path] | None, Option(help="An infrared image or folder; repeatable.")] = None,
    overwrite: Overwrite = False,
    batch: console.Batch = 64,
    range_: console.Range = None,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Adapt a model to your cameras with unlabelled crops: only statistics change, no weights.

    fmcnet adapt fmcnet-lite --visible day --infrared night --out adapted

    The folder works wherever a run does. It is another model: index into a new gallery and calibrate again.
    """
    from fmcnet.data.listing import Ignored, ignored_facts, ignored_line
    from fmcnet.data.pixels import parse_range
    from fmcnet.data.readers import read_dataset
    from fmcnet.inference.adapt import Crops, adapt_model
    from fmcnet.inference.image_input import list_images

    if (data is None) == (not visible and not infrared):
        raise FmcnetError("give either a dataset or CSV, or --visible and --infrared")
    value_range = None if range_ is None else parse_range(range_)
    ignored: list[Ignored] = []
    if data is not None:
        crops = Crops.of_table(read_dataset(data))
    elif visible and infrared:
        sources = [list_images(visible, ignored), list_images(infrared, ignored)]
        if ignored:
            console.echo(ignored_line(tuple(ignored)), err=json_)
        crops = Crops.of(*sources)
    else:
        missing = "--infrared" if visible else "--visible"
        raise FmcnetError(f"adapting needs images of both modalities: give {missing}, too")
    adapted = adapt_model(
        run,
        crops,
        out,
        overwrite=overwrite,
        batch=batch,
        device=device,
        progress=False if json_ else None,
        value_range=value_range,
    )
    if json_:
        console.print_json(
            {"out": str(adapted.folder), **asdict(adapted), "ignored": ignored_facts(tuple(ignored))}
        )
        return
    console.echo(
        f"statistics of {adapted.images['visible']:,} visible and {adapted.images['infrared']:,} infrared images"
    )
    console.echo(f"model: {adapted.folder} (digest {adapted.digest})")
    note = "" if adapted.digest == adapted.source else f"; one of model {adapted.source} does not hold"
    console.echo(f"calibration: none{note}. Learn one: fmcnet calibrate {adapted.folder} --data TABLE")


def export(
    run: console.TrainedModel,
    to: Annotated[str, Option(help="The format: onnx.")] = "onnx",
    int8: Annotated[
        bool, Option("--int8", help="Quantise to int8; refused when it loses more than 0.5 points of mAP.")
    ] = False,
    calibrate: Annotated[
        Path | None, Option(help="For --int8: a dataset or CSV whose images give the ranges.")
    ] = None,
    data: Annotated[
        Path | None,
        Option(help="A dataset or CSV to compare Rank-1 and mAP on; default: that of --calibrate."),
    ] = None,
    images: Annotated[
        int | None, Option(help="For --int8: images that ranges are learnt from; default 256.", min=2)
    ] = None,
    out: Annotated[Path | None, Option(help="Folder to write; default RUN/onnx or RUN/onnx-int8.")] = None,
    force: Annotated[bool, Option("--force", help="With --int8: keep a model that loses too much.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an export of another model.")] = False,
    json_: console.Json = False,
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
        console.print_json(result.to_dict())
        return
    console.echo(markdown(result.forms, result.remarks))
    console.echo(f"model: {result.out}")


def push(
    model: console.Model,
    name: Annotated[str, Argument(metavar="OWNER/NAME", help="Name of the repository on the hub.")],
    public: Annotated[bool, Option("--public", help="Make a new repository public, not private.")] = False,
    message: Annotated[str | None, Option(help="Message of the commit.")] = None,
    json_: console.Json = False,
) -> None:
    """Push a model to the Hugging Face Hub: weights, card, calibration and README.md, no images.

    fmcnet push runs/sysu me/fmcnet-sysu

    Then Encoder.from_pretrained("me/fmcnet-sysu") fetches it. Log in once with: hf auth login
    """
    from fmcnet.models.hub import push as write
    from fmcnet.models.shipped import find_model

    address = write(find_model(model), name, public=public, message=message)
    if json_:
        console.print_json({"model": str(model), "name": name, "commit": address})
    else:
        console.show("pushed", {"name": name}, {"commit": address})
