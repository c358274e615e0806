"""The same-camera rule: which gallery images a query skips; `fmcnet.evaluation.ranking` applies it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fmcnet.errors import ProtocolError, first_of
from fmcnet.types import NO_CAMERA, BoolArray, Embeddings, IntArray

logger = logging.getLogger(__name__)

SkipKind = Literal["none", "same_identity_and_camera", "same_camera", "camera_pairs"]


@dataclass(frozen=True)
class SkipRule:
    """Which gallery images a query skips.

    A camera rule never applies to an image whose camera is not known (`NO_CAMERA`). Whatever the rule, an
    image that is in both sets is never its own match.

    """

    # "none"; "same_identity_and_camera" (the single-modality and LLCM rule); "same_camera" (every identity);
    # "camera_pairs" (SYSU-MM01's rule: every gallery image of a camera that is paired with the query's)
    kind: SkipKind = "none"
    pairs: tuple[tuple[int, int], ...] = ()  # for "camera_pairs": (query camera, gallery camera)
    partial: bool = False  # the images may lack cameras of `pairs`, as a part of SYSU-MM01 does

    def __post_init__(self) -> None:
        if self.kind not in get_args(SkipKind):
            choices = "none, same_camera, same_identity_and_camera or pairs of cameras"
            raise ProtocolError(f"unknown skip rule '{self.kind}': use {choices}")
        if (self.kind == "camera_pairs") != bool(self.pairs):
            raise ProtocolError(
                "the skip rule 'camera_pairs' goes with a list of (query camera, gallery camera)"
            )

    @staticmethod
    def of(rule: str | Iterable[tuple[int, int]] | SkipRule | None) -> SkipRule:
        """A rule from its name, from pairs of cameras, or from None (skip nothing).

        Raises:
            ProtocolError: for anything else.
        """
        if isinstance(rule, SkipRule):
            return rule
        if rule is None:
            return SkipRule()
        if isinstance(rule, str):
            return SkipRule(kind=rule)  # type: ignore[arg-type]  # checked on construction
        try:
            pairs = [(float(query), float(gallery)) for query, gallery in rule]
        except (TypeError, ValueError):
            pairs = [(np.nan, np.nan)]
        if not all(camera.is_integer() for pair in pairs for camera in pair):
            raise ProtocolError(
                f"skip is {str(rule)!r:.60}: give a rule's name, or pairs (query camera, gallery camera) of whole "
                "numbers"
            )
        return SkipRule("camera_pairs", tuple(sorted((int(query), int(gallery)) for query, gallery in pairs)))

    @property
    def hides_others(self) -> bool:
        """Whether it hides images of other identities than the query's."""
        return self.kind in ("same_camera", "camera_pairs")

    def hidden(self, embeddings: Embeddings, query: IntArray, gallery: IntArray) -> BoolArray:
        """True where a query row skips a gallery row: by the rule, or as the same image; rows broadcast."""
        hidden: BoolArray = np.asarray(query == gallery)
        if self.kind == "none":
            return hidden
        pid, query_cam, gallery_cam = embeddings.pid, embeddings.camid[query], embeddings.camid[gallery]
        if self.kind == "camera_pairs":
            by_rule = np.zeros_like(hidden)
            for first, second in self.pairs:
                by_rule |= (query_cam == first) & (gallery_cam == second)
        else:
            by_rule = query_cam == gallery_cam
        if self.kind == "same_identity_and_camera":
            by_rule &= pid[query] == pid[gallery]
        hidden |= by_rule & (query_cam != NO_CAMERA) & (gallery_cam != NO_CAMERA)
        return hidden

    def check(
        self,
        protocol: str,
        camid: IntArray,
        rows: tuple[IntArray, IntArray],
        selected: tuple[BoolArray, BoolArray],
    ) -> None:
        """Refuse a camera rule that would be reported, but skip nothing for want of cameras.

        Args:
            protocol: its name, for messages.
            camid: (N,) the cameras of all images.
            rows: of the queries and of the gallery images.
            selected: (N,) which images the protocol takes as such, whatever the masks.

        Raises:
            ProtocolError: when a set has no cameras, a pair's camera has no image, or no pair fits the sets.
        """
        if self.kind == "none":
            return
        for side, part in zip(("query", "gallery"), rows, strict=True):
            without = int((camid[part] == NO_CAMERA).sum())
            if without == len(part):
                raise ProtocolError(
                    f"{protocol}: no {side} image has a camera, so nothing would be skipped: give cameras, or a "
                    "protocol without a skip rule"
                )
            if without:
                text = "%s: %d of %d %s images have no camera: the skip rule does not apply to them"
                logger.warning(text, protocol, without, len(part), side)
        if self.partial or not self.pairs:
            return
        known, of_query, of_gallery = (
            set(cameras.tolist()) - {NO_CAMERA} for cameras in (camid, camid[selected[0]], camid[selected[1]])
        )
        absent = {camera for pair in self.pairs for camera in pair} - known
        if absent:
            raise ProtocolError(
                f"{protocol}: skip: no image to be evaluated is of camera {min(absent)}: known are {_listed(known)}"
            )
        if not any(query in of_query and gallery in of_gallery for query, gallery in self.pairs):
            raise ProtocolError(
                f"{protocol}: skip: no pair is (query camera, gallery camera): queries are of cameras "
                f"{_listed(of_query)}, gallery images of {_listed(of_gallery)}; turn the pairs, or leave them out"
            )

    def describe(self) -> str:
        """The rule in words, as part of a protocol's sentence."""
        if self.kind == "none":
            return "no image is skipped"
        if self.kind == "same_camera":
            return "a query skips every gallery image of its own camera"
        if self.kind == "same_identity_and_camera":
            return "a query skips gallery images of its own identity and camera number"
        return ", ".join(f"a camera-{a} query skips every camera-{b} gallery image" for a, b in self.pairs)


def _listed(cameras: Iterable[int]) -> str:
    return first_of([str(camera) for camera in sorted(cameras)])
