"""`Answer`: what a search returns, with calibrated scores and notes for the reader."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.errors import FmcnetError
from fmcnet.inference.calibration import Calibration, FloatVector
from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval.records import Hit, HitGroup, Where
from fmcnet.types import Modality


@dataclass(frozen=True)
class Answer:
    """Who it may be.

    Attributes:
        hits: most similar first; when grouped, the best hit of each group, in the groups' order.
        groups: the groups, in the same order; empty when not grouped.
        no_match: `hits` is empty: no entry reaches the least probability or false-match rate that was asked for, or
            there was no entry to compare with.
        modality: of the query; None: images of both modalities were pooled.
        images: how many images made the query.
        compared: how many entries it was compared with.
        prior: what probabilities start from; None: there are none.
        thresholds: the least similarity asked for, by the entry's modality; empty when none was asked for.
        notes: what a person should know of this answer, sentences.
    """

    hits: tuple[Hit, ...]
    groups: tuple[HitGroup, ...]
    no_match: bool
    modality: Modality | None
    images: int
    compared: int
    prior: float | None
    thresholds: dict[Modality, float]
    notes: tuple[str, ...] = ()

    @property
    def ranking(self) -> list[tuple[Hit, int]]:
        """What to show, best first: hits with what ranks them, and how many pictures that is of."""
        if not self.groups:
            return [(hit, 1) for hit in self.hits]
        return [
            (replace(one.best, similarity=one.similarity, probability=one.probability), one.size)
            for one in self.groups
        ]

    @property
    def order(self) -> str:
        """Why a less probable hit stands above a more probable one; "" where none does."""
        sure = [hit.probability for hit, _ in self.ranking if hit.probability is not None]
        if not any(later > earlier for earlier, later in pairwise(sure)):
            return ""
        return (
            "ranked by similarity: visible and infrared entries have their own calibrations, so a less probable "
            "entry may stand above a more probable one"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "nobody": self.no_match,
            "hits": [hit.to_dict() for hit in self.hits],
            "groups": [group.to_dict() for group in self.groups],
            "query": {"modality": str(self.modality or "both"), "images": self.images},
            "compared": self.compared,
            "prior": self.prior,
            "thresholds": {str(kind): value for kind, value in self.thresholds.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class CalibratedScores:
    """A calibration as seen from one query.

    A query of both modalities has two curves to an entry; it takes the more cautious one: the smaller
    probability, the higher threshold.

    Attributes:
        calibration: the encoder's; None: there is none.
        query: modalities of the query's images.
        prior: probability, before comparing, that an entry shows the query's person.
    """

    calibration: Calibration | None
    query: Collection[Modality]
    prior: float

    def covers(self, entry: Modality) -> bool:
        """Whether a similarity to such an entry can be translated."""
        calibration = self.calibration
        return calibration is not None and all(calibration.covers(kind, entry) for kind in self.query)

    def probability(self, similarity: ArrayLike, entry: Modality) -> FloatVector | None:
        """Of "same person", of the shape of `similarity` (cosines); None where `covers` says no."""
        if self.calibration is None or not self.covers(entry):
            return None
        curves = [
            self.calibration.probability(similarity, kind, entry, prior=self.prior) for kind in self.query
        ]
        return np.asarray(np.min(curves, axis=0))

    def threshold(self, entry: Modality, fmr: float) -> float | None:
        """The similarity that two persons reach at this rate; None where `covers` says no.

        Raises:
            FmcnetError: for a rate that is none, or lower than the calibration's pairs can tell.
        """
        if self.calibration is None or not self.covers(entry):
            return None
        return max(self.calibration.threshold(kind, entry, fmr=fmr) for kind in self.query)

    def with_probabilities(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits with their probabilities, order kept."""
        found: dict[int, float] = {}
        for kind in Modality:
            rows = [row for row, hit in enumerate(hits) if hit.modality is kind]
            curve = self.probability([hits[row].similarity for row in rows], kind) if rows else None
            if curve is not None:
                found.update(zip(rows, curve.tolist(), strict=True))
        return [replace(hit, probability=found.get(row)) for row, hit in enumerate(hits)]


def check_probability(value: float | None, what: str) -> None:
    """A given probability lies strictly between 0 and 1.

    Raises:
        FmcnetError: when it does not.
    """
    if value is not None and not 0.0 < value < 1.0:
        raise FmcnetError(f"{what}={value} must be between 0 and 1")


def answer_notes(
    scores: CalibratedScores,
    images: int,
    candidates: Sequence[HitGroup],
    found: Sequence[HitGroup],
    asked: bool,
    group: str | None,
    where: Where | None,
    encoder: Encoder,
) -> tuple[str, ...]:
    """The notes of an answer to a query of `images` images.

    Args:
        candidates: all hits, each alone, or tracks, best first. found: those that reach what was `asked`, grouped.
        group: "track", "pid", or None.
    """
    notes: list[str] = []
    if scores.calibration is None:
        notes.append(
            "no probabilities: this model is not calibrated; make a calibration with fmcnet calibrate "
            f"{encoder.folder or 'RUN'} --data TABLE"
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
    return tuple(notes)
