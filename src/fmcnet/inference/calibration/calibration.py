"""The calibration of a model: a small JSON beside its weights, of use with these weights only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.errors import CheckpointError, DataError, FmcnetError
from fmcnet.files import write_atomically
from fmcnet.inference.calibration.curve import (
    BINS,
    ENOUGH,
    MIN_PAIRS,
    Curve,
    FloatVector,
    count_pairs,
    edges,
    fit,
    folds_of,
    number,
)
from fmcnet.parsing import read_json
from fmcnet.types import NO_PID, BoolArray, Embeddings, IntArray, Modality

CALIBRATION = "calibration.json"
FORMAT = "fmcnet-calibration-1"
DIRECTIONS = tuple((query, gallery) for query in Modality for gallery in Modality)
FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """What similarities of one model's embeddings mean, for each pair of modalities.

    Attributes:
        model: digest of the model (`Encoder.digest`).
        curves: by query and gallery modality; a direction that had too few pairs is not there.
        prior: how probable it is, before a comparison, that two images show one person; the default of `probability`.
        fmr: the false-match rate that `threshold` takes by default.
        held_out: by direction ("infrared-visible"), what was found on identities that were not learnt from.
        source: what it was learnt from, for people.
    """

    model: str
    curves: dict[tuple[Modality, Modality], Curve]
    prior: float = 0.5
    fmr: float = 0.001
    held_out: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def covers(self, query_modality: Modality | str, gallery_modality: Modality | str) -> bool:
        """Whether this direction was learnt."""
        return (Modality(query_modality), Modality(gallery_modality)) in self.curves

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
            similarity: cosine, any shape. query_modality, gallery_modality: of the two images.
            prior: how probable it is before the comparison; None: the calibration's. In a gallery of n persons of
                which any may be the one, and that may lack the one as well, 1 / (n + 1) is honest.

        Returns:
            Of the shape of `similarity`, 0..1, never descending with it.

        Raises:
            FmcnetError: for a direction that was not learnt, or a prior that is none.
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
            fmr: false-match rate, 0 < fmr <= 1; None: the calibration's.

        Raises:
            FmcnetError: for a direction that was not learnt, or a rate lower than its pairs can tell.
        """
        return self.curve(query_modality, gallery_modality).at(self.fmr if fmr is None else fmr)

    def curve(self, query_modality: Modality | str, gallery_modality: Modality | str) -> Curve:
        """One direction.

        Raises:
            FmcnetError: when it was not learnt; says which were.
        """
        pair = Modality(query_modality), Modality(gallery_modality)
        if pair not in self.curves:
            known = ", ".join(direction(*one) for one in self.curves)
            raise FmcnetError(
                f"{direction(*pair)} is not calibrated (only {known}): the table had too few pairs of it"
            )
        return self.curves[pair]

    def to_dict(self) -> dict[str, Any]:
        """As written to `calibration.json`."""
        return {
            "format": FORMAT,
            "model": self.model,
            "similarity": "cosine",
            "prior": self.prior,
            "fmr": self.fmr,
            "source": self.source,
            "curves": {direction(*pair): curve.to_dict() for pair, curve in self.curves.items()},
            "held_out": self.held_out,
        }

    def save(self, path: str | Path) -> Path:
        """Write it, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        return write_atomically(Path(path), lambda at: at.write_text(text, encoding="utf-8"))

    @staticmethod
    def load(path: str | Path, model: str | None = None) -> Calibration:
        """Read what `save` wrote.

        Args:
            model: the digest that it must be for; None: any.

        Raises:
            CheckpointError: when it is missing, damaged (the field that is wrong is named), or of another model.
        """
        try:
            tree = read_json(Path(path))
            if not isinstance(tree, dict) or tree.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a calibration of this version (format {FORMAT})")
            found = _parse(tree)
        except KeyError as error:
            raise CheckpointError(f"{path} is damaged: {error} is missing; calibrate again") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is missing or damaged: {error}; calibrate again") from error
        if model is not None and found.model != model:
            raise CheckpointError(
                f"{path} was made for another model (digest {found.model}, this one's is {model}): calibrate again "
                "with fmcnet calibrate"
            )
        return found


def _parse(tree: dict[str, Any]) -> Calibration:
    """What `to_dict` gave.

    Raises:
        ValueError, KeyError: naming the field that is wrong, or missing.
    """
    for name, kind in (("model", str), ("curves", dict), ("held_out", dict), ("source", dict)):
        if not isinstance(tree[name], kind) or (name in ("model", "curves") and not tree[name]):
            raise ValueError(f"{name} is {tree[name]!r:.60}")
    names = {direction(*pair): pair for pair in DIRECTIONS}
    curves = {}
    for name, curve in tree["curves"].items():
        if name not in names or not isinstance(curve, dict):
            raise ValueError(f"curves.{name}: a curve of one of {', '.join(names)} should be there")
        try:
            curves[names[name]] = Curve.from_dict(curve)
        except KeyError as error:
            raise ValueError(f"curves.{name}.{error.args[0]} is missing") from error
        except ValueError as error:
            raise ValueError(f"curves.{name}.{error}") from error
    prior, fmr = (number(tree[name], name) for name in ("prior", "fmr"))
    if not 0.0 < prior < 1.0:
        raise ValueError(f"prior = {prior} is not between 0 and 1")
    if not 0.0 < fmr <= 1.0:
        raise ValueError(f"fmr = {fmr} is not above 0 and at most 1")
    return Calibration(tree["model"], curves, prior, fmr, tree["held_out"], tree["source"])


def direction(query: Modality, gallery: Modality) -> str:
    """ "infrared-visible": an infrared query, a visible gallery."""
    return f"{query}-{gallery}"


def calibrate(
    embeddings: Embeddings,
    model: str,
    *,
    prior: float = 0.5,
    fmr: float = 0.001,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
    source: dict[str, Any] | None = None,
) -> Calibration:
    """Learn a calibration from embeddings of known identities, none of which the model was trained on.

    Every direction is learnt from all its pairs (`count_pairs`). Cosine similarity is symmetric: without masks
    visible-infrared and infrared-visible come out alike. What is reported as held out is found by cross-fitting over
    folds of identities; the curves kept are learnt from all.

    Args:
        embeddings: (N,). model: their model's digest.
        prior, fmr: see `Calibration`.
        query_mask, gallery_mask: (N,) which rows may be queries, gallery; None: all.
        source: what the embeddings are of, for people.

    Raises:
        DataError: when identities are missing, or no direction has enough pairs.
        FmcnetError: for a prior or a rate that is none.
    """
    if not 0.0 < prior < 1.0 or not 0.0 < fmr <= 1.0:
        raise FmcnetError(f"prior must be between 0 and 1 and fmr above 0, at most 1; got {prior} and {fmr}")
    if (embeddings.pid == NO_PID).any():
        raise DataError(
            f"{int((embeddings.pid == NO_PID).sum())} embeddings have no identity: nothing to learn from"
        )
    if not np.linalg.norm(embeddings.features, axis=1).all():
        raise DataError("an embedding is all zeros, which has no cosine similarity: check the model")
    identities = len(np.unique(embeddings.pid))
    fold = folds_of(embeddings.pid, min(FOLDS, max(1, identities // 4)))
    curves: dict[tuple[Modality, Modality], Curve] = {}
    looked: dict[str, Any] = {}
    for pair in DIRECTIONS:
        counts = count_pairs(embeddings, *pair, fold=fold, query_mask=query_mask, gallery_mask=gallery_mask)
        total = counts.sum(axis=(0, 1))
        if total.sum(axis=1).min() < MIN_PAIRS:
            continue
        curves[pair] = fit(total[1], total[0])
        found = held_out(counts, prior) if len(counts) > 1 else None
        if found is not None:
            looked[direction(*pair)] = found
    if not curves:
        raise DataError(
            f"{len(embeddings)} images of {identities} identities make fewer than {MIN_PAIRS} pairs of one person "
            "(by two cameras) in every direction: calibrate on more"
        )
    facts = {"identities": identities, "images": len(embeddings), **(source or {})}
    return Calibration(model, curves, prior, fmr, looked, facts)


SHOWN = (1e-1, 1e-2, 1e-3, 1e-4)
PARTS = 15
"""Equal parts of 0..1 that the expected calibration error averages over (Guo et al., ICML 2017)."""


def calibration_error(
    probability: FloatVector, same: FloatVector, different: FloatVector, prior: float
) -> float:
    """Expected calibration error: how far probabilities lie from shares, in the mean over pairs.

    Args:
        probability: (N,) given to N groups of pairs.
        same, different: (N,) how many pairs of each group are of one person, of two.
        prior: the share of the former among all pairs that the error is for; the counts are weighted to it.

    Returns:
        0 (right) to 1.
    """
    same = prior * same / same.sum()
    different = (1 - prior) * different / different.sum()
    part = np.minimum((probability * PARTS).astype(np.int64), PARTS - 1)
    said = np.bincount(part, weights=probability * (same + different), minlength=PARTS)
    was = np.bincount(part, weights=same, minlength=PARTS)
    return float(np.abs(said - was).sum())


def held_out(counts: IntArray, prior: float) -> dict[str, Any] | None:
    """Learn from all folds of identities but one, look at that one; over all folds.

    Args:
        counts: (K, K, 2, BINS) of `count_pairs`. prior: of the calibration error.

    Returns:
        `folds`; `same`, `different` (pairs looked at); `expected_calibration_error`; `brier`: the mean squared error
        of the probabilities; and `rates`: for each false-match rate asked for, those found of false and of true
        matches. None where the pairs are too few.
    """
    k = len(counts)
    centres = (edges()[:-1] + edges()[1:]) / 2
    probability = np.zeros((k, BINS))
    seen = np.stack([counts[fold, fold] for fold in range(k)])  # (K, 2, BINS)
    reached = {rate: np.zeros(2, dtype=np.int64) for rate in SHOWN}
    for fold in range(k):
        others = [one for one in range(k) if one != fold]
        known = counts[np.ix_(others, others)].sum(axis=(0, 1))
        if known.sum(axis=1).min() < MIN_PAIRS:
            return None
        curve = fit(known[1], known[0])
        probability[fold] = curve.probability(centres, prior)
        for rate in list(reached):
            try:
                place = int(np.searchsorted(edges(), curve.at(rate) - 1e-9))
            except FmcnetError:
                del reached[rate]
                continue
            reached[rate] += seen[fold, :, place:].sum(axis=1)
    different, same = seen.sum(axis=(0, 2))
    if min(same, different) < MIN_PAIRS:
        return None
    p, d, s = probability.ravel(), seen[:, 0].ravel().astype(float), seen[:, 1].ravel().astype(float)
    brier = prior * ((1 - p) ** 2 * s).sum() / same + (1 - prior) * (p**2 * d).sum() / different
    return {
        "folds": k,
        "same": int(same),
        "different": int(different),
        "expected_calibration_error": calibration_error(p, s, d, prior),
        "brier": float(brier),
        "rates": {
            f"{rate:g}": {"false_match_rate": int(f) / int(different), "true_match_rate": int(t) / int(same)}
            for rate, (f, t) in reached.items()
            if rate * different >= ENOUGH
        },
    }
