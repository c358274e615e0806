"""`fmcnet search`; docs/guides/search.md explains it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import FmcnetError
from fmcnet.names import printable

if TYPE_CHECKING:
    from datetime import tzinfo

    from fmcnet.data.pixels import ValueRange
    from fmcnet.retrieval.answer import Answer
    from fmcnet.retrieval.searcher import GalleryRange


def search(
    gallery: console.GalleryPath,
    images: Annotated[list[Path], Argument(metavar="IMAGE...", help="One or several images of ONE person.")],
    modality: Annotated[
        list[str], Option(help="visible or infrared: one for all images, or repeated, one for each in order.")
    ],
    model: console.GalleryModel = None,
    calibration: console.CalibrationFile = None,
    top: Annotated[int, Option(help="Most results.", min=1)] = 20,
    camera: console.Cameras = None,
    since: console.Since = None,
    until: console.Until = None,
    among: Annotated[
        str | None,
        Option(
            "--entry-modality", "--among", help="Only visible or infrared entries; --among is its old name."
        ),
    ] = None,
    timezone: console.ShownZone = "UTC",
    min_probability: Annotated[float | None, Option(help="Leave out less probable entries, 0..1.")] = None,
    fmr: Annotated[
        float | None, Option(help="Leave out entries below the threshold of this false-match rate.")
    ] = None,
    prior: Annotated[
        float | None, Option(help="Probability before comparing; default 1 / (entries or tracks + 1).")
    ] = None,
    group: Annotated[
        str | None,
        Option(help="track: one result for each, its images pooled; pid: one for each, by its best image."),
    ] = None,
    range_: console.Range = None,
    html: Annotated[
        Path | None, Option(help="Write a page of the ranked images, read from their sources.")
    ] = None,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Search a gallery with images of one person.

    fmcnet search people.gallery night.jpg --modality infrared --min-probability 0.5 --html who.html

    Ranked by cosine similarity. Probabilities need fmcnet calibrate; what they mean: fmcnet docs search.
    """
    from fmcnet.data.listing import Ignored, ignored_line
    from fmcnet.data.pixels import parse_range
    from fmcnet.inference.image_input import expand, list_images
    from fmcnet.retrieval.answer_page import write_page
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.searcher import Searcher, open_model
    from fmcnet.times import parse_timezone

    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise FmcnetError(
            f"--html {html}: the page would take this file's place: give a name that ends in .html"
        )
    grouping = console.check_choice("--group", group, ("track", "pid"))
    where = console.make_filter(camera, since, until, timezone, modality=among)
    value_range: ValueRange | GalleryRange = "gallery" if range_ is None else parse_range(range_)
    ignored: list[Ignored] = []
    paths = list_images(images, ignored)
    # A wrong modality is refused before a gallery is opened and a model is loaded.
    modalities = [item.modality for item in expand(paths, modality if len(modality) > 1 else modality[0])]
    with Gallery(gallery, read_only=True) as opened:  # before the model: a wrong path is said at once
        if opened.settings is None:
            raise FmcnetError(f"{gallery} never had an entry: fmcnet index adds images to it")
        answer = Searcher(open_model(gallery, model, device, calibration), opened).search(
            paths,
            modalities,
            top=top,
            where=None if where.unconditional else where,
            min_probability=min_probability,
            fmr=fmr,
            prior=prior,
            group=grouping,
            value_range=value_range,
        )
        if ignored:
            answer = replace(answer, notes=(*answer.notes, ignored_line(tuple(ignored))))
        if html is not None:
            thumbnails = {hit.id: opened.thumbnail(hit.id) for hit in answer.hits}
            records = {} if opened.files is None else opened.files.of(thumbnails)
            write_page(html, answer, paths, thumbnails, records, parse_timezone(timezone))
    if json_:
        console.print_json({"gallery": gallery, **answer.to_dict()})
        return
    _print_answer(answer, parse_timezone(timezone))
    if html is not None:
        console.echo(f"page: {html}")


def _print_answer(answer: Answer, zone: tzinfo) -> None:
    from fmcnet.times import shown_time

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
            "images": size if answer.groups else None,
        }
        for rank, (hit, size) in enumerate(answer.ranking, 1)
    ]
    console.show_rows(rows)
    for rank, hit in enumerate(answer.hits, 1):  # whole, to be copied and piped
        console.echo(f"{rank}: {printable(hit.source or hit.id)}")
    if not answer.hits:
        console.echo("nobody" if answer.compared else "no entry to compare with")
    if answer.prior is not None:
        console.echo(
            f"{answer.compared:,} entries compared; probability before comparing: {answer.prior:.3g}"
        )
    for note in answer.notes:
        console.echo(note)
