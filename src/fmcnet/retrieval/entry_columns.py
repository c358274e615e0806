"""What filters and counts need of every entry, as arrays: `EntryColumns`, and counts by camera and local day."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, tzinfo
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcnet.parsing import read_npz
from fmcnet.retrieval.records import EPOCH, NONE, Entry, Where, to_micros
from fmcnet.times import start_of_day
from fmcnet.types import BoolArray, IntArray, Modality

KINDS = {
    "seq": np.int64,
    "time": np.int64,
    "modality": np.uint8,
    "pid": np.int32,
    "camera": np.int32,
    "track": np.int32,
    "tags": np.int32,
    "alive": np.bool_,
}
TEXTS = ("pid", "camera", "track", "tags")
DAY = 86_400_000_000
"""Microseconds."""


class EntryColumns:
    """N rows by position.

    Attributes:
        numbers: for each column of texts, the number of each text; "tags" has sets of tags, as JSON lists.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.generic]] = {k: np.empty(0, t) for k, t in KINDS.items()}
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in TEXTS}

    def __len__(self) -> int:
        return len(self.seq)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._arrays[name]

    @property
    def alive(self) -> BoolArray:
        """(N,) not removed."""
        return self._arrays["alive"]  # type: ignore[return-value]

    @property
    def seq(self) -> IntArray:
        """(N,) row numbers, rising."""
        return self._arrays["seq"]  # type: ignore[return-value]

    def append(self, seqs: Sequence[int], entries: Sequence[Entry]) -> None:
        """Add rows at the end; their numbers are larger than all before."""
        new = slice(len(self), len(self) + len(seqs))
        for name, array in self._arrays.items():
            self._arrays[name] = np.concatenate([array, np.empty(len(seqs), array.dtype)])
        self.seq[new] = seqs
        self.alive[new] = True
        self._set(new, entries)

    def replace(self, seq: int, entry: Entry) -> None:
        """Replace a row's metadata."""
        position = int(self.positions([seq])[0])
        self._set(slice(position, position + 1), [entry])

    def _set(self, rows: slice, entries: Sequence[Entry]) -> None:
        arrays = self._arrays
        arrays["time"][rows] = [NONE if entry.time is None else to_micros(entry.time) for entry in entries]
        arrays["modality"][rows] = [entry.modality.code for entry in entries]
        tags = [json.dumps(entry.tags, ensure_ascii=False) if entry.tags else None for entry in entries]
        for name in TEXTS:
            numbers = self.numbers[name]
            texts = tags if name == "tags" else [getattr(entry, name) for entry in entries]
            arrays[name][rows] = [-1 if t is None else numbers.setdefault(t, len(numbers)) for t in texts]

    def positions(self, seqs: Sequence[int] | IntArray) -> IntArray:
        """Positions of row numbers that are there."""
        return np.searchsorted(self.seq, np.asarray(seqs, np.int64)).astype(np.int64)

    def existing(self, seqs: Sequence[int]) -> list[int]:
        """Those row numbers that are not removed."""
        if not len(self):
            return []
        requested = np.asarray(seqs, np.int64)
        positions = np.minimum(self.positions(requested), len(self) - 1)
        existing: list[int] = requested[self.alive[positions] & (self.seq[positions] == requested)].tolist()
        return existing

    def forget(self, positions: IntArray) -> None:
        """Mark rows as removed and clear their values."""
        for name, value in {"alive": False, "time": NONE, "modality": 0}.items():
            self._arrays[name][positions] = value
        for name in TEXTS:
            self._arrays[name][positions] = -1

    def mask(self, where: Where | None, seqs: Collection[int] | None = None) -> BoolArray:
        """(N,) which rows match; `seqs` are the row numbers of `where.ids`."""
        matches = self.alive.copy()
        if where is None:
            return matches
        if where.ids is not None:
            matches &= np.isin(self.seq, list(seqs or ()))
        pids = None if where.pids is None else [str(pid) for pid in where.pids]
        for name, texts in (("pid", pids), ("camera", where.cameras), ("track", where.tracks)):
            if texts is not None:
                numbers = self.numbers[name]
                matches &= np.isin(self[name], [numbers[text] for text in texts if text in numbers])
        if where.modality is not None:
            matches &= self["modality"] == Modality(where.modality).code
        if where.since is not None:
            matches &= self["time"] >= np.int64(to_micros(where.since))  # NONE is less than any
        if where.until is not None:
            matches &= (self["time"] < np.int64(to_micros(where.until))) & (self["time"] != NONE)
        if where.tags:
            tags, parts = set(where.tags), [json.dumps(tag, ensure_ascii=False) for tag in where.tags]
            likely = (
                (text, n) for text, n in self.numbers["tags"].items() if all(map(text.__contains__, parts))
            )
            matches &= np.isin(self["tags"], [n for text, n in likely if tags <= set(json.loads(text))])
        return matches

    def texts(self, name: str) -> set[str]:
        """The texts of a column of the rows that are alive; of "tags" each tag."""
        numbers = self.numbers[name]
        codes: IntArray = self[name][self.alive].astype(np.int64)
        used = np.bincount(codes + 1, minlength=len(numbers) + 1)[1:].astype(np.bool_).tolist()
        texts = {text for text, number in numbers.items() if used[number]}
        return {*chain(*json.loads(f"[{','.join(texts)}]"))} if name == "tags" else texts

    def save(self, path: Path, rows: int) -> None:
        """Write the first `rows` rows to an .npz file; texts that no row has are left out."""
        arrays: dict[str, NDArray[np.generic]] = {name: self[name][:rows] for name in KINDS}
        for name in TEXTS:
            texts = list(self.numbers[name])
            used, codes = np.unique(np.append(arrays[name], np.int32(-1)), return_inverse=True)
            arrays[name] = codes[:-1].astype(np.int32) - 1  # -1 is the first of `used`
            joined = "\0".join(texts[int(code)] for code in used[1:])
            arrays[f"{name}_texts"] = np.frombuffer(joined.encode(), np.uint8)
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> EntryColumns:
        """Read what `save` wrote, also that of 0.1.0, whose identities are the numbers themselves."""
        columns = EntryColumns()
        arrays = read_npz(path)
        if "pid_texts" not in arrays:
            pids, codes = np.unique(np.append(arrays["pid"], NONE), return_inverse=True)  # NONE is the first
            arrays["pid"] = codes[:-1] - 1
            arrays["pid_texts"] = np.frombuffer("\0".join(map(str, pids[1:].tolist())).encode(), np.uint8)
        columns._arrays = {name: arrays[name].astype(dtype) for name, dtype in KINDS.items()}
        for name in TEXTS:
            text = arrays[f"{name}_texts"].tobytes().decode()
            columns.numbers[name] = {value: i for i, value in enumerate(text.split("\0") if text else ())}
        return columns


