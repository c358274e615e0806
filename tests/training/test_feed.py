"""Which batches a training draws: shares of processes, whole steps, look-alikes, exact resume with these."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fmcnet.config import load_config
from fmcnet.data.readers import read_dataset
from fmcnet.errors import ConfigError
from fmcnet.runtime import Runtime
from fmcnet.training import feed
from fmcnet.training import trainer as loop
from fmcnet.training.loggers import read_log
from fmcnet.training.train_step import Game

ONE = Runtime(torch.device("cpu"))


def test_processes_have_identities_each_or_share_them():
    assert [feed.identities_of(load_config("tiny"), world) for world in (1, 2, 3)] == [4, 4, 4]
    shared = load_config("tiny", ["data.share=all"])
    assert [feed.identities_of(shared, world) for world in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ConfigError, match=r"data\.identities=4 cannot be shared by 3 .* a multiple of 3"):
        feed.identities_of(shared, 3)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("steps", ["null", 5])
def test_an_epoch_is_a_whole_number_of_steps(tiny_sysu, world, steps):
    table = read_dataset(tiny_sysu).select(split="train")
    labels, _ = table.labels()

    def length(accumulate):
        settings = [
            f"training.steps_per_epoch={steps}",
            f"training.accumulate={accumulate}",
            "data.identities=3",
        ]
        config = load_config("tiny", settings)
        samplers = [feed.make_sampler(config, table, labels, rank, world) for rank in range(world)]
        assert len({sampler.steps for sampler in samplers}) == 1
        assert loop.total_steps(config, read_dataset(tiny_sysu), world) == 2 * samplers[0].steps // accumulate
        return samplers[0].steps

    plain = length(1)
    for several in (2, 3, 7):
        assert length(several) == several * (5 if steps == 5 else ceil(plain / several))
    if steps == "null":
        larger = max(int((table.modality == m).sum()) for m in (0, 1))
        assert plain == ceil(larger / (3 * 2 * world))


@pytest.mark.parametrize(("classes", "used"), [(20, 20), (6, 6), (6, 2), (2100, 2050)])
def test_look_alikes_are_the_nearest_by_cosine(classes, used):
    weights = torch.randn(classes, 5, generator=torch.Generator().manual_seed(0))
    labels = np.sort(np.random.default_rng(0).permutation(classes)[:used]).tolist()
    found = feed.look_alikes(weights, labels, ONE)
    assert found.shape == (used, min(8, used - 1))
    rows = weights[labels].double().numpy()
    for own in range(0, used, max(1, used // 50)):
        cosines = [
            float(rows[own] @ row / np.linalg.norm(rows[own]) / np.linalg.norm(row)) for row in rows
        ]  # fmt: skip
        others = sorted((p for p in range(used) if p != own), key=lambda p: -cosines[p])
        assert own not in found[own]
        np.testing.assert_allclose(
            [cosines[p] for p in found[own]], [cosines[p] for p in others[: found.shape[1]]], atol=1e-5
        )


def test_a_training_with_look_alikes_and_dropout_resumes_bit_for_bit(tiny_sysu, tmp_path, monkeypatch):
    """Stopped in the middle of the second epoch, whose look-alikes come from weights that are no longer there."""
    settings = ["data.hard=0.5", "training.epochs=3", "model.dropout=0.2"]
    config, step, asked = load_config("tiny", settings), Game.step, []
    look = loop.look_alikes
    monkeypatch.setattr(loop, "look_alikes", lambda *a: asked.append(look(*a)) or asked[-1])
    loop.train(config, tiny_sysu, tmp_path / "whole", progress=False)
    assert len(asked) == 2  # before epochs two and three
    assert not np.array_equal(*asked)

    def stopping(self, batches, number):
        if number == 8:
            raise RuntimeError("power cut")
        step(self, batches, number)

    monkeypatch.setattr(Game, "step", stopping)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(config, tiny_sysu, tmp_path / "run", progress=False)
    monkeypatch.setattr(Game, "step", step)
    assert loop.train(config, tiny_sysu, tmp_path / "run", resume=True, progress=False).resumed_from == 6
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert len(asked) == 4
    np.testing.assert_array_equal(asked[1], asked[3])
