"""Routes that look: embed and search."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile

from fmcnet.data.depth import parse_range
from fmcnet.errors import DataError
from fmcnet.server.decoding import Upload
from fmcnet.server.errors import ApiError, error_schema
from fmcnet.server.schemas import AnswerBody, EmbeddedBody, EmbeddingsBody, ModalityName, Moment
from fmcnet.server.service import Caller, Service
from fmcnet.server.validation import KnownPerson, filter_of, logged, only_known
from fmcnet.types import Modality

router = APIRouter(prefix="/v1", responses=error_schema(), dependencies=[Depends(only_known)])

Images = Annotated[
    list[UploadFile], File(min_length=1, description="JPEG, PNG, WebP, BMP, TIFF, GIF, HEIC or AVIF files.")
]
Kinds = Annotated[
    list[str],
    Form(min_length=1, description="visible or infrared: one for all images, or one each, in their order."),
]
Words = Annotated[list[str], Form()]
RangeField = Annotated[
    str | None,
    Form(
        alias="range",
        max_length=100,
        description="LOW:HIGH, the values that become black and white, of images deeper than 8 bits; default: the "
        "gallery's.",
    ),
]


def running_service(request: Request) -> Service:
    """The running service.

    Raises:
        ApiError: 503, while it starts or stops.
    """
    service: Service = request.app.state.service
    if not service.ready:
        raise ApiError(503, "the service is starting or stopping", "the service", "try again", retry_after=2)
    return service


def audit_facts(request: Request) -> dict[str, Any]:
    """Who sent the request, as the audit log notes it."""
    state = request.scope.get("state", {})
    client = request.client.host if request.client is not None else None
    return {"request": state.get("request"), "key": state.get("key"), "client": client}


def caller_of(request: Request) -> Caller:
    """Who sent the request, as the decoders share their time."""
    state = request.scope["state"]
    return Caller(state["caller"], state["gone"])


Running = Annotated[Service, Depends(running_service)]
AuditFacts = Annotated[dict[str, Any], Depends(audit_facts)]
Sender = Annotated[Caller, Depends(caller_of)]


async def read_uploads(images: list[UploadFile], value_range: str | None) -> list[Upload]:
    """Uploads with their bytes, which are in memory already, and the range of a field.

    Raises:
        ApiError: 422, for a text that is no range.
    """
    try:
        found = None if value_range is None else parse_range(value_range)
    except DataError as error:
        raise ApiError(422, str(error).removeprefix("--"), "range", "give LOW:HIGH, as 15:40") from error
    return [
        Upload((one.filename or f"images[{at}]")[:200], await one.read(), found)
        for at, one in enumerate(images)
    ]


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
    facts: AuditFacts,
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
    with service.audit.watch("search", **facts, images=len(images), modality=modality[:2], top=top) as log:
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
        answer = await service.work(
            lambda: service.searcher.answer(
                query,
                top=top,
                where=where,
                min_probability=min_probability,
                fmr=fmr,
                prior=prior,
                group=group,
            )
        )
        log["nobody"] = answer.no_match
        shown = [match for one in answer.groups for match in one.hits] or answer.hits
        log["shown"] = [hit.id for hit in shown]
    return {**answer.to_dict(), "notes": [*answer.notes, *remarks]}
