"""The composition of the losses, recomputed from features by the slow loops: eq. (7), (10), (12), (14), (19)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fmcnet.config import LossConfig, ModelConfig, load_config
from fmcnet.errors import ConfigError
from fmcnet.losses.criterion import OTHER_TERMS, TERMS, FMCNetLoss
from fmcnet.models.build import build_model
from fmcnet.types import Modality
from tests.reference import losses_slow as slow

P, K = 3, 2


def terms_of(model, output, labels, identities, config, gather=None):
    """The terms by name."""
    return FMCNetLoss(config, identities, model.compensation, gather)(output, labels)[1]


def discriminator_loss(model, output):
    return FMCNetLoss(LossConfig(), P, model.compensation).discriminator_loss(output)


@pytest.fixture(scope="module")
def computed():
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="resnet18", width=8, variant="full", neck=False), 5).double()
    images = torch.rand(2, P * K, 3, 32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 0, 3, 3, 4, 4])
    return model, model(images[0], images[1]), labels


def lists(output):
    return {
        (m, name): getattr(half, name).detach().tolist()
        for m, half in (("v", output.visible), ("i", output.infrared))
        for name in half._fields
        if getattr(half, name) is not None
    }


@pytest.mark.parametrize(
    "config", [LossConfig(), LossConfig(gan=0.3, fc=0.2, ic=0.7, md=0.5, mc=2, alpha=1.5, rho4=3)]
)
def test_the_terms_are_the_papers_sums(computed, config):
    model, output, labels = computed
    f, y = lists(output), labels.tolist()
    c = {key: slow.centres(value, P) for key, value in f.items()}
    ce = slow.cross_entropy
    expected = {
        "id_shared": ce(f["v", "shared_scores"], y) + ce(f["i", "shared_scores"], y),
        "id_specific": ce(f["v", "specific_scores"], y) + ce(f["i", "specific_scores"], y),
        "shs": config.md * slow.equation_6(c["v", "shared"], c["i", "shared"], config.alpha, config.rho3),
        "dc": config.md
        * config.lambda1
        * slow.equation_4(
            c["v", "specific"], c["i", "specific"], c["v", "shared"], c["i", "shared"], config.rho1
        ),
        "sps": config.md
        * config.lambda2
        * slow.equation_5(c["v", "specific"], c["i", "specific"], config.rho2),
        # v's generated feature is infrared: judged by D_{V-I}, drawn to C_sp,I, classified by P_sp^I
        "fc": config.fc
        * (
            slow.equation_13(f["v", "generated"], f["i", "specific"], P)
            + slow.equation_13(f["i", "generated"], f["v", "specific"], P)
        ),
        "ic": config.ic * (ce(f["v", "generated_scores"], y) + ce(f["i", "generated_scores"], y)),
        "mc": config.mc * slow.equation_6(c["v", "fused"], c["i", "fused"], config.beta, config.rho4),
        "id_fused": ce(f["v", "fused_scores"], y) + ce(f["i", "fused_scores"], y),
    }
    judge_i, judge_v = model.compensation.judge_infrared, model.compensation.judge_visible
    fake_i = judge_i(output.visible.generated).tolist()
    fake_v = judge_v(output.infrared.generated).tolist()
    real_i, real_v = judge_i(output.infrared.specific).tolist(), judge_v(output.visible.specific).tolist()
    expected["gan"] = config.gan * sum(
        sum(math.log(1 - slow.sigmoid(z)) for z in fake) / len(fake) for fake in (fake_i, fake_v)
    )
    terms = terms_of(model, output, labels, P, config)
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(expected)
    total, _ = FMCNetLoss(config, P, model.compensation)(output, labels)
    assert float(total.detach()) == pytest.approx(sum(expected.values()), rel=1e-5)
    judged = discriminator_loss(model, output)
    assert float(judged.detach()) == pytest.approx(
        -(slow.equation_12(real_i, fake_i) + slow.equation_12(real_v, fake_v)), rel=1e-5
    )
    assert set(terms) | {"discriminator"} == set(TERMS)


def test_mean_reductions_are_the_sums_divided(computed):
    model, output, labels = computed
    literal = terms_of(model, output, labels, P, LossConfig())
    ours = terms_of(model, output, labels, P, LossConfig(reduction="mean"))
    for name in ("shs", "dc", "sps", "mc"):
        assert float(ours[name].detach()) == pytest.approx(float(literal[name].detach()) / P)
    assert torch.equal(ours["fc"], literal["fc"])


def test_the_whole_objective_is_symmetric_under_exchange_of_the_modalities(computed):
    """Swap the images and every module's two halves: each term stays."""
    model, output, labels = computed
    before = terms_of(model, output, labels, P, LossConfig())
    torch.manual_seed(0)
    swapped = build_model(ModelConfig(arch="resnet18", width=8, variant="full", neck=False), 5).double()
    names = {"visible": "infrared", "infrared": "visible"}
    state = {}
    for key, value in model.state_dict().items():
        for a, b in names.items():
            if f"_{a}" in key:
                key = key.replace(f"_{a}", f"_{b}")
                break
        state[key] = value
    swapped.load_state_dict(state)
    swapped.eval()
    model.eval()
    images = torch.rand(2, P * K, 3, 32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = terms_of(model, model(images[0], images[1]), labels, P, LossConfig())
    after = terms_of(swapped, swapped(images[1], images[0]), labels, P, LossConfig())
    model.train()
    for name in before:
        assert float(before[name].detach()) == pytest.approx(float(after[name].detach())), name


@pytest.mark.parametrize(
    ("variant", "terms"),
    [
        ("base", {"id_shared"}),
        ("sfd", {"id_shared", "id_specific", "shs", "dc", "sps"}),
        ("fmc", {"id_shared", "id_specific", "shs", "dc", "sps", "gan", "fc", "ic"}),
        ("full", set(TERMS) - {"discriminator"}),
    ],
)
def test_each_variant_has_its_own_terms(variant, terms):
    model = build_model(ModelConfig(arch="resnet18", width=8, variant=variant), 3)
    images = torch.rand(2, 6, 3, 32, 16)
    output = model(images[0], images[1])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert set(terms_of(model, output, labels, 3, LossConfig())) == terms
    assert (discriminator_loss(model, output) is not None) == (variant in ("fmc", "full"))


def test_baselines_terms_are_there_only_when_asked_for(computed):
    model, output, labels = computed
    assert not set(terms_of(model, output, labels, P, LossConfig())) & set(OTHER_TERMS)
    f, y = lists(output), labels.tolist()
    v, i = (slow.centres(f[m, "shared"], P) for m in "vi")
    both = f["v", "shared"] + f["i", "shared"]
    expected = {
        "wrt": (0.5 * slow.weighted_triplet(both, y + y), LossConfig(wrt=0.5)),
        "hc": (2 * slow.hetero_centre_triplet(v, i, 1.5), LossConfig(hc=2, hc_margin=1.5)),
    }
    for name, (value, config) in expected.items():
        assert float(terms_of(model, output, labels, P, config)[name].detach()) == pytest.approx(value)
    plain = LossConfig(hc=3, hc_loss="plain", reduction="mean")
    found = terms_of(model, output, labels, P, plain)["hc"]
    assert float(found.detach()) == pytest.approx(slow.hetero_centre(v, i))  # 3 / P is 1


def test_scaled_centres(computed):
    model, output, labels = computed
    config = LossConfig(center_scale=0.25)
    f = lists(output)
    c = {key: [[0.25 * x for x in row] for row in slow.centres(value, P)] for key, value in f.items()}
    terms = {name: float(t.detach()) for name, t in terms_of(model, output, labels, P, config).items()}
    assert terms["mc"] == pytest.approx(slow.equation_6(c["v", "fused"], c["i", "fused"], 2.0, 0.7))
    assert terms["shs"] == pytest.approx(slow.equation_6(c["v", "shared"], c["i", "shared"], 2.0, 0.7))
    assert terms["dc"] == pytest.approx(
        0.5 * slow.equation_4(c["v", "specific"], c["i", "specific"], c["v", "shared"], c["i", "shared"], 1.0)
    )
    assert terms["sps"] == pytest.approx(0.5 * slow.equation_5(c["v", "specific"], c["i", "specific"], 0.7))
    # a scale is the same as other margins, up to a factor
    wider = LossConfig(rho1=4.0, rho2=2.8, rho3=2.8, rho4=2.8)
    same = {name: float(t.detach()) for name, t in terms_of(model, output, labels, P, wider).items()}
    assert all(terms[name] == pytest.approx(0.25 * same[name]) for name in ("mc", "shs", "dc", "sps"))
    assert all(terms[name] == pytest.approx(same[name]) for name in ("fc", "gan", "ic", "id_shared"))


def test_the_loss_owns_no_weights_and_trains_a_model_in_a_plain_loop(computed):
    model, output, labels = computed
    criterion = FMCNetLoss(LossConfig(), P, model.compensation)
    assert not list(criterion.parameters())
    assert not criterion.state_dict()
    loss, terms = criterion(output, labels)
    assert float(loss.detach()) == pytest.approx(sum(float(term.detach()) for term in terms.values()))
    discriminators = {id(parameter) for parameter in model.compensation.discriminator_parameters()}
    grads = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True, allow_unused=True)
    moved = [grad is not None and bool(grad.any()) for grad in grads]
    assert [id(p) in discriminators for p in model.parameters()] == [not found for found in moved]


