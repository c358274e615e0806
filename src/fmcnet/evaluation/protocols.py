"""Evaluation protocols as data: query and gallery sets, the draw, the skip rule and the CMC rule.

Source: shared protocols, section 2; docs/concepts/protocols.md explains the differences. What the sources leave
open is chosen here and listed in `Protocol.ours`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from fmcnet.errors import DataError, FmcnetError, ProtocolError, first_of
from fmcnet.evaluation.draws import Draw
from fmcnet.evaluation.skip_rule import SkipRule
from fmcnet.identities import identity_number, parse_identity
from fmcnet.names import nearest
from fmcnet.types import NO_PID, BoolArray, Embeddings, IntArray, Modality, parse_modality

DEFAULT_DIRECTIONS = {"sysu": "i2v", "regdb": "v2t", "llcm": "v2i"}
"""Each benchmark's default direction, that of its paper's first table."""

CmcRule = Literal["identity", "image"]

Trial: TypeAlias = tuple[IntArray, IntArray]
"""(query rows, gallery rows) among the embeddings."""

Identity: TypeAlias = tuple[int, str]
"""An identity's number, and its name in the dataset."""


@dataclass(frozen=True)
class Selection:
    """The images of a set: of one modality (None: both) and some cameras (None: all)."""

    modality: Modality | None = None
    cameras: tuple[int, ...] | None = None

    def mask(self, embeddings: Embeddings) -> BoolArray:
        """(N,) bool, the selected rows."""
        mask = np.ones(len(embeddings), dtype=bool)
        if self.modality is not None:
            mask &= embeddings.modality == self.modality.code
        if self.cameras is not None:
            mask &= np.isin(embeddings.camid, self.cameras)
        return mask

    def describe(self) -> str:
        """For example `infrared images of cameras 3, 6`."""
        images = f"{self.modality} images" if self.modality is not None else "images"
        if self.cameras is None:
            return images
        return f"{images} of camera{'s' * (len(self.cameras) > 1)} {', '.join(map(str, self.cameras))}"


