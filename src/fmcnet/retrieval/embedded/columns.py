"""What filters need to know of every row, in memory: arrays by position, texts as numbers.

A position is a row's place in the order of adding; it is also the place of its embedding in the index. Removed rows
keep their position until the gallery is compacted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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


class Vocabulary:
    """Texts and their numbers; number -1 is no text."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)
        self._numbers: dict[str, int] | None = None

    def number(self, text: str | None, *, add: bool) -> int:
        """The text's number; -2 for one that is not there and not to be added."""
        if text is None:
            return -1
        if self._numbers is None:  # made on first use: opening stays quick
            self._numbers = {known: i for i, known in enumerate(self.texts)}
        found = self._numbers.get(text)
        if found is None:
            if not add:
                return -2
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found


class Columns:
    """N rows by position.

    Attributes:
        vocabulary: of each column of texts; that of "tags" holds sets of tags, as JSON lists.
    """

    def __init__(self) -> None:
        self._n = 0
        self._arrays: dict[str, NDArray[np.generic]] = {k: np.empty(0, t) for k, t in KINDS.items()}
        self.vocabulary = {name: Vocabulary() for name in TEXTS}

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

    def set(self, seq: int, entry: Entry) -> None:
        """New metadata of a row."""
        self._set(int(self.positions([seq])[0]), entry)

    def _set(self, position: int, entry: Entry) -> None:
        arrays = self._arrays
        arrays["pid"][position] = NONE if entry.pid is None else entry.pid
        arrays["time"][position] = NONE if entry.time is None else to_micros(entry.time)
        arrays["modality"][position] = entry.modality.code
        for name, text in (("camera", entry.camera), ("track", entry.track), ("tags", tag_text(entry))):
            arrays[name][position] = self.vocabulary[name].number(text, add=True)

    def positions(self, seqs: Sequence[int] | IntArray) -> IntArray:
        """Positions of row numbers that are there."""
        return np.searchsorted(self.seq, np.asarray(seqs, np.int64)).astype(np.int64)

    def forget(self, positions: IntArray) -> None:
        """Removed rows: not alive, and nothing known of them."""
        self._arrays["alive"][positions] = False
        for name in ("pid", "time"):
            self._arrays[name][positions] = NONE
        self._arrays["modality"][positions] = 0
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
                numbers = [self.vocabulary[name].number(text, add=False) for text in texts]
                out &= self._one_of(name, [number for number in numbers if number >= 0])
        if where.modality is not None:
            out &= self["modality"] == where.modality.code
        if where.since is not None:
            out &= self["time"] >= np.int64(to_micros(where.since))  # NONE is less than any
        if where.until is not None:
            out &= (self["time"] < np.int64(to_micros(where.until))) & (self["time"] != NONE)
        if where.tags:
            sets = self.vocabulary["tags"].texts
            wanted = set(where.tags)
            numbers = [i for i, known in enumerate(sets) if wanted <= set(json.loads(known))]
            out &= self._one_of("tags", numbers)
        return out

    def cameras(self) -> list[str]:
        """The cameras of the rows that are alive."""
        codes = self["camera"][self.alive]
        used = np.bincount(codes[codes >= 0]).nonzero()[0]  # type: ignore[operator]
        return [self.vocabulary["camera"].texts[int(code)] for code in used]

    def _one_of(self, name: str, numbers: Sequence[int]) -> BoolArray:
        """(N,) whose text has one of these numbers: few are compared, more looked up, both faster than `isin`."""
        if 0 < len(numbers) <= 6:
            few: BoolArray = np.logical_or.reduce([self[name] == number for number in numbers])
            return few
        wanted = np.zeros(len(self.vocabulary[name].texts) + 1, np.bool_)  # the last is that of no text, -1
        wanted[list(numbers)] = True
        found: BoolArray = wanted[self[name]]
        return found

    def compacted(self) -> Columns:
        """Only the rows that are alive."""
        out = Columns()
        keep = self.alive
        out._n = int(keep.sum())
        out._arrays = {name: self[name][keep] for name in KINDS}
        out.vocabulary = self.vocabulary
        return out

    def save(self, path: Path, rows: int) -> None:
        """Write the first `rows` rows to an .npz file; texts that no row has are left out."""
        arrays: dict[str, NDArray[np.generic]] = {name: self[name][:rows] for name in KINDS}
        for name in TEXTS:
            codes = arrays[name]
            used = np.unique(codes[codes >= 0])  # type: ignore[operator]
            arrays[name] = np.where(codes >= 0, np.searchsorted(used, codes), -1).astype(np.int32)  # type: ignore[operator]
            texts = [self.vocabulary[name].texts[int(code)] for code in used]
            arrays[f"{name}_texts"] = np.frombuffer("\0".join(texts).encode(), np.uint8)
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Columns:
        """Read what `save` wrote."""
        out = Columns()
        with np.load(path, allow_pickle=False) as stored:
            out._arrays = {name: stored[name].astype(kind) for name, kind in KINDS.items()}
            for name in TEXTS:
                text = stored[f"{name}_texts"].tobytes().decode()
                out.vocabulary[name] = Vocabulary(text.split("\0") if text else ())
        out._n = len(out._arrays["seq"])
        return out


def tag_text(entry: Entry) -> str | None:
    """A set of tags as one text."""
    return json.dumps(entry.tags, ensure_ascii=False) if entry.tags else None
