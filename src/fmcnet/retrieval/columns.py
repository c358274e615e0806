"""What filters need of every row, in memory: arrays by position, texts as numbers.

A position is a row's place in the order of adding; it is also the place of its embedding in the index. Removed rows
keep their position until the gallery is compacted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcnet.parsing import read_npz
from fmcnet.retrieval.records import Entry, Where, to_micros
from fmcnet.types import BoolArray, IntArray

NONE = np.iinfo(np.int64).min
"""A pid or time that is not known."""
KINDS = {
    "seq": np.int64,
    "pid": np.int64,
    "time": np.int64,
    "modality": np.uint8,
    "camera": np.int32,
    "track": np.int32,
    "tags": np.int32,
    "alive": np.bool_,
}
TEXTS = ("camera", "track", "tags")


class EntryColumns:
    """N rows by position.

    Attributes:
        numbers: for each column of texts, the number of each text; "tags" has sets of tags, as JSON lists.
    """

    def __init__(self) -> None:
        self._n = 0
        self._arrays: dict[str, NDArray[np.generic]] = {k: np.empty(0, t) for k, t in KINDS.items()}
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in TEXTS}

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._arrays[name][: self._n]

    @property
    def alive(self) -> BoolArray:
        """(N,) not removed."""
        return self._arrays["alive"][: self._n]  # type: ignore[return-value]

    @property
    def seq(self) -> IntArray:
        """(N,) row numbers, rising."""
        return self._arrays["seq"][: self._n]  # type: ignore[return-value]

    def append(self, seqs: Sequence[int], entries: Sequence[Entry]) -> None:
        """Add rows at the end; their numbers are larger than all before."""
        needed = self._n + len(seqs)
        if needed > len(self._arrays["seq"]):
            room = max(needed, 2 * self._n, 1024)
            for name, array in self._arrays.items():
                grown = np.empty(room, array.dtype)
                grown[: self._n] = array[: self._n]
                self._arrays[name] = grown
        start, self._n = self._n, needed
        self._arrays["seq"][start:needed] = seqs
        self._arrays["alive"][start:needed] = True
        for position, entry in enumerate(entries, start):
            self._set(position, entry)

    def replace(self, seq: int, entry: Entry) -> None:
        """New metadata of a row."""
        self._set(int(self.positions([seq])[0]), entry)

    def _set(self, position: int, entry: Entry) -> None:
        arrays = self._arrays
        arrays["pid"][position] = NONE if entry.pid is None else entry.pid
        arrays["time"][position] = NONE if entry.time is None else to_micros(entry.time)
        arrays["modality"][position] = entry.modality.code
        tags = json.dumps(entry.tags, ensure_ascii=False) if entry.tags else None
        for name, text in (("camera", entry.camera), ("track", entry.track), ("tags", tags)):
            numbers = self.numbers[name]
            arrays[name][position] = -1 if text is None else numbers.setdefault(text, len(numbers))

    def positions(self, seqs: Sequence[int] | IntArray) -> IntArray:
        """Positions of row numbers that are there."""
        return np.searchsorted(self.seq, np.asarray(seqs, np.int64)).astype(np.int64)

    def forget(self, positions: IntArray) -> None:
        """Removed rows: not alive, and nothing known of them."""
        for name, value in {"alive": False, "pid": NONE, "time": NONE, "modality": 0}.items():
            self._arrays[name][positions] = value
        for name in TEXTS:
            self._arrays[name][positions] = -1

    def mask(self, where: Where | None, seqs: Sequence[int] | None = None) -> BoolArray:
        """(N,) which rows match; `seqs` are the row numbers of `where.ids`."""
        out = self.alive.copy()
        if where is None:
            return out
        if where.ids is not None:
            chosen = np.zeros(self._n, np.bool_)
            chosen[self.positions(sorted(seqs or ()))] = True
            out &= chosen
        if where.pids is not None:
            out &= np.isin(self["pid"], np.array([p for p in where.pids if abs(p) < -int(NONE)], np.int64))
        for name, texts in (("camera", where.cameras), ("track", where.tracks)):
            if texts is not None:
                numbers = self.numbers[name]
                out &= self._one_of(name, [numbers[text] for text in texts if text in numbers])
        if where.modality is not None:
            out &= self["modality"] == where.modality.code
        if where.since is not None:
            out &= self["time"] >= np.int64(to_micros(where.since))  # NONE is less than any
        if where.until is not None:
            out &= (self["time"] < np.int64(to_micros(where.until))) & (self["time"] != NONE)
        if where.tags:
            wanted = set(where.tags)
            sets = self.numbers["tags"].items()
            out &= self._one_of("tags", [number for text, number in sets if wanted <= set(json.loads(text))])
        return out

    def cameras(self) -> set[str]:
        """The cameras of the rows that are alive."""
        used = set(np.unique(self["camera"][self.alive]).tolist())
        return {text for text, number in self.numbers["camera"].items() if number in used}

    def _one_of(self, name: str, numbers: Collection[int]) -> BoolArray:
        """(N,) whose text has one of these numbers, by a table, which is faster than `isin`."""
        wanted = np.zeros(len(self.numbers[name]) + 1, np.bool_)  # the last is that of no text, -1
        wanted[list(numbers)] = True
        found: BoolArray = wanted[self[name]]
        return found

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
        """Read what `save` wrote."""
        out = EntryColumns()
        stored = read_npz(path)
        out._arrays = {name: stored[name].astype(kind) for name, kind in KINDS.items()}
        for name in TEXTS:
            text = stored[f"{name}_texts"].tobytes().decode()
            out.numbers[name] = {one: i for i, one in enumerate(text.split("\0") if text else ())}
        out._n = len(out._arrays["seq"])
        return out
