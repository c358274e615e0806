"""Score embeddings made by any code: read an `.npz`, choose a protocol by name, evaluate.

Two forms of file:

- one set: `features` (N, D), `pid` (N,) texts or whole numbers, `cam` (N,), `index` (N,) 1-based among the sorted
  images of an identity and camera, and `modality` (N,) 0 visible, 1 infrared where cameras do not tell (they do on
  SYSU-MM01); a file written by `Embeddings.save` is such a file;
- two sets as somebody drew them: `query_features`, `query_pid`, `query_cam`, and the same with `gallery_`.
  Camera arrays may end in the protocol's name (`query_cam_llcm`). Nothing is drawn then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.draws import find_permutation
from fmcnet.evaluation.metrics import Evaluation
from fmcnet.evaluation.protocols import Protocol, llcm, regdb, sysu
from fmcnet.parsing import read_npz
from fmcnet.types import NO_CAMERA, BoolArray, Embeddings, IntArray, identity_numbers

PROTOCOLS = ("sysu", "regdb", "llcm")
SYSU_CAMERAS = {1: 0, 2: 0, 4: 0, 5: 0, 3: 1, 6: 1}
REGDB_CAMERAS = {1: 0, 2: 1}


@dataclass(frozen=True)
class Scorable:
    """Embeddings read from a file, and the sets it gives, if it gives them.

    Attributes:
        embeddings: (N, D) and their columns.
        query_mask: (N,) bool, or None where the file leaves the choice to the protocol.
        gallery_mask: the same.
    """

    embeddings: Embeddings
    query_mask: BoolArray | None = None
    gallery_mask: BoolArray | None = None


def score_file(
    path: str | Path,
    protocol: str = "sysu",
    *,
    mode: str = "all",
    shots: int = 1,
    draw: str = "official",
    permutation: str | Path | None = None,
    direction: str | None = None,
    reading: str = "a",
    cmc: str = "image",
    trials: int = 10,
    seed: int = 0,
    distance: str = "cosine",
    device: str = "cpu",
    precision: str = "auto",
) -> Evaluation:
    """Score the embeddings in a file.

    Args:
        path: the `.npz`, see the module's text for its arrays.
        protocol: "sysu", "regdb" or "llcm".
        mode, shots, draw: of SYSU-MM01, see `protocols.sysu`.
        permutation: `rand_perm_cam.mat` for the official draw; None looks beside the file and in `exp/`.
        direction: "i2v"/"v2i" (sysu, llcm), "v2t"/"t2v" (regdb); None takes i2v, v2i and v2t respectively.
        reading: of LLCM, see `protocols.llcm`.
        cmc: of RegDB, see `protocols.regdb`.
        trials, seed: of drawn protocols.
        distance: "cosine" or "euclidean".
        device, precision: see `evaluate.evaluate`.

    Raises:
        DataError: when the file lacks arrays, shapes disagree, or an embedding is NaN (names the row).
        ProtocolError: on an unknown option, or when embeddings and protocol do not fit.
    """
    from fmcnet.evaluation.evaluate import evaluate

    if protocol not in PROTOCOLS:
        raise ProtocolError(f"unknown protocol '{protocol}': use {', '.join(PROTOCOLS)}")
    direction = direction or {"sysu": "i2v", "regdb": "v2t", "llcm": "v2i"}[protocol]
    arrays = _read(Path(path))
    given = "query_features" in arrays or "gallery_features" in arrays
    rules: Protocol
    if protocol == "sysu":
        wanted = draw
        if draw == "official" and not given and permutation is None:
            permutation = find_permutation(Path(path).resolve().parent)
        elif given and draw == "official":
            wanted = "seeded"  # nothing will be drawn; the permutation is not needed
        rules = sysu(mode, shots, wanted, permutation, trials, direction, seed)
    elif protocol == "regdb":
        rules = regdb(direction, cmc)
    else:
        rules = llcm(reading, direction, trials, seed)
    if given:
        rules = rules.as_given()
    read = _two_sets(arrays, path, protocol, direction) if given else _one_set(arrays, path, protocol)
    return evaluate(
        read.embeddings,
        rules,
        distance=distance,
        device=device,
        precision=precision,
        query_mask=read.query_mask,
        gallery_mask=read.gallery_mask,
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        return read_npz(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from error


def _one_set(arrays: dict[str, NDArray[Any]], path: str | Path, protocol: str) -> Scorable:
    needed = {"sysu": ("features", "pid", "cam", "index"), "regdb": ("features", "pid")}
    wanted = needed.get(protocol, ("features", "pid", "cam", "index", "modality"))
    renamed = dict(arrays)
    if "cam" not in renamed and "camid" in renamed:
        renamed["cam"] = renamed["camid"]
    missing = [name for name in wanted if name not in renamed]
    if missing:
        raise DataError(
            f"{path} lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}, which the {protocol} protocol "
            f"needs; it holds {', '.join(arrays) or 'nothing'}"
        )
    features = _features(renamed["features"], "features", path)
    n = len(features)
    pid = _identities(renamed["pid"], "pid", n, path)
    camid = _integers(renamed["cam"], "cam", n, path) if "cam" in renamed else np.full(n, NO_CAMERA)
    index = (
        _integers(renamed["index"], "index", n, path) if "index" in renamed else np.zeros(n, dtype=np.int64)
    )
    if "modality" in renamed:
        modality = _integers(renamed["modality"], "modality", n, path)
        odd = np.flatnonzero((modality != 0) & (modality != 1))
        if len(odd):
            raise DataError(
                f"{path}: 'modality' is {int(modality[odd[0]])} in row {int(odd[0])}: 0 is visible, 1 infrared"
            )
    else:
        modality = _from_cameras(camid, protocol, path)
    return Scorable(_embeddings(features, pid, camid, modality, index, arrays.get("name")))


def _two_sets(arrays: dict[str, NDArray[Any]], path: str | Path, protocol: str, direction: str) -> Scorable:
    parts: dict[str, list[NDArray[Any]]] = {"features": [], "pid": [], "cam": []}
    for side in ("query", "gallery"):
        cameras = next(
            (name for name in (f"{side}_cam_{protocol}", f"{side}_cam", f"{side}_camid") if name in arrays),
            None,
        )
        missing = [f"{side}_{name}" for name in ("features", "pid") if f"{side}_{name}" not in arrays]
        if cameras is None and protocol != "regdb":
            missing.append(f"{side}_cam")
        if missing:
            raise DataError(
                f"{path} lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}, which the {protocol} "
                f"protocol needs; it holds {', '.join(arrays) or 'nothing'}"
            )
        features = _features(arrays[f"{side}_features"], f"{side}_features", path)
        n = len(features)
        parts["features"].append(features)
        parts["pid"].append(_identities(arrays[f"{side}_pid"], f"{side}_pid", n, path))
        known = cameras is not None and protocol != "regdb"
        parts["cam"].append(
            _integers(arrays[cameras], cameras, n, path)
            if known and cameras
            else np.full(n, NO_CAMERA, np.int64)
        )
    query, gallery = parts["features"]
    if query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"{path}: query_features has {query.shape[1]} columns, gallery_features {gallery.shape[1]}: "
            "both sets must come from one model"
        )
    of_query = np.arange(len(query) + len(gallery)) < len(query)
    visible_query = direction.startswith("v")
    embeddings = _embeddings(
        np.concatenate([query, gallery]),
        np.concatenate(parts["pid"]),
        np.concatenate(parts["cam"]),
        np.where(of_query, not visible_query, visible_query).astype(np.int64),
        np.zeros(len(of_query), dtype=np.int64),
        None,
    )
    return Scorable(embeddings, of_query, ~of_query)


def _embeddings(
    features: NDArray[np.float32],
    pid: IntArray,
    camid: IntArray,
    modality: IntArray,
    index: IntArray,
    name: NDArray[Any] | None,
) -> Embeddings:
    usable = name is not None and name.shape == pid.shape and name.dtype.kind == "U"
    names = name if usable and name is not None else np.full(len(pid), "", dtype="<U1")
    return Embeddings(features, pid, camid, modality.astype(np.uint8), index, names)


def _features(array: NDArray[Any], name: str, path: str | Path) -> NDArray[np.float32]:
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: '{name}' must be a matrix of numbers (N, D) with N and D above 0, "
            f"got {array.dtype} of shape {array.shape}"
        )
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32)


def _identities(array: NDArray[Any], name: str, n: int, path: str | Path) -> IntArray:
    """Whole numbers, or texts as `identity_numbers`."""
    flat = _column(array, name, n, path)
    try:
        if flat.dtype.kind == "S":
            flat = np.char.decode(flat, "utf-8")
        return identity_numbers(flat)
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: '{name}' must hold texts or whole numbers: {error}") from error


def _column(array: NDArray[Any], name: str, n: int, path: str | Path) -> NDArray[Any]:
    flat = array.ravel() if array.ndim == 2 and 1 in array.shape else array
    if flat.shape != (n,):
        raise DataError(
            f"{path}: '{name}' has shape {array.shape}, but there are {n} embeddings: one value for each"
        )
    return flat


def _integers(array: NDArray[Any], name: str, n: int, path: str | Path) -> IntArray:
    flat = _column(array, name, n, path)
    if flat.dtype.kind in "uf" and (np.abs(flat) >= 2.0**63).any():
        raise DataError(f"{path}: '{name}' holds a number that does not fit 64 bits")
    if flat.dtype.kind not in "iufb" or (flat.dtype.kind == "f" and not (flat == np.rint(flat)).all()):
        raise DataError(f"{path}: '{name}' must hold whole numbers, got {array.dtype}")
    return np.asarray(flat, dtype=np.int64)


def _from_cameras(camid: IntArray, protocol: str, path: str | Path) -> IntArray:
    """Modality by the benchmark's camera numbers."""
    table = SYSU_CAMERAS if protocol == "sysu" else REGDB_CAMERAS
    odd = np.flatnonzero(~np.isin(camid, list(table)))
    if len(odd):
        row = int(odd[0])
        what = "no camera" if camid[row] == NO_CAMERA else f"camera {int(camid[row])}"
        raise DataError(
            f"{path}: row {row} has {what}, but {protocol} has cameras {', '.join(map(str, sorted(table)))}: give an "
            "array 'modality' (0 visible, 1 infrared) or the benchmark's camera numbers"
        )
    lookup = np.zeros(max(table) + 1, dtype=np.int64)
    lookup[list(table)] = list(table.values())
    return np.asarray(lookup[camid], dtype=np.int64)
