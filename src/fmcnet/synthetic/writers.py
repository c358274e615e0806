"""Write the images and the files beside them: identity lists, splits and gallery draws, named as in each dataset."""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from fmcnet.files import named
from fmcnet.synthetic.image import ImageKey, render_image
from fmcnet.synthetic.plan import BenchmarkPlan

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


def write_images(root: Path, height: int, width: int, images: Sequence[tuple[str, ImageKey]]) -> int:
    """Render and write images, the task of a process; return how many.

    Infrared images get three equal channels, which all public code reads.
    """
    for path, key in images:
        stream = io.BytesIO()
        image = Image.fromarray(render_image(key, height, width)).convert("RGB")
        image.save(stream, "BMP" if path.endswith(".bmp") else "JPEG", quality=JPEG_QUALITY)
        write_atomic(root, path, stream.getvalue())
    return len(images)


def _mat(**variables: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables)
    data = bytearray(stream.getvalue())
    note = b"MATLAB 5.0 MAT-file, written by fmcnet's generated benchmark"  # scipy's note holds the date
    data[:116] = note.ljust(116)
    return bytes(data)


def _line(ids: tuple[int, ...]) -> bytes:
    return (",".join(str(pid) for pid in ids) + "\n").encode()


def _sysu_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    files = {}
    for name, ids in (("train", plan.train), ("val", plan.val), ("test", plan.test)):
        files[f"exp/{name}_id.txt"] = _line(ids)
        files[f"exp/{name}_id.mat"] = _mat(id=np.array([ids], dtype=np.uint16))
    counts = Counter((key.pid, key.camid) for key in plan.images.values())
    rng = np.random.default_rng([7501, seed])
    cameras = np.empty((6, 1), dtype=object)
    for cam in range(1, 7):
        last = max((pid for pid, c in counts if c == cam), default=1)
        cell = np.empty((last, 1), dtype=object)
        for pid in range(1, last + 1):
            n = counts[pid, cam]
            rows = [rng.permutation(n) + 1 for _ in range(10)]
            cell[pid - 1, 0] = np.array(rows, dtype=np.uint8 if n < 256 else np.uint16).reshape(10, n)
        cameras[cam - 1, 0] = cell
    files["exp/rand_perm_cam.mat"] = _mat(rand_perm_cam=cameras)
    return files


def _regdb_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    files = {}
    pids = plan.pids
    paths: defaultdict[tuple[int, bool], list[str]] = defaultdict(list)
    for path, key in plan.images.items():
        paths[key.pid, key.infrared].append(path)
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


def _llcm_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    label = {pid: i for i, pid in enumerate(plan.train)}
    files = {"idx/test_id.txt": _line(plan.test)}
    for infrared, kind in ((False, "vis"), (True, "nir")):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for path, key in plan.images.items():
            if key.infrared == infrared:
                split = "train" if key.pid in label else "test"
                lines[split].append(f"{path} {label.get(key.pid, key.pid)}\n")
        files |= {f"idx/{split}_{kind}.txt": "".join(lines[split]).encode() for split in lines}
    return files


def _wild_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    split = {pid: name for name in ("train", "val", "test") for pid in getattr(plan, name)}
    rows = [
        f"{path},{key.pid},{'infrared' if key.infrared else 'visible'},{key.camid},{split[key.pid]}\n"
        for path, key in plan.images.items()
    ]
    return {"people.csv": ("path,pid,modality,camera,split\n" + "".join(rows)).encode()}


def side_files(plan: BenchmarkPlan, seed: int) -> dict[str, bytes]:
    """All files of a layout that are not images: relative path -> content."""
    files = {"sysu": _sysu_files, "regdb": _regdb_files, "llcm": _llcm_files, "wild": _wild_files}
    return files[plan.layout](plan, seed)
