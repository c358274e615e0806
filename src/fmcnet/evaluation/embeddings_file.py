"""Read an `.npz` of embeddings, one set or two, that any code may have written.

Two forms:

- one set: `features` (N, D), `pid` (N,) texts or whole numbers, `cam` (N,), `index` (N,) 1-based among the sorted
  images of an identity, camera and modality, and `modality` (N,) 0 visible, 1 infrared where cameras do not give it
  (they do on SYSU-MM01 and RegDB). `fmcnet embed --data` and `Embeddings.save` write such a file; `fmcnet gallery
  export` writes one under other names. Without `index` the order of `name` (N,) counts;
- two sets, already drawn: `query_features`, `query_pid`, `query_cam`, and the same with `gallery_`.
  Camera arrays may end in the protocol's name (`query_cam_llcm`), `query_modality` may give the modality where the
  camera does not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import positions
from fmcnet.errors import DataError
from fmcnet.evaluation.evaluate import copies_note
from fmcnet.parsing import read_npz
from fmcnet.types import (
    NO_CAMERA,
    BoolArray,
    Embeddings,
    IntArray,
    identity_names,
    identity_numbers,
    modality_codes,
    whole_numbers,
)

logger = logging.getLogger(__name__)

SIDES = ("query", "gallery")
CAMERA_MODALITIES = {"sysu": {1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 1}, "regdb": {1: 0, 2: 1}}
"""Modality of each camera, where a benchmark's cameras determine it."""
NEEDED = {
    "sysu": ("features", "pid", "cam", "index"),
    "regdb": ("features", "pid"),
    "llcm": ("features", "pid", "cam", "index", "modality"),
    "csv": ("features", "pid", "modality"),
    "custom": ("features", "pid", "modality"),
}
"""Arrays of one set that a protocol needs."""
ALIASES = {"camid": "cam", "camera": "cam", "embedding": "features", "source": "name"}
"""Other names of arrays: of `Embeddings`, and of an exported gallery."""
NEAR = 0.8
"""Least likeness of names: camids is near camid, but frame is not near name."""


@dataclass(frozen=True)
class Sets:
    """Embeddings read from a file, and its query and gallery, if it holds two sets."""

    embeddings: Embeddings
    known: BoolArray  # (N,) whether the file gives the modality; it is 0 where it does not
    of_query: BoolArray | None = None  # (N,) the queries; None: the protocol chooses them


