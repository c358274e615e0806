"""Score embeddings made by any code: read an `.npz`, choose a protocol by name, evaluate (docs/guides/evaluate.md).

Two forms of file:

- one set: `features` (N, D), `pid` (N,) texts or whole numbers, `cam` (N,), `index` (N,) 1-based among the sorted
  images of an identity and camera, and `modality` (N,) 0 visible, 1 infrared where cameras do not tell (they do on
  SYSU-MM01). `fmcnet embed --data` and `Embeddings.save` write such a file; `fmcnet gallery export` writes one under
  other names. Without `index` the order of `name` (N,) counts;
- two sets as somebody drew them: `query_features`, `query_pid`, `query_cam`, and the same with `gallery_`.
  Camera arrays may end in the protocol's name (`query_cam_llcm`), `query_modality` may tell the modality where the
  camera does not. Nothing is drawn then, and both sets must be what the direction says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.table import positions
from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.draws import Draw, find_permutation
from fmcnet.evaluation.metrics import Evaluation
from fmcnet.evaluation.protocol_file import SUFFIXES, read_protocol
from fmcnet.evaluation.protocols import DIRECTIONS, Protocol, llcm, regdb, sysu
from fmcnet.parsing import read_npz
from fmcnet.types import (
    MODALITY_WORDS,
    NO_CAMERA,
    BoolArray,
    Embeddings,
    IntArray,
    identity_numbers,
)

PROTOCOLS = ("sysu", "regdb", "llcm")
SYSU_CAMERAS = {1: 0, 2: 0, 4: 0, 5: 0, 3: 1, 6: 1}
REGDB_CAMERAS = {1: 0, 2: 1}
CAMERAS = {"sysu": ("SYSU-MM01", 6), "regdb": ("RegDB", 2), "llcm": ("LLCM", 9)}
"""Each benchmark's title and its number of cameras, which count from 1."""
OPTIONS = {"sysu": ("mode", "shots", "draw", "permutation"), "regdb": ("cmc",), "llcm": ("reading",)}
"""Which options a protocol has; every other one is refused, since it would do nothing."""
ALIASES = {"camid": "cam", "camera": "cam", "embedding": "features", "source": "name"}
"""Other names of arrays: of `Embeddings`, and of an exported gallery."""
DRAWING = ("mode", "shots", "permutation")
"""Those of them that choose and draw the sets, which a file may hold already."""


@dataclass(frozen=True)
class Scorable:
    """Embeddings read from a file, and the sets it gives, if it gives them.

    Attributes:
        embeddings: (N, D) and their columns.
        query_mask: (N,) bool, or None where the file leaves the choice to the protocol.
        gallery_mask: the same.
        assumed: the modalities are those of the direction; the file does not tell them.
    """

    embeddings: Embeddings
    query_mask: BoolArray | None = None
    gallery_mask: BoolArray | None = None
    assumed: bool = False


