"""What a person should know of an answer, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmcnet.data.spelling import nearest, spelling
from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval.answer import Match, MatchGroup
from fmcnet.retrieval.gallery import Gallery
from fmcnet.retrieval.records import Where
from fmcnet.retrieval.scores import Meaning
from fmcnet.types import Modality

MOST_WORDS = 20
"""Of so many values of a filter each is looked for by itself; of more, none is."""
MOST_NAMED = 10


def filter_notes(gallery: Gallery, where: Where | None) -> tuple[str, ...]:
    """What a filter asks for that no entry has, and spellings that it passes over.

    Args:
        where: cameras, tracks, tags and identities of it are looked for, each by itself, whatever else it says.
    """
    notes: list[str] = []
    if where is None:
        return ()
    cameras = list(where.cameras or ())
    if cameras:
        known = gallery.cameras()
        for camera in cameras[:MOST_WORDS]:
            others = [name for name in known if name not in cameras and spelling(name) == spelling(camera)]
            if camera not in known:
                notes.append(f"no entry has the camera '{camera}'{_instead(camera, known)}")
            elif others:
                notes.append(
                    f"entries of the camera {', '.join(map(repr, others))} do not pass the filter, which may be "
                    f"'{camera}', too"
                )
    for word, name in (("track", "tracks"), ("tag", "tags"), ("pid", "pids")):
        values: list[Any] = list(getattr(where, name) or ())
        if len(values) <= MOST_WORDS:
            conditions: list[dict[str, Any]] = [{name: [one]} for one in values]
            counts = [gallery.count(Where(**condition)) for condition in conditions]
            absent = [one for one, count in zip(values, counts, strict=True) if not count]
            notes += [f"no entry has the {word} '{one}'" for one in absent]
    return tuple(notes)


def _instead(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    if near is not None:
        return f": did you mean '{near}'?"
    if not known:
        return "; no entry has any"
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return f"; those that are: {', '.join(known[:MOST_NAMED])}{more}"


def notes_of(
    meaning: Meaning,
    images: int,
    looked_at: Sequence[Match | MatchGroup],
    found: Sequence[Match | MatchGroup],
    asked: bool,
    where: Where | None,
    encoder: Encoder,
) -> tuple[str, ...]:
    """The notes of an answer to a query of `images` images.

    Args:
        looked_at: all matches, or tracks, best first. found: those that reach what was `asked`.
    """
    notes: list[str] = []
    if meaning.calibration is None:
        notes.append(
            "no probabilities: this model is not calibrated; make a calibration with fmcnet calibrate "
            f"{encoder.folder or 'RUN'} --data TABLE"
        )
    else:
        query = " and ".join(str(kind) for kind in meaning.query)
        kinds = [where.modality] if where is not None and where.modality is not None else list(Modality)
        for kind in kinds:
            if meaning.covers(kind):
                continue
            if asked:
                notes.append(f"{kind} entries were left out: {query} to {kind} is not calibrated")
            elif any(match.modality is kind for match in looked_at):
                notes.append(f"no probability for {kind} entries: {query} to {kind} is not calibrated")
        if images > 1:
            notes.append(
                f"{images} images were pooled; probabilities were learnt from single images and are approximate here"
            )
        if any(isinstance(one, MatchGroup) and one.pooled > 1 for one in found):
            notes.append(
                "the pictures of each track were pooled; probabilities were learnt from single images and are "
                "approximate here"
            )
        if len(meaning.query) > 1:
            notes.append("the query has both modalities: the more cautious of two calibrations is shown")
    if found and all(isinstance(one, MatchGroup) and one.key is None for one in found):
        notes.append("no entry found has what it was to be grouped by, so each is a group of its own")
    if asked and not found and looked_at:
        best = looked_at[0]
        sure = "" if best.probability is None else f", probability {best.probability:.3g}"
        notes.append(
            f"nobody reaches what was asked; the nearest {'track' if isinstance(best, MatchGroup) else 'entry'} has "
            f"similarity {best.similarity:.3f}{sure}"
        )
    return tuple(notes)
