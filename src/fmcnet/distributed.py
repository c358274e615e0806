"""Several processes as one: what they agree on, average, gather and normalise together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fmcnet.errors import FmcnetError
from fmcnet.runtime import Runtime

_Item = TypeVar("_Item")
_Error = TypeVar("_Error", bound=FmcnetError | OSError)


def agree(flags: Sequence[bool], place: Runtime) -> list[bool]:
    """Each flag is true on every process when it is true on one; waits for no GPU."""
    if place.world < 2:
        return list(flags)
    told = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(told, group=place.control)
    return [bool(value > 0) for value in told]


@contextlib.contextmanager
def together(place: Runtime) -> Iterator[None]:
    """Every process goes on after the block, or none: a mistake (`FmcnetError`, `OSError`) that one finds, all raise.

    Without it the others would wait in their next exchange for the one that is gone. Every process must enter, and
    an exchange inside must come before anything that can fail.
    """
    own: FmcnetError | OSError | None = None
    try:
        yield
    except (FmcnetError, OSError) as error:
        if place.world < 2:
            raise
        own = error
    if place.world < 2:
        return
    found: list[Any] = [None] * place.world
    dist.all_gather_object(found, own, group=place.control)
    first = next((error for error in found if error is not None), None)
    if first is not None:
        raise known_to_all(own if own is not None and found[place.rank] is first else first)


def known_to_all(error: _Error) -> _Error:
    """The error, marked as raised by every process of the job: rank 0 says it."""
    error.agreed = True  # type: ignore[union-attr]
    return error


def gather(item: _Item, place: Runtime) -> list[_Item]:
    """Everybody's item, by rank, on rank 0; an empty list elsewhere. Any picklable object."""
    if place.world < 2:
        return [item]
    items: list[Any] | None = [None] * place.world if place.main else None
    dist.gather_object(item, items, dst=0, group=place.control)
    return items or []


def from_main(values: Tensor, place: Runtime) -> Tensor:
    """Rank 0's values, everywhere; `values` lies on the CPU and is equally large on all."""
    if place.world > 1:
        dist.broadcast(values, 0, group=place.control)
    return values


def mean_over_ranks(values: Tensor, place: Runtime) -> Tensor:
    """Each value's mean over the processes; `values` lies on the CPU."""
    if place.world < 2:
        return values
    values = values.clone()
    dist.all_reduce(values, group=place.control)
    return values / place.world


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if world < 2:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for grad in grads:
        grad.copy_(flat[at : at + grad.numel()].view_as(grad))
        at += grad.numel()


def average_buffers(model: nn.Module, world: int) -> None:
    """Replace floating-point buffers (running statistics) by their mean over the processes."""
    if world < 2:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def gather_centers(centers: Tensor) -> Tensor:
    """Centres (P, D) of this process to those of all (world * P, D), by rank; gradients flow to their owners.

    Every process then computes the same loss of all centres. The backward pass adds up what each process's copy of
    the loss says, world times the gradient, and the averaging of gradients over processes divides by world again.
    """
    return cast(Tensor, cast(Any, _Gathered).apply(centers))


class _Gathered(torch.autograd.Function):
    """Rows of all processes, by rank; a row's gradient is the sum of what all say of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [
            torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


class _Summed(torch.autograd.Function):
    """The sum over all processes, and the sum of its gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        whole = own.contiguous().clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch normalisation take its statistics over all processes.

    PyTorch's own `SyncBatchNorm` runs on GPUs only; elsewhere the same is done with two sums over the processes.
    """
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncedBatchNorm2d
        elif type(module) is nn.BatchNorm1d:
            module.__class__ = _SyncedBatchNorm1d
    return model


def _synced(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalisation over the batches of all processes, which are equally large."""
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = x.numel() // x.shape[1] * dist.get_world_size()
    mean = cast(Tensor, cast(Any, _Summed).apply(x.sum(dims))) / count
    centred = x - mean.view(shape)
    var = cast(Tensor, cast(Any, _Summed).apply((centred * centred).sum(dims))) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            cast(Tensor, norm.num_batches_tracked).add_(1)
            norm.running_mean.lerp_(mean, norm.momentum or 0.0)
            norm.running_var.lerp_(var * (count / max(count - 1, 1)), norm.momentum or 0.0)
    out = centred * torch.rsqrt(var + norm.eps).view(shape)
    if norm.weight is not None:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out


class _SyncedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _synced(self, input) if self.training else super().forward(input)


class _SyncedBatchNorm1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _synced(self, input) if self.training else super().forward(input)