def score_file(
    path: str | Path,
    protocol: str = "sysu",
    *,
    mode: str | None = None,
    shots: int | None = None,
    draw: str | None = None,
    permutation: str | Path | None = None,
    direction: str | None = None,
    reading: str | None = None,
    cmc: str | None = None,
    trials: int = 10,
    seed: int = 0,
    distance: str = "cosine",
    device: str = "cpu",
    precision: str = "auto",
    strict: bool = False,
) -> Evaluation:
    """Score the embeddings in a file.

    Args:
        path: the `.npz`, see the module's text for its arrays.
        protocol: "sysu", "regdb", "llcm", or a YAML file (`protocol_file`), which states all but the distance.
        mode, shots, draw: of SYSU-MM01, see `protocols.sysu`; None: all, 1, official.
        permutation: `rand_perm_cam.mat` for the official draw; None looks beside the file and in `exp/`.
        direction: "i2v"/"v2i" (sysu, llcm), "v2t"/"t2v" (regdb); None takes the benchmark's: i2v, v2i and v2t.
        reading: of LLCM, see `protocols.llcm`; None: a.
        cmc: of RegDB, see `protocols.regdb`; None: image.
        trials, seed: of drawn protocols.
        distance: "cosine" or "euclidean".
        device, precision: see `evaluate.evaluate`.
        strict: refuse `draw`, too, where nothing is drawn by it.

    Raises:
        DataError: when the file lacks arrays, shapes disagree, an embedding is NaN (names the row), or a camera is
            not of the modality that the direction says.
        ProtocolError: on an unknown option, one that would do nothing, or when embeddings and protocol do not fit.
    """
    options = {"mode": mode, "shots": shots, "permutation": permutation, "reading": reading, "cmc": cmc}
    if Path(protocol).suffix.lower() in SUFFIXES or Path(protocol).is_file():
        other = {**options, "draw": draw, "direction": direction}
        named = [name for name, value in other.items() if value is not None]
        if named:
            raise ProtocolError(
                f"{', '.join(named)} beside the protocol {protocol}: the file states the protocol"
            )
        read, rules = _read_by_file(Path(path), Path(protocol))
        return _evaluate(read, rules, distance, device, precision)
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"unknown protocol '{protocol}': use {', '.join(PROTOCOLS)}, or a YAML file")
    arrays = _read(Path(path))
    given = "query_features" in arrays or "gallery_features" in arrays
    options |= {"draw": draw} if strict else {}
    _refuse_unused(protocol, options, given)
    direction = direction or DIRECTIONS[protocol]
    if protocol == "sysu":
        draw = "seeded" if given else draw or "official"
        if draw == "official" and permutation is None:
            permutation = find_permutation(Path(path).resolve().parent)
        elif draw == "seeded" and permutation is not None:
            raise ProtocolError("a permutation is for the official draw: leave it out, or the seeded draw")
        shots = 1 if shots is None else shots
        rules = sysu(mode or "all", shots, draw, permutation, trials, direction, seed)
    elif protocol == "regdb":
        rules = regdb(direction, cmc or "image")
    else:
        rules = llcm(reading or "a", direction, trials, seed)
    if given:
        rules = rules.as_given()
    read = _two_sets(arrays, path, protocol, direction) if given else _one_set(arrays, path, protocol)
    if read.assumed:
        rules = replace(rules, ours=(*rules.ours, "the modalities, which the file does not tell"))
    if foreign := _foreign_cameras(read.embeddings.camid, protocol):
        rules = replace(rules, ours=(*rules.ours, foreign))
    return _evaluate(read, rules, distance, device, precision)


def _foreign_cameras(camid: IntArray, protocol: str) -> str:
    """A remark on cameras that the benchmark does not have, so that no other data passes for it; "" without any."""
    title, many = CAMERAS[protocol]
    odd = [camera for camera in np.unique(camid).tolist() if camera != NO_CAMERA and not 1 <= camera <= many]
    if not odd:
        return ""
    listed = ", ".join(map(str, odd[:10])) + (f" and {len(odd) - 10} more" if len(odd) > 10 else "")
    return f"the camera{'s' * (len(odd) > 1)} {listed}, which {title} does not have"


def _evaluate(read: Scorable, rules: Protocol, distance: str, device: str, precision: str) -> Evaluation:
    from fmcnet.evaluation.evaluate import evaluate

    return evaluate(
        read.embeddings,
        rules,
        distance=distance,
        device=device,
        precision=precision,
        query_mask=read.query_mask,
        gallery_mask=read.gallery_mask,
    )


def _read_by_file(path: Path, protocol: Path) -> tuple[Scorable, Protocol]:
    """For a protocol of one's own. Cameras and `index` are needed where the protocol minds them."""
    arrays = _read(path)
    given = "query_features" in arrays or "gallery_features" in arrays
    read = _two_sets(arrays, path, "custom", "") if given else _one_set(arrays, path, "custom")
    embeddings, rules = read.embeddings, read_protocol(protocol, read.embeddings)
    if read.query_mask is not None:
        if rules.draw != Draw():
            raise ProtocolError(
                f"{path} holds query and gallery as they were drawn, so shots, trials and seed of {protocol} would "
                "do nothing: take them out, or give one set (features, pid, cam, index)"
            )
        for side, wanted in (("query", rules.query.modality), ("gallery", rules.gallery.modality)):
            mask = read.query_mask if side == "query" else read.gallery_mask
            if wanted is None or mask is None:
                continue
            if f"{side}_modality" not in arrays:
                embeddings = replace(
                    embeddings, modality=np.where(mask, np.uint8(wanted.code), embeddings.modality)
                )
            elif wrong := int((embeddings.modality[mask] != wanted.code).sum()):
                raise DataError(
                    f"{path}: {wrong} of {int(mask.sum())} images of the {side} are {wanted.other}, but {protocol} "
                    f"takes {wanted} ones there"
                )
        if read.assumed:
            rules = replace(rules, ours=(*rules.ours, "the modalities, which the file does not tell"))
        rules = replace(rules.as_given(), name=rules.name, ours=rules.ours)
    return replace(read, embeddings=embeddings), rules


