"""Value objects used throughout fmcnet, and the modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import DataError, FmcnetError
from fmcnet.files import make_private
from fmcnet.identities import LARGEST, identity_number, is_number, parse_identity
from fmcnet.parsing import read_npz

NO_CAMERA = -1
"""`camid` of an image whose camera is not known; no camera rule applies to it."""

NO_PID = -1
"""`pid` of an image whose identity is not known; such images can be searched, not scored."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


def identity_numbers(values: NDArray[Any]) -> IntArray:
    """(N,) int64 that stand for N identities, texts or whole numbers; `NO_PID` for those unknown.

    A number stays as it is, any other text becomes its `identity_number`. Two values are equal if and only if the
    identities are.

    Raises:
        DataError: for a value that is no identity (`parse_identity`), or as `check_exact`.
    """
    check_exact(values)
    if values.dtype.kind == "i" or (values.dtype.kind == "u" and (values <= np.uint64(LARGEST)).all()):
        return values.astype(np.int64)
    texts = values.tolist()
    identities = {value: parse_identity(value) for value in set(texts)}
    numbers = {name: NO_PID if name is None else identity_number(name) for name in {*identities.values()}}
    if len({*numbers.values()}) < len(numbers):
        raise DataError("two identities have the same 64-bit number: rename one of them")
    return np.array([numbers[identities[value]] for value in texts], dtype=np.int64)


def identity_names(values: NDArray[Any]) -> NDArray[np.str_]:
    """(N,) the texts among N identities, as `parse_identity` gives them; "" for numbers and unknown ones."""
    if values.dtype.kind in "iu" or not len(values):
        return np.full(values.shape, "")
    rows = values.tolist()  # once: NaN is found again as the same object only
    identities = {value: parse_identity(value) or "" for value in set(rows)}
    names = {value: "" if is_number(name) else name for value, name in identities.items()}
    return np.array([names[value] for value in rows], dtype=np.str_)


def check_exact(values: NDArray[Any], prefix: str = "") -> None:
    """Refuse floats, below 2^63, so large that their type has not every whole number: neighbours may have become one.

    Raises:
        DataError: naming the first row, behind the prefix.
    """
    if values.dtype.kind == "f":
        limit = 2.0 ** (np.finfo(values.dtype).nmant + 1)
        size = np.abs(values.astype(np.float64))
        large = np.flatnonzero((size >= limit) & (size < 2.0**63))
        if len(large):
            raise DataError(
                f"{prefix}row {large[0]} is {values.flat[large[0]]:.0f}, but {values.dtype} does not hold every "
                f"whole number from {limit:,.0f} on: save them as int64 or texts"
            )


class Modality(str, Enum):
    """The two modalities of the task. `V` and `I` in the paper's notation."""

    VISIBLE = "visible"
    INFRARED = "infrared"

    @property
    def other(self) -> Modality:
        """The modality a query of this one is searched in."""
        return Modality.INFRARED if self is Modality.VISIBLE else Modality.VISIBLE

    @property
    def code(self) -> int:
        """0 for visible, 1 for infrared: the number stored in tables and embeddings."""
        return 0 if self is Modality.VISIBLE else 1

    @staticmethod
    def from_code(code: int) -> Modality:
        """The modality of a stored number (0 or 1)."""
        return Modality.INFRARED if code else Modality.VISIBLE

    def __str__(self) -> str:
        return self.value


MODALITY_WORDS = {
    **dict.fromkeys(("visible", "vis", "vi", "v", "rgb", "color", "colour", "0"), Modality.VISIBLE),
    **dict.fromkeys(("infrared", "ir", "i", "nir", "thermal", "lwir", "1"), Modality.INFRARED),
}
"""Words for the modalities in tables and commands, in lower case."""


def parse_modality(text: Any) -> Modality:
    """ "visible", "infrared", a synonym that a CSV may use ("ir", "thermal", "rgb"...), or 0 and 1, as a `Modality`.

    Raises:
        FmcnetError: for anything else.
    """
    if isinstance(text, Modality):
        return text
    if getattr(text, "ndim", None) == 0:  # a number of NumPy or PyTorch
        text = text.item()
    word = (text if isinstance(text, str) else str(text)).lower()
    if word not in MODALITY_WORDS:
        raise FmcnetError(f"unknown modality '{text}': say visible or infrared")
    return MODALITY_WORDS[word]


