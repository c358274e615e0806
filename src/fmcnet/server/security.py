"""The checks before every route: Host and Origin, key, requests at once, size and speed of the body.

A caller without a valid key costs no body, no thread and no image. The body is read whole, within its bounds, before
the route starts; it never touches the disk. Starlette's TrustedHostMiddleware knows no networks such as 127.0.0.0/8,
and FastAPI's security dependencies run after the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fmcnet.server.errors import ApiError, api_error_of, overloaded
from fmcnet.server.keys import SCOPES, Key, Keys
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

FEWER = "send fewer or smaller images at once"

CHANGES_NOTHING = ("/v1/embed", "/v1/search")
"""POST routes that a key with the scope read may call; all others need the scope write."""


def scope_of(method: str, path: str) -> str | None:
    """The scope that a request needs: one of `SCOPES`; "write" for paths without a route; None: everybody may.

    Args:
        method: in capital letters.
        path: of the request, or of a route.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read" if path in ("/metrics", "/v1") or path.startswith("/v1/") else None
    if method == "POST" and path.rstrip("/") in CHANGES_NOTHING:
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
    """ASGI middleware around a service's app.

    Without keys, Host must name this machine. A read-only service serves the scope read only.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, service: Service) -> None:
        self.app, self.keys = app, keys
        self.limits, self.metrics, self.audit = service.limits, service.metrics, service.audit
        self.read_only = service.read_only
        self._working = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # every GET route answers it; the server leaves out the body
            scope = {**scope, "method": "GET"}
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
                request = {"request": answer.request, "method": method, "path": scope["path"]}
                self.audit.refused(_client(scope), api_error, **request)
            if answer.started:
                logger.error("request %s broke off in its answer", answer.request, exc_info=error)
            else:
                await api_error.response()(scope, receive, answer)
        finally:
            name = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(name, str(answer.status)).inc()
            self.metrics.seconds.labels(name).observe(time.perf_counter() - start)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Let the app answer, unless a check refuses the request; the body is read last, for known callers only."""
        headers, state = Headers(scope=scope), scope["state"]
        needed = scope_of(scope["method"], scope["path"])
        self._check_host_and_origin(headers)
        key = self._authenticate(headers, needed)
        if self.read_only and needed not in (None, "read"):
            what = "this service is read-only: it adds and removes nothing"
            raise ApiError(403, what, "the service", "search only")
        self._check_length(headers)
        served = ("read",) if self.read_only else SCOPES
        state["scopes"] = [name for name in served if key is None or key.may(name)]
        state["key"] = key.name if key is not None else None
        if needed is None:
            answer.close = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
            await self.app(scope, _replay(b"", receive), answer)  # without a key no route gets a body
            return
        encoding = ", ".join(headers.getlist("content-encoding"))
        if encoding.lower() not in ("", "identity"):
            what, do = f"the body is encoded: {encoding[:100]}", "send it as it is"
            raise ApiError(415, what, "header Content-Encoding", do)
        state["caller"] = f"key {key.name}" if key is not None else _client(scope)
        with self._at_work(state["caller"]):
            body = await self._read_body(scope, receive)
            state["body"] = body
            state["routed"] = True  # what happens from here on, the routes log
            await self.app(scope, _replay(body, receive), answer)

    @contextlib.contextmanager
    def _at_work(self, caller: str) -> Iterator[None]:
        """Count a request of a caller; raise 503 where too many are at work."""
        total, caller_total = self._working.total(), self._working[caller]
        full = total >= self.limits.requests
        if full or caller_total >= self.limits.share(caller_total < total):
            self.metrics.refused.labels("busy").inc()
            busy = f"{total} requests" if full else f"{caller_total} requests of this caller"
            raise overloaded(f"{busy} are at work already")
        self._working[caller] += 1
        try:
            with self.metrics.working.track_inprogress():
                yield
        finally:
            self._working[caller] -= 1
            self._working += Counter()  # forget callers without requests

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

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        async def read() -> bytes:
            body = bytearray()
            async for chunk in Request(scope, receive).stream():
                body += chunk
                if len(body) > self.limits.body_bytes:
                    raise self._too_large()
            return bytes(body)

        try:
            return await asyncio.wait_for(read(), self.limits.body_seconds)
        except asyncio.TimeoutError:
            what = f"the body took more than {self.limits.body_seconds:g} s to arrive"
            raise self._refusal("slow", 408, what, "body", FEWER) from None
        except ClientDisconnect:
            what = "the connection was closed before the body was there"
            raise ApiError(400, what, "body", "send it again") from None

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
            if self.close or self.status in (400, 401, 403, 408, 413, 415, 503):
                headers.setdefault("Connection", "close")  # the body may not have been read
        await self._send(message)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read: the body, then what else the caller does."""
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _client(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None: it has none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
