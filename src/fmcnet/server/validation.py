"""What a route does not know is refused, so that a misspelt filter never widens a search or a removal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from fmcnet.server.errors import ApiError

FORM = "multipart/form-data"
"""Of a body with files; frameworks bound no other form's fields as early."""


async def only_known(request: Request) -> None:
    """Hold a request against the OpenAPI description of its route.

    Raises:
        ApiError: 422 for a form field or a query parameter that the route has not, naming it and those it has, for
            one given several times that takes one value, or for a body where there is none to give; 415 for a body
            that is no form with files.
    """
    tree = request.app.openapi()
    told: dict[str, Any] = tree["paths"][request.scope["route"].path_format][request.method.lower()]
    queries = {one["name"]: one["schema"] for one in told.get("parameters", ()) if one["in"] == "query"}
    _refuse_others("query", [name for name, _ in request.query_params.multi_items()], queries)
    if "requestBody" in told:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != FORM:
            shown = kind[:100] or "of no type"
            raise ApiError(415, f"the body is {shown}", "header Content-Type", f"send a form: {FORM}")
        content = next(iter(told["requestBody"]["content"].values()))
        body = tree["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        given = [name for name, _ in (await request.form()).multi_items()]
        _refuse_others("body", given, body["properties"])
    elif await request.body():
        raise ApiError(422, "this route reads no body", "body", "say it in the address, as ?camera=gate")


def _refuse_others(place: str, given: list[str], known: Mapping[str, Any]) -> None:
    """`given` may repeat a name; `known`: schemas by name."""
    what = "form field" if place == "body" else "parameter"
    others = sorted(set(given) - known.keys())
    if others:
        shown = ", ".join(f"'{name[:100]}'" for name in others[:10])
        raise ApiError(
            422,
            f"there is no {what} {shown}",
            place,
            f"use {', '.join(known)}" if known else "leave it out: this route has none",
        )
    for name, times in Counter(given).items():
        if times > 1 and not _takes_several(known[name]):
            raise ApiError(422, f"the {what} '{name}' is given {times} times", place, "give it once")


def _takes_several(schema: Mapping[str, Any]) -> bool:
    return any(one.get("type") == "array" for one in (schema, *schema.get("anyOf", ())))
