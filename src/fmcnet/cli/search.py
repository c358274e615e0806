"""`fmcnet search`, and the options that commands of galleries share; docs/guides/search.md explains them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcnet.cli.console import (
    CalibrationFile,
    Device,
    Json,
    Range,
    check_choice,
    echo,
    print_json,
    show_rows,
)
from fmcnet.errors import FmcnetError
from fmcnet.names import printable

if TYPE_CHECKING:
    from datetime import datetime

    from fmcnet.retrieval.answer import Answer
    from fmcnet.retrieval.records import Where

GalleryPath = Annotated[
    str, typer.Argument(metavar="GALLERY", help="A gallery's folder, or milvus://host:port/name.")
]
Model = Annotated[
    str | None,
    typer.Option(help="A run, an exported model's folder, or a shipped model's name; default: as indexed."),
]
Zone = Annotated[str, typer.Option(help="Timezone of times without one: UTC, Europe/Berlin...")]
ShownZone = Annotated[
    str, typer.Option(help="Timezone of shown times, and of times without one: UTC, Europe/Berlin...")
]
Cameras = Annotated[
    list[str] | None, typer.Option("--camera", help="Only entries of this camera; repeatable.")
]
Since = Annotated[
    str | None, typer.Option(help="Only entries seen at or after 2026-03-01, or 2026-03-01T22:15:00.")
]
Until = Annotated[str | None, typer.Option(help="Only entries seen before this time.")]


def make_filter(
    cameras: list[str] | None,
    since: str | None,
    until: str | None,
    timezone: str,
    *,
    modality: str | None = None,
    ids: list[str] | None = None,
    pids: list[str] | None = None,
    tracks: list[str] | None = None,
    tags: list[str] | None = None,
) -> Where:
    """The conditions that options give; an option that was not given is none."""
    from fmcnet.errors import DataError
    from fmcnet.retrieval.records import Where
    from fmcnet.retrieval.times import parse_time, parse_timezone
    from fmcnet.types import parse_modality

    zone = parse_timezone(timezone)

    def moment(option: str, text: str | None) -> datetime | None:
        try:
            return None if text is None else parse_time(text, zone)
        except DataError as error:  # the clocks change: no option settles it here
            reason = str(error).partition(": say --doubtful")[0]
            raise FmcnetError(f"{option}: {reason}: write it with its offset, as {text}+00:00") from error

    return Where(
        ids=ids or None,
        pids=pids or None,
        cameras=cameras or None,
        tracks=tracks or None,
        modality=None if modality is None else parse_modality(modality),
        since=moment("--since", since),
        until=moment("--until", until),
        tags=tags or None,
    )


def search(
    gallery: GalleryPath,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="One or several images of ONE person.")
    ],
    modality: Annotated[
        list[str],
        typer.Option(help="visible or infrared: one for all images, or repeated, one for each in order."),
    ],
    model: Model = None,
    calibration: CalibrationFile = None,
    top: Annotated[int, typer.Option(help="Most results.", min=1)] = 20,
    camera: Cameras = None,
    since: Since = None,
    until: Until = None,
    among: Annotated[
        str | None,
        typer.Option(
            "--entry-modality",
            "--among",
            help="Only visible, or only infrared entries (--among is the old name).",
            show_default=False,
        ),
    ] = None,
    timezone: ShownZone = "UTC",
    min_probability: Annotated[
        float | None, typer.Option(help="Leave out less probable entries, 0..1.")
    ] = None,
    fmr: Annotated[
        float | None, typer.Option(help="Leave out entries below the threshold of this false-match rate.")
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(
            help="Probability before comparing; default 1 / (entries compared + 1).", show_default=False
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="track: one result for each, its images pooled; pid: one for each, by its best image."
        ),
    ] = None,
    range_: Range = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page of the ranked images, read from their sources.")
    ] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Search a gallery with images of one person.

    fmcnet search people.gallery night.jpg --modality infrared --min-probability 0.5 --html who.html

    Ranked by cosine similarity. Probabilities need fmcnet calibrate; what they mean: fmcnet docs search.
    """
    from fmcnet.data.listing import Ignored, ignored_line
    from fmcnet.inference.image_input import list_images
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.gallery_model import open_model, range_of
    from fmcnet.retrieval.searcher import Searcher
    from fmcnet.types import parse_modality

    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise FmcnetError(
            f"--html {html}: the page would take this file's place: give a name that ends in .html"
        )
    grouping = check_choice("--group", group, ("track", "pid"))
    condition = make_filter(camera, since, until, timezone, modality=among)
    value_range = range_of(gallery, range_)
    ignored: list[Ignored] = []
    paths = list_images(images, ignored)
    kinds = [parse_modality(one) for one in modality]
    if len(kinds) not in (1, len(paths)):
        raise FmcnetError(
            f"{len(kinds)} modalities for {len(paths)} images: give one for all, or one for each"
        )
    with Gallery(gallery, read_only=True) as opened:  # before the model: a wrong path is said at once
        if opened.settings is None:
            raise FmcnetError(f"{gallery} never had an entry: fmcnet index adds pictures to it")
        answer = Searcher(open_model(gallery, model, device, calibration), opened).search(
            paths,
            kinds if len(kinds) == len(paths) else kinds * len(paths),
            top=top,
            where=None if condition.unconditional else condition,
            min_probability=min_probability,
            fmr=fmr,
            prior=prior,
            group=grouping,
            value_range=value_range,
        )
        if ignored:
            answer = replace(answer, notes=(*answer.notes, ignored_line(tuple(ignored))))
        if html is not None:
            from fmcnet.retrieval.answer import write_page
            from fmcnet.retrieval.times import parse_timezone

            write_page(html, answer, paths, opened.picture, parse_timezone(timezone))
    if json_:
        print_json({"gallery": gallery, **answer.to_dict()})
        return
    _print(answer, timezone)
    if html is not None:
        echo(f"page: {html}")


def _print(answer: Answer, timezone: str) -> None:
    from fmcnet.retrieval.times import parse_timezone, shown_time

    zone = parse_timezone(timezone)
    if answer.hits:
        rows: list[dict[str, Any]] = [
            {
                "": rank,
                "similarity": f"{hit.similarity:.4f}",
                "probability": None if hit.probability is None else f"{hit.probability:.2%}",
                "modality": hit.modality,
                "camera": hit.camera,
                "time": shown_time(hit.time, zone),
                "pid": hit.pid,
                "track": hit.track,
                "pictures": size if answer.groups else None,
            }
            for rank, (hit, size) in enumerate(answer.ranking, 1)
        ]
        show_rows(rows)
        for rank, hit in enumerate(answer.hits, 1):  # whole, to be copied and piped
            echo(f"{rank}: {printable(hit.source or hit.id)}")
    else:
        echo("nobody" if answer.compared else "no entry to compare with")
    for note in filter(None, (answer.order, *answer.notes)):
        echo(note)
