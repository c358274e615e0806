"""Behind a reverse proxy: a path that the service lies below, and proxies whose word on callers is believed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import TypeAlias

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fmcnet.errors import FmcnetError

OWN = frozenset({"v1", "page", "healthz", "readyz", "metrics", "openapi.json", "docs"})
"""First parts of the service's own addresses."""
Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"


def parse_proxies(addresses: Sequence[str]) -> tuple[Network, ...]:
    """The networks of addresses: 10.0.0.2, 10.0.0.0/24, fd00::/8.

    Raises:
        FmcnetError: for what is no address.
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
    """Takes the root path away from requests, so that the service works whether or not the proxy did so.

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
