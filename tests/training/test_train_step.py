"""One training step: accumulation, recomputation, precisions, what is measured."""

from __future__ import annotations

import functools
from copy import deepcopy

import pytest
import torch

from fmcnet.config import load_config
from fmcnet.data.loader import TrainingBatch
from fmcnet.distributed import DistributedContext
from fmcnet.errors import FmcnetError
from fmcnet.losses.criterion import TERMS, FMCNetLoss
from fmcnet.models.build import build_model
from fmcnet.training import health
from fmcnet.training.optimizers import lr_factor
from fmcnet.training.train_step import TrainStep, memory_format, precision
from fmcnet.training.trainer import train
from fmcnet.types import Modality
from tests.training.runs import draws

CPU = torch.device("cpu")
PLAIN = [
    "training.optimizer=sgd", "training.clip=0", "training.weight_decay=0", "training.schedule=constant",
    "training.warmup=0",
]  # fmt: skip


def made(*settings, steps=10):
    """A `TrainStep` of its own; the same start for the same model."""
    config = load_config("tiny", list(settings))
    torch.manual_seed(3)
    return TrainStep(config, build_model(config.model, 6), DistributedContext(CPU), 4, steps)


def batch(number=0, height=64, width=32):
    generator = torch.Generator().manual_seed(number)
    halves = torch.randint(0, 256, (2, 8, 3, height, width), generator=generator, dtype=torch.uint8)
    identities = torch.randperm(6, generator=generator)[:4]
    return TrainingBatch(halves[0], halves[1], identities.repeat_interleave(2))


def state(train_step):
    return {key: value.clone() for key, value in train_step.model.state_dict().items()}


def assert_close(some, others, **tolerance):
    assert some.keys() == others.keys()
    for key in some:
        torch.testing.assert_close(
            some[key], others[key], msg=lambda said, k=key: f"{k}: {said}", **tolerance
        )


