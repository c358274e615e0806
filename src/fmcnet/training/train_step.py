"""One step of the min-max game: forward, the discriminators' turn, everybody else's turn.

Nothing in a step waits for the device. What it measured stays there until `read`, which the loop calls every
`training.log_every` steps and before anything is written; a value that is not finite is then reported with the step
and the term that it came from, and nothing computed after that step is ever stored.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

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
from fmcnet.losses.criterion import LOSSES, FMCNetLoss
from fmcnet.models.backbone import make_backbone
from fmcnet.models.build import build_model
from fmcnet.models.compensation import Compensation
from fmcnet.models.fmcnet import FMCNet, FMCNetOutput
from fmcnet.training import health
from fmcnet.training.optimizers import advance_schedule, build_optimizers, build_schedulers, rate
from fmcnet.types import Modality

GRADIENT, JUDGE_GRADIENT = "gradient", "discriminator gradient"
"""Names of the gradients' norms among the measured values."""

SCALE, SMALLEST_SCALE = "scale", 2.0**-14
"""Name of the float16 scaler's factor among the measured values; a sane training does not fall below that."""


class NotFinite(Exception):
    """Some values of a step are NaN or infinite.

    Attributes:
        step: which, counted from 1. names: of the values.
    """

    def __init__(self, step: int, names: list[str]) -> None:
        super().__init__(f"step {step}: {', '.join(names)}")
        self.step, self.names = step, names


