"""`Answer`: what a search returns, its probabilities and its notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmcnet.inference.calibration import Calibration, FloatVector
from fmcnet.retrieval.notes import mixed_note, mixed_tracks
from fmcnet.retrieval.records import Hit, HitGroup, Where
from fmcnet.types import Modality

Scored = TypeVar("Scored", Hit, HitGroup)
APPROXIMATE = "probabilities and thresholds were learnt from single images and allow for that roughly"


@dataclass(frozen=True)
class Answer:
    """The result of a search.

    Attributes:
        hits: most similar first; when grouped, the best hit of each group, with the similarity and probability of
            the group, in the groups' order.
        groups: the groups, in the same order; empty when not grouped.
        no_match: `hits` is empty: no entry reaches the least probability or false-match rate that was asked for, or
            there was no entry to compare with.
        modality: of the query; None: images of both modalities were pooled.
        images: how many images made the query.
        compared: how many entries it was compared with.
        prior: probability before comparing; None: there are no probabilities.
        thresholds: the least similarity asked for, of single images (pooled ones need more), by entry's modality.
        notes: for the reader, one sentence each.
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
        """Hits to show, best first, with the ranking similarity and the number of images."""
        sizes = [group.size for group in self.groups] or [1] * len(self.hits)
        return list(zip(self.hits, sizes, strict=True))

    @property
    def order(self) -> str:
        """Why a less probable hit stands above a more probable one; "" where none does."""
        probabilities = [hit.probability for hit, _ in self.ranking if hit.probability is not None]
        if not any(later > earlier for earlier, later in pairwise(probabilities)):
            return ""
        pooled = self.images > 1 or any(group.pooled > 1 for group in self.groups)
        pooling = ", and pooling raises similarities" if pooled else ""
        return (
            f"ranked by similarity: visible and infrared entries have their own calibrations{pooling}, so a less "
            "probable entry may stand above a more probable one"
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
            "thresholds": {str(modality): value for modality, value in self.thresholds.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class CalibratedScores:
    """A calibration applied to one query.

    A query of both modalities has two curves to an entry; it takes the more cautious one: the smaller
    probability, the higher threshold.

    Attributes:
        calibration: the encoder's; None: there is none.
        query: modalities of the query's images.
        prior: probability, before comparing, that an entry shows the query's person.
        images: how many the query was pooled from.
        length: of the mean of their unit embeddings.
    """

    calibration: Calibration | None
    query: Sequence[Modality]
    prior: float = 0.5
    images: int = 1
    length: float = 1.0

    def covers(self, entry: Modality) -> bool:
        """Whether a similarity to such an entry can be translated."""
        calibration = self.calibration
        return calibration is not None and all(calibration.covers(modality, entry) for modality in self.query)

    def with_probabilities(self, found: Sequence[Scored]) -> list[Scored]:
        """The same, in order, with probabilities; None where `covers` is False."""
        scored = list(found)
        for entry in filter(self.covers, Modality):
            assert self.calibration is not None
            rows, singles = self._of_single_images(found, entry)
            curves = [
                self.calibration.probability(similarity, modality, entry, prior=self.prior)
                for modality, similarity in zip(self.query, singles, strict=True)
            ]
            for row, probability in zip(rows, np.min(curves, axis=0).tolist(), strict=True):
                scored[row] = replace(scored[row], probability=probability)
        return scored

    def threshold(self, entry: Modality, fmr: float) -> float:
        """The least similarity of single images, with such an entry, which `covers` allows."""
        assert self.calibration is not None
        return max(self.calibration.threshold(modality, entry, fmr=fmr) for modality in self.query)

    def reaching(self, found: Sequence[HitGroup], thresholds: Mapping[Modality, float]) -> list[HitGroup]:
        """Those that reach the threshold of their modality, which `threshold` gave."""
        below = set[int]()
        for entry, least in thresholds.items():
            rows, singles = self._of_single_images(found, entry)
            below.update(np.array(rows, int)[np.min(singles, axis=0) < least].tolist())
        return [result for row, result in enumerate(found) if row not in below]

    def _of_single_images(
        self, found: Sequence[Hit | HitGroup], entry: Modality
    ) -> tuple[list[int], list[FloatVector]]:
        """Rows of results of one modality; by modality of the query, their similarities as those of single images.

        Ours. The unit embedding of an image is what all persons have in common, of squared length c, and a rest.
        Averaging keeps the former and shortens the rest, so all cosines grow. Here the rest gets back its length.
        """
        assert self.calibration is not None
        rows = [row for row, result in enumerate(found) if result.modality is entry]
        results = [found[row] for row in rows]
        cosines = np.array([one.similarity for one in results], dtype=np.float64)
        pooled = [(one.pooled, one.length) if isinstance(one, HitGroup) else (1, 1.0) for one in results]
        images, lengths = np.array(pooled, dtype=np.float64).reshape(-1, 2).T
        pairs = cosines * self.length * lengths  # mean cosine of all pairs of single images
        curves, singles = self.calibration.curves, list[FloatVector]()
        for modality in self.query:
            curve = self.calibration.curve(modality, entry)
            c_query = curves.get((modality, modality), curve).common
            c_entry = curves.get((entry, entry), curve).common
            left = _rest_left(np.array(self.length), np.array(self.images), c_query)
            left = np.sqrt(left * _rest_left(lengths, images, c_entry))
            singles.append(np.minimum(cosines, curve.common + (pairs - curve.common) / left))
        return rows, singles


def _rest_left(length: FloatVector, images: FloatVector, common: float) -> FloatVector:
    """The share of the rest's squared length that the mean of so many images, of this length, still has."""
    return np.maximum((length**2 - common) / (1.0 - common), 1.0 / np.maximum(images, 1))


def answer_notes(
    scores: CalibratedScores,
    candidates: Sequence[HitGroup],
    found: Sequence[HitGroup],
    asked: bool,
    group: str | None,
    where: Where,
    model: Path | None,
) -> list[str]:
    """The notes of an answer.

    Args:
        scores: the calibration, applied to the query.
        candidates: all hits, each alone, or tracks, best first.
        found: those that reach the thresholds, grouped.
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
        query = " and ".join(str(modality) for modality in scores.query)
        for modality in where.modalities:
            reason = f"{query} to {modality} is not calibrated"
            if asked and not scores.covers(modality):
                notes.append(f"{modality} entries were left out: {reason}")
            elif not scores.covers(modality) and any(item.modality is modality for item in candidates):
                notes.append(f"no probability for {modality} entries: {reason}")
        if any(hit_group.pooled > 1 for hit_group in (found or candidates[:1])):
            notes.append(f"the images of each track were pooled; {APPROXIMATE}")
        if len(scores.query) > 1:
            notes.append("the query has both modalities: the more cautious of two calibrations is shown")
    if scores.images > 1:
        caveat = "" if scores.calibration is None else f"; {APPROXIMATE}"
        notes.append(f"{scores.images} images were taken as ONE person and pooled{caveat}")
    if group and found and all(hit_group.key is None for hit_group in found):
        notes.append("no entry found has what it was to be grouped by, so each is a group of its own")
    if group == "track" and (mixed := mixed_tracks(hit for hit_group in found for hit in hit_group.hits)):
        notes.append(mixed_note(mixed, "each is answered as one"))
    if asked and not found and candidates:
        best = candidates[0]
        noun = "track" if group == "track" else "entry"
        probability = "" if best.probability is None else f", probability {best.probability:.3g}"
        notes.append(
            f"no match: no {noun} reaches what was asked for; the nearest {noun} has similarity "
            f"{best.similarity:.3f}{probability}"
        )
    return notes
