"""What a running service holds, and the work its routes share: uploads to embeddings, pictures, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import FmcnetError
from fmcnet.inference.image_input import parse_modality, read_pixels
from fmcnet.inference.projection import l2_normalize
from fmcnet.retrieval import Entry, Searcher
from fmcnet.retrieval.models import range_of
from fmcnet.server.audit import AuditLog
from fmcnet.server.batching import Batcher
from fmcnet.server.errors import Refusal
from fmcnet.server.limits import Limits
from fmcnet.server.metrics import Metrics
from fmcnet.server.pictures import Pictures, thumbnail
from fmcnet.server.uploads import decode
from fmcnet.types import Embeddings, Modality

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

FIRST_ENTRIES = 20_000
"""Entries looked at for the names of cameras that the page offers."""
SWEEP_SECONDS = 3600.0


class Upload(NamedTuple):
    """An uploaded file, whole."""

    name: str
    data: bytes


class Read(NamedTuple):
    """An image that was read: (H, W, 3) of the model's input size, and its picture if pictures are kept."""

    pixels: NDArray[np.uint8]
    picture: bytes | None


class Service:
    """One gallery, one model, and what serves them.

    Args:
        searcher: owns encoder and gallery; the gallery is closed when the service stops.
        audit: closed when the service stops. limits, pictures: see there.

    Attributes:
        ready: the network has run once and the service does not stop.
        cameras: names seen so far. changing: held while entries and their kept crops are added or removed.
    """

    def __init__(
        self,
        searcher: Searcher,
        audit: AuditLog,
        limits: Limits | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self.searcher, self.audit = searcher, audit
        self.limits, self.pictures = limits or Limits(), pictures or Pictures()
        self.encoder, self.gallery = searcher.encoder, searcher.gallery
        self._value_range = range_of(self.gallery.location, None)
        self.metrics = Metrics(
            entries=self._entries, waiting=lambda: 0.0 if self._batcher is None else self._batcher.waiting
        )
        self.ready = False
        self.cameras: set[str] = set()
        self.changing = asyncio.Lock()
        self.dimension = 0
        self._batcher: Batcher | None = None
        self._decoders = ThreadPoolExecutor(self.limits.decoders, thread_name_prefix="decode")
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="gallery")
        self._chores: asyncio.Task[None] | None = None

    # ---- start and stop ----

    async def start(self) -> None:
        """Take requests.

        Raises:
            FmcnetError: as `warm`, if that was not done yet.
        """
        limits = self.limits
        if not self.dimension:
            await self.work(self.warm)
        self._batcher = Batcher(
            self.encoder.backend,
            batch=limits.batch,
            wait=limits.wait,
            queue=limits.queue,
            seen=self.metrics.batched,
        )
        self._batcher.start()
        self.ready = True
        self._chores = asyncio.get_running_loop().create_task(self._do_chores())

    def warm(self) -> None:
        """Run the network once for each modality, so that the first request is not the slowest.

        Raises:
            FmcnetError: when its embeddings do not fit the gallery, or its calibration not the model.
        """
        blank = np.zeros((1, self.encoder.height, self.encoder.width, 3), dtype=np.uint8)
        dimension = {int(self.encoder.backend(blank, modality).shape[1]) for modality in Modality}.pop()
        settings = self.gallery.settings
        if settings is not None and settings.dimension != dimension:
            raise FmcnetError(
                f"{self.gallery.location} holds embeddings of {settings.dimension} values, the model gives "
                f"{dimension}: use the model it was made with"
            )
        self.dimension = dimension
        if self.encoder.calibrated:
            _ = (
                self.encoder.calibration
            )  # read, so that one of other weights is said now and not to every caller

    async def stop(self) -> None:
        """Finish what is at work, flush the audit log, close the gallery; may be called again."""
        self.ready = False
        if self._chores is not None:
            self._chores.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._chores
        if self._batcher is not None:
            await self._batcher.stop()
        for pool in (self._decoders, self._workers):
            await asyncio.to_thread(pool.shutdown)
        self.audit.close()
        self.gallery.close()

    async def _do_chores(self) -> None:
        """Learn the cameras' names; now and then forget crops whose entries another program removed."""
        with contextlib.suppress(FmcnetError):
            await self.work(lambda: self._note_cameras(e for e, _ in self.gallery.scan()))
        kept = self.pictures.kept
        while kept is not None:
            try:
                gone = await self.work(lambda: kept.sweep(entry.id for entry, _ in self.gallery.scan()))
                if gone:
                    _log.info("forgot %d kept crops of entries that are no longer there", gone)
            except (FmcnetError, OSError) as error:
                _log.warning("kept crops were not looked through: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    def _note_cameras(self, entries: Iterable[Entry]) -> None:
        for entry in itertools.islice(entries, FIRST_ENTRIES):
            if entry.camera is not None:
                self.cameras.add(entry.camera)

    def _entries(self) -> float:
        try:
            return float(len(self.gallery))
        except FmcnetError:
            return float("nan")

    def faults(self) -> list[str]:
        """Why the service should get no requests now; empty: it should."""
        found = [] if self.ready else ["it is starting or stopping"]
        if self._batcher is None or not self._batcher.running:
            found.append("nothing embeds images")
        if not self.audit.recovered():
            found.append("the audit log cannot be written")
        return found

    # ---- work ----

    async def work(self, do: Callable[[], _Result]) -> _Result:
        """Something that blocks (the gallery, the disk), in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, do)

    def modalities(self, given: Sequence[str], images: int) -> list[Modality]:
        """One for all, or one for each image.

        Raises:
            Refusal: for another count, or an unknown word.
        """
        if len(given) not in (1, images):
            raise Refusal(
                422,
                f"{len(given)} modalities for {images} images",
                "modality",
                "give one for all, or one for each image, in their order",
            )
        try:
            kinds = [parse_modality(one) for one in given]
        except FmcnetError as error:
            raise Refusal(422, str(error), "modality", "say visible or infrared") from error
        return kinds if len(kinds) == images else kinds * images

    async def embed(
        self, uploads: Sequence[Upload], modality: Sequence[str]
    ) -> tuple[Embeddings, list[bytes | None]]:
        """Uploads as unit embeddings (N, E), in their order, and their pictures where those are kept.

        The pixels go the way of `Encoder.encode`; only the batches are shared with other requests.

        Raises:
            Refusal: naming each image that cannot be read, or for too many of them, or when the queue is full.
        """
        if not uploads:
            raise Refusal(
                422, "there are no images", "images", "send one or more files in the field 'images'"
            )
        if len(uploads) > self.limits.images:
            raise Refusal(
                413, f"{len(uploads)} images, more than {self.limits.images}", "images", "send fewer at once"
            )
        kinds = self.modalities(modality, len(uploads))
        loop = asyncio.get_running_loop()
        keep = self.pictures.kept is not None
        reads = [loop.run_in_executor(self._decoders, self._read, upload, keep) for upload in uploads]
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        faults = [one for one in outcomes if isinstance(one, BaseException)]
        if faults:
            raise _together(faults, len(uploads))
        good = [one for one in outcomes if isinstance(one, Read)]
        assert self._batcher is not None
        raw = await self._batcher.embed(np.stack([one.pixels for one in good]), kinds)
        embeddings = Embeddings.unlabelled(
            l2_normalize(raw),
            np.array([kind.code for kind in kinds], dtype=np.uint8),
            np.array([upload.name for upload in uploads], dtype=np.str_),
        )
        return embeddings, [one.picture for one in good]

    def _read(self, upload: Upload, keep: bool) -> Read:
        image = decode(upload.data, upload.name, self.limits.pixels, self._value_range)
        pixels = read_pixels(image, self.encoder.height, self.encoder.width)
        return Read(pixels, thumbnail(image) if keep else None)


def _together(faults: Sequence[BaseException], total: int) -> Refusal | BaseException:
    """One refusal for all images of a request that cannot be read."""
    refusals = [one for one in faults if isinstance(one, Refusal)]
    if len(refusals) < len(faults):
        return next(one for one in faults if not isinstance(one, Refusal))
    first = refusals[0]
    if len(refusals) == 1:
        return first
    said = "; ".join(one.what for one in refusals[:10])
    status = max(one.status for one in refusals)
    return Refusal(status, f"{len(refusals)} of {total} images: {said}", first.where, first.do)
