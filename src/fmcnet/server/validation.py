"""What routes take from a request: known fields only, filters, identities, times, images and their sender."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, File, Form, Query, Request, UploadFile
from pydantic import AfterValidator, AwareDatetime, Field, WrapValidator
from python_multipart.multipart import MultipartParser, parse_options_header

from fmcnet.data.pixels import parse_range
from fmcnet.errors import GalleryError
from fmcnet.retrieval import Where
from fmcnet.retrieval.records import as_known_pid, as_pid
from fmcnet.server.errors import ApiError, refused_at
from fmcnet.server.schemas import ModalityName
from fmcnet.server.service import Caller, Service
from fmcnet.server.uploads import Upload

_Read = TypeVar("_Read")

FORM = "multipart/form-data"
"""Of a body with files; frameworks bound no other form's fields as early."""
IMAGES = "images"
"""The one form field of files."""


# ---- known fields only ----


async def only_known(request: Request) -> None:
    """Compare a request with its route's OpenAPI description, so that a misspelt filter cannot widen a search.

    Pydantic's extra="forbid" would not do: FastAPI takes the last value of a field that is given twice, and the
    default for an empty one.

    Raises:
        ApiError: 422 for the fields, as `_check_fields`, for texts that are not UTF-8, and for a body where none is
            read. 415 for a body that is not a form with files. 400 for a form without its end.
    """
    document = request.app.openapi()
    operation = document["paths"][request.scope["route"].path_format][request.method.lower()]
    queries = {p["name"]: p["schema"] for p in operation.get("parameters", ()) if p["in"] == "query"}
    _check_fields("query", request.query_params.multi_items(), queries)
    if "requestBody" in operation:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != FORM:
            shown = content_type[:100] or "of no type"
            raise ApiError(415, f"the body is {shown}", "header Content-Type", f"send a form: {FORM}")
        form = _FormCheck(request.headers["content-type"], request.scope["state"]["body"])
        if not form.ended:  # its last field would be lost
            raise ApiError(400, "the form does not end with its boundary", "body", "send the whole form")
        content = next(iter(operation["requestBody"]["content"].values()))
        body = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        _check_fields("body", (await request.form()).multi_items(), body["properties"])
    elif await request.body():
        raise ApiError(422, "this route reads no body", "body", "say it in the address, as ?camera=gate")


class _FormCheck:
    """Reads a form without its files: Starlette takes what is not UTF-8 as Latin-1, and decodes no encoding.

    Some clients name another charset or encoding whatever the text: it is taken where the text is the same in it.

    Attributes:
        ended: whether the form has its last boundary.

    Raises:
        ApiError: 422 for a text that would be taken as what it is not.
    """

    def __init__(self, content_type: str, body: bytes) -> None:
        self.ended = False
        self._content_type = content_type
        self._name, self._value = bytearray(), bytearray()  # of a header
        self._headers: dict[bytes, bytes] = {}
        self._options: dict[bytes, bytes] = {}  # of Content-Disposition
        self._text = bytearray()
        events: dict[str, Any] = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_text,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        boundary = parse_options_header(content_type)[1][b"boundary"]
        MultipartParser(boundary, cast(Any, events)).write(body)  # FastAPI has parsed it: no error

    def _begin_part(self) -> None:
        self._headers, self._text = {}, bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        self._options = parse_options_header(self._headers.get(b"content-disposition", b""))[1]

    def _add_text(self, data: bytes, start: int, end: int) -> None:
        if b"filename" not in self._options:
            self._text += data[start:end]

    def _end_part(self) -> None:
        name, text = self._options.get(b"name", b"").decode("utf-8", "replace"), bytes(self._text)
        encoding = (
            self._headers.get(b"content-transfer-encoding", b"binary").decode("latin-1").strip().lower()
        )
        unquoted = encoding == "quoted-printable" and b"=" not in text
        faults = [] if encoding in ("7bit", "8bit", "binary") or unquoted else [encoding]
        if b"filename" not in self._options and name != IMAGES:  # images as texts are refused as such
            for content_type in (self._content_type, self._headers.get(b"content-type", b"")):
                charset = parse_options_header(content_type)[1].get(b"charset", b"").decode("latin-1").lower()
                try:
                    same = text.decode(charset or "utf-8", "replace") == text.decode(errors="replace")
                except LookupError:  # an unknown charset
                    same = False
                if not same:
                    faults.append(charset)
            if text.decode("utf-8", "ignore").encode() != text:
                faults.append("not UTF-8")
        if faults:
            what = f"the form field '{name[:100]}' is {', '.join(faults)[:100]}"
            do = 'send UTF-8 as it is; curl of Windows does with -F "camera=<FILE", of a file in UTF-8'
            raise ApiError(422, what, "body", do)

    def _end(self) -> None:
        self.ended = True


