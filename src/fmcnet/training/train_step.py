"""One training step: forward pass, step of the discriminators, step of all other parts.

No step waits for the device. Its measurements stay there until `read`, which the trainer calls every
`training.log_every` steps and before it writes anything. `read` names the step and the term of the first value that
is not finite, so nothing computed after that step is ever stored.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from fmcnet.config import Config
from fmcnet.data.loader import TrainingBatch
from fmcnet.distributed import (
    DistributedContext,
    average_buffers,
    average_gradients,
    gather_centers,
    mean_over_ranks,
    synchronize_batchnorm,
)
from fmcnet.errors import FmcnetError
from fmcnet.losses.criterion import LOSSES, ExtraTerm, FMCNetLoss
from fmcnet.models.backbones import make_backbone
from fmcnet.models.build import build_model
from fmcnet.models.decomposition import Decomposition
from fmcnet.models.fmcnet import FMCNet, FMCNetOutput
from fmcnet.training import health
from fmcnet.training.optimizers import (
    BACKBONE_PARTS,
    advance_schedule,
    build_optimizers,
    build_schedulers,
    lr_factor,
)

GRADIENT, DISCRIMINATOR_GRADIENT = "gradient", "discriminator gradient"
"""Names of the gradients' norms among the measured values."""

SCALE, SMALLEST_SCALE = "scale", 2.0**-14
"""Name of the float16 scaler's factor among the measured values, and its lower limit in a healthy training."""

NO_TERMS = {
    *(*health.NAMES, GRADIENT, DISCRIMINATOR_GRADIENT, SCALE),
    *("loss", "rate", "step", "epoch", "validated_step"),
}
"""Keys of log records that are not terms of the loss."""


class NotFinite(Exception):
    """The values `names` of a step (from 1) are NaN or infinite."""

    def __init__(self, step: int, names: list[str]) -> None:
        super().__init__(f"step {step}: {', '.join(names)}")
        self.step, self.names = step, names


