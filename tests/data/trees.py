"""Tiny trees in the benchmarks' layouts, written by Pillow into a test's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SYSU_IDS = {"train": (1, 2, 5), "val": (7,), "test": (10, 11)}
REGDB_IDS = {"train": (1, 3), "test": (2, 12)}
LLCM_IDS = {"train": (1, 4), "test": (2, 30)}


def write_image(path: Path, value: int = 100, mode: str = "RGB", size: tuple[int, int] = (6, 12)) -> Path:
    """A small image (width, height) with a gradient whose level depends on `value`; above 150 its first row, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    ramp = np.arange(height * width).reshape(height, width) % 100 + value % 150
    ramp[0] += value // 150 * 12
    image = Image.fromarray(ramp.astype(np.uint8))
    image.convert(mode).save(path)
    return path


def sysu(root: Path, images: int = 2, ids: dict[str, tuple[int, ...]] = SYSU_IDS) -> Path:
    """A SYSU-MM01 tree: every identity in all six cameras; infrared stored with one channel."""
    for split, pids in ids.items():
        (root / "exp").mkdir(parents=True, exist_ok=True)
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, pids)) + "\n")
        for pid in pids:
            for cam in range(1, 7):
                for n in range(1, images + 1):
                    mode = "L" if cam in (3, 6) else "RGB"
                    write_image(root / f"cam{cam}/{pid:04d}/{n:04d}.jpg", 10 * pid + cam, mode)
    return root


def regdb(root: Path, images: int = 2, trials: Iterable[int] = (1, 2)) -> Path:
    """A RegDB tree; in trial 2 the training and the test identities change places."""
    for pid in (*REGDB_IDS["train"], *REGDB_IDS["test"]):
        for n in range(images):
            write_image(root / f"Visible/{pid}/v_{n}.bmp", pid)
            write_image(root / f"Thermal/{pid}/t_{n}.bmp", pid, "L")
    (root / "idx").mkdir()
    for trial in trials:
        for split in ("train", "test"):
            pids = REGDB_IDS[split if trial % 2 else {"train": "test", "test": "train"}[split]]
            for kind in ("visible", "thermal"):
                lines = [
                    f"{kind.capitalize()}/{pid}/{kind[0]}_{n}.bmp {label}"
                    for label, pid in enumerate(pids)
                    for n in range(images)
                ]
                (root / f"idx/{split}_{kind}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root


def llcm(
    root: Path, images: int = 2, visible: Iterable[int] = (1, 3), infrared: Iterable[int] = (1, 2)
) -> Path:
    """An LLCM tree with some cameras in each modality; the published one has 1 to 9, and 3 in visible only."""
    (root / "idx").mkdir(parents=True)
    for kind, cams in (("vis", visible), ("nir", infrared)):
        lines = []
        for label, pid in enumerate(LLCM_IDS["train"]):
            for cam in cams:
                for n in range(images):
                    name = f"{kind}/{pid:04d}/{pid:04d}_c{cam:02d}_s{n:04d}_f10_{kind}.jpg"
                    write_image(root / name, pid + cam)
                    lines.append(f"{name} {label}")
        (root / f"idx/train_{kind}.txt").write_text("\n".join(lines))
        for pid in LLCM_IDS["test"]:
            for cam in cams:
                for n in range(images):
                    name = f"test_{kind}/cam{cam}/{pid:04d}/{pid:04d}_c{cam:02d}_s{n:04d}_f10_{kind}.jpg"
                    write_image(root / name, pid + cam)
    (root / "idx/test_id.txt").write_text(",".join(map(str, LLCM_IDS["test"])))
    return root


def csv_folder(root: Path, text: str | None = None) -> Path:
    """A folder of images `a1.jpg`... and `data.csv`; identities anna, bob, carl, dora, two images a modality."""
    lines = ["path,pid,modality"]
    for pid in ("anna", "bob", "carl", "dora"):
        for n in (1, 2):
            for kind in ("visible", "infrared"):
                write_image(root / f"img/{pid}_{kind}_{n}.png", 10 * n)
                lines.append(f"img/{pid}_{kind}_{n}.png,{pid},{kind}")
    (root / "data.csv").write_text("\n".join(lines) + "\n" if text is None else text)
    return root / "data.csv"
