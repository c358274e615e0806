"""What a process draws: its share of the identities, whole steps an epoch."""

from __future__ import annotations

from math import ceil

import pytest

from fmcnet.config import load_config
from fmcnet.data.loader import identities_of, make_sampler, total_steps
from fmcnet.data.readers import read_dataset
from fmcnet.errors import ConfigError


def test_processes_have_identities_each_or_share_them():
    assert [identities_of(load_config("tiny"), world) for world in (1, 2, 3)] == [4, 4, 4]
    shared = load_config("tiny", ["data.share=all"])
    assert [identities_of(shared, world) for world in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ConfigError, match=r"data\.identities=4 cannot be shared by 3 .* a multiple of 3"):
        identities_of(shared, 3)


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
        samplers = [make_sampler(config, table, labels, rank, world) for rank in range(world)]
        assert len({sampler.steps for sampler in samplers}) == 1
        assert total_steps(config, read_dataset(tiny_sysu), world) == 2 * samplers[0].steps // accumulate
        return samplers[0].steps

    plain = length(1)
    for several in (2, 3, 7):
        assert length(several) == several * (5 if steps == 5 else ceil(plain / several))
    if steps == "null":
        larger = max(int((table.modality == m).sum()) for m in (0, 1))
        assert plain == ceil(larger / (3 * 2 * world))
