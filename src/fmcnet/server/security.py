"""The checks before every route: Host and Origin, key, requests at once, size and speed of the body.

A caller without a valid key costs no body, no thread and no image. The body is read whole, within its bounds, before
the route starts; it never touches the disk. Starlette's TrustedHostMiddleware knows no networks such as 127.0.0.0/8,
and FastAPI's security dependencies run after the body is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import time
from collections import Counter
from collections.abc import Container, Iterable
from urllib.parse import urlsplit

from fastapi.routing import APIRoute
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fmcnet.server.errors import ApiError, api_error_of, overloaded
from fmcnet.server.keys import Key, Keys
from fmcnet.server.service import Service

logger = logging.getLogger(__name__)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer that does not say otherwise."""

AUDITED = (401, 403, 408, 413, 503)
"""Refusals before a route that are logged."""

ENDING = 4096
"""Last bytes of a body that the routes see."""

FEWER = "send fewer or smaller images at once"

CHANGES_NOTHING = {"x-scope": "read"}
"""`openapi_extra` of a POST route that a key with the scope read may call; all others need the scope write."""


def reading_paths(routes: Iterable[BaseRoute]) -> frozenset[str]:
    """Paths of the POST routes that are declared with `CHANGES_NOTHING`."""
    declared = [
        route
        for route in routes
        if isinstance(route, APIRoute)
        and "POST" in (route.methods or ())
        and route.openapi_extra == CHANGES_NOTHING
    ]
    if parts := [route.path for route in declared if "{" in route.path]:
        raise ValueError(f"{parts[0]}: CHANGES_NOTHING is for paths without parameters")
    return frozenset(route.path for route in declared)


