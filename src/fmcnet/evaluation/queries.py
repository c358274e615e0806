"""What a protocol says of each single probe: the material of paired comparisons between two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmcnet.evaluation.passes import rank_trials
from fmcnet.evaluation.protocols import Protocol
from fmcnet.types import BoolArray, Embeddings, IntArray


@dataclass(frozen=True)
class QueryScores:
    """Scores of the probes that are counted in at least one trial, in ascending order of row.

    Attributes:
        row: (Q,) int64, position among the embeddings.
        ap: (Q,) float64, average precision, mean over the trials in which the probe is counted, 0..1.
        hit: (Q,) float64, share of those trials whose first answer is right, 0..1.
    """

    row: IntArray
    ap: NDArray[np.float64]
    hit: NDArray[np.float64]


def query_scores(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    distance: str = "cosine",
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> QueryScores:
    """Rank every probe in every trial and average over its trials.

    Two models on the same images have the same probes and gallery draws, so their scores pair up. Where each
    probe is counted in every trial, as in all public protocols, the means are the engine's mAP and Rank-1.

    Arguments and errors as `evaluation.engine.evaluate`.
    """
    trials = protocol.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask)
    trials_of, ap, hit = (np.zeros(len(embeddings)) for _ in range(3))
    groups: dict[bytes, list[int]] = {}
    for number, (query, _) in enumerate(trials):
        groups.setdefault(query.tobytes(), []).append(number)
    for members in groups.values():
        ranked, _ = rank_trials(embeddings, [trials[t] for t in members], protocol.skip, distance=distance)
        query = trials[members[0]][0]
        for ranks in ranked:
            counted = ranks.matches > 0
            first = ranks.first_identity if protocol.cmc == "identity" else ranks.first_image
            trials_of[query] += counted
            ap[query] += np.where(counted, ranks.ap, 0.0)
            hit[query] += counted & (first == 1)
    rows = np.flatnonzero(trials_of)
    return QueryScores(rows, ap[rows] / trials_of[rows], hit[rows] / trials_of[rows])
