"""What a gallery was made with: where its model is (`made-with.json`), and which model to open for it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcnet.data.pixels import ValueRange, check_range
from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.files import private_mode, write_atomically
from fmcnet.models.shipped import shipped_models
from fmcnet.parsing import read_json
from fmcnet.retrieval.records import MADE_WITH

if TYPE_CHECKING:
    from fmcnet.inference.encoder import Encoder


def noted_ranges(folder: Path) -> tuple[ValueRange | None, ...]:
    """The value ranges that versions before 0.2 noted in this file; the database holds them now."""
    return as_ranges(_read_note(folder).get("ranges", ()))


def as_ranges(values: Any) -> tuple[ValueRange | None, ...]:
    """Value ranges as JSON has them; none where they are not that."""
    with contextlib.suppress(TypeError, DataError):
        return tuple(None if value is None else check_range(value) for value in values)
    return ()


def record_model(gallery: str, model: str | Path | None) -> None:
    """Record where an embedded gallery's model is; a cluster records nothing.

    Args:
        gallery: its location.
        model: a folder (its absolute path is recorded) or a shipped model's name; None: nothing.
    """
    folder = Path(gallery)
    if model is None or not folder.is_dir():
        return
    path, note = Path(model).expanduser(), _read_note(folder)
    changed = note | {"model": str(path.absolute()) if path.exists() else str(model)}
    if changed != note:
        text = json.dumps(changed) + "\n"
        write_atomically(
            folder / MADE_WITH, lambda target: target.write_text(text, encoding="utf-8"), private_mode(folder)
        )


def recorded_model(gallery: str) -> str:
    """The folder or name that `record_model` recorded; "" for none."""
    return str(_read_note(Path(gallery)).get("model") or "")


def choose_model(gallery: str, source: str | Path | None) -> str | Path:
    """The model of a gallery: its folder or name.

    Args:
        gallery: the location of the gallery to search or to add to.
        source: a model's folder or name; None: the recorded one, or the shipped one if there is just one.

    Raises:
        FmcnetError: when there is no model to take, or it does not exist.
    """
    shipped = list(shipped_models())
    recorded = recorded_model(gallery)
    chosen = source or recorded or (shipped[0] if len(shipped) == 1 else None)
    if chosen is None:
        if "://" not in gallery and not Path(gallery).exists():
            raise FmcnetError(
                f"{gallery} does not exist: check the path; for a new one say which model to use, with --model RUN"
            )
        if "://" not in gallery and not os.access(gallery, os.R_OK | os.X_OK):
            raise FmcnetError(f"{gallery} cannot be read: Permission denied")
        raise FmcnetError(f"{gallery}: say which model to use, with --model RUN")
    if source is None and recorded and not Path(recorded).exists() and recorded not in shipped:
        raise GalleryError(
            f"{gallery} was indexed with the model at {recorded}, which does not exist any more: say where it is, "
            "with --model RUN"
        )
    return chosen


def open_model(
    gallery: str, source: str | Path | None, device: str = "auto", calibration: Path | None = None
) -> Encoder:
    """The encoder for a gallery: that of `choose_model`, with the arguments of `Encoder.from_pretrained`."""
    from fmcnet.inference.encoder import Encoder  # imports PyTorch, which a gallery does without

    return Encoder.from_pretrained(choose_model(gallery, source), device=device, calibration=calibration)


def _read_note(folder: Path) -> dict[str, Any]:
    """The recorded values; empty where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        note = read_json(folder / MADE_WITH)
        return note if isinstance(note, dict) else {}
    return {}