def _refuse_unused(protocol: str, options: Mapping[str, Any], given: bool) -> None:
    """Refuse options that would do nothing.

    Raises:
        ProtocolError: naming them.
    """
    wanted = [name for name, value in options.items() if value is not None]
    others = [name for name in wanted if name not in OPTIONS[protocol]]
    if others:
        has = ", ".join(OPTIONS[protocol])
        raise ProtocolError(
            f"the {protocol} protocol has no {' and no '.join(others)} (it has {has}): leave it out"
        )
    drawn = [name for name in wanted if name in (*DRAWING, "draw")]
    drawn += ["reading b, which draws otherwise than reading a,"] if options.get("reading") == "b" else []
    if given and drawn:
        raise ProtocolError(
            f"the file holds query and gallery as they were drawn, so {' and '.join(drawn)} would do nothing: leave "
            "it out, or give one set (features, pid, cam, index)"
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.suffix.lower() == ".parquet":
        raise DataError(
            f"{path}: score reads .npz files: fmcnet gallery export GALLERY {path.with_suffix('.npz')}"
        )
    try:
        return read_npz(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from error


def _one_set(arrays: dict[str, NDArray[Any]], path: str | Path, protocol: str) -> Scorable:
    needed = {
        "sysu": ("features", "pid", "cam", "index"),
        "regdb": ("features", "pid"),
        "custom": ("features", "pid", "modality"),
    }
    wanted = needed.get(protocol, ("features", "pid", "cam", "index", "modality"))
    renamed = {ALIASES.get(name, name): array for name, array in arrays.items()} | arrays
    names = renamed.get("name")
    ordered = names is not None and names.dtype.kind == "U" and len(set(names.ravel().tolist())) == names.size
    wanted = tuple(name for name in wanted if name != "index" or not ordered)
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
    if "modality" in renamed:
        modality = _modalities(renamed["modality"], "modality", n, path)
        _check_cameras(modality, "modality", camid, protocol, path)
    else:
        modality = _from_cameras(camid, protocol, path)
    if "index" in renamed:
        index = _integers(renamed["index"], "index", n, path)
    elif names is not None and ordered and names.shape == (n,):
        index = positions(names, modality.astype(np.uint8), camid, pid)
    else:
        index = np.zeros(n, dtype=np.int64)
    return Scorable(_embeddings(features, pid, camid, modality, index, names))


def _two_sets(arrays: dict[str, NDArray[Any]], path: str | Path, protocol: str, direction: str) -> Scorable:
    parts: dict[str, list[NDArray[Any]]] = {"features": [], "pid": [], "cam": [], "modality": []}
    told: list[IntArray] = []
    for side in ("query", "gallery"):
        names = (f"{side}_cam_{protocol}", f"{side}_cam", f"{side}_camid")
        cameras = next((name for name in names if name in arrays), None)
        missing = [f"{side}_{name}" for name in ("features", "pid") if f"{side}_{name}" not in arrays]
        if cameras is None and protocol not in ("regdb", "custom"):
            missing.append(f"{side}_cam")
        if missing:
            raise DataError(
                f"{path} lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}, which the {protocol} "
                f"protocol needs; it holds {', '.join(arrays) or 'nothing'}"
            )
        features = _features(arrays[f"{side}_features"], f"{side}_features", path)
        n = len(features)
        camid = np.full(n, NO_CAMERA) if cameras is None else _integers(arrays[cameras], cameras, n, path)
        width = parts["features"][0].shape[1] if parts["features"] else features.shape[1]
        if features.shape[1] != width:
            raise DataError(
                f"{path}: query_features has {width} columns, gallery_features {features.shape[1]}: "
                "both sets must come from one model"
            )
        parts["features"].append(features)
        parts["pid"].append(_identities(arrays[f"{side}_pid"], f"{side}_pid", n, path))
        parts["cam"].append(camid)
        told.append(_told_modality(arrays, side, cameras, camid, protocol, path))
    for side, known in zip(("query", "gallery"), told, strict=True):
        if protocol == "custom":
            parts["modality"].append(np.maximum(known, 0))
            continue
        code = int((side == "query") != direction.startswith("v"))
        parts["modality"].append(np.full(len(known), code))
        wrong = np.flatnonzero(known == 1 - code)
        if len(wrong):
            kinds = ("visible", "infrared")
            raise DataError(
                f"{path}: {len(wrong)} of the {len(known)} images of the {side} are {kinds[1 - code]}, the first in "
                f"row {int(wrong[0])}, but direction {direction} of {protocol} takes {kinds[code]} images there: "
                "give the other direction or protocol"
            )
    of_query = np.arange(sum(map(len, told))) < len(told[0])
    features, pid, camid, modality = map(np.concatenate, parts.values())
    embeddings = _embeddings(features, pid, camid, modality, np.zeros(len(of_query), dtype=np.int64), None)
    return Scorable(embeddings, of_query, ~of_query, any(bool((known < 0).any()) for known in told))


def _told_modality(
    arrays: dict[str, NDArray[Any]],
    side: str,
    cameras: str | None,
    camid: IntArray,
    protocol: str,
    path: str | Path,
) -> IntArray:
    """(N,) 0 visible, 1 infrared, as the array of modalities or the benchmark's cameras say; -1: nothing does."""
    name = f"{side}_modality"
    if name in arrays:
        modality = _modalities(arrays[name], name, len(camid), path)
        _check_cameras(modality, name, camid, protocol, path)
        return modality
    if protocol in ("llcm", "custom"):
        return np.full(len(camid), -1)
    known = camid != NO_CAMERA
    told = np.full(len(camid), -1)
    told[known] = _from_cameras(camid[known], protocol, path, cameras or "")
    return told


def _check_cameras(modality: IntArray, name: str, camid: IntArray, protocol: str, path: str | Path) -> None:
    """Refuse modalities that contradict the cameras, which on SYSU-MM01 tell them.

    Raises:
        DataError: naming the first row.
    """
    known = np.isin(camid, list(SYSU_CAMERAS)) if protocol == "sysu" else np.zeros(len(camid), dtype=bool)
    odd = np.flatnonzero(known)[modality[known] != _from_cameras(camid[known], protocol, path)]
    if len(odd):
        raise DataError(
            f"{path}: '{name}' is {int(modality[odd[0]])} in row {int(odd[0])}, whose camera "
            f"{int(camid[odd[0]])} is of the other modality on sysu: correct one of them"
        )


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
    if name == "cam" and array.dtype.kind == "U":  # of a gallery: "3", "cam3", or "" for none
        numbers = [re.sub("^cam", "", one) or str(NO_CAMERA) for one in array.ravel().tolist()]
        if all(re.fullmatch(r"-1|[0-9]{1,9}", one) for one in numbers):
            array = np.array(numbers, dtype=np.int64)
    flat = _column(array, name, n, path)
    if flat.dtype.kind in "uf" and (np.abs(flat) >= 2.0**63).any():
        raise DataError(f"{path}: '{name}' holds a number that does not fit 64 bits")
    if flat.dtype.kind not in "iufb" or (flat.dtype.kind == "f" and not (flat == np.rint(flat)).all()):
        raise DataError(f"{path}: '{name}' must hold whole numbers, got {array.dtype}")
    return np.asarray(flat, dtype=np.int64)


def _modalities(array: NDArray[Any], name: str, n: int, path: str | Path) -> IntArray:
    """(N,) of 0 and 1; words for them will do."""
    if array.dtype.kind == "U":
        codes = {
            word: MODALITY_WORDS[word.lower()].code
            for word in set(array.tolist())
            if word.lower() in MODALITY_WORDS
        }
        array = np.array([codes.get(word, -1) for word in array.tolist()], dtype=np.int64)
    modality = _integers(array, name, n, path)
    odd = np.flatnonzero((modality != 0) & (modality != 1))
    if len(odd):
        raise DataError(
            f"{path}: '{name}' is {int(modality[odd[0]])} in row {int(odd[0])}: 0 is visible, 1 infrared"
        )
    return modality


def _camera(camid: int) -> str:
    return "no camera" if camid == NO_CAMERA else f"camera {int(camid)}"


def _from_cameras(camid: IntArray, protocol: str, path: str | Path, name: str = "") -> IntArray:
    """Modality by the benchmark's camera numbers; `name` is of the array, where there are several."""
    table = SYSU_CAMERAS if protocol == "sysu" else REGDB_CAMERAS
    odd = np.flatnonzero(~np.isin(camid, list(table)))
    if len(odd):
        row = int(odd[0])
        raise DataError(
            f"{path}: row {row}{' of ' * bool(name)}{name} has {_camera(camid[row])}, but {protocol} has cameras "
            f"{', '.join(map(str, sorted(table)))}: give an array 'modality' (0 visible, 1 infrared) or the "
            "benchmark's camera numbers"
        )
    lookup = np.zeros(max(table) + 1, dtype=np.int64)
    lookup[list(table)] = list(table.values())
    return np.asarray(lookup[camid], dtype=np.int64)
