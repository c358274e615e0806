"""Device, seeds and process group of a training, and the exchanges between its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fmcnet.errors import FmcnetError, Interrupted, PrintedBy

_Item = TypeVar("_Item")
_Model = TypeVar("_Model", bound=nn.Module)
_Error = TypeVar("_Error", bound=FmcnetError | OSError)

TIMEOUT = timedelta(hours=2)
"""How long processes wait for each other on the CPU: one process builds the image cache meanwhile."""


@dataclass(frozen=True)
class DistributedContext:
    """The device of a process, and its position among the processes of a job."""

    device: torch.device
    rank: int = 0  # 0..world-1
    world: int = 1  # number of processes
    # A gloo group of all processes, for flags and errors: it does not wait for a GPU's queue. None for one process.
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Choose a device by name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        FmcnetError: for a device this machine does not have.
    """
    name = str(name)
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE") or "1")
    if name in ("auto", "cuda") and torch.cuda.is_available() and rank >= torch.cuda.device_count():
        raise FmcnetError(
            f"process {rank} of this machine has no GPU: there are {torch.cuda.device_count()}; start as many "
            "processes (--nproc-per-node), or say --device cpu"
        )
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", rank)
        return torch.device("mps" if torch.backends.mps.is_available() and world < 2 else "cpu")
    if name == "mps" and world > 1:
        raise FmcnetError(f"--device mps is for one process, not {world}: say cpu or auto")
    if name == "cuda":
        name = f"cuda:{rank}"
    elif name.startswith("cuda:") and world > 1:
        raise FmcnetError(f"--device {name} would put all {world} processes on one GPU: say cuda or auto")
    return check_device(name)


