"""Routes of the gallery: embed, search, add, list, show, remove."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from fmcnet.data.pixels import RANGE_FIELD
from fmcnet.errors import FmcnetError, GalleryError
from fmcnet.retrieval import Entry, Where
from fmcnet.retrieval.inputs import as_id
from fmcnet.retrieval.notes import add_notes, added_range_notes, filter_notes, query_range_notes
from fmcnet.retrieval.records import Stored
from fmcnet.retrieval.similarity import unit_vectors
from fmcnet.server import schemas, validation
from fmcnet.server.errors import ApiError, error_schema, refused_at
from fmcnet.server.service import Embedded, Service
from fmcnet.server.thumbnails import thumbnail_name
from fmcnet.times import check_clock, parse_timezone
from fmcnet.types import Modality

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", responses=error_schema(), dependencies=[Depends(validation.only_known)])

FARTHEST = 100_000
"""Entries that a list can skip."""


@router.post("/embed", response_model=schemas.EmbeddingsBody, summary="Images to embeddings; nothing is kept")
async def embed(
    service: validation.Running,
    sender: validation.Sender,
    images: validation.Images,
    modality: validation.Kinds,
    value_range: validation.RangeField = None,
) -> dict[str, Any]:
    """Unit embeddings, in the order of the images."""
    embedded = await service.embed(await validation.read_uploads(images, value_range), modality, sender)
    result = embedded.embeddings
    rows = zip(result.name, result.modality, result.features, strict=True)
    embeddings = [
        {"name": str(name), "modality": str(Modality.from_code(int(code))), "embedding": values.tolist()}
        for name, code, values in rows
    ]
    model, dimension = service.encoder.digest, result.features.shape[1]
    return {"model": model, "dimension": dimension, "embeddings": embeddings, "notes": embedded.notes}


@router.post("/search", response_model=schemas.AnswerBody, summary="Who of the gallery is this?")
async def search(
    service: validation.Running,
    sender: validation.Sender,
    images: validation.Images,
    modality: validation.Kinds,
    top: Annotated[int, Form(ge=1, description="Hits, or groups.")] = 20,
    camera: validation.WantedWords = [],  # noqa: B006 (FastAPI copies it)
    track: validation.WantedWords = [],  # noqa: B006
    tag: Annotated[list[validation.Wanted], Form(description="An entry must have all of these.")] = [],  # noqa: B006
    pid: Annotated[list[validation.KnownPerson], Form()] = [],  # noqa: B006
    entry_modality: Annotated[
        str | None, Form(description="Only entries that are visible, or infrared.")
    ] = None,
    since: Annotated[
        validation.Moment | None, Form(description="Seen at or after, as 2026-03-01T22:15:00+01:00.")
    ] = None,
    until: Annotated[validation.Moment | None, Form(description="Seen before, as since.")] = None,
    min_probability: Annotated[float | None, Form(gt=0, lt=1)] = None,
    fmr: Annotated[float | None, Form(gt=0, le=1, description="False-match rate of one comparison.")] = None,
    prior: Annotated[
        float | None, Form(gt=0, lt=1, description="Before comparing; default 1 / (entries or tracks + 1).")
    ] = None,
    group: Annotated[Literal["track", "pid"] | None, Form()] = None,
    value_range: validation.RangeField = None,
) -> dict[str, Any]:
    """All images are of ONE person, in one or both modalities; they are pooled into one query, and not kept."""
    facts = {**sender.facts, "images": len(images), "modality": modality[:2], "top": top}
    with service.audit.watch("search", **facts) as log:
        if top > service.limits.top:
            raise ApiError(422, f"top={top} is more than {service.limits.top}", "top", "ask for fewer")
        names = {"cameras": camera, "tracks": track, "tags": tag, "pids": pid}
        where = validation.filter_of(**names, modality=entry_modality, since=since, until=until)
        log["where"] = validation.logged(where)
        uploads = await validation.read_uploads(images, value_range)
        query = await service.embed(uploads, modality, sender)
        with refused_at("range", RANGE_FIELD):
            ranges = await service.work(lambda: service.searcher.check_ranges(query.ranges, RANGE_FIELD))
        options: dict[str, Any] = {"min_probability": min_probability, "fmr": fmr, "prior": prior}
        answer = await service.work(
            lambda: service.searcher.answer(query.embeddings, top=top, where=where, group=group, **options)
        )
        log["nobody"] = answer.no_match
        shown = [hit for hit_group in answer.groups for hit in hit_group.hits] or answer.hits
        log["shown"] = [hit.id for hit in shown]
    return {
        **answer.to_dict(),
        "notes": [*answer.notes, *query.notes, *query_range_notes(ranges, query.ranges)],
    }


@router.post("/entries", response_model=schemas.AddedBody, status_code=201, summary="Add crops; all, or none")
async def add(
    service: validation.Running,
    sender: validation.Sender,
    request: Request,
    images: validation.Images,
    modality: validation.Kinds,
    id: Annotated[list[str], Form(description="One each; made up when not given.")] = [],  # noqa: B006
    camera: validation.Words = [],  # noqa: B006
    time: Annotated[
        list[validation.Moment], Form(description="When seen, as 2026-03-01T22:15:00+01:00.")
    ] = [],  # noqa: B006
    track: validation.Words = [],  # noqa: B006
    source: validation.Words = [],  # noqa: B006
    pid: Annotated[list[validation.Person], Form(description="Texts or numbers; empty: unknown.")] = [],  # noqa: B006
    tag: Annotated[list[str], Form(description="Tags of all these images.")] = [],  # noqa: B006
    value_range: validation.RangeField = None,
    on_duplicate: Annotated[
        Literal["refuse", "replace", "skip"],
        Form(description="An id that is there; replace needs the scope admin."),
    ] = "refuse",
) -> dict[str, Any]:
    """`camera`, `time`, `track`, `source`, `pid`: none, one for all images, or one each. On disk when it answers."""
    n = len(images)
    facts = {**sender.facts, "images": n, "modality": modality[:2], "on_duplicate": on_duplicate}
    with service.audit.watch("add", **facts) as log:
        if on_duplicate == "replace" and "admin" not in request.scope["state"]["scopes"]:
            what = "replacing removes, which needs the scope admin"
            raise ApiError(403, what, "on_duplicate", "use another key, or skip")
        fields: dict[str, list[Any]] = {
            "camera": camera, "time": time, "track": track, "source": source, "pid": pid
        }  # fmt: skip
        columns = {name: _metadata_column(values, n, name) for name, values in fields.items()}
        columns["tags"] = [tag] * n
        if id and len(id) != n:
            raise ApiError(422, f"{len(id)} ids for {n} images", "id", "give one for each image, or none")
        with refused_at("time", "set the camera's clock, or leave the time out"):
            for moment in time:  # `fmcnet gallery expire` would remove what a clock that was never set dates
                check_clock(moment, f"time {moment.isoformat()}")
        uploads = await validation.read_uploads(images, value_range)
        crops = await service.embed(uploads, modality, sender, keep=service.kept is not None)
        with refused_at("range", RANGE_FIELD):
            await service.work(lambda: service.searcher.check_ranges(crops.ranges, RANGE_FIELD))
        async with service.changing:  # nobody adds or removes one of these before their thumbnails are kept
            before: dict[str, str] = {}
            if service.kept is not None:
                before = await service.work(lambda: _thumbnail_names(service, Where(ids=id)))
            options: dict[str, Any] = {
                "ids": id or None,
                "on_duplicate": on_duplicate,
                "ranges": crops.ranges,
            }
            notes = list[str]()
            try:
                added = await service.work(
                    lambda: service.searcher.add_embeddings(crops.embeddings, **options, **columns)
                )
            except GalleryError as error:
                if (added := error.added) is None:
                    raise
                logger.error("%s", error)
                what = "the entries are added, but the gallery's log may hold what was replaced"
                notes.append(f"{what}: the next change empties it; the service's log says why")
            counts = {"added": added.added, "replaced": added.replaced, "skipped": added.skipped}
            log.update(ids=list(added.ids), **counts, camera=sorted(set(camera)))
            skip = on_duplicate == "skip"
            notes += await service.work(lambda: _store_thumbnails(service, added.ids, crops, before, skip))
            columns["modality"] = modality * (n // len(modality))
            reads = "read" in request.scope["state"]["scopes"]
            try:
                notes += await service.work(lambda: add_notes(service.gallery, added, columns, stored=reads))
                if reads:
                    notes += await service.work(
                        lambda: list(added_range_notes(service.gallery, crops.ranges))
                    )
            except (ApiError, FmcnetError) as error:
                logger.error("%s", error)
                notes.append("the entries are added, but could not be compared with the others")
    return {"ids": list(added.ids), **counts, "notes": [*crops.notes, *notes]}


@router.get("/entries", response_model=schemas.EntriesBody, summary="List entries, as those of a track")
async def entries(
    service: validation.Running,
    where: validation.Conditions,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    offset: Annotated[int, Query(ge=0, le=FARTHEST)] = 0,
) -> dict[str, Any]:
    """Entries that match, without embeddings, in the order of their adding."""

    def fetch() -> tuple[int, list[Entry], tuple[str, ...]]:
        scanned = service.gallery.scan(where, chunk=min(offset + limit, 4096))
        rows = [entry for entry, _ in itertools.islice(scanned, offset, offset + limit)]
        return service.gallery.count(where), rows, filter_notes(service.gallery, where or Where())

    total, rows, notes = await service.work(fetch)
    return {"total": total, "entries": rows, "notes": notes}


@router.get("/days", response_model=schemas.DaysBody, summary="How many entries each camera has on each day")
async def days(
    service: validation.Running,
    where: validation.Conditions,
    timezone: Annotated[str, Query(max_length=64, description="Whose days: Europe/Berlin")] = "UTC",
    limit: Annotated[int, Query(ge=1, le=10_000, description="Pairs of camera and day.")] = 1000,
) -> dict[str, Any]:
    """Entries that match, counted by camera and day, the newest day first."""
    with refused_at("query.timezone", "say UTC or a name as Europe/Berlin"):
        zone = parse_timezone(timezone)
    counts = await service.work(lambda: service.gallery.days(where, zone))
    total, left_out = (sum(count.entries for count in part) for part in (counts, counts[limit:]))
    notes = await service.work(lambda: filter_notes(service.gallery, where or Where()))
    return {"total": total, "days": counts[:limit], "left_out": left_out, "notes": notes}


@router.get("/entries/{entry_id:path}", response_model=schemas.EntryBody, summary="One entry")
async def entry(service: validation.Running, entry_id: str) -> Entry:
    """Without its embedding."""
    return (await _get_stored(service, entry_id))[0]


@router.get(
    "/images/{entry_id:path}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "A JPEG of at most 512 pixels a side"}},
    summary="The thumbnail of an entry",
)
async def image(service: validation.Running, sender: validation.Sender, entry_id: str) -> Response:
    """Only where one was kept (--keep-images), or where the entry's source may be shown (--show-sources)."""
    data = await service.thumbnail(await _get_stored(service, entry_id), sender)
    if data is None:
        do = "see --keep-images, --show-sources"
        raise ApiError(404, "there is no thumbnail of this entry", "entry_id", do)
    return Response(data, media_type="image/jpeg")


