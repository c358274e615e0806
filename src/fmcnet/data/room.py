"""How much room disk and memory have."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container what it may take (version 2)."""
MEMINFO = Path("/proc/meminfo")

_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


def require_disk(folder: Path, need: int) -> None:
    """Make sure a folder has room for a file of `need` bytes, and a margin of 2 % and 1 MiB.

    Raises:
        OSError: (ENOSPC) saying what is needed and what is free.
    """
    need, free = need + need // 50 + 2**20, shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{mib(need)} are needed, {mib(free)} are free")


def reserve(descriptor: int, size: int) -> None:
    """Take a file's room now, so that a full disk is found before the work and not in the middle of it.

    Where the system or the file system cannot do that, nothing happens: ordinary writes say it later.

    Raises:
        OSError: when the disk (or the quota) has no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in _FULL:
            raise


def free_memory() -> int | None:
    """Bytes this process can still take without swapping; None where the system does not tell."""
    found = _container_limit()
    rooms = [] if found is None else [max(0, found - _container_use())]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        rooms += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")][:1]
    if not rooms:
        rooms = _pages("SC_AVPHYS_PAGES")
    return min(rooms, default=None)


def total_memory() -> int | None:
    """Bytes of memory of this machine (or container); None where the system does not tell."""
    found = _container_limit()
    return min(_pages("SC_PHYS_PAGES") + ([] if found is None else [found]), default=None)


def mib(size: float) -> str:
    """A number of bytes for people: "4 MiB", "0.3 MiB"."""
    return f"{size / 2**20:.{0 if size >= 10 * 2**20 else 1}f} MiB"


def _pages(name: str) -> list[int]:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return [os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")]
    return []


def _container_limit() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((CGROUP / "memory.max").read_text(encoding="ascii"))  # "max" is no number: no limit
    return None


def _container_use() -> int:
    """What cannot be given back: the container's own memory without the files the system keeps for speed."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("anon "):
                return int(line.split()[1])
    return 0
