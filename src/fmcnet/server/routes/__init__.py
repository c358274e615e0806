"""The HTTP routes: one router a file. A new file goes into `ROUTERS`, a POST that changes nothing into `READING`."""

from fmcnet.server.routes import entries, info, search

ROUTERS = (search.router, entries.router, info.router)

READING = ("/v1/search", "/v1/embed")
"""Paths whose POST changes nothing."""


def scope_of(method: str, path: str) -> str | None:
    """The scope a request needs; None: everybody may. A route that nothing here knows needs the scope to write."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read" if path in ("/metrics", "/v1") or path.startswith("/v1/") else None
    if method == "POST" and path.rstrip("/") in READING:
        return "read"
    return "admin" if method == "DELETE" else "write"