async def _get_stored(service: Service, entry_id: str) -> Stored:
    _check_id(entry_id)
    found = await service.work(lambda: list(service.gallery.scan(Where(ids=[entry_id]), chunk=1)))
    if not found:
        raise _not_found(entry_id)
    return found[0]


def _check_id(entry_id: str) -> None:
    """Refuse what cannot be the id of a stored entry."""
    with refused_at("entry_id", "give the id of an entry"):
        as_id(entry_id, stored=True)


def _not_found(entry_id: str) -> ApiError:
    what = f"there is no entry '{entry_id[:256]}'"
    return ApiError(404, what, "entry_id", "look for it with a search or a list")


def _metadata_column(values: Sequence[Any], images: int, name: str) -> Any:
    """None, one for all, or one each; another count is refused."""
    if len(values) not in (0, 1, images):
        what = f"{len(values)} values for {images} images"
        raise ApiError(422, what, name, "give none, one for all, or one each")
    return None if not values else values[0] if len(values) == 1 else values


def _thumbnail_names(service: Service, where: Where) -> dict[str, str]:
    """By the ids of the entries that match."""
    return {entry.id: thumbnail_name(entry.id, embedding) for entry, embedding in service.gallery.scan(where)}


def _store_thumbnails(
    service: Service, ids: Sequence[str], crops: Embedded, before: dict[str, str], skip: bool
) -> list[str]:
    """Store the thumbnails of new entries; failures are notes, for the entries are stored.

    `before`: `_thumbnail_names` of ids that were there, whose entries were replaced, or kept with `skip`.
    """
    kept = service.kept
    if kept is None:
        return []
    notes = [] if skip else _forget_thumbnails(service, before.values())
    try:
        vectors = unit_vectors(crops.embeddings.features)  # as the gallery stores them
        for entry_id, vector, data in zip(ids, vectors, crops.thumbnails, strict=True):
            if data is not None and not (skip and entry_id in before):
                kept.keep(thumbnail_name(entry_id, vector), data)
    except OSError as error:
        logger.error("thumbnails cannot be kept in %s: %s", kept.folder, error)
        notes.append("the entries are added, but not all of their thumbnails could be kept")
    return notes