def test_accumulation_is_sgd_on_the_mean_of_the_batches_gradients():
    train_step = made("model.variant=base", "training.accumulate=2", *PLAIN, "training.lr=0.036")
    slow, config = deepcopy(train_step.model).train(), train_step.config
    parameters = {name: p for name, p in slow.named_parameters() if p.requires_grad}
    sums, losses = dict.fromkeys(parameters, 0.0), []
    for one in (batch(0), batch(1)):  # each with the batch statistics of its own
        criterion = FMCNetLoss(config.losses, 4, slow.compensation)
        loss, _ = criterion(slow(one.visible, one.infrared), one.labels)
        losses.append(loss.item())
        for name, part in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            sums[name] = sums[name] + part
    before = state(train_step)
    train_step.step([batch(0), batch(1)], 0)
    after = state(train_step)
    assert (
        after["decomposition.stem_visible.conv1.weight"] - before["decomposition.stem_visible.conv1.weight"]
    ).abs().max() > 1e-4
    for name, summed in sums.items():
        lr = config.training.lr
        if ".stem" in name or ".shared" in name:
            lr *= config.training.backbone_lr_factor
        moved = 1.9 * lr * summed / 2  # Nesterov's first step: gradient + 0.9 gradient
        torch.testing.assert_close(after[name], before[name] - moved, rtol=1e-5, atol=1e-6, msg=name)
    buffers = dict(slow.named_buffers())
    assert_close(buffers, {key: after[key] for key in buffers})
    [record] = train_step.read()
    assert record["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_with_accumulation_the_discriminators_move_on_every_batch(monkeypatch):
    train_step, turns = made("training.accumulate=3"), []

    def record(name, who):
        update = getattr(TrainStep, name)

        def recording(self):
            weight = train_step.model.compensation.discriminator(Modality.VISIBLE).linear.weight
            before = weight.clone()
            norm = update(self)
            turns.append((who, not torch.equal(before, weight)))
            return norm

        monkeypatch.setattr(TrainStep, name, recording)

    record("_update", "others")
    record("_update_discriminators", "discriminators")
    train_step.step([batch(n) for n in range(3)], 0)
    assert turns == [("discriminators", True)] * 3 + [("others", False)]


@pytest.mark.parametrize("variant", ["base", "full"])
def test_recomputation_changes_neither_gradients_nor_running_statistics(variant):
    settings = [f"model.variant={variant}", *PLAIN]
    kept, anew = made(*settings), made("training.recompute=true", *settings)
    runs = []
    stem = anew.model.decomposition.stem_visible
    stem.conv1.register_forward_pre_hook(lambda *_: runs.append(1))
    for step in range(2):
        kept.step([batch(step)], step)
        anew.step([batch(step)], step)
    assert len(runs) == 4  # forward and again in the backward pass, of two steps
    for a, b in zip(kept.read(), anew.read(), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    grads = [
        {n: p.grad for n, p in train_step.model.named_parameters() if p.requires_grad}
        for train_step in (kept, anew)
    ]
    assert_close(*grads, rtol=1e-4, atol=1e-6)
    assert_close(*(dict(train_step.model.named_buffers()) for train_step in (kept, anew)))
    assert anew.model.decomposition.stem_visible.bn1.num_batches_tracked == 2


@pytest.mark.parametrize("variant", ["base", "full"])
def test_what_a_step_measured_is_read_later_with_the_same_numbers(variant):
    once, often = made(f"model.variant={variant}"), made(f"model.variant={variant}")
    each = []
    for step in range(3):
        once.step([batch(step)], step)
        often.step([batch(step)], step)
        each += often.read()
    records = once.read()
    assert records == each
    assert once.read() == []
    terms = {"id_shared"} if variant == "base" else set(TERMS)
    norms = {"gradient"} if variant == "base" else {"gradient", "discriminator gradient"}
    weights = set(health.NAMES) if variant == "full" else set()
    for step, record in enumerate(records):
        assert record.keys() == {"step", "loss", "rate"} | terms | norms | weights
        assert record["step"] == step + 1
        assert record["loss"] == pytest.approx(sum(record[t] for t in terms - {"discriminator"}))
        assert record["rate"] == once.config.training.lr * lr_factor(step, 10, once.config.training)
        assert all(record[norm] > 0 for norm in norms)
    assert len({record["loss"] for record in records}) == 3


def test_the_norm_that_is_measured_is_that_before_clipping():
    free, clipped = made("training.clip=0"), made("training.clip=0.01")
    for train_step in (free, clipped):
        train_step.step([batch()], 0)
    grads = [p.grad for group in free.optimizer.param_groups for p in group["params"]]
    norm = sum(float((g.double() ** 2).sum()) for g in grads) ** 0.5
    assert free.read()[0]["gradient"] == pytest.approx(norm, rel=1e-5)
    assert clipped.read()[0]["gradient"] == pytest.approx(norm, rel=1e-5)
    left = [p.grad for group in clipped.optimizer.param_groups for p in group["params"]]
    assert sum(float((g.double() ** 2).sum()) for g in left) ** 0.5 == pytest.approx(0.01, rel=1e-3)


def test_the_memory_format_changes_no_result():
    # At a small rate: nearest centres and signs of differences change with the last bit, and with them the gradient.
    settings = (*PLAIN, "training.lr=0.001")
    train_steps = [made(f"training.channels_last={name}", *settings) for name in ("yes", "no")]
    for step in range(3):
        for train_step in train_steps:
            train_step.step([batch(step)], step)
    layouts = [
        train_step.model.decomposition.shared.layer4[0].conv2.weight.stride() for train_step in train_steps
    ]
    assert layouts[0] != layouts[1]
    assert_close(*map(state, train_steps), rtol=1e-3, atol=1e-4)


def test_which_format_and_precision_are_taken():
    assert precision("auto", CPU) is torch.float32
    assert precision("bf16", CPU) is torch.bfloat16
    narrow, wide = load_config("tiny"), load_config("tiny", ["model.width=64"])
    assert memory_format(narrow, CPU) is torch.channels_last
    assert memory_format(wide, CPU) is torch.contiguous_format
    assert memory_format(wide, torch.device("cuda")) is torch.channels_last


def test_float16_is_refused_on_a_cpu_and_leaves_nothing_behind(tiny_sysu, tmp_path):
    config = load_config("tiny", ["training.precision=fp16"])
    with pytest.raises(FmcnetError, match=r"training\.precision=fp16 needs a CUDA GPU"):
        train(config, tiny_sysu, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_bfloat16_computes_in_it_and_gives_the_losses_float32(monkeypatch):
    train_step, inside, given = made("training.precision=bf16"), set(), set()
    train_step.model.decomposition.shared.layer3.register_forward_hook(lambda *a: inside.add(a[-1].dtype))

    def watched(target):
        real = getattr(FMCNetLoss, target)

        def called(criterion, output, *rest):
            given.update(part.dtype for half in output for part in half if part is not None)
            return real(criterion, output, *rest)

        monkeypatch.setattr(FMCNetLoss, target, called)

    watched("forward")
    watched("discriminator_loss")
    before = state(train_step)
    train_step.step([batch()], 0)
    assert inside == {torch.bfloat16}
    assert given == {torch.float32}
    assert {p.grad.dtype for p in train_step.model.parameters() if p.grad is not None} == {torch.float32}
    [lower], plain = train_step.read(), made("training.precision=fp32")
    plain.step([batch()], 0)
    assert lower["loss"] == pytest.approx(plain.read()[0]["loss"], rel=0.05)
    after = state(train_step)
    assert all(torch.isfinite(value.float()).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_validating_changes_no_training_that_draws_random_numbers(tiny_sysu, tmp_path):
    """What is written is the model after the last of three steps, validated then, before, or not at all."""
    for every in (0, 1, 2):
        settings = ["training.epochs=3", "training.steps_per_epoch=1", f"training.validate_every={every}"]
        config = load_config("tiny", settings)
        train(config, tiny_sysu, tmp_path / f"{every}", progress=False, terms={"draws": draws})
    files = [(tmp_path / f"{every}" / "model.safetensors").read_bytes() for every in (0, 1, 2)]
    assert files[0] == files[1] == files[2]


def test_a_compiled_model_trains_to_the_same_losses_and_keeps_its_names(monkeypatch):
    """Traced and differentiated as Inductor's input is; Inductor's own compilation would take 60 s."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = (
        made("model.variant=base", f"training.compile={on}", *PLAIN) for on in ("false", "true")
    )
    for step in range(3):
        for train_step in (plain, compiled):
            train_step.step([batch(step, 32, 16)], step)
    assert compiled.model._compiled_call_impl is not None
    for a, b in zip(plain.read(), compiled.read(), strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert state(plain).keys() == state(compiled).keys()
    assert_close(state(plain), state(compiled), rtol=1e-2, atol=1e-3)
    assert compiled.export().state_dict().keys() == state(plain).keys()
