"""Device, precision, seeds, threads, process group, and clear words for a missing optional package."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor

from fmcnet.errors import FmcnetError, MissingDependencyError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """Where a process computes, and which of how many it is."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """The process that writes files and shows progress."""
        return self.rank == 0


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        FmcnetError: for a device this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    rank, world = os.environ.get("LOCAL_RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    if name == "cuda":
        name = f"cuda:{rank}"
    elif name.startswith("cuda:") and world > 1:
        raise FmcnetError(f"--device {name} would put all {world} processes on one GPU: say cuda or auto")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FmcnetError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def runtime(device: str = "auto") -> Iterator[Runtime]:
    """The process's place in the job: joins the process group when started by `torchrun`, leaves it at the end."""
    chosen = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Runtime(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Runtime(chosen, dist.get_rank(), dist.get_world_size())
        dist.barrier()  # without it a rank sometimes aborts at exit (seen with gloo)
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[torch.nn.Parameter], world: int) -> None:
    """Replace every gradient by its mean over the ranks, in one message."""
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


def any_rank(flag: bool, place: Runtime) -> bool:
    """True on every rank when it is true on one."""
    if place.world < 2:
        return flag
    told = torch.tensor(float(flag), device=place.device)
    dist.all_reduce(told)
    return bool(told > 0)


def average_buffers(model: torch.nn.Module, world: int) -> None:
    """Replace floating-point buffers (running statistics) by their mean over the ranks."""
    if world < 2:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose state is a function of `key` alone (seed, step, rank...)."""
    mixed = 0x9E3779B97F4A7C15
    for value in key:
        mixed = ((mixed ^ value) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return torch.Generator(device).manual_seed(mixed % 2**63)


def move(array: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting where it can."""
    return array.to(device, non_blocking=device.type == "cuda")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingDependencyError: naming the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'fmcnet[{extra}]'"
        ) from error
