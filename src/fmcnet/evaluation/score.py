"""Score embeddings made by any code by the protocol of a name (docs/guides/evaluate.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.check import TITLES, published_test_set
from fmcnet.errors import DataError, ProtocolError, first_of
from fmcnet.evaluation.draws import Draw, find_permutation
from fmcnet.evaluation.embeddings_file import SIDES, EmbeddingsFile, Sets
from fmcnet.evaluation.evaluate import Evaluation, evaluate
from fmcnet.evaluation.protocol_file import SUFFIXES, read_protocol
from fmcnet.evaluation.protocols import DEFAULT_DIRECTIONS, Protocol, across, llcm, regdb, sysu
from fmcnet.types import NO_CAMERA, NO_PID, BoolArray, Embeddings, IntArray, Modality

logger = logging.getLogger(__name__)

CAMERAS = {"sysu": 6, "regdb": 2, "llcm": 9}
"""Each benchmark's number of cameras, which count from 1."""
OPTIONS: dict[str, tuple[str, ...]] = {
    "sysu": ("mode", "shots", "draw", "permutation"),
    "regdb": ("cmc",),
    "llcm": ("reading",),
    "csv": (),
}
"""The options of each protocol, besides the direction; every other one is refused, since it would do nothing."""
DRAWING = ("mode", "shots", "permutation", "draw")
"""Options that choose and draw the sets, which a file may hold already."""


def score_file(
    path: str | Path,
    protocol: str | None = None,
    *,
    mode: str | None = None,
    shots: int | None = None,
    draw: str | None = None,
    permutation: str | Path | None = None,
    direction: str | None = None,
    reading: str | None = None,
    cmc: str | None = None,
    distance: str = "cosine",
    strict: bool = False,
) -> Evaluation:
    """Score the embeddings in a file.

    Args:
        path: the `.npz`; `embeddings_file` lists its arrays.
        protocol: "sysu", "regdb", "llcm", "csv" (`protocols.across`), or a YAML file (`protocol_file`), which sets
            all but the distance. None takes that of the dataset that `fmcnet embed` stored, otherwise "sysu".
        mode: of SYSU-MM01, "all" or "indoor"; None: all.
        shots: of SYSU-MM01, 1 or 10 gallery images per identity and camera; None: 1.
        draw: of SYSU-MM01, "official" or "seeded"; None: official.
        permutation: `rand_perm_cam.mat` for the official draw; None looks beside the file and in `exp/`.
        direction: "i2v"/"v2i" (sysu, llcm, csv), "v2t"/"t2v" (regdb); None takes evaluate's: v2i for llcm, v2t for
            regdb, i2v otherwise.
        reading: of LLCM, "a", "b" or "c", see `protocols.llcm`; None: a.
        cmc: of RegDB, "image" or "identity", see `protocols.regdb`; None: image.
        distance: "cosine" or "euclidean".
        strict: refuse `draw`, too, where nothing is drawn by it.

    Raises:
        DataError: when the file lacks arrays, shapes disagree, an embedding is NaN (names the row), or a camera is
            not of the modality that the direction gives.
        ProtocolError: on an unknown option, one that would do nothing, or when embeddings and protocol do not fit.
    """
    options = {"mode": mode, "shots": shots, "permutation": permutation, "reading": reading, "cmc": cmc}
    options |= {"draw": draw, "direction": direction}
    given = {name: value for name, value in options.items() if value is not None}
    is_yaml = protocol is not None and _is_yaml(protocol, given)
    file = EmbeddingsFile(Path(path))
    protocol = protocol or (file.dataset if file.dataset in OPTIONS else "sysu")
    if is_yaml:
        sets = file.read("custom")
        rules, rules_name = _protocol_of_yaml(protocol, sets, file), protocol
    else:
        _refuse_unused(protocol, given, two_sets=file.has_two_sets, strict=strict)
        # Before the draw: missing arrays and identities are named before a missing rand_perm_cam.mat.
        sets = file.read(protocol)
        if (sets.embeddings.pid == NO_PID).all():
            raise DataError(
                f"{path}: its {len(sets.embeddings)} images have no identity and cannot be scored: embed a labelled "
                "table (fmcnet embed RUN --data DATA)"
            )
        direction = direction or DEFAULT_DIRECTIONS.get(protocol, "i2v")
        rules = _protocol_of_benchmark(protocol, direction, given, file)
        rules_name = f"direction {direction} of {protocol}"
    embeddings, of_query = sets.embeddings, sets.of_query
    remarks = []
    if of_query is not None:
        embeddings = _with_modalities(sets, of_query, rules, path, rules_name)
        if not sets.known.all():
            remarks.append("the modalities, which the file does not tell")
    if protocol in CAMERAS:
        if remark := _foreign_cameras(embeddings.camid, protocol):
            remarks.append(remark)
        for note in _count_notes(embeddings, protocol, rules):
            logger.warning("%s: %s", path, note)
    needed = {*(rules.query.cameras or ()), *(rules.gallery.cameras or ())}
    if absent := sorted(needed - set(embeddings.camid.tolist())):
        remarks.append(f"no image of camera {first_of([*map(str, absent)])}")
    return evaluate(
        embeddings,
        replace(rules, ours=(*rules.ours, *remarks)),
        distance=distance,
        query_mask=of_query,
        gallery_mask=None if of_query is None else ~of_query,
    )


