"""Images of many requests through the network together: small batches, short waits, a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmcnet.server.errors import overloaded
from fmcnet.types import FloatArray, Modality

BATCH_SECONDS = 0.25
"""A batch has no more images than the network lately embedded in this time, since other images wait behind it."""


class _Job(NamedTuple):
    pixels: NDArray[np.uint8]
    future: asyncio.Future[FloatArray]
    since: float


class Batcher:
    """Gathers images of many requests into batches of one modality and embeds them in one thread.

    A batch starts when it is full or its first image has waited for `wait` seconds. Requests take turns image by
    image, modalities batch by batch.

    Args:
        embed: the network, from (N, H, W, 3) uint8 of one modality to (N, E) float32.
        batch: most images of a batch.
        wait: seconds.
        queue: most images that wait.
        seen: called with the size of each batch.
    """

    def __init__(
        self,
        embed: Callable[[NDArray[Any], Modality], FloatArray],
        *,
        batch: int = 32,
        wait: float = 0.005,
        queue: int = 512,
        seen: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._embed, self._batch, self._wait, self._limit, self._seen = embed, batch, wait, queue, seen
        self._waiting: dict[Modality, deque[deque[_Job]]] = {modality: deque() for modality in Modality}
        self._image_seconds = 0.0
        self._wake = asyncio.Event()
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return sum(len(request) for queue in self._waiting.values() for request in queue)

    @property
    def running(self) -> bool:
        """Whether images are embedded."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Embed the waiting images, then end; may be called again."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def embed(self, pixels: NDArray[np.uint8], modality: Sequence[Modality]) -> FloatArray:
        """Descriptors (N, E) of N >= 1 images (N, H, W, 3) and their modalities, not of unit length.

        Raises:
            ApiError: 503, when not all N fit the queue, or the service stops.
        """
        if self._stopping or not self.running:
            raise overloaded("the service is stopping or not yet ready")
        if self.waiting + len(pixels) > self._limit:
            raise overloaded(f"{self.waiting} images wait for the network already", "images")
        loop, now = asyncio.get_running_loop(), time.monotonic()
        jobs = [_Job(image, loop.create_future(), now) for image in pixels]
        for one in dict.fromkeys(modality):
            own = (job for job, of_job in zip(jobs, modality, strict=True) if of_job is one)
            self._waiting[one].append(deque(own))
        self._wake.set()
        try:
            return np.stack(await asyncio.gather(*(job.future for job in jobs)))
        finally:
            for job in jobs:
                job.future.cancel()  # of a caller who is gone, or whose other image failed

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        modality: Modality | None = None
        while True:
            modality = self._next_modality(modality)
            if modality is None:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._wait_for_batch(modality)
            jobs = self._take_batch(modality)
            if not jobs:
                continue
            self._seen(len(jobs))
            images = np.stack([job.pixels for job in jobs])
            start = time.monotonic()
            try:
                features = await loop.run_in_executor(self._thread, self._embed, images, modality)
                if features.shape[0] != len(jobs):
                    raise ValueError(f"{features.shape[0]} embeddings of {len(jobs)} images")
            except Exception as error:  # for the callers; the next batch runs all the same
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
                continue
            self._image_seconds = (time.monotonic() - start) / len(jobs)
            for job, row in zip(jobs, features, strict=True):
                if not job.future.done():
                    job.future.set_result(row)

    def _next_modality(self, last: Modality | None) -> Modality | None:
        """A modality with images; not the last one where both have some."""
        waiting = [modality for modality, queue in self._waiting.items() if queue]
        return min(waiting, key=lambda modality: modality is last, default=None)

    @property
    def _batch_size(self) -> int:
        """Images in the next batch."""
        affordable = int(BATCH_SECONDS / self._image_seconds) if self._image_seconds else self._batch
        return max(1, min(self._batch, affordable))

    def _take_batch(self, modality: Modality) -> list[_Job]:
        """The next batch, without those whose callers are gone."""
        queue, size, batch = self._waiting[modality], self._batch_size, list[_Job]()
        while queue and len(batch) < size:
            request = queue.popleft()
            job = request.popleft()
            if request:
                queue.append(request)  # behind the others
            if not job.future.done():
                batch.append(job)
        return batch

    async def _wait_for_batch(self, modality: Modality) -> None:
        """Wait until the batch is full, or its first image has waited long enough."""
        queue, size = self._waiting[modality], self._batch_size

        async def fill() -> None:
            while sum(map(len, queue)) < size and not self._stopping:
                self._wake.clear()
                await self._wake.wait()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(fill(), queue[0][0].since + self._wait - time.monotonic())
