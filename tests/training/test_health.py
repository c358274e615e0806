"""Health values of a batch, and the warnings: once, plainly, for what has died."""

import torch

from fmcnet.config import load_config
from fmcnet.model.build import build_model
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
                if labels[a] != labels[b]:
                    cosines.append(torch.cosine_similarity(fake[a], fake[b], dim=0))
        judge = model.compensation.judge(target)
        right += [judge(x[None])[0] > 0 for x in real] + [judge(x[None])[0] <= 0 for x in fake]
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
