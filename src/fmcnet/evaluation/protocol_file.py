"""One's own protocol as a YAML file: the arguments of `fmcnet.evaluation.protocols.custom`.

query: infrared          # visible, infrared or both
gallery: visible
skip: same_camera        # none, same_camera, same_identity_and_camera, or pairs [[query, gallery], ...] of cameras
shots: 1                 # gallery images per identity and camera; without it all
trials: 10
distractors: [staff]     # identities that are only searched
junk: [unclear]          # identities that take no part
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.table import Table
from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.protocols import Identity, Protocol, custom
from fmcnet.identities import identity_number, parse_identity
from fmcnet.names import nearest
from fmcnet.parsing import read_yaml
from fmcnet.types import MODALITY_WORDS, NO_CAMERA, NO_PID, Embeddings

SUFFIXES = (".yaml", ".yml")
SKIPS = ("none", "same_camera", "same_identity_and_camera")
MAX_FAULTS = 5
"""Faults of a file that a message lists."""


def read_protocol(path: str | Path, images: Table | Embeddings) -> Protocol:
    """Read a protocol.

    Args:
        path: the YAML file; without a `name` the protocol is called as the file.
        images: those to be evaluated: their identities and cameras are what the file may name.

    Raises:
        ProtocolError: when the file cannot be read, or listing all its faults.
    """
    path = Path(path).expanduser()
    try:
        content = read_yaml(path)
    except OSError as error:
        raise ProtocolError(f"cannot read the protocol {path}: {error.strerror}") from error
    except ValueError as error:
        raise ProtocolError(f"{path} is no valid YAML: {error}") from error
    readers: dict[str, Callable[[Any], Any]] = {
        "name": _text,
        "query": _modality,
        "gallery": _modality,
        "skip": lambda value: _skip(value, _cameras(images)),
        "shots": lambda value: None if value is None else _whole(value, 1),
        "trials": lambda value: _whole(value, 1),
        "seed": lambda value: _whole(value, 0),
        "cmc": lambda value: _one_of(value, ("image", "identity")),
        "distractors": lambda value: _identities(value, images),
        "junk": lambda value: _identities(value, images),
    }
    if not isinstance(content, dict) or not content:
        raise ProtocolError(
            f"{path} holds no protocol: give lines as 'query: infrared', of {', '.join(readers)}"
        )
    given: dict[str, Any] = {"name": path.stem}
    faults: list[str] = []
    for key, value in content.items():
        if key not in readers:
            near = nearest(str(key), readers)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(readers)}"
            faults.append(f"unknown key '{key}': {hint}")
            continue
        try:
            given[key] = readers[key](value)
        except ProtocolError as error:
            faults.append(f"{key}: {error}")
    if faults:
        more = f"\n  ... and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise ProtocolError(f"{path}:\n  " + "\n  ".join(faults[:MAX_FAULTS]) + more)
    try:
        return custom(**given)
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from error


def camera_names(table: Table) -> str:
    """ "1 is gate, 2 is hall", for a table whose cameras have names; "" for others."""
    pairs = sorted({(number, name) for name, number in _cameras(table).items() if name != str(number)})
    return ", ".join(f"{number} is {name}" for number, name in pairs)


def _cameras(images: Table | Embeddings) -> dict[str, int]:
    """Camera numbers by number and by name."""
    numbers = {str(number): int(number) for number in np.unique(images.camid) if number != NO_CAMERA}
    if isinstance(images, Table):
        named = zip(images.camera.tolist(), images.camid.tolist(), strict=True)
        numbers |= {name: number for name, number in named if name and number != NO_CAMERA}
    return numbers


def _identities(value: Any, images: Table | Embeddings) -> tuple[Identity, ...]:
    """Identities by the numbers that embeddings have; images of nobody known may be named "unknown"."""
    if isinstance(images, Table):
        numbers = set(images.identity_numbers().tolist())
        names = {name for name in images.identities() if name}
    else:
        numbers = set(images.pid.tolist())
        names = {str(number) for number in numbers}
    found: list[Identity] = []
    for one in value if isinstance(value, list) else [value]:
        try:
            name = parse_identity(one)
        except DataError as error:
            raise ProtocolError(f"{_shown(one)} is no identity: {error}") from error
        number = NO_PID if name is None else identity_number(name)
        if number not in numbers:
            near = nearest(str(one), names)
            hint = f": did you mean '{near}'?" if near else ""
            raise ProtocolError(f"no image to be evaluated shows '{one}'{hint}")
        found.append((number, str(one) if name else "unknown"))
    return tuple(dict.fromkeys(found))


def _skip(value: Any, cameras: Mapping[str, int]) -> str | list[tuple[int, int]] | None:
    if value is None or value == "none":
        return None
    if not cameras:
        raise ProtocolError(
            "no image to be evaluated has a camera, so nothing would be skipped: give cameras, or leave it out"
        )
    if not isinstance(value, list):
        return str(_one_of(value, SKIPS, "; or pairs of cameras, as [[3, 2]]"))
    pairs = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ProtocolError(f"{_shown(pair)} is no pair: give [query camera, gallery camera]")
        for camera in pair:
            if str(camera) not in cameras:
                near = nearest(str(camera), cameras)
                hint = f"did you mean '{near}'?" if near else f"known are {', '.join(sorted(cameras))}"
                raise ProtocolError(f"no image to be evaluated is of camera '{camera}': {hint}")
        pairs.append((cameras[str(pair[0])], cameras[str(pair[1])]))
    if not pairs:
        raise ProtocolError("the list of pairs is empty: leave skip out")
    return pairs


def _modality(value: Any) -> Any:
    if value is None or value == "both":
        return None
    found = MODALITY_WORDS.get(value.lower()) if isinstance(value, str) else None
    return found or _one_of(value, ("visible", "infrared", "both"))


def _one_of(value: Any, allowed: tuple[str, ...], more: str = "") -> Any:
    if value not in allowed:
        near = nearest(value, allowed) if isinstance(value, str) else None
        hint = f": did you mean {near}?" if near else more
        raise ProtocolError(f"{_shown(value)} is none of {', '.join(allowed)}{hint}")
    return value


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ProtocolError(f"{_shown(value)} is no whole number from {least}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value or len(value) > 200:
        raise ProtocolError(f"{_shown(value)} is no name: give a line of text")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
