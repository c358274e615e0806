"""Verification (same person or not): ROC, true-match rate at fixed false-match rates, and the two histograms.

Every query is paired with every gallery image of the protocol's sets (nothing is drawn), except what the skip rule
hides. A pair is accepted when its similarity reaches the threshold. The curve is exact: the true-match rate only
changes at a true match's similarity, so false matches are counted at those thresholds, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.draws import Draw
from fmcnet.evaluation.protocols import Protocol
from fmcnet.evaluation.ranking import CHUNK_BYTES
from fmcnet.evaluation.similarity import Similarity
from fmcnet.types import BoolArray, Embeddings, IntArray

FALSE_MATCH_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
ENOUGH = 10
"""Fewest false matches behind a reported false-match rate."""

POINTS = 512
"""Points of a stored ROC curve."""

FloatVector = NDArray[np.float64]


@dataclass(frozen=True)
class Verification:
    """How well a threshold on the similarity tells true pairs from false ones."""

    protocol: str  # the sets and the skip rule, in one sentence
    distance: str  # "cosine" (similarity in -1..1) or "euclidean" (similarity is minus the distance)
    positives: int  # true pairs
    negatives: int  # false pairs
    auc: float  # area under the ROC curve, ties counted half
    # false-match rate -> (true-match rate, threshold); None: fewer than `ENOUGH` expected false matches
    true_match_rates: dict[float, tuple[float, float] | None]
    roc: NDArray[np.float64]  # (2, P) false- and true-match rates, ascending, at most `POINTS` points
    edges: FloatVector  # (B + 1,) of the histograms
    positive_histogram: IntArray  # (B,) counts
    negative_histogram: IntArray  # (B,) counts

    def to_dict(self) -> dict[str, Any]:
        """For JSON; false-match rates become text keys such as "0.001"."""
        return {
            "protocol": self.protocol,
            "distance": self.distance,
            "positives": self.positives,
            "negatives": self.negatives,
            "auc": self.auc,
            "true_match_rate": {
                f"{rate:g}": None if point is None else {"rate": point[0], "threshold": point[1]}
                for rate, point in self.true_match_rates.items()
            },
            "roc": {"false_match_rate": self.roc[0].tolist(), "true_match_rate": self.roc[1].tolist()},
            "histogram": {
                "edges": self.edges.tolist(),
                "positive": self.positive_histogram.tolist(),
                "negative": self.negative_histogram.tolist(),
            },
        }


def verification(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    distance: str = "cosine",
    bins: int = 100,
    chunk_bytes: int = CHUNK_BYTES,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> Verification:
    """Compare every query with every gallery image of a protocol's sets; its draw is not used.

    `bins` are of the histograms; the other arguments are those of `evaluate`.

    Raises:
        ProtocolError: when there is no true or no false pair.
        DataError: when an embedding is all zeros and the distance is cosine.
    """
    undrawn = replace(protocol, draw=Draw(), drawn="gallery", ours=())
    query, gallery = undrawn.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask)[0]
    similarity = Similarity.prepare(embeddings, query, gallery, distance=distance)
    budget = max(1024, chunk_bytes // 64)
    gallery_chunk = max(1, min(len(gallery), budget // min(len(query), 256)))
    query_chunk = max(1, budget // gallery_chunk)

    def blocks() -> Iterator[tuple[FloatVector, FloatVector]]:
        """Similarities of the true and of the false pairs that the skip rule leaves, block by block."""
        for part in np.split(gallery, range(gallery_chunk, len(gallery), gallery_chunk)):
            gallery_loaded = similarity.load(embeddings, part)
            for rows in np.split(query, range(query_chunk, len(query), query_chunk)):
                block = similarity.between(similarity.load(embeddings, rows), gallery_loaded)
                values = block.double().cpu().numpy()
                compared = ~undrawn.skip.hidden(embeddings, rows[:, None], part)
                same_identity = embeddings.pid[rows][:, None] == embeddings.pid[part]
                yield values[same_identity & compared], values[~same_identity & compared]

    positive = np.sort(np.concatenate([true for true, _ in blocks()]))
    low, high = (-1.0, 1.0) if distance == "cosine" else (-2.0 * similarity.radius, 0.0)
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    counts = np.zeros(bins, dtype=np.int64)
    false_matches, total = np.zeros((2, len(positive)), dtype=np.int64), 0
    for _, negative in blocks():
        negative.sort()
        false_matches[0] += len(negative) - np.searchsorted(negative, positive - similarity.tie, side="left")
        false_matches[1] += len(negative) - np.searchsorted(negative, positive + similarity.tie, side="right")
        counts += np.histogram(np.clip(similarity.readable(negative), low, edges[-1]), edges)[0]
        total += len(negative)
    readable = similarity.readable(positive)
    if not len(positive) or not total:
        raise ProtocolError(
            f"{protocol.name}: {len(positive)} true and {total} false pairs: verification needs both. Check that the "
            "sets hold the same identities, more than one"
        )
    return Verification(
        protocol=undrawn.sentence(),
        distance=distance,
        positives=len(positive),
        negatives=total,
        auc=float(1 - (false_matches[0] + false_matches[1]).sum() / 2 / len(positive) / total),
        true_match_rates={
            rate: _true_match_rate(rate, readable, false_matches[0], total) for rate in FALSE_MATCH_RATES
        },
        roc=_roc_curve(positive, false_matches[0], total),
        edges=edges,
        positive_histogram=np.histogram(np.clip(readable, low, edges[-1]), edges)[0].astype(np.int64),
        negative_histogram=counts,
    )


def _true_match_rate(
    rate: float, positive: FloatVector, false_matches: IntArray, total: int
) -> tuple[float, float] | None:
    """The true-match rate at the lowest threshold whose false-match rate is at most `rate`."""
    if rate * total < ENOUGH:
        return None
    accepted = np.flatnonzero(false_matches <= rate * total)
    if not len(accepted):
        return 0.0, float(positive[-1])
    return (len(positive) - int(accepted[0])) / len(positive), float(positive[accepted[0]])


def _roc_curve(positive: FloatVector, false_matches: IntArray, total: int) -> NDArray[np.float64]:
    """False- against true-match rate at the true matches' similarities, thinned evenly in both rates' ranks."""
    n = len(positive)
    # Equal similarities are one threshold: keep the first of each run, where all of them are accepted.
    firsts = np.flatnonzero(np.append(True, np.diff(positive) > 0))[::-1]
    false, true = false_matches[firsts] / total, (n - firsts) / n
    if len(firsts) > POINTS - 2:
        kept = np.unique(np.linspace(0, len(firsts) - 1, POINTS - 2).round().astype(np.int64))
        false, true = false[kept], true[kept]
    return np.stack([np.concatenate([[0.0], false, [1.0]]), np.concatenate([[0.0], true, [1.0]])])
