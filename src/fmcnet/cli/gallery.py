"""`fmcnet gallery info, list, remove, expire, relocate, compact, export, copy, backup, restore, recover`."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import tzinfo
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from fmcnet import retrieval
from fmcnet.cli import console
from fmcnet.errors import CheckpointError, FmcnetError

app = typer.Typer(help="Show, copy, export and mend galleries; remove entries.", no_args_is_help=True)

Ids = Annotated[list[str] | None, Option("--id", help="Of this id; repeatable.")]
Pids = Annotated[list[str] | None, Option("--pid", help="Of this identity, a name or number; repeatable.")]
Tracks = Annotated[list[str] | None, Option("--track", help="Of this track; repeatable.")]
Tags = Annotated[list[str] | None, Option("--tag", help="With this tag; all of them, if given again.")]
Yes = Annotated[bool, Option("--yes", help="Do not ask.")]
All = Annotated[bool, Option("--all", help="With --yes: also when the gallery has no other entries.")]
DryRun = Annotated[bool, Option("--dry-run", help="Only say how many entries match.")]
Kind = Annotated[str | None, Option(help="visible or infrared.")]
PATH_FACTS = ("gallery", "from", "to", "out")
"""Facts that are shown on a line of their own."""


@app.command()
def info(gallery: console.GalleryPath, json_: console.Json = False) -> None:
    """Show what a gallery holds: entries, model, index, size."""
    from fmcnet.data.pixels import range_text
    from fmcnet.retrieval.records import EARLIEST
    from fmcnet.types import Modality

    with retrieval.Gallery(gallery, read_only=True) as opened:
        summary, times = opened.info(), opened.times()
        by_modality = {str(one): opened.count(retrieval.Where(modality=one)) for one in Modality}
        cameras = {name: opened.count(retrieval.Where(cameras=[name])) for name in opened.cameras()}
        timed = opened.count(retrieval.Where(since=EARLIEST))
        ranges = [range_text(value_range) for value_range in opened.value_ranges]
    settings = summary.settings
    facts = {
        "gallery": summary.location,
        "entries": summary.entries,
        "model": settings and settings.model,
        "dimension": settings and settings.dimension,
        "dtype": settings and settings.dtype,
        "index": summary.index,
        "unindexed": summary.unindexed,
        "removed_not_compacted": summary.removed,
        "bytes": summary.bytes,
        "pictures_kept" if json_ else "thumbnails_kept": summary.thumbnails,
        "value_ranges": ranges if json_ else ", ".join(ranges),
        **by_modality,
        "cameras": cameras if json_ else ", ".join(f"{name} ({count:,})" for name, count in cameras.items()),
        "first_time": times and times[0].isoformat(),
        "last_time": times and times[1].isoformat(),
        "without_a_time": summary.entries - timed,
    }
    _print_facts(facts, json_, "gallery")


@app.command("list")
def list_(
    gallery: console.GalleryPath,
    id_: Ids = None,
    pid: Pids = None,
    camera: console.Cameras = None,
    track: Tracks = None,
    since: console.Since = None,
    until: console.Until = None,
    modality: Kind = None,
    tag: Tags = None,
    timezone: console.ShownZone = "UTC",
    limit: Annotated[int, Option(help="Entries to show; 0: all.", min=0)] = 50,
    ids: Annotated[
        bool, Option("--ids", help="Print only ids, one a line, as gallery remove --id takes them.")
    ] = False,
    json_: console.Json = False,
) -> None:
    """List entries, in the order of their adding: all, or those that match all options.

    fmcnet gallery list people.gallery --camera gate2 --since 2026-03-01
    """
    from fmcnet.times import parse_timezone

    where = console.make_filter(
        camera, since, until, timezone, modality=modality, ids=id_, pids=pid, tracks=track, tags=tag
    )
    with retrieval.Gallery(gallery, read_only=True) as opened:
        notes = _print_notes(opened, where)
        matching = opened.count(where)
        shown = [entry for entry, _ in islice(opened.scan(where, chunk=limit or 4096), limit or None)]
    if json_:
        entries = [{**vars(entry), "time": entry.time and entry.time.isoformat()} for entry in shown]
        console.print_json({"gallery": gallery, "matching": matching, "entries": entries, **notes})
        return
    if ids:
        _print_ids([entry.id for entry in shown])
    else:
        zone = parse_timezone(timezone)
        console.show_rows([_row(entry, zone) for entry in shown])
    more = "" if len(shown) == matching else f"; {len(shown):,} shown, --limit 0 shows all"
    console.echo(f"{matching:,} entr{'y' if matching == 1 else 'ies'}{more}", err=ids)


def _row(entry: retrieval.Entry, zone: tzinfo) -> dict[str, Any]:
    """An entry in the table of `list`."""
    from fmcnet.times import shown_time

    return {
        "modality": entry.modality,
        "camera": entry.camera,
        "time": shown_time(entry.time, zone),
        "track": entry.track,
        "pid": entry.pid,
        "tags": ", ".join(entry.tags) or None,
        "source": entry.source or entry.id,
    }


def _print_ids(ids: list[str]) -> None:
    """Print ids, one a line, where the output can hold them as they are."""
    encoding = sys.stdout.encoding or "utf-8"
    try:  # elsewhere such characters are escaped, but these lines are read by other commands
        "".join(ids).encode(encoding)
    except UnicodeEncodeError as error:
        raise FmcnetError(
            f"the ids do not fit {encoding}, the encoding of the output: set PYTHONUTF8=1, or take --json"
        ) from error
    for entry_id in ids:
        console.echo(entry_id)


@app.command()
def remove(
    gallery: console.GalleryPath,
    id_: Ids = None,
    pid: Pids = None,
    camera: console.Cameras = None,
    track: Tracks = None,
    since: console.Since = None,
    until: console.Until = None,
    modality: Kind = None,
    tag: Tags = None,
    timezone: console.Zone = "UTC",
    yes: Yes = False,
    all_: All = False,
    dry_run: DryRun = False,
    json_: console.Json = False,
) -> None:
    """Remove the entries that match ALL options, provably (fmcnet docs gallery).

    fmcnet gallery remove people.gallery --pid 17 --yes
    """
    where = console.make_filter(
        camera, since, until, timezone, modality=modality, ids=id_, pids=pid, tracks=track, tags=tag
    )
    if where.unconditional:
        raise FmcnetError(
            "say which entries to remove: --id, --pid, --camera, --track, --tag, --modality, --since or --until"
        )
    _check_answers(json_, yes, all_, dry_run)
    with retrieval.Gallery(gallery, create=False, read_only=dry_run) as opened:
        notes = _print_notes(opened, where)
        for entry_id in id_ or ():
            if entry_id not in opened:
                console.echo(f"there is no entry '{entry_id}'", err=True)
        facts = _remove(opened, where, "match", yes, all_, dry_run)
    _print_facts({**facts, **notes}, json_, gallery)


def _check_answers(json_: bool, yes: bool, all_: bool, dry_run: bool) -> None:
    """Refuse --all without --yes, and --json without an answer."""
    if all_ and not (yes or dry_run):
        raise FmcnetError("--all goes with --yes; without --yes the command asks")
    console.check_can_ask(json_, yes or dry_run)


def _remove(
    opened: retrieval.Gallery, where: retrieval.Where, reason: str, yes: bool, all_: bool, dry_run: bool
) -> dict[str, int]:
    """Ask, and remove entries; with --yes, refuse to remove all of them without --all. The facts to print."""
    count, entries = opened.count(where), len(opened)
    if dry_run:
        return {"would_remove": count, "entries": entries}
    if count and not yes:  # the counted entries alone, for others may come to match
        ids = [entry.id for entry, _ in opened.scan(where)]
        console.confirm("Remove", len(ids), entries)
        where = replace(where, ids=ids)
    elif count == entries and count and not all_:
        raise FmcnetError(
            f"all {entries:,} entries of {opened.location} {reason}, and nothing was removed: "
            "--yes --all removes them"
        )
    return {"removed": opened.remove(where) if count else 0, "entries": len(opened)}


@app.command()
def expire(
    gallery: console.GalleryPath,
    keep: Annotated[str, Option(help="How long entries are kept after they were seen: 30d, 12h, 4w.")],
    yes: Yes = False,
    all_: All = False,
    dry_run: DryRun = False,
    json_: console.Json = False,
) -> None:
    """Remove entries seen longer ago than --keep; those without a time stay.

    fmcnet gallery expire people.gallery --keep 30d

    It counts them and asks; a daily timer says --yes. fmcnet index leaves out what expired. Entries from before 1970
    also stay, with a warning: their time was read wrongly.
    """
    from fmcnet.retrieval.inputs import expires_before
    from fmcnet.retrieval.records import EARLIEST, EPOCH

    expired = retrieval.Where(since=EPOCH, until=expires_before(keep))
    _check_answers(json_, yes, all_, dry_run)
    with retrieval.Gallery(gallery, create=False, read_only=dry_run) as opened:
        facts = _remove(opened, expired, f"were seen longer ago than {keep}", yes, all_, dry_run)
        timeless = facts["entries"] - opened.count(retrieval.Where(since=EARLIEST))
        early = opened.count(retrieval.Where(until=EPOCH))
    _print_facts({**facts, "without_a_time": timeless, "before_1970": early}, json_, gallery)
    if timeless:
        console.echo(f"{timeless} entries have no time, and so never expire", err=True)
    if early:
        console.echo(
            f"{early} entries have a time before 1970, which was read wrongly, and were not removed: "
            "fmcnet index --existing update mends it, fmcnet gallery remove --until 1970-01-01 removes them",
            err=True,
        )


@app.command()
def relocate(
    gallery: console.GalleryPath,
    old: Annotated[str, Argument(help="The file or folder that sources lie in now.")],
    new: Annotated[str, Argument(help="Where it was moved to.")],
    missing_ok: Annotated[
        bool, Option("--missing-ok", help="Also where none of the files is at the new place.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json_: console.Json = False,
) -> None:
    """Update the paths of moved images, so that indexing adds none of them twice.

    fmcnet gallery relocate people.gallery /old/crops /new/crops
    """
    from fmcnet.retrieval.freshness import relocate as move

    console.check_can_ask(json_, yes or dry_run)
    with retrieval.Gallery(gallery, create=False, read_only=dry_run) as opened:
        moved = move(opened, old, new, dry_run=True)
        if moved.missing == moved.matched and not (missing_ok or dry_run):
            raise FmcnetError(
                f"none of the {moved.matched} files is at {new}: nothing was changed. Move the files first, or "
                "give --missing-ok"
            )
        if moved.missing:
            console.echo(f"note: {moved.missing} of {moved.matched} files are not at the new place", err=True)
        if not (yes or dry_run):
            console.confirm("Relocate", moved.matched, len(opened))
        if not dry_run:
            moved = move(opened, old, new)
        entries = len(opened)
    facts = {"would_relocate" if dry_run else "relocated": moved.matched, "files_missing": moved.missing}
    _print_facts({**facts, "entries": entries}, json_, gallery)


@app.command()
def compact(gallery: console.GalleryPath, json_: console.Json = False) -> None:
    """Return the space of removed entries and update the index."""
    with retrieval.Gallery(gallery, create=False) as opened:
        before = opened.info().bytes
        opened.compact()
        after = opened.info()
    _print_facts({"entries": after.entries, "bytes_before": before, "bytes": after.bytes}, json_, gallery)


@app.command()
def export(
    gallery: console.GalleryPath,
    out: Annotated[Path, Argument(metavar="FILE", help="A .parquet or .npz file to write.")],
    pid: Pids = None,
    camera: console.Cameras = None,
    track: Tracks = None,
    since: console.Since = None,
    until: console.Until = None,
    modality: Kind = None,
    tag: Tags = None,
    timezone: console.Zone = "UTC",
    json_: console.Json = False,
) -> None:
    """Write entries and embeddings to a file: all, or those that match all options."""
    where = console.make_filter(
        camera, since, until, timezone, modality=modality, pids=pid, tracks=track, tags=tag
    )
    with retrieval.Gallery(gallery, read_only=True) as opened:
        notes = _print_notes(opened, where)
        if out.exists() and not opened.count(where):
            raise FmcnetError(f"no entry of {gallery} matches: {out} stays as it is")
        count = opened.export(out, None if where.unconditional else where)
    _print_facts({"exported": count, "out": str(out), **notes}, json_, gallery)


@app.command("copy")
def copy_(
    source: Annotated[str, Argument(metavar="FROM", help="A folder, or milvus://host:port/name.")],
    target: Annotated[str, Argument(metavar="TO", help="A new one, or one that a stopped copy began.")],
    index: Annotated[str | None, Option(help="Of a new TO: exact, hnsw, or auto (a folder).")] = None,
    json_: console.Json = False,
) -> None:
    """Copy a gallery into another folder or a Milvus collection, either way.

    fmcnet gallery copy people.gallery milvus://localhost:19530/people

    A copy that was stopped continues with the same command. At the end each entry is compared.
    """
    from fmcnet.retrieval.copy import copy_gallery

    index_choice = console.check_choice("--index", index, ("auto", "exact", "hnsw"))
    with console.explain_resume():
        copied = asdict(copy_gallery(source, target, index=index_choice, progress=False if json_ else None))
    facts = {"from": copied.pop("source"), "to": copied.pop("target"), **copied}
    if json_:  # keys of 0.1.0
        facts = {name.replace("thumbnails", "pictures"): fact for name, fact in facts.items()}
    _print_facts(facts, json_, "copied")


@app.command()
def backup(
    gallery: console.GalleryPath,
    out: Annotated[Path, Argument(help="The new folder.")],
    json_: console.Json = False,
) -> None:
    """Copy a gallery into a new folder, also while it is in use.

    fmcnet gallery backup people.gallery /backups/people-2026-03-01

    The copy has everything, thumbnails included, is read once as a check, and is a gallery itself.
    """
    with retrieval.Gallery(gallery, read_only=True) as opened:
        entries = opened.backup(out)
    _print_facts({"out": str(out), "entries": entries}, json_, "backup")


@app.command()
def restore(
    copy: Annotated[Path, Argument(metavar="BACKUP", help="A folder that fmcnet gallery backup made.")],
    gallery: Annotated[Path, Argument(help="The gallery's folder.")],
    replace: Annotated[bool, Option("--replace", help="Replace a gallery; end its service first.")] = False,
    json_: console.Json = False,
) -> None:
    """Make a gallery from a backup.

    fmcnet gallery restore /backups/people-2026-03-01 people.gallery

    Entries that were removed after the backup come back: remove them again.
    """
    from fmcnet.retrieval.backup import restore as write

    entries = write(copy, gallery, replace=replace)
    _print_facts({"gallery": str(gallery), "entries": entries}, json_, "restored")


@app.command()
def recover(
    gallery: Annotated[Path, Argument(help="The folder of a gallery whose database was lost or damaged.")],
    out: Annotated[Path, Argument(help="The new gallery's folder.")],
    model: Annotated[str | None, Option(help="The model that the gallery was indexed with.")] = None,
    digest: Annotated[str | None, Option(help="In place of --model: the model's digest.")] = None,
    json_: console.Json = False,
) -> None:
    """Make a new gallery of what a damaged one still holds.

    fmcnet gallery recover people.gallery saved.gallery --model fmcnet-lite

    Embeddings, identities, cameras, tracks, tags and times come back; ids and sources as far as the database
    still has them. Entries whose deletion was lost come back, too.
    """
    from fmcnet.inference.encoder import Encoder
    from fmcnet.retrieval.backup import recover as write
    from fmcnet.retrieval.searcher import recorded_model

    if (model is None) == (digest is None):
        raise FmcnetError("give --model, or --digest where the model is no longer at hand")
    if digest is None:
        digest, recorded = Encoder.from_pretrained(str(model)).digest, recorded_model(str(gallery))
        with suppress(CheckpointError):  # it is no longer there
            if recorded and Encoder.from_pretrained(recorded).digest != digest:
                raise FmcnetError(
                    f"{gallery} was indexed with {recorded}: give that model, or the --digest that it had then"
                )
    result = write(gallery, out, digest)
    changes = result.changes_lost
    thumbnails = result.thumbnails_lost
    lost = {
        f"the last {changes} changes are lost, with all entries that they added: index again": changes,
        "which images were removed is lost with the database: fmcnet index adds them again": not result.removals,
        "value ranges of images deeper than 8 bits are lost, if there were any: set them again with fmcnet index "
        "--existing replace --range LOW:HIGH": not result.ranges,
        "thumbnails are lost, if there were any"
        if thumbnails is None
        else f"{thumbnails} thumbnails are lost": (thumbnails != 0),
    }
    notes = [note for note, is_lost in lost.items() if is_lost]
    for note in notes:
        console.echo(f"note: {note}", err=True)
    _print_facts({"out": str(out), **asdict(result), "notes": notes}, json_, "out")


def _print_notes(opened: retrieval.Gallery, where: retrieval.Where) -> dict[str, Any]:
    """Print notes on a filter, and return them as the fact "notes", where there are any."""
    from fmcnet.retrieval.notes import filter_notes

    notes = filter_notes(opened, where)
    for note in notes:
        console.echo(f"note: {note}", err=True)
    return {"notes": list(notes)} if notes else {}


def _print_facts(facts: dict[str, Any], json_: bool, title: str) -> None:
    if json_:
        console.print_json(facts)
        return
    paths = {name: facts[name] for name in PATH_FACTS if name in facts}
    shown = {name.replace("_", " "): facts[name] for name in facts if name not in (*PATH_FACTS, "notes")}
    console.show(title, shown, paths)
