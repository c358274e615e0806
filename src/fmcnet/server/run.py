"""Start the service from its options, and stop it gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fmcnet.errors import FmcnetError
from fmcnet.files import with_ending
from fmcnet.inference.encoder import Encoder
from fmcnet.names import nearest
from fmcnet.processes import ignored
from fmcnet.retrieval import Gallery
from fmcnet.retrieval.backup import remove_empty
from fmcnet.retrieval.searcher import Searcher, choose_model
from fmcnet.retrieval.sqlite_connection import NAME
from fmcnet.server.app import Network, check_root_path, create_app
from fmcnet.server.audit import AuditLog
from fmcnet.server.keys import VARIABLE, Keys, read_keys
from fmcnet.server.limits import Limits
from fmcnet.server.security import is_loopback
from fmcnet.server.service import Service
from fmcnet.server.thumbnails import KeptThumbnails, SourceFolder

logger = logging.getLogger(__name__)

CONNECTIONS = 256
"""Open at once; further ones get 503 from the server itself."""


@dataclass(frozen=True)
class ServeOptions:
    """The options of `fmcnet serve`.

    Attributes:
        gallery: a folder or a milvus:// address.
        model: a folder or a shipped model's name; None: the gallery's.
        host: address to listen at.
        port: 0 to 65535; 0: any free one.
        keys: a file of API keys.
        audit: the log's file; None: beside the gallery.
        keep_images: a folder for the thumbnails of entries that are added; None: they are not kept.
        show_sources: a folder; sources of entries below it may be shown. None: no source is.
        certificate: a PEM file, for HTTPS.
        certificate_key: its key, a PEM file.
        root_path: as `create_app`.
        proxies: addresses or networks of proxies that are believed.
        read_only: search only; a gallery that cannot be written is read-only anyway.
        device: as `Encoder.from_pretrained`.
        threads: as `Encoder.from_pretrained`.
        calibration: as `Encoder.from_pretrained`.
        limits: bounds of the service.
    """

    gallery: str
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    audit: Path | None = None
    keep_images: Path | None = None
    show_sources: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    root_path: str = ""
    proxies: tuple[str, ...] = ()
    read_only: bool = False
    device: str = "auto"
    threads: int | None = None
    calibration: Path | None = None
    limits: Limits = field(default_factory=Limits)


def audit_path(gallery: str) -> Path:
    """Where a gallery's audit log is: beside its folder; of a cluster in the working folder."""
    if gallery.startswith("milvus://"):
        return Path(f"{gallery.rsplit('/', 1)[-1]}.audit.jsonl")
    return with_ending(Path(gallery), ".audit.jsonl")


def _new_gallery_note(gallery: str) -> str:
    """The warning that opening creates a gallery; "" where it exists, or for a cluster."""
    folder = Path(gallery)
    if "://" in gallery or folder.exists():
        return ""
    others = {path.parent.name for path in folder.absolute().parent.glob(f"*/{NAME}")}
    similar = nearest(folder.name, others)
    suggestion = f"; did you mean {folder.with_name(similar)}?" if similar else ""
    made = "a new one was made, and is removed at the end if it stays empty"
    return f"there was no gallery at {gallery}: {made}{suggestion}"


def _can_write(gallery: str) -> bool:
    """Whether a gallery that is there can be written."""
    folder = Path(gallery)
    return not (folder / NAME).is_file() or all(os.access(path, os.W_OK) for path in (folder, folder / NAME))


def check_access(settings: ServeOptions) -> Keys:
    """The keys of the options, whose combination is checked.

    Raises:
        FmcnetError: beyond loopback without keys; for half of a certificate; for missing files; for an invalid root
            path or proxy.
    """
    keys = read_keys(settings.keys)
    check_root_path(settings.root_path)
    parse_proxies(settings.proxies)
    if not keys and not is_loopback(settings.host):
        raise FmcnetError(
            f"--host {settings.host} is reached from other machines, which needs API keys: make one with "
            f"fmcnet keys add KEYS.json --name NAME --scope read and give --keys KEYS.json, or set ${VARIABLE}"
        )
    if (settings.certificate is None) != (settings.certificate_key is None):
        raise FmcnetError("--certificate and --certificate-key go together: give both, or none")
    for path in (settings.certificate, settings.certificate_key):
        if path is not None and not path.is_file():
            raise FmcnetError(f"there is no file {path}")
    return keys


