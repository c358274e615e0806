"""`fmcnet index` and `fmcnet search`; docs/guides/search.md explains both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from fmcnet.characters import printable
from fmcnet.cli.console import (
    CalibrationFile,
    Device,
    Json,
    Range,
    check_choice,
    echo,
    print_json,
    show,
    show_rows,
)
from fmcnet.errors import FmcnetError

if TYPE_CHECKING:
    from fmcnet.retrieval.answer import Answer
    from fmcnet.retrieval.records import Where

GalleryPath = Annotated[
    str, typer.Argument(metavar="GALLERY", help="A gallery's folder, or milvus://host:port/name.")
]
Model = Annotated[
    str | None,
    typer.Option(help="A run, an exported model's folder, or a shipped model's name; default: as indexed."),
]
Zone = Annotated[str, typer.Option(help="Of times that name none: UTC, Europe/Berlin...")]
Cameras = Annotated[
    list[str] | None, typer.Option("--camera", help="Seen by this camera; may be given again.")
]
Since = Annotated[str | None, typer.Option(help="Seen at or after: 2026-03-01 or 2026-03-01T22:15:00.")]
Until = Annotated[str | None, typer.Option(help="Seen before.")]


def make_filter(
    cameras: list[str] | None,
    since: str | None,
    until: str | None,
    timezone: str,
    *,
    modality: str | None = None,
    ids: list[str] | None = None,
    pids: list[int] | None = None,
    tracks: list[str] | None = None,
    tags: list[str] | None = None,
) -> Where:
    """The conditions that options give; an option that was not given is none."""
    from fmcnet.inference.image_input import parse_modality
    from fmcnet.retrieval.records import Where
    from fmcnet.retrieval.times import parse_time, parse_timezone

    zone = parse_timezone(timezone)
    return Where(
        ids=ids or None,
        pids=pids or None,
        cameras=cameras or None,
        tracks=tracks or None,
        modality=None if modality is None else parse_modality(modality),
        since=None if since is None else parse_time(since, zone),
        until=None if until is None else parse_time(until, zone),
        tags=tags or None,
    )


def index(
    gallery: GalleryPath,
    source: Annotated[
        list[Path],
        typer.Argument(help="Pictures, folders of pictures, or one CSV or dataset that fmcnet reads."),
    ],
    model: Model = None,
    modality: Annotated[
        str | None,
        typer.Option(
            help="visible or infrared: what the pictures are. Where a CSV or dataset says it: only these rows."
        ),
    ] = None,
    camera: Annotated[str | None, typer.Option(help="The camera of all pictures.")] = None,
    camera_from_name: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="A regular expression, as 'cam([0-9]+)', for the path below SOURCE."
        ),
    ] = None,
    time_from_name: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="As '%Y%m%d_%H%M%S', found in that path; %s and %Q are seconds and milliseconds since 1970.",
        ),
    ] = None,
    track_from_name: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="A regular expression for the track.")
    ] = None,
    pid_from_name: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="A regular expression for the identity, a number.")
    ] = None,
    timezone: Zone = "UTC",
    doubtful_times: Annotated[
        str,
        typer.Option(
            help="Local times that come twice, or never, when clocks change: refuse, or take the earlier or later."
        ),
    ] = "refuse",
    layout: Annotated[
        str, typer.Option(help="auto, sysu, regdb, llcm, csv, or images: a folder of pictures all the same.")
    ] = "auto",
    range_: Range = None,
    split: Annotated[str, typer.Option(help="Of a dataset: all, train, val or test.")] = "all",
    on_error: Annotated[
        str, typer.Option(help="raise: stop at a broken picture; skip: leave it out and name it.")
    ] = "raise",
    existing: Annotated[
        str,
        typer.Option(
            help="Pictures that are in the gallery. keep: skip, and report values that differ; update: store the "
            "values given now; replace: encode anew."
        ),
    ] = "keep",
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Leave out pictures seen longer ago, as gallery expire: 30d, 12h, 4w."
        ),
    ] = None,
    include_removed: Annotated[
        bool,
        typer.Option("--include-removed", help="Also index pictures that were removed or expired earlier."),
    ] = False,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Keep a small picture of each entry in the gallery, too.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of a new gallery's embeddings: float32, or float16 for half the space; default float32.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--index",
            help="exact: compare with every entry; hnsw: a graph, nearly exact; auto: exact up to 100,000 entries. "
            "Stays with the gallery; default auto.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures at once.", min=1)] = 64,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Add pictures of persons to a gallery; pictures that it holds already are skipped.

    fmcnet index people.gallery crops --model runs/mine --modality visible --camera-from-name 'cam([0-9]+)'

    The gallery stores embeddings and metadata; small pictures only with --keep-images. Ctrl-C or a kill loses no
    added picture: the same command continues.
    """
    from fmcnet.data.listing import ignored_line
    from fmcnet.inference.image_input import parse_modality
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.indexing import Existing, check_faults, leave_out_expired
    from fmcnet.retrieval.indexing import index as add_new
    from fmcnet.retrieval.inputs import as_duration
    from fmcnet.retrieval.models import open_model, range_of, remember
    from fmcnet.retrieval.records import Dtype, IndexChoice
    from fmcnet.retrieval.searcher import Searcher
    from fmcnet.retrieval.sources import NamePattern, Rules, read_sources
    from fmcnet.retrieval.times import Doubtful, TimePattern, parse_timezone

    on_fault = check_choice("--on-error", on_error, ("raise", "skip"))
    on_existing = check_choice("--existing", existing, get_args(Existing))
    new_dtype = check_choice("--dtype", dtype or "float32", get_args(Dtype))
    index_choice = check_choice("--index", kind, get_args(IndexChoice))
    doubtful = check_choice("--doubtful-times", doubtful_times, get_args(Doubtful))
    value_range = range_of(gallery, range_)
    zone = parse_timezone(timezone)

    def pattern(option: str, text: str | None) -> NamePattern | None:
        return None if text is None else NamePattern(text, option)

    rules = Rules(
        modality=None if modality is None else parse_modality(modality),
        camera=camera,
        cameras=pattern("--camera-from-name", camera_from_name),
        times=None if time_from_name is None else TimePattern(time_from_name, zone, doubtful),
        tracks=pattern("--track-from-name", track_from_name),
        pids=pattern("--pid-from-name", pid_from_name),
        layout=layout,
        split=split,
        zone=zone,
        doubtful=doubtful,
    )
    age = None if keep is None else as_duration(keep)
    sources = read_sources(source, rules)
    if age is not None:
        sources = leave_out_expired(sources, age, f"--keep {keep}")
    if on_error == "raise":
        check_faults(sources)  # before a gallery is made
    encoder = open_model(gallery, model, device)
    with Gallery(gallery, dtype=new_dtype, index=index_choice) as opened:
        searcher = Searcher(encoder, opened)
        kept = opened.settings
        if dtype is not None and kept is not None and kept.dtype != dtype:
            raise FmcnetError(
                f"--dtype {dtype}: {gallery} keeps {kept.dtype} since its first entry; index into another gallery"
            )
        remember(gallery, model or encoder.folder, value_range)
        report = add_new(
            searcher,
            sources,
            on_error=on_fault,
            existing=on_existing,
            keep_images=keep_images,
            batch_size=batch,
            progress=False if json_ else None,
            value_range=value_range,
            include_removed=include_removed,
        )
    if json_:
        print_json({"gallery": gallery, **report.to_dict()})
        return
    facts = {"pictures": report.pictures, "added": report.added, "there already": report.already}
    facts |= {"updated": report.updated} if report.updated else {}
    facts |= {"encoded anew": report.replaced} if report.replaced else {}
    facts |= {f"not chosen by {option}": count for option, count in report.not_chosen.items()}
    facts |= {"not in the CSV": len(report.not_listed)} if report.not_listed else {}
    facts |= {"removed before": len(report.removed_before)} if report.removed_before else {}
    left_out = (*report.faults, *report.same)
    show(f"indexed into {gallery}", {**facts, "left out": len(left_out), "entries now": report.entries})
    if line := ignored_line(report.ignored):
        echo(line, err=True)
    for name in report.not_listed:
        echo(f"left out {printable(name)}: the CSV has no row of it", err=True)
    for name in report.removed_before[:3]:
        echo(f"left out {printable(name)}: it was removed or expired before", err=True)
    if report.removed_before:
        echo(f"{len(report.removed_before)} removed before: --include-removed indexes them again", err=True)
    for fault in left_out:
        echo(f"left out {printable(fault.name)}: {fault.reason}", err=True)
    for line in (*(f"note: {note}" for note in report.notes), *map(str, report.differences[:3])):
        echo(printable(line), err=True)
    if report.differences:
        pictures = len({difference.source for difference in report.differences})
        echo(
            f"the gallery stores other values for {pictures} pictures and keeps them: --existing update stores the "
            "values given now",
            err=True,
        )


