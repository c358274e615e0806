"""Your own protocol as a YAML file: the arguments of `fmcnet.evaluation.protocols.custom`.

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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fmcnet.data.table import Table
from fmcnet.errors import ProtocolError
from fmcnet.evaluation.protocols import (
    Identity,
    Protocol,
    check_choice,
    custom,
    named_identities,
    parse_modalities,
)
from fmcnet.names import nearest
from fmcnet.parsing import read_yaml
from fmcnet.types import NO_CAMERA, Embeddings

SUFFIXES = (".yaml", ".yml")
SKIPS = ("none", "same_camera", "same_identity_and_camera")
MAX_FAULTS = 5
"""Faults of a file that a message lists."""


def read_protocol(path: str | Path, images: Table | Embeddings) -> Protocol:
    """Read a protocol.

    Args:
        path: the YAML file; without a `name` the protocol has the file's name.
        images: those to be evaluated; the file may name their identities and cameras.

    Raises:
        ProtocolError: when the file cannot be read, or listing all its faults.
    """
    path = Path(path).expanduser()
    try:
        content = read_yaml(path, texts=("skip", "distractors", "junk"))
    except OSError as error:
        raise ProtocolError(f"cannot read the protocol {path}: {error.strerror}") from error
    except ValueError as error:
        raise ProtocolError(f"{path} is no valid YAML: {error}") from error
    readers: dict[str, Callable[[Any], Any]] = {
        "name": _check_text,
        "query": parse_modalities,
        "gallery": parse_modalities,
        "skip": lambda value: _parse_skip(value, _camera_numbers(images)),
        "shots": lambda value: None if value is None else _check_whole_number(value, 1),
        "trials": lambda value: _check_whole_number(value, 1),
        "seed": lambda value: _check_whole_number(value, 0),
        "cmc": lambda value: check_choice(value, ("image", "identity")),
        "distractors": lambda value: _parse_identities(value, images),
        "junk": lambda value: _parse_identities(value, images),
    }
    if not isinstance(content, dict) or not content:
        raise ProtocolError(
            f"{path} holds no protocol: give lines as 'query: infrared', of {', '.join(readers)}"
        )
    arguments: dict[str, Any] = {"name": path.stem}
    faults: list[str] = []
    for key, value in content.items():
        if key not in readers:
            suggestion = nearest(str(key), readers)
            hint = f"did you mean {suggestion}?" if suggestion else f"known are {', '.join(readers)}"
            faults.append(f"unknown key '{key}': {hint}")
            continue
        try:
            arguments[key] = readers[key](value)
        except ProtocolError as error:
            faults.append(f"{key}: {error}")
    if faults:
        more = f"\n  ... and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise ProtocolError(f"{path}:\n  " + "\n  ".join(faults[:MAX_FAULTS]) + more)
    try:
        return custom(**arguments)
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from error


def camera_names(table: Table) -> str:
    """ "1 is gate, 2 is hall", for a table whose cameras have names; "" for others."""
    pairs = sorted(
        (number, name)
        for name, numbers in _camera_numbers(table).items()
        for number in numbers
        if name != str(number)
    )
    return ", ".join(f"{number} is {name}" for number, name in pairs)


def _camera_numbers(images: Table | Embeddings) -> dict[str, list[int]]:
    """Camera numbers by name, and by number where no name could be taken for one."""
    numbers = {str(number): [number] for number in np.unique(images.camid).tolist() if number != NO_CAMERA}
    names = images.camera if isinstance(images, Table) else images.camera_name
    by_name: dict[str, list[int]] = {}
    for name, number in sorted({*zip(names.tolist(), images.camid.tolist(), strict=True)}):
        if name and number != NO_CAMERA:
            by_name.setdefault(name, []).append(number)
    # A name that is a number, as 02, is the camera of 2 as well, and its own number is that of no camera.
    decimal = {name: found for name, found in by_name.items() if name.isdecimal()}
    named = {str(number) for found in decimal.values() for number in found}
    numbers = {key: number for key, number in numbers.items() if key not in named}
    return numbers | {str(int(name)): found for name, found in decimal.items()} | by_name


def _parse_identities(value: Any, images: Table | Embeddings) -> tuple[Identity, ...]:
    """Identities by the numbers that embeddings have; "unknown" means images without an identity."""
    if isinstance(images, Table):
        numbers = set(images.identity_numbers().tolist())
        names = {name for name in images.identities() if name}
    else:
        numbers = set(images.pid.tolist())
        names = {str(number) for number in numbers}
    if value is None:
        raise ProtocolError("it is empty: leave the key out, or name identities")
    identities = named_identities(value if isinstance(value, list) else [value])
    for number, name in identities:
        if number not in numbers:
            suggestion = nearest(name, names)
            hint = f": did you mean '{suggestion}'?" if suggestion else ""
            raise ProtocolError(f"no image to be evaluated shows '{name}'{hint}")
    return identities


def _parse_skip(value: Any, cameras: Mapping[str, list[int]]) -> str | list[tuple[int, int]] | None:
    if value is None or value == "none":
        return None
    if not cameras:
        raise ProtocolError(
            "no image to be evaluated has a camera, so nothing would be skipped: give cameras, or leave it out"
        )
    if not isinstance(value, list):
        return str(check_choice(value, SKIPS, advice="; or pairs of cameras, as [[3, 2]]"))
    pairs: list[tuple[int, int]] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ProtocolError(f"{pair!r:.60} is no pair: give [query camera, gallery camera]")
        pair = [str(int(one)) if one not in cameras and str(one).isdecimal() else one for one in pair]
        for camera in pair:
            if str(camera) not in cameras:
                suggestion = nearest(str(camera), cameras)
                known = f"known are {', '.join(sorted(cameras))}"
                hint = f"did you mean '{suggestion}'?" if suggestion else known
                raise ProtocolError(f"no image to be evaluated is of camera '{camera}': {hint}")
        pairs += product(cameras[str(pair[0])], cameras[str(pair[1])])
    if not pairs:
        raise ProtocolError("the list of pairs is empty: leave skip out")
    return pairs


def _check_whole_number(value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
        raise ProtocolError(f"{value!r:.60} is no whole number from {minimum}")
    return value


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value or len(value) > 200:
        raise ProtocolError(f"{value!r:.60} is no name: give a line of text")
    return value
