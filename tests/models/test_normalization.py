"""Lengths, centring and fusion that keep the method alive: FeatureNorm, Generator, Discriminator, Fusion."""

import pytest
import torch
import torch.nn.functional as F

from fmcnet.config import ModelConfig
from fmcnet.losses.functional import centers, decomposition_loss
from fmcnet.models.build import build_model
from fmcnet.models.compensation import Discriminator, Generator
from fmcnet.models.decomposition import IdentityClassifier
from fmcnet.models.fusion import Fusion
from fmcnet.models.normalization import FeatureNorm
from fmcnet.types import Modality

VIS, INF = Modality.VISIBLE, Modality.INFRARED


def clouds(dim=16, rows=64):
    """Features of two modalities with means far apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, dim, generator=generator)
    return x[0] + 3.0, x[1] - 2.0


def test_statistics_of_each_modality_erase_what_tells_them_apart():
    visible, infrared = clouds()
    norm = FeatureNorm(16, length=0.5)
    v, i = norm(visible, VIS), norm(infrared, INF)
    assert torch.allclose(v.norm(dim=1), torch.full((64,), 0.5))
    assert (v.mean(0) - i.mean(0)).norm() < 0.05


def test_an_offset_gives_each_modality_a_mean_of_its_own():
    visible, infrared = clouds()
    norm = FeatureNorm(16, length=2.0, offset=0.8)
    v, i = norm(visible, VIS), norm(infrared, INF)
    assert torch.allclose(i.norm(dim=1), torch.full((64,), 2.0))
    assert (v.mean(0) - i.mean(0)).norm() > 3  # 2 x 2 x 0.8 without the spread of identities


def test_one_modality_is_normalized_by_the_running_statistics():
    norm = FeatureNorm(16)
    for x, modality in zip(clouds(), Modality, strict=True):
        norm.statistics[modality.code].momentum = 1.0
        norm(x, modality)
    norm.eval()
    for x, modality in zip(clouds(), Modality, strict=True):
        centred = (x - x.mean(0)) / x.var(0).add(1e-5).sqrt()
        torch.testing.assert_close(norm(x, modality), F.normalize(centred, dim=1))


def test_the_decomposition_can_be_met_with_an_offset_and_not_without():
    """Eq. (4) on free features, optimised alone: 0 is reached only where specific features have their own mean."""

    def least(offset: float) -> float:
        torch.manual_seed(0)
        raw = [torch.randn(16, 32, requires_grad=True) for _ in range(4)]
        shared, specific = FeatureNorm(32, 0.5), FeatureNorm(32, 10.0, offset)
        optimizer = torch.optim.Adam(raw, lr=0.05)
        for _ in range(500):
            sh = [shared(x, modality) for x, modality in zip(raw[:2], Modality, strict=True)]
            sp = [specific(x, modality) for x, modality in zip(raw[2:], Modality, strict=True)]
            loss = decomposition_loss(*(centers(x, 16) for x in (*sp, *sh)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert least(offset=0.8) < 0.01
    assert least(offset=0.0) > 1


def test_fusion_weights_sum_to_one_and_stay_positive():
    fusion = Fusion(IdentityClassifier(8, 3), softmax=True)
    with torch.no_grad():
        fusion.w1.fill_(1.5)
        fusion.w2.fill_(-2.0)
    own, generated = fusion.weights()
    assert (own + generated).item() == pytest.approx(1)
    assert own.item() == pytest.approx(1 / (1 + torch.tensor(-3.5).exp().item()), rel=1e-5)
    x = torch.randn(3, 5, 4)
    fused = fusion(*x)
    assert torch.allclose(fused, torch.cat([x[0], own * x[1] + generated * x[2]], 1))


def test_a_normalized_fusion_cannot_be_shortened():
    fusion = Fusion(IdentityClassifier(8, 3), length=0.5)
    with torch.no_grad():
        fusion.w1.fill_(1e-3)
        fusion.w2.fill_(1e-3)
    fused = fusion(*torch.randn(3, 5, 4))[:, 4:]
    assert torch.allclose(fused.norm(dim=1), torch.full((5,), 0.5))


def test_a_residual_generator_gives_different_features_to_different_people():
    torch.manual_seed(0)
    shared = 0.5 * F.normalize(torch.randn(64, 256), dim=1)

    def cosine(generator: Generator) -> float:
        made = generator(shared)
        unit = F.normalize(made, dim=1)
        return (unit @ unit.T)[~torch.eye(64, dtype=torch.bool)].mean().item()

    plain, residual = Generator(256, length=2.0), Generator(256, length=2.0, input_scale=32.0, residual=True)
    assert torch.allclose(residual(shared).norm(dim=1), torch.full((64,), 2.0))
    assert cosine(plain) > 0.9
    assert cosine(residual) < 0.2


def test_a_bounded_discriminator_keeps_unit_weight_and_bounded_logits():
    judge = Discriminator(32, input_scale=3.0, unit_weight=True)
    assert judge.linear.weight.norm().item() == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        judge.linear.weight.mul_(100)
    judge.renormalize()
    feature = 2 * F.normalize(torch.randn(1000, 32), dim=1)
    assert (judge(feature) - judge.linear.bias).abs().max() <= 6 + 1e-5
    assert torch.equal(judge(feature), judge.as_constant(feature))
    assert not judge.as_constant(feature).requires_grad


def test_the_bound_holds_in_any_loop():
    """However the stored weight grows: no loop needs to call `renormalize` for it."""
    torch.manual_seed(0)
    judge = Discriminator(32, input_scale=3.0, unit_weight=True)
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.1)
    feature = 2 * F.normalize(torch.randn(1000, 32) + 0.5, dim=1)
    for _ in range(50):
        optimizer.zero_grad()
        F.softplus(-judge(feature)).mean().backward()
        optimizer.step()
    assert judge.linear.weight.norm() > 2
    for logits in (judge(feature), judge.as_constant(feature)):
        bounded = (logits - judge.linear.bias).abs()
        assert 3 < bounded.max() <= 6 + 1e-5
    stored = judge.linear.weight.detach().clone()
    judge.renormalize()
    torch.testing.assert_close(judge.linear.weight, F.normalize(stored, dim=1))


@pytest.mark.parametrize("dim", [8, 512, 2048])
def test_a_weight_of_unit_length_is_used_as_it_is(dim):
    """So a training that calls `renormalize` after each step has the bits of earlier versions."""
    for seed in range(20):
        torch.manual_seed(seed)
        judge, feature = Discriminator(dim, unit_weight=True), torch.randn(16, dim)
        weight, bias = (p.detach().clone().requires_grad_() for p in judge.linear.parameters())
        logits = F.linear(feature, weight, bias).squeeze(1)
        assert torch.equal(judge(feature), logits)
        F.softplus(logits).mean().backward()
        F.softplus(judge(feature)).mean().backward()
        assert torch.equal(judge.linear.weight.grad, weight.grad)


@pytest.mark.parametrize(("normalization", "bounded"), [("modality", True), ("tail", False), ("none", False)])
def test_the_bound_is_for_features_of_known_length(normalization, bounded):
    config = ModelConfig(arch="resnet18", width=8, normalization=normalization, discriminator_bound=6.0)
    judge = build_model(config, 4).compensation.judge_infrared
    assert judge.unit_weight is bounded


def test_the_whole_model_has_the_lengths_it_is_given():
    config = ModelConfig(
        arch="resnet18",
        width=8,
        normalization="modality",
        shared_length=0.5,
        specific_length=4.0,
        specific_offset=0.9,
        fusion="softmax",
        fusion_normalize=True,
        generator_residual=True,
        discriminator_bound=6.0,
    )
    torch.manual_seed(0)
    model = build_model(config, 5)
    out = model(*torch.rand(2, 8, 3, 64, 32))
    for half in out:
        for feature, length in ((half.shared, 0.5), (half.specific, 4.0), (half.generated, 4.0)):
            assert torch.allclose(feature.norm(dim=1), torch.full((8,), length), atol=1e-4)
        assert torch.allclose(half.fused[:, 64:].norm(dim=1), torch.full((8,), 0.5), atol=1e-4)
    model.eval()
    images = torch.rand(2, 4, 3, 64, 32)
    both = model(images[0], images[1])
    for half, modality, x in ((both.visible, VIS, images[0]), (both.infrared, INF, images[1])):
        torch.testing.assert_close(model.embed(x, modality), half.embedding)
