"""Embeddings made by any code, read from an `.npz`.

Two forms of file:

- one set: `features` (N, D), `pid` (N,) texts or whole numbers, `cam` (N,), `index` (N,) 1-based among the sorted
  images of an identity and camera, and `modality` (N,) 0 visible, 1 infrared where cameras do not tell (they do on
  SYSU-MM01). `fmcnet embed --data` and `Embeddings.save` write such a file; `fmcnet gallery export` writes one under
  other names. Without `index` the order of `name` (N,) counts;
- two sets as somebody drew them: `query_features`, `query_pid`, `query_cam`, and the same with `gallery_`.
  Camera arrays may end in the protocol's name (`query_cam_llcm`), `query_modality` may tell the modality where the
  camera does not.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import positions
from fmcnet.errors import DataError
from fmcnet.parsing import read_npz
from fmcnet.types import MODALITY_WORDS, NO_CAMERA, BoolArray, Embeddings, IntArray, identity_numbers

logger = logging.getLogger(__name__)

SIDES = ("query", "gallery")
CAMERA_MODALITIES = {"sysu": {1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 1}, "regdb": {1: 0, 2: 1}}
"""Modality of each camera, where a benchmark's cameras tell it."""
NEEDED = {
    "sysu": ("features", "pid", "cam", "index"),
    "regdb": ("features", "pid"),
    "llcm": ("features", "pid", "cam", "index", "modality"),
    "custom": ("features", "pid", "modality"),
}
"""Arrays of one set that a protocol needs."""
ALIASES = {"camid": "cam", "camera": "cam", "embedding": "features", "source": "name"}
"""Other names of arrays: of `Embeddings`, and of an exported gallery."""


@dataclass(frozen=True)
class Sets:
    """Embeddings read from a file, and its query and gallery, if it holds two sets.

    Attributes:
        embeddings: (N, D) and their columns; the modality is 0 where the file does not tell it.
        known: (N,) bool, whether the file tells the modality.
        of_query: (N,) bool, the queries; None where the file leaves the choice to the protocol.
    """

    embeddings: Embeddings
    known: BoolArray
    of_query: BoolArray | None = None


