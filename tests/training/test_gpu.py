"""What only a GPU can show. Last run on an NVIDIA H200, torch 2.11, 2026-11-27, before batches
were loaded by a plain `DataLoader`: all passed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fmcnet.config import load_config
from fmcnet.data.loader import TrainingBatch
from fmcnet.distributed import DistributedContext
from fmcnet.models.build import build_model
from fmcnet.training.train_step import TrainStep
from fmcnet.training.trainer import train
from tests.data.test_loader import batches
from tests.training.test_train_step import batch, made

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def context():
    return DistributedContext(torch.device("cuda", torch.cuda.current_device()))


def train_step(*settings):
    config = load_config("tiny", list(settings))
    torch.manual_seed(3)
    return TrainStep(config, build_model(config.model, 6), context(), 4, 10)


def on_gpu(number):
    return TrainingBatch(*(part.to(context().device) for part in batch(number)))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_waits_for_nothing(precision, accumulate):
    """After a warm-up (kernels are loaded, optimiser states made) no call in a step synchronises with the GPU."""
    trained = train_step(f"training.precision={precision}", f"training.accumulate={accumulate}")
    drawn = [[on_gpu(accumulate * step + n) for n in range(accumulate)] for step in range(6)]
    for step in range(3):
        trained.step(drawn[step], step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            trained.step(drawn[step], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [record["step"] for record in trained.read()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("first", [0, 2])
def test_batches_are_those_of_a_cpu(first):
    for cpu, cuda in zip(batches(first=first), batches(first=first, device=context().device), strict=True):
        for a, b in zip(cpu, cuda, strict=True):
            assert b.device.type == "cuda"
            assert torch.equal(a, b.cpu())


def test_a_step_is_that_of_a_cpu():
    slow = made("training.precision=fp32")
    quick = train_step("training.precision=fp32")
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        slow.step([batch()], 0)
        quick.step([on_gpu(0)], 0)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    (a,), (b,) = slow.read(), quick.read()
    assert a == pytest.approx(b, rel=1e-3)


def test_training_in_bfloat16_ends_with_finite_weights(tiny_sysu, tmp_path):
    config = load_config("tiny", ["training.precision=bf16"])
    train(config, tiny_sysu, tmp_path / "run", device="cuda", progress=False)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.isfinite(value.float()).all() for value in weights.values())
    assert {v.dtype for v in weights.values()} == {torch.float32, torch.int64}


def test_a_resumed_training_ends_close_to_an_uninterrupted_one(tiny_sysu, tmp_path, monkeypatch):
    """Close, not equal: some kernels of a GPU add up in an order of their own."""
    config, step = load_config("tiny", ["training.precision=fp32", "training.lr=0.0005"]), TrainStep.step
    train(config, tiny_sysu, tmp_path / "whole", device="cuda", progress=False)

    def stopping(self, drawn, number):
        if number == 7:
            raise RuntimeError("power cut")
        step(self, drawn, number)

    monkeypatch.setattr(TrainStep, "step", stopping)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tiny_sysu, tmp_path / "run", device="cuda", progress=False)
    monkeypatch.setattr(TrainStep, "step", step)
    again = train(config, tiny_sysu, tmp_path / "run", device="cuda", resume=True, progress=False)
    assert again.resumed_from == 6
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    for key in whole:
        torch.testing.assert_close(resumed[key], whole[key], rtol=0.05, atol=0.01, msg=key)
