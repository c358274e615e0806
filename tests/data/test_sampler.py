from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcnet.data.loader import IdentityModalitySampler
from fmcnet.errors import DataError


def made(counts: list[tuple[int, int]], shuffle: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Identity and modality of each row, for (visible, infrared) images of each identity, rows shuffled."""
    pids = np.repeat(np.arange(len(counts)) * 3 + 1, [v + i for v, i in counts])
    modality = np.concatenate([np.repeat([0, 1], pair) for pair in counts])
    order = np.random.default_rng(shuffle).permutation(len(pids))
    return pids[order], modality[order]


counts = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=12)


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**40), st.integers(0, 5))
def test_halves_are_aligned_and_of_their_modality(
    counts: list[tuple[int, int]], p: int, k: int, seed: int, epoch: int
) -> None:
    pids, modality = made(counts)
    sampler = IdentityModalitySampler(pids, modality, identities=p, images=k, seed=seed)
    batches = list(sampler.batches(epoch))
    assert len(batches) == len(sampler) == ceil(max((modality == 0).sum(), (modality == 1).sum()) / (p * k))
    for visible, infrared in batches:
        assert visible.shape == infrared.shape == (p * k,)
        np.testing.assert_array_equal(pids[visible], pids[infrared])
        assert not modality[visible].any()
        assert modality[infrared].all()
        groups = pids[visible].reshape(p, k)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == p
        for half, m in ((visible, 0), (infrared, 1)):
            for own in half.reshape(p, k):
                there = ((pids == pids[own[0]]) & (modality == m)).sum()
                assert len(set(own)) == min(k, there)


@settings(max_examples=25, deadline=None)
@given(counts, st.integers(0, 1000), st.integers(0, 5), st.integers(0, 3))
def test_same_seed_same_batches_and_any_step_can_be_resumed(
    counts: list[tuple[int, int]], seed: int, epoch: int, start: int
) -> None:
    pids, modality = made(counts)
    first = list(IdentityModalitySampler(pids, modality, identities=2, images=2, seed=seed).batches(epoch))
    other = IdentityModalitySampler(pids, modality, identities=2, images=2, seed=seed)
    list(other.batches(epoch + 1))  # what was drawn before does not matter
    again = list(other.batches(epoch, start))
    np.testing.assert_array_equal(
        np.array(first[start:]), np.array(again).reshape(np.array(first[start:]).shape)
    )


@settings(max_examples=25, deadline=None)
@given(counts, st.integers(0, 1000))
def test_ranks_are_disjoint_parts_of_one_global_draw(counts: list[tuple[int, int]], seed: int) -> None:
    pids, modality = made(counts)
    whole = IdentityModalitySampler(pids, modality, identities=4, images=2, seed=seed)
    ranks = [
        IdentityModalitySampler(pids, modality, identities=2, images=2, seed=seed, rank=r, world=2)
        for r in (0, 1)
    ]
    assert ranks[0].steps == ranks[1].steps == whole.steps
    for batch, *parts in zip(whole.batches(3), *(r.batches(3) for r in ranks), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), np.array(batch))
        assert not set(pids[parts[0][0]]) & set(pids[parts[1][0]])


def test_seeds_and_epochs_differ() -> None:
    pids, modality = made([(8, 8)] * 8)
    sampler = IdentityModalitySampler(pids, modality, identities=4, images=4)
    other = IdentityModalitySampler(pids, modality, identities=4, images=4, seed=1)
    draws = {next(sampler.batches(0))[0].tobytes(), next(sampler.batches(1))[0].tobytes()}
    assert len(draws | {next(other.batches(0))[0].tobytes()}) == 3


def test_identities_and_images_appear_about_equally_often() -> None:
    pids, modality = made([(20, 6), (5, 9), (11, 8), (7, 7), (13, 10)])
    sampler = IdentityModalitySampler(pids, modality, identities=3, images=2, steps=50)
    batches = list(sampler.batches(0))
    seen = np.unique(np.concatenate([pids[v][::2] for v, _ in batches]), return_counts=True)[1]
    assert seen.max() - seen.min() <= 1
    rows = np.concatenate([v for v, _ in batches])
    for pid in np.unique(pids):
        own = np.flatnonzero((pids == pid) & (modality == 0))
        drawn = np.bincount(rows, minlength=len(pids))[own]
        assert drawn.max() - drawn.min() <= 1


def test_the_default_epoch_covers_equal_identities_entirely() -> None:
    pids, modality = made([(8, 4)] * 6)
    sampler = IdentityModalitySampler(pids, modality, identities=3, images=4)
    assert sampler.steps == 4
    rows = np.concatenate([v for v, _ in sampler.batches(0)])
    assert set(rows) == set(np.flatnonzero(modality == 0))


def test_few_images_and_missing_modalities_are_said() -> None:
    pids, modality = made([(2, 5), (5, 5), (5, 0), (0, 4), (4, 4)])
    sampler = IdentityModalitySampler(pids, modality, identities=3, images=4)
    assert sampler.pids == [1, 4, 13]
    assert sampler.notes == (
        "2 identities lack a modality and are left out of the batches",
        "1 of 3 identities have fewer than 4 visible images: theirs are repeated within a batch",
    )
    assert set(pids[np.concatenate([v for v, _ in sampler.batches(0)])]) <= {1, 4, 13}


def test_too_few_identities_name_the_option() -> None:
    pids, modality = made([(4, 4)] * 5)
    with pytest.raises(
        DataError, match=r"needs 8 identities, but only 5 of those.*data\.identities\) to 5 or less"
    ):
        IdentityModalitySampler(pids, modality)
    with pytest.raises(DataError, match=r"needs 3 identities x 2 processes.* to 2 or less"):
        IdentityModalitySampler(pids, modality, identities=3, world=2)


@pytest.mark.parametrize(
    "options", [{"identities": 0}, {"images": 0}, {"steps": 0}, {"rank": 1}, {"rank": -1}], ids=str
)
def test_arguments_out_of_range(options: dict[str, int]) -> None:
    pids, modality = made([(4, 4)] * 5)
    with pytest.raises(DataError):
        IdentityModalitySampler(pids, modality, **{"identities": 2, **options})


def test_an_epoch_too_long_to_draw_names_the_settings() -> None:
    pids, modality = made([(4, 4)] * 5)
    assert IdentityModalitySampler(pids, modality, identities=2, steps=100_000).steps == 100_000
    with pytest.raises(
        DataError, match=r"epoch of 3,000,000 batches .* at most 100,000 .* and more training\.epochs"
    ):
        IdentityModalitySampler(pids, modality, identities=2, steps=3_000_000)


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="one identity and one modality a row"):
        IdentityModalitySampler(np.arange(3), np.zeros(4, dtype=np.uint8))


def test_a_batch_sampler_numbers_its_batches_and_positions() -> None:
    """Over two ranks the positions of a modality are those in the batch of both."""
    pids, modality = made([(4, 4)] * 8)
    for rank in (0, 1):
        sampler = IdentityModalitySampler(pids, modality, identities=2, images=2, steps=3, rank=rank, world=2)
        sampler.set_epoch(2, start=1)
        assert len(sampler) == 2
        batches = list(sampler)
        assert [{index.batch for index in batch} for batch in batches] == [{7}, {8}]
        for batch, halves in zip(batches, sampler.batches(2, 1), strict=True):
            assert [index.row for index in batch] == np.concatenate(halves).tolist()
            assert [index.position for index in batch] == [4 * rank + i for i in range(4)] * 2


@pytest.mark.parametrize(("modality", "shown"), [([1, 2], "2"), (["visible", "infrared"], "'infrared'")])
def test_modalities_are_0_and_1(modality, shown):
    with pytest.raises(
        DataError, match=rf"modality is 0 \(visible\) or 1 \(infrared\) in each row, got {shown}"
    ):
        IdentityModalitySampler([0, 0], modality, identities=1)
