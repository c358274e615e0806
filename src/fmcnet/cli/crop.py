"""`fmcnet crop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcnet.cli.console import Json, Range, check_choice, echo, explain_resume, print_json, show
from fmcnet.cli.search import Zone
from fmcnet.names import printable


def crop(
    frames: Annotated[Path, typer.Argument(help="A folder of images, or a video (extra video).")],
    boxes: Annotated[
        Path, typer.Argument(help="MOTChallenge text, COCO JSON, or the CSV of supervision's CSVSink.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the crops and people.csv.")],
    modality: Annotated[str, typer.Option(help="visible or infrared: what the frames are.")],
    camera: Annotated[
        str | None, typer.Option(help="The camera of all crops; part of the tracks' names.")
    ] = None,
    start_time: Annotated[
        str | None,
        typer.Option(help="Of the first frame, as 2026-03-01T22:15:00; without it crops have no time."),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Frames a second; default: the video's own clock.", show_default=False),
    ] = None,
    timezone: Zone = "UTC",
    doubtful_times: Annotated[
        str,
        typer.Option(help="A start time that comes twice, or never: refuse, or take the earlier or later."),
    ] = "refuse",
    min_size: Annotated[int, typer.Option(help="Leave out boxes less wide or high, in pixels.", min=1)] = 8,
    every: Annotated[int, typer.Option(help="Take each Nth frame only.", min=1)] = 1,
    first_frame: Annotated[
        int | None,
        typer.Option(
            help="Number of the first frame in BOXES; default: 1 in MOTChallenge text, 0 in supervision's CSV.",
            min=0,
            show_default=False,
        ),
    ] = None,
    range_: Range = None,
    json_: Json = False,
) -> None:
    """Crop persons from frames by a detector's or tracker's boxes, for fmcnet index.

    fmcnet crop night.mp4 night.txt --out crops --modality infrared --camera gate

    Writes OUT/people.csv with path, modality, camera, time and track. Ctrl-C or a kill loses no crop: the same
    command continues.
    """
    from typing import get_args

    from fmcnet.data.crop import CropOptions
    from fmcnet.data.crop import crop as crop_boxes
    from fmcnet.data.depth import parse_range
    from fmcnet.errors import FmcnetError
    from fmcnet.retrieval.inputs import optional_text
    from fmcnet.retrieval.times import Doubtful, parse_capture_time, parse_timezone
    from fmcnet.types import parse_modality

    if fps is not None and not 0 < fps < 1e6:
        raise FmcnetError(f"--fps {fps:g}: give frames a second, above 0")
    if start_time is None and (timezone, doubtful_times) != ("UTC", "refuse"):
        raise FmcnetError("--timezone and --doubtful-times are of --start-time: give it, or leave them out")
    doubtful = check_choice("--doubtful-times", doubtful_times, get_args(Doubtful))
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
    with explain_resume():
        report = crop_boxes(frames, boxes, out, options, progress=False if json_ else None)
    if json_:
        print_json(report.to_dict())
        return
    facts = {
        "frames": report.frames,
        "without boxes": report.empty,
        "boxes": report.boxes,
        "crops": report.crops,
        "clipped at the edge": report.clipped,
    }
    facts |= {f"not chosen by --every {every}": report.not_chosen} if every > 1 else {}
    left_out = sum(report.left_out.counts.values())
    show(f"cropped by {report.format} boxes", {**facts, "left out": left_out}, {"table": report.table})
    for line in (*report.left_out.lines(), *(f"note: {note}" for note in report.notes)):
        echo(printable(line), err=True)
    from fmcnet.data.listing import ignored_line

    if ignored := ignored_line(report.ignored):
        echo(ignored, err=True)
