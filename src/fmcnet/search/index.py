"""Indexing many pictures: in portions that are each on disk before the next, and never twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fmcnet.errors import DataError, FmcnetError
from fmcnet.gallery.records import Where
from fmcnet.inference.images import Fault, list_faults
from fmcnet.progress import Progress
from fmcnet.search.searcher import Indexed, Searcher
from fmcnet.search.sources import Picture, Sources

PORTION = 256
"""Pictures added at once: what a kill may make to be encoded again."""


@dataclass(frozen=True)
class IndexReport:
    """What an indexing did.

    Attributes:
        pictures: how many were listed. added: how many are new. already: how many were in the gallery.
        faults: those left out, with the reason. entries: in the gallery now.
    """

    pictures: int
    added: int
    already: int
    faults: tuple[Fault, ...]
    entries: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        faults = [{"source": fault.name, "reason": fault.reason} for fault in self.faults]
        return {
            "pictures": self.pictures,
            "added": self.added,
            "already": self.already,
            "faults": faults,
            "entries": self.entries,
        }


def index(
    searcher: Searcher,
    sources: Sources,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    batch_size: int = 64,
    progress: bool | None = None,
) -> IndexReport:
    """Add the pictures that the gallery does not hold yet.

    May be interrupted, or killed, at any point: what was added stays, and the same call goes on from there.

    Args:
        searcher: encoder and gallery. sources: see `read_sources`.
        on_error: "raise": a picture that cannot be taken ends it (what was added stays); "skip": it is left out.
        batch_size: pictures encoded at once. progress: show a bar; None: on a terminal only.

    Raises:
        DataError: naming pictures that cannot be taken. GalleryError: as `Gallery.add`.
        KeyboardInterrupt: saying what was done.
    """
    if on_error not in ("raise", "skip"):
        raise FmcnetError(f"on_error='{on_error}': say raise or skip")
    if on_error == "raise":
        check_faults(sources)
    faults = list(sources.faults)
    added = already = 0
    try:
        with Progress("indexing", len(sources.pictures), show=progress) as bar:
            for start in range(0, len(sources.pictures), PORTION):
                portion = sources.pictures[start : start + PORTION]
                there = _present(searcher, portion)
                new = [picture for picture in portion if picture.id not in there]
                already += len(there)
                if new:
                    done = _add(searcher, new, on_error, batch_size)
                    added, already = added + done.added, already + done.skipped
                    faults += done.faults
                bar.advance(count=len(portion))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{added} pictures were added; the same command goes on from there") from None
    except DataError as error:
        raise DataError(
            f"{error}\n{added} pictures were added before; --on-error skip leaves out the broken"
        ) from error
    total = len(sources.pictures) + len(sources.faults)
    return IndexReport(total, added, already, tuple(faults), len(searcher.gallery))


def check_faults(sources: Sources) -> None:
    """Nothing that was listed is at fault.

    Raises:
        DataError: naming what is.
    """
    if sources.faults:
        total = len(sources.pictures) + len(sources.faults)
        said = list_faults(sources.faults, total).replace("cannot be read", "cannot be indexed", 1)
        raise DataError(f"nothing was added: {said}\n--on-error skip leaves them out")


def _present(searcher: Searcher, portion: Sequence[Picture]) -> set[str]:
    wanted = Where(ids=[picture.id for picture in portion])
    return {entry.id for entry, _ in searcher.gallery.scan(wanted)}


def _add(
    searcher: Searcher, new: Sequence[Picture], on_error: Literal["raise", "skip"], batch_size: int
) -> Indexed:
    return searcher.add(
        [picture.path for picture in new],
        [picture.modality for picture in new],
        ids=[picture.id for picture in new],
        pid=[picture.pid for picture in new],
        camera=[picture.camera for picture in new],
        time=[picture.time for picture in new],
        track=[picture.track for picture in new],
        tags=[picture.tags for picture in new],
        on_error=on_error,
        on_duplicate="skip",
        batch_size=batch_size,
        progress=False,
    )
