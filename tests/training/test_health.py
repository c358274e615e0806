"""Health values of a batch, and the warnings: once, plainly, for what has died."""

import pytest
import torch

from fmcnet.config import load_config
from fmcnet.models.build import build_model
from fmcnet.training import health
from fmcnet.types import Modality


def output(variant="full"):
    config = load_config("tiny", [f"model.variant={variant}"])
    torch.manual_seed(0)
    model = build_model(config.model, 6)
    return model, model(*torch.rand(2, 8, 3, 64, 32)), torch.arange(4).repeat_interleave(2)


def test_what_is_measured_is_what_it_says():
    model, out, labels = output()
    found = health.measure(model, out, labels)
    own, generated = model.fusion.weights()
    assert (found["w1"], found["w2"]) == (own, generated)
    cosines, right = [], []
    for target in (Modality.INFRARED, Modality.VISIBLE):
        fake, real = out.of(target.other).generated, out.of(target).specific
        for a in range(8):
            for b in range(8):
                if labels[a] != labels[b]:  # without the constant, which has one value in all dimensions
                    one, two = fake[a] - fake[a].mean(), fake[b] - fake[b].mean()
                    cosines.append(torch.cosine_similarity(one, two, dim=0))
        discriminator = model.compensation.discriminator(target)
        right += [discriminator(x[None])[0] > 0 for x in real] + [
            discriminator(x[None])[0] <= 0 for x in fake
        ]
    torch.testing.assert_close(found[health.COSINE], torch.stack(cosines).mean())
    torch.testing.assert_close(found[health.ACCURACY], torch.stack(right).float().mean())
    torch.testing.assert_close(found[health.FUSED], torch.tensor(1.0))


def test_a_variant_has_the_values_of_its_modules():
    assert not health.measure(*output("base"))
    assert not health.measure(*output("sfd"))
    assert set(health.measure(*output("fmc"))) == {health.COSINE, health.ACCURACY}


def record(step, **values):
    healthy = {health.FUSED: 1.0, health.COSINE: 0.4, health.ACCURACY: 0.6, "w1": 0.5, "w2": 0.5}
    return {"step": step, **healthy, **{health.COSINE if k == "cosine" else k: v for k, v in values.items()}}


def test_a_healthy_training_says_nothing(caplog):
    monitor = health.HealthMonitor()
    for step in range(1, 500):
        monitor.watch(record(step))
    assert not caplog.records


def test_each_death_is_told_once(caplog):
    monitor = health.HealthMonitor()
    for step in range(1, 500):
        monitor.watch(record(step, w2=0.01, cosine=0.99))
    told = [entry.message for entry in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(f"step {health.WINDOW}: the fusion has switched itself off: w1 0.50, w2 0.01")
    assert "the compensation has collapsed" in told[1]


def test_a_short_dip_is_no_death(caplog):
    monitor = health.HealthMonitor()
    for step in range(1, 500):
        monitor.watch(record(step, cosine=0.999 if step < 40 else 0.3))
    assert not caplog.records


def test_the_constant_of_the_modality_is_no_likeness():
    """Generated features of random directions are called unlike, however large the constant's share."""
    config = load_config("tiny", ["model.specific_offset=0.98"])
    torch.manual_seed(0)
    model = build_model(config.model, 6).eval()
    out = model(*torch.rand(2, 8, 3, 64, 32))
    labels = torch.arange(8)
    place = model.decomposition.norm_specific.to_length
    apart = [
        half._replace(generated=place(torch.randn(8, half.generated.shape[1]), modality.other))
        for half, modality in ((out.visible, Modality.VISIBLE), (out.infrared, Modality.INFRARED))
    ]
    assert abs(health.measure(model, type(out)(*apart), labels)[health.COSINE]) < 0.1
    alike = [half._replace(generated=half.generated[:1].expand(8, -1)) for half in apart]
    assert health.measure(model, type(out)(*alike), labels)[health.COSINE] > 0.999


@pytest.mark.parametrize(("accuracy", "state"), [(0.5, "are idle"), (1.0, "have won")])
def test_discriminators_that_teach_nothing_are_told(caplog, accuracy, state):
    monitor = health.HealthMonitor()
    for step in range(1, 300):
        monitor.watch(record(step) | {health.ACCURACY: accuracy})
    (told,) = caplog.records
    assert told.message.startswith(
        f"step {health.WINDOW}: the discriminators {state}: they tell {accuracy:.0%}"
    )


def test_a_term_whose_margins_are_met_is_told_once(caplog):
    caplog.set_level("INFO")
    monitor = health.HealthMonitor()
    for step in range(1, 400):
        monitor.watch(record(step, sps=0.0, dc=0.0 if step % 90 else 0.1))
    assert [entry.message for entry in caplog.records] == [
        "step 100: sps, eq. (5), has been 0 for 100 steps: its margins are met, so it trains nothing now"
    ]


def test_the_first_steps_are_not_judged(caplog):
    monitor = health.HealthMonitor(first=150)
    for step in range(1, 150 + health.WINDOW):
        monitor.watch(record(step, cosine=0.99))
    assert not caplog.records
    monitor.watch(record(150 + health.WINDOW, cosine=0.99))
    assert len(caplog.records) == 1
