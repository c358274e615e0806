"""SYSU-MM01, RegDB and LLCM folders, and any CSV, as tables; `read_dataset` tells them apart."""

from __future__ import annotations

from pathlib import Path

from fmcnet.data.readers.csv import read_csv
from fmcnet.data.readers.llcm import read_llcm
from fmcnet.data.readers.regdb import read_regdb
from fmcnet.data.readers.sysu import INFRARED_CAMERAS, read_sysu
from fmcnet.data.table import Table
from fmcnet.errors import DataError
from fmcnet.types import Modality

LAYOUTS = ("sysu", "regdb", "llcm", "csv")

MARKERS = {
    "sysu": ("exp", "cam1", "cam2", "cam3", "cam4", "cam5", "cam6"),
    "regdb": ("Visible", "Thermal"),
    "llcm": ("vis", "nir", "test_vis", "test_nir"),
}
"""Top-level names by which a layout is recognised; two of them (in any letter case) are enough."""

__all__ = [
    "LAYOUTS",
    "MARKERS",
    "detect_layout",
    "read_dataset",
    "read_llcm",
    "read_regdb",
    "read_sysu",
    "told_by_folder",
]


def read_dataset(
    path: str | Path,
    *,
    layout: str = "auto",
    trial: int = 1,
    training: bool = True,
    modality: Modality | None = None,
) -> Table:
    """Read a dataset, whatever its layout.

    Args:
        path: a folder of SYSU-MM01, RegDB or LLCM, a CSV file, or a folder that holds exactly one CSV file.
        layout: "auto" or one of `LAYOUTS`.
        trial: which of RegDB's ten splits; the other layouts have one and ignore it.
        training: False: the images are to be searched, not learnt from or scored. No rule about identities and splits
            applies and nobody is left out; a CSV needs no `pid`.
        modality: with `training` False, of those rows of a CSV that say none.

    Raises:
        DataError: when nothing fits (says what was tried), or the reader finds a fault.
    """
    path = Path(path).expanduser()
    if layout == "auto":
        layout = detect_layout(path)
    if layout == "sysu":
        return read_sysu(path, training=training)
    if layout == "regdb":
        return read_regdb(path, trial, training=training)
    if layout == "llcm":
        return read_llcm(path, training=training)
    if layout == "csv":
        return read_csv(_csv_file(path), training=training, modality=modality)
    raise DataError(f"unknown layout '{layout}': choose auto, {', '.join(LAYOUTS)}")


def detect_layout(path: str | Path) -> str:
    """Which of `LAYOUTS` a path has, by the names at its top.

    Raises:
        DataError: when the path does not exist or nothing fits; names what was looked for.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return "csv"
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a dataset's folder or a CSV file")
    scores = _scores(path)
    best = max(scores, key=lambda name: scores[name])
    if scores[best] >= 2:
        return best
    if len(_csv_files(path)) == 1:
        return "csv"
    names = sorted(entry.name for entry in path.iterdir())
    tried = "; ".join(f"{name}: {', '.join(markers)}" for name, markers in MARKERS.items())
    inside = [
        child.name for child in sorted(path.iterdir()) if child.is_dir() and max(_scores(child).values()) >= 2
    ]
    hint = f"\nDid you mean {path / inside[0]}?" if inside else ""
    holds = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise DataError(
        f"{path} has none of the known layouts. Looked for {tried}; csv: exactly one *.csv file. "
        f"It holds: {holds or 'nothing'}. Give the folder itself, or the layout by name.{hint}"
    )


def laid_out(folder: Path) -> str | None:
    """The benchmark that a folder is laid out as, lists and all; None for any other, as cam1 and cam2 alone."""
    try:
        names = {entry.name.lower() for entry in folder.iterdir()} if folder.is_dir() else set()
    except OSError:
        return None
    scores = {layout: sum(m.lower() in names for m in markers) for layout, markers in MARKERS.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= 2 and names & {"exp", "idx", "thermal"} else None


def told_by_folder(layout: str, name: str) -> Modality | None:
    """What a folder at the top of a dataset holds, as "cam3" of "sysu"; None where its name does not tell."""
    name = name.lower()
    infrared = {"sysu": [f"cam{camera}" for camera in INFRARED_CAMERAS], "regdb": ["thermal"]}
    infrared["llcm"] = ["nir", "test_nir"]
    if name in infrared[layout]:
        return Modality.INFRARED
    known = [marker.lower() for marker in MARKERS[layout] if marker != "exp"]
    return Modality.VISIBLE if name in known else None


def _scores(folder: Path) -> dict[str, int]:
    names = {entry.name.lower() for entry in folder.iterdir()}
    return {layout: sum(m.lower() in names for m in markers) for layout, markers in MARKERS.items()}


def _csv_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return sorted(p for p in files if p.suffix.lower() in (".csv", ".tsv"))


def _csv_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = _csv_files(path)
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in files) or "none"
    raise DataError(f"{path} should hold exactly one CSV file, found {found}: give the file itself")
