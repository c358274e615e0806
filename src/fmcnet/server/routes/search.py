"""The routes embed and search."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Form

from fmcnet.server.errors import ApiError, error_schema
from fmcnet.server.schemas import AnswerBody, EmbeddedBody, EmbeddingsBody, ModalityName
from fmcnet.server.validation import (
    Images,
    Kinds,
    KnownPerson,
    Moment,
    RangeField,
    Running,
    Sender,
    Words,
    filter_of,
    logged,
    only_known,
    read_uploads,
)
from fmcnet.types import Modality

router = APIRouter(prefix="/v1", responses=error_schema(), dependencies=[Depends(only_known)])


@router.post("/embed", response_model=EmbeddingsBody, summary="Images to embeddings; nothing is kept")
async def embed(
    service: Running, sender: Sender, images: Images, modality: Kinds, value_range: RangeField = None
) -> EmbeddingsBody:
    """Unit embeddings, in the order of the images."""
    found, _, notes = await service.embed(await read_uploads(images, value_range), modality, sender)
    return EmbeddingsBody(
        model=service.encoder.digest,
        dimension=found.features.shape[1],
        embeddings=[
            EmbeddedBody(
                name=str(found.name[row]),
                modality=cast(ModalityName, str(Modality.from_code(int(found.modality[row])))),
                embedding=found.features[row].tolist(),
            )
            for row in range(len(found))
        ],
        notes=notes,
    )


@router.post("/search", response_model=AnswerBody, summary="Who of the gallery is this?")
async def search(
    service: Running,
    sender: Sender,
    images: Images,
    modality: Kinds,
    top: Annotated[int, Form(ge=1, description="Hits, or groups.")] = 20,
    camera: Words = [],  # noqa: B006 (FastAPI copies it)
    track: Words = [],  # noqa: B006
    tag: Annotated[list[str], Form(description="An entry must have all of these.")] = [],  # noqa: B006
    pid: Annotated[list[KnownPerson], Form()] = [],  # noqa: B006
    entry_modality: Annotated[
        str | None, Form(description="Only entries that are visible, or infrared.")
    ] = None,
    since: Annotated[Moment | None, Form(description="Seen at or after; with a time zone.")] = None,
    until: Annotated[Moment | None, Form(description="Seen before; with a time zone.")] = None,
    min_probability: Annotated[float | None, Form(gt=0, lt=1)] = None,
    fmr: Annotated[float | None, Form(gt=0, le=1, description="False-match rate of one comparison.")] = None,
    prior: Annotated[
        float | None, Form(gt=0, lt=1, description="Before comparing; default 1 / (entries + 1).")
    ] = None,
    group: Annotated[Literal["track", "pid"] | None, Form()] = None,
    value_range: RangeField = None,
) -> dict[str, Any]:
    """All images are of ONE person, in one or both modalities; they are pooled into one query, and not kept."""
    with service.audit.watch(
        "search", **sender.facts, images=len(images), modality=modality[:2], top=top
    ) as log:
        if top > service.limits.top:
            raise ApiError(422, f"top={top} is more than {service.limits.top}", "top", "ask for fewer")
        where = filter_of(
            cameras=camera,
            tracks=track,
            tags=tag,
            pids=pid,
            modality=entry_modality,
            since=since,
            until=until,
        )
        log["where"] = logged(where)
        query, _, remarks = await service.embed(await read_uploads(images, value_range), modality, sender)
        limits: dict[str, Any] = {"min_probability": min_probability, "fmr": fmr, "prior": prior}
        answer = await service.work(
            lambda: service.searcher.answer(query, top=top, where=where, group=group, **limits)
        )
        log["nobody"] = answer.no_match
        shown = [match for one in answer.groups for match in one.hits] or answer.hits
        log["shown"] = [hit.id for hit in shown]
    return {**answer.to_dict(), "notes": [*answer.notes, *remarks]}
