"""What a search answers: small frozen dataclasses that become JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from fmcnet.retrieval.records import Hit
from fmcnet.types import Modality


@dataclass(frozen=True)
class Match(Hit):
    """A `Hit` with what its similarity means.

    Attributes:
        probability: that query and entry show one person, 0..1, by the encoder's calibration for their modalities and
            the answer's prior; None where there is no such calibration.
    """

    probability: float | None = None

    @staticmethod
    def from_hit(hit: Hit, probability: float | None) -> Match:
        """The hit, with its probability."""
        return Match(**vars(hit), probability=probability)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601, UTC."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class MatchGroup:
    """Matches that share a track or a pid, best first.

    Attributes:
        key: the track or pid; None for a match that has none (it is a group of its own).
        matches: those that were looked at, at least one. Of a person, only those that reach what was asked.
        similarity, probability: what ranks the group: of the best match, or of a track's entries pooled.
        pooled: how many entries were pooled; 0: none were.
    """

    key: str | int | None
    matches: tuple[Match, ...]
    similarity: float
    probability: float | None
    pooled: int = 0

    @property
    def best(self) -> Match:
        """The most similar one."""
        return self.matches[0]

    @property
    def modality(self) -> Modality:
        """Of the best match; of a track, of all."""
        return self.best.modality

    @property
    def size(self) -> int:
        """How many pictures stand behind the group's place."""
        return self.pooled or len(self.matches)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "key": self.key,
            "similarity": self.similarity,
            "probability": self.probability,
            "pooled": self.pooled,
            "matches": [match.to_dict() for match in self.matches],
        }


@dataclass(frozen=True)
class Answer:
    """Who it may be.

    Attributes:
        hits: most similar first; when grouped, the best match of each group, in the groups' order.
        groups: the groups, in the same order; empty when not grouped.
        nobody: `hits` is empty: nobody reaches the least probability or false-match rate that was asked for, or there
            was no entry to compare with.
        modality: of the query; None: images of both modalities were pooled.
        images: how many images made the query.
        compared: how many entries it was compared with.
        prior: what probabilities start from; None: there are none.
        thresholds: the least similarity asked for, by the entry's modality; empty when none was asked for.
        notes: what a person should know of this answer, sentences.
    """

    hits: tuple[Match, ...]
    groups: tuple[MatchGroup, ...]
    nobody: bool
    modality: Modality | None
    images: int
    compared: int
    prior: float | None
    thresholds: dict[Modality, float]
    notes: tuple[str, ...] = ()

    @property
    def ranking(self) -> list[tuple[Match, int]]:
        """What to show, best first: hits with what ranks them, and how many pictures that is of."""
        if not self.groups:
            return [(hit, 1) for hit in self.hits]
        return [
            (replace(one.best, similarity=one.similarity, probability=one.probability), one.size)
            for one in self.groups
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "nobody": self.nobody,
            "hits": [hit.to_dict() for hit in self.hits],
            "groups": [group.to_dict() for group in self.groups],
            "query": {"modality": str(self.modality or "both"), "images": self.images},
            "compared": self.compared,
            "prior": self.prior,
            "thresholds": {str(kind): value for kind, value in self.thresholds.items()},
            "notes": list(self.notes),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Modality) else list(value) if isinstance(value, tuple) else value