@dataclass(frozen=True)
class Protocol:
    """A way to turn embeddings into numbers; two numbers compare only when their protocols are equal.

    Attributes:
        name: short, for tables.
        query: the queries.
        gallery: what is searched.
        draw: which of the drawn set's images enter each trial.
        skip: which gallery images a query skips.
        cmc: "identity" keeps each gallery identity's best image and ranks identities; "image" ranks images.
        drawn: the set the draw applies to.
        ours: choices that no source prescribes.
        given: the sets were given with the embeddings; nothing is selected or drawn.
        distractors: identities whose images are all in every gallery, and never queries.
        junk: identities whose images are left out.
        mode: of SYSU-MM01, "all" or "indoor"; else "".
        reading: of LLCM's protocol, "a", "b" or "c"; else "".
    """

    name: str
    query: Selection
    gallery: Selection
    draw: Draw = field(default_factory=Draw)
    skip: SkipRule = field(default_factory=SkipRule)
    cmc: CmcRule = "identity"
    drawn: Literal["gallery", "query"] = "gallery"
    ours: tuple[str, ...] = ()
    given: bool = False
    distractors: tuple[Identity, ...] = ()
    junk: tuple[Identity, ...] = ()
    mode: str = ""
    reading: str = ""

    def __post_init__(self) -> None:
        check_choice(self.cmc, ("image", "identity"), "CMC rule")

    def sentence(self) -> str:
        """The protocol in one sentence, as every report prints it."""
        direction = f"{self.query.describe()} searched in {self.gallery.describe()}"
        draw = self.draw.describe()
        if self.drawn == "query":
            draw += " (the draw is of the query set)"
        if self.given:
            draw = "query and gallery sets as given"
        counting = "identities (each gallery identity's best image)" if self.cmc == "identity" else "images"
        text = f"{self.name}: {direction}; {draw}; {self.skip.describe()}; CMC counts {counting}"
        if self.distractors:
            text += (
                f"; every image of the distractors {_first_names(self.distractors)} is in the gallery, "
                "none is a query"
            )
        if self.junk:
            text += f"; images of the junk identities {_first_names(self.junk)} are left out"
        if self.ours:
            text += f"; ours: {', '.join(self.ours)}"
        return text + "."

    @property
    def settings(self) -> dict[str, str | int]:
        """The protocol's settings that are not empty, by name: {"mode": "all", "shots": 1, ...}."""
        settings = {"mode": self.mode, "reading": self.reading, "shots": self.draw.shots}
        settings |= {"draw": self.draw.kind, "trials": self.draw.trials, "cmc": self.cmc}
        return {name: value for name, value in settings.items() if value}

    def as_given(self) -> Protocol:
        """The same skip and CMC rules on sets that are already selected and drawn."""
        return Protocol(
            name=f"{self.name.split()[0].rstrip(',')}'s rules",
            query=Selection(self.query.modality),
            gallery=Selection(self.gallery.modality),
            skip=self.skip,
            cmc=self.cmc,
            given=True,
            distractors=self.distractors,
            junk=self.junk,
        )

    def trials(
        self,
        embeddings: Embeddings,
        *,
        query_mask: BoolArray | None = None,
        gallery_mask: BoolArray | None = None,
    ) -> list[Trial]:
        """The trials as (query rows, gallery rows), both int64 positions in `embeddings`.

        Args:
            embeddings: all images that could take part.
            query_mask: (N,) bool; only these rows may be queries (a table's role column, say).
            gallery_mask: (N,) bool; only these rows may be searched.

        Raises:
            ProtocolError: when a set is empty, an image has no identity, the draw does not fit, no image shows a
                distractor or junk identity, or the skip rule would skip nothing because a set has no cameras or no
                image is of a pair's.
        """
        is_distractor = self._show_identities("distractors", embeddings)
        is_junk = self._show_identities("junk", embeddings)
        unknown = np.flatnonzero(embeddings.pid == NO_PID)
        if len(unknown) < max(1, len(embeddings)):
            query = self._set_rows("query", embeddings, query_mask, ~(is_distractor | is_junk))
            gallery = self._set_rows("gallery", embeddings, gallery_mask, ~is_junk)
            known_gallery = gallery[~is_distractor[gallery]]
            unknown = np.intersect1d(unknown, [*query, *known_gallery])
        if len(unknown):
            raise ProtocolError(
                f"{len(unknown)} of {len(embeddings)} embeddings have no identity and cannot be scored: embed a "
                "labelled table (embed_table), fill in pid, leave them out, or name 'unknown' among distractors or "
                "junk"
            )
        selected = self.query.mask(embeddings), self.gallery.mask(embeddings)
        self.skip.check(self.name, embeddings.camid, (query, gallery), selected)
        if self.draw.kind == "all" or self.draw.shots is None:
            return [(query, gallery)] * self.draw.trials
        if self.drawn == "query":
            return [(pick, gallery) for pick in self.draw.pick(embeddings, query)]
        distractors = gallery[is_distractor[gallery]]
        picks = self.draw.pick(embeddings, known_gallery)
        return [(query, np.concatenate([pick, distractors])) for pick in picks]

    def _show_identities(self, argument: str, embeddings: Embeddings) -> BoolArray:
        """(N,) the images of the distractors or the junk; each of these identities must have one."""
        identities: tuple[Identity, ...] = getattr(self, argument)
        for number, name in identities:
            if not (embeddings.pid == number).any():
                raise ProtocolError(f"{self.name}: {argument}: no image to be evaluated shows '{name}'")
        return np.isin(embeddings.pid, [number for number, _ in identities])

    def _set_rows(
        self, side: str, embeddings: Embeddings, mask: BoolArray | None, allowed: BoolArray
    ) -> IntArray:
        """Rows of the set `side`, "query" or "gallery", that `mask` and `allowed` select."""
        selection: Selection = getattr(self, side)
        selected = selection.mask(embeddings) & allowed
        if mask is not None:
            mask_array = np.asarray(mask)
            if mask_array.dtype != np.bool_ or mask_array.shape != (len(embeddings),):
                raise ProtocolError(
                    f"the {side} mask must hold one bool for each of the {len(embeddings)} embeddings, "
                    f"got {mask_array.dtype} of shape {mask_array.shape}"
                )
            selected &= mask_array
        rows = np.flatnonzero(selected)
        if not len(rows) and (candidates := int((selection.mask(embeddings) & allowed).sum())):
            raise ProtocolError(
                f"{self.name}: no {side} image. It takes {selection.describe()}, but the column role (the {side} "
                f"mask) lets none of these {candidates} be one: leave role empty for both, or take the other "
                "direction"
            )
        if not len(rows):
            visible = int((embeddings.modality == 0).sum())
            cameras = ", ".join(map(str, np.unique(embeddings.camid).tolist()[:20]))
            raise ProtocolError(
                f"{self.name}: no {side} image. It takes {selection.describe()}, but the {len(embeddings)} "
                f"embeddings hold {visible} visible and {len(embeddings) - visible} infrared images "
                f"of cameras {cameras or 'none'}: check modality and camera numbers"
                f"{'' if allowed.all() else '; distractors and junk are left out'}"
            )
        return rows


