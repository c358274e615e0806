"""What filters need of every row of a gallery, as arrays in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcnet.parsing import read_npz
from fmcnet.retrieval.records import NONE, Entry, Where, to_micros
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
        self._set(slice(start, needed), entries)

    def replace(self, seq: int, entry: Entry) -> None:
        """New metadata of a row."""
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
        if not self._n:
            return []
        known = np.asarray(seqs, np.int64)
        places = np.minimum(self.positions(known), self._n - 1)
        existing: list[int] = known[self.alive[places] & (self.seq[places] == known)].tolist()
        return existing

    def forget(self, positions: IntArray) -> None:
        """Removed rows: not alive, and nothing known of them."""
        for name, value in {"alive": False, "time": NONE, "modality": 0}.items():
            self._arrays[name][positions] = value
        for name in TEXTS:
            self._arrays[name][positions] = -1

    def mask(self, where: Where | None, seqs: Collection[int] | None = None) -> BoolArray:
        """(N,) which rows match; `seqs` are the row numbers of `where.ids`."""
        out = self.alive.copy()
        if where is None:
            return out
        if where.ids is not None:
            chosen = np.zeros(self._n, np.bool_)
            chosen[self.positions(sorted(seqs or ()))] = True
            out &= chosen
        pids = None if where.pids is None else [str(pid) for pid in where.pids]
        for name, texts in (("pid", pids), ("camera", where.cameras), ("track", where.tracks)):
            if texts is not None:
                numbers = self.numbers[name]
                out &= self._one_of(name, [numbers[text] for text in texts if text in numbers])
        if where.modality is not None:
            out &= self["modality"] == Modality(where.modality).code
        if where.since is not None:
            out &= self["time"] >= np.int64(to_micros(where.since))  # NONE is less than any
        if where.until is not None:
            out &= (self["time"] < np.int64(to_micros(where.until))) & (self["time"] != NONE)
        if where.tags:
            wanted = set(where.tags)
            sets = self.numbers["tags"].items()
            out &= self._one_of("tags", [number for text, number in sets if wanted <= set(json.loads(text))])
        return out

    def texts(self, name: str) -> set[str]:
        """The texts of a column of the rows that are alive."""
        numbers = self.numbers[name]
        codes: IntArray = self[name][self.alive].astype(np.int64)
        used = np.bincount(codes + 1, minlength=len(numbers) + 1)[1:].astype(np.bool_).tolist()
        return {text for text, number in numbers.items() if used[number]}

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
        """Read what `save` wrote, that of 0.1.0, too, whose identities are numbers and stand for themselves."""
        out = EntryColumns()
        arrays = read_npz(path)
        if "pid_texts" not in arrays:
            pids, codes = np.unique(np.append(arrays["pid"], NONE), return_inverse=True)  # NONE is the first
            arrays["pid"] = codes[:-1] - 1
            arrays["pid_texts"] = np.frombuffer("\0".join(map(str, pids[1:].tolist())).encode(), np.uint8)
        out._arrays = {name: arrays[name].astype(kind) for name, kind in KINDS.items()}
        for name in TEXTS:
            text = arrays[f"{name}_texts"].tobytes().decode()
            out.numbers[name] = {one: i for i, one in enumerate(text.split("\0") if text else ())}
        out._n = len(out._arrays["seq"])
        return out
