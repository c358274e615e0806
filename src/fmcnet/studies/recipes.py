"""Settings that trials found for baselines and fmcnet-plus, by method. All ours; docs/findings.md has the trials.

What every row starts from, FMCNet's own settings among it, is in `configs/generated.yaml`. Judged on validation
identities of a world that no study uses (`benchmarks/recipe_trials.jsonl`). They hold for the generated benchmark,
preset small, with its own configuration; other data take none of them. A method that is not here has its row's
settings as they stand: no trial of it did better by more than the noise.
"""

from __future__ import annotations

RECIPES: dict[str, tuple[str, ...]] = {
    "fmcnet": ("losses.dc=false", "losses.fc=0"),  # with channel exchange (the row fmcnet-caj)
    "fmcnet-plus": (
        "model.unit_features=false",
        "losses.wrt=1",
        "losses.md=0.3",
        "losses.mc=0.3",
        "losses.center_scale=1",
        "losses.detach_targets=true",
        "augment.channel=exchange",
        "augment.channel_probability=0.5",
    ),
}
"""Overrides ("training.lr=0.003") by method: base, agw, hc, fmcnet (with channel exchange), fmcnet-plus."""