@dataclass(frozen=True)
class DayCount:
    """The entries of one camera on one day.

    Attributes:
        camera: None: those without a camera.
        day: from local midnight to the next. None: those without a time.
        entries: how many, at least 1.
    """

    camera: str | None
    day: date | None
    entries: int


def count_days(
    cameras: IntArray, names: Sequence[str], times: IntArray, zone: tzinfo
) -> tuple[DayCount, ...]:
    """Count entries by camera and day.

    Args:
        cameras: (N,) positions in `names`; -1 where unknown.
        names: of the cameras.
        times: (N,) microseconds since 1970; `NONE` where unknown.
        zone: whose days.

    Returns:
        The newest day first, those without a time last; then by camera.
    """
    known = times != NONE
    starts = _midnights(np.unique(times[known] // DAY), zone)
    moments = np.array([micros for micros, _ in starts], np.int64)
    days = np.full(len(times), -1, np.int64)
    days[known] = np.maximum(np.searchsorted(moments, times[known], side="right") - 1, 0)
    pairs, counts = np.unique(days * (len(names) + 1) + cameras + 1, return_counts=True)
    day_counts = []
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        day, camera = divmod(pair, len(names) + 1)
        day_counts.append(
            DayCount(names[camera - 1] if camera else None, None if day < 0 else starts[day][1], count)
        )
    day_counts.sort(key=lambda count: (-(count.day or date.min).toordinal(), count.camera or ""))
    return tuple(day_counts)


def _midnights(days: IntArray, zone: tzinfo) -> list[tuple[int, date]]:
    """The starts of all local days that touch these UTC days (days since 1970), rising, and their dates."""
    first = EPOCH.toordinal()
    ordinals = {first + day + offset for day in days.tolist() for offset in (-1, 0, 1)}
    days_there = [date.fromordinal(n) for n in sorted(ordinals) if 1 <= n <= date.max.toordinal()]
    return [(to_micros(start_of_day(day, zone)), day) for day in days_there]
