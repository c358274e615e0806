"""Routes for everybody and for machines: the page, Swagger UI, health, metrics, what the gallery is."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest

from fmcnet.server.errors import ANYWHERE, ApiError, error_schema
from fmcnet.server.schemas import GalleryBody, StateBody
from fmcnet.server.service import Service
from fmcnet.server.validation import Running, only_known

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

router = APIRouter()

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE = files("fmcnet.server") / "page"
FILES = {
    file.name: TYPES[Path(file.name).suffix]
    for file in PAGE.iterdir()
    if Path(file.name).suffix in TYPES and file.name != "docs.html"
}
"""The whole page; `/docs` is one of its own."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No outside requests, no inline code, no frames."""
SWAGGER = "fastapi_offline"
"""The package, of the extra `serve`, that brings Swagger UI's files: no request leaves."""
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
SWAGGER_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "blob:", "data:"
)
"""Swagger UI has inline styles and images."""


def _file(name: str, policy: str = POLICY, folder: Traversable = PAGE) -> Response:
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response((folder / name).read_bytes(), media_type=TYPES[Path(name).suffix], headers=headers)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """A part of the page."""
    if name not in FILES:
        raise ApiError(404, "the page has no such part", "path", "open /")
    return _file(name)


@router.get("/docs", include_in_schema=False)
async def swagger() -> Response:
    """The API's description as a page to read and try."""
    if find_spec(SWAGGER) is None:
        what = "Swagger UI is not installed here; /openapi.json describes the API"
        do = "install fmcnet[serve], which brings fastapi-offline, and start the service again"
        raise ApiError(404, what, "path", do)
    return _file("docs.html", SWAGGER_POLICY)


@router.get("/docs/{name}", include_in_schema=False)
async def swagger_file(name: str) -> Response:
    """A part of Swagger UI."""
    if name not in SWAGGER_FILES or find_spec(SWAGGER) is None:
        raise ApiError(404, "the page has no such part", "path", "open /docs")
    return _file(name, SWAGGER_POLICY, files(SWAGGER) / "static")


@router.get("/healthz", responses=error_schema(*ANYWHERE), summary="The process answers")
async def healthz() -> StateBody:
    """200 as long as it lives."""
    return StateBody(ok=True)


@router.get(
    "/readyz",
    response_model=StateBody,
    responses={503: {"model": StateBody, "description": "Not now"}, **error_schema(*ANYWHERE)},
    summary="Requests are welcome",
)
async def readyz(request: Request) -> Response:
    """503 while it starts or stops, or cannot do its work."""
    service: Service = request.app.state.service
    faults = await service.faults()
    return JSONResponse({"ok": not faults, "faults": faults}, 503 if faults else 200)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"},
        **error_schema(),
    },
    summary="For Prometheus",
)
async def metrics(service: Running) -> Response:
    """Counters, without anything personal."""
    text = await service.work(lambda: generate_latest(service.metrics.registry))
    return Response(text, media_type=PROMETHEUS)


@router.get(
    "/v1/gallery",
    responses=error_schema(),
    dependencies=[Depends(only_known)],
    summary="What there is",
)
async def gallery(service: Running, request: Request) -> GalleryBody:
    """The gallery in numbers, and what the caller may do."""
    state = request.scope["state"]
    return GalleryBody(
        entries=await service.work(lambda: len(service.gallery)),
        model=service.encoder.digest,
        dimension=service.dimension,
        calibrated=service.encoder.calibrated,
        pictures=service.kept is not None
        or service.sources is not None
        or await service.work(lambda: service.gallery.has_thumbnails),
        keeps_images=service.kept is not None,
        cameras=await service.work(lambda: service.gallery.cameras()),
        may=state["scopes"],
        key=state["key"],
        images_at_once=service.limits.images,
        top_at_most=service.limits.top,
        read_only=service.read_only,
    )
