"""Ranking the true matches of all trials of one probe set, probes and candidates in blocks.

Trials share the similarities: each probe meets each candidate of any trial once. The probes go through in blocks;
when even a block of probes against all candidates is too large, the candidates go through in blocks too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcnet.evaluation.blocks import Blocks
from fmcnet.evaluation.protocols import Trial
from fmcnet.evaluation.ranking import Ranks
from fmcnet.evaluation.rules import SkipRule
from fmcnet.evaluation.similarity import Similarity
from fmcnet.types import Embeddings, IntArray

CHUNK_BYTES = 32 * 2**20
"""Bound of a block of similarities with its copies, unless told otherwise."""

GALLERY_SHARE = 4
"""Candidates stay loaded through a run when they take up to so many times the bound."""

COPIES = 4
"""Blocks of similarities alive at once, at most."""


def rank_trials(
    embeddings: Embeddings,
    trials: Sequence[Trial],
    skip: SkipRule,
    *,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[list[Ranks], str]:
    """Rank the true matches of every probe in every trial; all trials have the same probes.

    Returns:
        The ranks, a trial each, and the arithmetic used.
    """
    query = trials[0][0]
    union = np.unique(np.concatenate([gallery for _, gallery in trials]))
    union = union[np.argsort(embeddings.pid[union], kind="stable")]
    similarity = Similarity.prepare(
        embeddings,
        np.union1d(query, union) if distance == "euclidean" else union,
        distance=distance,
        device=device,
        precision=precision,
        products=len(query) * len(union) * embeddings.features.shape[1],
    )
    width = 8 if similarity.precision == "float64" else 4
    budget = max(1, chunk_bytes // (COPIES * width))
    order = _by_camera(embeddings, query)
    run = Blocks(embeddings, similarity, skip, [gallery for _, gallery in trials], query[order], budget)
    fits = budget // (len(union) + 1) >= min(len(query), 128)
    fits &= len(union) * embeddings.features.shape[1] * width <= GALLERY_SHARE * chunk_bytes
    ranked = run.one_block(union) if fits else run.many_blocks(union)
    return [one.restored(order) for one in ranked], similarity.precision


def rank_given(
    embeddings: Embeddings,
    trial: Trial,
    skip: SkipRule,
    similarities: Callable[[IntArray], NDArray[np.float64]],
    *,
    tie: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Ranks:
    """Rank a trial from similarities that somebody else computes (re-ranking, another model's scores).

    Args:
        embeddings: identities, cameras; the features are not looked at.
        trial: (query rows, gallery rows).
        skip: the rule.
        similarities: given positions (q,) in the trial's query rows, their (q, G) similarities in the order of
            the trial's gallery rows; larger is more alike.
        tie: similarities closer than this are equal.
        chunk_bytes: bound of a block.
    """
    query, gallery = trial
    columns = np.argsort(embeddings.pid[gallery], kind="stable")
    order = _by_camera(embeddings, query)
    similarity = Similarity("given", torch.float64, torch.device("cpu"), None, tie)
    run = Blocks(embeddings, similarity, skip, [gallery], query[order], max(1, chunk_bytes // (COPIES * 8)))

    def block(rows: slice, few: bool) -> Tensor:
        given = similarities(order[rows])
        full = np.full((len(given), len(gallery) + 1), -np.inf)
        full[:, :-1] = given[:, columns]
        values = torch.from_numpy(full)
        run.hide_cameras(values, query[order[rows]], gallery[columns])
        return values

    return run.dense(gallery[columns], block)[0].restored(order)


def _by_camera(embeddings: Embeddings, query: IntArray) -> IntArray:
    """The order of the probes is free: by camera and identity, a camera rule touches whole slices."""
    return np.lexsort((embeddings.pid[query], embeddings.camid[query])).astype(np.int64)
