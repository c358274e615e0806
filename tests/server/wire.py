"""Requests as bytes on a connection, so that no client corrects them first."""

from __future__ import annotations

import contextlib
import http.client
import socket
from urllib.parse import urlsplit

import httpx2 as httpx

PATIENCE = 120.0
"""Seconds; only a hung test waits so long."""


def connect(address):
    """A connection to the server."""
    place = urlsplit(address)
    return socket.create_connection((place.hostname, place.port), PATIENCE)


def answer(connection, method="GET"):
    """(status, body) of what comes; (None, b"") if the server closed without a word."""
    reply = http.client.HTTPResponse(connection, method=method)
    try:
        reply.begin()
        return reply.status, reply.read()
    except (http.client.HTTPException, ConnectionError):
        return None, b""
    finally:
        reply.close()


def exchange(address, data, method="GET"):
    """Send bytes, then nothing more (not even an end), and take the answer."""
    with connect(address) as connection:
        with contextlib.suppress(OSError):  # it may answer, and close, before it has read all
            connection.sendall(data)
        return answer(connection, method)


def send(address, method, path, **sent):
    """As httpx would send it, whatever is in it."""
    made = httpx.Request(method, address + path, **sent)
    body = made.read()
    head = [f"{method} ".encode() + made.url.raw_path + b" HTTP/1.1", b"Connection: close"]
    head += [name + b": " + value for name, value in made.headers.raw]
    return exchange(address, b"\r\n".join(head) + b"\r\n\r\n" + body, method)