def _first_names(identities: tuple[Identity, ...]) -> str:
    return first_of([name for _, name in identities], 5)


def check_choice(value: Any, choices: Sequence[object], what: str = "", advice: str = "") -> Any:
    """The value of `what`; raises `ProtocolError`, with `advice` where no choice is near, if it is none of these."""
    if value not in choices:
        suggestion = nearest(value, map(str, choices)) if isinstance(value, str) else None
        hint = f": did you mean {suggestion}?" if suggestion else advice
        raise ProtocolError(f"{what} {value!r:.60} is none of {', '.join(map(str, choices))}{hint}".lstrip())
    return value


def parse_modalities(value: Modality | str | None, what: str = "") -> Modality | None:
    """The modality of a set named `what`; None for "both"; raises `ProtocolError` for anything else."""
    try:
        return None if value is None or value == "both" else parse_modality(value)
    except FmcnetError:
        check_choice(value, ("visible", "infrared", "both"), what)
        raise


def sysu(
    mode: str = "all",
    shots: int = 1,
    draw: str = "official",
    permutation: str | Path | None = None,
    trials: int = 10,
    direction: str = "i2v",
    seed: int = 0,
) -> Protocol:
    """Return the protocol of SYSU-MM01: ten trials, CMC over identities.

    Args:
        mode: "all" (gallery of cameras 1, 2, 4 and 5) or "indoor" (1 and 2). Queries are of cameras 3 and 6 in both.
        shots: gallery images per identity and camera, 1 or 10.
        draw: "official" (needs `permutation`) or "seeded" (AGW and its descendants).
        permutation: path of `rand_perm_cam.mat`, see `find_permutation`; None with the seeded draw.
        trials: number of trials, 1..10 with the official draw, 1 or more with the seeded one.
        direction: "i2v", the benchmark's; "v2i", its mirror image, not published: visible queries of the mode's
            cameras, infrared gallery of cameras 3 and 6, a camera-2 query skips camera 3.
        seed: of the first trial of a seeded draw; trial t takes `seed + t`.

    Returns:
        The protocol. A camera-3 query skips the gallery images of camera 2, which stands at the same place.

    Raises:
        ProtocolError: on an unknown option, or when the official draw lacks its file.
    """
    check_choice(mode, ("all", "indoor"), "SYSU-MM01 mode")
    check_choice(draw, ("official", "seeded"), "draw")
    check_choice(direction, ("i2v", "v2i"), "SYSU-MM01 direction")
    check_choice(shots, (1, 10), "number of shots")
    query = Selection(Modality.INFRARED, (3, 6))
    gallery = Selection(Modality.VISIBLE, (1, 2, 4, 5) if mode == "all" else (1, 2))
    pair, ours = (3, 2), tuple[str, ...]()
    if direction == "v2i":
        query, gallery, pair = gallery, query, (2, 3)
        ours = ("the direction, symmetric to the benchmark's",)
    if draw == "seeded" and shots > 1:
        ours += ("random.sample for more than one shot",)
    return Protocol(
        name=f"SYSU-MM01 {mode}-search, {'single' if shots == 1 else 'multi'}-shot",
        query=query,
        gallery=gallery,
        draw=Draw(
            "official" if draw == "official" else "seeded",
            shots=shots,
            trials=trials,
            seed=seed,
            permutation=Path(permutation) if permutation is not None and draw == "official" else None,
        ),
        skip=SkipRule("camera_pairs", (pair,), partial=True),
        mode=mode,
        ours=ours,
    )


