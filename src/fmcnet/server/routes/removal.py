"""Routes that remove: one entry, or all that match."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from fmcnet.errors import GalleryBusyError
from fmcnet.retrieval import Where
from fmcnet.server.errors import ApiError, error_schema
from fmcnet.server.filters import Conditions, logged
from fmcnet.server.routes.entries import absent, check_id
from fmcnet.server.routes.search import AuditFacts, Running
from fmcnet.server.schemas import RemovedBody, RemovedManyBody
from fmcnet.server.service import Service
from fmcnet.server.validation import only_known

router = APIRouter(prefix="/v1", responses=error_schema(), dependencies=[Depends(only_known)])


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
        if where.anything:
            raise ApiError(
                422,
                "no condition is given",
                "query",
                "say which: pid, camera, track, tag, modality, since, until",
            )
        if not dry_run and expect is None:
            raise ApiError(
                422, "a removal cannot be undone", "expect", "ask with dry_run=true, then give expect=MATCHED"
            )
        async with service.changing:
            matched, ids = await service.work(lambda: _remove(service, where, dry_run, expect, log))
        log.update(ids=ids, removed=len(ids))
    return RemovedManyBody(matched=matched, removed=len(ids), dry_run=dry_run)


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
        except (
            GalleryBusyError
        ):  # of another writer: none is gone; of a reader: all are, but the log holds them
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
        check_id(entry_id)

        def do() -> int:
            return _remove(service, Where(ids=[entry_id]), False, None, log)[0]

        async with service.changing:
            removed = log["removed"] = await service.work(do)
        if not removed:
            raise absent(entry_id)
    return RemovedBody(id=entry_id, removed=removed)
