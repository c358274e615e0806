"""Pictures that a gallery holds already: what is said of them now against what is stored, and which of it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fmcnet.retrieval.inputs import as_pid
from fmcnet.retrieval.records import Entry, Where
from fmcnet.retrieval.searcher import Searcher
from fmcnet.retrieval.sources import Picture

Existing = Literal["keep", "update", "replace"]
CHOICES = ("keep", "update", "replace")
SAID = ("modality", "camera", "time", "track", "pid", "tags")
ENCODED = {"modality", "picture"}
"""What cannot be changed without reading the picture again."""


class Difference(NamedTuple):
    """What is said of a picture is not what the gallery stores.

    Attributes:
        source: its path. name: "modality", "camera", "time", "track", "pid", "tags", or "picture" for one that is to
            be kept and is not. stored, said: the two values.
    """

    source: str
    name: str
    stored: Any
    said: Any

    def __str__(self) -> str:
        stored, said = ("nothing" if v in (None, ()) else str(v) for v in (self.stored, self.said))
        return f"{self.source}: {self.name} is {stored} in the gallery, {said} now"


def stored_of(searcher: Searcher, pictures: Sequence[Picture]) -> dict[str, Entry]:
    """The entries of those pictures that the gallery holds, by id."""
    wanted = Where(ids=[picture.id for picture in pictures])
    return {entry.id: entry for entry, _ in searcher.gallery.scan(wanted)}


def known_of(
    searcher: Searcher, pictures: Sequence[Picture], stored: Mapping[str, Entry], keep_images: bool
) -> dict[str, list[Difference]]:
    """Of each picture that is stored: what is said of it, and stored otherwise."""
    found: dict[str, list[Difference]] = {}
    for picture in pictures:
        if picture.id in stored:
            found[picture.id] = list(_differences(picture, stored[picture.id]))
            if keep_images and searcher.gallery.picture(picture.id) is None:
                found[picture.id].append(Difference(str(picture.path), "picture", None, "to be kept"))
    return found


def _differences(picture: Picture, entry: Entry) -> Iterator[Difference]:
    """What is not said differs from nothing."""
    said = {**picture._asdict(), "pid": as_pid(picture.pid), "tags": tuple(sorted(set(picture.tags)))}
    for name in SAID:
        if said[name] not in (None, ()) and said[name] != getattr(entry, name):
            yield Difference(str(picture.path), name, getattr(entry, name), said[name])


def completed(picture: Picture, entry: Entry) -> Picture:
    """The picture, with what is stored where nothing is said."""
    picture = picture._replace(pid=as_pid(picture.pid))
    return picture._replace(**{n: getattr(entry, n) for n in SAID if getattr(picture, n) in (None, ())})


def update(searcher: Searcher, known: Mapping[str, Sequence[Difference]]) -> int:
    """Store what is said of entries, by their ids; those that differ alike at once. How many entries."""
    alike: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for entry_id, found in known.items():
        if found:
            alike.setdefault(tuple((one.name, one.said) for one in found), []).append(entry_id)
    return sum(searcher.gallery.update(ids, **dict(change)) for change, ids in alike.items())