@pytest.mark.parametrize(
    ("labels", "identities", "said"),
    [
        ([0, 1, 2, 0, 1, 2], P, "identity-major"),
        ([0, 0, 1, 1, 2, 2], 2, "identity-major: 2 identities"),
        ([0, 0, 1, 1, 2, 2], 6, "identity-major: 6 identities"),
        ([0, 0, 1, 1, 0, 0], P, "identity-major"),
        ([0, 0, 1, 1, -100, -100], P, "0 to C - 1 = 4, got -100"),
        ([0, 0, 1, 1, 5, 5], P, "0 to C - 1 = 4, got 5"),
        ([0, 0, 1, 1, 2, 2] * 2, P, r"of one half, \(6,\), the same for both; got \(12,\)"),
        ([[0, 0], [1, 1], [2, 2]], P, r"of one half, \(6,\), the same for both; got \(3, 2\)"),
        (np.array([0, 0, 1, 1, 2, 2]), P, "a tensor of integers 0 to C - 1, got ndarray"),
    ],
)
def test_labels_that_do_not_fit_the_batch_are_refused(labels, identities, said):
    model = build_model(ModelConfig(arch="resnet18", width=2, variant="full"), 5)
    images = torch.rand(2, P * K, 3, 32, 16)
    labels = torch.tensor(labels) if isinstance(labels, list) else labels
    with pytest.raises(ValueError, match=said):
        FMCNetLoss(LossConfig(), identities, model.compensation)(model(*images), labels)