class EmbeddingsFile:
    """An `.npz` file of embeddings. A fault names the file, the array and the row.

    Raises:
        DataError: when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(
                f"{path} is a folder: give an .npz" if path.is_dir() else f"{path} does not exist"
            )
        if path.suffix.lower() == ".parquet":
            raise DataError(
                f"{path}: score reads .npz files: fmcnet gallery export GALLERY {path.with_suffix('.npz')}"
            )
        try:
            self.arrays = read_npz(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable .npz file: {error}") from error
        self.has_two_sets = "query_features" in self.arrays or "gallery_features" in self.arrays
        if self.has_two_sets and "features" in self.arrays:
            raise DataError(
                f"{path} holds features, and query_features or gallery_features beside them: give one set or two"
            )

    @property
    def dataset(self) -> str:
        """The dataset that `fmcnet embed` noted; "" where there is none."""
        dataset = self.arrays.get("dataset", np.array(""))
        return str(dataset) if dataset.ndim == 0 else ""

    def read(self, protocol: str) -> Sets:
        """Read what a protocol needs; `protocol` is a key of `NEEDED`.

        Raises:
            DataError: when arrays are missing, shapes disagree or a value is not usable.
        """
        sets = self._read_two_sets(protocol) if self.has_two_sets else self._read_one_set(protocol)
        if note := copies_note(sets.embeddings.features, sets.of_query):
            logger.warning("%s: %s", self.path, note)
        trained_on = self.arrays.get("trained_on", np.array(0))  # as `fmcnet embed` notes it
        if trained_on.ndim == 0 and trained_on:
            logger.warning(
                "%s: the model was trained on %s of its identities: figures are too good",
                self.path,
                trained_on,
            )
        return sets

    def _read_one_set(self, protocol: str) -> Sets:
        arrays = {ALIASES.get(name, name): array for name, array in self.arrays.items()} | self.arrays
        name = _flat_texts(arrays.get("name", np.empty(0)), errors="backslashreplace")
        has_names = name.dtype.kind == "U" and name.shape == np.shape(arrays.get("features", ()))[:1]
        has_unique_names = has_names and len(set(name.tolist())) == len(name)
        needed = [array for array in NEEDED[protocol] if array != "index" or not has_unique_names]
        cameras = "cam" if "cam" in arrays else None
        features, pid, camid, modality = self._read_columns("", arrays, protocol, needed, cameras)
        n = len(features)
        name = name if has_names else np.full(n, "")
        codes = modality.astype(np.uint8)
        if "index" in arrays:
            column = self._check_column(arrays["index"], "index", n)
            index = whole_numbers(column, f"{self.path}: 'index'", "1 for the first image")
        elif has_unique_names:
            index = positions(name, codes, camid, pid)
        else:
            index = np.zeros(n, dtype=np.int64)
        pid_name = identity_names(_flat_texts(arrays["pid"]))
        if "pid_name" in arrays and not (pid_name != "").any():
            pid_name = self._check_column(arrays["pid_name"], "pid_name", n)
        camera_name = self._check_column(arrays.get("camera_name", np.full(n, "")), "camera_name", n)
        embeddings = Embeddings(features, pid, camid, codes, index, name, pid_name, camera_name)
        return Sets(embeddings, np.ones(n, dtype=np.bool_))

    def _read_two_sets(self, protocol: str) -> Sets:
        sides = []
        for side in SIDES:
            names = [f"{side}_{name}" for name in (f"cam_{protocol}", "cam", "camid", "camera")]
            cameras = next((name for name in names if name in self.arrays), None)
            needed = [f"{side}_features", f"{side}_pid"]
            if cameras is None and "cam" in NEEDED[protocol]:
                needed.append(f"{side}_cam")
            sides.append(self._read_columns(f"{side}_", self.arrays, protocol, needed, cameras))
        widths = [features.shape[1] for features, *_ in sides]
        if widths[0] != widths[1]:
            raise DataError(
                f"{self.path}: query_features has {widths[0]} columns, gallery_features {widths[1]}: "
                "both sets must come from one model"
            )
        features, pid, camid, modality = (np.concatenate(pair) for pair in zip(*sides, strict=True))
        n = len(features)
        codes, index = np.maximum(modality, 0).astype(np.uint8), np.zeros(n, dtype=np.int64)
        embeddings = Embeddings(features, pid, camid, codes, index, np.full(n, ""))
        return Sets(embeddings, modality >= 0, np.arange(n) < len(sides[0][0]))

    def _read_columns(
        self,
        prefix: str,
        arrays: Mapping[str, NDArray[Any]],
        protocol: str,
        needed: list[str],
        cameras: str | None,
    ) -> tuple[NDArray[Any], ...]:
        """Features, identities, cameras and modalities (-1: unknown) of a set whose arrays begin with `prefix`."""
        missing = [name for name in needed if name not in arrays]
        if missing:
            raise DataError(
                f"{self.path} lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}, which the {protocol} "
                f"protocol needs; it holds {', '.join(arrays) or 'nothing'}"
            )
        features = self._check_features(arrays[f"{prefix}features"], f"{prefix}features")
        n = len(features)
        pid = self._parse_identities(arrays[f"{prefix}pid"], f"{prefix}pid", n)
        camid = self._parse_cameras(arrays[cameras], cameras, n) if cameras else np.full(n, NO_CAMERA)
        both = f"{prefix}cam", f"{prefix}camid"
        if {*both} <= {*self.arrays}:
            first, second = (self._parse_cameras(self.arrays[name], name, n) for name in both)
            if not np.array_equal(first, second):
                raise DataError(f"{self.path}: {' and '.join(both)} differ: leave one out")
        self._note_unread(prefix, arrays, cameras)
        name = f"{prefix}modality"
        if name in arrays:
            modality = self._parse_modalities(arrays[name], name, camid, protocol)
        elif not prefix or (cameras and protocol in CAMERA_MODALITIES):
            modality = self._camera_modalities(camid, protocol, cameras if prefix else None)
        else:
            modality = np.full(n, -1)
        return features, pid, camid, modality

    def _note_unread(self, prefix: str, arrays: Mapping[str, NDArray[Any]], cameras: str | None) -> None:
        """Warn of arrays with nearly the name of one that is missing."""
        usual = ["features", "pid", "modality", "cam", "camid", "camera"]
        usual += [] if prefix else ["index", "name", "pid_name", "camera_name", *ALIASES]
        for name in sorted(self.arrays):
            plain = name.removeprefix(prefix)
            if not name.startswith(prefix) or plain in usual:
                continue
            if name in ("role", "split") and len(np.unique(self.arrays[name])) > 1:
                text = "%s: the array '%s' is not read, so every row counts: save only those that should"
                logger.warning(text, self.path, name)
            for near in get_close_matches(plain.casefold(), usual, 1, NEAR):
                wanted = ALIASES.get(near, near)
                if not (cameras if wanted == "cam" else f"{prefix}{wanted}" in arrays):
                    logger.warning(
                        "%s: the array '%s' is not read: name it %s", self.path, name, prefix + wanted
                    )

    def _check_features(self, array: NDArray[Any], name: str) -> NDArray[np.float32]:
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
            raise DataError(
                f"{self.path}: '{name}' must be a matrix of numbers (N, D) with N and D above 0, "
                f"got {array.dtype} of shape {array.shape}"
            )
        with np.errstate(over="ignore"):
            features = np.asarray(array, dtype=np.float32)
        lost = np.flatnonzero(
            ~np.isfinite(features).all(axis=1) | (~features.any(axis=1) & array.any(axis=1))
        )
        if len(lost):
            largest = np.abs(array[lost[0]]).max()
            what, advice = "NaN or infinity", "check the model or drop these rows"
            if np.isfinite(largest):
                what = f"{largest:.3g}, which is too {'large' if largest > 1 else 'small'} for float32,"
                advice = "scale all features by one factor"
            raise DataError(
                f"{self.path}: '{name}' holds {what} in {len(lost)} of {len(array)} rows, the first is row "
                f"{lost[0]}: {advice}"
            )
        return features

    def _parse_identities(self, array: NDArray[Any], name: str, n: int) -> IntArray:
        """Whole numbers, or texts as `identity_numbers`."""
        flat = self._check_column(array, name, n)
        try:
            return identity_numbers(flat)
        except DataError as error:
            raise DataError(f"{self.path}: '{name}' must hold texts or whole numbers: {error}") from error

    def _check_column(self, array: NDArray[Any], name: str, n: int) -> NDArray[Any]:
        """(N,) values of an array of shape (N,), (1, N) or (N, 1), bytes as texts."""
        try:
            flat = _flat_texts(array)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: '{name}' holds texts that are not UTF-8: {error}") from error
        if flat.shape != (n,):
            raise DataError(
                f"{self.path}: '{name}' has shape {array.shape}, but there are {n} embeddings: one value for each"
            )
        return flat

    def _parse_cameras(self, array: NDArray[Any], name: str, n: int) -> IntArray:
        """Whole numbers, or texts as a gallery has them: "3", "cam3", or "" for none."""
        column = self._check_column(array, name, n)
        if column.dtype.kind == "U":
            numbers = [re.sub("^cam", "", camera) or str(NO_CAMERA) for camera in column.tolist()]
            for row, number in enumerate(numbers):
                if not re.fullmatch(r"-1|[0-9]{1,9}", number):
                    raise DataError(
                        f"{self.path}: '{name}' must hold whole numbers, as 3 or cam3, but is '{column[row]}' in row "
                        f"{row}"
                    )
            column = np.array(numbers, dtype=np.int64)
        return whole_numbers(column, f"{self.path}: '{name}'", f"{NO_CAMERA} where unknown")

    def _parse_modalities(self, array: NDArray[Any], name: str, camid: IntArray, protocol: str) -> IntArray:
        """(N,) of 0 and 1, or words for them; on SYSU-MM01 they must not contradict the cameras."""
        column = self._check_column(array, name, len(camid))
        modality = modality_codes(column, f"{self.path}: '{name}'").astype(np.int64)
        by_camera = _modality_of_cameras(camid, protocol)
        if protocol == "sysu" or by_camera.min() >= 0:  # else they are other data's
            invalid = np.flatnonzero((by_camera >= 0) & (by_camera != modality))
            if len(invalid):
                text = (
                    f"{self.path}: '{name}' is {modality[invalid[0]]} in row {invalid[0]}, whose camera "
                    f"{camid[invalid[0]]} is of the other modality on {protocol}"
                )
                if protocol == "sysu":
                    raise DataError(f"{text}: correct one of them")
                logger.warning("%s: the modality counts", text)  # it has no camera rule
        return modality

    def _camera_modalities(self, camid: IntArray, protocol: str, name: str | None = None) -> IntArray:
        """(N,) modalities by the cameras; with `name`, of one of two sets, -1 where there is no camera."""
        modality = _modality_of_cameras(camid, protocol)
        unknown = np.flatnonzero(modality < 0 if name is None else (modality < 0) & (camid != NO_CAMERA))
        if len(unknown):
            camera = "no camera" if camid[unknown[0]] == NO_CAMERA else f"camera {camid[unknown[0]]}"
            raise DataError(
                f"{self.path}: row {unknown[0]}{f' of {name}' if name else ''} has {camera}, but {protocol} has "
                f"cameras {', '.join(map(str, CAMERA_MODALITIES[protocol]))}: give an array 'modality' (0 visible, "
                "1 infrared) or the benchmark's camera numbers"
            )
        return modality


def _flat_texts(array: NDArray[Any], errors: str = "strict") -> NDArray[Any]:
    """An array of shape (1, N) or (N, 1) as (N,), and bytes as texts."""
    flat = array.ravel() if array.ndim == 2 and 1 in array.shape else array
    return np.char.decode(flat, "utf-8", errors) if flat.dtype.kind == "S" else flat


def _modality_of_cameras(camid: IntArray, protocol: str) -> IntArray:
    """(N,) modality of each camera; -1 for cameras that the benchmark does not have."""
    known = CAMERA_MODALITIES.get(protocol, {})
    return np.array([known.get(camera, -1) for camera in camid.tolist()], dtype=np.int64)