@router.delete("/entries", summary="Remove all entries that match, provably")
async def remove_many(
    service: validation.Running,
    sender: validation.Sender,
    where: validation.Conditions,
    dry_run: Annotated[bool, Query(description="Only say how many match.")] = False,
    expect: Annotated[
        int | None,
        Query(ge=0, description="How many must match, as dry_run=true said; else nothing is removed."),
    ] = None,
) -> schemas.RemovedManyBody:
    """Ask with `dry_run=true`, then confirm with `expect`. One condition at least; all must hold."""
    with service.audit.watch(
        "remove", **sender.facts, where=validation.logged(where), dry_run=dry_run
    ) as log:
        if where is None:
            do = "say which: id, pid, camera, track, tag, modality, since, until"
            raise ApiError(422, "no condition is given", "query", do)
        if not dry_run and expect is None:
            do = "ask with dry_run=true, then give expect=MATCHED"
            raise ApiError(422, "a removal cannot be undone", "expect", do)
        async with service.changing:
            notes = await service.work(lambda: filter_notes(service.gallery, where))
            if dry_run:
                ids, matched = list[str](), await service.work(lambda: service.gallery.count(where))
            else:
                ids, left = await service.work(lambda: _remove_entries(service, where, expect, log))
                matched, notes = len(ids), (*notes, *left)
        log.update(ids=ids, removed=len(ids))
    return schemas.RemovedManyBody(matched=matched, removed=len(ids), dry_run=dry_run, notes=list(notes))


