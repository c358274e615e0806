"""What a person should know of an answer, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from fmcnet.gallery.records import Where
from fmcnet.inference.encoder import Encoder
from fmcnet.search.answer import Match, MatchGroup
from fmcnet.search.meaning import Meaning
from fmcnet.types import Modality


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