class EmbeddingsFile:
    """An `.npz` file of embeddings. A fault names the file, the array and the row.

    Args:
        path: the file.

    Raises:
        DataError: when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path} does not exist")
        if path.suffix.lower() == ".parquet":
            raise DataError(
                f"{path}: score reads .npz files: fmcnet gallery export GALLERY {path.with_suffix('.npz')}"
            )
        try:
            self.arrays = read_npz(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable .npz file: {error}") from error
        self.has_two_sets = "query_features" in self.arrays or "gallery_features" in self.arrays

    def read(self, protocol: str) -> Sets:
        """Read what a protocol needs.

        Args:
            protocol: "sysu", "regdb", "llcm" or "custom".

        Raises:
            DataError: when arrays are missing, shapes disagree or a value is not usable.
        """
        return self._two_sets(protocol) if self.has_two_sets else self._one_set(protocol)

    def _one_set(self, protocol: str) -> Sets:
        arrays = {ALIASES.get(name, name): array for name, array in self.arrays.items()} | self.arrays
        names = arrays.get("name", np.empty(0))
        ordered = names.dtype.kind == "U" and len(set(names.ravel().tolist())) == names.size
        self._require([name for name in NEEDED[protocol] if name != "index" or not ordered], protocol, arrays)
        features = self._features(arrays["features"], "features")
        n = len(features)
        pid = self._identities(arrays["pid"], "pid", n)
        camid = self._integers(arrays["cam"], "cam", n) if "cam" in arrays else np.full(n, NO_CAMERA)
        if "modality" in arrays:
            modality = self._modalities(arrays["modality"], "modality", camid, protocol)
        else:
            modality = self._camera_modalities(camid, protocol)
        name = names if names.dtype.kind == "U" and names.shape == (n,) else np.full(n, "")
        if "index" in arrays:
            index = self._integers(arrays["index"], "index", n)
        elif ordered and name is names:
            index = positions(name, modality.astype(np.uint8), camid, pid)
        else:
            index = np.zeros(n, dtype=np.int64)
        if twice := n - len(_row_hashes(features)):
            self._warn_of_copies(f"{twice} of {n} rows have the features of another row")
        embeddings = Embeddings(features, pid, camid, modality.astype(np.uint8), index, name)
        return Sets(embeddings, np.ones(n, dtype=np.bool_))

    def _two_sets(self, protocol: str) -> Sets:
        sides = [self._side(side, protocol) for side in SIDES]
        widths = [features.shape[1] for features, *_ in sides]
        if widths[0] != widths[1]:
            raise DataError(
                f"{self.path}: query_features has {widths[0]} columns, gallery_features {widths[1]}: "
                "both sets must come from one model"
            )
        if both := _row_hashes(sides[0][0]) & _row_hashes(sides[1][0]):
            self._warn_of_copies(f"{len(both)} rows of query_features are in gallery_features, too")
        features, pid, camid, told = (np.concatenate(pair) for pair in zip(*sides, strict=True))
        n = len(features)
        modality = np.maximum(told, 0).astype(np.uint8)
        index, name = np.zeros(n, dtype=np.int64), np.full(n, "")
        embeddings = Embeddings(features, pid, camid, modality, index, name)
        return Sets(embeddings, told >= 0, np.arange(n) < len(sides[0][0]))

    def _warn_of_copies(self, what: str) -> None:
        logger.warning(
            "%s: %s: a picture that is there twice is its own match, and figures come out too good",
            self.path,
            what,
        )

    def _side(self, side: str, protocol: str) -> tuple[NDArray[Any], ...]:
        """Features, identities, cameras and modalities (-1: not told) of the queries or of the gallery."""
        names = (f"{side}_cam_{protocol}", f"{side}_cam", f"{side}_camid")
        cameras = next((name for name in names if name in self.arrays), None)
        needed = [f"{side}_features", f"{side}_pid"]
        needed += [f"{side}_cam"] if cameras is None and protocol not in ("regdb", "custom") else []
        self._require(needed, protocol, self.arrays)
        features = self._features(self.arrays[f"{side}_features"], f"{side}_features")
        n = len(features)
        pid = self._identities(self.arrays[f"{side}_pid"], f"{side}_pid", n)
        camid = np.full(n, NO_CAMERA)
        if cameras is not None:
            camid = self._integers(self.arrays[cameras], cameras, n)
        name = f"{side}_modality"
        if name in self.arrays:
            modality = self._modalities(self.arrays[name], name, camid, protocol)
        elif cameras is not None and protocol in CAMERA_MODALITIES:
            modality = self._camera_modalities(camid, protocol, cameras)
        else:
            modality = np.full(n, -1)
        return features, pid, camid, modality

    def _require(self, names: list[str], protocol: str, arrays: dict[str, NDArray[Any]]) -> None:
        missing = [name for name in names if name not in arrays]
        if missing:
            raise DataError(
                f"{self.path} lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}, which the {protocol} "
                f"protocol needs; it holds {', '.join(self.arrays) or 'nothing'}"
            )

    def _features(self, array: NDArray[Any], name: str) -> NDArray[np.float32]:
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
            raise DataError(
                f"{self.path}: '{name}' must be a matrix of numbers (N, D) with N and D above 0, "
                f"got {array.dtype} of shape {array.shape}"
            )
        with np.errstate(over="ignore"):
            return np.asarray(array, dtype=np.float32)

    def _identities(self, array: NDArray[Any], name: str, n: int) -> IntArray:
        """Whole numbers, or texts as `identity_numbers`."""
        flat = self._column(array, name, n)
        try:
            return identity_numbers(np.char.decode(flat, "utf-8") if flat.dtype.kind == "S" else flat)
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: '{name}' must hold texts or whole numbers: {error}") from error

    def _column(self, array: NDArray[Any], name: str, n: int) -> NDArray[Any]:
        flat = array.ravel() if array.ndim == 2 and 1 in array.shape else array
        if flat.shape != (n,):
            raise DataError(
                f"{self.path}: '{name}' has shape {array.shape}, but there are {n} embeddings: one value for each"
            )
        return flat

    def _integers(self, array: NDArray[Any], name: str, n: int) -> IntArray:
        if name == "cam" and array.dtype.kind == "U":  # of a gallery: "3", "cam3", or "" for none
            numbers = [re.sub("^cam", "", one) or str(NO_CAMERA) for one in array.ravel().tolist()]
            if all(re.fullmatch(r"-1|[0-9]{1,9}", one) for one in numbers):
                array = np.array(numbers, dtype=np.int64)
        flat = self._column(array, name, n)
        if flat.dtype.kind in "uf" and (np.abs(flat) >= 2.0**63).any():
            raise DataError(f"{self.path}: '{name}' holds a number that does not fit 64 bits")
        if flat.dtype.kind not in "iufb" or (flat.dtype.kind == "f" and not (flat == np.rint(flat)).all()):
            raise DataError(f"{self.path}: '{name}' must hold whole numbers, got {array.dtype}")
        return np.asarray(flat, dtype=np.int64)

    def _modalities(self, array: NDArray[Any], name: str, camid: IntArray, protocol: str) -> IntArray:
        """(N,) of 0 and 1, or words for them; on SYSU-MM01 they must not contradict the cameras."""
        if array.dtype.kind == "U":
            codes = {word: modality.code for word, modality in MODALITY_WORDS.items()}
            array = np.array([codes.get(word.lower(), -1) for word in array.tolist()], dtype=np.int64)
        modality = self._integers(array, name, len(camid))
        odd = np.flatnonzero((modality != 0) & (modality != 1))
        if len(odd):
            raise DataError(
                f"{self.path}: '{name}' is {modality[odd[0]]} in row {odd[0]}: 0 is visible, 1 infrared"
            )
        if protocol == "sysu":
            told = _lookup(camid, protocol)
            odd = np.flatnonzero((told >= 0) & (told != modality))
            if len(odd):
                raise DataError(
                    f"{self.path}: '{name}' is {modality[odd[0]]} in row {odd[0]}, whose camera {camid[odd[0]]} "
                    "is of the other modality on sysu: correct one of them"
                )
        return modality

    def _camera_modalities(self, camid: IntArray, protocol: str, name: str | None = None) -> IntArray:
        """(N,) modalities by the benchmark's camera numbers.

        Args:
            camid: (N,) cameras.
            protocol: the benchmark.
            name: of the array of one of two sets, whose modality may stay untold (-1); None: of one set.
        """
        told = _lookup(camid, protocol)
        odd = np.flatnonzero(told < 0 if name is None else (told < 0) & (camid != NO_CAMERA))
        if len(odd):
            camera = "no camera" if camid[odd[0]] == NO_CAMERA else f"camera {camid[odd[0]]}"
            raise DataError(
                f"{self.path}: row {odd[0]}{f' of {name}' if name else ''} has {camera}, but {protocol} has cameras "
                f"{', '.join(map(str, CAMERA_MODALITIES[protocol]))}: give an array 'modality' (0 visible, "
                "1 infrared) or the benchmark's camera numbers"
            )
        return told


def _row_hashes(features: NDArray[np.float32]) -> set[int]:
    return {hash(row.tobytes()) for row in features}


def _lookup(camid: IntArray, protocol: str) -> IntArray:
    """(N,) modality of each camera; -1 for cameras that the benchmark does not have."""
    known = CAMERA_MODALITIES[protocol]
    return np.array([known.get(camera, -1) for camera in camid.tolist()], dtype=np.int64)
