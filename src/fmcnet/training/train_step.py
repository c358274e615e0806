"""One training step: forward, the discriminators' turn, everybody else's turn.

Nothing in a step waits for the device. What a step measures stays there until `read`, which the trainer calls every
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
"""Name of the float16 scaler's factor among the measured values; a sane training does not fall below that."""

MEASURED = (*health.NAMES, GRADIENT, DISCRIMINATOR_GRADIENT, SCALE)
"""Names of the values that a step measures beside the terms of the loss."""


class NotFinite(Exception):
    """Some values of a step are NaN or infinite.

    Attributes:
        step: which, counted from 1.
        names: of the values.
    """

    def __init__(self, step: int, names: list[str]) -> None:
        super().__init__(f"step {step}: {', '.join(names)}")
        self.step, self.names = step, names


class TrainStep:
    """A model in training with its loss, optimisers, schedules and float16 scaler.

    Args:
        config: settings.
        model: moved to the device here.
        ctx: device and rank.
        identities: P of one process.
        steps: of the whole training.
        terms: losses of your own, by name.

    Attributes:
        model: the weights, by their plain names.
        criterion: the loss of both players of eq. (12).
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
        self.schedulers = build_schedulers((self.optimizer, self.discriminator_optimizer), steps, training)
        self.scaler = torch.amp.GradScaler(ctx.device.type, enabled=self.precision is torch.float16)
        if training.compile:
            model.compile()
        self._network: Any = self._distribute(model) if ctx.world > 1 else model
        self._measured: list[tuple[int, list[str], Tensor]] = []

    def step(self, batches: Sequence[TrainingBatch], step: int) -> None:
        """Take one step; `read` returns what it measures.

        With several batches the discriminators take their turn on each (they see fresh features every time), all
        others once, with the mean of the batches' gradients.

        Args:
            batches: `training.accumulate` whole batches.
            step: number of the step, from 0.
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
        means = torch.stack([torch.stack([*one.values()]) for one in measured]).mean(dim=0)
        values = dict(zip(measured[0], means, strict=True))
        values[GRADIENT] = norm.detach().float()
        if self.scaler.is_enabled():
            values[SCALE] = cast(Any, self.scaler)._get_scale_async().float()
        self._measured.append((step, [*values], torch.stack([*values.values()])))

    def _forward_backward(self, batch: TrainingBatch, batches: int) -> dict[str, Tensor]:
        """Forward, the discriminators' turn, and the backward pass of all others; the measured values by name."""
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
        """The discriminators' turn in eq. (12), on every batch; all others step once."""
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
        norm = _norm(compensation.discriminator_parameters())
        optimizer.step()
        compensation.renormalize_discriminators()
        return norm

    def _update(self) -> Tensor:
        """Take the step of all others; returns the norm of the gradient before clipping, on the device."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clip = self.config.training.clip
        norm = nn.utils.clip_grad_norm_(parameters, clip) if clip else _norm(parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _distribute(self, model: FMCNet) -> DistributedDataParallel:
        """The model with gradients averaged over the processes, but for what has its own turn or no gradient."""
        ignored: set[nn.Parameter] = set()
        if model.compensation is not None:
            ignored |= {*model.compensation.discriminator_parameters()}
            weights = self.config.losses
            if model.fusion is None and not (weights.gan or weights.fc or weights.ic):
                ignored |= {*model.compensation.generator_parameters()}  # nothing trains them
        names = [name for name, parameter in model.named_parameters() if parameter in ignored]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        device = [self.ctx.device.index] if self.ctx.device.type == "cuda" else None
        with warnings.catch_warnings():  # newer PyTorch would rename broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model, device_ids=device, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def read(self) -> list[dict[str, float]]:
        """Return what the steps since the last call measured, means over the processes; waits for the device.

        Returns:
            A record a step: "step" (from 1), every term by name, what `health.measure` gives, the gradients' norms,
            "loss" (the sum of the terms that all but the discriminators minimise) and "rate" (the learning rate
            of heads, generators and fusion).

        Raises:
            NotFinite: naming the first step with a value that is not finite.
        """
        if not self._measured:
            return []
        measured, self._measured = self._measured, []
        flat = torch.cat([values for *_, values in measured]).cpu().double()  # the one wait for the device
        flat = mean_over_ranks(flat, self.ctx)
        records = []
        for (step, names, _), row in zip(measured, flat.split([len(v) for *_, v in measured]), strict=True):
            values: dict[str, float] = dict(zip(names, row.tolist(), strict=True))
            bad = _first_not_finite(values, self._losses, ignore_gradient=self.scaler.is_enabled())
            if values.get(SCALE, 1.0) < SMALLEST_SCALE:  # the scaler has halved its factor for a long time
                bad = [GRADIENT]
            if bad:
                raise NotFinite(step + 1, bad)
            loss = sum(v for k, v in values.items() if k in self._losses)
            training = self.config.training
            learning_rate = training.lr * lr_factor(step, self.steps, training)
            records.append({"step": step + 1, "loss": loss, **values, "rate": learning_rate})
        return records

    def export(self) -> FMCNet:
        """Copy the model for inference, running statistics averaged over the processes (every process must call)."""
        with torch.random.fork_rng([]):  # so that to validate or not changes no dropout
            plain = build_model(
                self.config.model, self.model.decomposition.classify_shared.linear.out_features
            )
        plain.load_state_dict(self.model.state_dict())
        plain = plain.to(self.ctx.device)
        average_buffers(plain, self.ctx.world)
        return plain.eval()


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type that the network computes in; "auto": bfloat16 on GPUs that have it, float16 on others, else float32.

    Raises:
        FmcnetError: for float16 elsewhere than on a GPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if name == "fp16" and device.type != "cuda":
        raise FmcnetError("training.precision=fp16 needs a CUDA GPU: take auto or fp32 here")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def memory_format(config: Config, device: torch.device) -> torch.memory_format:
    """`training.channels_last`; "auto": channels_last on GPUs and, for backbones that train faster in it, on CPUs."""
    wanted = config.training.channels_last
    if wanted == "auto":
        backbone = make_backbone(config.model.arch, config.model.width)
        wanted = "no" if device.type == "cpu" and not backbone.channels_last else "yes"
    return torch.channels_last if wanted == "yes" else torch.contiguous_format


def _recompute_activations(decomposition: Decomposition) -> None:
    """Let the backward pass compute the activations of stems and tails anew, to save memory."""
    for name, module in decomposition.named_children():
        if name.startswith(BACKBONE_PARTS):
            module.forward = _recomputing(module)


def _recomputing(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The `forward` of a module, by `torch.utils.checkpoint` in training."""
    plain = module.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the forward pass, and of the recomputation."""
        return nullcontext(), _running_statistics_kept(module)

    def forward(x: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return cast(Tensor, plain(x))
        return cast(Tensor, checkpoint(plain, x, use_reentrant=False, context_fn=contexts))

    return forward


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a module's batch normalisations, which the forward pass has updated already."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # track_running_stats stays: without it other tensors are saved than the first time
        norm.momentum = 0.0
        norm.num_batches_tracked = torch.zeros_like(cast(Tensor, norm.num_batches_tracked))
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _first_not_finite(values: dict[str, float], losses: Set[str], ignore_gradient: bool) -> list[str]:
    """Names of what is not finite, of the earliest part of the step that has any: the rest follows from it.

    With float16 a gradient that overflows is expected now and then: the scaler leaves such a step out.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    terms = [name for name in values if name in losses]
    gradient = [] if ignore_gradient else [GRADIENT]
    parts = [["discriminator"], [DISCRIMINATOR_GRADIENT], terms, gradient, [*health.NAMES]]
    return next((found for part in parts if (found := [name for name in bad if name in part])), [])
