"""Notes on doubtful input: filter values that no entry has, names spelled nearly alike, tracks of several people.

Commands, the service and `Searcher` give the same notes, one sentence each.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fmcnet.data.pixels import ValueRange, range_text
from fmcnet.errors import first_of
from fmcnet.identities import is_number, near_identities, near_spelling
from fmcnet.names import FRACTION, near_cameras, nearest, quoted, spelling
from fmcnet.retrieval.freshness import differences
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.inputs import CHECKS, column
from fmcnet.retrieval.records import EARLIEST, Added, Entry, Hit, Where, as_pid
from fmcnet.times import doubtful_times
from fmcnet.types import Modality

if TYPE_CHECKING:
    from fmcnet.retrieval.sources import SourceImage

MOST_VALUES = 20
"""A filter of at most so many values gets a note on each; a longer one gets none."""
MOST_COMPARED = 200_000
"""Characters of all names of a field that are compared for near spellings; none of more. A guess at what a value
stands for counts them once for each of its characters."""
LOOKED_UP = 20
"""Names whose earlier entries are looked at, and entries of each, on average."""
OWN_TRACKS = (
    "a search by track answers each as one: unless that is meant, give tracks names of their own, as gate/1"
)
OWN_RANGES = ", but for rows of a CSV that have a range"


# ---- of a filter ----


class _Field(NamedTuple):
    """A field of entries: its name, the condition of `Where`, the stored names, and the key of near spellings.

    `many`: so many names that they are listed only where one is missing.
    """

    name: str
    condition: str
    stored: Callable[[Gallery], list[str]]
    key: Callable[[str], str]
    many: bool = False


def _whole_number(track: str) -> str:
    """The key of tracks: numbers stored as decimals or with leading zeros, as "17.0" and "017", are near "17"."""
    number = FRACTION.sub("", track)
    return number.lstrip("0") or "0" if number.isdigit() else track


FIELDS = (
    _Field("camera", "cameras", Gallery.cameras, spelling),
    _Field("track", "tracks", Gallery.tracks, _whole_number, many=True),
    _Field("tag", "tags", Gallery.tags, near_spelling, many=True),
    _Field("identity", "pids", Gallery.identities, near_spelling),
)


def filter_notes(gallery: Gallery, where: Where) -> tuple[str, ...]:
    """Notes on filter values that no entry has, and on near spellings left out.

    Args:
        gallery: to look in. A cluster lists only cameras, so it has no near spellings of others.
        where: its cameras, tracks, tags, identities, modality and times are looked for, each by itself.
    """
    notes = [
        note for field in FIELDS for note in _value_notes(gallery, field, getattr(where, field.condition))
    ]
    if where.modality is not None and not gallery.count(Where(modality=where.modality)) and len(gallery):
        notes.append(f"no entry is {where.modality}, so none passes a filter by modality")
    if where.since is not None and where.until is not None and where.since >= where.until:
        notes.append("the time to search from is not before the one to search until, so no entry passes")
    elif (where.since or where.until) and (entries := len(gallery)):
        timeless = entries - gallery.count(Where(since=EARLIEST))
        if timeless == entries:
            notes.append("no entry has a time, so none passes a filter by time")
        elif timeless:
            notes.append(f"{timeless:,} of {entries:,} entries have no time, and pass no filter by time")
    return tuple(notes)


def _value_notes(gallery: Gallery, field: _Field, values: Collection[str] | None) -> Iterator[str]:
    if not values or len(values) > MOST_VALUES:
        return
    stored = [] if field.many else field.stored(gallery)
    missing = set()
    for value in values:  # counted only as long as no names are listed
        if value not in stored and (stored or not gallery.count(_one_of(field.condition, [value]))):
            missing.add(value)
            stored = stored or field.stored(gallery)
    compared = _compared(stored)
    if field.name == "track" and not compared:
        spellings = {f"{_whole_number(value)}{end}" for value in values for end in ("", ".0")}
        compared = sorted(name for name in spellings if gallery.count(Where(tracks=[name])))
    alike = defaultdict[str, list[str]](list)
    for name in compared:
        alike[field.key(name)].append(name)
    cost = 0
    listed = ""
    if field.name == "camera":
        listed = f"; those that are: {first_of(stored)}" if stored else "; no entry has any"
    for value in sorted(values):
        others = [name for name in alike[field.key(value)] if name not in values]
        if value in missing and not others:
            cost += len(value) * sum(map(len, compared))
            near = nearest(value, compared) if cost <= MOST_COMPARED else None
            others = [] if near is None else [near]
        names = ", ".join(map(quoted, others))
        if value in missing:
            yield f"no entry has the {field.name} '{value}'" + (
                f": did you mean {names}?" if names else listed
            )
        elif names:
            yield f"entries of the {field.name} {names} do not pass the filter, which may be '{value}', too"


def _compared(names: list[str]) -> list[str]:
    """The names, or none of them where they have more than `MOST_COMPARED` characters."""
    return names if sum(map(len, names)) <= MOST_COMPARED else []


# ---- of entries that were added ----


def index_notes(
    gallery: Gallery,
    identities: Collection[str],
    tracks: Collection[str],
    added: Sequence[SourceImage],
    folder: Path,
) -> list[str]:
    """Notes on the gallery's cameras, and on identities and tracks that entries from outside `folder` have, too.

    And on tracks of added images that are of several cameras or identities, one note for a track.

    Args:
        gallery: as it is now.
        identities: of its entries before, as `stored_values`.
        tracks: of its entries before, as `stored_values`.
        added: the new images.
        folder: that of all images that were to be indexed, added or not.
    """
    pids = {image.pid for image in added if image.pid is not None}
    numbers = sorted((pid for pid in pids & {*identities} if is_number(pid)), key=int)
    shared = sorted({image.track for image in added if image.track is not None} & {*tracks})
    stored = _early_entries(gallery, "tracks", shared)
    mixed = mixed_tracks((*added, *stored))
    notes = [*near_cameras(gallery.cameras()), *_near_identities(identities, pids)]
    if source := _source_outside(_early_entries(gallery, "pids", numbers), folder):
        notes.append(
            f"the numbers {first_of(numbers, 3)} are persons of the gallery already, as of {source}, and are taken "
            "as the same; if they are others, repeat with a --pid-prefix, as regdb-, and --existing update"
        )
    if source := _source_outside((entry for entry in stored if entry.track not in mixed), folder):
        names = first_of([track for track in shared if track not in mixed], 3)
        notes.append(
            f"the tracks {names} are in the gallery already, as of {source}, and are taken as the same; if they are "
            "others, give each recording's tracks names of their own, as fmcnet crop --camera does, and repeat with "
            "--existing update"
        )
    if mixed:
        notes.append(mixed_note(mixed, f"{OWN_TRACKS}, and repeat with --existing update"))
    return notes


def add_notes(gallery: Gallery, added: Added, given: Mapping[str, Any], *, stored: bool = True) -> list[str]:
    """Notes on values that were given for entries, as over HTTP.

    Near spellings of these cameras and identities, times of wrong clocks, tracks of several cameras or identities,
    and values of skipped entries that differ from those stored.

    Args:
        gallery: as it is now.
        added: what was done with N entries.
        given: by the name of a metadata column, one value for all or N of them; "tags": N lists.
        stored: compare with entries that are there; False, for who may not read those: the given values alone.
    """
    n = len(added.ids)
    columns = {name: [CHECKS[name](one) for one in column(value, n, name)] for name, value in given.items()}
    cameras, pids, tracks = ({*columns[name]} - {None} for name in ("camera", "pid", "track"))
    keys = {spelling(camera) for camera in cameras}
    known = (_compared(gallery.cameras()) if stored else cameras) if keys else []
    notes = near_cameras(name for name in known if spelling(name) in keys)
    notes += _near_identities(_compared(gallery.identities()) if stored and pids else [], pids)
    notes += doubtful_times((f"image {index}", time) for index, time in enumerate(columns["time"], 1))
    scanned = gallery.scan(Where(ids=added.ids)) if stored and (added.skipped or tracks) else ()
    entries = {entry.id: entry for entry, _ in scanned}
    differing: list[str] = []
    for entry_id, *row in zip(added.ids, *columns.values(), strict=True):
        if added.skipped and entry_id in entries:
            values = dict(zip(columns, row, strict=True))
            differing += map(str, differences(entry_id, values, entries[entry_id]))
    if differing:
        notes.append(
            f"{first_of(differing, 3, '; ')}: the stored values were kept, on_duplicate=replace stores the new ones"
        )
    if tracks:
        names = {entry.track for entry in entries.values() if entry.track is not None}
        mixed = mixed_tracks((*entries.values(), *_early_entries(gallery, "tracks", sorted(names))))
        notes += [mixed_note(mixed, OWN_TRACKS)] if mixed else []
    return notes


def stored_values(
    gallery: Gallery, name: Literal["pid", "track"], images: Sequence[SourceImage]
) -> list[str]:
    """The identities or tracks that entries have; of a cluster, which lists none, the first few of these images."""
    if listed := gallery.identities() if name == "pid" else gallery.tracks():
        return listed
    values = sorted({getattr(image, name) for image in images} - {None})
    return sorted({getattr(entry, name) for entry in _early_entries(gallery, f"{name}s", values)})


def _early_entries(gallery: Gallery, condition: str, values: Sequence[Any]) -> list[Entry]:
    """Entries with one of the first `LOOKED_UP` values: those that were added first."""
    if not values:
        return []
    entries = gallery.scan(_one_of(condition, values[:LOOKED_UP]), chunk=64)  # in the order of adding
    return [entry for entry, _ in itertools.islice(entries, LOOKED_UP**2)]


def _one_of(condition: str, values: Any) -> Where:
    conditions: dict[str, Any] = {condition: values}
    return Where(**conditions)


def _source_outside(entries: Iterable[Entry], folder: Path) -> str | None:
    """An image of the entries that lies outside the folder; None if none does."""
    paths = (Path(entry.source or "") for entry in entries)
    return next((str(path) for path in paths if path.is_absolute() and folder not in path.parents), None)


def _near_identities(stored: Collection[str], given: set[str]) -> list[str]:
    keys = {near_spelling(name) for name in given}
    return near_identities([name for name in {*stored, *given} if near_spelling(name) in keys])


def mixed_tracks(items: Iterable[Entry | Hit | SourceImage]) -> dict[str, str]:
    """What each track holds that may be several, as "cameras door, gate; identities anna, ben".

    A track is looked at in each modality alone, as it is pooled. One known identity in several cameras is one track.

    Args:
        items: those without a track are left out.
    """
    held = defaultdict[tuple[str, Modality], tuple[set[str | None], set[str | None]]](lambda: (set(), set()))
    for item in items:
        if item.track is not None:
            cameras, pids = held[item.track, item.modality]
            cameras.add(item.camera)
            pids.add(as_pid(item.pid))
    mixed: dict[str, str] = {}
    for (track, _), (cameras, pids) in sorted(held.items(), key=lambda item: item[0][0]):
        names = {"cameras": sorted(filter(None, cameras)), "identities": sorted(filter(None, pids))}
        several = [f"{noun} {first_of(values, 3)}" for noun, values in names.items() if len(values) > 1]
        if several and (len(pids) > 1 or None in pids):
            mixed.setdefault(track, "; ".join(several))
    return mixed


def mixed_note(mixed: Mapping[str, str], effect: str) -> str:
    """A note on the first of `mixed_tracks`."""
    tracks = first_of([f"{track} ({what})" for track, what in mixed.items()], 3)
    return f"tracks of several cameras or identities: {tracks}; {effect}"


# ---- of value ranges ----


def ranges_text(ranges: Sequence[ValueRange | None]) -> str:
    """As "15:40, 0:100 and none"."""
    *others, last = map(range_text, ranges or (None,))
    return f"{', '.join(others)} and {last}" if others else last


def index_range_notes(
    gallery: Gallery, value_range: ValueRange | None, before: Sequence[ValueRange | None], kept: int
) -> Iterator[str]:
    """Notes on a range without effect on images indexed before, and on several ranges in one gallery.

    Args:
        gallery: as it is now.
        value_range: given for all images; None: none.
        before: `value_ranges` of the gallery before.
        kept: how many images were indexed before and not encoded anew.
    """
    if kept and value_range is not None and before and value_range not in before:
        yield (
            f"{kept} images were indexed before, deep ones with the value range {ranges_text(before)}, and keep "
            f"their embeddings: --existing replace encodes them anew with {range_text(value_range)}{OWN_RANGES}"
        )
    after = gallery.value_ranges
    if len(after) > 1 and (value_range is not None or None in after):  # a table's ranges are one a camera
        yield (
            f"deep images of this gallery were encoded with several value ranges ({ranges_text(after)}): unless "
            "each is right for its images' unit, the same person is not equally bright in all; --existing replace "
            f"--range LOW:HIGH encodes them anew{OWN_RANGES}"
        )


def added_range_notes(gallery: Gallery, used: Collection[ValueRange | None]) -> Iterator[str]:
    """A note on deep images added with these ranges to a gallery that has, or had, several."""
    ranges = gallery.value_ranges
    if used and len(ranges) > 1:
        yield (
            f"the gallery's deep images have, or had, several value ranges ({ranges_text(ranges)}): the same person "
            "is not equally bright in all, and a search of such an image needs a range"
        )


def query_range_notes(
    ranges: Sequence[ValueRange | None], used: Iterable[ValueRange | None]
) -> Iterator[str]:
    """A note on queries encoded with a range that no image of a gallery of these ranges has."""
    for bounds in dict.fromkeys(used):
        if ranges and bounds not in ranges:
            yield (
                f"the value range {range_text(bounds)} of the query is not that of the gallery's images "
                f"({ranges_text(ranges)}): the same person is not equally bright in both"
            )
