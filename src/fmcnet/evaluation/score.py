"""Score embeddings made by any code: read a file, choose a protocol by name, evaluate (docs/guides/evaluate.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.check import TITLES
from fmcnet.errors import DataError, ProtocolError, first_of
from fmcnet.evaluation.draws import Draw, find_permutation
from fmcnet.evaluation.embeddings_file import SIDES, EmbeddingsFile, Sets
from fmcnet.evaluation.evaluate import Evaluation, evaluate
from fmcnet.evaluation.protocol_file import SUFFIXES, read_protocol
from fmcnet.evaluation.protocols import DIRECTIONS, Protocol, llcm, regdb, sysu
from fmcnet.types import NO_CAMERA, Embeddings, IntArray

CAMERAS = {"sysu": 6, "regdb": 2, "llcm": 9}
"""Each benchmark's number of cameras, which count from 1."""
OPTIONS = {"sysu": ("mode", "shots", "draw", "permutation"), "regdb": ("cmc",), "llcm": ("reading",)}
"""Which options a protocol has; every other one is refused, since it would do nothing."""
DRAWING = ("mode", "shots", "permutation", "draw")
"""Those of them that choose and draw the sets, which a file may hold already."""


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
        path: the `.npz`, see `embeddings_file` for its arrays.
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
    own = Path(protocol).suffix.lower() in SUFFIXES or Path(protocol).is_file()
    if own:
        other = {**options, "draw": draw, "direction": direction}
        if named := [name for name, value in other.items() if value is not None]:
            raise ProtocolError(
                f"{', '.join(named)} beside the protocol {protocol}: the file states the protocol"
            )
    elif protocol not in OPTIONS:
        raise ProtocolError(f"unknown protocol '{protocol}': use {', '.join(OPTIONS)}, or a YAML file")
    file = EmbeddingsFile(Path(path))
    if own:
        sets = file.read("custom")
        rules = read_protocol(protocol, sets.embeddings)
        if file.has_two_sets and rules.draw != Draw():
            raise ProtocolError(
                f"{path} holds query and gallery as they were drawn, so shots, trials and seed of {protocol} would "
                "do nothing: take them out, or give one set (features, pid, cam, index)"
            )
    else:
        _refuse_unused(protocol, options | ({"draw": draw} if strict else {}), file.has_two_sets)
        direction = direction or DIRECTIONS[protocol]
        if protocol == "sysu":
            draw = "seeded" if file.has_two_sets else draw or "official"
            if draw == "official" and permutation is None:
                permutation = find_permutation(file.path.resolve().parent)
            elif draw == "seeded" and permutation is not None:
                raise ProtocolError(
                    "a permutation is for the official draw: leave it out, or the seeded draw"
                )
            shots = 1 if shots is None else shots
            rules = sysu(mode or "all", shots, draw, permutation, trials, direction, seed)
        elif protocol == "regdb":
            rules = regdb(direction, cmc or "image")
        else:
            rules = llcm(reading or "a", direction, trials, seed)
        sets = file.read(protocol)
    embeddings, of_query, ours = sets.embeddings, sets.of_query, list(rules.ours)
    if of_query is not None:
        given, ours = rules.as_given(), []
        rules = replace(given, name=rules.name) if own else given
        takes = protocol if own else f"direction {direction} of {protocol}"
        embeddings = _with_modalities(sets, rules, path, takes)
        ours += ["the modalities, which the file does not tell"] if not sets.known.all() else []
    if not own and (foreign := _foreign_cameras(embeddings.camid, protocol)):
        ours.append(foreign)
    return evaluate(
        embeddings,
        replace(rules, ours=tuple(ours)),
        distance=distance,
        device=device,
        precision=precision,
        query_mask=of_query,
        gallery_mask=None if of_query is None else ~of_query,
    )


def _with_modalities(sets: Sets, rules: Protocol, path: str | Path, takes: str) -> Embeddings:
    """Give each of two sets the modality that the protocol takes there.

    Args:
        sets: as read.
        rules: the protocol.
        path: of the file. takes: what wants the modalities, in words; both for messages.

    Raises:
        DataError: when the file says otherwise.
    """
    assert sets.of_query is not None
    modality = sets.embeddings.modality.copy()
    wanted = (rules.query.modality, rules.gallery.modality)
    for side, mask, kind in zip(SIDES, (sets.of_query, ~sets.of_query), wanted, strict=True):
        if kind is None:
            continue
        wrong = np.flatnonzero((sets.known & (modality != kind.code))[mask])
        if len(wrong):
            raise DataError(
                f"{path}: {len(wrong)} of the {mask.sum()} images of the {side} are {kind.other}, the first in row "
                f"{wrong[0]}, but {takes} takes {kind} images there: give the other direction or protocol"
            )
        modality[mask] = kind.code
    return replace(sets.embeddings, modality=modality)


def _foreign_cameras(camid: IntArray, protocol: str) -> str:
    """A remark on cameras that the benchmark does not have, so that no other data passes for it; "" without any."""
    many = CAMERAS[protocol]
    odd = [camera for camera in np.unique(camid).tolist() if camera != NO_CAMERA and not 1 <= camera <= many]
    if not odd:
        return ""
    return f"the camera{'s' * (len(odd) > 1)} {first_of([*map(str, odd)])}, which {TITLES[protocol]} does not have"


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
    drawn = [name for name in wanted if name in DRAWING]
    drawn += ["reading b, which draws otherwise than reading a,"] if options.get("reading") == "b" else []
    if given and drawn:
        raise ProtocolError(
            f"the file holds query and gallery as they were drawn, so {' and '.join(drawn)} would do nothing: leave "
            "it out, or give one set (features, pid, cam, index)"
        )
