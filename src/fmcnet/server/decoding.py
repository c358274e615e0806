"""Uploads to pixels, in processes that are ended when they take too long.

A small file can keep a decoder busy for minutes, and a thread cannot be ended. Requests take turns, image by image.
"""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from pebble import ProcessExpired, ProcessPool
from PIL import Image

from fmcnet.processes import start_fork_server
from fmcnet.server.errors import ApiError, overloaded
from fmcnet.server.limits import Limits
from fmcnet.server.uploads import SMALLEST, DecodedUpload, Upload, UploadError, decode_cost, decode_upload

logger = logging.getLogger(__name__)

RECYCLE = 500
"""Images after which a process is replaced, so that no memory of a large image stays."""
CROP = 2_000_000
"""Pixels times passes over them. An image of at most these takes milliseconds, and has processes of its own."""
START_SECONDS = 60.0
"""For the first image of each queue, which waits for its process's imports."""
CROP_SECONDS = 1.0
"""After which a crop is decoded again as a large image, so that it does not hold the others."""


@dataclass
class _Request:
    """Who sent the images of one request, and how many pixels they had."""

    caller: str
    pixels: int = 0


class _Image(NamedTuple):
    """An image that waits."""

    upload: Upload
    future: asyncio.Future[DecodedUpload]
    request: _Request


