"""Calibration: probabilities and thresholds of similarities, a small JSON beside the weights. No PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from fmcnet.errors import CheckpointError, DataError, FmcnetError
from fmcnet.files import write_json
from fmcnet.parsing import first_fault, read_json
from fmcnet.types import Modality, parse_modality

CALIBRATION = "calibration.json"
CALIBRATION_FORMAT = "fmcnet-calibration-1"
DIRECTIONS = tuple((query, gallery) for query in Modality for gallery in Modality)
FloatVector = NDArray[np.float64]
VECTORS = ("similarity", "evidence", "false_match_rate", "threshold", "true_match_rate")
"""Those of a curve."""
Direction = Literal["visible-visible", "visible-infrared", "infrared-visible", "infrared-infrared"]

Count = Annotated[int, Field(strict=True, ge=1)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Similarity = Annotated[Finite, Field(ge=-1, le=1)]
Rate = Annotated[Finite, Field(gt=0, le=1)]


class _StoredCurve(BaseModel):
    """A `Curve` in JSON."""

    same: Count
    different: Count
    similarity: Annotated[list[Similarity], Field(min_length=1)]
    evidence: list[Finite]
    false_match_rate: Annotated[list[Rate], Field(min_length=1)]
    threshold: list[Similarity]
    true_match_rate: list[Annotated[Finite, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _check_knots(self) -> _StoredCurve:
        for name, other, sign in (
            ("similarity", "evidence", 1),
            ("threshold", "false_match_rate", -1),
            ("threshold", "true_match_rate", -1),
        ):
            knots, values = np.array(getattr(self, name)), np.array(getattr(self, other))
            if len(knots) != len(values):
                raise ValueError(f"{name} has {len(knots)} knots and {other} {len(values)}")
            if (np.diff(knots) < 0).any() or (np.diff(sign * values) < 0).any():
                raise ValueError(f"knots of {name} and {other} are out of order")
        if self.false_match_rate[0] != 1:
            raise ValueError(f"false_match_rate begins with {self.false_match_rate[0]}, not with 1")
        return self


class _StoredCalibration(BaseModel):
    """A `Calibration` in JSON, without its format."""

    model: Annotated[str, Field(min_length=1)]
    similarity: Literal["cosine"]
    curves: Annotated[dict[Direction, _StoredCurve], Field(min_length=1)]
    prior: Annotated[Finite, Field(gt=0, lt=1)]
    fmr: Rate
    held_out: dict[str, Any]
    source: dict[str, Any]


def _rounded_up(rate: float) -> str:
    """Two digits, not below the rate, so that it can be given."""
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return f"{math.ceil(rate / step * (1 - 1e-9)) * step:.2g}"


@dataclass(frozen=True)
class Curve:
    """Probabilities and error rates of the similarities of one direction.

    Attributes:
        same: number of pairs of one person it was learnt from.
        different: number of pairs of two persons.
        similarity: (K,) ascending knots.
        evidence: (K,) not descending: the log likelihood ratio of one person against two, natural logarithm. It is
            linear between knots and constant beyond.
        false_match_rate: (M,) descending from 1.
        threshold: (M,) ascending: pairs of two persons reach it that often.
        true_match_rate: (M,) how often pairs of one person reach it.
    """

    same: int
    different: int
    similarity: FloatVector
    evidence: FloatVector
    false_match_rate: FloatVector
    threshold: FloatVector
    true_match_rate: FloatVector

    def probability(self, similarity: ArrayLike, prior: float) -> FloatVector:
        """How probable it is that both images show one person.

        Args:
            similarity: cosine, any shape.
            prior: how probable it is before the images are compared, 0 < prior < 1.

        Returns:
            Of the shape of `similarity`, 0..1.

        Raises:
            FmcnetError: for a prior out of range.
            DataError: when a similarity is NaN.
        """
        if not 0.0 < prior < 1.0:
            raise FmcnetError(f"a prior is a probability between 0 and 1, got {prior}")
        values = np.asarray(similarity, dtype=np.float64)
        if np.isnan(values).any():
            raise DataError("a similarity is NaN: there is no probability of it")
        log_odds = np.interp(values, self.similarity, self.evidence) + np.log(prior) - np.log1p(-prior)
        return np.asarray(np.exp(-np.logaddexp(0.0, -log_odds)))

    def at(self, fmr: float) -> float:
        """The similarity that pairs of two persons reach at a given rate.

        Args:
            fmr: false-match rate, 0 < fmr <= 1; thresholds are linear in its logarithm between knots.

        Raises:
            FmcnetError: for a rate out of range, or too low for the number of pairs.
        """
        lowest = float(self.false_match_rate[-1])
        if not 0.0 < fmr <= 1.0:
            raise FmcnetError(f"a false-match rate is above 0 and at most 1, got {fmr}")
        if fmr < lowest * (1 - 1e-9):
            raise FmcnetError(
                f"a false-match rate of {fmr:g} cannot be told from {self.different:,} pairs of different persons: "
                f"{_rounded_up(lowest)} is the lowest; calibrate on more identities"
            )
        return float(np.interp(-np.log(fmr), -np.log(self.false_match_rate), self.threshold))

    @property
    def common(self) -> float:
        """What images of two persons have in common: the median of their similarities, at least 0."""
        return float(np.interp(np.log(2), -np.log(self.false_match_rate), self.threshold).clip(0.0, 0.99))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "same": self.same,
            "different": self.different,
            **{name: [float(f"{v:.7g}") for v in getattr(self, name)] for name in VECTORS},
        }


@dataclass(frozen=True)
class Calibration:
    """Probabilities and thresholds for similarities of one model's embeddings, by pair of modalities.

    Attributes:
        model: digest of the model (`Encoder.digest`).
        curves: by query and gallery modality; a direction with too few pairs is missing.
        prior: how probable it is, before a comparison, that two images show one person; the default of `probability`.
        fmr: the false-match rate that `threshold` takes by default.
        held_out: by direction ("infrared-visible"), errors on identities that were not learnt from.
        source: what it was learnt from, for information.
    """

    model: str
    curves: dict[tuple[Modality, Modality], Curve]
    prior: float = 0.5
    fmr: float = 0.001
    held_out: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def covers(self, query_modality: Modality | str, gallery_modality: Modality | str) -> bool:
        """Whether a direction was learnt."""
        return (parse_modality(query_modality), parse_modality(gallery_modality)) in self.curves

    def probability(
        self,
        similarity: ArrayLike,
        query_modality: Modality | str,
        gallery_modality: Modality | str,
        *,
        prior: float | None = None,
    ) -> FloatVector:
        """How probable it is that query and gallery image show one person.

        Args:
            similarity: cosine, any shape.
            query_modality: of the query image.
            gallery_modality: of the gallery image.
            prior: how probable it is before the comparison; None: the calibration's. In a gallery of n persons
                where each, or nobody, may be the query's person, take 1 / (n + 1).

        Returns:
            Of the shape of `similarity`, 0..1, never descending with it.

        Raises:
            FmcnetError: for a direction that was not learnt, or a prior out of range.
            DataError: when a similarity is NaN.
        """
        curve = self.curve(query_modality, gallery_modality)
        return curve.probability(similarity, self.prior if prior is None else prior)

    def threshold(
        self,
        query_modality: Modality | str,
        gallery_modality: Modality | str,
        *,
        fmr: float | None = None,
    ) -> float:
        """The similarity that images of two different persons reach with a probability of `fmr` only.

        It is the rate of one comparison: a search of n persons makes n.

        Args:
            query_modality: of the query image.
            gallery_modality: of the gallery image.
            fmr: false-match rate, 0 < fmr <= 1; None: the calibration's.

        Raises:
            FmcnetError: for a direction that was not learnt, or a rate too low for its number of pairs.
        """
        return self.curve(query_modality, gallery_modality).at(self.fmr if fmr is None else fmr)

    def curve(self, query_modality: Modality | str, gallery_modality: Modality | str) -> Curve:
        """One direction; raises `FmcnetError` when it was not learnt, naming those that were."""
        pair = parse_modality(query_modality), parse_modality(gallery_modality)
        if pair not in self.curves:
            known = ", ".join(direction(*known_pair) for known_pair in self.curves)
            raise FmcnetError(
                f"{direction(*pair)} is not calibrated (only {known}): the table had too few pairs of it"
            )
        return self.curves[pair]

    def to_dict(self) -> dict[str, Any]:
        """As written to `calibration.json`."""
        return {
            "format": CALIBRATION_FORMAT,
            "model": self.model,
            "similarity": "cosine",
            "prior": self.prior,
            "fmr": self.fmr,
            "source": self.source,
            "curves": {direction(*pair): curve.to_dict() for pair, curve in self.curves.items()},
            "held_out": self.held_out,
        }

    def save(self, path: str | Path) -> Path:
        """Write the calibration, whole or not at all.

        Args:
            path: the file; its folder is made if missing.

        Returns:
            Its path.
        """
        return write_json(Path(path), self.to_dict())

    @staticmethod
    def load(path: str | Path, model: str | None = None) -> Calibration:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the digest that it must be for; None: any.

        Returns:
            The calibration.

        Raises:
            CheckpointError: when it is missing, damaged (the field that is wrong is named), or of another model.
        """
        try:
            tree = read_json(Path(path))
            if not isinstance(tree, dict) or tree.get("format") != CALIBRATION_FORMAT:
                raise CheckpointError(
                    f"{path} is not a calibration of this version (format {CALIBRATION_FORMAT})"
                )
            stored = _StoredCalibration.model_validate(tree)
        except ValidationError as error:
            raise CheckpointError(f"{path} is damaged: {first_fault(error)}; calibrate again") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is missing or damaged: {error}; calibrate again") from error
        if model is not None and stored.model != model:
            raise CheckpointError(
                f"{path} was made for another model (digest {stored.model}, this one's is {model}): calibrate "
                "again with fmcnet calibrate"
            )
        curves = {}
        for name, curve in stored.curves.items():
            query, gallery = map(Modality, name.split("-"))
            vectors = {vector: np.array(getattr(curve, vector)) for vector in VECTORS}
            curves[query, gallery] = Curve(curve.same, curve.different, **vectors)
        return Calibration(stored.model, curves, stored.prior, stored.fmr, stored.held_out, stored.source)


def direction(query: Modality, gallery: Modality) -> str:
    """ "infrared-visible": an infrared query, a visible gallery."""
    return f"{query}-{gallery}"
