"""The files beside the images: identity lists, splits and gallery draws, exactly as each dataset names them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from fmcnet.files import named
from fmcnet.synthetic.image import ImageKey, render_image
from fmcnet.synthetic.plan import Job, Plan

JPEG_QUALITY = 92
SCRATCH = ".part"
"""Folder under the root for files being written; a file appears under its own name only when it is whole."""


def write_atomic(root: Path, path: str, data: bytes) -> None:
    """Write a file of the dataset so that no reader, and no restart, ever sees half of it."""
    target = root / path
    scratch = root / SCRATCH / f"{os.getpid()}_{target.name}"
    with named(target, scratch, scratch.parent):
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(target)


def encode(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], path: str) -> bytes:
    """An image file's bytes; infrared images get three equal channels, which all public code reads."""
    image = Image.fromarray(pixels)
    if image.mode != "RGB":
        image = image.convert("RGB")
    stream = io.BytesIO()
    if path.endswith(".bmp"):
        image.save(stream, "BMP")
    else:
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def write_images(root: str, layout: str, seed: int, jobs: tuple[Job, ...], height: int, width: int) -> int:
    """Render and write images; the unit of work of a process. Returns how many."""
    base = Path(root)
    for job in jobs:
        key = ImageKey(seed, layout, job.pid, job.camid, job.infrared, job.index)
        write_atomic(base, job.path, encode(render_image(key, height, width), job.path))
    return len(jobs)


def _mat(**variables: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables)
    data = bytearray(stream.getvalue())
    note = b"MATLAB 5.0 MAT-file, written by fmcnet's generated benchmark"  # scipy's note holds the date
    data[:116] = note.ljust(116)
    return bytes(data)


def _line(ids: tuple[int, ...]) -> bytes:
    return (",".join(str(pid) for pid in ids) + "\n").encode()


def _sysu_files(plan: Plan, seed: int) -> dict[str, bytes]:
    files = {}
    for name, ids in (("train", plan.train), ("val", plan.val), ("test", plan.test)):
        files[f"exp/{name}_id.txt"] = _line(ids)
        files[f"exp/{name}_id.mat"] = _mat(id=np.array([ids], dtype=np.uint16))
    counts: dict[tuple[int, int], int] = {}
    for job in plan.jobs:
        counts[job.pid, job.camid] = counts.get((job.pid, job.camid), 0) + 1
    rng = np.random.default_rng([7501, seed])
    cameras = np.empty((6, 1), dtype=object)
    for cam in range(1, 7):
        last = max((pid for pid, c in counts if c == cam), default=1)
        cell = np.empty((last, 1), dtype=object)
        for pid in range(1, last + 1):
            n = counts.get((pid, cam), 0)
            rows = [rng.permutation(n) + 1 for _ in range(10)]
            cell[pid - 1, 0] = np.array(rows, dtype=np.uint8 if n < 256 else np.uint16).reshape(10, n)
        cameras[cam - 1, 0] = cell
    files["exp/rand_perm_cam.mat"] = _mat(rand_perm_cam=cameras)
    return files


def _regdb_files(plan: Plan, seed: int) -> dict[str, bytes]:
    files = {}
    pids = plan.pids
    paths: dict[tuple[int, bool], list[str]] = {}
    for job in plan.jobs:
        paths.setdefault((job.pid, job.infrared), []).append(job.path)
    for trial in range(1, 11):
        order = np.random.default_rng([7502, seed, trial]).permutation(len(pids))
        half = len(pids) // 2
        for split, chosen in (("train", order[:half]), ("test", order[half:])):
            ids = sorted(pids[int(i)] for i in chosen)
            for infrared, kind in ((False, "visible"), (True, "thermal")):
                lines = [
                    f"{path} {label}\n" for label, pid in enumerate(ids) for path in paths[pid, infrared]
                ]
                files[f"idx/{split}_{kind}_{trial}.txt"] = "".join(lines).encode()
    return files


def _llcm_files(plan: Plan, seed: int) -> dict[str, bytes]:
    del seed
    label = {pid: i for i, pid in enumerate(plan.train)}
    files = {}
    for infrared, kind in ((False, "vis"), (True, "nir")):
        jobs = [job for job in plan.jobs if job.infrared == infrared and job.pid in label]
        files[f"idx/train_{kind}.txt"] = "".join(f"{job.path} {label[job.pid]}\n" for job in jobs).encode()
        tests = [job for job in plan.jobs if job.infrared == infrared and job.pid not in label]
        files[f"idx/test_{kind}.txt"] = "".join(f"{job.path} {job.pid}\n" for job in tests).encode()
    files["idx/test_id.txt"] = _line(plan.test)
    return files


_FILES: dict[str, Callable[[Plan, int], dict[str, bytes]]] = {
    "sysu": _sysu_files,
    "regdb": _regdb_files,
    "llcm": _llcm_files,
}


def side_files(plan: Plan, seed: int) -> dict[str, bytes]:
    """All files of a layout that are not images: relative path -> content."""
    return _FILES[plan.layout](plan, seed)