def check_arrays(owner: object, names: Sequence[str]) -> None:
    """Raise a `DataError` for lists and other objects that are no arrays."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, np.ndarray):
            raise DataError(
                f"'{name}' is of type {type(value).__name__}: give a NumPy array, as np.asarray({name})"
            )


def whole_numbers(column: NDArray[Any], name: str, meaning: str) -> IntArray:
    """The column `name` of whole numbers as int64; raises `DataError` naming the first invalid row."""
    check_exact(column, f"{name}: ")
    if column.dtype.kind in "iu" and (column.dtype != np.uint64 or not (column >> 63).any()):
        return column.astype(np.int64, copy=False)
    try:
        values = column.astype(np.float64)
    except (TypeError, ValueError):
        values = np.full(column.shape, np.nan)
    invalid = np.flatnonzero(~(np.abs(values) < 2.0**63) | (values != np.rint(values)))  # NaN, too
    if column.dtype.kind in "US" and not len(invalid):
        raise DataError(f"{name} holds texts ('{column.flat[0]}' in row 0): convert it with astype(int)")
    if len(invalid) or column.dtype.kind not in "fbO":
        row = int(invalid[0]) if len(invalid) else 0
        raise DataError(
            f"{name} is {column.flat[row]} in row {row}: give whole numbers of 64 bits, {meaning}"
        )
    return values.astype(np.int64)


def modality_codes(column: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """The column `name` of codes, or of words that `parse_modality` knows, as codes; errors as `whole_numbers`."""
    if column.dtype.kind in "UO":
        codes = np.zeros(column.shape, np.uint8)
        for row, word in enumerate(column.ravel().tolist()):
            try:
                codes.flat[row] = parse_modality(int(word) if isinstance(word, bool) else word).code
            except FmcnetError as error:
                raise DataError(f"{name} in row {row}: {error}") from error
        return codes
    numbers = whole_numbers(column, name, "0 for visible, 1 for infrared")
    invalid = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(invalid):
        raise DataError(f"{name} is {numbers.flat[invalid[0]]} in row {invalid[0]}: 0 is visible, 1 infrared")
    return numbers.astype(np.uint8)


@dataclass(frozen=True)
class Embeddings:
    """Descriptors of N images with the labels that a protocol needs.

    NumPy functions take it for its features: `np.asarray(embeddings)` is (N, D) float32.

    Attributes:
        features: (N, D) float32, as the model gave them (not necessarily of unit length).
        pid: (N,) int64, the identity, `NO_PID` (-1) where unknown; texts become their `identity_numbers`.
        camid: (N,) int64, the camera; `NO_CAMERA` (-1) where unknown.
        modality: (N,) uint8, 0 visible, 1 infrared (`Modality.code`); words for them become these.
        index: (N,) int64, 1-based position of the image among the sorted images of the same identity, camera and
            modality (what the official SYSU-MM01 draw counts).
        name: (N,) str, the image's path (of a table: relative to its dataset), another name, or "" where unknown.
        pid_name: (N,) str, the identity's text, "" where it is a number or unknown; by default from `pid`. A draw
            takes numbers by value, then texts by name.
        camera_name: (N,) str, the camera's name, or ""; the default. Who replaces `camid` replaces it, too.

    Raises:
        DataError: on construction, when lengths differ, a modality, camera or index is invalid, or a feature is NaN
            or infinite (names the row).
    """

    features: FloatArray
    pid: IntArray
    camid: IntArray
    modality: NDArray[np.uint8]
    index: IntArray
    name: NDArray[np.str_]
    pid_name: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="<U1"))
    camera_name: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="<U1"))

    OPTIONAL: ClassVar[tuple[str, ...]] = ("pid_name", "camera_name")
    """Fields that are stored only where a row has them."""

    def __post_init__(self) -> None:
        check_arrays(self, [column.name for column in fields(self)])
        if self.features.ndim != 2 or self.features.dtype.kind not in "fiu":
            raise DataError(
                f"features must be a matrix (N, D) of numbers, got {self.features.dtype} of shape "
                f"{self.features.shape}"
            )
        n = len(self.features)
        object.__setattr__(self, "modality", modality_codes(self.modality, "modality"))
        object.__setattr__(self, "camid", whole_numbers(self.camid, "camid", f"{NO_CAMERA} where unknown"))
        object.__setattr__(self, "index", whole_numbers(self.index, "index", "1 for the first image"))
        for name in self.OPTIONAL:
            names = getattr(self, name) if len(getattr(self, name)) else np.full(n, "")
            object.__setattr__(self, name, names.astype(np.str_, copy=False))
        if self.pid.dtype != np.int64:
            object.__setattr__(self, "pid_name", identity_names(self.pid))
            object.__setattr__(self, "pid", identity_numbers(self.pid))
        for name in [column.name for column in fields(self)[1:]]:
            column = getattr(self, name)
            if column.shape != (n,):
                raise DataError(
                    f"'{name}' has shape {column.shape}, but features has {n} rows: give one value for each row"
                )
        if (self.pid_name != "").any():  # of other identities than `pid`: it was replaced
            stale = identity_numbers(self.pid_name) != self.pid
            object.__setattr__(self, "pid_name", np.where(stale, "", self.pid_name))
        bad_rows = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(bad_rows):
            row = int(bad_rows[0])
            label = f" ({self.name[row]})" if self.name[row] else ""
            raise DataError(
                f"{len(bad_rows)} of {n} embeddings hold NaN or infinity, the first in row {row}{label}, "
                f"pid {int(self.pid[row])}: check the model or drop these rows"
            )

    @classmethod
    def unlabelled(
        cls, features: FloatArray, modality: NDArray[np.uint8], name: NDArray[np.str_]
    ) -> Embeddings:
        """Descriptors (N, D) of images of nobody known, from no camera known; `index` is 1..N."""
        n = len(features)
        return cls(
            features,
            np.full(n, NO_PID, dtype=np.int64),
            np.full(n, NO_CAMERA, dtype=np.int64),
            modality,
            np.arange(1, n + 1, dtype=np.int64),
            name,
        )

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        infrared = int((self.modality == Modality.INFRARED.code).sum())
        identities = len(np.unique(self.pid[self.pid != NO_PID]))
        cameras = len(np.unique(self.camid[self.camid != NO_CAMERA]))
        return (
            f"<Embeddings {len(self)} x {self.features.shape[1]} {self.features.dtype}: {len(self) - infrared} "
            f"visible, {infrared} infrared, {identities} identities, {cameras} cameras>"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The features, for NumPy."""
        features = self.features if dtype is None else self.features.astype(dtype, copy=False)
        if copy is False and features is not self.features:
            raise ValueError(f"features of type {self.features.dtype} become {features.dtype} by a copy only")
        return features.copy() if copy and features is self.features else features

    def take(self, rows: NDArray[Any]) -> Embeddings:
        """Return the embeddings of some rows, in the order given.

        Args:
            rows: (M,) int positions, 0..N-1, or an (N,) bool mask.

        Returns:
            The M embeddings with their labels.
        """
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def of(self, modality: Modality | str) -> Embeddings:
        """Return the embeddings of one modality, order kept.

        Args:
            modality: "visible" or "infrared", a synonym as "ir", or a `Modality`.

        Returns:
            The embeddings with their labels; none where no image is of that modality.

        Raises:
            FmcnetError: for an unknown modality.
        """
        return self.take(np.flatnonzero(self.modality == parse_modality(modality).code))

    def save(self, path: str | Path, dataset: str = "", trained_on: int = 0) -> Path:
        """Write all arrays to an `.npz` file.

        Args:
            path: the file; missing folders are made, an older file is replaced.
            dataset: whose protocol `fmcnet score` takes: "sysu", "regdb", "llcm", or "csv" for any other table.
            trained_on: how many of the identities the model was trained on; `fmcnet score` tells.

        Returns:
            The path.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        make_private(path)
        with path.open("wb") as stream:
            arrays = {f.name: getattr(self, f.name) for f in fields(self)}
            stored = {name: a for name, a in arrays.items() if name not in self.OPTIONAL or (a != "").any()}
            if dataset:
                stored["dataset"] = np.array(dataset)
            if trained_on:
                stored["trained_on"] = np.array(trained_on)
            np.savez(stream, **stored)
        return path

    @staticmethod
    def load(path: str | Path) -> Embeddings:
        """Read a file written by `save`.

        Args:
            path: the `.npz` file.

        Returns:
            The embeddings.

        Raises:
            DataError: when the file is not such a file or lacks an array.
        """
        try:
            arrays = read_npz(Path(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable .npz file: {error}") from error
        names = [f.name for f in fields(Embeddings)]
        missing = [name for name in names if name not in (*arrays, *Embeddings.OPTIONAL)]
        if missing:
            raise DataError(f"{path} lacks the arrays {', '.join(missing)}; it holds {', '.join(arrays)}")
        return Embeddings(**{name: arrays[name] for name in names if name in arrays})