def _remove_entries(
    service: Service, where: Where, expect: int | None, log: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The ids of the entries that were removed, which `log` gets even when the removal then fails, and notes."""
    names = _thumbnail_names(service, where)
    ids = list(names)
    if expect is not None and len(ids) != expect:
        what = f"{len(ids)} entries match, not {expect}; none is removed"
        raise ApiError(409, what, "expect", "look again with dry_run=true")
    if not ids:
        return [], []
    log["ids"] = ids
    try:  # those that were counted, whatever came to match since
        service.gallery.remove(Where(ids=ids))
    except GalleryError:
        # another writer: none is gone; a reader or a full disk: all are, but the log holds them
        removed = [entry_id for entry_id in ids if entry_id not in service.gallery]
        log.update(ids=removed, removed=len(removed))
        _forget_thumbnails(service, [names[entry_id] for entry_id in removed])
        raise
    log.update(ids=ids, removed=len(ids))
    return ids, _forget_thumbnails(service, names.values())


def _forget_thumbnails(service: Service, names: Iterable[str]) -> list[str]:
    """Remove kept thumbnails; a failure is a note, for their entries are gone."""
    left = 0 if service.kept is None else service.kept.remove(names)
    what = f"{left} of the kept thumbnails could not be removed"
    return [f"{what}; the service's log says why, and it tries again every hour"] if left else []


@router.delete("/entries/{entry_id:path}", summary="Remove an entry, provably")
async def remove(
    service: validation.Running, sender: validation.Sender, entry_id: str
) -> schemas.RemovedBody:
    """When it answers, no file of the gallery holds the embedding; this service's thumbnail is gone, too."""
    with service.audit.watch("remove", **sender.facts, ids=[entry_id[:256]]) as log:
        _check_id(entry_id)
        async with service.changing:
            ids, notes = await service.work(
                lambda: _remove_entries(service, Where(ids=[entry_id]), None, log)
            )
        log["removed"] = len(ids)
        if not ids:
            raise _not_found(entry_id)
    return schemas.RemovedBody(id=entry_id, removed=len(ids), notes=notes)
