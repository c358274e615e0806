"""The running service, and the work that its routes share: uploads to embeddings, thumbnails, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector
from starlette.types import Receive

from fmcnet.data.pixels import RANGE_FIELD, RANGE_UNUSED, Remarks, ValueRange, note_colours
from fmcnet.errors import FmcnetError, GalleryReplacedError, one_line
from fmcnet.inference.projection import l2_normalize
from fmcnet.names import printable
from fmcnet.retrieval import Gallery, Searcher
from fmcnet.retrieval.file_records import CHANGED
from fmcnet.retrieval.records import Stored
from fmcnet.server.audit import AuditLog
from fmcnet.server.batching import Batcher
from fmcnet.server.decoding import DecoderPool
from fmcnet.server.errors import ApiError, refused_at
from fmcnet.server.limits import Limits
from fmcnet.server.thumbnails import KeptThumbnails, SourceFolder, thumbnail_name
from fmcnet.server.uploads import Upload
from fmcnet.types import Embeddings, Modality, parse_modality

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

SWEEP_SECONDS = 3600.0


class Caller(NamedTuple):
    """Who sent a request: key or address, ASGI's `receive` of the request, and facts for the audit log."""

    name: str
    receive: Receive
    facts: dict[str, Any]


class Embedded(NamedTuple):
    """What `Service.embed` made of N uploads.

    Attributes:
        embeddings: (N, E), unit length.
        thumbnails: N JPEGs, None where none is kept.
        notes: for the caller, a sentence each.
        ranges: with which deep images were decoded; None where one was stretched.
    """

    embeddings: Embeddings
    thumbnails: list[bytes | None]
    notes: list[str]
    ranges: list[ValueRange | None]


class Metrics:
    """Counters of one service; `cut_off` are requests that a stop did not wait for."""

    def __init__(self, entries: Callable[[], float], waiting: Callable[[], float]) -> None:
        self.cut_off = 0
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("fmcnet_requests", "Requests, by route and status.", ("route", "status"))
        description = "From the head of a request to the end of its answer."
        buckets: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self.seconds = histogram("fmcnet_request_seconds", description, ("route",), buckets=buckets)
        self.working = gauge("fmcnet_requests_working", "Requests at work.")
        buckets = (1, 2, 4, 8, 16, 32, 64, 128)
        self.batch = histogram("fmcnet_batch_images", "Images the network saw at once.", buckets=buckets)
        self.images = counter("fmcnet_images", "Images embedded.")
        description = "Requests turned away before they were read, by reason."
        self.refused = counter("fmcnet_refused", description, ("reason",))
        gauge("fmcnet_queue_images", "Images that wait.").set_function(waiting)
        gauge("fmcnet_gallery_entries", "Entries.").set_function(entries)

    def batched(self, size: int) -> None:
        """The network got a batch."""
        self.batch.observe(size)
        self.images.inc(size)


