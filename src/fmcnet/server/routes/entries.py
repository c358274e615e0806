"""Routes of entries: add, list, show, remove."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.names import near_cameras
from fmcnet.retrieval import Entry, Where
from fmcnet.retrieval.inputs import as_id
from fmcnet.retrieval.notes import filter_notes, near_notes
from fmcnet.retrieval.times import check_clock, doubtful_times, parse_timezone
from fmcnet.server.errors import ApiError, error_schema
from fmcnet.server.schemas import (
    AddedBody,
    DayBody,
    DaysBody,
    EntriesBody,
    EntryBody,
    RemovedBody,
    RemovedManyBody,
)
from fmcnet.server.service import Service
from fmcnet.server.validation import (
    AuditFacts,
    Conditions,
    Images,
    Kinds,
    Moment,
    Person,
    RangeField,
    Running,
    Sender,
    Words,
    logged,
    only_known,
    read_uploads,
)

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", responses=error_schema(), dependencies=[Depends(only_known)])

FARTHEST = 100_000
"""Entries that a list can skip."""


@router.post("/entries", response_model=AddedBody, status_code=201, summary="Add crops; all, or none")
async def add(
    service: Running,
    facts: AuditFacts,
    sender: Sender,
    request: Request,
    images: Images,
    modality: Kinds,
    id: Annotated[list[str], Form(description="One each; made up when not given.")] = [],  # noqa: B006
    camera: Words = [],  # noqa: B006
    time: Annotated[list[Moment], Form(description="When seen; with a time zone.")] = [],  # noqa: B006
    track: Words = [],  # noqa: B006
    source: Words = [],  # noqa: B006
    pid: Annotated[list[Person], Form(description="Texts or numbers; empty: unknown.")] = [],  # noqa: B006
    tag: Annotated[list[str], Form(description="Tags of all these images.")] = [],  # noqa: B006
    value_range: RangeField = None,
    on_duplicate: Annotated[
        Literal["refuse", "replace", "skip"],
        Form(description="An id that is there; replace needs the scope admin."),
    ] = "refuse",
) -> dict[str, Any]:
    """`camera`, `time`, `track`, `source`, `pid`: none, one for all images, or one each. On disk when it answers."""
    n = len(images)
    with service.audit.watch(
        "add", **facts, images=n, modality=modality[:2], on_duplicate=on_duplicate
    ) as log:
        if on_duplicate == "replace" and not request.scope["state"]["may"]("admin"):
            raise ApiError(
                403,
                "replacing removes, which needs the scope admin",
                "on_duplicate",
                "use another key, or skip",
            )
        columns: dict[str, Any] = {
            "camera": camera,
            "time": time,
            "track": track,
            "source": source,
            "pid": pid,
        }
        columns = {name: _column(values, n, name) for name, values in columns.items()}
        if id and len(id) != n:
            raise ApiError(422, f"{len(id)} ids for {n} images", "id", "give one for each image, or none")
        _check_clocks(time)
        uploads = await read_uploads(images, value_range)
        embeddings, pictures, remarks = await service.embed(uploads, modality, sender)
        async with service.changing:  # nobody adds or removes one of these before their crops are kept
            there: set[str] = set()
            if on_duplicate == "skip" and service.pictures.kept is not None:
                there = await service.work(lambda: {one for one in id if one in service.gallery})
            done = await service.work(
                lambda: service.searcher.add_embeddings(
                    embeddings, on_duplicate=on_duplicate, ids=id or None, tags=[tag] * n, **columns
                )
            )
            log.update(
                ids=list(done.ids), added=done.added, replaced=done.replaced, skipped=done.skipped,
                camera=sorted(set(camera)),
            )  # fmt: skip
            kept = [p for p in zip(done.ids, pictures, strict=True) if p[0] not in there]
            notes = await service.work(lambda: [*_keep(service, kept), *_doubts(service, camera, pid, time)])
    return {
        "ids": list(done.ids),
        "added": done.added,
        "replaced": done.replaced,
        "skipped": done.skipped,
        "notes": [*remarks, *notes],
    }


@router.get("/entries", response_model=EntriesBody, summary="List entries, as those of a track")
async def entries(
    service: Running,
    where: Conditions,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    offset: Annotated[int, Query(ge=0, le=FARTHEST)] = 0,
) -> EntriesBody:
    """Entries that match, without embeddings, in the order of their adding."""

    def look() -> tuple[int, list[Entry], tuple[str, ...]]:
        found = service.gallery.scan(where, chunk=min(offset + limit, 4096))
        rows = [entry for entry, _ in itertools.islice(found, offset, offset + limit)]
        return service.gallery.count(where), rows, filter_notes(service.gallery, where)

    total, rows, notes = await service.work(look)
    return EntriesBody(total=total, entries=[EntryBody.of(entry) for entry in rows], notes=list(notes))


@router.get("/days", response_model=DaysBody, summary="How many entries each camera has on each day")
async def days(
    service: Running,
    where: Conditions,
    timezone: Annotated[str, Query(max_length=64, description="Whose days: Europe/Berlin")] = "UTC",
    limit: Annotated[int, Query(ge=1, le=10_000, description="Pairs of camera and day.")] = 1000,
) -> DaysBody:
    """Entries that match, counted by camera and day, the newest day first."""
    try:
        zone = parse_timezone(timezone)
    except FmcnetError as error:
        raise ApiError(
            422, f"timezone '{timezone}' is not known", "query.timezone", "say UTC or a name as Europe/Berlin"
        ) from error
    found = await service.work(lambda: service.gallery.days(where, zone))
    shown = [DayBody(**vars(one)) for one in found[:limit]]
    total = sum(one.entries for one in found)
    return DaysBody(total=total, days=shown, left_out=total - sum(one.entries for one in shown))


@router.get("/entries/{entry_id:path}", response_model=EntryBody, summary="One entry")
async def entry(service: Running, entry_id: str) -> EntryBody:
    """Without its embedding."""
    return EntryBody.of(await _get(service, entry_id))


@router.get(
    "/images/{entry_id:path}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "A JPEG of at most 512 pixels a side"}},
    summary="The picture of an entry",
)
async def image(service: Running, sender: Sender, entry_id: str) -> Response:
    """Only of crops that were kept (--keep-images), or of sources that may be shown (--show-sources)."""
    found = await _get(service, entry_id)
    data = await service.picture(found, sender)
    if data is None:
        raise ApiError(
            404, "there is no picture of this entry", "entry_id", "see --keep-images, --show-sources"
        )
    return Response(data, media_type="image/jpeg")


async def _get(service: Service, entry_id: str) -> Entry:
    _check_id(entry_id)

    def look() -> list[Entry]:
        return [entry for entry, _ in service.gallery.scan(Where(ids=[entry_id]), chunk=1)]

    found = await service.work(look)
    if not found:
        raise _absent(entry_id)
    return found[0]


def _check_id(entry_id: str) -> None:
    """Refuse what cannot be the id of a stored entry."""
    try:
        as_id(entry_id, stored=True)
    except GalleryError as error:
        raise ApiError(422, str(error), "entry_id", "give the id of an entry") from error


def _absent(entry_id: str) -> ApiError:
    return ApiError(
        404, f"there is no entry '{entry_id[:256]}'", "entry_id", "look for it with a search or a list"
    )


def _column(values: Sequence[Any], images: int, name: str) -> Any:
    """None, one for all, or one each; another count is refused."""
    if len(values) not in (0, 1, images):
        raise ApiError(
            422, f"{len(values)} values for {images} images", name, "give none, one for all, or one each"
        )
    return None if not values else values[0] if len(values) == 1 else values


def _check_clocks(times: list[Moment]) -> None:
    """Refuse times of clocks that were never set: `fmcnet gallery expire` would remove the entries."""
    try:
        for one in times:
            check_clock(one, f"time {one.isoformat()}")
    except DataError as error:
        raise ApiError(422, str(error), "time", "set the camera's clock, or leave the time out") from error


def _doubts(service: Service, cameras: list[str], pids: list[str], times: list[Moment]) -> list[str]:
    """Notes on near spellings of these cameras and identities in the gallery, and on times of wrong clocks."""
    notes = near_cameras(service.gallery.cameras()) if cameras else []
    notes = [note for note in notes if any(repr(camera) in note for camera in cameras)]
    images = ((f"image {number}", one) for number, one in enumerate(times, 1))
    return [*notes, *near_notes(service.gallery, [one for one in pids if one]), *doubtful_times(images)]


def _keep(service: Service, pictures: list[tuple[str, bytes | None]]) -> list[str]:
    """Store the pictures of new entries; what went wrong, as notes: the entries themselves are there."""
    kept = service.pictures.kept
    if kept is None:
        return []
    try:
        for entry_id, data in pictures:
            if data is not None:
                kept.keep(entry_id, data)
    except OSError as error:
        logger.error("pictures cannot be kept in %s: %s", kept.folder, error)
        return ["the entries are added, but not all of their pictures could be kept"]
    return []


@router.delete("/entries", response_model=RemovedManyBody, summary="Remove all entries that match, provably")
async def remove_many(
    service: Running,
    facts: AuditFacts,
    where: Conditions,
    dry_run: Annotated[bool, Query(description="Only say how many match.")] = False,
    expect: Annotated[
        int | None,
        Query(ge=0, description="How many must match, as dry_run=true said; else nothing is removed."),
    ] = None,
) -> RemovedManyBody:
    """Ask with `dry_run=true`, then confirm with `expect`. One condition at least; all must hold."""
    with service.audit.watch("remove", **facts, where=logged(where), dry_run=dry_run) as log:
        if where is None:
            raise ApiError(
                422,
                "no condition is given",
                "query",
                "say which: id, pid, camera, track, tag, modality, since, until",
            )
        if not dry_run and expect is None:
            raise ApiError(
                422, "a removal cannot be undone", "expect", "ask with dry_run=true, then give expect=MATCHED"
            )
        async with service.changing:
            notes = await service.work(lambda: filter_notes(service.gallery, where))
            matched, ids = await service.work(lambda: _remove(service, where, dry_run, expect, log))
        log.update(ids=ids, removed=len(ids))
    return RemovedManyBody(matched=matched, removed=len(ids), dry_run=dry_run, notes=list(notes))


def _remove(
    service: Service, where: Where, dry_run: bool, expect: int | None, log: dict[str, Any]
) -> tuple[int, list[str]]:
    """How many match, and the ids of those that were removed; `log` says so even when the removal then fails."""
    if dry_run:
        return service.gallery.count(where), []
    ids = [entry.id for entry, _ in service.gallery.scan(where)]
    if expect is not None and len(ids) != expect:
        raise ApiError(
            409,
            f"{len(ids)} entries match, not {expect}; none is removed",
            "expect",
            "look again with dry_run=true",
        )
    if ids:
        try:  # those that were counted, whatever came to match since
            service.gallery.remove(Where(ids=ids))
        except GalleryError:
            # another writer: none is gone; a reader or a full disk: all are, but the log holds them
            gone = [entry_id for entry_id in ids if entry_id not in service.gallery]
            _forget_crops(service, gone)
            log.update(ids=gone, removed=len(gone))
            raise
        _forget_crops(service, ids)
    return len(ids), ids


def _forget_crops(service: Service, ids: list[str]) -> None:
    if service.pictures.kept is not None:
        for entry_id in ids:
            service.pictures.kept.remove(entry_id)


@router.delete("/entries/{entry_id:path}", response_model=RemovedBody, summary="Remove an entry, provably")
async def remove(service: Running, facts: AuditFacts, entry_id: str) -> RemovedBody:
    """When it answers, no file of the gallery holds the embedding, and the kept crop is gone."""
    with service.audit.watch("remove", **facts, ids=[entry_id[:256]]) as log:
        _check_id(entry_id)
        async with service.changing:
            removed, _ = await service.work(lambda: _remove(service, Where(ids=[entry_id]), False, None, log))
        log["removed"] = removed
        if not removed:
            raise _absent(entry_id)
    return RemovedBody(id=entry_id, removed=removed)