class _Queue:
    """Images in front of some processes. Callers take turns, and so do the requests of a caller.

    A queue of crops hands those that took more than `CROP_SECONDS` to `slow`. Without it this is the queue of large
    images, which are refused after `decode_seconds`. `fault` says why no image can be decoded now; "" when it can.
    """

    def __init__(self, limits: Limits, size: tuple[int, int], slow: _Queue | None = None) -> None:
        self.limits, self.size, self._slow = limits, size, slow
        self._processes = limits.decoders if slow is None else 1
        self._seconds = limits.decode_seconds if slow is None else min(CROP_SECONDS, limits.decode_seconds)
        self._pool = self._make_pool()
        self._callers: OrderedDict[str, deque[deque[_Image]]] = OrderedDict()
        self._busy = 0
        self._stopped = False
        self.fault = ""

    def _make_pool(self) -> ProcessPool:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([decode_upload.__module__])
        initializer = _yield_to_others if self._slow is None else None
        return ProcessPool(self._processes, RECYCLE, initializer, context=context)

    async def start(self, upload: Upload) -> None:
        """Decode an image in the first process."""
        await asyncio.wrap_future(self._schedule(upload, START_SECONDS))

    def _schedule(self, upload: Upload, seconds: float) -> Future[DecodedUpload]:
        """Hand an image to the pool. A pool whose processes died is replaced once."""
        arguments = [upload, self.limits.pixels, self.size]
        try:
            return self._pool.schedule(decode_upload, args=arguments, timeout=seconds)
        except RuntimeError as error:
            logger.error("the decoder processes ended (%s): starting new ones", error)
            self._end_pool()
            self._pool = self._make_pool()
            return self._pool.schedule(decode_upload, args=arguments, timeout=seconds)

    def _end_pool(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def put(self, images: Sequence[_Image]) -> None:
        """Queue some images of one request."""
        if images:
            self._callers.setdefault(images[0].request.caller, deque()).append(deque(images))
            self._submit()

    def stop(self) -> None:
        """End the processes at once."""
        self._stopped = True
        self._end_pool()

    def _submit(self) -> None:
        """Give free processes the next images."""
        while self._busy < self._processes and self._callers:
            image = self._take()
            if image.future.done():
                continue
            if image.request.pixels > (most := 4 * self.limits.pixels):
                what = f"the images of this request have more than {most} pixels together"
                do = "send fewer images at once, or crops made smaller"
                image.future.set_exception(ApiError(413, what, "images", do))
                continue
            try:
                job = self._schedule(image.upload, self._seconds)
            except (RuntimeError, OSError) as error:
                self.fault = f"images cannot be decoded: {error}"
                image.future.set_exception(overloaded(self.fault))
                continue
            self._busy += 1
            future = asyncio.wrap_future(job)  # its callbacks run in the loop, not in a thread of the pool
            future.add_done_callback(partial(self._finish, image))

    def _take(self) -> _Image:
        """The next image of the request whose turn it is, of the caller whose turn it is."""
        caller, requests = self._callers.popitem(last=False)
        images = requests.popleft()
        image = images.popleft()
        if images:
            requests.append(images)  # behind the caller's other requests
        if requests:
            self._callers[caller] = requests  # behind the other callers
        return image

    def _finish(self, image: _Image, job: asyncio.Future[DecodedUpload]) -> None:
        self._busy -= 1
        error = job.exception() if not job.cancelled() else asyncio.CancelledError()
        if error is None:
            self.fault = ""
            image.request.pixels += job.result().source_pixels
        if not image.future.done():
            if error is None:
                image.future.set_result(job.result())
            elif self._slow is not None and isinstance(error, asyncio.TimeoutError) and not self._stopped:
                self._slow.put([image])
            else:
                image.future.set_exception(self._api_error(error, image))
        if not self._stopped:
            self._submit()

    def _api_error(self, error: BaseException, image: _Image) -> ApiError:
        if isinstance(error, UploadError):
            return ApiError(error.status, error.what, "images", error.do)
        if isinstance(error, asyncio.CancelledError) or self._stopped:
            return overloaded("the service is stopping")
        if isinstance(error, RuntimeError):  # of the pool; decoding itself raises none
            self.fault = f"images cannot be decoded: the decoder processes ended ({error})"
            return overloaded(self.fault)
        name = image.upload.name
        what = f"image '{name}' took more than {self.limits.decode_seconds:g} s to decode"
        if isinstance(error, ProcessExpired):
            what = f"image '{name}' cannot be decoded: its decoder stopped (exit code {error.exitcode})"
        elif not isinstance(error, asyncio.TimeoutError):
            what = f"image '{name}' cannot be decoded ({type(error).__name__})"
        return ApiError(422, what, "images", "send the person's crop, as a plain JPEG or PNG")


class DecoderPool:
    """Decodes the images of all requests: crops in a process of their own, large images in others.

    `size`: height and width of the model's input.
    """

    def __init__(self, limits: Limits, size: tuple[int, int]) -> None:
        self._large = _Queue(limits, size)
        self._crops = _Queue(limits, size, slow=self._large)
        self._queues = (self._crops, self._large)

    async def decode(self, uploads: Sequence[Upload], caller: str) -> list[DecodedUpload]:
        """The images of one request, in their order; they take the caller's turn.

        Raises:
            ApiError: naming each image that cannot be decoded: 422, 413 for too many pixels; 503 on a stop.
        """
        loop = asyncio.get_running_loop()
        costs = await asyncio.to_thread(lambda: [decode_cost(upload.data) for upload in uploads])
        request = _Request(caller)
        images = [_Image(upload, loop.create_future(), request) for upload in uploads]
        self._crops.put([image for image, cost in zip(images, costs, strict=True) if cost <= CROP])
        self._large.put([image for image, cost in zip(images, costs, strict=True) if cost > CROP])
        try:
            outcomes = await asyncio.gather(*(image.future for image in images), return_exceptions=True)
        finally:
            for image in images:  # of a caller who left
                image.future.cancel()
        errors = [outcome for outcome in outcomes if isinstance(outcome, ApiError)]
        if errors:
            raise _combined_error(errors, len(uploads))
        return [outcome for outcome in outcomes if isinstance(outcome, DecodedUpload)]

    async def start(self) -> None:
        """Decode one image in each kind of process, so that what keeps them from starting is raised at once."""
        blank = io.BytesIO()
        Image.new("RGB", (SMALLEST, SMALLEST)).save(blank, "PNG")
        upload = Upload("blank", blank.getvalue())
        start_fork_server()
        await asyncio.gather(*(queue.start(upload) for queue in self._queues))

    @property
    def faults(self) -> list[str]:
        """Why images cannot be decoded now; empty when they can."""
        return [queue.fault for queue in self._queues if queue.fault]

    def stop(self) -> None:
        """End the processes at once; what is decoded or waits is refused."""
        for queue in self._queues:
            queue.stop()


def _yield_to_others() -> None:
    """Give the network and the answers priority where processors are few."""
    if hasattr(os, "nice"):
        os.nice(5)


def _combined_error(errors: Sequence[ApiError], total: int) -> ApiError:
    """One error for all images of a request that cannot be decoded."""
    first, texts = errors[0], list(dict.fromkeys(error.what for error in errors))
    if len(texts) == 1:
        return first
    what = f"{len(errors)} of {total} images: {'; '.join(texts[:10])}"
    return ApiError(max(error.status for error in errors), what, first.where, first.do)
