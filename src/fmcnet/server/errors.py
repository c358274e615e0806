"""Every error as JSON: what was wrong, where, what to do. Never a traceback."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
from collections.abc import Iterator
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fmcnet.errors import (
    DataError,
    DuplicateIdError,
    FmcnetError,
    GalleryBusyError,
    GalleryDamagedError,
    GalleryError,
    GalleryReplacedError,
)

logger = logging.getLogger(__name__)

TEXTS = ("what", "where", "do")
"""Of an error: what was wrong, the part of the request, what helps."""
LONGEST = 2_000
"""Most characters of a text in an error; a caller's own input may be in it."""
UNKNOWN = {404: "there is nothing here", 405: "this method is not known here"}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of a disk that is full or fails."""


class ApiError(Exception):
    """A request that is not served: HTTP's status and the `TEXTS`.

    `retry_after` are seconds after which the same request may succeed; None: it will not.
    """

    def __init__(self, status: int, what: str, where: str, do: str, retry_after: int | None = None) -> None:
        super().__init__(what)
        self.status, self.what, self.where, self.do = status, what, where, do
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """As sent."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        texts = {name: _bounded_utf8(getattr(self, name)) for name in TEXTS}
        return JSONResponse({"error": {"status": self.status, **texts}}, self.status, headers)


def overloaded(what: str, where: str = "the service") -> ApiError:
    """503, to be tried again."""
    return ApiError(503, what, where, "try again after the seconds of Retry-After", retry_after=1)


@contextlib.contextmanager
def refused_at(where: str, do: str) -> Iterator[None]:
    """Turn an `FmcnetError` of the block into 422, with the part of the request and what helps."""
    try:
        yield
    except FmcnetError as error:
        raise ApiError(422, str(error).removeprefix("--"), where, do) from error


def api_error_of(error: BaseException) -> ApiError:
    """The response to an exception; an unexpected one is logged, and its text is not sent."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        faults = error.errors()[:10]
        places = [".".join(map(str, fault["loc"])) for fault in faults]
        reasons = [fault["msg"].removeprefix("Value error, ") for fault in faults]
        what = "; ".join(map(": ".join, zip(places, reasons, strict=True)))
        return ApiError(422, what, ", ".join(dict.fromkeys(places)), "see /openapi.json")
    if isinstance(error, HTTPException):
        if error.status_code not in UNKNOWN:
            return ApiError(error.status_code, str(error.detail), "body", "correct it and send it again")
        do = "see /openapi.json for what there is"
        return ApiError(error.status_code, UNKNOWN[error.status_code], "path", do)
    if isinstance(error, DuplicateIdError):
        return ApiError(409, str(error), "id", "choose another id, or on_duplicate=skip or replace")
    if isinstance(error, GalleryBusyError):
        return ApiError(503, str(error), "the gallery", "try again", retry_after=2)
    if isinstance(error, GalleryReplacedError):
        logger.error("%s", error)
        return ApiError(503, "the gallery was just replaced", "the gallery", "try again", retry_after=2)
    if isinstance(error, GalleryDamagedError):
        logger.error("%s", error)
        return ApiError(500, "the gallery is damaged", "the gallery", "the service's log names the damage")
    if isinstance(error, GalleryError) and _is_disk_error(error):
        logger.error("%s", error)
        return ApiError(507, "the gallery's disk is full or fails", "the gallery", "free space, try again")
    if isinstance(error, DataError):
        return ApiError(422, str(error), "images", "send images that Pillow can read, as JPEG or PNG")
    if isinstance(error, FmcnetError):
        return ApiError(422, str(error), "the request", "correct it and send it again")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the service failed", "the request", "its log has the cause; report it if it stays")


def _is_disk_error(error: BaseException | None) -> bool:
    """Whether the disk, or SQLite, is the cause."""
    while error is not None:
        from_disk = isinstance(error, OSError) and error.errno in DISK
        if from_disk or isinstance(error, sqlite3.OperationalError):
            return True
        error = error.__cause__
    return False


def _bounded_utf8(text: str) -> str:
    """Valid UTF-8 of bounded length."""
    shown = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    return shown.encode("utf-8", "replace").decode("utf-8")


ANYWHERE = (403, 405, 500)
"""Refusals of every route, those without a scope too."""


def error_schema(*only: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the refusals that a route can give, by status; without `only`, all of a route with a scope."""
    fields = {"status": {"type": "integer"}, **{name: {"type": "string"} for name in TEXTS}}
    inner = {"type": "object", "properties": fields, "required": list(fields)}
    schema = {"type": "object", "properties": {"error": inner}, "required": ["error"]}
    descriptions = {
        400: "Cannot be understood",
        401: "No valid key",
        403: "The key, or the page that asked, may not do this",
        404: "Not there",
        405: "Another method is meant; see Allow",
        408: "The body came too slowly",
        409: "The id is taken, or another number of entries matches than was expected",
        413: "Too large",
        415: "Not a form, or an encoded body",
        422: "Bad input",
        500: "The service failed, or its gallery is damaged; its log says why",
        503: "Too much at once, another program writes, or the gallery is gone; see Retry-After",
        507: "The disk is full",
    }
    return {
        status: {"description": description, "content": {"application/json": {"schema": schema}}}
        for status, description in descriptions.items()
        if not only or status in only
    }
