"""Batches: any DataLoader yields those of the training, from any batch on, by one process or two."""

from __future__ import annotations

import textwrap
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fmcnet.config import AugmentConfig
from fmcnet.data import loader
from fmcnet.data.augmentation import augment_image, draw_params
from fmcnet.data.loader import IdentityModalitySampler, TrainingImages, collate, load_batches
from fmcnet.distributed import seeded_generator
from fmcnet.errors import DataError
from fmcnet.types import Modality

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(pad=2, erase=0.5, channel="mix")
PIDS = np.repeat(np.arange(8), 10)
KIND = np.tile(np.repeat([0, 1], 5), 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (len(PIDS), 12, 6, 3), dtype=np.uint8)


def sampler(identities=4, steps=3, **options):
    return IdentityModalitySampler(PIDS, KIND, identities=identities, images=2, steps=steps, **options)


def dataset():
    return TrainingImages(IMAGES, PIDS, KIND, AUGMENT, seed=5, draws=8)


def batches(source=None, first=0, last=7, device=CPU):
    return load_batches(dataset(), source or sampler(), device, first, last)


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("first", [0, 2, 3, 6])
def test_batches_are_what_sampler_and_augmentation_say(first):
    """Every batch again by itself, from its number alone."""
    for number, batch in zip(range(first, 7), batches(first=first), strict=True):
        rows = list(sampler().batches(number // 3))[number % 3]
        for half, own, modality in zip(batch[:2], rows, Modality, strict=True):
            generator = seeded_generator(CPU, 5, number, modality.code)
            params = draw_params(8, 12, 6, modality, AUGMENT, generator)
            images = [augment_image(IMAGES[row], params, i, 2) for i, row in enumerate(own)]
            assert np.array_equal(half.permute(0, 2, 3, 1).numpy(), np.stack(images))
            assert half.dtype == torch.uint8
        assert batch.labels.tolist() == PIDS[rows[0]].tolist() == PIDS[rows[1]].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_any_data_loader_yields_the_batches_of_the_training(workers):
    source, found = sampler(), []
    loader = DataLoader(dataset(), batch_sampler=source, collate_fn=collate, num_workers=workers)
    for epoch in (0, 1):
        source.set_epoch(epoch)
        assert len(loader) == 3
        found += list(loader)
    assert_same(batches(last=6), found)


def test_the_default_collation_stacks_the_same_images():
    loader = DataLoader(dataset(), batch_sampler=sampler())
    for (images, labels), batch in zip(loader, batches(last=3), strict=True):
        assert torch.equal(images, torch.cat(batch[:2]))
        assert torch.equal(labels, batch.labels.repeat(2))


def test_two_processes_share_the_batches_of_one_augmentation_included():
    parts = [batches(sampler(2, rank=rank, world=2)) for rank in (0, 1)]
    together = [[torch.cat(pair) for pair in zip(*both, strict=True)] for both in zip(*parts, strict=True)]
    assert_same(batches(), together)


def test_loading_draws_no_random_numbers_of_the_training():
    before = torch.get_rng_state()
    list(batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mistake_in_the_sampler_comes_after_the_batches_before_it():
    class Breaking(IdentityModalitySampler):
        def plan(self, epoch):
            if epoch == 1:
                raise ZeroDivisionError("no such epoch")
            return super().plan(epoch)

    stream = batches(Breaking(PIDS, KIND, identities=4, images=2, steps=3))
    assert_same(islice(batches(), 3), islice(stream, 3))
    with pytest.raises(ZeroDivisionError, match="no such epoch"):
        next(stream)


def test_a_loader_without_the_sampler_is_told_what_it_needs():
    images = dataset()
    message = "not 0: give the DataLoader an IdentityModalitySampler as batch_sampler"
    with pytest.raises(DataError, match=message):
        images[0]
    with pytest.raises(DataError, match="IdentityModalitySampler as batch_sampler"):
        next(iter(DataLoader(images, batch_size=4, shuffle=True)))
    with pytest.raises(DataError, match=r"more than draws=8 images of a modality: give draws=P\*K\*world"):
        next(iter(DataLoader(images, batch_sampler=sampler(identities=5), collate_fn=collate)))


def test_the_recipe_of_the_docstring_runs():
    """On identities enough for it, and its epochs differ."""
    code = textwrap.dedent(loader.__doc__.split("\n\n")[1]).replace("...", "seen.append(batch)")
    pids = np.repeat(np.arange(8), 10)
    table, cache = SimpleNamespace(modality=KIND), SimpleNamespace(images=IMAGES)
    seen, config = [], SimpleNamespace(augment=AUGMENT)
    names = {"labels": pids, "table": table, "cache": cache, "config": config, "epochs": 2, "seen": seen}
    exec(code, {**vars(loader), **names})
    first, second = (seen[: len(seen) // 2], seen[len(seen) // 2 :])
    assert len(first) == len(second) > 0
    assert not torch.equal(first[0].labels, second[0].labels)