def _is_yaml(protocol: str, given: Mapping[str, Any]) -> bool:
    """Whether it is a YAML file; a ProtocolError for a missing one, for options beside one, or for another word."""
    if Path(protocol).suffix.lower() in SUFFIXES or Path(protocol).is_file():
        if given:
            raise ProtocolError(
                f"{', '.join(given)} beside the protocol {protocol}: the file states the protocol"
            )
        if not Path(protocol).is_file():
            raise ProtocolError(f"there is no protocol file {protocol}")
        return True
    if protocol not in OPTIONS:
        raise ProtocolError(f"unknown protocol '{protocol}': use {', '.join(OPTIONS)}, or a YAML file")
    return False


def _protocol_of_yaml(protocol: str, sets: Sets, file: EmbeddingsFile) -> Protocol:
    """The protocol that a YAML file states."""
    rules = read_protocol(protocol, sets.embeddings)
    if not file.has_two_sets:
        return rules
    if rules.draw != Draw():
        raise ProtocolError(
            f"{file.path} holds query and gallery as they were drawn, so shots, trials and seed of {protocol} would "
            "do nothing: take them out, or give one set (features, pid, cam, index)"
        )
    return replace(rules.as_given(), name=rules.name)


def _protocol_of_benchmark(
    name: str, direction: str, given: Mapping[str, Any], file: EmbeddingsFile
) -> Protocol:
    """The protocol of a benchmark with the user's options."""
    options = {option: given[option] for option in OPTIONS[name] if option in given}
    if name == "sysu":
        draw = options["draw"] = "seeded" if file.has_two_sets else given.get("draw", "official")
        if draw == "seeded" and "permutation" in given:
            raise ProtocolError("a permutation is for the official draw: leave it out, or the seeded draw")
        if draw == "official" and "permutation" not in given:
            options["permutation"] = find_permutation(file.path.resolve().parent)
    if name == "csv":
        options["name"] = name
    benchmarks: dict[str, Callable[..., Protocol]] = {
        "sysu": sysu,
        "regdb": regdb,
        "llcm": llcm,
        "csv": across,
    }
    rules = benchmarks[name](direction=direction, **options)
    return rules.as_given() if file.has_two_sets else rules


