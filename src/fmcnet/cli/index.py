"""`fmcnet index`; docs/guides/search.md explains it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Argument, Option

from fmcnet import retrieval
from fmcnet.cli import console
from fmcnet.errors import FmcnetError, first_of
from fmcnet.names import printable

if TYPE_CHECKING:
    from fmcnet.data.pixels import ValueRange
    from fmcnet.retrieval.indexing import IndexReport
    from fmcnet.retrieval.searcher import GalleryRange
    from fmcnet.retrieval.sources import NamePattern


@contextlib.contextmanager
def _no_empty_gallery(gallery: str) -> Iterator[None]:
    """Remove a gallery that the block makes and that gets no entry; say what an early Ctrl-C left."""
    from fmcnet.retrieval.sqlite_connection import NAME

    folder = Path(gallery)
    new_gallery, new_folder = not (folder / NAME).exists(), not folder.exists()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # of the indexing, which says what was added
            raise
        raise KeyboardInterrupt("nothing was added; the same command starts again") from None
    finally:
        if new_gallery and (folder / NAME).exists():
            from fmcnet.retrieval.backup import remove_empty

            remove_empty(folder, whole=new_folder)


def index(
    gallery: console.GalleryPath,
    source: Annotated[list[Path], Argument(help="Images, folders of images, or one CSV or dataset.")],
    model: console.GalleryModel = None,
    modality: Annotated[
        str | None,
        Option(
            help="visible or infrared: what the images are. Where a CSV or dataset says it: only these rows."
        ),
    ] = None,
    camera: Annotated[str | None, Option(help="The camera of all images.")] = None,
    camera_from_name: Annotated[
        str | None,
        Option(metavar="PATTERN", help="Regular expression for the path below SOURCE: 'cam([0-9]+)'."),
    ] = None,
    time_from_name: Annotated[
        str | None,
        Option(
            metavar="PATTERN",
            help="As '%Y%m%d_%H%M%S', found in that path; %s and %Q are seconds and milliseconds since 1970.",
        ),
    ] = None,
    track_from_name: Annotated[
        str | None, Option(metavar="PATTERN", help="A regular expression for the track.")
    ] = None,
    pid_from_name: Annotated[
        str | None, Option(metavar="PATTERN", help="A regular expression for the identity.")
    ] = None,
    pid_prefix: Annotated[
        str, Option(metavar="TEXT", help="Put before every identity, as 'regdb-': keeps datasets apart.")
    ] = "",
    timezone: console.Zone = "UTC",
    doubtful_times: console.DoubtfulTimes = "refuse",
    layout: Annotated[
        str, Option(help="auto, sysu, regdb, llcm, csv, or images: a folder of images all the same.")
    ] = "auto",
    range_: console.Range = None,
    split: Annotated[str, Option(help="Of a dataset: all, train, val or test.")] = "all",
    on_error: Annotated[
        str, Option(help="raise: stop at a broken image; skip: leave it out and name it.")
    ] = "raise",
    existing: Annotated[
        str,
        Option(
            help="Images that are in the gallery. keep: skip, and report values and files that differ; "
            "update: store the values given now, encode changed files anew; replace: encode all anew."
        ),
    ] = "keep",
    prune: Annotated[
        bool, Option("--prune", help="First remove entries whose files are gone, after showing how many.")
    ] = False,
    prune_roots: Annotated[
        bool,
        Option(
            "--prune-roots",
            help="With --prune: also of folders of which no file is left, and of empty subfolders, as of a disk that "
            "is not mounted.",
        ),
    ] = False,
    yes: Annotated[bool, Option("--yes", help="With --prune: do not ask.")] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="With --prune: only show what would be removed.")
    ] = False,
    keep: Annotated[
        str | None,
        Option(metavar="AGE", help="Leave out images seen longer ago, as gallery expire: 30d, 12h, 4w."),
    ] = None,
    include_removed: Annotated[
        bool, Option("--include-removed", help="Also index images that were removed or expired earlier.")
    ] = False,
    keep_images: Annotated[
        bool, Option("--keep-images", help="Keep a thumbnail of each image in the gallery, too.")
    ] = False,
    dtype: Annotated[
        str | None, Option(help="Of a new gallery: float32 (default), or float16 for half the space.")
    ] = None,
    kind: Annotated[
        str | None,
        Option(
            "--index",
            help="exact: compare with every entry; hnsw: a graph, nearly exact; auto: exact up to 100,000 "
            "entries. Stays with the gallery; default auto.",
        ),
    ] = None,
    batch: console.Batch = 64,
    device: console.Device = "auto",
    json_: console.Json = False,
) -> None:
    """Add images of people to a gallery; images that it holds are skipped.

    fmcnet index people.gallery crops --model runs/mine --modality visible --camera-from-name 'cam([0-9]+)'

    The gallery stores embeddings and metadata; thumbnails only with --keep-images. Ctrl-C or a kill loses no
    added image: the same command continues.
    """
    with _no_empty_gallery(gallery):
        from fmcnet.data.pixels import parse_range
        from fmcnet.retrieval.indexing import Existing, check_faults, leave_out_expired, open_and_index
        from fmcnet.retrieval.inputs import expires_before
        from fmcnet.retrieval.records import Dtype, IndexChoice
        from fmcnet.retrieval.sources import Rules, read_sources
        from fmcnet.times import Doubtful, TimePattern, parse_timezone
        from fmcnet.types import parse_modality

        # All options are checked before an entry is removed or added.
        on_fault = console.check_choice("--on-error", on_error, ("raise", "skip"))
        on_existing = console.check_choice("--existing", existing, get_args(Existing))
        new_dtype = console.check_choice("--dtype", dtype, get_args(Dtype))
        index_choice = console.check_choice("--index", kind, get_args(IndexChoice))
        doubtful = console.check_choice("--doubtful-times", doubtful_times, get_args(Doubtful))
        value_range: ValueRange | GalleryRange = "gallery" if range_ is None else parse_range(range_)
        zone = parse_timezone(timezone)
        until = None if keep is None else expires_before(keep)
        rules = Rules(
            modality=None if modality is None else parse_modality(modality),
            camera=camera,
            cameras=_pattern("--camera-from-name", camera_from_name),
            times=None if time_from_name is None else TimePattern(time_from_name, zone, doubtful),
            tracks=_pattern("--track-from-name", track_from_name),
            pids=_pattern("--pid-from-name", pid_from_name),
            pid_prefix=pid_prefix,
            layout=layout,
            split=split,
            zone=zone,
            doubtful=doubtful,
        )
        if not prune and (prune_roots or yes or dry_run):
            raise FmcnetError("--prune-roots, --yes and --dry-run go with --prune")

        pruned = _prune(gallery, prune_roots, yes, dry_run, json_) if prune else {}
        if dry_run:
            return
        sources = read_sources(source, rules)
        if until is not None:
            sources = leave_out_expired(sources, until, f"--keep {keep}")
        if on_error == "raise":
            check_faults(sources, missing_ok=prune)  # before a gallery is made
        report = open_and_index(
            gallery,
            sources,
            model=model,
            device=device,
            dtype=new_dtype,
            kind=index_choice,
            value_range=value_range,
            on_error=on_fault,
            existing=on_existing,
            keep_images=keep_images,
            batch_size=batch,
            progress=False if json_ else None,
            include_removed=include_removed,
            missing_ok=prune,
        )
        if json_:
            console.print_json({"gallery": gallery, **pruned, **report.to_dict()})
            return
        console.show(f"indexed into {gallery}", _counts(report))
        for line in _remark_lines(report, gallery):
            console.echo(printable(line), err=True)


def _pattern(option: str, text: str | None) -> NamePattern | None:
    from fmcnet.retrieval.sources import NamePattern

    return None if text is None else NamePattern(text, option)


def _counts(report: IndexReport) -> dict[str, int | str]:
    """What was done with how many images, and the values found, since a pattern may find other ones than meant."""
    sources, moved, removed = report.sources, len(report.changes.moved), len(report.removed_before)
    optional = {
        "updated": report.updated,
        "encoded anew": report.replaced,
        "changed files": len(report.changes.changed),
        **{f"not chosen by {option}": count for option, count in sources.not_chosen.items()},
        "not in the CSV": len(sources.not_listed),
    }
    found: dict[str, int | str] = {}
    for column, name in (("pid", "identities"), ("camera", "cameras"), ("track", "tracks")):
        if values := sorted({getattr(one, column) for one in sources.images} - {None}):
            found[name] = f"{len(values)} ({first_of(values, 3)})"
    left_out = {"left out, moved": moved, "left out, removed before": removed}
    return {
        "images": report.images,
        **found,
        "added": report.added,
        "indexed before": report.already,
        **{name: count for name, count in optional.items() if count},
        "left out": len(report.faults) + len(sources.same) + moved + removed,
        **{name: count for name, count in left_out.items() if count},
        "entries now": report.entries,
    }


def _remark_lines(report: IndexReport, gallery: str) -> Iterator[str]:
    """What a person should see of an indexing, a line each."""
    from fmcnet.data.listing import ignored_line
    from fmcnet.retrieval.freshness import moves

    if report.sources.ignored:
        yield ignored_line(report.sources.ignored)
    for name in report.sources.not_listed:
        yield f"left out {name}: the CSV has no row of it"
    moved = list(report.changes.moved.values())
    for move in moved[:3]:
        gone = "" if ".." in Path(move.before).parts else ", which is gone"
        yield f"left out {move.path}: indexed as {move.before}{gone}"
    for old, new in moves(moved)[:3]:
        yield f"if these files were moved: {shlex.join(['fmcnet', 'gallery', 'relocate', gallery, old, new])}"
    for name in report.removed_before[:3]:
        yield f"left out {name}: it was removed or expired before"
    if report.removed_before:
        yield f"{len(report.removed_before)} removed before: --include-removed indexes them again"
    for fault in (*report.faults, *report.sources.same):
        yield f"left out {fault.name}: {fault.reason}"
    for note in report.notes:
        yield f"note: {note}"
    yield from map(str, report.differences[:3])
    if report.differences:
        images = len({difference.source for difference in report.differences})
        yield (
            f"the gallery stores other values for {images} images and keeps them: --existing update stores the "
            "values given now, and encodes changed files anew"
        )


def _prune(gallery: str, roots: bool, yes: bool, dry_run: bool, json_: bool) -> dict[str, Any]:
    """Show and remove entries whose files are gone; facts for JSON."""
    from fmcnet.retrieval.freshness import find_gone, remove_gone

    console.check_can_ask(json_, yes or dry_run)
    with retrieval.Gallery(gallery, create=False, read_only=dry_run) as opened:
        gone = find_gone(opened)
        removable = [folder for folder in gone if roots or not folder.whole]
        kept = [folder for folder in gone if folder not in removable]
        count = sum(len(folder.ids) for folder in removable)
        for folder in removable:
            first = (
                f"{len(folder.ids)} of {folder.entries} files are gone, the first {printable(folder.first)}"
            )
            console.echo(f"{printable(folder.root)}: {first}", err=True)
        for folder in kept:
            console.echo(
                f"{printable(folder.root)}: none of its {folder.entries} files is there. Is its disk mounted? Its "
                "entries stay; --prune-roots removes them",
                err=True,
            )
        if count and not (yes or dry_run):
            console.confirm("Remove", count, len(opened))
        if not dry_run:
            count = remove_gone(opened, removable)
    facts = {
        "would_prune" if dry_run else "pruned": count,
        "gone": [folder.to_dict() for folder in removable],
        "gone_kept": [folder.to_dict() for folder in kept],
    }
    if dry_run and json_:
        console.print_json({"gallery": gallery, **facts})
    elif not json_:
        console.echo(f"{count} entries would be removed" if dry_run else f"removed {count} entries")
    return facts
