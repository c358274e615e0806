"""Generate a benchmark on disk: deterministic, in several processes, resumable."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import Timeout
from PIL import Image

from fmcnet.data.readers.common import MANIFEST
from fmcnet.errors import DataError
from fmcnet.files import lock_file, named
from fmcnet.parsing import read_json
from fmcnet.processes import end_with_parent, ignored, starting_workers
from fmcnet.progress import Progress
from fmcnet.synthetic.image import ImageKey, render_image
from fmcnet.synthetic.plan import BenchmarkPlan, Preset, make_plan, resolve_preset, side_files

VERSION = 3
"""Increased whenever the same seed gives other pixels or files."""
LOCK = ".generating.lock"
SCRATCH = ".part"
"""Folder for files being written; a finished file is renamed to its own path."""

_JPEG_QUALITY = 92

_CHUNK = 32
"""Images per task of a process."""
_SINGLE_PROCESS_BELOW = 300
"""Images that one process renders faster than several start."""


@dataclass(frozen=True)
class GeneratedSummary:
    """What `generate` did."""

    out: Path  # the dataset's root
    layout: str  # "sysu", "regdb", "llcm" or "wild"
    preset: str  # "tiny", "small" or "full"
    seed: int  # of the world
    identities: int  # how many
    images: int  # in the dataset
    written: int  # images rendered by this call
    reused: int  # images that earlier calls rendered
    seconds: float  # wall time of this call
    images_per_second: float  # written / seconds, 0 when none was written
    workers: int  # processes used
    # 64 hex digits that identify the world: SHA-256 over all paths and the pixels of eight of the images, rendered
    # anew (independent of JPEG, of workers and of what was reused)
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "out": str(self.out)}


def generate(
    layout: str,
    preset: str,
    seed: int,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: bool = False,
    **overrides: int,
) -> GeneratedSummary:
    """Write a generated benchmark in a public dataset's own layout, or as a CSV.

    Args:
        layout: "sysu" (visible, near infrared), "regdb" (visible, thermal), "llcm" (low light, near infrared) or
            "wild" (all three spectra of every identity, eighty randomised cameras; a CSV).
        preset: "tiny" (tests), "small" (demo) or "full" (the real dataset's numbers; wild: 3,600 identities).
        seed: 0 to 2**63 - 1; same seed, same pixels.
        out: folder to write; new, empty, or one that this function began with the same arguments (it continues).
        workers: processes; None takes the CPUs this process may use.
        progress: show a bar, on a terminal only.
        overrides: single numbers of `Preset`, for example `train_ids=40, height=96, width=48`.

    Returns:
        What was done.

    Raises:
        ConfigError: an unknown layout, preset or override.
        DataError: `out` holds something else, or another process is writing to it.
    """
    started = time.perf_counter()
    amounts = resolve_preset(layout, preset, overrides)
    if not 0 <= seed < 2**63:
        raise DataError(f"the seed must lie in 0..{2**63 - 1}, got {seed}")
    if workers is not None and workers < 1:
        raise DataError(f"workers must be 1 or more, got {workers}")
    root = Path(out)
    world: dict[str, Any] = {"layout": layout, "preset": preset, "seed": seed}
    arguments = {"version": VERSION, **world, "amounts": asdict(amounts)}
    with _claim_folder(root, arguments):
        plan = make_plan(layout, amounts, seed)
        for path, content in side_files(plan, seed).items():
            if not (root / path).is_file():
                _write_atomic(root, path, content)
        total = len(plan.images)
        missing = _missing_images(root, list(plan.images.items()))
        if missing:
            _write_manifest(root, {**arguments, "complete": False})
        with Progress("generating", total, total - len(missing), show=None if progress else False) as bar:
            processes = _render_images(root, missing, amounts, _process_count(workers, len(missing)), bar)
        digest = _world_digest(plan, amounts)
        _write_manifest(root, {**arguments, "complete": True, "images": total, "digest": digest})
    seconds = time.perf_counter() - started
    return GeneratedSummary(
        out=root,
        **world,
        identities=len(plan.pids),
        images=total,
        written=len(missing),
        reused=total - len(missing),
        seconds=seconds,
        images_per_second=len(missing) / seconds if missing else 0.0,
        workers=processes,
        digest=digest,
    )


def _write_atomic(root: Path, path: str, data: bytes) -> None:
    """Write a file of the dataset atomically: no reader and no restart sees a partial file."""
    target = root / path
    scratch = root / SCRATCH / f"{os.getpid()}_{target.name}"
    with named(target, scratch, scratch.parent):
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(target)


def write_images(root: Path, height: int, width: int, images: Sequence[tuple[str, ImageKey]]) -> int:
    """Render and write images (the task of one process); return their number.

    Infrared images get three equal channels, which all public code reads.
    """
    for path, key in images:
        stream = io.BytesIO()
        image = Image.fromarray(render_image(key, height, width)).convert("RGB")
        image.save(stream, "BMP" if path.endswith(".bmp") else "JPEG", quality=_JPEG_QUALITY)
        _write_atomic(root, path, stream.getvalue())
    return len(images)


def _world_digest(plan: BenchmarkPlan, amounts: Preset) -> str:
    """SHA-256 (64 hex digits) over a plan's paths and the raw pixels of eight of its images."""
    sha = hashlib.sha256("\n".join(plan.images).encode())
    keys = list(plan.images.values())
    count = min(8, len(keys))
    for i in range(count):
        key = keys[i * (len(keys) - 1) // max(1, count - 1)]
        sha.update(render_image(key, amounts.height, amounts.width).tobytes())
    return sha.hexdigest()


def _missing_images(root: Path, images: Sequence[tuple[str, ImageKey]]) -> list[tuple[str, ImageKey]]:
    """The images without a whole file."""
    return [(path, key) for path, key in images if not _is_whole(root / path)]


def _is_whole(path: Path) -> bool:
    """Whether a JPEG has its end, or a BMP its length."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    if data[:2] == b"BM":
        return int.from_bytes(data[2:6], "little") == len(data)
    return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"


def _process_count(workers: int | None, images: int) -> int:
    if workers is None:
        affinity = getattr(os, "sched_getaffinity", None)
        available = len(affinity(0)) if affinity else os.cpu_count() or 1
        workers = available if images >= _SINGLE_PROCESS_BELOW else 1
    return max(1, min(workers, -(-images // _CHUNK)))


def _render_images(
    root: Path, images: Sequence[tuple[str, ImageKey]], amounts: Preset, processes: int, bar: Progress
) -> int:
    """Render and write images; return the number of processes used."""
    write = partial(write_images, root, amounts.height, amounts.width)
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    if processes > 1:
        # The pool breaks in a script without `if __name__ == "__main__":`, or if a process is killed: continue here.
        with starting_workers():
            pool = ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent)
        with contextlib.suppress(BrokenProcessPool), pool:
            try:
                with starting_workers():
                    counts = pool.map(write, chunks)
                for count in counts:
                    bar.advance(count=count)
            except BaseException:
                with ignored("SIGINT"):  # a second Ctrl-C would leave processes waiting for ever
                    pool.shutdown(cancel_futures=True)  # waits for running chunks only
                raise
            return processes
        chunks = [_missing_images(root, chunk) for chunk in chunks]
    for chunk in chunks:
        bar.advance(count=write(chunk))
    return 1


@contextlib.contextmanager
def _claim_folder(root: Path, arguments: dict[str, Any]) -> Iterator[None]:
    """Hold a folder for the benchmark of these arguments.

    Raises:
        DataError: it holds something else, or another process is writing to it; nothing was changed.
    """
    _check_folder(root, arguments)
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            with named(root, root / LOCK):
                stack.enter_context(lock_file(root / LOCK, optional=True))
        except Timeout:
            raise DataError(
                f"another process is generating into {root}: wait until it is done, or choose another folder"
            ) from None
        _check_folder(root, arguments)  # another process may have been faster
        if not (root / MANIFEST).is_file():
            _write_manifest(root, {**arguments, "complete": False})
        yield


def _write_manifest(root: Path, content: dict[str, Any]) -> None:
    """Write the manifest, and remove the folder of files being written."""
    _write_atomic(root, MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
    shutil.rmtree(root / SCRATCH, ignore_errors=True)


def _check_folder(root: Path, arguments: dict[str, Any]) -> None:
    """Check that the folder is free, or holds the benchmark of these arguments."""
    manifest = root / MANIFEST
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file: give a folder to write the generated benchmark to")
    if not manifest.is_file():
        entries = root.iterdir() if root.is_dir() else ()
        if names := sorted(entry.name for entry in entries if entry.name not in (SCRATCH, LOCK)):
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise DataError(
                f"{root} is not empty and was not written by fmcnet (no {MANIFEST}; it holds {shown}): "
                "choose a new or empty folder"
            )
        return
    try:
        existing = read_json(manifest)
        differing = [key for key in arguments if existing.get(key) != arguments[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{manifest} is not readable ({error}): delete {root} or choose another folder"
        ) from error
    if differing:
        existing_values = ", ".join(f"{key} {existing.get(key)}" for key in differing)
        requested_values = ", ".join(f"{key} {arguments[key]}" for key in differing)
        raise DataError(
            f"{root} holds a generated benchmark with {existing_values}; asked for {requested_values}. "
            "Choose another folder, or delete this one to generate anew"
        )
