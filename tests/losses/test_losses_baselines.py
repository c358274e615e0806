"""The baselines' losses against slow loops, at any scale, and their gradients."""

from __future__ import annotations

import pytest
import torch

from fmcnet.losses import baselines
from tests.losses.test_losses import center_sets, close, dtype, features, shape  # noqa: F401 (fixtures)
from tests.reference import losses_slow as slow


@pytest.mark.parametrize("scale", [0.5, 20.0])
def test_weighted_regularised_triplet(shape, dtype, scale):  # noqa: F811
    p, k, d = shape
    both = torch.cat(features(p, k, d, count=2, scale=scale)).to(dtype)
    labels = torch.arange(p).repeat_interleave(k).repeat(2)
    expected = slow.weighted_triplet(both.double().tolist(), labels.tolist())
    close(baselines.weighted_regularized_triplet_loss(both, labels), expected, dtype)


def test_weighted_triplet_of_huge_features_keeps_its_nearest_negative():
    """Distances near 1e4: weights taken without the row's own maximum would all underflow to 0."""
    x = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 1e4).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    loss = baselines.weighted_regularized_triplet_loss(x, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert float(loss.detach()) == pytest.approx(
        slow.weighted_triplet(x.detach().tolist(), labels.tolist()), rel=1e-4
    )


def test_weighted_triplet_without_negatives_or_positives_is_zero_and_has_a_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    for labels in (torch.zeros(4, dtype=torch.long), torch.arange(4)):
        loss = baselines.weighted_regularized_triplet_loss(x, labels)
        loss.backward()
        assert float(loss.detach()) == 0


def test_hetero_centre(shape, dtype):  # noqa: F811
    c, lists = center_sets(shape, dtype, 2)
    close(baselines.hetero_center_loss(*c), slow.hetero_centre(*lists), dtype)


@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0])
def test_hetero_centre_triplet(shape, dtype, margin):  # noqa: F811
    c, lists = center_sets(shape, dtype, 2)
    close(baselines.hetero_center_triplet_loss(*c, margin), slow.hetero_centre_triplet(*lists, margin), dtype)


def test_symmetric_under_exchange_of_the_modalities():
    v, i = features(4, 1, 5, count=2)
    for loss in (baselines.hetero_center_loss, baselines.hetero_center_triplet_loss):
        assert float(loss(v, i)) == pytest.approx(float(loss(i, v)))


def test_gradients_against_finite_differences():
    v, i = (x.requires_grad_() for x in features(4, 1, 3, count=2))
    labels = torch.tensor([0, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda x: baselines.weighted_regularized_triplet_loss(x, labels), v)
    assert torch.autograd.gradcheck(baselines.hetero_center_loss, (v, i))
    assert torch.autograd.gradcheck(lambda a, b: baselines.hetero_center_triplet_loss(a, b, 3.0), (v, i))