def serve(settings: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C; requests at work are finished, then the gallery is closed.

    Raises:
        FmcnetError: for whatever keeps it from starting.
    """
    keys = check_access(settings)
    with _listen(settings.host, settings.port) as listener:
        encoder = Encoder.from_pretrained(
            choose_model(settings.gallery, settings.model),
            device=settings.device,
            threads=settings.threads,
            calibration=settings.calibration,
        )
        if settings.calibration is not None:
            encoder.calibration  # noqa: B018  (refuses that of another model before a gallery is made)
        read_only = settings.read_only or not _can_write(settings.gallery)
        if read_only:
            if settings.keep_images is not None:
                message = "--keep-images keeps thumbnails of added crops, but the gallery is served read-only"
                raise FmcnetError(f"{message}: leave it out")
            message = "is served read-only: it can be searched, and nothing added or removed"
            logger.warning("%s %s", settings.gallery, message)
        note = _new_gallery_note(settings.gallery)
        with contextlib.ExitStack() as stack:
            if note:  # a mistyped path is to be told at the next start, too
                stack.callback(remove_empty, Path(settings.gallery), whole=True)
            gallery = stack.enter_context(Gallery(settings.gallery, read_only=read_only))
            if note:
                logger.warning(note)
            searcher = Searcher(encoder, gallery)
            location = gallery.location  # of a cluster: without its password
            location = location if "://" in location else str(Path(location).absolute())
            kept = None if settings.keep_images is None else KeptThumbnails(settings.keep_images, location)
            sources = None if settings.show_sources is None else SourceFolder(settings.show_sources)
            audit = AuditLog(settings.audit or audit_path(settings.gallery))
            service = Service(searcher, audit, settings.limits, kept, sources, read_only)
            _run(settings, keys, service, listener)


class _Server(uvicorn.Server):
    """Logs its address once it answers there; `stop` is set by the first signal."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self.stop = threading.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first = not self.should_exit
        super().handle_exit(sig, frame)
        if first:  # a second signal may arrive within `set`, whose lock is held then
            self.stop.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def _run(settings: ServeOptions, keys: Keys, service: Service, listener: socket.socket) -> None:
    proxies = parse_proxies(settings.proxies)
    config = uvicorn.Config(
        create_app(service, keys, root_path=settings.root_path, proxies=proxies),
        proxy_headers=False,  # uvicorn would believe any program of this machine; `create_app` believes `proxies`
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=int(settings.limits.stop_seconds * 3 / 4) or 1,
        h11_max_incomplete_event_size=32 * 1024,
        http=bounded_protocol(settings.limits, proxies),
        ws="none",
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )
    for name in ("uvicorn", "python_multipart"):  # they warn of each bad request, which anybody can send
        logging.getLogger(name).setLevel(logging.ERROR)
    # Once stopped, uvicorn raises the signal again for the earlier handlers; a stop that went well is no failure.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    server = _Server(config, lambda: _announce(settings, keys, service, listener.getsockname()[1]))
    ended = threading.Event()
    arguments = (server.stop, ended, settings.limits.stop_seconds)
    threading.Thread(target=_exit_after_timeout, args=arguments, name="stop", daemon=True).start()
    try:
        with ignored("SIGPIPE"):  # of callers and decoders that left
            server.run(sockets=[listener])
    finally:
        ended.set()
        server.stop.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if not server.started:
        raise FmcnetError("the service did not start: its log, above, says why")
    if getattr(server.lifespan, "shutdown_failed", False):
        raise FmcnetError("the service stopped, but not all was closed: its log, above, says why")
    cut_off = service.metrics.cut_off
    requests = f"{cut_off} requests cut off" if cut_off else "requests finished"
    logger.info("stopped: %s, audit log written, gallery closed", requests)


def _exit_after_timeout(stop: threading.Event, ended: threading.Event, seconds: float) -> None:
    """End the process when a stop takes longer: for the gallery as a kill, which loses no acknowledged entry."""
    stop.wait()
    if not ended.wait(seconds):
        logger.warning(
            "stopped after %g s, before the gallery was closed; acknowledged entries are kept", seconds
        )
        os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; made before the model is loaded, so that a taken port is reported at once."""
    try:
        family, socket_type, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, socket_type, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # two programs can bind a port, but only one can listen; early callers wait for the model
    except OSError as error:
        raise FmcnetError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; choose another --port or --host"
        ) from error
    return listener


def _announce(settings: ServeOptions, keys: Keys, service: Service, port: int) -> None:
    scheme = "https" if settings.certificate is not None else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    callers = f"{len(keys.keys)} API keys" if keys else "no API keys, this machine only"
    logger.info("%d entries, model %s; %s", len(service.gallery), service.encoder.digest, callers)
    logger.info("audit log: %s", service.audit.path)
    if keys and scheme == "http" and not is_loopback(settings.host):
        logger.warning(
            "without --certificate keys and crops travel unencrypted: put it behind a proxy with TLS"
        )
    path = settings.root_path.rstrip("/")
    logger.info("page: %s://%s:%d%s/  (Ctrl-C stops)", scheme, host, port, path)


def parse_proxies(addresses: Sequence[str]) -> tuple[Network, ...]:
    """The networks of addresses: 10.0.0.2, 10.0.0.0/24, fd00::/8.

    Raises:
        FmcnetError: for an invalid address.
    """
    networks = []
    for address in addresses:
        try:
            networks.append(ipaddress.ip_network(address.strip("[]"), strict=False))
        except ValueError as error:
            raise FmcnetError(
                f"--proxy {address}: give the address that the proxy connects from, as 127.0.0.1 or 10.0.0.0/24"
            ) from error
    return tuple(networks)


def is_proxy(host: str, proxies: Sequence[Network]) -> bool:
    """Whether an address is one of the proxies."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in proxies)


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
