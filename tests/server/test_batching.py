"""The batcher: the same answers as without it, in order; full queues; failures; ends."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from fmcnet.server.batching import BATCH_SECONDS, Batcher
from fmcnet.server.errors import ApiError
from fmcnet.types import Modality

DAY, NIGHT = Modality.VISIBLE, Modality.INFRARED


def embed(images, modality):
    """Each image by itself: its sum, its first value, its modality."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat.sum(axis=1), flat[:, 0], np.full(len(images), modality.code, np.float32)], axis=1)


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 2, 3), dtype=np.uint8)


def run(work, function=embed, **options):
    """`work(batcher)` in a loop of its own; the batcher is stopped after it."""

    async def whole():
        batcher = Batcher(function, **{"wait": 0.002, **options})
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(whole())


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_as_without_batches_and_in_order(batch):
    sizes = []
    random = np.random.default_rng(0)
    requests = [images(int(random.integers(1, 9)), seed) for seed in range(20)]
    kinds = [[Modality.from_code(int(c)) for c in random.integers(0, 2, len(r))] for r in requests]

    async def work(batcher):
        return await asyncio.gather(*(batcher.embed(r, k) for r, k in zip(requests, kinds, strict=True)))

    for got, pixels, modality in zip(run(work, batch=batch, seen=sizes.append), requests, kinds, strict=True):
        alone = [embed(pixels[at : at + 1], modality[at])[0] for at in range(len(pixels))]
        np.testing.assert_array_equal(got, alone)
    assert max(sizes) <= batch
    assert sum(sizes) == sum(map(len, requests))
    assert batch == 1 or max(sizes) > 1


def test_a_single_image_does_not_wait_for_others():
    async def work(batcher):
        return await asyncio.wait_for(batcher.embed(images(1, 0), [DAY]), 20)

    assert run(work, batch=1000, wait=0.01).shape == (1, 3)


def test_a_full_queue_refuses_whole_requests():
    go, inside = threading.Event(), threading.Event()

    def held(pixels, modality):
        inside.set()
        assert go.wait(60)
        return embed(pixels, modality)

    async def work(batcher):
        at_work = asyncio.ensure_future(batcher.embed(images(4, 0), [DAY] * 4))
        while not inside.is_set():
            await asyncio.sleep(0.001)
        second = asyncio.ensure_future(batcher.embed(images(4, 1), [DAY] * 4))
        await asyncio.sleep(0)
        waiting = batcher.waiting
        (refused,) = await asyncio.gather(batcher.embed(images(3, 9), [DAY] * 3), return_exceptions=True)
        third = asyncio.ensure_future(batcher.embed(images(2, 8), [NIGHT] * 2))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(at_work, second, third)
        return waiting, refused

    waiting, refusal = run(work, held, batch=4, queue=6)
    assert waiting == 4
    assert isinstance(refusal, ApiError)
    assert (refusal.status, refusal.retry_after) == (503, 1)


def test_a_failure_is_told_to_its_callers_only():
    def fails(pixels, modality):
        if modality is NIGHT:
            raise RuntimeError("broken stem")
        return embed(pixels, modality)

    async def work(batcher):
        return await asyncio.gather(
            batcher.embed(images(2, 0), [DAY, NIGHT]),
            batcher.embed(images(2, 1), [DAY, DAY]),
            return_exceptions=True,
        )

    failed, fine = run(work, fails)
    assert isinstance(failed, RuntimeError)
    assert fine.shape == (2, 3)


def test_callers_who_are_gone_cost_nothing():
    go, inside, sizes = threading.Event(), threading.Event(), []

    def held(pixels, modality):
        inside.set()
        assert go.wait(60)
        return embed(pixels, modality)

    async def work(batcher):
        first = asyncio.ensure_future(batcher.embed(images(1, 0), [DAY]))
        while not inside.is_set():
            await asyncio.sleep(0.001)
        gone = asyncio.ensure_future(batcher.embed(images(5, 1), [DAY] * 5))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        go.set()
        await first

    run(work, held, seen=sizes.append)
    assert sizes == [1]


def test_a_stop_finishes_what_waits_and_takes_no_more():
    async def whole():
        batcher = Batcher(embed, batch=2, wait=30.0)
        batcher.start()
        waiting = [asyncio.ensure_future(batcher.embed(images(1, seed), [DAY])) for seed in range(5)]
        await asyncio.sleep(0)
        await batcher.stop()
        assert [one.done() or await one is not None for one in waiting] == [True] * 5
        with pytest.raises(ApiError):
            await batcher.embed(images(1, 0), [DAY])

    asyncio.run(asyncio.wait_for(whole(), 60))


@pytest.mark.parametrize("kind", [DAY, NIGHT])
def test_one_image_does_not_wait_for_the_many_of_other_requests(kind):
    """It is in the second batch after it came; of 100 others that waited before, some 90 still do."""
    order = []

    async def work(batcher):
        async def ask(name, n, modality):
            await batcher.embed(images(n, 0), [modality] * n)
            order.append((name, batcher.waiting))

        many = [asyncio.ensure_future(ask("many", 50, DAY)) for _ in range(2)]
        await asyncio.sleep(0.01)
        await ask("one", 1, kind)
        await asyncio.gather(*many)

    run(work, lambda *given: time.sleep(0.02) or embed(*given), batch=4)
    assert order[0][0] == "one"
    assert order[0][1] >= 80


def test_a_batch_is_as_large_as_the_network_is_quick():
    sizes = []

    async def work(batcher):
        await batcher.embed(images(2, 0), [DAY] * 2)
        await batcher.embed(images(30, 0), [DAY] * 30)

    run(
        work, lambda *given: time.sleep(len(given[0]) * BATCH_SECONDS / 5) or embed(*given), seen=sizes.append
    )
    assert sizes[0] == 2
    assert sum(sizes) == 32
    assert max(sizes) <= 5
