"""Which model a gallery was indexed with, so that a search need not be told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from fmcnet.data.depth import ValueRange, check_range, parse_range
from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.files import write_atomically
from fmcnet.inference.encoder import Encoder
from fmcnet.models.shipped import shipped_models

NOTE = "made-with.json"
"""In the gallery's folder: where its model lay, and the ranges; no embedding and nothing of a picture is in it."""


def remember_model(gallery: str, source: str | Path | None) -> None:
    """Note in an embedded gallery where its model lies.

    Args:
        gallery: its location; of a cluster nothing is noted.
        source: a folder (its absolute path is noted), a shipped model's name, or None: nothing to note.
    """
    folder = Path(gallery)
    if source is None or not folder.is_dir():
        return
    path = Path(source).expanduser()
    model = str(path.absolute()) if path.exists() else str(source)
    if _noted(folder) != model:
        _note(folder, "model", model)


def remember_range(gallery: str, value_range: ValueRange | None) -> None:
    """Note in an embedded gallery the range of values that its pictures were read with, so that queries get it too.

    Args:
        gallery: its location; of a cluster nothing is noted.
        value_range: as `fmcnet.data.images.load_image`; None: nothing to note.
    """
    ranges = remembered_ranges(gallery)
    if value_range is not None and Path(gallery).is_dir() and value_range not in ranges:
        _note(Path(gallery), "ranges", [*ranges, value_range])


def remembered_ranges(gallery: str) -> list[ValueRange]:
    """The ranges that `remember_range` noted, in order."""
    with contextlib.suppress(TypeError, DataError):
        return [check_range(one) for one in _facts(Path(gallery)).get("ranges", ())]
    return []


def range_of(gallery: str, given: str | None) -> ValueRange | None:
    """The range of an option, or the only one that the gallery was indexed with, or None.

    Raises:
        DataError: for an option that is no range.
    """
    if given is not None:
        return parse_range(given)
    ranges = remembered_ranges(gallery)
    return ranges[0] if len(ranges) == 1 else None


def open_model(gallery: str, source: str | Path | None, device: str = "auto") -> Encoder:
    """The encoder for a gallery.

    Args:
        gallery: the location of the gallery to search or to add to.
        source: a model's folder or name; None: the one that was noted, or the shipped one if there is just one.
        device: where to compute.

    Raises:
        FmcnetError: when none is given and none was noted, or it is not there.
    """
    shipped = list(shipped_models())
    noted = _noted(Path(gallery))
    chosen = source or noted or (shipped[0] if len(shipped) == 1 else None)
    if chosen is None:
        raise FmcnetError(f"{gallery}: say which model to use, with --model RUN")
    if source is None and noted is not None and not Path(noted).exists() and noted not in shipped:
        raise GalleryError(
            f"{gallery} was indexed with the model at {noted}, which is not there any more: say where it is, with "
            "--model RUN"
        )
    return Encoder.from_pretrained(chosen, device=device)


def _noted(folder: Path) -> str | None:
    found = _facts(folder).get("model")
    return None if found is None else str(found)


def _facts(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _note(folder: Path, name: str, value: Any) -> None:
    text = json.dumps({**_facts(folder), name: value}) + "\n"
    write_atomically(folder / NOTE, lambda at: at.write_text(text, encoding="utf-8"))
