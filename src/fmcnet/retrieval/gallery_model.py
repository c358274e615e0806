"""Which model, and which range of values, a gallery was indexed with, so that a search need not repeat them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from fmcnet.data.pixels import ValueRange, check_range, parse_range
from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.files import private_mode, write_atomically
from fmcnet.inference.encoder import Encoder
from fmcnet.models.shipped import shipped_models
from fmcnet.parsing import read_json
from fmcnet.retrieval.records import MADE_WITH


def remember(gallery: str, model: str | Path | None = None, value_range: ValueRange | None = None) -> None:
    """Note in an embedded gallery what its pictures were encoded with; of a cluster nothing is noted.

    Args:
        gallery: its location.
        model: a folder (its absolute path is noted) or a shipped model's name; None: nothing to note.
        value_range: as `fmcnet.data.images.load_image`; None: nothing to note.
    """
    folder = Path(gallery)
    if not folder.is_dir():
        return
    noted = _read(gallery)
    changed = dict(noted)
    if model is not None:
        path = Path(model).expanduser()
        changed["model"] = str(path.absolute()) if path.exists() else str(model)
    ranges = remembered_ranges(gallery)
    if value_range is not None and value_range not in ranges:
        changed["ranges"] = [*ranges, value_range]
    if changed != noted:
        text = json.dumps(changed) + "\n"
        write_atomically(
            folder / MADE_WITH, lambda at: at.write_text(text, encoding="utf-8"), private_mode(folder)
        )


def remembered_ranges(gallery: str) -> list[ValueRange]:
    """The ranges that `remember` noted, in order."""
    with contextlib.suppress(TypeError, DataError):
        return [check_range(one) for one in _read(gallery).get("ranges", ())]
    return []


def range_of(gallery: str, option: str | None) -> ValueRange | None:
    """The range of an option, or the only one that the gallery was indexed with, or None."""
    if option is not None:
        return parse_range(option)
    ranges = remembered_ranges(gallery)
    return ranges[0] if len(ranges) == 1 else None


def open_model(
    gallery: str, source: str | Path | None, device: str = "auto", calibration: Path | None = None
) -> Encoder:
    """The encoder for a gallery: that of `choose_model`, with the arguments of `Encoder.from_pretrained`."""
    return Encoder.from_pretrained(choose_model(gallery, source), device=device, calibration=calibration)


def choose_model(gallery: str, source: str | Path | None) -> str | Path:
    """The model of a gallery: its folder or name.

    Args:
        gallery: the location of the gallery to search or to add to.
        source: a model's folder or name; None: the one that was noted, or the shipped one if there is just one.

    Raises:
        FmcnetError: when there is no model to take, or it does not exist.
    """
    shipped = list(shipped_models())
    noted = str(_read(gallery).get("model") or "")
    chosen = source or noted or (shipped[0] if len(shipped) == 1 else None)
    if chosen is None:
        if "://" not in gallery and not Path(gallery).exists():
            raise FmcnetError(
                f"{gallery} does not exist: check the path; for a new one say which model to use, with --model RUN"
            )
        raise FmcnetError(f"{gallery}: say which model to use, with --model RUN")
    if source is None and noted and not Path(noted).exists() and noted not in shipped:
        raise GalleryError(
            f"{gallery} was indexed with the model at {noted}, which does not exist any more: say where it is, with "
            "--model RUN"
        )
    return chosen


def _read(gallery: str) -> dict[str, Any]:
    """What is noted; nothing where the note is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json(Path(gallery) / MADE_WITH)
        return found if isinstance(found, dict) else {}
    return {}