def test_labels_in_any_order_do_for_base_and_a_forgotten_compensation_is_told():
    images, labels = torch.rand(2, P * K, 3, 32, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    base = build_model(ModelConfig(arch="resnet18", width=2, variant="base"), 5)
    total, _ = FMCNetLoss(LossConfig(wrt=1), P)(base(*images), labels)
    assert total.isfinite()
    full = build_model(ModelConfig(arch="resnet18", width=2, variant="full"), 5)
    with pytest.raises(ValueError, match=r"compensation=model\.compensation"):
        FMCNetLoss(LossConfig(), P)(full(*images), labels.sort().values)


def test_a_model_whose_compensation_weighs_nothing_needs_none():
    images, labels = torch.rand(2, P * K, 3, 32, 16), torch.tensor([0, 0, 1, 1, 2, 2])
    full = build_model(ModelConfig(arch="resnet18", width=2, variant="full"), 5)
    total, terms = FMCNetLoss(LossConfig(gan=0, fc=0, ic=0), P)(full(*images), labels)
    assert total.isfinite()
    assert not {"gan", "fc", "ic"} & terms.keys()


@pytest.mark.parametrize("normalization", ["modality", "none"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_forward_pass_under_autocast_needs_no_conversion(normalization, half):
    """The loss of half-precision outputs is that of the same outputs in float32, for both players."""
    torch.manual_seed(0)
    bound = 6.0 if normalization == "modality" else 0.0
    config = ModelConfig(arch="resnet18", width=2, normalization=normalization, discriminator_bound=bound)
    model, labels = build_model(config, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", half):
        output = model(*torch.rand(2, P * K, 3, 32, 16))
    assert output.visible.shared_scores.dtype == half
    criterion = FMCNetLoss(LossConfig(wrt=1, hc=1), P, model.compensation)
    total, terms = criterion(output, labels)
    expected_total, expected = criterion(output.float(), labels)
    assert torch.equal(total, expected_total)
    assert all(torch.equal(term, expected[name]) for name, term in terms.items())
    loss = criterion.discriminator_loss(output)
    assert torch.equal(loss, criterion.discriminator_loss(output.float()))
    (total + loss).backward()


def test_the_loss_takes_all_settings_or_those_of_the_losses():
    config = load_config("tiny")
    assert FMCNetLoss(config, P).config is config.losses
    with pytest.raises(ConfigError, match=r"config is of type ModelConfig: give config\.losses"):
        FMCNetLoss(config.model, P)


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({}, {"terms": {"shs": max}}, "the name 'shs' is taken"),
        ({}, {"terms": {1: max}}, "1 is no name of a loss"),
        ({}, {"terms": {"": max}}, "'' is no name of a loss"),
        ({"terms": {"mine": 100}}, {}, r"losses\.terms weighs mine, which .* FMCNetLoss\(terms="),
        ({}, {"identities": 0}, "identities=0: give a whole number from 1"),
        ({}, {"identities": 4.0}, "identities=4.0: give a whole number from 1"),
        ({}, {"compensation": torch.nn.Linear(1, 1)}, "of type Linear: give model.compensation"),
    ],
)
def test_arguments_that_cannot_be_are_refused(settings, arguments, said):
    with pytest.raises(ConfigError, match=said):
        FMCNetLoss(LossConfig(**settings), **{"identities": P, **arguments})


@pytest.mark.parametrize(("gan", "trained", "warnings"), [(1, False, 1), (1, True, 0), (0, False, 0)])
def test_discriminators_that_no_step_trains_are_told_once(
    computed, caplog, monkeypatch, gan, trained, warnings
):
    model, output, labels = computed
    criterion = FMCNetLoss(LossConfig(gan=gan), P, model.compensation)
    monkeypatch.setattr("fmcnet.losses.criterion.IDLE", 3)
    for _ in range(4):
        criterion(output, labels)
        if trained:
            criterion.discriminator_loss(output)
    assert ["3 batches without discriminator_loss" in said for said in caplog.messages] == [True] * warnings


def test_the_bound_of_the_discriminators_holds_in_a_plain_loop():
    """The loop of the docstring, in which the stored weights grow: without `renormalize`."""
    torch.manual_seed(0)
    config = ModelConfig(arch="resnet18", width=2, normalization="modality", discriminator_bound=6.0)
    model, labels = build_model(config, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    criterion = FMCNetLoss(LossConfig(), P, model.compensation)
    discriminators = model.compensation.discriminator_parameters()
    owned = {id(parameter) for parameter in discriminators}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if id(p) not in owned], lr=0.001)
    discriminator_optimizer = torch.optim.Adam(discriminators, lr=0.1)
    for _ in range(15):
        output = model(*torch.rand(2, P * K, 3, 32, 16))
        discriminator_optimizer.zero_grad()
        criterion.discriminator_loss(output).backward()
        discriminator_optimizer.step()
        loss, _ = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for modality in Modality:
            judge, half = model.compensation.discriminator(modality), output.of(modality)
            for logits in (judge(half.specific), judge.as_constant(output.of(modality.other).generated)):
                assert (logits - judge.linear.bias).abs().max() <= 6 + 1e-4
    assert max(model.compensation.discriminator(m).linear.weight.norm() for m in Modality) > 1.5
    model.compensation.renormalize()
    for modality in Modality:
        assert model.compensation.discriminator(modality).linear.weight.norm().item() == pytest.approx(1)
