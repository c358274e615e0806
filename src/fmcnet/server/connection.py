"""Bounds of a connection: time for a head, time to read an answer, connections of one address."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fmcnet.server.limits import Limits
from fmcnet.server.proxies import Network, is_proxy


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
