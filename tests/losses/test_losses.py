"""Every equation against a slow loop written from the paper, its gradient, and its symmetry."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcnet.losses import baselines
from fmcnet.losses import functional as losses
from tests.reference import losses_slow as slow

SHAPES = [(1, 1, 3), (2, 1, 4), (3, 2, 5), (8, 4, 16)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def features(p, k, d, *, count, dtype=torch.float64, scale=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * p + 100 * k + d)
    return [
        (torch.randn(p * k, d, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for _ in range(count)
    ]


def close(fast, expected, dtype):
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-5}[dtype]
    assert float(fast) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def center_sets(shape, dtype, count):
    """Centres (P, D) of the dtype, and the same numbers as lists."""
    p, k, d = shape
    made = [losses.centers(f, p).to(dtype) for f in features(p, k, d, count=count)]
    return made, [c.double().tolist() for c in made]


def test_equation_3_centres(shape):
    p, k, d = shape
    (f,) = features(p, k, d, count=1)
    assert torch.allclose(
        losses.centers(f, p), torch.tensor(slow.centres(f.tolist(), p), dtype=torch.float64)
    )


def test_equation_3_refuses_ragged_identities():
    with pytest.raises(ValueError, match="5 features cannot be 2 identities"):
        losses.centers(torch.zeros(5, 3), 2)


@pytest.mark.parametrize("margin", [0.0, 0.7, 1.0, 4.0])
def test_equation_4(shape, dtype, margin):
    c, lists = center_sets(shape, dtype, 4)
    close(losses.decomposition_loss(*c, margin=margin), slow.equation_4(*lists, margin), dtype)


@pytest.mark.parametrize("margin", [0.0, 0.7, 4.0])
def test_equation_5(shape, dtype, margin):
    c, lists = center_sets(shape, dtype, 2)
    close(losses.specific_separation_loss(*c, margin=margin), slow.equation_5(*lists, margin), dtype)


@pytest.mark.parametrize(("weight", "margin"), [(2.0, 0.7), (0.0, 3.0), (1.5, 0.0), (2.0, 5.0)])
def test_equations_6_and_17(shape, dtype, weight, margin):
    c, lists = center_sets(shape, dtype, 2)
    fast = losses.cross_modality_center_loss(*c, weight=weight, margin=margin)
    close(fast, slow.equation_6(*lists, weight, margin), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equations_8_14_and_18(dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 5, generator=generator, dtype=torch.float64).to(dtype) * 3
    labels = torch.randint(0, 5, (12,), generator=generator)
    expected = slow.cross_entropy(scores.double().tolist(), labels.tolist())
    close(losses.identity_loss(scores, labels), expected, dtype)


def test_label_smoothing_mixes_with_the_uniform_distribution():
    scores = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    every = [slow.cross_entropy(scores.tolist(), [c] * 6) for c in range(4)]
    expected = 0.9 * slow.cross_entropy(scores.tolist(), labels.tolist()) + 0.1 * sum(every) / 4
    assert float(losses.identity_loss(scores, labels, 0.1)) == pytest.approx(expected)


def test_equation_12():
    generator = torch.Generator().manual_seed(2)
    real, fake = torch.randn(2, 10, generator=generator, dtype=torch.float64) * 2
    expected = slow.equation_12(real.tolist(), fake.tolist())
    assert float(losses.adversarial_value(real, fake)) == pytest.approx(expected)
    d_fake = [slow.sigmoid(z) for z in fake.tolist()]
    saturating = sum(math.log(1 - d) for d in d_fake) / 10
    assert float(losses.generator_loss(fake, saturating=True)) == pytest.approx(saturating)
    assert float(losses.generator_loss(fake, saturating=False)) == pytest.approx(
        -sum(math.log(d) for d in d_fake) / 10
    )


@pytest.mark.parametrize("logit", [-1e4, -200.0, 0.0, 200.0, 1e4])
@pytest.mark.parametrize("saturating", [True, False])
def test_equation_12_is_finite_for_any_logit(logit, saturating):
    z = torch.full((3,), logit, requires_grad=True)
    value = losses.adversarial_value(z, z) + losses.generator_loss(z, saturating)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


def test_the_two_generator_losses_share_direction_but_not_strength():
    """Against a winning discriminator the saturating gradient vanishes, the other does not."""
    z = torch.tensor([-8.0], requires_grad=True)
    (saturating,) = torch.autograd.grad(losses.generator_loss(z, True), z)
    (other,) = torch.autograd.grad(losses.generator_loss(z, False), z)
    assert saturating < 0
    assert other < 0
    assert abs(saturating) < 1e-3 < 0.9 < abs(other)


def test_equation_13(shape):
    p, k, d = shape
    generated, specific = features(p, k, d, count=2)
    fast = losses.feature_consistency_loss(generated, losses.centers(specific, p))
    assert float(fast) == pytest.approx(slow.equation_13(generated.tolist(), specific.tolist(), p))


HALF_LOSSES = {
    "3": (lambda f: losses.centers(f, 2).sum(), [(8, 2048)]),
    "4": (losses.decomposition_loss, [(2, 2048)] * 4),
    "5": (losses.specific_separation_loss, [(2, 2048)] * 2),
    "6": (losses.cross_modality_center_loss, [(2, 2048)] * 2),
    "8": (lambda scores: losses.identity_loss(scores, torch.arange(8)), [(8, 9)]),
    "12": (losses.adversarial_value, [(8,)] * 2),
    "12 G": (losses.generator_loss, [(8,)]),
    "12 G, not saturating": (lambda fake: losses.generator_loss(fake, saturating=False), [(8,)]),
    "13": (losses.feature_consistency_loss, [(8, 2048), (2, 2048)]),
    "wrt": (
        lambda f: baselines.weighted_regularized_triplet_loss(f, torch.tensor([0, 0, 1, 1])),
        [(4, 2048)],
    ),
    "hc": (baselines.hetero_center_loss, [(2, 2048)] * 2),
    "hc triplet": (baselines.hetero_center_triplet_loss, [(2, 2048)] * 2),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALF_LOSSES)
def test_half_precision_is_lifted(name, half, autocast):
    """A sum over 2,048 differences of 40, or a logarithm of a small sigmoid, is beyond float16."""
    loss, shapes = HALF_LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [(80 * torch.rand(shape, generator=generator)).to(half) for shape in shapes]
    with torch.autocast("cpu", half, enabled=autocast):
        found = loss(*inputs)
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert torch.equal(found, loss(*(x.float() for x in inputs)))


def test_shapes_that_pytorch_would_broadcast_are_refused():
    two, one = torch.zeros(2, 3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"one shape \(P, D\), got \(2, 3\) and \(2, 3\) and \(1, 3\)"):
        losses.decomposition_loss(two, two, one, two)
    with pytest.raises(ValueError, match=r"one shape"):
        losses.specific_separation_loss(two, one)
    with pytest.raises(ValueError, match=r"centres \(P, D\), got \(4, 3\) and \(2, 1\)"):
        losses.feature_consistency_loss(torch.zeros(4, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(2, 3\)"):
        losses.feature_consistency_loss(torch.zeros(5, 3), two)
    none = torch.zeros(0, 3)
    with pytest.raises(ValueError, match=r"one shape \(P, D\), got \(0, 3\)"):
        losses.decomposition_loss(none, none, none, none)
    with pytest.raises(ValueError, match=r"0 features cannot be 2 identities"):
        losses.centers(none, 2)


def test_labels_are_integers_of_any_width():
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = losses.identity_loss(scores, torch.tensor([0, 2, 1, 0]))
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(losses.identity_loss(scores, torch.tensor([0, 2, 1, 0], dtype=dtype)), expected)
    for wrong, told in ((torch.tensor([0.0, 2, 1, 0]), "torch.float32"), ([0, 2, 1, 0], "list")):
        for loss in (losses.identity_loss, baselines.weighted_regularized_triplet_loss):
            with pytest.raises(ValueError, match=f"labels are a tensor of integers 0 to C - 1, got {told}"):
                loss(scores, wrong)
    for outside in (-100, 3):
        with pytest.raises(IndexError, match=f"Target {outside} is out of bounds"):
            losses.identity_loss(scores, torch.tensor([0, 2, outside, 0]))


def test_gradients_against_finite_differences():
    c = [x.requires_grad_() for x in features(4, 1, 3, count=4)]
    assert torch.autograd.gradcheck(lambda *x: losses.decomposition_loss(*x, margin=1.0), c)
    assert torch.autograd.gradcheck(lambda *x: losses.specific_separation_loss(*x, margin=3.0), c[:2])
    assert torch.autograd.gradcheck(lambda *x: losses.cross_modality_center_loss(*x, margin=3.0), c[:2])
    assert torch.autograd.gradcheck(
        losses.feature_consistency_loss, (c[0], c[1][:2].detach().requires_grad_())
    )
    z = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.adversarial_value(x[0], x[1]), z)
    labels = torch.tensor([1, 4])
    assert torch.autograd.gradcheck(lambda x: losses.identity_loss(x, labels), z)


def test_gradients_are_finite_where_centres_coincide():
    same = torch.ones(3, 4, requires_grad=True)
    loss = losses.cross_modality_center_loss(same, same) + losses.specific_separation_loss(same, same)
    (loss + losses.decomposition_loss(same, same, same, same)).backward()
    assert torch.isfinite(same.grad).all()


def test_gradient_flows_into_both_arguments():
    c = [x.requires_grad_() for x in features(3, 1, 4, count=2)]
    losses.cross_modality_center_loss(*c).backward()
    assert all(x.grad.abs().sum() > 0 for x in c)


@settings(max_examples=30, deadline=None)
@given(p=st.integers(1, 6), d=st.integers(1, 8), seed=st.integers(0, 999))
def test_symmetric_under_exchange_of_the_modalities(p, d, seed):
    sp_v, sp_i, sh_v, sh_i = features(p, 1, d, count=4, seed=seed)
    same = [
        (
            losses.decomposition_loss(sp_v, sp_i, sh_v, sh_i),
            losses.decomposition_loss(sp_i, sp_v, sh_i, sh_v),
        ),
        (losses.specific_separation_loss(sp_v, sp_i), losses.specific_separation_loss(sp_i, sp_v)),
        (losses.cross_modality_center_loss(sh_v, sh_i), losses.cross_modality_center_loss(sh_i, sh_v)),
    ]
    for a, b in same:
        assert float(a) == pytest.approx(float(b), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(p=st.integers(2, 6), seed=st.integers(0, 999))
def test_the_order_of_identities_does_not_matter(p, seed):
    c = features(p, 1, 5, count=4, seed=seed)
    order = torch.randperm(p, generator=torch.Generator().manual_seed(seed))
    shuffled = [x[order] for x in c]
    for loss, count in (
        (losses.decomposition_loss, 4),
        (losses.specific_separation_loss, 2),
        (losses.cross_modality_center_loss, 2),
    ):
        assert float(loss(*c[:count])) == pytest.approx(float(loss(*shuffled[:count])), abs=1e-10)


def test_what_each_loss_wants():
    """Zero exactly where the paper's sentence is fulfilled, positive where it is not."""
    far = torch.eye(4) * 10
    apart = torch.full((4, 4), 100.0)
    assert losses.specific_separation_loss(far, far) == 0
    assert losses.specific_separation_loss(far * 0, far) > 0
    assert losses.cross_modality_center_loss(far, far) == 0
    assert losses.cross_modality_center_loss(far, far.flip(0)) > 0
    assert losses.decomposition_loss(far, far, apart, apart) == 0
    assert losses.decomposition_loss(far, far, far, far) > 0


def test_defaults_are_the_configurations():
    """The numbers have one home."""
    import inspect

    from fmcnet.config import LossConfig
    from fmcnet.losses import baselines

    def defaults(function):
        return {
            name: p.default
            for name, p in inspect.signature(function).parameters.items()
            if p.default is not p.empty
        }

    paper = LossConfig()
    assert defaults(losses.decomposition_loss) == {"margin": paper.rho1}
    assert defaults(losses.specific_separation_loss) == {"margin": paper.rho2}
    assert defaults(losses.cross_modality_center_loss) == {"weight": paper.alpha, "margin": paper.rho3}
    assert (paper.beta, paper.rho4) == (paper.alpha, paper.rho3)
    assert defaults(baselines.hetero_center_triplet_loss) == {"margin": paper.hc_margin}
