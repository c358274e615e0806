"""Device, memory, seeds, process group."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from fmcnet.errors import FmcnetError, Interrupted
from fmcnet.optional import require as require

logger = logging.getLogger(__name__)

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another's word: one builds the image cache meanwhile."""


@dataclass(frozen=True)
class Runtime:
    """Where a process computes, and which of how many it is.

    Attributes:
        device: of this process. rank: 0..world-1. world: number of processes.
        control: a group of all processes that talks through main memory (gloo), so that a word between
            processes does not wait for a GPU's queue; None for one process.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """The process that writes files and shows progress."""
        return self.rank == 0


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        FmcnetError: for a device this machine does not have.
    """
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
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
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FmcnetError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def runtime(device: str = "auto") -> Iterator[Runtime]:
    """The process's place in the job: joins the process group when started by `torchrun`, leaves it at the end.

    Errors that leave it are marked: known to this process alone, unless all agreed on them (`parallel.together`).
    """
    try:
        chosen = pick_device(device)
    except FmcnetError as error:
        error.agreed = False
        raise
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Runtime(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_initialized():  # a job within a job: the group is somebody else's
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        try:
            yield Runtime(chosen, dist.get_rank(), dist.get_world_size(), control)
        finally:
            dist.destroy_process_group(control)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Runtime(chosen, dist.get_rank(), dist.get_world_size(), control)
        dist.barrier()  # without it a rank sometimes aborts at exit (seen with gloo)
    except (FmcnetError, OSError) as error:
        error.agreed = bool(getattr(error, "agreed", None))  # type: ignore[union-attr]
        if error.agreed:  # type: ignore[union-attr]
            _meet()
        raise
    except Interrupted:
        _meet()
        raise
    finally:
        dist.destroy_process_group()


def _meet() -> None:
    """Leave at the same time as the others, who are on their way out, too."""
    with contextlib.suppress(RuntimeError):
        dist.barrier()


def keep_freed_memory() -> None:
    """Let the C library keep what PyTorch frees, for the next step (Linux with glibc; nothing elsewhere).

    A training step frees and takes the same large blocks over and over. By default glibc gives much of it back to the
    system in between, which zeroes every page again on first touch. The price: the process keeps its peak until it
    ends. What it brings on a CPU is in benchmarks/README.md.
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
    """Memory of this process, pages shared with others left out; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
            _, resident, shared, *_ = map(int, stream.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose state is a function of `key` alone (seed, step, rank...)."""
    mixed = 0x9E3779B97F4A7C15
    for value in key:
        mixed = ((mixed ^ value) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return torch.Generator(device).manual_seed(mixed % 2**63)
