"""The API's description as a page to read and try (Swagger UI), from files of a package: no request leaves."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.util import find_spec

from fastapi import APIRouter
from fastapi.responses import Response

from fmcnet.server.errors import ApiError

router = APIRouter()

PACKAGE = "fastapi_offline"
"""Brings Swagger UI's files; part of the extra `serve`."""
FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>fmcnet: HTTP API</title>
<link rel="icon" href="page/icon.svg"><link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body>
<div id="api"></div><script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
</body>
</html>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#api", deepLinking: true});\n'
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""As the page's, and inline styles and pictures, which Swagger UI has."""


@cache
def _file(name: str) -> bytes:
    return (files(PACKAGE) / "static" / name).read_bytes()


@router.get("/docs", include_in_schema=False)
async def page() -> Response:
    """The page."""
    _check_installed()
    return _answer(PAGE, "text/html; charset=utf-8")


@router.get("/docs/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """A part of the page."""
    _check_installed()
    if name == "start.js":
        return _answer(START, FILES["swagger-ui-bundle.js"])
    if name not in FILES:
        raise ApiError(404, "the page has no such part", "path", "open /docs")
    return _answer(_file(name), FILES[name])


def _check_installed() -> None:
    if find_spec(PACKAGE) is None:
        raise ApiError(
            404,
            "Swagger UI is not installed here; /openapi.json describes the API",
            "path",
            "install fmcnet[serve], which brings fastapi-offline, and start the service again",
        )


def _answer(content: str | bytes, kind: str) -> Response:
    return Response(
        content, media_type=kind, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    )