class TrainStep:
    """A model in training with its loss, optimisers, schedules and float16 scaler.

    The model is moved to the device here. `identities` is P of one process, `steps` is of the whole training.

    Attributes:
        model: the weights, by their plain names.
        criterion: the loss of all parts, and that of the discriminators, eq. (12).
        optimizer: of all but the discriminators.
        discriminator_optimizer: None without discriminators.
        schedulers: of the learning rates.
        scaler: of float16 gradients (disabled otherwise).
    """

    def __init__(
        self,
        config: Config,
        model: FMCNet,
        ctx: DistributedContext,
        identities: int,
        steps: int,
        terms: Mapping[str, ExtraTerm] | None = None,
    ) -> None:
        training = config.training
        self.config, self.ctx, self.steps = config, ctx, steps
        self.precision = precision(training.precision, ctx.device)
        self.memory_format = memory_format(config, ctx.device)
        cast(Any, model).to(ctx.device, memory_format=self.memory_format)
        if training.sync_batchnorm and ctx.world > 1:
            model = synchronize_batchnorm(model, ctx.device)
        if training.recompute:
            _recompute_activations(model.decomposition)
        self.model = model
        gather = gather_centers if training.sync_centers and ctx.world > 1 else None
        self.criterion = FMCNetLoss(config.losses, identities, model.compensation, gather, terms)
        self._losses = LOSSES | set(terms or ())
        self.optimizer, self.discriminator_optimizer = build_optimizers(
            model, training, fused=ctx.device.type in ("cpu", "cuda")
        )
        self.schedulers = build_schedulers(self.optimizers.values(), steps, training)
        self.scaler = torch.amp.GradScaler(ctx.device.type, enabled=self.precision is torch.float16)
        if training.compile:
            model.compile()
        self._network: Any = self._distribute(model) if ctx.world > 1 else model
        self._measured: list[tuple[int, list[str], Tensor]] = []

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by their names in checkpoints; "judge" is that of the discriminators."""
        if self.discriminator_optimizer is None:
            return {"main": self.optimizer}
        return {"main": self.optimizer, "judge": self.discriminator_optimizer}

    def step(self, batches: Sequence[TrainingBatch], step: int) -> None:
        """Take `step` (from 0) on `training.accumulate` whole batches; `read` returns what it measures.

        With several batches, the discriminators step after each batch. All other parts step once, with the mean of
        the batches' gradients.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        measured: list[dict[str, Tensor]] = []
        for batch in batches:
            accumulates = self.ctx.world > 1 and len(measured) < len(batches) - 1
            with self._network.no_sync() if accumulates else nullcontext():
                measured.append(self._forward_backward(batch, len(batches)))
        with record_function("fmcnet: optimizer"):
            norm = self._update()
        for scheduler in self.schedulers:
            advance_schedule(scheduler)
        means = torch.stack([torch.stack([*batch_values.values()]) for batch_values in measured]).mean(dim=0)
        values = dict(zip(measured[0], means, strict=True))
        values[GRADIENT] = norm.detach().float()
        if self.scaler.is_enabled():
            values[SCALE] = cast(Any, self.scaler)._get_scale_async().float()
        self._measured.append((step, [*values], torch.stack([*values.values()])))

    def _forward_backward(self, batch: TrainingBatch, batches: int) -> dict[str, Tensor]:
        """Forward pass, step of the discriminators, backward pass of the rest; returns measured values by name."""
        output = self._forward(batch)
        discriminators = self._train_discriminators(output)
        with record_function("fmcnet: losses"):
            loss, terms = self.criterion(output, batch.labels)
        with record_function("fmcnet: backward"):
            self.scaler.scale(loss / batches).backward()
        values = {**terms, **discriminators, **health.measure(self.model, output, batch.labels)}
        return {name: value.detach().float() for name, value in values.items()}

    @record_function("fmcnet: forward")
    def _forward(self, batch: TrainingBatch) -> FMCNetOutput:
        mixed = self.precision is not torch.float32
        visible = batch.visible.contiguous(memory_format=self.memory_format)
        infrared = batch.infrared.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.ctx.device.type, self.precision if mixed else None, enabled=mixed):
            output: FMCNetOutput = self._network(visible, infrared)
        return output.float() if mixed else output

    @record_function("fmcnet: discriminators")
    def _train_discriminators(self, output: FMCNetOutput) -> dict[str, Tensor]:
        """The step of the discriminators, eq. (12); returns their measured values."""
        loss = self.criterion.discriminator_loss(output)
        if loss is None or self.discriminator_optimizer is None:
            return {}
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return {"discriminator": loss, DISCRIMINATOR_GRADIENT: self._update_discriminators()}

    def _update_discriminators(self) -> Tensor:
        """Take the step of the discriminators' optimiser; returns the norm of the gradient, on the device."""
        optimizer, compensation = self.discriminator_optimizer, self.model.compensation
        assert optimizer is not None
        assert compensation is not None
        average_gradients(compensation.discriminator_parameters(), self.ctx.world)
        norm = _gradient_norm(compensation.discriminator_parameters())
        optimizer.step()
        compensation.renormalize()
        return norm

    def _update(self) -> Tensor:
        """Take the step of the main optimiser; returns the norm of the gradient before clipping, on the device."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clip = self.config.training.clip
        norm = nn.utils.clip_grad_norm_(parameters, clip) if clip else _gradient_norm(parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _distribute(self, model: FMCNet) -> DistributedDataParallel:
        """Wrap the model so that processes average its gradients, except those of discriminators and unused parts."""
        ignored: set[nn.Parameter] = set()
        if model.compensation is not None:
            ignored |= {*model.compensation.discriminator_parameters()}
            losses = self.config.losses
            if model.fusion is None and not (losses.gan or losses.fc or losses.ic):
                ignored |= {*model.compensation.to_infrared.parameters()}  # no loss trains the generators
                ignored |= {*model.compensation.to_visible.parameters()}
        names = [name for name, parameter in model.named_parameters() if parameter in ignored]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        device_ids = [self.ctx.device.index] if self.ctx.device.type == "cuda" else None
        with warnings.catch_warnings():  # newer PyTorch would rename broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def read(self) -> list[dict[str, float]]:
        """Return what the steps since the last call measured, means over the processes; waits for the device.

        Returns:
            One record per step: "step" (from 1), every term by name, the values of `health.measure`, gradient norms,
            "scale" (in float16), "loss" (the sum of the terms that all but the discriminators minimise) and "rate"
            (the learning rate of heads and generators).

        Raises:
            NotFinite: naming the first step with a value that is not finite.
        """
        if not self._measured:
            return []
        measured, self._measured = self._measured, []
        flat = torch.cat([values for *_, values in measured]).cpu().double()  # the only wait for the device
        flat = mean_over_ranks(flat, self.ctx)
        records = []
        for (step, names, _), row in zip(measured, flat.split([len(v) for *_, v in measured]), strict=True):
            values: dict[str, float] = dict(zip(names, row.tolist(), strict=True))
            not_finite = _first_not_finite(values, self._losses, ignore_gradient=self.scaler.is_enabled())
            if values.get(SCALE, 1.0) < SMALLEST_SCALE:  # the scaler has halved its factor for a long time
                not_finite = [GRADIENT]
            if not_finite:
                raise NotFinite(step + 1, not_finite)
            loss = sum(v for k, v in values.items() if k in self._losses)
            training = self.config.training
            learning_rate = training.lr * lr_factor(step, self.steps, training)
            records.append({"step": step + 1, "loss": loss, **values, "rate": learning_rate})
        return records

    def export(self) -> FMCNet:
        """Copy the model for inference, running statistics averaged over the processes (every process must call)."""
        with torch.random.fork_rng([]):  # so that validation changes no draw of the training
            exported = build_model(
                self.config.model, self.model.decomposition.classify_shared.linear.out_features
            )
        exported.load_state_dict(self.model.state_dict())
        exported = exported.to(self.ctx.device)
        average_buffers(exported, self.ctx.world)
        return exported.eval()


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type for the forward pass; "auto": bfloat16 on GPUs that have it, float16 on others, else float32.

    Raises:
        FmcnetError: for float16 without a GPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if name == "fp16" and device.type != "cuda":
        raise FmcnetError("training.precision=fp16 needs a CUDA GPU: take auto or fp32 here")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def memory_format(config: Config, device: torch.device) -> torch.memory_format:
    """`training.channels_last`; "auto": channels_last on GPUs, and on CPUs for backbones that are faster with it."""
    setting = config.training.channels_last
    if setting == "auto":
        backbone = make_backbone(config.model.arch, config.model.width)
        setting = "no" if device.type == "cpu" and not backbone.channels_last else "yes"
    return torch.channels_last if setting == "yes" else torch.contiguous_format


def _recompute_activations(decomposition: Decomposition) -> None:
    """Recompute the activations of stems and tails in the backward pass, to save memory."""
    for name, module in decomposition.named_children():
        if name.startswith(BACKBONE_PARTS):
            module.forward = _recomputing_forward(module)


def _recomputing_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The `forward` of a module, through `torch.utils.checkpoint` in training."""
    original_forward = module.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _keep_running_statistics(module)  # of the forward pass, of the recomputation

    def forward(x: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return cast(Tensor, original_forward(x))
        return cast(Tensor, checkpoint(original_forward, x, use_reentrant=False, context_fn=contexts))

    return forward


@contextmanager
def _keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Do not update running statistics of batch normalisation again: the forward pass did it already."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # not by track_running_stats=False: `checkpoint` would then save other tensors
        norm.momentum = 0.0
        norm.num_batches_tracked = torch.zeros_like(cast(Tensor, norm.num_batches_tracked))
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _first_not_finite(values: dict[str, float], losses: Set[str], ignore_gradient: bool) -> list[str]:
    """Names of the values that are not finite, in the earliest such part of the step: the others follow from it.

    With float16 a gradient may overflow now and then: the scaler skips such a step.
    """
    not_finite = [name for name, value in values.items() if not math.isfinite(value)]
    terms = [name for name in values if name in losses]
    gradient = [] if ignore_gradient else [GRADIENT]
    parts = [["discriminator"], [DISCRIMINATOR_GRADIENT], terms, gradient, [*health.NAMES]]
    return next((found for part in parts if (found := [name for name in not_finite if name in part])), [])
