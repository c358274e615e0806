"""Settings that `benchmarks/search_recipe.py` found for the baselines and for fmcnet-plus, by method. All ours.

FMCNet's own are in `configs/generated.yaml`. Each method had the same number of trials of the same number of steps,
judged on validation identities of a world that no study uses. They hold for the generated benchmark, preset small,
with its own configuration; other data take none of them. Empty: not searched yet, the study's configuration as it is.
"""

from __future__ import annotations

RECIPES: dict[str, tuple[str, ...]] = {}
"""Overrides ("training.lr=0.003") by method: base, agw, hc, fmcnet-plus."""
