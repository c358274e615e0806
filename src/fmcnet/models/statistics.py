"""What `fmcnet adapt` and the end of a training need to replace a model's statistics of each modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fmcnet.models.decomposition import FeatureNorm
from fmcnet.models.fmcnet import FMCNet
from fmcnet.types import Modality


def feature_norms(model: FMCNet) -> list[FeatureNorm]:
    """Every `FeatureNorm` of a model; none unless `model.normalization=modality`."""
    return [module for module in model.modules() if isinstance(module, FeatureNorm)]


@contextmanager
def watch_norms(model: FMCNet, keep: Callable[[FeatureNorm, Modality, Tensor], object]) -> Iterator[None]:
    """Within the block, give `keep` the features (B, D) that each `FeatureNorm` gets, with their modality."""
    with ExitStack() as hooks:
        for norm in feature_norms(model):
            for modality in Modality:
                hook = _hook(norm, modality, keep)
                hooks.callback(norm.statistics[modality.code].register_forward_pre_hook(hook).remove)
        yield


def _hook(
    norm: FeatureNorm, modality: Modality, keep: Callable[[FeatureNorm, Modality, Tensor], object]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        keep(norm, modality, inputs[0])

    return hook


@contextmanager
def unstandardized(model: FMCNet) -> Iterator[None]:
    """Within the block, `embed` gives the descriptor before its standardisation."""
    standard, model.standard = model.standard, None
    try:
        yield
    finally:
        model.standard = standard
