"""The FastAPI application around a `Service`."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from fmcnet import __version__
from fmcnet.errors import FmcnetError
from fmcnet.server.errors import api_error_of
from fmcnet.server.keys import Keys
from fmcnet.server.routes import gallery, info
from fmcnet.server.security import SecurityMiddleware, scope_of
from fmcnet.server.service import Service

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"
ROUTERS = (gallery.router, info.router)
ROUTES = tuple(route for router in ROUTERS for route in router.routes if isinstance(route, Route))
OWN = frozenset({"openapi.json", *(route.path.split("/")[1] for route in ROUTES)} - {""})
"""First parts of the service's own addresses."""


def create_app(
    service: Service, keys: Keys | None = None, *, root_path: str = "", proxies: Sequence[Network] = ()
) -> FastAPI:
    """An ASGI application that starts the service on startup and stops it on shutdown.

    Args:
        service: what it serves.
        keys: the callers' keys; without keys only this machine is answered.
        root_path: such as "/reid", the path below which a proxy serves it. The proxy may strip it or not.
        proxies: their X-Forwarded-For and X-Forwarded-Proto are believed.

    Raises:
        FmcnetError: for an invalid root path, or one that the service's own addresses begin with.
    """
    root_path = check_root_path(root_path)
    keys = keys or Keys()
    keys.changed = lambda added, revoked: service.audit.write(
        action="keys", outcome="changed", added=added, revoked=revoked
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="fmcnet",
        version=__version__,
        summary="Search a gallery of person crops across visible light and infrared.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": root_path}] if root_path else None,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(RequestValidationError, _error_response)
    app.add_exception_handler(HTTPException, _error_response)
    app.add_middleware(SecurityMiddleware, keys=keys, service=service)
    app.openapi = lambda: _openapi_document(app, bool(keys))  # type: ignore[method-assign]
    if root_path:
        app.add_middleware(RootPathMiddleware, root_path=root_path)
    if proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in proxies])
    # An upload is within `body_bytes` already; a file on disk would keep a copy of what is not to be kept.
    MultiPartParser.spool_max_size = service.limits.body_bytes + 1
    return app


async def _error_response(request: Request, error: Exception) -> JSONResponse:
    response = api_error_of(error).response()
    if response.status_code == 405:
        response.headers["Allow"] = _allowed_methods(request)
    return response


def _allowed_methods(request: Request) -> str:
    """All methods of an address; Starlette names those of the first matching route only, and FastAPI no HEAD."""
    routes: list[BaseRoute] = [*ROUTES, *request.app.routes]  # the app's own: the documentation
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in matching for method in getattr(route, "methods", ())}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def _openapi_document(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    """OpenAPI, with each route's scope and, if `needs_key`, its need of a key."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for name, schema in document["components"]["schemas"].items():
        if name.startswith("Body_"):
            schema["additionalProperties"] = False
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            scope = scope_of(method.upper(), path)
            if scope is not None:
                operation["security"] = [*([] if needs_key else [{}]), {"bearer": []}, {"header": []}]
                operation["x-scope"] = scope
    return document


def check_root_path(text: str) -> str:
    """A path as "/reid", without a slash at its end; "" for none.

    Raises:
        FmcnetError: for anything else, or one that begins as the service's own addresses, which would be ambiguous.
    """
    path = text.rstrip("/")
    if path and (not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path) or {".", ".."} & set(path.split("/"))):
        raise FmcnetError(f"--root-path {text}: give a path as /reid, of letters, digits and . _ ~ -")
    if path and path.split("/")[1] in OWN:
        raise FmcnetError(f"--root-path {text}: the service itself has addresses below that; choose another")
    return path


class RootPathMiddleware:
    """Strips the root path (of `check_root_path`), so that the service works whether or not the proxy strips it."""

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["path"] == self.root_path:
            # With a slash at the end, for the page's addresses are relative to it.
            await RedirectResponse(f"{self.root_path}/")(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"].startswith(f"{self.root_path}/"):
            scope = {**scope, "path": scope["path"][len(self.root_path) :]}
        await self.app(scope, receive, send)
