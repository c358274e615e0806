"""Index many pictures in portions, each on disk before the next, and none twice."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from fmcnet.data.listing import ignored_facts
from fmcnet.data.pixels import RANGE_UNUSED, Remarks, ValueRange
from fmcnet.data.readers.csv import MISSING
from fmcnet.errors import DataError, FmcnetError, first_of
from fmcnet.identities import is_number, near_identities, near_spelling
from fmcnet.inference.image_input import Fault, list_faults
from fmcnet.names import near_cameras
from fmcnet.progress import Progress
from fmcnet.retrieval.answer import MOST_COMPARED
from fmcnet.retrieval.freshness import Difference, FileChanges, compare_files
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.records import (
    EPOCH,
    Added,
    Dtype,
    Entry,
    IndexChoice,
    Where,
    as_pid,
    list_mixed,
    mixed_tracks,
)
from fmcnet.retrieval.searcher import Searcher, open_model, range_of, remember
from fmcnet.retrieval.sources import Picture, Sources, path_id

LOOKED_UP = 20
"""Numbers whose earlier entries are looked at, and entries of each, on average."""
PORTION = 256
"""Pictures added at once; a kill loses the encoding of so many."""

Existing = Literal["keep", "update", "replace"]
METADATA = ("camera", "time", "track", "pid", "tags")
COMPARED = ("modality", *METADATA)
_OWN_TRACKS = "answers each as one: unless that is meant, give tracks names of their own, as gate/1"
ENCODED = {"modality", "picture", "content"}
"""What cannot be changed without reading the picture again."""


@dataclass
class IndexReport:
    """What an indexing did; `index` fills it portion by portion.

    Attributes:
        sources: what was listed, and what of it was left out.
        faults: those left out because they cannot be indexed, with the reason.
        added: how many are new.
        already: how many were in the gallery.
        updated: how many of those were changed.
        replaced: how many of those were encoded anew.
        differences: values given for the others that differ from those stored.
        removed_before: paths left out because they were removed or expired earlier.
        changes: files that changed, moved or are copies.
        notes: what is doubtful about pictures, cameras and columns, a sentence each.
        entries: in the gallery now.
        ranged: a range of values was applied to one of those encoded.
    """

    sources: Sources
    faults: list[Fault]
    added: int = 0
    already: int = 0
    updated: int = 0
    replaced: int = 0
    differences: list[Difference] = field(default_factory=list)
    removed_before: list[str] = field(default_factory=list)
    changes: FileChanges = field(default_factory=FileChanges)
    notes: list[str] = field(default_factory=list)
    entries: int = 0
    ranged: bool = False

    @property
    def pictures(self) -> int:
        """How many were listed."""
        return len(self.sources.pictures) + len(self.sources.faults) + len(self.sources.same)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pictures": self.pictures,
            "added": self.added,
            "already": self.already,
            "updated": self.updated,
            "replaced": self.replaced,
            "differences": [str(difference) for difference in self.differences],
            "faults": [{"source": fault.name, "reason": fault.reason} for fault in self.faults],
            "same_file": [{"source": fault.name, "reason": fault.reason} for fault in self.sources.same],
            "not_chosen": dict(self.sources.not_chosen),
            "not_listed": list(self.sources.not_listed),
            "changed": [change.source for change in self.changes.changed.values()],
            "moved": [move._asdict() for move in self.changes.moved.values()],
            "removed_before": self.removed_before,
            "notes": self.notes,
            "entries": self.entries,
            "ignored": ignored_facts(self.sources.ignored),
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
    include_removed: bool = False,
    missing_ok: bool = False,
) -> IndexReport:
    """Add the pictures that the gallery does not hold yet.

    May be interrupted, or killed, at any point: what was added stays, and the same call continues.

    Args:
        searcher: encoder and gallery.
        sources: see `read_sources`.
        on_error: "raise": a picture that cannot be taken ends it (what was added stays); "skip": it is left out.
        existing: what to do with pictures that it does hold. "keep": nothing, but report values given that
            differ from those stored; "update": store the values given (for another modality, or a file that changed:
            encode anew); "replace": encode all anew. A value that is not given stays as it is stored.
        keep_images: keep small pictures, too, as `Searcher.add`.
        batch_size: pictures encoded at once.
        progress: show a bar; None: on a terminal only.
        value_range: as `Encoder.encode`.
        include_removed: add pictures that were removed or expired earlier, too; otherwise they are left out.
        missing_ok: leave out rows whose file is gone, whatever `on_error` says.

    Returns:
        What was done. `notes` and `entries` are set at the end.

    Raises:
        DataError: naming pictures that cannot be taken.
        GalleryError: as `Gallery.add`.
        KeyboardInterrupt: saying what was done.
    """
    if on_error not in ("raise", "skip"):
        raise FmcnetError(f"on_error='{on_error}': say raise or skip")
    if existing not in get_args(Existing):
        raise FmcnetError(f"existing='{existing}': say keep, update or replace")
    if on_error == "raise":
        check_faults(sources, missing_ok=missing_ok)
    gallery = searcher.gallery
    report, remarks = IndexReport(sources, list(sources.faults)), Remarks()
    identities = gallery.identities() or _stored_values(gallery, "pid", sources.pictures)
    tracks = gallery.tracks() or _stored_values(gallery, "track", sources.pictures)
    new: list[Picture] = []
    try:
        with Progress("indexing", len(sources.pictures), show=progress) as bar:
            for start in range(0, len(sources.pictures), PORTION):
                portion = _Portion(gallery, sources.pictures[start : start + PORTION], report)
                fresh = portion.fresh(include_removed)
                new += fresh
                again = portion.to_encode_again(existing, keep_images)
                groups = _groups(gallery, fresh, again, keep_images, value_range)
                for (keep, picture_range), group in groups.items():
                    added = searcher.add(
                        [picture.path for picture in group],
                        [picture.modality for picture in group],
                        ids=[picture.id for picture in group],
                        source=[picture.source or picture.path for picture in group],
                        **{name: [getattr(picture, name) for picture in group] for name in METADATA},
                        on_error=on_error,
                        on_duplicate="replace" if again else "skip",
                        keep_images=keep,
                        batch_size=batch_size,
                        progress=False,
                        value_range=picture_range,
                        remarks=remarks,
                    )
                    portion.count(added)
                bar.advance(count=len(portion.pictures))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{report.added} pictures were added; the same command continues") from None
    except DataError as error:
        raise DataError(
            f"{error}\n{report.added} pictures were added before; --on-error skip leaves out the broken"
        ) from error
    if existing == "replace":
        report.changes.unwatched = 0  # all were encoded anew, changed or not
    folder = Path(os.path.commonpath([picture.path.parent for picture in sources.pictures] or [Path("/")]))
    doubts = (*near_cameras(gallery.cameras()), *added_notes(gallery, identities, tracks, new, folder))
    notes = (*sources.notes, *doubts, *remarks.lines(), *report.changes.notes())
    report.notes = list(dict.fromkeys(notes))  # each once
    report.entries, report.ranged = len(gallery), remarks.ranged()
    return report


def open_and_index(
    gallery: str,
    sources: Sources,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: Dtype | None = None,
    kind: IndexChoice | None = None,
    value_range: ValueRange | None = None,
    **options: Any,
) -> IndexReport:
    """Open a gallery, or make one, with its model, and `index` the sources; record both the model and the ranges.

    Args:
        gallery: its location.
        sources: see `read_sources`.
        model: as `choose_model`.
        device: as `Encoder.from_pretrained`.
        dtype: of a new gallery; None: float32.
        kind: as `index` of `Gallery`.
        value_range: as `Encoder.encode`; None: the only one that the gallery was indexed with.
        options: further ones of `index`.

    Raises:
        GalleryError: the gallery is of another model, or as `Gallery` and `Gallery.add`.
        FmcnetError: `dtype` is not that of the gallery; or as `choose_model` and `index`.
    """
    applied = range_of(gallery, None) if value_range is None else value_range
    encoder = open_model(gallery, model, device)
    with Gallery(gallery, dtype=dtype or "float32", index=kind) as opened:
        searcher = Searcher(encoder, opened)
        if dtype is not None and opened.settings is not None and opened.settings.dtype != dtype:
            raise FmcnetError(
                f"--dtype {dtype}: {gallery} keeps {opened.settings.dtype} since its first entry; "
                "index into another gallery"
            )
        for bounds in dict.fromkeys((applied, *(picture.value_range for picture in sources.pictures))):
            remember(gallery, model or encoder.folder, bounds)
        report = index(searcher, sources, value_range=applied, **options)
    if value_range is not None and report.added + report.replaced and not report.ranged:
        report.notes.append(RANGE_UNUSED)
    return report


class _Portion:
    """Pictures that are looked up together, and added before the next ones."""

    def __init__(self, gallery: Gallery, pictures: Sequence[Picture], report: IndexReport) -> None:
        self.gallery, self.report = gallery, report
        written = {picture.id: path_id(picture.written) for picture in pictures if picture.written}
        ids = [*(picture.id for picture in pictures), *written.values()]
        stored = {entry.id: entry for entry, _ in gallery.scan(Where(ids=ids))}
        # An entry of an older version keeps its id, of the path as it was written.
        old = {name for name, old_id in written.items() if name not in stored and old_id in stored}
        self.pictures = [p._replace(path=p.written or p.path) if p.id in old else p for p in pictures]
        self.stored = {p.id: stored[p.id] for p in self.pictures if p.id in stored}
        self.records = compare_files(gallery, self.pictures, self.stored, report.changes)
        report.already += len(self.stored)

    def fresh(self, include_removed: bool) -> list[Picture]:
        """The pictures to add; moved and earlier removed ones are only reported."""
        known = {*self.stored, *self.report.changes.moved}
        fresh = [picture for picture in self.pictures if picture.id not in known]
        if include_removed:
            return fresh
        # The id was remembered of entries without a record.
        keys = {p.id: {p.id, path_id(p.written or p.path)} for p in fresh}
        for name in keys.keys() & self.records.keys():
            keys[name].add(self.records[name].digest)
        removed = self.gallery.removed([key for picture_keys in keys.values() for key in picture_keys])
        self.report.removed_before += [str(picture.path) for picture in fresh if keys[picture.id] & removed]
        return [picture for picture in fresh if not keys[picture.id] & removed]

    def to_encode_again(self, existing: Existing, keep_images: bool) -> list[Picture]:
        """Report or store differences of known pictures; returns those that must be read again for it."""
        again, updates = [], {}
        for picture in (known for known in self.pictures if known.id in self.stored):
            entry = self.stored[picture.id]
            differences = list(self._differences(picture, entry, keep_images))
            if existing == "keep":
                self.report.differences += differences
            elif existing == "replace" or any(difference.name in ENCODED for difference in differences):
                again.append(_with_stored_values(picture, entry))
            else:
                updates[picture.id] = differences
        self.report.updated += _update(self.gallery, updates)
        return again

    def _differences(self, picture: Picture, entry: Entry, keep_images: bool) -> Iterator[Difference]:
        """Given values and content that differ from those stored; a value not given does not differ."""
        given = {**picture._asdict(), "pid": as_pid(picture.pid), "tags": tuple(sorted(set(picture.tags)))}
        for name in COMPARED:
            if given[name] not in (None, ()) and given[name] != getattr(entry, name):
                yield Difference(str(picture.path), name, getattr(entry, name), given[name])
        if keep_images and self.gallery.picture(picture.id) is None:
            yield Difference(str(picture.path), "picture", None, "to be kept")
        if picture.id in self.report.changes.changed:
            yield self.report.changes.changed[picture.id]

    def count(self, added: Added) -> None:
        """Report what an add did, and record the files of its entries."""
        self.report.added += added.added
        self.report.replaced += added.replaced
        self.report.already += added.skipped
        self.report.faults += added.faults
        if self.gallery.files is not None:
            records = {name: self.records[name] for name in added.ids if name in self.records}
            self.gallery.files.put(records, added=True)


def _groups(
    gallery: Gallery,
    fresh: Sequence[Picture],
    again: Sequence[Picture],
    keep_images: bool,
    value_range: ValueRange | None,
) -> dict[tuple[bool, ValueRange | None], list[Picture]]:
    """Pictures to add, by whether a small copy is kept, and by value range."""
    groups: dict[tuple[bool, ValueRange | None], list[Picture]] = {}
    for picture in (*fresh, *again):
        keep = keep_images or (bool(again) and gallery.picture(picture.id) is not None)
        groups.setdefault((keep, picture.value_range or value_range), []).append(picture)
    return groups


def leave_out_expired(sources: Sources, until: datetime, option: str) -> Sources:
    """The sources without pictures that `gallery expire` would remove.

    Args:
        sources: what was listed.
        until: the time that `expires_before` gives.
        option: the name under which `Sources.not_chosen` counts them.

    Returns:
        The other pictures, with a note on those without a time.
    """
    kept = tuple(
        picture for picture in sources.pictures if picture.time is None or not EPOCH <= picture.time < until
    )
    not_chosen, notes = dict(sources.not_chosen), list(sources.notes)
    if left_out := len(sources.pictures) - len(kept):
        not_chosen[option] = left_out
    if timeless := sum(picture.time is None for picture in kept):
        notes.append(
            f"{option}: {timeless} of {len(kept)} pictures have no time, are indexed and never expire"
        )
    return dataclasses.replace(sources, pictures=kept, not_chosen=not_chosen, notes=tuple(notes))


def check_faults(sources: Sources, *, missing_ok: bool = False) -> None:
    """Refuse sources with faults.

    Args:
        sources: what was listed.
        missing_ok: a row whose file is gone is no fault.

    Raises:
        DataError: naming the faults.
    """
    faults = [fault for fault in sources.faults if not (missing_ok and fault.reason.startswith(MISSING))]
    if faults:
        total = len(sources.pictures) + len(sources.faults)
        listing = list_faults(faults, total).replace("cannot be read", "cannot be indexed", 1)
        raise DataError(f"nothing was added: {listing}\n--on-error skip leaves them out")


def _with_stored_values(picture: Picture, entry: Entry) -> Picture:
    """The picture, with the stored values where none are given."""
    picture = picture._replace(pid=as_pid(picture.pid))
    return picture._replace(
        **{name: getattr(entry, name) for name in COMPARED if getattr(picture, name) in (None, ())}
    )


def _update(gallery: Gallery, differing: Mapping[str, Sequence[Difference]]) -> int:
    """Store the values given, by entry id; entries with equal changes at once. Returns how many entries."""
    by_change: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for entry_id, differences in differing.items():
        if differences:
            by_change.setdefault(tuple((item.name, item.given) for item in differences), []).append(entry_id)
    return sum(gallery.update(ids, **dict(change)) for change, ids in by_change.items())


def added_notes(
    gallery: Gallery,
    identities: Collection[str],
    tracks: Collection[str],
    added: Sequence[Picture],
    folder: Path,
) -> list[str]:
    """Notes on identities and tracks of added pictures that entries from outside `folder` have, too.

    And on their tracks that are of several cameras or identities, one note for a track.

    Args:
        gallery: as it is now.
        identities: of its entries before.
        tracks: of its entries before.
        added: the new pictures.
        folder: that of all pictures that were to be indexed, added or not.
    """
    pids = {picture.pid for picture in added if picture.pid is not None}
    numbers = sorted((pid for pid in pids & {*identities} if is_number(pid)), key=int)
    shared = sorted({picture.track for picture in added if picture.track is not None} & {*tracks})
    stored = [*_early_entries(gallery, Where(tracks=shared[:LOOKED_UP]))] if shared else []
    mixed = mixed_tracks((*added, *stored))
    shared_tracks = [track for track in shared if track not in mixed]
    notes = _near_spelling_notes(identities, pids)
    if numbers and (
        source := _source_outside(_early_entries(gallery, Where(pids=numbers[:LOOKED_UP])), folder)
    ):
        notes.append(
            f"the numbers {first_of(numbers, 3)} are persons of the gallery already, as of {source}, and are taken "
            "as the same; if they are others, repeat with a --pid-prefix, as regdb-, and --existing update"
        )
    if source := _source_outside((entry for entry in stored if entry.track not in mixed), folder):
        notes.append(
            f"the tracks {first_of(shared_tracks, 3)} are in the gallery already, as of {source}, and are taken as "
            "the same; if they are others, give each recording's tracks names of their own, as fmcnet crop --camera "
            "does, and repeat with --existing update"
        )
    if mixed:
        notes.append(f"{list_mixed(mixed)}; --group track {_OWN_TRACKS}, and repeat with --existing update")
    return notes


def mixed_notes(gallery: Gallery, ids: Sequence[str]) -> list[str]:
    """A note on the tracks of these entries that are of several cameras or identities, earlier entries included."""
    added = [entry for entry, _ in gallery.scan(Where(ids=ids))]
    tracks = sorted({entry.track for entry in added if entry.track is not None})
    stored = _early_entries(gallery, Where(tracks=tracks[:LOOKED_UP])) if tracks else ()
    mixed = mixed_tracks((*added, *stored))
    return [f"{list_mixed(mixed)}; group=track {_OWN_TRACKS}"] if mixed else []


def _stored_values(gallery: Gallery, name: str, pictures: Sequence[Picture]) -> list[str]:
    """Of a cluster, which lists no values: those of the first `LOOKED_UP` of the pictures that entries have, too."""
    values = sorted({getattr(picture, name) for picture in pictures} - {None})[:LOOKED_UP]
    where = Where(pids=values) if name == "pid" else Where(tracks=values)
    entries = _early_entries(gallery, where) if values else ()
    return sorted({getattr(entry, name) for entry in entries})


def _early_entries(gallery: Gallery, where: Where) -> Iterator[Entry]:
    """The matching entries that were added first."""
    entries = gallery.scan(where, chunk=64)  # in the order of adding
    return (entry for entry, _ in itertools.islice(entries, LOOKED_UP**2))


def _source_outside(entries: Iterable[Entry], folder: Path) -> str | None:
    """A picture of the entries that lies outside the folder; None if none does."""
    for entry in entries:
        if entry.source and Path(entry.source).is_absolute() and folder not in Path(entry.source).parents:
            return entry.source
    return None


def near_notes(gallery: Gallery, given: Collection[str]) -> list[str]:
    """Notes on near spellings of identities that were added; none in galleries of more than `MOST_COMPARED`."""
    stored = gallery.identities() if given else []
    return _near_spelling_notes(stored if len(stored) <= MOST_COMPARED else [], {*given})


def _near_spelling_notes(stored: Collection[str], given: set[str]) -> list[str]:
    keys = {near_spelling(name) for name in given}
    return near_identities([name for name in {*stored, *given} if near_spelling(name) in keys])