def regdb(direction: str = "v2t", cmc: str = "image") -> Protocol:
    """Return the protocol of one RegDB split: all against all, no camera rule, one trial.

    Ten splits are ten models; `pool` joins their evaluations.

    Args:
        direction: "v2t" (visible queries, thermal gallery) or "t2v".
        cmc: "image" (AGW, DEEN, PMT) or "identity" (MPANet and its descendants); only R5, R10 and R20 differ.

    Returns:
        The protocol.

    Raises:
        ProtocolError: on an unknown option.
    """
    check_choice(direction, ("v2t", "t2v"), "RegDB direction")
    query_modality = Modality.VISIBLE if direction == "v2t" else Modality.INFRARED
    return Protocol(
        name=f"RegDB {'visible to thermal' if direction == 'v2t' else 'thermal to visible'}",
        query=Selection(query_modality),
        gallery=Selection(query_modality.other),
        cmc=cmc,  # type: ignore[arg-type]  # checked on construction
    )


def llcm(reading: str = "a", direction: str = "v2i", trials: int = 10, seed: int = 0) -> Protocol:
    """Return the protocol of LLCM, in one of the three readings that circulate.

    Args:
        reading: "a", the paper's: every test image of one modality searched in one random image per identity and
            camera of the other; "b", the released test script's: as (a) from infrared to visible, but visible to
            infrared swaps those two sets (one random visible image per identity and camera searched in every
            infrared image); "c": all against all, nothing skipped, one trial.
        direction: "v2i" or "i2v".
        trials: number of trials of the seeded draw, 1 or more; the paper's ten.
        seed: of the first trial; `random.seed(seed + trial)` and `random.choice` over the sorted names.

    Returns:
        The protocol. In readings "a" and "b" a query skips its own identity's images of its own camera.

    Raises:
        ProtocolError: on an unknown option.
    """
    check_choice(reading, ("a", "b", "c"), "LLCM reading")
    check_choice(direction, ("v2i", "i2v"), "LLCM direction")
    query_modality = Modality.VISIBLE if direction == "v2i" else Modality.INFRARED
    title = {"a": "the paper's", "b": "the released script's", "c": "all against all"}[reading]
    arrow = "visible to infrared" if direction == "v2i" else "infrared to visible"
    all_against_all = reading == "c"
    return Protocol(
        name=f"LLCM reading {reading} ({title}), {arrow}",
        query=Selection(query_modality),
        gallery=Selection(query_modality.other),
        draw=Draw() if all_against_all else Draw("seeded", shots=1, trials=trials, seed=seed),
        skip=SkipRule() if all_against_all else SkipRule("same_identity_and_camera"),
        drawn="query" if reading == "b" and direction == "v2i" else "gallery",
        reading=reading,
        ours=("the counting of identities",)
        if all_against_all
        else ("the seeds (0, 1, ... as on SYSU-MM01)",),
    )


