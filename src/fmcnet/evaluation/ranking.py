"""From ranks to CMC, mAP and mINP; how ties are broken.

Ranks are counted, not sorted: the k-th best true match of a probe has rank

    k + number of other identities' images that are at least as similar.

A tie therefore counts against the probe, whatever the order of the gallery's rows: a model whose embeddings
collapse cannot score by luck of the order. Similarities that differ by less than the rounding of the
arithmetic (`Similarity.tie`) count as equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmcnet.errors import ProtocolError
from fmcnet.evaluation.results import Scores
from fmcnet.types import IntArray

CURVE = 1000
"""Longest CMC curve kept."""


@dataclass
class Ranks:
    """What ranking says of each probe of a trial; all arrays are (Q,).

    Attributes:
        matches: int64, true matches left after the skip rule; 0: the probe is not counted.
        first_image: int64, rank of the best true match among images.
        first_identity: int64, its rank among identities, each at its best image.
        ap: float64, average precision.
        inp: float64, matches / rank of the last true match.
    """

    matches: NDArray[np.int64]
    first_image: NDArray[np.int64]
    first_identity: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]

    @staticmethod
    def empty(n: int) -> Ranks:
        """Ranks of n probes, still to be filled."""
        whole = np.zeros((3, n), dtype=np.int64)
        return Ranks(whole[0], whole[1], whole[2], np.zeros(n), np.zeros(n))

    def restored(self, order: IntArray) -> Ranks:
        """The ranks of probes that were ranked in `order`, put back in their own order."""
        back = np.argsort(order, kind="stable")
        return Ranks(
            self.matches[back],
            self.first_image[back],
            self.first_identity[back],
            self.ap[back],
            self.inp[back],
        )

    def fill(
        self,
        rows: slice,
        matches: NDArray[np.int64],
        above: NDArray[np.int64],
        identities_above: NDArray[np.int64],
    ) -> None:
        """Write the probes of `rows`.

        Args:
            rows: which probes.
            matches: (q,) number of true matches left.
            above: (q, K) images of other identities at least as similar as the k-th best true match; columns from
                `matches` on are ignored.
            identities_above: (q,) other identities with an image at least as similar as the best true match.
        """
        order = np.arange(1, above.shape[1] + 1)
        ranks = order + above
        valid = order <= matches[:, None]
        number = np.maximum(matches, 1)
        self.matches[rows] = matches
        self.first_image[rows] = ranks[:, 0]
        self.first_identity[rows] = 1 + identities_above
        self.ap[rows] = np.where(valid, order / ranks, 0.0).sum(axis=1) / number
        last = np.take_along_axis(ranks, number[:, None] - 1, axis=1)[:, 0]
        self.inp[rows] = np.where(matches > 0, matches / last, 0.0)


def scores(ranks: Ranks, cmc: str, gallery: int) -> Scores:
    """The figures of a trial.

    Args:
        ranks: of its probes.
        cmc: "identity" or "image".
        gallery: number of gallery images.

    Raises:
        ProtocolError: when no probe has a true match.
    """
    counted = ranks.matches > 0
    n = int(counted.sum())
    if n == 0:
        raise ProtocolError(
            f"none of the {len(counted)} probes has a true match among the {gallery} gallery images after the skip "
            "rule: check that both sets hold the same identities, and the cameras"
        )
    first = (ranks.first_identity if cmc == "identity" else ranks.first_image)[counted]
    longest = max(20, min(int(first.max()), CURVE))
    curve = np.cumsum(np.bincount(np.minimum(first, longest + 1), minlength=longest + 2)[1 : longest + 1]) / n
    return Scores(
        rank1=float(curve[0]),
        rank5=float(curve[4]),
        rank10=float(curve[9]),
        rank20=float(curve[19]),
        mAP=float(ranks.ap[counted].mean()),
        mINP=float(ranks.inp[counted].mean()),
        queries=n,
        gallery=gallery,
        cmc=curve,
    )
