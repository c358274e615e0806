"""What a gallery was made with: where its model is, and the value ranges of its deep images."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from fmcnet.data.pixels import ValueRange, check_range
from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.files import private_mode, write_atomically
from fmcnet.inference.encoder import Encoder
from fmcnet.models.shipped import shipped_models
from fmcnet.parsing import read_json
from fmcnet.retrieval.records import MADE_WITH


class MadeWith(NamedTuple):
    """The file `made-with.json` of an embedded gallery; a cluster has none.

    Attributes:
        model: folder or shipped name; None where unknown.
        ranges: with which images deeper than 8 bits were encoded, in the order of their first use. None is one of
            them where images were stretched, each by its own percentiles.
    """

    model: str | None = None
    ranges: tuple[ValueRange | None, ...] = ()

    @property
    def value_range(self) -> ValueRange | None:
        """The range of all deep images; None where they have none, or several."""
        return self.ranges[0] if len(self.ranges) == 1 else None

    @property
    def mixed(self) -> bool:
        """Deep images have several ranges."""
        return len(self.ranges) > 1

    @property
    def ranges_text(self) -> str:
        """As "15:40, 0:100 and none"."""
        *others, last = map(range_text, self.ranges or (None,))
        return f"{', '.join(others)} and {last}" if others else last


def range_text(value_range: ValueRange | None) -> str:
    """As `--range` takes it; "none" for None."""
    return "none" if value_range is None else f"{value_range[0]:.15g}:{value_range[1]:.15g}"


def read_made_with(gallery: str) -> MadeWith:
    """What is recorded of a gallery, given by its location; nothing where the file is missing or damaged."""
    note = _read_note(gallery)
    ranges: list[ValueRange | None] = []
    with contextlib.suppress(TypeError, DataError):
        ranges = [None if value is None else check_range(value) for value in note.get("ranges", ())]
    return MadeWith(str(note.get("model") or "") or None, tuple(ranges))


def record_model(gallery: str, model: str | Path | None) -> None:
    """Record where a gallery's model is: a folder (its absolute path) or a shipped model's name; None: nothing."""
    if model is not None:
        path = Path(model).expanduser()
        _write_note(gallery, {"model": str(path.absolute()) if path.exists() else str(model)})


def record_ranges(gallery: str, used: Collection[ValueRange | None], *, only: bool = False) -> None:
    """Record ranges that images of a gallery are encoded with.

    Args:
        gallery: its location.
        used: as `Remarks.ranges` gives them; with none, nothing changes unless `only`.
        only: no image of the gallery has another range any more.
    """
    recorded = read_made_with(gallery).ranges
    ranges = tuple(dict.fromkeys(used if only else (*recorded, *used)))
    if ranges != recorded:
        _write_note(gallery, {"ranges": list(ranges)})


def forget_ranges(gallery: str, unused: Collection[ValueRange | None]) -> None:
    """Take back ranges of `record_ranges` whose images were not added after all."""
    if unused:
        ranges = read_made_with(gallery).ranges
        _write_note(gallery, {"ranges": [bounds for bounds in ranges if bounds not in unused]})


def choose_model(gallery: str, source: str | Path | None) -> str | Path:
    """The model of a gallery: its folder or name.

    Args:
        gallery: the location of the gallery to search or to add to.
        source: a model's folder or name; None: the recorded one, or the shipped one if there is just one.

    Raises:
        FmcnetError: when there is no model to take, or it does not exist.
    """
    shipped = list(shipped_models())
    recorded = read_made_with(gallery).model
    chosen = source or recorded or (shipped[0] if len(shipped) == 1 else None)
    if chosen is None:
        if "://" not in gallery and not Path(gallery).exists():
            raise FmcnetError(
                f"{gallery} does not exist: check the path; for a new one say which model to use, with --model RUN"
            )
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
    return Encoder.from_pretrained(choose_model(gallery, source), device=device, calibration=calibration)


def _write_note(gallery: str, changes: dict[str, Any]) -> None:
    """Change recorded values of an embedded gallery; a cluster records nothing."""
    folder, note = Path(gallery), _read_note(gallery)
    if not folder.is_dir() or note | changes == note:
        return
    text = json.dumps(note | changes) + "\n"
    write_atomically(
        folder / MADE_WITH, lambda target: target.write_text(text, encoding="utf-8"), private_mode(folder)
    )


def _read_note(gallery: str) -> dict[str, Any]:
    """The recorded values; empty where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        note = read_json(Path(gallery) / MADE_WITH)
        return note if isinstance(note, dict) else {}
    return {}
