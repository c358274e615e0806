"""Optimisers and learning rates; the rate of a step is a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from fmcnet.config import TrainingConfig
from fmcnet.models.fmcnet import FMCNet


def build_optimizers(
    model: FMCNet, config: TrainingConfig, fused: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """The optimiser of the min player (everything but the discriminators) and that of the max player.

    Stems and tails learn at `lr * backbone_lr_factor`, w1 and w2 at `lr * fusion_lr_factor`, heads and generators
    at `lr`. Weight decay is for matrices and kernels only.

    Args:
        model: already where it will be trained. config: settings.
        fused: one kernel for all parameters (PyTorch has them for CPUs and CUDA).
    """
    judges = model.compensation.discriminator_parameters() if model.compensation else []
    judge_ids = {id(parameter) for parameter in judges}
    backbone = {
        id(parameter)
        for name, child in model.decomposition.named_children()
        if name.startswith(("stem", "shared", "specific"))
        for parameter in child.parameters()
    }
    fusion = {id(parameter) for parameter in ((model.fusion.w1, model.fusion.w2) if model.fusion else ())}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in judge_ids:
            factor = config.backbone_lr_factor if id(parameter) in backbone else 1.0
            factor = config.fusion_lr_factor if id(parameter) in fusion else factor
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "lr": config.lr * factor,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]
    return _make(described, config, fused), (
        # Always Adam, with the momentum of 0.5 that adversarial training uses (Radford et al., ICLR 2016). Ours.
        _with_base_lr(torch.optim.Adam(judges, lr=config.discriminator_lr, betas=(0.5, 0.999), fused=fused))
        if judges
        else None
    )


def _make(groups: list[dict[str, object]], config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return _with_base_lr(torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=fused))
    return _with_base_lr(torch.optim.AdamW(groups, lr=config.lr, fused=fused))


def _with_base_lr(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def rate(step: int, steps: int, config: TrainingConfig) -> float:
    """What the base learning rate is multiplied by at `step` (0-based) of `steps`: in 0..1."""
    warm = config.warmup * steps
    if step < warm:
        start = 0.04 if config.schedule == "onecycle" else 0.1
        return start + (1 - start) * (step + 1) / (warm + 1)
    done = (step - warm) / max(1.0, steps - warm)
    if config.schedule in ("onecycle", "cosine"):
        return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "multistep":
        return float(0.1 ** sum(step >= milestone * steps for milestone in config.milestones))
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer | None, factor: float) -> None:
    """Multiply every group's base learning rate."""
    for group in optimizer.param_groups if optimizer else ():
        group["lr"] = group["base_lr"] * factor