def scope_of(method: str, path: str, reading: Container[str]) -> str | None:
    """The scope that a request needs.

    Args:
        method: in capital letters.
        path: of the request, or of a route.
        reading: as `reading_paths`.

    Returns:
        One of `fmcnet.server.keys.SCOPES`; "write" for paths without a route. None: everybody may.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read" if path in ("/metrics", "/v1") or path.startswith("/v1/") else None
    if method == "POST" and path.rstrip("/") in reading:
        return "read"
    return "admin" if method == "DELETE" else "write"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class SecurityMiddleware:
    """ASGI middleware.

    Args:
        app: what it protects.
        reading: as `reading_paths`.
        keys: without keys, Host must name this machine.
        service: its limits, metrics and audit log are used. If it is read-only, only the scope read is served.
    """

    def __init__(self, app: ASGIApp, *, reading: Container[str], keys: Keys, service: Service) -> None:
        self.app, self.reading, self.keys = app, reading, keys
        self.limits, self.metrics, self.audit = service.limits, service.metrics, service.audit
        self.read_only = service.read_only
        self._working = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, secrets.token_hex(8))
        state = scope.setdefault("state", {})
        state["request"] = answer.request
        start = time.perf_counter()
        try:
            await self._serve(scope, receive, answer)
        except asyncio.CancelledError:  # a stop, after its time for requests at work
            self.metrics.cut_off += 1
            if not answer.started:
                await overloaded("the service is stopping").response()(scope, receive, answer)
        except Exception as error:
            api_error = api_error_of(error)
            if api_error.status in AUDITED and not state.get("routed"):
                client = (scope.get("client") or ("",))[0]
                request = {name: scope[name] for name in ("method", "path")}
                self.audit.refused(client, api_error, request=answer.request, **request)
            if answer.started:
                logger.error("request %s broke off in its answer", answer.request, exc_info=error)
            else:
                await api_error.response()(scope, receive, answer)
        finally:
            name = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(name, str(answer.status)).inc()
            self.metrics.seconds.labels(name).observe(time.perf_counter() - start)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        self._check_host_and_origin(headers)
        state = scope["state"]
        needed = scope_of(scope["method"], scope["path"], self.reading)
        key = self._authenticate(headers, needed)
        state["key"] = key.name if key is not None else None
        if self.read_only and needed not in (None, "read"):
            what = "this service is read-only: it adds and removes nothing"
            raise ApiError(403, what, "the service", "search only")
        may = (lambda required: True) if key is None else key.may
        state["may"] = (lambda required: required == "read" and may(required)) if self.read_only else may
        gone = state["gone"] = asyncio.Event()
        self._check_length(headers)
        if needed is None:
            answer.close = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
            await self.app(scope, _replay(b"", gone), answer)
            return
        caller = state["caller"] = f"key {key.name}" if key is not None else (scope.get("client") or ("",))[0]
        total, caller_total = self._working.total(), self._working[caller]
        full = total >= self.limits.requests
        if full or caller_total >= self.limits.share(caller_total < total):
            self.metrics.refused.labels("busy").inc()
            busy = f"{total} requests" if full else f"{caller_total} requests of this caller"
            raise overloaded(f"{busy} are at work already")
        self._working[caller] += 1
        self.metrics.working.set(self._working.total())
        try:
            body = await self._read_body(receive)
            watcher = asyncio.ensure_future(_watch_disconnect(receive, gone))
            try:
                state["ending"] = body[-ENDING:]
                state["routed"] = True  # what happens from here on, the routes log
                await self.app(scope, _replay(body, gone), answer)
            finally:
                watcher.cancel()
        finally:
            self._working[caller] -= 1
            self._working += Counter()  # forget callers without requests
            self.metrics.working.set(self._working.total())

    def _refusal(self, reason: str, status: int, what: str, where: str, do: str) -> ApiError:
        self.metrics.refused.labels(reason).inc()
        return ApiError(status, what, where, do)

    def _check_host_and_origin(self, headers: Headers) -> None:
        """Refuse pages of other sites in the browser of somebody who has access."""
        host = headers.get("host", "")
        if not self.keys and not is_loopback(_host_name(host) or ""):
            what = "this service has no API keys and answers to this machine's own names only"
            do = "use http://127.0.0.1, or start it with API keys"
            raise self._refusal("host", 403, f"{what}, not to '{host[:100]}'", "header Host", do)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            do = "use the service's own page, or no browser"
            raise self._refusal("origin", 403, "a page of another site asked", "header Origin", do)

    def _authenticate(self, headers: Headers, needed: str | None) -> Key | None:
        if not self.keys or needed is None:
            return None
        scheme, token = get_authorization_scheme_param(headers.get("authorization"))
        secret = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        key = self.keys.find(secret)
        if key is None:
            what = "this API key is not known" if secret else "an API key is needed"
            do = "send Authorization: Bearer KEY; fmcnet keys makes keys"
            raise self._refusal("key", 401, what, "header Authorization", do)
        if not key.may(needed):
            what, do = f"the key '{key.name}' has no scope '{needed}'", f"use a key with the scope {needed}"
            raise self._refusal("scope", 403, what, "header Authorization", do)
        return key

    def _check_length(self, headers: Headers) -> None:
        length, where = headers.get("content-length", "0"), "header Content-Length"
        if "content-length" in headers and "transfer-encoding" in headers:
            what = "Content-Length and Transfer-Encoding are given together"
            raise ApiError(400, what, where, "send one of the two")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise ApiError(400, "Content-Length is no number", where, "leave it to your client")
        if int(length) > self.limits.body_bytes:
            raise self._too_large()

    async def _read_body(self, receive: Receive) -> bytes:
        chunks, size = [], 0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), deadline - loop.time())
            except asyncio.TimeoutError:
                what = f"the body took more than {self.limits.body_seconds:g} s to arrive"
                raise self._refusal("slow", 408, what, "body", FEWER) from None
            if message["type"] == "http.disconnect":
                what = "the connection was closed before the body was there"
                raise ApiError(400, what, "body", "send it again")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self.limits.body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _too_large(self) -> ApiError:
        what = f"the body is larger than {self.limits.body_bytes} bytes"
        return self._refusal("size", 413, what, "body", FEWER)


class _Answer:
    """`send` with the headers of every answer; `close` ends the connection after it, where nobody reads the body."""

    def __init__(self, send: Send, request: str) -> None:
        self._send, self.request = send, request
        self.status, self.started = 0, False
        self.close = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            headers = MutableHeaders(scope=message)
            for name, value in {**HEADERS, "X-Request-Id": self.request}.items():
                headers.setdefault(name, value)
            if self.close or self.status in (400, 401, 403, 408, 413, 503):
                headers.setdefault("Connection", "close")  # the body may not have been read
        await self._send(message)


def _replay(body: bytes, gone: asyncio.Event) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _watch_disconnect(receive: Receive, gone: asyncio.Event) -> None:
    """Set `gone` when the caller closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None: it has none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
