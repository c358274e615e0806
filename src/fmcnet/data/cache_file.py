"""A cache on disk: NAME.npy with the pixels and NAME.json that says what they are and how to know them again."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.cache_lock import held
from fmcnet.data.room import reserve, total_memory
from fmcnet.files import write_atomically

FORMAT = 1
"""Of the .json file: another number there means the cache is built again."""

BLOCK = 16 * 2**20
"""Bytes that share one digest."""

CHECKED = 256
"""Blocks that are read on opening: all of a file of up to 4 GiB, as many spread evenly over a larger one."""

# The digest is CRC-32. It has to find damage (a bad disk, half a copy), not an attacker, and every process that opens
# the cache computes it. 16 MiB in memory, best of 7, Intel Xeon with SHA instructions, one core, Python 3.11, MiB/s:
# zlib.crc32 5100, adler32 3200, hashlib.sha1 1800, sha256 1600, blake2b 860, md5 690, blake2s 540.
DIGEST = "crc32"

NAMES = re.compile(r".+-\d+x\d+-[0-9a-f]{24}")
"""The stem of every cache's file: dataset, height x width, key."""

_LEFT = re.compile(rf"\.({NAMES.pattern})\.(?:[0-9a-f]{{32}}\.building|json\.\d+\.tmp|lock)")

Put = Callable[[int, NDArray[np.uint8]], None]
"""Stores row i: an image (H, W, 3) uint8; called from several threads."""


class UnfitError(ValueError):
    """A cache that is there and cannot be used; the text says why."""


def open_stored(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The stored array as `map_stored` gives it, once it was checked against its digests.

    The .json gets the present time: that is when the cache was last used.

    Raises:
        FileNotFoundError: when there is no such file.
        UnfitError: when the .json is missing or speaks of something else, or the file is cut or damaged.
    """
    size = path.stat().st_size
    facts = read_facts(path)
    if facts is None:
        raise UnfitError(f"{facts_path(path).name} is missing or cannot be read")
    wanted = {
        "version": FORMAT,
        "key": path.stem[-24:],
        "shape": list(shape),
        "digest": DIGEST,
        "bytes": size,
    }
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise UnfitError(f"its {name} should be {facts.get(name)}, not {value}")
    expected, block = facts.get("blocks"), facts.get("block")
    if not isinstance(expected, list) or not isinstance(block, int) or block < 1:
        raise UnfitError(f"{facts_path(path).name} holds no digests")
    if len(expected) != -(-size // block):
        raise UnfitError("the number of digests does not fit the file")
    spread = np.unique(np.linspace(0, len(expected) - 1, min(len(expected), CHECKED)).astype(np.int64))
    try:
        for number, digest in zip(spread.tolist(), _digests(path, spread.tolist(), block), strict=True):
            if digest != expected[number]:
                start, end = number * block, min(size, (number + 1) * block)
                raise UnfitError(f"bytes {start} to {end - 1} have digest {digest}, not {expected[number]}")
    except OSError as error:
        raise UnfitError(str(error)) from error
    stored = map_stored(path, shape)
    with contextlib.suppress(OSError):
        os.utime(facts_path(path))
    return stored


def map_stored(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The stored array (N, H, W, 3), memory-mapped, read-only; its digests are not looked at.

    A file of more than half the memory is opened for random access, so that the system does not read ahead what
    training will not ask for.

    Raises:
        UnfitError: when it is missing, cut, or holds something else.
    """
    try:
        stored: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UnfitError(str(error)) from error
    if stored.shape != shape or stored.dtype != np.uint8:
        raise UnfitError(f"it holds {stored.dtype} {stored.shape}")
    base: Any = stored.base
    memory = total_memory()
    if memory and stored.nbytes > memory / 2 and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        base.madvise(mmap.MADV_RANDOM)
    return stored


def write_stored(
    path: Path, shape: tuple[int, ...], facts: dict[str, Any], fill: Callable[[Put], None]
) -> None:
    """Write NAME.npy (under another name until it is whole) and then NAME.json.

    Rows go to the file one by one, so that only the images being decoded are in memory; by ordinary writes into
    room that was taken before, so that a full disk is an error and not a crash.

    Args:
        path: the cache's file.
        shape: (N, H, W, 3).
        facts: further entries of the .json.
        fill: is given the function that stores a row, and stores them all.

    Raises:
        OSError: when the disk is full or cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.building")
    one = int(np.prod(shape[1:]))
    turn = threading.Lock()
    try:
        with temporary.open("xb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.flush()
            start = stream.tell()
            reserve(stream.fileno(), start + shape[0] * one)

            def put(row: int, image: NDArray[np.uint8]) -> None:
                with turn:
                    stream.seek(start + row * one)
                    stream.write(np.ascontiguousarray(image).data)

            fill(put)
            stream.flush()
            os.fsync(stream.fileno())
        size = temporary.stat().st_size
        written = {
            "version": FORMAT,
            "key": path.stem[-24:],
            "shape": list(shape),
            "bytes": size,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **facts,
            "digest": DIGEST,
            "block": BLOCK,
            "blocks": list(_digests(temporary, range(-(-size // BLOCK)), BLOCK)),
        }
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        text = json.dumps(written, indent=1)
        write_atomically(facts_path(path), lambda to: to.write_text(text, encoding="utf-8"))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def facts_path(path: Path) -> Path:
    """The .json beside a cache's .npy."""
    return path.with_suffix(".json")


def read_facts(path: Path) -> dict[str, Any] | None:
    """What the .json beside a cache's .npy says, None where it is missing or damaged."""
    try:
        facts = json.loads(facts_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def remove_stored(path: Path) -> bool:
    """Remove a cache (.npy and .json) unless somebody builds it; whether it went.

    Whoever has it open keeps it on POSIX; elsewhere the system refuses, and it stays.
    """
    with contextlib.suppress(OSError), held(path, wait=False) as free:
        if free:
            path.unlink(missing_ok=True)
            facts_path(path).unlink(missing_ok=True)
            return True
    return False


def remove_left(target: Path) -> None:
    """Remove what a killed builder of this cache left; the caller holds its lock."""
    for path, stem in _left(target.parent):
        if stem == target.stem and path.suffix != ".lock":
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> int:
    """Remove what killed builders of any cache of a folder left, where nobody holds the lock; how many files."""
    found = list(_left(folder))
    for target in sorted({folder / f"{stem}.npy" for _, stem in found}):
        with contextlib.suppress(OSError), held(target, wait=False) as free:
            if free:
                remove_left(target)
    return sum(not path.exists() for path, _ in found)


def _left(folder: Path) -> list[tuple[Path, str]]:
    matches = ((path, _LEFT.fullmatch(path.name)) for path in folder.iterdir())
    return [(path, match[1]) for path, match in matches if match]


def _digests(path: Path, numbers: Iterable[int], block: int) -> Iterable[str]:
    """The digests (8 hex digits) of the given blocks of a file."""
    buffer = bytearray(block)
    with path.open("rb", buffering=0) as stream:
        for number in numbers:
            stream.seek(number * block)
            filled = 0
            while filled < block and (count := stream.readinto(memoryview(buffer)[filled:])):
                filled += count
            yield f"{zlib.crc32(memoryview(buffer)[:filled]):08x}"