def across(name: str, direction: str = "i2v") -> Protocol:
    """All images of one modality searched in all of the other; nothing is skipped (`evaluate`'s protocol of a CSV).

    Args:
        name: of the dataset, for reports.
        direction: "i2v" (infrared queries, visible gallery) or "v2i"; `ProtocolError` for another.
    """
    check_choice(direction, ("i2v", "v2i"), "direction")
    query = Modality.INFRARED if direction == "i2v" else Modality.VISIBLE
    return custom(query, query.other, name=f"{name}, {direction}")


def custom(
    query: Modality | str | None = Modality.INFRARED,
    gallery: Modality | str | None = Modality.VISIBLE,
    *,
    skip: str | Iterable[tuple[int, int]] | SkipRule | None = None,
    shots: int | None = None,
    trials: int = 1,
    seed: int = 0,
    cmc: str = "image",
    name: str = "custom",
    distractors: int | str | Iterable[int | str | Identity] = (),
    junk: int | str | Iterable[int | str | Identity] = (),
) -> Protocol:
    """Return a protocol for your own data; `fmcnet.evaluation.protocol_file` reads one from YAML.

    An image that is a query and in the gallery is never its own match.

    Args:
        query: modality of the queries; "both" or None takes both.
        gallery: modality of the gallery; "both" or None takes both.
        skip: None, "same_identity_and_camera", "same_camera", or pairs (query camera, gallery camera). Images
            without a camera skip nothing; a set of such images only is refused.
        shots: gallery images per identity and camera, drawn by `random.seed(seed + trial)`; None takes all.
        trials: number of trials, 1 or more; above 1 only with `shots`.
        seed: of the first trial, 0 or more.
        cmc: "image" or "identity".
        name: the protocol's name in reports.
        distractors: identities (texts, numbers, or pairs of number and name) that are only in the gallery, with all
            their images whatever the draw; "unknown" means images without an identity.
        junk: identities that take no part.

    Returns:
        The protocol.

    Raises:
        ProtocolError: on an unknown option, an invalid identity, or one that is both a distractor and junk.
    """
    only_gallery = _named_argument("distractors", distractors)
    left_out = _named_argument("junk", junk)
    junk_numbers = {number for number, _ in left_out}
    conflicting = [name for number, name in only_gallery if number in junk_numbers]
    if conflicting:
        raise ProtocolError(f"identity {conflicting[0]} is a distractor and junk: give it once")
    draw = Draw("seeded", shots=shots, trials=trials, seed=seed)
    if shots is None and trials != 1:
        raise ProtocolError(
            f"trials={trials} without shots would repeat the same trial: give shots or trials=1"
        )
    return Protocol(
        name=name,
        query=Selection(parse_modalities(query, "query")),
        gallery=Selection(parse_modalities(gallery, "gallery")),
        draw=Draw() if shots is None else draw,
        skip=SkipRule.of(skip),
        cmc=cmc,  # type: ignore[arg-type]  # checked on construction
        distractors=only_gallery,
        junk=left_out,
    )


def named_identities(entries: Iterable[object]) -> tuple[Identity, ...]:
    """Number and name of each identity: a text, a number, or a pair of number and name.

    Raises:
        ProtocolError: for an entry that is no identity.
    """
    identities: list[Identity] = []
    for entry in entries:
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], Integral):
            identities.append((int(entry[0]), str(entry[1])))
            continue
        try:
            if entry is None or entry == "":
                raise DataError("write unknown for images without an identity")
            name = parse_identity(entry)
        except DataError as error:
            raise ProtocolError(f"{entry!r:.60} is no identity: {error}") from error
        identities.append((NO_PID, "unknown") if name is None else (identity_number(name), str(entry)))
    return tuple(dict.fromkeys(identities))


def _named_argument(argument: str, value: object) -> tuple[Identity, ...]:
    """Identities of an argument that holds one or several; none for None."""
    if value is None:
        return ()
    value = np.atleast_1d(value).tolist() if isinstance(value, np.ndarray) else value
    entries = value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]
    try:
        return named_identities(entries)
    except ProtocolError as error:
        raise ProtocolError(f"{argument}: {error}") from error