def _check_fields(location: str, fields: Sequence[tuple[str, object]], known: Mapping[str, Any]) -> None:
    """Refuse unknown and repeated names, empty values, and files in place of texts; `known`: schemas by name."""
    what = "form field" if location == "body" else "parameter"
    names = [name for name, _ in fields]
    unknown = sorted(set(names) - known.keys())
    if unknown:
        shown = ", ".join(f"'{name[:100]}'" for name in unknown[:10])
        do = f"use {', '.join(known)}" if known else "leave it out: this route has none"
        raise ApiError(422, f"there is no {what} {shown}", location, do)
    for name, count in Counter(names).items():
        schemas = (known[name], *known[name].get("anyOf", ()))
        if count > 1 and not any(schema.get("type") == "array" for schema in schemas):
            raise ApiError(422, f"the {what} '{name}' is given {count} times", location, "give it once")
    for name, value in fields:
        if name == IMAGES and isinstance(value, str):
            do = "send a file with a filename, as curl -F images=@crop.jpg does"
            raise ApiError(422, f"the {what} '{name}' is no file", location, do)
        if name != IMAGES and not isinstance(value, str):
            raise ApiError(422, f"the {what} '{name}' is a file", location, "send a text, without a filename")
        if value == "" and ("items" not in known[name] or "minLength" in known[name]["items"]):
            raise ApiError(422, f"the {what} '{name}' is empty", location, "leave it out, or give a value")


# ---- identities, times, filters ----


def _parse_pid(parse: Callable[[str], _Read], pid: str) -> _Read:
    """An identity; its error is a ValueError, as pydantic needs it."""
    try:
        return parse(pid)
    except GalleryError as error:
        raise ValueError(str(error)) from error


def _parse_moment(value: object, parse: Callable[[object], datetime]) -> datetime:
    """Refuse numbers, which pydantic reads as seconds since 1970, as in `since=2026`, dates and wrong offsets."""
    if re.search(r":\d\d\S* \d\d(:?\d\d)?$", str(value)):
        raise ValueError("its offset lacks the +: in an address, write + as %2B")
    if re.search(r":\d\d\S*[+-]\d\d$", str(value)):
        raise ValueError("write its offset with minutes, as +01:00")
    if re.search(r"[Tt ]\d\d(:\d\d){1,2}(\.\d+)?$", str(value)):
        raise ValueError("its offset is missing: write Z for UTC, or +01:00, behind it")
    if re.fullmatch(r"\d{4}-?\d\d-?\d\d", str(value)):
        raise ValueError("a date alone has no timezone: write its midnight, as 2026-03-01T00:00:00+01:00")
    try:
        float(str(value))
    except ValueError:
        with contextlib.suppress(ValueError):
            return parse(value)
    raise ValueError("it is no time: write it as 2026-03-01T12:00:00Z")


Moment = Annotated[AwareDatetime, WrapValidator(_parse_moment)]
"""A datetime of a request, with its time zone."""
Person = Annotated[str, AfterValidator(lambda pid: _parse_pid(as_pid, pid))]
"""An identity, a text or a number, of an entry."""
KnownPerson = Annotated[str, Field(min_length=1), AfterValidator(lambda pid: _parse_pid(as_known_pid, pid))]
"""The same for a filter, where unknown is refused."""
Wanted = Annotated[str, Field(min_length=1)]
"""A value of a filter."""
Texts = Annotated[list[Wanted], Query()]


def filter_of(**given: Any) -> Where | None:
    """The conditions of `Where` that are given; None: there is none.

    Raises:
        GalleryError: as `Where`.
    """
    where = Where(**{name: value or None for name, value in given.items()})
    return None if where.unconditional else where


def conditions(
    id: Texts = [],  # noqa: B006 (FastAPI copies it)
    track: Texts = [],  # noqa: B006
    camera: Texts = [],  # noqa: B006
    pid: Annotated[list[KnownPerson], Query()] = [],  # noqa: B006
    tag: Annotated[list[Wanted], Query(description="An entry must have all of these.")] = [],  # noqa: B006
    modality: Annotated[ModalityName | None, Query()] = None,
    since: Annotated[
        Moment | None, Query(description="Seen at or after, as 2026-03-01T22:15:00+01:00.")
    ] = None,
    until: Annotated[Moment | None, Query(description="Seen before, as since.")] = None,
) -> Where | None:
    """As `fmcnet gallery remove` has them."""
    return filter_of(
        ids=id, tracks=track, cameras=camera, pids=pid, tags=tag, modality=modality, since=since, until=until
    )


Conditions = Annotated[Where | None, Depends(conditions)]


def logged(where: Where | None) -> dict[str, Any]:
    """The conditions that are given, as the audit log notes them."""
    given = {name: value for name, value in vars(where or Where()).items() if value is not None}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in given.items()}


# ---- images, and who sends them ----

Images = Annotated[
    list[UploadFile], File(min_length=1, description="JPEG, PNG, WebP, BMP, TIFF, GIF, HEIC or AVIF files.")
]
Kinds = Annotated[
    list[str],
    Form(min_length=1, description="visible or infrared: one for all images, or one each, in their order."),
]
Words = Annotated[list[str], Form()]
WantedWords = Annotated[list[Wanted], Form()]
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


def caller_of(request: Request) -> Caller:
    """Who sent the request."""
    state = request.scope["state"]
    client = request.client.host if request.client is not None else None
    facts = {"request": state["request"], "key": state["key"], "client": client}
    return Caller(state["caller"], request.receive, facts)


Running = Annotated[Service, Depends(running_service)]
Sender = Annotated[Caller, Depends(caller_of)]


async def read_uploads(images: list[UploadFile], value_range: str | None) -> list[Upload]:
    """Uploads with their bytes, which are in memory already, and the range of a field.

    Raises:
        ApiError: 422, for a text that is no range.
    """
    with refused_at("range", "give LOW:HIGH, as 15:40"):
        parsed_range = None if value_range is None else parse_range(value_range)
    return [
        Upload((image.filename or f"images[{index}]")[:200], await image.read(), parsed_range)
        for index, image in enumerate(images)
    ]