def world_size() -> int:
    """Processes of the job, by torchrun's environment; 1 without a job.

    Raises:
        FmcnetError: when the environment is of half a job, such as a variable left over from a cluster.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if size != "1" and (missing := [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]):
        raise FmcnetError(
            f"WORLD_SIZE={size} is set without {' and '.join(missing)}: start with torchrun, or unset WORLD_SIZE"
        )
    return int(size)


def check_device(device: str | torch.device) -> torch.device:
    """A device that this machine has; raises `FmcnetError` for others."""
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise FmcnetError(f"device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error
    return torch_device


@contextlib.contextmanager
def distributed_context(device: str = "auto") -> Iterator[DistributedContext]:
    """Join the process group when started by `torchrun`, and leave it at the end.

    An error that leaves the block of a job that was started so is printed by each process that raises it, but one
    that all raise (`mark_agreed`) by rank 0 alone. `device` is as of `pick_device`, and so are its errors.
    """
    try:
        torch_device = pick_device(device)
    except FmcnetError as error:
        error.printed_by = PrintedBy.EACH
        raise
    if world_size() < 2:
        yield DistributedContext(torch_device)
        return
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    if dist.is_initialized():  # the caller owns the group
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        try:
            yield DistributedContext(torch_device, dist.get_rank(), dist.get_world_size(), control)
        finally:
            dist.destroy_process_group(control)
        return
    dist.init_process_group("nccl" if torch_device.type == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield DistributedContext(torch_device, dist.get_rank(), dist.get_world_size(), control)
        dist.barrier()  # no rank destroys the group while another still exchanges
    except (FmcnetError, OSError, Interrupted) as error:
        if (
            getattr(error, "printed_by", None) is PrintedBy.ONE
        ):  # the other processes are about to exit as well
            with contextlib.suppress(RuntimeError):
                dist.barrier()
        else:
            error.printed_by = PrintedBy.EACH  # type: ignore[union-attr]
        raise
    finally:
        dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step (Linux only).

    A training step frees and allocates the same large blocks each time. By default glibc returns them to the system,
    which zeroes every page on first touch. In return the process holds its peak memory until it ends.
    docs/guides/train.md has the gain on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD: blocks of up to 32 MiB (its maximum) come from the heap.
        libc.mallopt(-3, 32 * 2**20)
        # M_TRIM_THRESHOLD: the heap does not shrink below 2 GiB of free space.
        libc.mallopt(-1, 2**31 - 1)
        # M_TOP_PAD: it grows by 64 MiB at a time.
        libc.mallopt(-2, 64 * 2**20)


def resident_bytes() -> int:
    """Memory of this process without shared pages; 0 on systems without /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
            _, resident, shared, *_ = map(int, stream.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator whose state is a function of `key` alone (seed, step, ...)."""
    state = 0x9E3779B97F4A7C15
    for value in key:
        state = ((state ^ value) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state % 2**63)


def agree(flags: Sequence[bool], ctx: DistributedContext) -> list[bool]:
    """Set each flag on every process if any process sets it; does not wait for a GPU."""
    if ctx.world < 2:
        return list(flags)
    counts = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(counts, group=ctx.control)
    return [bool(count > 0) for count in counts]


@contextlib.contextmanager
def agree_on_errors(ctx: DistributedContext) -> Iterator[None]:
    """Raise an `FmcnetError` or `OSError` of one process on all processes.

    Otherwise the others would wait in their next exchange for the failed process. Every process must enter the
    block. An exchange inside it must come before anything that can fail.
    """
    if ctx.world < 2:
        yield
        return
    own_error: FmcnetError | OSError | None = None
    try:
        yield
    except (FmcnetError, OSError) as error:
        own_error = error
    errors: list[Any] = [None] * ctx.world
    dist.all_gather_object(errors, own_error, group=ctx.control)
    rank = next((rank for rank, error in enumerate(errors) if error is not None), None)
    if rank is not None:
        raise mark_agreed(own_error if own_error is not None and rank == ctx.rank else errors[rank])


def mark_agreed(error: _Error) -> _Error:
    """Mark an error as raised by every process of the job: rank 0 alone prints it."""
    error.printed_by = PrintedBy.ONE  # type: ignore[union-attr]
    return error


def gather(item: _Item, ctx: DistributedContext) -> list[_Item]:
    """Collect a picklable object of every process, by rank, on rank 0; returns an empty list elsewhere."""
    if ctx.world < 2:
        return [item]
    items: list[Any] | None = [None] * ctx.world if ctx.main else None
    dist.gather_object(item, items, dst=0, group=ctx.control)
    return items or []


def mean_over_ranks(values: Tensor, ctx: DistributedContext) -> Tensor:
    """Average `values` (on the CPU) over the processes, in place."""
    _average([values], ctx.world, ctx.control)
    return values


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Average every gradient over the processes, in one message."""
    _average([p.grad for p in parameters if p.grad is not None], world)


def average_buffers(model: nn.Module, world: int) -> None:
    """Average floating-point buffers (running statistics) over the processes."""
    _average([buffer for buffer in model.buffers() if buffer.is_floating_point()], world)


def _average(tensors: Sequence[Tensor], world: int, group: dist.ProcessGroup | None = None) -> None:
    if world < 2:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    flat /= world
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gather_centers(centers: Tensor) -> Tensor:
    """Gather the centres of all processes; gradients flow to their owners.

    Every process computes the same loss of all centres. The backward pass sums the gradients of all copies of that
    loss, world times the gradient. Averaging gradients over the processes divides by world again.

    Args:
        centers: (P, D), of this process.

    Returns:
        (world * P, D), by rank.
    """
    gathered = centers.new_zeros(dist.get_world_size(), *centers.shape)
    gathered[dist.get_rank()] = centers
    return _all_reduce(gathered).flatten(0, 1)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes, and the sum of its gradients.

    `torch.distributed.nn.functional.all_reduce` does the same but is deprecated since PyTorch 2.13.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllReduce.forward(ctx, gradients[0])


def _all_reduce(x: Tensor) -> Tensor:
    return cast(Tensor, cast(Any, _AllReduce).apply(x))


def synchronize_batchnorm(model: _Model, device: torch.device) -> _Model:
    """Make every batch normalisation take its statistics over all processes.

    PyTorch's `SyncBatchNorm` runs on GPUs only. On other devices, two sums over the processes do the same.
    """
    if device.type == "cuda":
        return cast(_Model, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = _SyncedBatchNorm
    return model


class _SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batches of all processes, which are equally large."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = _all_reduce(input.sum(dims)) / count
        centred = input - mean.view(shape)
        var = _all_reduce((centred * centred).sum(dims)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                cast(Tensor, self.num_batches_tracked).add_(1)
                self.running_mean.lerp_(mean, self.momentum or 0.0)
                self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum or 0.0)
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, as both wrapped layers use this class."""