def search(
    gallery: GalleryPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="One or several, of ONE person.")],
    modality: Annotated[
        list[str], typer.Option(help="visible or infrared: of all images; or given once for each, in order.")
    ],
    model: Model = None,
    calibration: CalibrationFile = None,
    top: Annotated[int, typer.Option(help="How many answers.", min=1)] = 20,
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
    timezone: Zone = "UTC",
    min_probability: Annotated[
        float | None, typer.Option(help="Leave out who is less probable, 0..1; maybe nobody is left.")
    ] = None,
    fmr: Annotated[
        float | None, typer.Option(help="Leave out who is below the threshold of this false-match rate.")
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(
            help="Probability before comparing; default 1 / (entries compared + 1).", show_default=False
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="track: one answer for each, its pictures pooled; pid: one for each, by its best."),
    ] = None,
    range_: Range = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page of ranked pictures, from where the sources lie.")
    ] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Ask a gallery who somebody is.

    fmcnet search people.gallery night.jpg --modality infrared --min-probability 0.5 --html who.html

    Ranked by cosine similarity. Probabilities need fmcnet calibrate; what they mean: fmcnet docs search.
    """
    from fmcnet.data.listing import Ignored, ignored_line
    from fmcnet.inference.image_input import list_images, parse_modality
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.models import open_model, range_of
    from fmcnet.retrieval.searcher import Searcher

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
        answer = Searcher(open_model(gallery, model, device, calibration), opened).search(
            paths,
            kinds if len(kinds) == len(paths) else kinds * len(paths),
            top=top,
            where=None if condition.anything else condition,
            min_probability=min_probability,
            fmr=fmr,
            prior=prior,
            group=grouping,
            value_range=value_range,
        )
        if ignored:
            answer = replace(answer, notes=(*answer.notes, ignored_line(tuple(ignored))))
        if html is not None:
            from fmcnet.retrieval.html import write_page

            write_page(html, answer, paths, opened.picture)
    if json_:
        print_json({"gallery": gallery, **answer.to_dict()})
        return
    _print(answer)
    if html is not None:
        echo(f"page: {html}")


def _print(answer: Answer) -> None:
    if answer.hits:
        rows: list[dict[str, Any]] = [
            {
                "": rank,
                "similarity": f"{hit.similarity:.4f}",
                "probability": None if hit.probability is None else f"{hit.probability:.2%}",
                "modality": hit.modality,
                "camera": hit.camera,
                "time": None if hit.time is None else f"{hit.time:%Y-%m-%d %H:%M:%S}",
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
