"""Addresses of this machine and of proxies, the path below a proxy, and the bounds of a connection."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias, cast

import h11
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fmcnet.errors import FmcnetError
from fmcnet.server.limits import Limits

OWN = frozenset({"v1", "page", "healthz", "readyz", "metrics", "openapi.json", "docs"})
"""First parts of the service's own addresses."""
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_proxies(addresses: Sequence[str]) -> tuple[Network, ...]:
    """The networks of addresses: 10.0.0.2, 10.0.0.0/24, fd00::/8.

    Raises:
        FmcnetError: for an invalid address.
    """
    found = []
    for address in addresses:
        try:
            found.append(ipaddress.ip_network(address.strip("[]"), strict=False))
        except ValueError as error:
            raise FmcnetError(
                f"--proxy {address}: give the address that the proxy connects from, as 127.0.0.1 or 10.0.0.0/24"
            ) from error
    return tuple(found)


def is_proxy(host: str, proxies: Sequence[Network]) -> bool:
    """Whether an address is one of the proxies."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in proxies)


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
    """Strips the root path from requests, so that the service works whether or not the proxy strips it.

    Args:
        app: ASGI. root_path: as `check_root_path` gives it.
    """

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
            raw = scope.get("raw_path") or b""
            if raw.startswith(self.root_path.encode()):
                scope["raw_path"] = raw[len(self.root_path) :]
        await self.app(scope, receive, send)


def bounded_protocol(limits: Limits, proxies: Sequence[Network] = ()) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes connections that cost too much. uvicorn itself has none of these bounds.

    - A head must arrive within `head_seconds` of the opening, or of the first byte of a further request.
    - An answer must be read within `answer_seconds`.
    - One address may have `peer_connections` open at once; not that of a proxy, which brings many callers.

    Nothing is answered: there is no request, or nobody who reads.
    """
    peers: Counter[str] = Counter()

    class BoundedProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _answer: asyncio.TimerHandle | None = None
        _peer = ""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            self._peer = (transport.get_extra_info("peername") or ("",))[0]
            peers[self._peer] += 1
            if peers[self._peer] > limits.peer_connections and not is_proxy(self._peer, proxies):
                self.transport.abort()
                return
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_answer()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_answer()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._head, self._answer):
                if timer is not None:
                    timer.cancel()
            peers[self._peer] -= 1
            if not peers[self._peer]:
                del peers[self._peer]

        def _watch_head(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                if self._head is not None:
                    self._head.cancel()
                    self._head = None
            elif self._head is None:
                self._head = self.loop.call_later(limits.head_seconds, self.transport.close)

        def _watch_answer(self) -> None:
            if self._answer is None and self.transport.get_write_buffer_size():
                self._answer = self.loop.call_later(limits.answer_seconds, self._end_unread)

        def _end_unread(self) -> None:
            self._answer = None
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # `close` would wait for the caller to read

    return BoundedProtocol
