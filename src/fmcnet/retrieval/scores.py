"""What similarities mean to one query: probabilities and least similarities, by the modality of the entry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.errors import FmcnetError
from fmcnet.inference.calibration.calibration import Calibration
from fmcnet.inference.calibration.counts import FloatVector
from fmcnet.retrieval.answer import Match
from fmcnet.retrieval.records import Hit
from fmcnet.types import Modality


@dataclass(frozen=True)
class Meaning:
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
        known = self.calibration
        return known is not None and all(known.covers(kind, entry) for kind in self.query)

    def probability(self, similarity: ArrayLike, entry: Modality) -> FloatVector | None:
        """Of "same person", of the shape of `similarity` (cosines); None where `covers` says no."""
        if self.calibration is None or not self.covers(entry):
            return None
        known = self.calibration
        curves = [known.probability(similarity, kind, entry, prior=self.prior) for kind in self.query]
        return np.asarray(np.min(curves, axis=0))

    def threshold(self, entry: Modality, fmr: float) -> float | None:
        """The similarity that two persons reach at this rate; None where `covers` says no.

        Raises:
            FmcnetError: for a rate that is none, or lower than the calibration's pairs can tell.
        """
        if self.calibration is None or not self.covers(entry):
            return None
        known = self.calibration
        return max(known.threshold(kind, entry, fmr=fmr) for kind in self.query)

    def matches(self, hits: Sequence[Hit]) -> list[Match]:
        """Hits with their probabilities, order kept."""
        found: dict[int, float] = {}
        for kind in Modality:
            rows = [row for row, hit in enumerate(hits) if hit.modality is kind]
            known = self.probability([hits[row].similarity for row in rows], kind) if rows else None
            if known is not None:
                found.update(zip(rows, known.tolist(), strict=True))
        return [Match.from_hit(hit, found.get(row)) for row, hit in enumerate(hits)]


def check_probability(value: float | None, what: str) -> None:
    """A given probability lies strictly between 0 and 1.

    Raises:
        FmcnetError: when it does not.
    """
    if value is not None and not 0.0 < value < 1.0:
        raise FmcnetError(f"{what}={value} must be between 0 and 1")
