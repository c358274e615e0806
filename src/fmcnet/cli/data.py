"""`fmcnet crop` and `fmcnet data generate | check | summary | pairs | cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import FmcnetError, first_of

app = typer.Typer(help="Generate, check and summarise datasets.", no_args_is_help=True)


@app.command()
def generate(
    out: Annotated[Path, Option(help="Folder to write; an interrupted one is continued.")],
    layout: Annotated[str, Option(help="sysu, regdb, llcm or wild.")] = "sysu",
    preset: Annotated[str, Option(help="tiny (seconds), small (the demo), full (the real sizes).")] = "small",
    seed: Annotated[int, Option(help="Same seed, same pixels.", min=0)] = 0,
    workers: Annotated[int, Option(help="Processes; 0: one a core.", min=0)] = 0,
    json_: console.Json = False,
) -> None:
    """Write the generated two-modality benchmark in the layout of SYSU-MM01, RegDB or LLCM, or a CSV (wild)."""
    from fmcnet.synthetic import generate

    with console.explain_resume():
        summary = generate(layout, preset, seed, out, workers=workers or None, progress=not json_)
    facts = summary.to_dict()
    if json_:
        console.print_json(facts)
        return
    facts["seconds"] = f"{summary.seconds:.1f}"
    facts["images_per_second"] = f"{summary.images_per_second:.0f}"
    console.show("generated", facts, {"out": facts.pop("out")})


@app.command()
def check(
    root: Annotated[Path, Argument(help="The dataset's folder or CSV.")],
    layout: console.Layout = "auto",
    images: Annotated[bool, Option(help="Decode every image, too.")] = True,
    json_: console.Json = False,
) -> None:
    """Report what a dataset has, what it lacks and where to get it; exit code 1 if something is wrong."""
    from fmcnet.data.check import check

    report = check(root, layout, images=images, progress=False if json_ else None)
    console.print_report(report, json_)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def summary(
    root: Annotated[Path, Argument(help="The dataset's folder or CSV.")],
    layout: console.Layout = "auto",
    split: Annotated[int | None, Option(help="RegDB: one of ten splits; default 1.", min=1, max=10)] = None,
    json_: console.Json = False,
) -> None:
    """Identities, images and cameras by split and modality."""
    from fmcnet.data.check import summary
    from fmcnet.data.readers import read_dataset

    table = read_dataset(root, layout=layout, regdb_split=split or 1)
    if split not in (None, 1) and table.name != "regdb":
        raise FmcnetError(f"--split is for RegDB; {root} is {table.name}, which has one split: leave it out")
    console.print_report(summary(table), json_)


@app.command()
def pairs(
    visible: Annotated[Path, Argument(help="Folder of crops, or the people.csv of fmcnet crop.")],
    infrared: Annotated[Path, Argument(help="The same of the infrared camera.")],
    out: Annotated[Path, Option(help="The CSV to write.")],
    folders: Annotated[
        bool, Option("--folders", help="Crops in one folder show one person, as a tracker writes them.")
    ] = False,
    json_: console.Json = False,
) -> None:
    """Pair the crops that two cameras side by side took at one moment: a training table without labels.

    fmcnet data pairs day night --out pairs.csv

    Crops of one moment have one name in both folders, but for the suffix and a word such as vis or ir.
    """
    from fmcnet.data.listing import ignored_line
    from fmcnet.data.pairs import make_pairs

    report = make_pairs(visible, infrared, out, folders=folders)
    if json_:
        console.print_json(report.to_dict())
        return
    console.show("paired", {"pairs": report.pairs, "identities": report.identities}, {"table": report.table})
    left_out = {f"{modality} crops without a partner": names for modality, names in report.alone.items()}
    for label, names in (left_out | {"rows without a file": report.missing}).items():
        if names:
            console.echo(f"{len(names)} {label} left out: {first_of(names, 3)}")
    for note in report.notes:
        console.echo(note)
    if report.ignored:
        console.echo(ignored_line(report.ignored))


@app.command()
def cache(
    folder: Annotated[Path | None, Option(help="Default: $FMCNET_CACHE, else ~/.cache/fmcnet.")] = None,
    prune: Annotated[
        str | None, Option(metavar="AGE", help="Remove caches unused for 30d, 12h...; 0d: all.")
    ] = None,
    json_: console.Json = False,
) -> None:
    """List the caches of decoded images, and remove unused ones; they can always be built again."""
    from fmcnet.data.cache import default_folder
    from fmcnet.data.cache_pruning import list_caches, prune_caches
    from fmcnet.parsing import parse_duration

    folder = folder or default_folder()
    report = list_caches(folder) if prune is None else prune_caches(folder, parse_duration(prune))
    console.print_report(report, json_)


def crop(
    frames: Annotated[Path, Argument(help="A folder of images, or a video (extra video).")],
    boxes: Annotated[Path, Argument(help="MOTChallenge text, COCO JSON or CSV of supervision's CSVSink.")],
    out: Annotated[Path, Option(help="Folder of the crops and people.csv.")],
    modality: Annotated[str, Option(help="visible or infrared: what the frames are.")],
    camera: Annotated[str | None, Option(help="The camera of all crops; part of the tracks' names.")] = None,
    start_time: Annotated[
        str | None,
        Option(help="Time of the first frame, as 2026-03-01T22:15:00; without it crops have no time."),
    ] = None,
    fps: Annotated[float | None, Option(help="Frames a second; default: the video's own clock.")] = None,
    timezone: console.Zone = "UTC",
    doubtful_times: console.DoubtfulTimes = "refuse",
    min_size: Annotated[int, Option(help="Leave out boxes less wide or high, in pixels.", min=1)] = 8,
    every: Annotated[int, Option(help="Take each Nth frame only.", min=1)] = 1,
    first_frame: Annotated[
        int | None,
        Option(
            help="First frame's number in BOXES; default 1 (MOTChallenge) or 0 (supervision). Of COCO in a video: in "
            "the images' names, or frame_id where these hold no counter.",
            min=0,
        ),
    ] = None,
    range_: console.Range = None,
    json_: console.Json = False,
) -> None:
    """Crop persons from frames by a detector's or tracker's boxes, for fmcnet index.

    fmcnet crop night.mp4 night.txt --out crops --modality infrared --camera gate

    Writes OUT/people.csv with path, modality, camera, time and track. Ctrl-C or a kill loses no crop: the same
    command continues.
    """
    from fmcnet.data.crop import CropOptions
    from fmcnet.data.crop import crop as crop_boxes
    from fmcnet.data.listing import ignored_line
    from fmcnet.data.pixels import parse_range
    from fmcnet.retrieval.inputs import optional_text
    from fmcnet.times import Doubtful, parse_capture_time, parse_timezone
    from fmcnet.types import parse_modality

    if fps is not None and not 0 < fps < 1e6:
        raise FmcnetError(f"--fps {fps:g}: give frames a second, above 0")
    if start_time is None and (timezone, doubtful_times) != ("UTC", "refuse"):
        raise FmcnetError("--timezone and --doubtful-times are of --start-time: give it, or leave them out")
    doubtful = console.check_choice("--doubtful-times", doubtful_times, get_args(Doubtful))
    zone = parse_timezone(timezone)
    options = CropOptions(
        modality=parse_modality(modality),
        camera=optional_text(camera, "camera"),
        start=None if start_time is None else parse_capture_time(start_time, zone, doubtful),
        fps=fps,
        min_size=min_size,
        every=every,
        first=first_frame,
        value_range=None if range_ is None else parse_range(range_),
    )
    with console.explain_resume():
        report = crop_boxes(frames, boxes, out, options, progress=False if json_ else None)
    if json_:
        console.print_json(report.to_dict())
        return
    facts: dict[str, int | str] = {
        "frames": report.frames,
        "without boxes": report.frames_without_boxes,
        "boxes": report.boxes,
        "crops": report.crops,
        "clipped at the edge": report.clipped,
    }
    facts |= {f"not chosen by --every {every}": report.not_chosen} if every > 1 else {}
    tracks = [f"{recording}/ID" for recording in report.recordings]
    facts |= {"tracks": first_of(tracks, 3)} if tracks else {}
    left_out = sum(report.left_out.counts.values())
    console.show(
        f"cropped by {report.format} boxes", {**facts, "left out": left_out}, {"table": report.table}
    )
    notes = [f"note: {note}" for note in report.notes]
    for line in filter(None, (*report.left_out.lines(), *notes, ignored_line(report.ignored))):
        console.echo(line, err=True)
