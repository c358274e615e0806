"""Indexing many pictures: in portions that are each on disk before the next, and never twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fmcnet.data.depth import Remarks, ValueRange
from fmcnet.data.listing import Ignored, ignored_facts
from fmcnet.data.spelling import near_cameras
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference.image_input import Fault, list_faults
from fmcnet.progress import Progress
from fmcnet.retrieval.adding import Indexed
from fmcnet.retrieval.known import (
    CHOICES,
    ENCODED,
    Difference,
    Existing,
    completed,
    known_of,
    stored_of,
    update,
)
from fmcnet.retrieval.searcher import Searcher
from fmcnet.retrieval.sources import Picture, Sources

PORTION = 256
"""Pictures added at once: what a kill may make to be encoded again."""


@dataclass(frozen=True)
class IndexReport:
    """What an indexing did.

    Attributes:
        pictures: how many were listed. added: how many are new. already: how many were in the gallery.
        updated, replaced: how many of those were changed, and how many encoded anew.
        differences: what is said of the others, but stored otherwise.
        faults: those left out, with the reason. entries: in the gallery now.
        same: left out because they are a file named before. not_chosen: rows of a table that an option left out.
        not_listed: pictures in the folder of a CSV that has no row of them. ignored: files of the folders that are
            no pictures. notes: what is doubtful about pictures, cameras and columns, a sentence each.
    """

    pictures: int
    added: int
    already: int
    faults: tuple[Fault, ...]
    entries: int
    updated: int = 0
    replaced: int = 0
    differences: tuple[Difference, ...] = ()
    same: tuple[Fault, ...] = ()
    not_chosen: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    not_listed: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        faults, same = (
            [{"source": fault.name, "reason": fault.reason} for fault in found]
            for found in (self.faults, self.same)
        )
        return {
            "pictures": self.pictures,
            "added": self.added,
            "already": self.already,
            "updated": self.updated,
            "replaced": self.replaced,
            "differences": [str(one) for one in self.differences],
            "faults": faults,
            "same_file": same,
            "not_chosen": dict(self.not_chosen),
            "not_listed": list(self.not_listed),
            "notes": list(self.notes),
            "entries": self.entries,
            "ignored": ignored_facts(self.ignored),
        }


def index(
    searcher: Searcher,
    sources: Sources,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    existing: Existing = "keep",
    keep_images: bool = False,
    batch_size: int = 64,
    progress: bool | None = None,
    value_range: ValueRange | None = None,
) -> IndexReport:
    """Add the pictures that the gallery does not hold yet.

    May be interrupted, or killed, at any point: what was added stays, and the same call goes on from there.

    Args:
        searcher: encoder and gallery. sources: see `read_sources`.
        on_error: "raise": a picture that cannot be taken ends it (what was added stays); "skip": it is left out.
        existing: what to do with pictures that it does hold. "keep": nothing, but report what is said of them and
            stored otherwise; "update": store what is said (of another modality: encode anew); "replace": encode all
            anew, as after the files changed. What is not said stays as it is stored.
        keep_images: keep small pictures, too, as `Searcher.add`.
        batch_size: pictures encoded at once. progress: show a bar; None: on a terminal only.
        value_range: as `Encoder.encode`.

    Raises:
        DataError: naming pictures that cannot be taken. GalleryError: as `Gallery.add`.
        KeyboardInterrupt: saying what was done.
    """
    if on_error not in ("raise", "skip"):
        raise FmcnetError(f"on_error='{on_error}': say raise or skip")
    if existing not in CHOICES:
        raise FmcnetError(f"existing='{existing}': say keep, update or replace")
    if on_error == "raise":
        check_faults(sources)
    faults = list(sources.faults)
    added = already = updated = replaced = 0
    unheard: list[Difference] = []
    remarks = Remarks()
    try:
        with Progress("indexing", len(sources.pictures), show=progress) as bar:
            for start in range(0, len(sources.pictures), PORTION):
                portion = sources.pictures[start : start + PORTION]
                there = stored_of(searcher, portion)
                new = [picture for picture in portion if picture.id not in there]
                already += len(there)
                known = known_of(searcher, portion, there, keep_images)
                again: set[str] = set()
                if existing == "keep":
                    unheard += [one for found in known.values() for one in found]
                elif existing == "update":
                    again = {at for at, found in known.items() if {one.name for one in found} & ENCODED}
                    updated += update(searcher, {at: found for at, found in known.items() if at not in again})
                else:
                    again = set(known)
                new += [completed(one, there[one.id]) for one in portion if one.id in again]
                settings = {"batch_size": batch_size, "value_range": value_range, "remarks": remarks}
                for done in _add(searcher, new, on_error, keep_images, bool(again), settings):
                    added, replaced = added + done.added, replaced + done.replaced
                    already += done.skipped
                    faults += done.faults
                bar.advance(count=len(portion))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{added} pictures were added; the same command goes on from there") from None
    except DataError as error:
        raise DataError(
            f"{error}\n{added} pictures were added before; --on-error skip leaves out the broken"
        ) from error
    total = len(sources.pictures) + len(sources.faults) + len(sources.same)
    entries = len(searcher.gallery)
    return IndexReport(
        total,
        added,
        already,
        tuple(faults),
        entries,
        updated,
        replaced,
        tuple(unheard),
        sources.same,
        sources.not_chosen,
        (*sources.notes, *near_cameras(searcher.gallery.cameras()), *remarks.lines()),
        sources.not_listed,
        sources.ignored,
    )


def check_faults(sources: Sources) -> None:
    """Nothing that was listed is at fault.

    Raises:
        DataError: naming what is.
    """
    if sources.faults:
        total = len(sources.pictures) + len(sources.faults)
        said = list_faults(sources.faults, total).replace("cannot be read", "cannot be indexed", 1)
        raise DataError(f"nothing was added: {said}\n--on-error skip leaves them out")


def _add(
    searcher: Searcher,
    new: Sequence[Picture],
    on_error: Literal["raise", "skip"],
    keep_images: bool,
    replace: bool,
    settings: dict[str, Any],
) -> list[Indexed]:
    """Those whose picture is to be kept, or was, and the others."""
    keeping = [
        one for one in new if keep_images or (replace and searcher.gallery.picture(one.id) is not None)
    ]
    groups = ((keeping, True), ([one for one in new if one not in keeping], False))
    return [
        searcher.add(
            [picture.path for picture in group],
            [picture.modality for picture in group],
            ids=[picture.id for picture in group],
            pid=[picture.pid for picture in group],
            camera=[picture.camera for picture in group],
            time=[picture.time for picture in group],
            track=[picture.track for picture in group],
            tags=[picture.tags for picture in group],
            source=[picture.source or picture.path for picture in group],
            on_error=on_error,
            on_duplicate="replace" if replace else "skip",
            keep_images=keep,
            progress=False,
            **settings,
        )
        for group, keep in groups
        if group
    ]