class Service:
    """One gallery and one model, and what serves them. The network runs once, so that no request waits for that.

    Args:
        searcher: its encoder and gallery are used; the gallery is closed when the service stops.
        audit: the audit log, closed when the service stops.
        limits: its bounds.
        kept: thumbnails of entries that this service added; None: they are not kept.
        sources: the files that entries came from, as far as the page may show them; None: none.
        read_only: the gallery was opened read-only.

    Attributes:
        dimension: values of an embedding.
        ready: requests are taken.
        changing: a lock, held while entries and their kept thumbnails are added or removed.

    Raises:
        FmcnetError: the network's embeddings do not fit the gallery, its calibration does not fit the model, or the
            thumbnails are of another gallery.
    """

    def __init__(
        self,
        searcher: Searcher,
        audit: AuditLog,
        limits: Limits | None = None,
        kept: KeptThumbnails | None = None,
        sources: SourceFolder | None = None,
        read_only: bool = False,
    ) -> None:
        self.audit, self.read_only = audit, read_only
        self.limits, self.kept, self.sources = limits or Limits(), kept, sources
        self.encoder = searcher.encoder
        self.searcher, self.gallery = searcher, searcher.gallery
        self.dimension = self.warm()
        if kept is not None:
            self._claim(kept)
        self._reopening = threading.Lock()
        self.metrics = Metrics(entries=self._entries, waiting=lambda: self._batcher.waiting)
        self.ready = False
        self.changing = asyncio.Lock()
        network, bounds = self.encoder.backend, self.limits
        self._batcher = Batcher(
            network, batch=bounds.batch, wait=bounds.wait, queue=bounds.queue, seen=self.metrics.batched
        )
        self._decoders = DecoderPool(bounds, (self.encoder.height, self.encoder.width))
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="gallery")
        self._chores: asyncio.Task[None] | None = None

    def _reopen(self) -> None:
        """Open the gallery that replaced this one; 503 where there is none, or its model differs."""
        with self._reopening:
            with contextlib.suppress(GalleryReplacedError):
                len(self.gallery)
                return  # another thread did it
            old, location = self.gallery, self.gallery.location
            try:
                with contextlib.ExitStack() as on_error:
                    gallery = Gallery(location, read_only=self.read_only, create=False)
                    on_error.callback(gallery.close)
                    self.searcher, self.gallery = Searcher(self.encoder, gallery), gallery
                    on_error.pop_all()
            except FmcnetError as error:
                logger.error("the gallery was removed or replaced: %s", error)
                what = "the gallery was removed, or replaced by one that this service cannot use"
                do = "put it back; the service's log says what is wrong"
                raise ApiError(503, what, "the gallery", do, retry_after=5) from error
            logger.warning("%s was replaced: the service continues with the new gallery", location)
            old.close()

    # ---- start and stop ----

    async def start(self) -> None:
        """Start to take requests."""
        self._batcher.start()
        await self._decoders.start()
        self.ready = True
        self._chores = asyncio.get_running_loop().create_task(self._do_chores())

    def warm(self) -> int:
        """Run the network once for each modality; returns the number of values of an embedding."""
        blank = np.zeros((1, self.encoder.height, self.encoder.width, 3), dtype=np.uint8)
        dimension = {int(self.encoder.backend(blank, modality).shape[1]) for modality in Modality}.pop()
        settings = self.gallery.settings
        if settings is not None and settings.dimension != dimension:
            raise FmcnetError(
                f"{self.gallery.location} holds embeddings of {settings.dimension} values, the model gives "
                f"{dimension}: use the model it was made with"
            )
        if self.encoder.calibrated:
            self.encoder.calibration  # noqa: B018  (refuses one of other weights now, not to every caller)
        return dimension

    async def stop(self) -> None:
        """Finish the work, flush the audit log, close the gallery; may be called again."""
        self.ready = False
        async with contextlib.AsyncExitStack() as stack:  # from the last on, each though another fails
            stack.callback(lambda: self.gallery.close())
            stack.callback(self.audit.close)
            stack.push_async_callback(asyncio.to_thread, self._workers.shutdown)
            stack.push_async_callback(self._batcher.stop)
            stack.push_async_callback(asyncio.to_thread, self._decoders.stop)
            if self._chores is not None:
                self._chores.cancel()
                await asyncio.wait([self._chores])

    async def _do_chores(self) -> None:
        """Every hour remove kept thumbnails whose entries another program removed or replaced."""
        kept = self.kept
        while kept is not None:
            try:
                gone = await self.work(partial(self._find_gone, kept))
                async with self.changing:  # not during the scan, which may take long
                    gone -= kept.fresh
                    removed = len(gone) - await self.work(partial(kept.remove, gone))
                if removed:
                    logger.info("removed %d kept thumbnails of entries that are gone", removed)
            except Exception as error:  # whatever it is, the next hour tries again
                logger.warning("kept thumbnails were not checked: %s", one_line(error))
            await asyncio.sleep(SWEEP_SECONDS)

    def _find_gone(self, kept: KeptThumbnails) -> set[str]:
        self._claim(kept)
        return kept.find_others(self._thumbnail_names())

    def _claim(self, kept: KeptThumbnails) -> None:
        kept.claim(self.gallery.unique_name, len(self.gallery), self._thumbnail_names())

    def _thumbnail_names(self) -> Iterator[str]:
        return (thumbnail_name(entry.id, embedding) for entry, embedding in self.gallery.scan())

    def _entries(self) -> float:
        try:
            return float(len(self.gallery))
        except FmcnetError:
            return float("nan")

    async def faults(self) -> list[str]:
        """Why the service should get no requests now; empty: it should."""
        faults = [] if self.ready else ["it is starting or stopping"]
        if not self._batcher.running:
            faults.append("nothing embeds images")
        if not self.audit.recovered():
            faults.append("the audit log cannot be written")
        faults += self._decoders.faults
        if not faults:
            try:
                await self.work(lambda: len(self.gallery))
            except ApiError as error:
                faults.append(error.what)
            except FmcnetError:
                faults.append("the gallery cannot be read")
        return faults

    # ---- work ----

    async def thumbnail(self, stored: Stored, caller: Caller) -> bytes | None:
        """What the page may show of an entry: the kept thumbnail, the gallery's own, or one made of its source.

        Raises:
            ApiError: 503, when sources cannot be decoded now; 404, when the source has changed.
        """
        entry, embedding = stored
        kept, sources, path = self.kept, self.sources, entry.source
        name = thumbnail_name(entry.id, embedding)
        if kept is not None and (thumbnail := await self.work(lambda: kept.read(name))) is not None:
            return thumbnail
        if (thumbnail := await self.work(lambda: self.gallery.thumbnail(entry.id))) is not None:
            return thumbnail
        if sources is None or path is None or (source := await self.work(lambda: sources.read(path))) is None:
            return None
        if not await self.work(lambda: self._is_indexed(entry.id, path, source)):
            raise ApiError(404, CHANGED, "entry_id", "index it again with --existing update")
        try:
            value_range = await self.work(lambda: self.searcher.resolve_range())
            upload = Upload("the source", source, value_range, keep=True)
            decoded = await _unless_gone(self._decoders.decode([upload], caller.name), caller)
        except ApiError as error:
            if error.status == 503:
                raise
            return None  # no image, or one that may not be uploaded either
        return decoded[0].thumbnail

    def _is_indexed(self, entry_id: str, path: str, content: bytes) -> bool:
        """Whether this is the content of the file that was indexed; also True where another file was, or none."""
        record = None if self.gallery.files is None else self.gallery.files.of([entry_id]).get(entry_id)
        return record is None or record.path != path or record.digest == hashlib.sha256(content).hexdigest()

    async def work(self, do: Callable[[], _Result]) -> _Result:
        """Run what blocks (gallery, disk) in a thread; again where the gallery was replaced."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._workers, do)
        except GalleryReplacedError:
            await loop.run_in_executor(self._workers, self._reopen)
            return await loop.run_in_executor(self._workers, do)

    async def embed(
        self, uploads: Sequence[Upload], modality: Sequence[str], caller: Caller, *, keep: bool = False
    ) -> Embedded:
        """Embed N uploads; deep ones with their own value range or the gallery's. `keep`: make thumbnails of them.

        The pixels are processed as by `Encoder.encode`; only the batches are shared with other requests.

        Raises:
            ApiError: names each image that cannot be read; too many images; a full queue; the caller left.
        """
        count, most = len(uploads), self.limits.images
        if count > most:
            raise ApiError(413, f"{count} images, more than {most}", "images", "send fewer at once")
        if len(modality) not in (1, count):
            do = "give one for all, or one for each image, in their order"
            raise ApiError(422, f"{len(modality)} modalities for {count} images", "modality", do)
        with refused_at("modality", "say visible or infrared"):
            modalities = [parse_modality(text) for text in modality]
        modalities *= count // len(modalities)
        default = await self.work(lambda: self.searcher.resolve_range())
        ranged = [upload._replace(value_range=upload.value_range or default, keep=keep) for upload in uploads]
        decoded = await _unless_gone(self._decoders.decode(ranged, caller.name), caller)
        remarks, ranges = Remarks(), list[ValueRange | None]()
        for upload, image, image_modality in zip(ranged, decoded, modalities, strict=True):
            name, noted = printable(upload.name), Remarks()
            note_colours(image.pixels[None], image_modality, [name], noted)
            for remark in image.remarks:
                noted.add(remark, name)
            ranges += noted.ranges(upload.value_range)
            remarks.update(noted)
        pixels = np.stack([image.pixels for image in decoded])
        raw = await _unless_gone(self._batcher.embed(pixels, modalities), caller)
        codes = np.array([image_modality.code for image_modality in modalities], dtype=np.uint8)
        names = np.array([upload.name for upload in uploads], dtype=np.str_)
        embeddings = Embeddings.unlabelled(l2_normalize(raw), codes, names)
        notes = remarks.lines(RANGE_FIELD)
        if any(upload.value_range for upload in uploads) and not remarks.ranged():
            notes.append(RANGE_UNUSED)
        return Embedded(embeddings, [image.thumbnail for image in decoded], notes, ranges)


async def _unless_gone(work: Coroutine[Any, Any, _Result], caller: Caller) -> _Result:
    """The result of `work`. It is cancelled when its caller leaves; the audit log notes the 400."""

    async def disconnect() -> None:  # the body was read, so nothing else comes
        while (await caller.receive())["type"] != "http.disconnect":
            pass

    task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            what = "the connection was closed before the answer"
            raise ApiError(400, what, "the connection", "send it again")
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()
