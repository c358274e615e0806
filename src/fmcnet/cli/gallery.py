"""`fmcnet gallery info | remove | expire | compact | export | copy | recover`."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcnet.cli.console import Json, check_choice, echo, explain_resume, print_json, show
from fmcnet.cli.search import Cameras, GalleryPath, Since, Until, Zone, make_filter
from fmcnet.errors import FmcnetError

if TYPE_CHECKING:
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.records import Where

app = typer.Typer(help="Show a gallery, remove entries, export them.", no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Option("--id", help="Of this id; may be given again.")]
Pids = Annotated[list[int] | None, typer.Option("--pid", help="Of this identity; may be given again.")]
Tracks = Annotated[list[str] | None, typer.Option("--track", help="Of this track; may be given again.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="With this tag; all of them, if given again.")]
Kind = Annotated[str | None, typer.Option(help="visible or infrared.")]


@app.command()
def info(gallery: GalleryPath, json_: Json = False) -> None:
    """Show what a gallery holds: entries, model, index, size."""
    from fmcnet.retrieval.gallery import Gallery

    with Gallery(gallery, read_only=True) as opened:
        found = opened.info()
    settings = found.settings
    facts = {
        "gallery": found.location,
        "entries": found.entries,
        "model": None if settings is None else settings.model,
        "dimension": None if settings is None else settings.dimension,
        "dtype": None if settings is None else settings.dtype,
        "index": found.index,
        "unindexed": found.unindexed,
        "removed_not_compacted": found.removed,
        "bytes": found.bytes,
        "pictures_kept": found.pictures,
    }
    _print_facts(facts, json_, "gallery")


@app.command()
def remove(
    gallery: GalleryPath,
    id_: Ids = None,
    pid: Pids = None,
    camera: Cameras = None,
    track: Tracks = None,
    since: Since = None,
    until: Until = None,
    modality: Kind = None,
    tag: Tags = None,
    timezone: Zone = "UTC",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many entries match.")] = False,
    json_: Json = False,
) -> None:
    """Remove the entries that match ALL options, provably (docs/concepts/gallery.md).

    fmcnet gallery remove people.gallery --pid 17 --yes
    """
    from fmcnet.retrieval.gallery import Gallery

    where = make_filter(
        camera, since, until, timezone, modality=modality, ids=id_, pids=pid, tracks=track, tags=tag
    )
    if where.anything:
        raise FmcnetError(
            "say which entries to remove: --id, --pid, --camera, --track, --since, --until, ..."
        )
    if json_ and not (yes or dry_run):
        raise FmcnetError("--json cannot ask: give --yes, or --dry-run")
    with Gallery(gallery, create=False, read_only=dry_run) as opened:
        notes = _print_notes(opened, where)
        if not (yes or dry_run):
            typer.confirm(f"Remove {opened.count(where):,} of {len(opened):,} entries for good?", abort=True)
        for one in id_ or ():
            if one not in opened:
                echo(f"there is no entry '{one}'", err=True)
        count = opened.count(where) if dry_run else opened.remove(where)
        facts: dict[str, Any] = {"would_remove" if dry_run else "removed": count, "entries": len(opened)}
    _print_facts(facts | (notes if json_ else {}), json_, gallery)


@app.command()
def expire(
    gallery: GalleryPath,
    keep: Annotated[str, typer.Option(help="How long entries are kept after they were seen: 30d, 12h, 4w.")],
    json_: Json = False,
) -> None:
    """Remove entries seen longer ago than --keep; those without a time stay. For a daily timer.

    Entries from before 1970 also stay, with a warning: their time was read wrongly.

    fmcnet gallery expire people.gallery --keep 30d
    """
    from fmcnet.retrieval.gallery import Gallery
    from fmcnet.retrieval.inputs import as_duration
    from fmcnet.retrieval.records import EARLIEST, EPOCH, Where

    duration = as_duration(keep)
    with Gallery(gallery, create=False) as opened:
        now = datetime.now(timezone.utc)
        removed = opened.remove(Where(since=EPOCH, until=now - duration)) if duration < now - EPOCH else 0
        facts = {"removed": removed, "entries": len(opened)}
        facts["without_a_time"] = facts["entries"] - opened.count(Where(since=EARLIEST))
        facts["before_1970"] = opened.count(Where(until=EPOCH))
    _print_facts(facts, json_, gallery)
    if facts["without_a_time"]:
        echo(f"{facts['without_a_time']} entries have no time, and so never expire", err=True)
    if facts["before_1970"]:
        echo(
            f"{facts['before_1970']} entries have a time before 1970, which was read wrongly, and were not removed: "
            "fmcnet index --existing update mends it, fmcnet gallery remove --until 1970-01-01 removes them",
            err=True,
        )


@app.command()
def compact(gallery: GalleryPath, json_: Json = False) -> None:
    """Give back the space of removed entries, and bring the index up to date."""
    from fmcnet.retrieval.gallery import Gallery

    with Gallery(gallery, create=False) as opened:
        before = opened.info().bytes
        opened.compact()
        after = opened.info()
    _print_facts({"entries": after.entries, "bytes_before": before, "bytes": after.bytes}, json_, gallery)


@app.command()
def export(
    gallery: GalleryPath,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet or .npz file to write.")],
    pid: Pids = None,
    camera: Cameras = None,
    track: Tracks = None,
    since: Since = None,
    until: Until = None,
    modality: Kind = None,
    tag: Tags = None,
    timezone: Zone = "UTC",
    json_: Json = False,
) -> None:
    """Write entries and embeddings to a file: all, or those that match all options."""
    from fmcnet.retrieval.gallery import Gallery

    where = make_filter(camera, since, until, timezone, modality=modality, pids=pid, tracks=track, tags=tag)
    with Gallery(gallery, read_only=True) as opened:
        notes = _print_notes(opened, where)
        count = opened.export(out, None if where.anything else where)
    _print_facts({"exported": count, "out": str(out), **(notes if json_ else {})}, json_, gallery)


@app.command("copy")
def copy_(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A folder, or milvus://host:port/name.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="A new one, or one that a stopped copy began.")],
    index: Annotated[
        str | None, typer.Option(help="Of a new TO: exact, hnsw, or auto (a folder).", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Copy a gallery into another folder or a Milvus collection, either way.

    fmcnet gallery copy people.gallery milvus://localhost:19530/people

    A copy that was stopped continues with the same command. At the end each entry is compared.
    """
    from fmcnet.retrieval.copy import copy_gallery

    chosen = check_choice("--index", index, ("auto", "exact", "hnsw"))
    with explain_resume():
        found = copy_gallery(source, target, index=chosen, progress=False if json_ else None)
    facts = found.to_dict()
    paths = {"from": facts.pop("source"), "to": facts.pop("target")}
    if json_:
        print_json({**paths, **facts})
    else:
        show("copied", {name.replace("_", " "): value for name, value in facts.items()}, paths)


