"""The batches of a training, in order, on the device: gathered as uint8, moved once, augmented there.

A batch is a function of (data, seed, step, number of all identities in a step): neither of the process nor of what
was drawn before. On a GPU the next batches are made while the present one is computed: rows are gathered into pinned
memory by a thread, copied and augmented on a stream of their own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcnet.config import AugmentConfig
from fmcnet.data.samplers import IdentityModalitySampler
from fmcnet.data.transforms import Draws, apply, draw
from fmcnet.runtime import Runtime, seeded_generator
from fmcnet.types import IntArray, Modality

AHEAD = 3  # batches that wait in pinned memory, on a GPU


class Batch(NamedTuple):
    """Two aligned halves of P*K images: visible and infrared (P*K, 3, H, W) uint8, labels (P*K,) int64."""

    visible: Tensor
    infrared: Tensor
    labels: Tensor


class _Gathered(NamedTuple):
    """A batch in main memory, pinned where a GPU reads it, and what is to be done to its images."""

    halves: tuple[Tensor, Tensor]  # (P*K, H, W, 3) uint8 each
    labels: Tensor
    draws: tuple[Draws, Draws]


class Batches:
    """Iterates over the batches of steps `first`, `first + 1`, ... `last - 1`.

    Args:
        images: (N, H, W, 3) uint8, usually memory-mapped. labels: (N,) int64.
        sampler: says which rows make a batch.
        augment: strengths and chances. seed: of augmentation.
        place: device and rank.
        first: the first batch, counted from the start of the training. last: one more than the last.
        ahead: batches gathered in advance by a thread; None: `AHEAD` on a GPU, 0 (no thread) elsewhere, where it
            would only take the network's processor.

    Attributes:
        waited: seconds that the iterating thread spent on data so far.

    The sampler's plan of an epoch is asked for once the epoch's first batch is; with `sampler.hard` a thread never
    runs ahead into an epoch that has not begun.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: IntArray,
        sampler: IdentityModalitySampler,
        augment: AugmentConfig,
        seed: int,
        place: Runtime,
        *,
        first: int = 0,
        last: int,
        ahead: int | None = None,
    ) -> None:
        self._images, self._labels = images, torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self._sampler, self._augment, self._seed, self._place = sampler, augment, seed, place
        self._next, self._last = first, last
        self._epoch, self._plan = -1, list[tuple[IntArray, IntArray]]()
        self.waited = 0.0
        self._cuda = place.device.type == "cuda"
        self._ahead = (AHEAD if self._cuda else 0) if ahead is None else ahead
        self._stream: Any = torch.cuda.Stream(place.device) if self._cuda else None
        self._ready: tuple[Batch, Any] | None = None
        self._queue: queue.Queue[_Gathered | BaseException] = queue.Queue(maxsize=max(1, self._ahead))
        self._begun = threading.Semaphore(0)  # epochs that the iterating thread has reached
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        while self._next < self._last:
            started = time.perf_counter()
            batch = self._take()
            self._next += 1
            self.waited += time.perf_counter() - started
            yield batch

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._begun.release()
        if self._thread is not None:
            while self._thread.is_alive():
                try:
                    self._queue.get(timeout=0.05)
                except queue.Empty:
                    continue
            self._thread = None

    def _take(self) -> Batch:
        if self._closed.is_set():
            raise RuntimeError("these batches are closed")
        if not self._ahead:
            return self._finish(self._gather(self._next))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fmcnet-batches", daemon=True)
            self._thread.start()
        if not self._cuda:
            self._begin(self._next)
            return self._finish(self._fetch())
        # The copy and the augmentation of the batch after this one are queued now, on the other stream, and run while
        # this one is computed.
        if self._ready is None:
            self._begin(self._next)
            self._ready = self._send(self._fetch())
        batch, done = self._ready
        current = torch.cuda.current_stream(self._place.device)
        current.wait_event(done)
        for part in batch:
            part.record_stream(current)
        following = self._next + 1
        waits = self._sampler.hard > 0 and following % self._sampler.steps == 0
        self._ready = None
        if following < self._last and not waits:
            self._begin(following)
            self._ready = self._send(self._fetch())
        return batch

    def _begin(self, number: int) -> None:
        if number % self._sampler.steps == 0:
            self._begun.release()

    def _fetch(self) -> _Gathered:
        gathered = self._queue.get()
        if isinstance(gathered, BaseException):
            self._closed.set()
            raise gathered
        return gathered

    def _run(self) -> None:
        try:
            for number in range(self._next, self._last):
                if self._sampler.hard > 0 and number % self._sampler.steps == 0:
                    self._begun.acquire()
                if self._closed.is_set():
                    return
                self._queue.put(self._gather(number))
                if self._closed.is_set():
                    return
        except BaseException as error:  # told to whoever iterates
            self._queue.put(error)

    def _gather(self, number: int) -> _Gathered:
        """The rows of a batch out of the memory map."""
        sampler, place = self._sampler, self._place
        epoch, start = divmod(number, sampler.steps)
        if self._epoch != epoch:
            self._plan, self._epoch = list(sampler.batches(epoch)), epoch
        rows = self._plan[start]
        halves, draws = [], []
        height, width = self._images.shape[1:3]
        for own, modality in zip(rows, Modality, strict=True):
            half = torch.empty((len(own), height, width, 3), dtype=torch.uint8, pin_memory=self._cuda)
            np.take(self._images, own, axis=0, out=half.numpy(), mode="clip")  # "raise" would buffer it
            halves.append(half)
            # Drawn for all processes, so that it does not matter which of them an image falls to.
            generator = seeded_generator(torch.device("cpu"), self._seed, number, modality.code)
            every = draw(len(own) * place.world, height, width, modality, self._augment, generator)
            draws.append(every.part(len(own) * place.rank, len(own)))
        labels = self._labels[torch.from_numpy(rows[0])]
        if self._cuda:  # a copy that nobody waits for starts in pinned memory only
            labels, draws = labels.pin_memory(), [Draws(*(c.pin_memory() for c in own)) for own in draws]
        return _Gathered((halves[0], halves[1]), labels, (draws[0], draws[1]))

    def _send(self, gathered: _Gathered) -> tuple[Batch, Any]:
        with torch.cuda.stream(self._stream):
            batch = self._finish(gathered)
            done = torch.cuda.Event()
            done.record(self._stream)
        return batch, done

    def _finish(self, gathered: _Gathered) -> Batch:
        """Move (once, as uint8) and augment."""
        device, pad = self._place.device, self._augment.pad
        visible, infrared = (
            apply(half.to(device, non_blocking=True).permute(0, 3, 1, 2), draws, pad)
            for half, draws in zip(gathered.halves, gathered.draws, strict=True)
        )
        return Batch(visible, infrared, gathered.labels.to(device, non_blocking=True))