def _with_modalities(
    sets: Sets, of_query: BoolArray, rules: Protocol, path: str | Path, rules_name: str
) -> Embeddings:
    """Two sets with the modalities that the protocol takes in each; messages name `path` and `rules_name`."""
    modality = sets.embeddings.modality.copy()
    modalities = (rules.query.modality, rules.gallery.modality)
    for side, mask, expected in zip(SIDES, (of_query, ~of_query), modalities, strict=True):
        if expected is None:
            continue
        wrong = np.flatnonzero((sets.known & (modality != expected.code))[mask])
        if len(wrong):
            raise DataError(
                f"{path}: {len(wrong)} of the {mask.sum()} images of the {side} are {expected.other}, the first in "
                f"row {wrong[0]}, but {rules_name} takes {expected} images there: give the other direction or "
                "protocol"
            )
        modality[mask] = expected.code
    return replace(sets.embeddings, modality=modality)


def _foreign_cameras(camid: IntArray, protocol: str) -> str:
    """A remark on cameras that the benchmark lacks, so that reports show it is other data; "" without any."""
    known = {NO_CAMERA, *range(1, CAMERAS[protocol] + 1)}
    foreign = [str(camera) for camera in np.unique(camid).tolist() if camera not in known]
    if not foreign:
        return ""
    return f"the camera{'s' * (len(foreign) > 1)} {first_of(foreign)}, which {TITLES[protocol]} does not have"


def _count_notes(embeddings: Embeddings, protocol: str, rules: Protocol) -> Iterator[str]:
    """A sentence on sets whose size or cameras show that they are not those of the benchmark's test."""
    query = rules.query.modality or Modality.VISIBLE
    gallery, title = query.other, TITLES[protocol]
    published = published_test_set(protocol)
    in_gallery = embeddings.modality == gallery.code
    gallery_count = int(in_gallery.sum())
    query_count = len(embeddings) - gallery_count
    images = f"{query_count:,} {query} query images"
    if query_count == published[str(gallery)] != published[str(query)]:
        yield f"{images}, as many as {title}'s {gallery} test set: check modality and direction"
    elif query_count > published[str(query)]:
        yield (
            f"{images}, but {title}'s test set has {published[str(query)]:,}: images that were trained on make "
            "figures too good, so give the test set only"
        )
    cameras = zip(embeddings.pid[in_gallery].tolist(), embeddings.camid[in_gallery].tolist(), strict=True)
    if rules.drawn == "gallery" and rules.draw.shots == 1 and len({*cameras}) == gallery_count:
        yield f"no identity has two {gallery} images of a camera, so all trials are the same"
    third = int((embeddings.modality[embeddings.camid == 3] == Modality.INFRARED.code).sum())
    if protocol == "llcm" and third:
        yield f"{third} infrared images of camera 3, where LLCM has none: check modality and cameras"
    if rules.given and rules.skip.kind != "none" and gallery_count == published[str(gallery)]:
        yield (
            f"the gallery is every {gallery} test image of {title}, from which the protocol draws some: give one set "
            "(features, pid, cam, index)"
        )


def _refuse_unused(protocol: str, given: Mapping[str, Any], *, two_sets: bool, strict: bool) -> None:
    """Refuse options that would do nothing, as those of a draw where the file holds two sets."""
    names = [name for name in given if name != "direction" and (strict or name != "draw")]
    unsupported = [name for name in names if name not in OPTIONS[protocol]]
    if unsupported:
        supported = ", ".join(OPTIONS[protocol]) or "a direction only"
        raise ProtocolError(
            f"the {protocol} protocol has no {' and no '.join(unsupported)} (it has {supported}): leave it out"
        )
    drawn = [name for name in names if name in DRAWING]
    if given.get("reading") == "b":
        drawn.append("reading b, which draws otherwise than reading a,")
    if two_sets and drawn:
        raise ProtocolError(
            f"the file holds query and gallery as they were drawn, so {' and '.join(drawn)} would do nothing: leave "
            "it out, or give one set (features, pid, cam, index)"
        )