def _print_notes(opened: Gallery, where: Where) -> dict[str, Any]:
    """Print notes on a filter, and return them as a fact for JSON, where there are any."""
    from fmcnet.retrieval.answer import filter_notes

    notes = filter_notes(opened, where)
    for note in notes:
        echo(f"note: {note}", err=True)
    return {"notes": list(notes)} if notes else {}


def _print_facts(facts: dict[str, Any], json_: bool, title: str) -> None:
    if json_:
        print_json(facts)
        return
    paths: dict[str, str] = {name: facts.pop(name) for name in ("gallery", "out") if name in facts}
    show(title, {name.replace("_", " "): value for name, value in facts.items()}, paths)


@app.command()
def recover(
    gallery: Annotated[
        Path, typer.Argument(help="The folder of a gallery whose database was lost or damaged.")
    ],
    out: Annotated[Path, typer.Argument(help="The new gallery's folder.")],
    model: Annotated[str, typer.Option(help="The model that the gallery was indexed with.")],
    json_: Json = False,
) -> None:
    """Write what the index of a damaged gallery knows into a new gallery.

    fmcnet gallery recover people.gallery saved.gallery --model fmcnet-lite

    Embeddings, identities, cameras, tracks, tags and times come back; ids and sources as far as the database
    still has them. Entries whose deletion was lost come back, too.
    """
    from fmcnet.inference.encoder import Encoder
    from fmcnet.retrieval.recover import recover as write

    found = write(gallery, out, Encoder.from_pretrained(model).digest)
    facts = {"out": str(out), "entries": found.entries, "renamed": found.renamed, "damaged": found.damaged}
    _print_facts(facts, json_, "out")
