"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fmcnet.config import TrainingConfig
from fmcnet.models.fmcnet import FMCNet

BACKBONE_PARTS = ("stem", "shared", "specific")
"""Prefixes of the names that stems and tails have in `Decomposition`."""


def build_optimizers(
    model: FMCNet, config: TrainingConfig, fused: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """Build the main optimiser, and that of the discriminators (None without any).

    Stems and tails learn at `lr * backbone_lr_factor`, w1 and w2 at `lr * fusion_lr_factor`, all else at `lr`. Only
    matrices and kernels have weight decay.

    Args:
        model: on the device where it is trained.
        config: settings.
        fused: one kernel for all parameters (PyTorch has it for CPUs and CUDA).
    """
    discriminators = model.compensation.discriminator_parameters() if model.compensation else []
    factors = dict.fromkeys(model.parameters(), 1.0)
    for name, child in model.decomposition.named_children():
        if name.startswith(BACKBONE_PARTS):
            factors |= dict.fromkeys(child.parameters(), config.backbone_lr_factor)
    if model.fusion is not None:
        factors |= dict.fromkeys((model.fusion.w1, model.fusion.w2), config.fusion_lr_factor)
    for parameter in discriminators:
        del factors[parameter]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, factor in factors.items():
        if parameter.requires_grad:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    param_groups = [
        {
            "params": parameters,
            "lr": config.lr * factor,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(param_groups, lr=config.lr, momentum=0.9, nesterov=True, fused=fused)
    else:
        optimizer = torch.optim.AdamW(param_groups, lr=config.lr, fused=fused)
    if not discriminators:
        return optimizer, None
    # Always Adam, with the momentum of 0.5 that adversarial training uses (Radford et al., ICLR 2016). Ours.
    return optimizer, torch.optim.Adam(
        discriminators, lr=config.discriminator_lr, betas=(0.5, 0.999), fused=fused
    )


def lr_factor(step: int, steps: int, config: TrainingConfig) -> float:
    """Compute the factor, 0..1, of the learning rates at `step` (from 0) of a training of `steps`."""
    warmup_steps = config.warmup * steps
    if step < warmup_steps:
        start = 0.04 if config.schedule == "onecycle" else 0.1
        return start + (1 - start) * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, steps - warmup_steps)
    if config.schedule in ("onecycle", "cosine"):
        return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "multistep":
        return float(0.1 ** sum(step >= milestone * steps for milestone in config.milestones))
    return 1.0


def build_schedulers(
    optimizers: Iterable[torch.optim.Optimizer], steps: int, config: TrainingConfig
) -> list[LambdaLR]:
    """Build a schedule for each optimiser: `lr_factor` of the step. So a resume needs only the step."""
    return [LambdaLR(optimizer, lambda step: lr_factor(step, steps, config)) for optimizer in optimizers]


def advance_schedule(scheduler: LambdaLR) -> None:
    """Set the learning rates of the next step."""
    with warnings.catch_warnings():  # the float16 scaler may have skipped the first step of the optimiser
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        scheduler.step()


def restore_schedule(scheduler: LambdaLR, step: int) -> None:
    """Set the learning rates of `step` (from 0), after a resume."""
    scheduler.last_epoch = step - 1
    advance_schedule(scheduler)
