"""Index many images in portions, each on disk before the next, and none twice."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from fmcnet.data.listing import ignored_facts
from fmcnet.data.pixels import RANGE_UNUSED, Remarks, ValueRange
from fmcnet.data.readers.csv import MISSING
from fmcnet.errors import DataError, FmcnetError
from fmcnet.inference.image_input import Fault, list_faults
from fmcnet.progress import Progress
from fmcnet.retrieval.freshness import Difference, FileChanges, compare_files, differences
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.notes import index_notes, index_range_notes, stored_values
from fmcnet.retrieval.records import EPOCH, Dtype, Entry, IndexChoice, Where, as_pid
from fmcnet.retrieval.searcher import GalleryRange, Searcher, open_model, record_model
from fmcnet.retrieval.sources import METADATA, SourceImage, Sources, path_id

PORTION = 256
"""Images added at once; a kill loses the encoding of so many."""

Existing = Literal["keep", "update", "replace"]
COMPARED = ("modality", *METADATA)
ENCODED = {"modality", "thumbnail", "content"}
"""What cannot be changed without reading the image again."""


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
        left_empty: stored values where the table's cell is empty.
        removed_before: paths left out because they were removed or expired earlier.
        changes: files that changed, moved or are copies.
        notes: what is doubtful about images, cameras and columns, a sentence each.
        entries: in the gallery now.
    """

    sources: Sources
    faults: list[Fault]
    added: int = 0
    already: int = 0
    updated: int = 0
    replaced: int = 0
    differences: list[Difference] = field(default_factory=list)
    left_empty: list[Difference] = field(default_factory=list)
    removed_before: list[str] = field(default_factory=list)
    changes: FileChanges = field(default_factory=FileChanges)
    notes: list[str] = field(default_factory=list)
    entries: int = 0

    @property
    def images(self) -> int:
        """How many were listed."""
        return len(self.sources.images) + len(self.sources.faults) + len(self.sources.same)

    def done(self) -> str:
        """What was done until now, for messages."""
        changed = self.updated + self.replaced
        return f"{self.added} images were added{f' and {changed} changed' * (changed > 0)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pictures": self.images,
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
    value_range: ValueRange | GalleryRange | None = "gallery",
    include_removed: bool = False,
    missing_ok: bool = False,
) -> IndexReport:
    """Add the images that the gallery does not hold yet.

    May be interrupted, or killed, at any point: what was added stays, and the same call continues.

    Args:
        searcher: encoder and gallery.
        sources: see `read_sources`.
        on_error: "raise": an image that cannot be taken ends it (what was added stays); "skip": it is left out.
        existing: what to do with images that it does hold. "keep": nothing, but report values given that
            differ from those stored; "update": store the values given (for another modality, or a file that changed:
            encode anew); "replace": encode all anew. A value that is not given stays as it is stored; one that a
            table writes as unknown is removed.
        keep_images: keep thumbnails, too, as `Searcher.add`.
        batch_size: images encoded at once.
        progress: show a bar; None: on a terminal only.
        value_range: as `Encoder.encode`, of rows without one. "gallery": that of the gallery's deep images, else the
            one of the rows that have one.
        include_removed: add images that were removed or expired earlier, too; otherwise they are left out.
        missing_ok: leave out rows whose file is gone, whatever `on_error` says.

    Returns:
        What was done. `notes` and `entries` are set at the end.

    Raises:
        DataError: naming images that cannot be taken.
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
    identities = stored_values(gallery, "pid", sources.images)
    tracks = stored_values(gallery, "track", sources.images)
    ranges_before, used = gallery.value_ranges, list[ValueRange | None]()
    given_range = None if value_range == "gallery" else value_range
    common_range = searcher.resolve_range(value_range)
    if value_range == "gallery" and len(stated := {p.value_range for p in sources.images} - {None}) == 1:
        common_range = common_range or stated.pop()
    new: list[SourceImage] = []
    try:
        with Progress("indexing", len(sources.images), show=progress) as bar:
            for start in range(0, len(sources.images), PORTION):
                portion = _Portion(gallery, sources.images[start : start + PORTION], report)
                fresh = portion.fresh(include_removed)
                again = portion.to_encode_again(existing, keep_images)
                new += fresh
                for noted, ranges in portion.add(
                    searcher, fresh, again, keep_images, common_range, on_error, batch_size
                ):
                    remarks.update(noted)
                    used += ranges
                bar.advance(count=len(portion.images))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{report.done()}; the same command continues") from None
    except DataError as error:
        raise DataError(f"{error}\n{report.done()} before; --on-error skip leaves out the broken") from error
    if existing == "replace":
        report.changes.unwatched = 0  # all were encoded anew, changed or not
    report.entries = len(gallery)
    if used and report.added + report.replaced == report.entries:
        gallery.replace_ranges(used, report.entries)
    folder = Path(os.path.commonpath([image.path.parent for image in sources.images] or [Path("/")]))
    notes = [
        *sources.notes,
        *index_notes(gallery, identities, tracks, new, folder),
        *remarks.lines(),
        *index_range_notes(gallery, given_range, ranges_before, report.already - report.replaced),
    ]
    if report.left_empty and existing != "keep":
        path, name, value, _ = report.left_empty[0]
        notes.append(
            f"{len(report.left_empty)} values are stored where the table's cell is empty, the first {name} {value} "
            f"of {path}: they stay; a pid, camera or track that is written as unknown is removed by --existing update"
        )
    notes += report.changes.notes()
    if given_range is not None and report.added + report.replaced and not remarks.ranged():
        notes.append(RANGE_UNUSED)
    report.notes = list(dict.fromkeys(notes))  # each once
    return report


def open_and_index(
    gallery: str,
    sources: Sources,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    dtype: Dtype | None = None,
    kind: IndexChoice | None = None,
    **options: Any,
) -> IndexReport:
    """Open a gallery, or make one, with its model, record that, and `index` the sources.

    Args:
        gallery: its location.
        sources: see `read_sources`.
        model: as `choose_model`.
        device: as `Encoder.from_pretrained`.
        dtype: of a new gallery; None: float32.
        kind: as `index` of `Gallery`.
        options: further ones of `index`.

    Raises:
        GalleryError: the gallery is of another model, or as `Gallery` and `Gallery.add`.
        FmcnetError: `dtype` is not that of the gallery; or as `choose_model` and `index`.
    """
    encoder = open_model(gallery, model, device)
    with Gallery(gallery, dtype=dtype or "float32", index=kind) as opened:
        searcher = Searcher(encoder, opened)
        if dtype is not None and opened.settings is not None and opened.settings.dtype != dtype:
            raise FmcnetError(
                f"--dtype {dtype}: {gallery} keeps {opened.settings.dtype} since its first entry; "
                "index into another gallery"
            )
        record_model(gallery, model or encoder.folder)
        return index(searcher, sources, **options)


class _Portion:
    """Images that are looked up together, and added before the next ones."""

    def __init__(self, gallery: Gallery, images: Sequence[SourceImage], report: IndexReport) -> None:
        self.gallery, self.report = gallery, report
        written = {image.id: path_id(image.written) for image in images if image.written}
        ids = [*(image.id for image in images), *written.values()]
        stored = {entry.id: entry for entry, _ in gallery.scan(Where(ids=ids))}
        # An entry whose id is made of the path with `..` keeps it.
        old = {name for name, old_id in written.items() if name not in stored and old_id in stored}
        self.images = [p._replace(path=p.written or p.path) if p.id in old else p for p in images]
        self.stored = {p.id: stored[p.id] for p in self.images if p.id in stored}
        self.records = compare_files(gallery, self.images, self.stored, report.changes)
        report.already += len(self.stored)

    def fresh(self, include_removed: bool) -> list[SourceImage]:
        """The images to add; moved and earlier removed ones are only reported."""
        known = {*self.stored, *self.report.changes.moved}
        fresh = [image for image in self.images if image.id not in known]
        if include_removed:
            return fresh
        # An entry without a record is remembered by its id.
        keys = {p.id: {p.id, path_id(p.written or p.path)} for p in fresh}
        for name in keys.keys() & self.records.keys():
            keys[name].add(self.records[name].digest)
        removed = self.gallery.removed([key for image_keys in keys.values() for key in image_keys])
        self.report.removed_before += [str(image.path) for image in fresh if keys[image.id] & removed]
        return [image for image in fresh if not keys[image.id] & removed]

    def to_encode_again(self, existing: Existing, keep_images: bool) -> list[SourceImage]:
        """Report or store differences of known images; returns those that must be read again for it."""
        again, updates, cleared = [], {}, {}
        for image in (known for known in self.images if known.id in self.stored):
            entry = self.stored[image.id]
            self.report.left_empty += [
                Difference(str(image.path), name, value, None)
                for name in image.empty
                if (value := getattr(entry, name)) not in (None, ())
            ]
            differences = list(self._differences(image, entry, keep_images))
            if existing == "keep":
                self.report.differences += differences
            elif existing == "replace" or any(difference.name in ENCODED for difference in differences):
                again.append(image)
                cleared[image.id] = [
                    difference for difference in differences if difference.name in image.unknown
                ]
            else:
                updates[image.id] = differences
        self.report.updated += _update(self.gallery, updates)
        _update(self.gallery, cleared)
        return again

    def _differences(self, image: SourceImage, entry: Entry, keep_images: bool) -> Iterator[Difference]:
        """Given values and content that differ from those stored; a value not given does not differ."""
        given = {name: getattr(image, name) for name in COMPARED}
        given |= {"pid": as_pid(image.pid), "tags": tuple(sorted(set(image.tags)))}
        yield from differences(str(image.path), given, entry)
        for name in image.unknown:
            if (value := getattr(entry, name)) is not None:
                yield Difference(str(image.path), name, value, None)
        if keep_images and self.gallery.thumbnail(image.id) is None:
            yield Difference(str(image.path), "thumbnail", None, "to be kept")
        if image.id in self.report.changes.changed:
            yield self.report.changes.changed[image.id]

    def add(
        self,
        searcher: Searcher,
        fresh: Sequence[SourceImage],
        again: Sequence[SourceImage],
        keep_images: bool,
        value_range: ValueRange | None,
        on_error: Literal["raise", "skip"],
        batch_size: int,
    ) -> Iterator[tuple[Remarks, Sequence[ValueRange | None]]]:
        """Add images in groups of one value range, with or without thumbnails; yields remarks and ranges."""
        groups = defaultdict[tuple[bool, bool, ValueRange | None], list[SourceImage]](list)
        for image in (*fresh, *again):
            known = image.id in self.stored
            keep = keep_images or (known and self.gallery.thumbnail(image.id) is not None)
            groups[known, keep, image.value_range or value_range].append(image)
        for (known, keep, group_range), group in groups.items():
            remarks = Remarks()
            added = searcher.add(
                [image.path for image in group],
                [image.modality for image in group],
                ids=[image.id for image in group],
                source=[image.source or image.path for image in group],
                **{name: [getattr(image, name) for image in group] for name in METADATA},
                on_error=on_error,
                on_duplicate="update" if known else "skip",  # what was removed meanwhile stays removed
                keep_images=keep,
                batch_size=batch_size,
                progress=False,
                value_range=group_range,
                remarks=remarks,
            )
            self.report.added += added.added
            self.report.replaced += added.replaced
            self.report.faults += added.faults
            ids = {*added.ids}
            if known and added.skipped:  # removed by another process meanwhile
                there = {entry.id for entry, _ in self.gallery.scan(Where(ids=added.ids))}
                self.report.removed_before += [str(p.path) for p in group if p.id in ids - there]
                self.report.already -= added.skipped
                ids &= there
            else:
                self.report.already += added.skipped
            if self.gallery.files is not None:
                records = {name: self.records[name] for name in ids if name in self.records}
                self.gallery.files.put(records, added=not known)
            yield remarks, remarks.ranges(group_range)


def leave_out_expired(sources: Sources, until: datetime, option: str) -> Sources:
    """The sources without images that `gallery expire` would remove; a note counts those without a time.

    `until` is the time that `expires_before` gives, `option` the name under which `Sources.not_chosen` counts them.
    """
    kept = tuple(image for image in sources.images if image.time is None or not EPOCH <= image.time < until)
    not_chosen, notes = dict(sources.not_chosen), list(sources.notes)
    if left_out := len(sources.images) - len(kept):
        not_chosen[option] = left_out
    if timeless := sum(image.time is None for image in kept):
        notes.append(f"{option}: {timeless} of {len(kept)} images have no time, are indexed and never expire")
    return dataclasses.replace(sources, images=kept, not_chosen=not_chosen, notes=tuple(notes))


def check_faults(sources: Sources, *, missing_ok: bool = False) -> None:
    """Raise a DataError that names the faults of sources; with `missing_ok`, a row whose file is gone is none."""
    faults = [fault for fault in sources.faults if not (missing_ok and fault.reason.startswith(MISSING))]
    if faults:
        total = len(sources.images) + len(sources.faults)
        listing = list_faults(faults, total).replace("cannot be read", "cannot be indexed", 1)
        raise DataError(f"nothing was added: {listing}\n--on-error skip leaves them out")


def _update(gallery: Gallery, differing: Mapping[str, Sequence[Difference]]) -> int:
    """Store the values given, by entry id; entries with equal changes at once. Returns how many entries."""
    by_change: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for entry_id, found in differing.items():
        if found:
            by_change.setdefault(tuple((item.name, item.given) for item in found), []).append(entry_id)
    return sum(gallery.update(ids, **dict(change)) for change, ids in by_change.items())
