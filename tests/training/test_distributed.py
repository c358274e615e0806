"""Two processes, as of torchrun: the batch of one with twice the identities, gradients averaged.

A job of torchrun that is stopped and goes on: test_stop.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from fmcnet.config import load_config
from fmcnet.data.loader import make_sampler
from fmcnet.data.readers import read_dataset
from fmcnet.distributed import (
    agree,
    agree_on_errors,
    average_buffers,
    average_gradients,
    distributed_context,
    gather_centers,
    synchronize_batchnorm,
)
from fmcnet.inference.embed import embed_shared
from fmcnet.inference.encoder import load
from fmcnet.losses.criterion import FMCNetLoss
from fmcnet.models.fmcnet import FMCNet
from fmcnet.training import health
from fmcnet.training import trainer as loop
from fmcnet.training.loggers import read_log
from fmcnet.training.train_step import TrainStep
from tests import forked
from tests.cli import run_command
from tests.training import runs
from tests.training.test_kill import at_every_write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun")


# With some seeds an activation of the first step lies so near 0 that rounding switches its ReLU; with seed 3 none
# does, and the first gradients agree to 1e-6. From there an error of 1e-7 grows some ten times a step: margins switch
# on and off, normalisation divides by small deviations. SGD with a small rate keeps it from growing faster;
# AdamW would turn the sign of a gradient that is all rounding into a whole step.
SMALL = [
    "training.seed=3",
    "training.optimizer=sgd",
    "training.lr=0.002",
    "training.epochs=1",
    "training.steps_per_epoch=6",
    "training.validate_every=0",
    "training.log_every=1",
]
SYNCHRONISED = ["training.sync_batchnorm=true", "training.sync_centers=true"]


def train(data, out, *more):
    loop.train(load_config("tiny", [*SMALL, *more]), data, out, device="cpu", progress=False)


def both_ways(data, folder, settings, names=("process", "all", "alone")):
    """The same six identities a step on one process, and on two in several settings."""
    folder = Path(folder)
    train(data, folder / "one", "data.identities=6", *settings)
    jobs = {
        "process": ["data.identities=3", *SYNCHRONISED],
        "all": ["data.identities=6", "data.share=all", *SYNCHRONISED],
        "alone": ["data.identities=3"],
    }
    for name in names:
        work = forked.job(lambda name=name: train(data, folder / name, *jobs[name], *settings), 2)
        assert forked.ends(work) == [0, 0]


@pytest.mark.parametrize("settings", [["model.variant=full", "losses.reduction=sum"], ["model.variant=base"]])
def test_two_synchronised_processes_train_as_one(tiny_sysu, tmp_path, settings):
    forked.apart(both_ways, data=tiny_sysu, folder=tmp_path, settings=settings)
    one, two = (read_log(tmp_path / name) for name in ("one", "process"))
    assert read_log(tmp_path / "all") == two
    assert [record.keys() for record in one] == [record.keys() for record in two]
    for step, tolerance in ((0, 1e-5), (1, 1e-4), (5, 1e-2)):
        for key, value in one[step].items():
            if key == health.COSINE:  # over pairs of a process's own identities
                continue
            assert two[step][key] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), (step, key)
    a, b, alone, all_ = (runs.weights(tmp_path / name) for name in ("one", "process", "alone", "all"))
    assert all(torch.equal(all_[key], b[key]) for key in b)  # the statistics that the export estimates, too
    start = runs.weights(tmp_path / "one" / "checkpoints" / "step-000003")
    floating = [key for key in a if a[key].is_floating_point()]

    def gap(other):
        """The largest difference, by how far the last three steps moved."""
        return max(
            float((a[k] - other[k]).abs().max() / ((a[k] - start[k]).abs().max() + 1e-4)) for k in floating
        )

    assert gap(b) < 0.05
    assert gap(alone) > 0.5  # each with statistics and centres of its own


def own_loop(folder):
    """Two steps of the loop that `FMCNetLoss` shows, in `DistributedDataParallel`; the weights of each rank."""

    def work():
        rank = int(os.environ["RANK"])
        dist.init_process_group("gloo")
        config = load_config("tiny")
        torch.manual_seed(0)
        model = FMCNet.from_config(config, num_classes=4)
        wrapped = nn.parallel.DistributedDataParallel(model)
        criterion = FMCNetLoss(config.losses, identities=2, compensation=model.compensation)
        discriminators = model.compensation.discriminator_parameters()
        owned = {id(parameter) for parameter in discriminators}
        others = [parameter for parameter in model.parameters() if id(parameter) not in owned]
        optimizer, discriminator_optimizer = (
            torch.optim.SGD(others, 0.01),
            torch.optim.SGD(discriminators, 0.1),
        )
        torch.manual_seed(rank)
        for _ in range(2):
            visible, infrared = torch.randint(0, 256, (2, 4, 3, 32, 16), dtype=torch.uint8)
            output = wrapped(visible, infrared)
            discriminator_optimizer.zero_grad()
            criterion.discriminator_loss(output).backward()
            average_gradients(discriminators, 2)
            discriminator_optimizer.step()
            optimizer.zero_grad()
            criterion(output, torch.tensor([0, 0, 1, 1]))[0].backward()
            optimizer.step()
        torch.save(dict(model.named_parameters()), Path(folder, str(rank)))
        dist.destroy_process_group()

    assert forked.ends(forked.job(work, 2)) == [0, 0]


def test_a_loop_of_ones_own_in_distributed_data_parallel(tmp_path):
    forked.apart(own_loop, folder=tmp_path)
    first, second = (torch.load(tmp_path / rank) for rank in ("0", "1"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("variant", ["sfd", "fmc"])
def test_other_variants_train_synchronised(tiny_sysu, tmp_path, variant):
    """No parameter is left without the gradient that the processes wait for."""
    forked.apart(
        both_ways,
        data=tiny_sysu,
        folder=tmp_path,
        settings=[f"model.variant={variant}", "training.steps_per_epoch=2"],
        names=["process"],
    )
    one, two = (read_log(tmp_path / name)[0] for name in ("one", "process"))
    for record in (one, two):
        record.pop(health.COSINE, None)  # over pairs of a process's own identities
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_every_process_sees_other_identities_of_the_same_step(tiny_sysu):
    rows = read_dataset(tiny_sysu).select(split="train")
    labels, _ = rows.labels()
    one = make_sampler(load_config("tiny", ["data.identities=6"]), rows, labels, 0, 1)
    two = [make_sampler(load_config("tiny", ["data.identities=3"]), rows, labels, rank, 2) for rank in (0, 1)]
    for epoch in (0, 3):
        for whole, left, right in zip(*(sampler.batches(epoch) for sampler in (one, *two)), strict=True):
            for rows_of in (0, 1):
                assert not set(labels[left[rows_of]]) & set(labels[right[rows_of]])
                assert np.array_equal(whole[rows_of], np.concatenate([left[rows_of], right[rows_of]]))


def unsynchronised(data, folder):
    """Two processes, each with statistics of its own; each notes what it measured and what it wrote."""
    folder = Path(folder)

    def one_rank():
        rank, run, wrote, measured = os.environ["RANK"], folder / "run", [], []
        read = TrainStep.read

        def noting(self):
            measured.extend([step, names, values.tolist()] for step, names, values in self._measured)
            return read(self)

        TrainStep.read = noting
        at_every_write(run, wrote.append)
        train(data, run, "data.identities=3")
        (folder / f"{rank}.json").write_text(json.dumps([wrote, measured]))

    assert forked.ends(forked.job(one_rank, 2)) == [0, 0]


def test_losses_are_means_over_processes_and_rank_0_alone_writes(tiny_sysu, tmp_path, monkeypatch):
    monkeypatch.setenv("FMCNET_CACHE", str(tmp_path / "cache"))
    forked.apart(unsynchronised, data=tiny_sysu, folder=tmp_path)
    (wrote, first), (silent, second) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert wrote
    assert not silent
    records = read_log(tmp_path / "run")
    assert len(records) == len(first) == len(second) == 6
    for record, (step, names, left), (_, _, right) in zip(records, first, second, strict=True):
        assert record["step"] == step + 1
        assert left[0] != right[0]
        for name, a, b in zip(names, left, right, strict=True):
            assert record[name] == pytest.approx((a + b) / 2, rel=1e-6), name
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1  # for both


def collectives(folder):
    assert forked.ends(forked.job(lambda: check_collectives(Path(folder)), 2)) == [0, 0]


def check_collectives(folder):
    with distributed_context("cpu") as ctx:
        check_gradients(ctx)
        check_batchnorm(ctx)
        check_centers(ctx)
        # Running statistics become their mean, counters stay.
        norm = nn.BatchNorm1d(3)
        norm.running_mean.fill_(float(ctx.rank))
        norm.running_var.copy_(torch.arange(3.0) + ctx.rank)
        average_buffers(norm, ctx.world)
        assert norm.running_mean.tolist() == [0.5] * 3
        assert norm.running_var.tolist() == [0.5, 1.5, 2.5]
        for who in (0, 1):  # whoever fails, all do
            with pytest.raises(OSError, match=f"full: 'rank {who}'"):
                fail(who, ctx)
        (folder / f"{ctx.rank}.ok").touch()


def fail(who, ctx):
    with agree_on_errors(ctx):
        if ctx.rank == who:
            raise OSError(28, "full", f"rank {who}")


def check_gradients(ctx):
    """Their mean over the processes; a parameter without one stays so."""
    p = [nn.Parameter(torch.zeros(size)) for size in ((2, 3), (4,), (1,))]
    p[0].grad, p[1].grad = torch.full((2, 3), float(ctx.rank)), torch.arange(4.0) * (ctx.rank + 1)
    average_gradients(p, ctx.world)
    assert torch.equal(p[0].grad, torch.full((2, 3), 0.5))
    assert torch.equal(p[1].grad, torch.arange(4.0) * 1.5)
    assert p[2].grad is None
    assert agree([ctx.rank == 1, False], ctx) == [True, False]


def check_batchnorm(ctx):
    for plain, shape in ((nn.BatchNorm2d(5), (8, 5, 4, 3)), (nn.BatchNorm1d(5), (8, 5))):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            plain.weight.copy_(torch.rand(5, generator=generator) + 0.5)
            plain.bias.copy_(torch.rand(5, generator=generator))
        synced = synchronize_batchnorm(nn.Sequential(type(plain)(5)), ctx.device)
        synced[0].load_state_dict(plain.state_dict())
        mine = slice(4 * ctx.rank, 4 * ctx.rank + 4)
        for _ in range(2):
            whole = (torch.randn(shape, generator=generator) * 3 + 1).requires_grad_()
            factor = torch.randn(shape, generator=generator)
            part = whole.detach()[mine].clone().requires_grad_()
            plain.zero_grad(), synced.zero_grad()
            expected, out = plain(whole), synced(part)
            (expected * factor).sum().backward()
            (out * factor[mine]).sum().backward()
            torch.testing.assert_close(out, expected[mine], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(part.grad, whole.grad[mine], rtol=1e-4, atol=1e-5)
            average_gradients(synced.parameters(), ctx.world)  # of sums over shares: half of the whole sum
            for a, b in zip(synced.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(2 * a.grad, b.grad, rtol=1e-4, atol=1e-5)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(synced[0].state_dict()[key], value, rtol=1e-5, atol=1e-6)
        plain.eval(), synced.eval()
        torch.testing.assert_close(synced(part), plain(part))


def check_centers(ctx):
    """Centres as a linear map of inputs; the loss looks at all pairs."""
    generator = torch.Generator().manual_seed(1)
    inputs, start = torch.randn(6, 4, generator=generator), torch.randn(3, 4, generator=generator)
    whole, shared = nn.Parameter(start.clone()), nn.Parameter(start.clone())

    def loss(centers):
        return (torch.cdist(centers, centers) - 1).relu().sum()

    loss(inputs @ whole.T).backward()
    gathered = gather_centers(inputs[3 * ctx.rank : 3 * ctx.rank + 3] @ shared.T)
    torch.testing.assert_close(gathered, inputs @ whole.T)
    loss(gathered).backward()
    average_gradients([shared], ctx.world)
    torch.testing.assert_close(shared.grad, whole.grad, rtol=1e-5, atol=1e-5)


def test_gradients_normalisation_centers_buffers_and_mistakes_over_two_processes(tmp_path):
    forked.apart(collectives, folder=tmp_path)
    assert (tmp_path / "0.ok").exists()
    assert (tmp_path / "1.ok").exists()


def embedding(run, data, folder):
    table = read_dataset(data)
    table = table.take(np.arange(len(table) // 2 * 2 - 1))

    def one_rank():
        with distributed_context("cpu") as ctx:
            found = embed_shared(load(run, "cpu"), table, ctx, batch_size=7, progress=False)
            assert (found is not None) == ctx.main
            if found is not None:
                np.savez(Path(folder, "two.npz"), features=found.features, name=found.name, pid=found.pid)

    assert len(table) % 2 == 1
    assert forked.ends(forked.job(one_rank, 2)) == [0, 0]
    one = load(run, "cpu").embed_table(table, batch_size=7, progress=False)
    two = np.load(Path(folder, "two.npz"))
    assert np.array_equal(two["name"], one.name)
    assert np.array_equal(two["pid"], one.pid)
    np.testing.assert_allclose(two["features"], one.features, rtol=1e-4, atol=1e-5)


def test_an_odd_number_of_images_is_embedded_once_each(tiny_sysu, tiny_run, tmp_path):
    forked.apart(embedding, run=tiny_run, data=tiny_sysu, folder=tmp_path)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tiny_sysu, tiny_run, tmp_path):
    without = shutil.ignore_patterns("embeddings", "report")
    one, two = (shutil.copytree(tiny_run, tmp_path / name, ignore=without) for name in ("one", "two"))
    command = ("evaluate", "--data", tiny_sysu, "--device", "cpu")
    for said in (
        run_command(command[0], one, *command[1:]).output,
        forked.fmcnet(command[0], two, *command[1:])[1],
    ):
        assert said.count("report: ") == 1, said
    found = []
    for run in (one, two):
        [row] = json.loads((run / "report" / "report.json").read_text())["runs"].values()
        found.append([evaluation["mean"] for evaluation in row["evaluations"]])
    assert found[0] == [pytest.approx(mean, abs=1e-9) for mean in found[1]]
    assert {p.name for p in (one / "report").iterdir()} == {p.name for p in (two / "report").iterdir()}
    assert len(list((two / "embeddings").iterdir())) == 1
