"""Averaged weights: an exponential moving average of a model's parameters and running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Weights that follow a model's slowly. Ours (the paper says nothing of it).

    After step t (from 1) the decay is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten.

    Args:
        model: what is followed. decay: 0..1, 0.999 say.

    Attributes:
        values: the averages by the names of the model's state dict (floating-point entries only).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._followed = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.values = {key: value.detach().clone() for key, value in self._followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (from 1): values += (1 - decay) * (model - values)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._followed.values()), 1.0 - decay)

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Take up values of a checkpoint."""
        for key, value in self.values.items():
            value.copy_(values[key])
