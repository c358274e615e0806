"""`fmcnet data summary`: how many identities, images and cameras a table has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fmcnet.data.table import SPLITS, Table
from fmcnet.types import NO_CAMERA, Modality

TITLES = {"sysu": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM", "csv": "CSV"}
"""How people call the layouts."""


@dataclass(frozen=True)
class Group:
    """One split and modality; `least`, `median`, `most` are images per identity, `cameras` those known."""

    split: str
    modality: str
    identities: int
    images: int
    cameras: tuple[int, ...]
    least: int
    median: float
    most: int


@dataclass(frozen=True)
class Summary:
    """What `summary` counted."""

    name: str
    root: str
    images: int
    groups: tuple[Group, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A small text table."""
        lines = [f"{TITLES.get(self.name, self.name)} at {self.root}: {self.images:,} images"]
        lines.append(
            f"{'split':6}{'modality':10}{'identities':>11}{'images':>9}  {'images per identity':21}cameras"
        )
        for g in self.groups:
            per = f"{g.least} to {g.most}, median {g.median:g}"
            cameras = " ".join(map(str, g.cameras)) or "-"
            lines.append(f"{g.split:6}{g.modality:10}{g.identities:11,}{g.images:9,}  {per:21}{cameras}")
        return lines + [f"note: {note}" for note in self.notes]


def summary(table: Table) -> Summary:
    """Identities, images and cameras of a table, per split and modality."""
    groups = []
    for split in SPLITS:
        for modality in Modality:
            part = table.select(split=split, modality=modality)
            if not len(part):
                continue
            counts = np.unique(part.pid, return_counts=True)[1]
            groups.append(
                Group(
                    split=split,
                    modality=str(modality),
                    identities=len(counts),
                    images=len(part),
                    cameras=tuple(int(cam) for cam in np.unique(part.camid) if cam != NO_CAMERA),
                    least=int(counts.min()),
                    median=float(np.median(counts)),
                    most=int(counts.max()),
                )
            )
    return Summary(table.name, str(table.root), len(table), tuple(groups), table.notes)
