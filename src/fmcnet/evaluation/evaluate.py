"""From embeddings to CMC, mAP and mINP, for every protocol, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcnet.errors import DataError, ProtocolError
from fmcnet.evaluation.metrics import Evaluation, scores
from fmcnet.evaluation.protocols import Protocol, Trial
from fmcnet.evaluation.ranking import CHUNK_BYTES, Ranks, rank_trials
from fmcnet.evaluation.reranking import Extra, rank_with_extras
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.types import BoolArray, Embeddings, IntArray


def evaluate(
    embeddings: Embeddings,
    protocol: Protocol,
    *,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
    extras: Sequence[Extra] = (),
) -> Evaluation:
    """Score embeddings under a protocol.

    Args:
        embeddings: each image once.
        protocol: see `protocols`.
        distance: "cosine" (of L2-normalised embeddings) or "euclidean" (of the embeddings as they are).
        device: "cpu", "cuda", ... (torch).
        precision: "float32", "float64", or "auto": float64 unless the product is large (`DOUBLE_BELOW`).
        chunk_bytes: bound of a block of similarities with its copies. It takes a few times as much beyond
            the embeddings, whatever their number (one identity with more images than fit goes over it).
        query_mask: (N,) bool, which rows may be queries.
        gallery_mask: (N,) bool, which rows may be searched.
        extras: `QueryExpansion` and `KReciprocal`, in the order of application: none unless asked for.

    Returns:
        The scores of every trial. Ties count against the query (`ranking`). With extras, the evaluation names them
        and holds the plain figure beside (`Evaluation.plain`).

    Raises:
        ProtocolError: when protocol and embeddings do not fit, or no query has a true match.
        DataError: when an embedding is all zeros and the distance is cosine.
    """
    plain = evaluate_all(
        embeddings,
        [protocol],
        distance=distance,
        device=device,
        precision=precision,
        chunk_bytes=chunk_bytes,
        query_mask=query_mask,
        gallery_mask=gallery_mask,
    )[0]
    if not extras:
        return plain
    trials = []
    for trial in protocol.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask):
        ranks = rank_with_extras(
            embeddings, trial, protocol.skip, extras, distance=distance, chunk_bytes=chunk_bytes
        )
        trials.append(scores(ranks, protocol.cmc, len(trial[1])))
    return replace(plain, trials=tuple(trials), extras=tuple(e.describe() for e in extras), plain=plain)


def evaluate_all(
    embeddings: Embeddings,
    protocols: Sequence[Protocol],
    *,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
    query_mask: BoolArray | None = None,
    gallery_mask: BoolArray | None = None,
) -> tuple[Evaluation, ...]:
    """Score embeddings under several protocols, sharing similarities where queries and skip rule are equal.

    Arguments and errors as in `evaluate`; one evaluation per protocol, in order.
    """
    ranked = _rank(
        embeddings,
        protocols,
        query_mask=query_mask,
        gallery_mask=gallery_mask,
        distance=distance,
        device=device,
        precision=precision,
        chunk_bytes=chunk_bytes,
    )
    return tuple(
        Evaluation(
            protocol=protocol.sentence(),
            distance=distance,
            precision=used,
            trials=tuple(scores(ranks, protocol.cmc, len(gallery)) for (_, gallery), ranks in trials),
            unmatched=tuple(
                tuple(str(embeddings.name[row]) or f"row {row}" for row in query[ranks.matches == 0].tolist())
                for (query, _), ranks in trials
            ),
        )
        for protocol, (trials, used) in zip(protocols, ranked, strict=True)
    )


def _rank(
    embeddings: Embeddings,
    protocols: Sequence[Protocol],
    *,
    query_mask: BoolArray | None,
    gallery_mask: BoolArray | None,
    **options: Any,
) -> list[tuple[list[tuple[Trial, Ranks]], str]]:
    """The trials of each protocol with their ranks, and the arithmetic used; `options` are those of `rank_trials`."""
    if not isinstance(embeddings, Embeddings):
        raise DataError(
            f"embeddings is of type {type(embeddings).__name__}: give fmcnet.Embeddings, which know identity, camera "
            "and modality of each row"
        )
    for one in protocols:
        if not isinstance(one, Protocol):
            raise ProtocolError(f"{one!r} is no protocol: give one of fmcnet.protocols, as protocols.sysu()")
    plans = [one.trials(embeddings, query_mask=query_mask, gallery_mask=gallery_mask) for one in protocols]
    groups: dict[tuple[bytes, SkipRule], list[tuple[int, int]]] = {}
    for p, plan in enumerate(plans):
        for t, (query, _) in enumerate(plan):
            groups.setdefault((query.tobytes(), protocols[p].skip), []).append((p, t))
    ranks: dict[tuple[int, int], Ranks] = {}
    used: dict[int, str] = {}
    for (_, skip), members in groups.items():
        found, arithmetic = rank_trials(embeddings, [plans[p][t] for p, t in members], skip, **options)
        ranks.update(zip(members, found, strict=True))
        used.update((p, arithmetic) for p, _ in members)
    return [([(trial, ranks[p, t]) for t, trial in enumerate(plan)], used[p]) for p, plan in enumerate(plans)]


@dataclass(frozen=True)
class QueryScores:
    """Scores of the queries that are counted in at least one trial, in ascending order of row.

    Attributes:
        row: (Q,) int64, position among the embeddings.
        ap: (Q,) float64, average precision, mean over the trials in which the query is counted, 0..1.
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
    """Rank every query in every trial and average over its trials.

    Two models on the same images have the same queries and gallery draws, so their scores pair up. Where each
    query is counted in every trial, as in all public protocols, the means are the mAP and Rank-1.

    Arguments and errors as `evaluate`.
    """
    [(trials, _)] = _rank(
        embeddings, [protocol], query_mask=query_mask, gallery_mask=gallery_mask, distance=distance
    )
    times, ap, hit = np.zeros((3, len(embeddings)))
    for (query, _), ranks in trials:
        counted = ranks.matches > 0
        first = ranks.first_identity if protocol.cmc == "identity" else ranks.first_image
        times[query] += counted
        ap[query] += np.where(counted, ranks.ap, 0.0)
        hit[query] += counted & (first == 1)
    rows = np.flatnonzero(times)
    return QueryScores(rows, ap[rows] / times[rows], hit[rows] / times[rows])