class Game:
    """A model under training: weights, optimisers, scaler.

    Args:
        config: settings. model: moved to the device here. place: device and rank. identities: P of one process.
        steps: of the whole training.

    Attributes:
        model: the weights, by their plain names. optimizers: "main" and "judge" (None without discriminators).
        schedulers: of the learning rates. scaler: of float16 gradients (disabled otherwise).
    """

    def __init__(
        self, config: Config, model: FMCNet, place: DistributedContext, identities: int, steps: int
    ) -> None:
        training = config.training
        self.config, self.place, self.identities, self.steps = config, place, identities, steps
        self.precision = precision(training.precision, place.device)
        self.format = memory_format(config, place.device)
        model = cast(FMCNet, cast(Any, model).to(place.device, memory_format=self.format))
        if training.sync_batchnorm and place.world > 1:
            model = cast(FMCNet, synchronize_batchnorm(model, place.device))
        model.decomposition.recompute = training.recompute
        self.model = model
        main, judge = build_optimizers(model, training, fused=place.device.type in ("cpu", "cuda"))
        self.optimizers: dict[str, torch.optim.Optimizer | None] = {"main": main, "judge": judge}
        self._main, self._judge = main, judge
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.precision is torch.float16)
        self.schedulers = build_schedulers((main, judge), steps, training)
        gather = gather_centers if training.sync_centers and place.world > 1 else None
        self.criterion = FMCNetLoss(config.losses, identities, model.compensation, gather)
        self._network = self._wrap(model)
        self._names: list[str] = []
        self._measured: list[tuple[int, list[str], Tensor]] = []

    def _wrap(self, model: FMCNet) -> Any:
        """The model as it is called: compiled, and with gradients averaged over the processes."""
        if self.config.training.compile:
            model.compile()
        if self.place.world < 2:
            return model
        fmc, weights = model.compensation, self.config.losses
        ignored = [
            n for n, _ in model.named_parameters() if ".judge_" in n
        ]  # averaged by hand, in their own turn
        if fmc is not None and model.fusion is None and not (weights.gan or weights.fc or weights.ic):
            ignored += [
                n for n, _ in model.named_parameters() if ".to_" in n
            ]  # nothing trains the generators
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        device = [self.place.device.index] if self.place.device.type == "cuda" else None
        with warnings.catch_warnings():  # newer PyTorch would rename broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model, device_ids=device, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def step(self, batches: Sequence[TrainingBatch], step: int) -> None:
        """Step `step` (from 0) on `training.accumulate` whole batches; what it measured waits for `read`.

        With several batches the discriminators take their turn on each (they see fresh features every time), all
        others once, with the mean of the batches' gradients.
        """
        self.model.train()
        self._main.zero_grad(set_to_none=True)
        measured = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            quiet = self._network.no_sync() if self.place.world > 1 and not last else nullcontext()
            with quiet:
                measured.append(self._one(batch, len(batches)))
        with record_function("fmcnet: optimizer"):
            norm = self._descend(self._main)
        self.scaler.update()
        for scheduler in self.schedulers:
            advance_schedule(scheduler)
        values = torch.stack(measured).mean(dim=0) if len(measured) > 1 else measured[0]
        more = {GRADIENT: norm}
        if self.scaler.is_enabled():
            more[SCALE] = cast(Any, self.scaler)._get_scale_async()
        values = torch.cat([values, torch.stack([value.detach().float() for value in more.values()])])
        self._measured.append((step, [*self._names, *more], values))

    def _one(self, batch: TrainingBatch, share: int) -> Tensor:
        """Forward, the discriminators' turn and the backward pass of all others; the measured values (n,)."""
        half = self.precision is not torch.float32
        with record_function("fmcnet: forward"):
            visible, infrared = (x.contiguous(memory_format=self.format) for x in batch[:2])
            with torch.autocast(self.place.device.type, self.precision if half else None, enabled=half):
                output: FMCNetOutput = self._network(visible, infrared)
            output = output.float() if half else output
        with record_function("fmcnet: discriminators"):
            judged = {}
            value = self.criterion.discriminator_loss(output)
            if value is not None and self._judge is not None:
                self._judge.zero_grad(set_to_none=True)
                value.float().backward()
                judged = {"discriminator": value, JUDGE_GRADIENT: self._descend(self._judge)}
        with record_function("fmcnet: losses"):
            loss, terms = self.criterion(output, batch.labels)
            if not {"gan", "fc", "ic", "id_fused"} & set(terms):
                loss = loss + _nothing(
                    output
                )  # DDP wants the generators in the graph; one process does the same
        with record_function("fmcnet: backward"):
            self.scaler.scale(loss / share).backward()
        values = {**terms, **judged, **health.measure(self.model, output, batch.labels)}
        self._names = list(values)
        return torch.stack([value.detach().float() for value in values.values()])

    def _descend(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Take the optimiser's step; the norm of the gradient before clipping, a scalar on the device."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if optimizer is self._judge:
            average_gradients(parameters, self.place.world)
            norm = _norm(parameters)
            optimizer.step()
            for target in Modality:
                cast(Compensation, self.model.compensation).discriminator(target).renormalize()
            return norm
        self.scaler.unscale_(optimizer)
        clip = self.config.training.clip
        norm = nn.utils.clip_grad_norm_(parameters, clip) if clip else _norm(parameters)
        self.scaler.step(optimizer)
        return norm

    def read(self) -> list[dict[str, float]]:
        """What the steps since the last call measured, means over the processes; waits for the device.

        Returns:
            A record a step: "step" (from 1), every term by name, what `health.measure` gives, the gradients' norms,
            "loss" (the sum of the terms that the min player minimises) and "rate".

        Raises:
            NotFinite: naming the first step with a value that is not finite.
        """
        if not self._measured:
            return []
        measured, self._measured = self._measured, []
        flat = torch.cat([values for *_, values in measured]).cpu().double()  # the one wait for the device
        flat = mean_over_ranks(flat, self.place)
        records = []
        for (step, names, _), row in zip(measured, flat.split([len(v) for *_, v in measured]), strict=True):
            values: dict[str, float] = dict(zip(names, row.tolist(), strict=True))
            bad = _first_not_finite(values, ignore_gradient=self.scaler.is_enabled())
            if values.get(SCALE, 1.0) < SMALLEST_SCALE:
                bad = [
                    GRADIENT
                ]  # of every step for a long time: the scaler has halved its factor again and again
            if bad:
                raise NotFinite(step + 1, bad)
            loss = sum(v for k, v in values.items() if k in LOSSES)
            factor = rate(step, self.steps, self.config.training)
            records.append({"step": step + 1, "loss": loss, **values, "rate": factor})
        return records

    def export(self) -> FMCNet:
        """Copy the model for inference, running statistics averaged over the processes (every process must call)."""
        with torch.random.fork_rng([]):  # so that to validate or not changes no dropout
            plain = build_model(
                self.config.model, self.model.decomposition.classify_shared.linear.out_features
            )
        plain.load_state_dict(self.model.state_dict())
        plain = plain.to(self.place.device)
        average_buffers(plain, self.place.world)
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
    """channels_last on GPUs and, for the backbones that train faster in it, on CPUs; as said otherwise."""
    wanted = config.training.channels_last
    if wanted == "auto":
        backbone = make_backbone(config.model.arch, config.model.width)
        wanted = "no" if device.type == "cpu" and not backbone.channels_last else "yes"
    return torch.channels_last if wanted == "yes" else torch.contiguous_format


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _first_not_finite(values: dict[str, float], ignore_gradient: bool) -> list[str]:
    """Names of what is not finite, of the earliest part of the step that has any: the rest follows from it.

    With float16 a gradient that overflows is expected now and then: the scaler leaves such a step out.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    terms = [name for name in values if name in LOSSES]
    parts = [
        ["discriminator"],
        [JUDGE_GRADIENT],
        terms,
        [] if ignore_gradient else [GRADIENT],
        [*health.NAMES],
    ]
    return next((found for part in parts if (found := [name for name in bad if name in part])), [])


def _nothing(output: FMCNetOutput) -> Tensor | float:
    """0 with a gradient of 0 for the generators, where no term trains them (yet)."""
    made = [half.generated for half in output if half.generated is not None]
    return torch.stack([(feature * 0).sum() for feature in made]).sum() if made else 0.0
