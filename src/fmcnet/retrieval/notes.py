"""Notes for the reader: on the names in a filter, on added identities, and on the answer to a query."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcnet.errors import first_of
from fmcnet.identities import is_number, near_identities, near_spelling
from fmcnet.names import nearest, spelling
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.records import HitGroup, Where
from fmcnet.retrieval.sources import Picture

if TYPE_CHECKING:
    from fmcnet.retrieval.searcher import CalibratedScores

MOST_WORDS = 20
"""Of so many values of a filter each is looked for by itself; of more, none is."""
MOST_COMPARED = 20_000
"""Identities beside which a filter looks for near spellings."""
LOOKED_UP = 20
"""Numbers whose earlier entries are looked at, and entries of each, on average."""


def added_notes(gallery: Gallery, before: Collection[str], added: Sequence[Picture]) -> list[str]:
    """Notes on the identities of pictures that were added.

    Args:
        gallery: as it is now.
        before: its identities before.
        added: the new pictures.
    """
    given = {picture.pid for picture in added if picture.pid is not None}
    near = _near(before, given)
    numbers = sorted((pid for pid in given & {*before} if is_number(pid)), key=int)
    if not numbers:
        return near
    folder = Path(os.path.commonpath([picture.path.parent for picture in added]))
    earlier = gallery.scan(Where(pids=numbers[:LOOKED_UP]), chunk=64)  # in the order of adding
    for entry, _ in itertools.islice(earlier, LOOKED_UP**2):
        if entry.source and Path(entry.source).is_absolute() and folder not in Path(entry.source).parents:
            return [
                *near,
                f"the numbers {first_of(numbers, 3)} are persons of the gallery already, as of "
                f"{entry.source}, and are taken as the same; if they are others, repeat with a --pid-prefix, as "
                "regdb-, and --existing update",
            ]
    return near


def near_notes(gallery: Gallery, given: Collection[str]) -> list[str]:
    """Notes on near spellings of identities that were added; none beside more than `MOST_COMPARED` others."""
    stored = gallery.identities() if given else []
    return _near(stored if len(stored) <= MOST_COMPARED else [], {*given})


def _near(stored: Collection[str], given: set[str]) -> list[str]:
    keys = {near_spelling(name) for name in given}
    return near_identities([name for name in {*stored, *given} if near_spelling(name) in keys])


def filter_notes(gallery: Gallery, where: Where | None) -> tuple[str, ...]:
    """What a filter asks for that no entry has, and spellings that it passes over.

    Args:
        gallery: to look in.
        where: cameras, tracks, tags and identities of it are looked for, each by itself, whatever else it says.
    """
    if where is None:
        return ()
    notes = list(_camera_notes(gallery, list(where.cameras or ())))
    for track in _few(where.tracks):
        if not gallery.count(Where(tracks=[track])):
            notes.append(f"no entry has the track '{track}'")
    for tag in _few(where.tags):
        if not gallery.count(Where(tags=[tag])):
            notes.append(f"no entry has the tag '{tag}'")
    if (where.since or where.until) and gallery.times() is None and len(gallery):
        notes.append("no entry has a time, so none passes a filter by time")
    if pids := _few(where.pids):
        notes += _identity_notes(gallery, [str(pid) for pid in pids])
    return tuple(notes)


def _few(values: Collection[Any] | None) -> Collection[Any]:
    """The values of a filter, each of which is looked for; none of more than `MOST_WORDS`."""
    return values if values is not None and len(values) <= MOST_WORDS else ()


def _camera_notes(gallery: Gallery, cameras: Sequence[str]) -> Iterator[str]:
    stored = gallery.cameras() if cameras else []
    for camera in cameras[:MOST_WORDS]:
        others = [name for name in stored if name not in cameras and spelling(name) == spelling(camera)]
        if camera not in stored:
            yield f"no entry has the camera '{camera}'{_instead(camera, stored)}"
        elif others:
            yield (
                f"entries of the camera {', '.join(map(repr, others))} do not pass the filter, which may be "
                f"'{camera}', too"
            )


def _instead(word: str, stored: Sequence[str]) -> str:
    near = nearest(word, stored)
    if near is not None:
        return f": did you mean '{near}'?"
    return f"; those that are: {first_of(stored)}" if stored else "; no entry has any"


def _identity_notes(gallery: Gallery, pids: Collection[str]) -> Iterator[str]:
    """Those that no entry has, and near spellings that do not pass the filter."""
    stored = gallery.identities()
    compared = stored if len(stored) <= MOST_COMPARED else []
    for pid in pids:
        key = near_spelling(pid)
        others = ", ".join(repr(one) for one in compared if one not in pids and near_spelling(one) == key)
        if not gallery.count(Where(pids=[pid])):
            yield f"no entry has the pid '{pid}'" + (f": did you mean {others}?" if others else "")
        elif others:
            yield f"entries of the identity {others} do not pass the filter, which may be '{pid}', too"


def answer_notes(
    scores: CalibratedScores,
    images: int,
    candidates: Sequence[HitGroup],
    found: Sequence[HitGroup],
    asked: bool,
    group: str | None,
    where: Where | None,
    model: Path | None,
) -> list[str]:
    """The notes of an answer.

    Args:
        scores: the calibration as seen from the query.
        images: how many images made the query.
        candidates: all hits, each alone, or tracks, best first.
        found: those that reach what was asked, grouped.
        asked: a least probability or a false-match rate was given.
        group: "track", "pid", or None.
        where: the filter.
        model: the folder of the encoder, where it has one.
    """
    notes: list[str] = []
    if scores.calibration is None:
        notes.append(
            "no probabilities: this model is not calibrated; make a calibration with fmcnet calibrate "
            f"{model or 'RUN'} --data TABLE"
        )
    else:
        query = " and ".join(str(kind) for kind in scores.query)
        for kind in (where or Where()).modalities:
            if scores.covers(kind):
                continue
            if asked:
                notes.append(f"{kind} entries were left out: {query} to {kind} is not calibrated")
            elif any(one.modality is kind for one in candidates):
                notes.append(f"no probability for {kind} entries: {query} to {kind} is not calibrated")
        if images > 1:
            notes.append(
                f"{images} images were pooled; probabilities were learnt from single images and are approximate here"
            )
        if any(one.pooled > 1 for one in found):
            notes.append(
                "the pictures of each track were pooled; probabilities were learnt from single images and are "
                "approximate here"
            )
        if len(scores.query) > 1:
            notes.append("the query has both modalities: the more cautious of two calibrations is shown")
    if group and found and all(one.key is None for one in found):
        notes.append("no entry found has what it was to be grouped by, so each is a group of its own")
    if asked and not found and candidates:
        best = candidates[0]
        what = "track" if group == "track" else "entry"
        likely = "" if best.probability is None else f", probability {best.probability:.3g}"
        notes.append(
            f"no match: no {what} reaches what was asked for; the nearest {what} has similarity "
            f"{best.similarity:.3f}{likely}"
        )
    return notes
