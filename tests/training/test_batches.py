"""Batches in order: the same with and without a thread, by one process or two; nothing runs ahead or is left over."""

from __future__ import annotations

import threading
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from fmcnet.config import AugmentConfig
from fmcnet.data.samplers import IdentityModalitySampler
from fmcnet.data.transforms import augment
from fmcnet.runtime import Runtime, seeded_generator
from fmcnet.training.batches import Batches
from fmcnet.types import Modality

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(pad=2, erase=0.5, channel="mix")
PIDS = np.repeat(np.arange(8), 10)
KIND = np.tile(np.repeat([0, 1], 5), 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (len(PIDS), 12, 6, 3), dtype=np.uint8)


def sampler(identities=4, steps=3, **options):
    return IdentityModalitySampler(PIDS, KIND, identities=identities, images=2, steps=steps, **options)


def batches(source=None, first=0, last=7, place=Runtime(CPU), **options):
    return Batches(
        IMAGES, PIDS, source or sampler(), AUGMENT, 5, place, first=first, last=last, **options
    )  # fmt: skip


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def ours():
    return [thread for thread in threading.enumerate() if thread.name == "fmcnet-batches"]


@pytest.mark.parametrize("first", [0, 2, 3, 6])
@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_are_what_sampler_and_augmentation_say(first, ahead):
    """Every batch again by itself, from its number alone."""
    with batches(first=first, ahead=ahead) as made:
        for number, batch in zip(range(first, 7), made, strict=True):
            rows = list(sampler().batches(number // 3))[number % 3]
            for half, own, modality in zip(batch[:2], rows, Modality, strict=True):
                generator = seeded_generator(CPU, 5, number, modality.code)
                images = torch.from_numpy(IMAGES[own]).permute(0, 3, 1, 2)
                assert torch.equal(half, augment(images, modality, AUGMENT, generator))
                assert half.dtype == torch.uint8
            assert batch.labels.tolist() == PIDS[rows[0]].tolist() == PIDS[rows[1]].tolist()
    assert not ours()


def test_two_processes_share_the_batches_of_one_augmentation_included():
    parts = [
        list(batches(sampler(2, rank=rank, world=2), place=Runtime(CPU, rank, 2))) for rank in (0, 1)
    ]  # fmt: skip
    together = [[torch.cat(pair) for pair in zip(*both, strict=True)] for both in zip(*parts, strict=True)]
    assert_same(batches(), together)


def test_a_mistake_in_the_thread_is_told_after_the_batches_before_it():
    class Breaking(IdentityModalitySampler):
        def plan(self, epoch):
            if epoch == 1:
                raise ZeroDivisionError("no such epoch")
            return super().plan(epoch)

    broken = Breaking(PIDS, KIND, identities=4, images=2, steps=3)
    with batches(broken, ahead=2) as made:
        stream = iter(made)
        assert_same(islice(batches(), 3), islice(stream, 3))
        with pytest.raises(ZeroDivisionError, match="no such epoch"):
            next(stream)
        with pytest.raises(RuntimeError, match="closed"):  # and does not wait for ever
            next(iter(made))
    assert not ours()


@pytest.mark.parametrize("hard", [0.0, 0.5])
@pytest.mark.parametrize("taken", [1, 3])
def test_leaving_early_ends_the_thread(hard, taken):
    """It waits, then, for room in the queue, or for the next epoch to begin."""
    with batches(sampler(hard=hard), ahead=2) as made:
        stream = iter(made)
        assert len(list(islice(stream, taken))) == taken
        assert len(ours()) == 1
    assert not ours()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def test_the_thread_does_not_plan_an_epoch_that_has_not_begun():
    """Look-alikes that are set between two epochs count from the very next batch, however far ahead it works."""
    near = np.stack([np.roll(np.arange(8), -shift) for shift in (1, 2, 3)], axis=1)

    def drawn(ahead, first=0):
        source = sampler(hard=0.5)
        got = []
        with batches(source, first=first, ahead=ahead) as made:
            stream = iter(made)
            for number in range(first, 7):
                if number % 3 == 0 and number:
                    source.neighbors = near if number == 3 else near[:, ::-1].copy()
                got.append(next(stream))
        return got

    assert_same(drawn(0), drawn(2))
    assert_same(drawn(0)[3:], drawn(2, first=3))
    plain = list(batches(sampler()))
    assert_same(drawn(2)[:3], plain[:3])
    assert not torch.equal(drawn(2)[3].labels, plain[3].labels)


def test_the_time_spent_on_data_is_counted():
    made = batches()
    spent = [made.waited for _ in made]
    assert spent[0] > 0
    assert all(a < b for a, b in pairwise(spent))
