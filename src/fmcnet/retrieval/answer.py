"""`Answer`: what a search returns; its probabilities, its notes, and its page, one HTML file."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timezone, tzinfo
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmcnet.data.pixels import ValueRange, range_text
from fmcnet.errors import DataError
from fmcnet.files import private_mode, write_atomically
from fmcnet.inference.calibration import Calibration, FloatVector
from fmcnet.inference.image_input import make_thumbnail
from fmcnet.names import printable
from fmcnet.retrieval.notes import mixed_note, mixed_tracks, ranges_text
from fmcnet.retrieval.records import Hit, HitGroup, Where
from fmcnet.times import shown_time
from fmcnet.types import Modality

Scored = TypeVar("Scored", Hit, HitGroup)
APPROXIMATE = "probabilities and thresholds were learnt from single images and allow for that roughly"
STYLE = """
:root{color-scheme:light dark;--back:#f4f5f7;--card:#fff;--text:#1c2128;--soft:#5c6672;--line:#dfe3e8;--bar:#2563eb}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--card:#1f242b;--text:#e8ebef;--soft:#9aa5b1;--line:#333b45;
--bar:#6ea0ff}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 40px}h1{font-size:1.35rem;margin:0 0 4px}
p{margin:4px 0}.soft{color:var(--soft);font-size:.87rem}
.query{display:flex;gap:16px;align-items:flex-start;margin-bottom:18px;flex-wrap:wrap}
.query .images{display:flex;gap:8px;flex-wrap:wrap}.query .frame{width:96px}.query div.words{flex:1 1 260px}
.no-match{border-left:4px solid #c2410c;padding:8px 12px;background:var(--card);font-weight:600}
ol{list-style:none;margin:0;padding:0;display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(158px,1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.frame{aspect-ratio:1/2;background:var(--line);display:flex;align-items:center;justify-content:center;
border-radius:6px;overflow:hidden}li .frame{border-radius:0}
.frame img{width:100%;height:100%;object-fit:contain}.frame span{color:var(--soft);font-size:.8rem;padding:8px;
text-align:center}.facts{padding:8px 10px 10px}.facts b{font-size:1.02rem}
.meter{height:5px;border-radius:3px;background:var(--line);margin:5px 0 6px;overflow:hidden}
.meter i{display:block;height:100%;background:var(--bar)}.facts p{margin:0;overflow-wrap:anywhere}
@media(max-width:430px){ol{grid-template-columns:1fr 1fr;gap:8px}main{padding:14px 10px 30px}}
"""


@dataclass(frozen=True)
class Answer:
    """The result of a search.

    Attributes:
        hits: most similar first; when grouped, the best hit of each group, with the similarity and probability of
            the group, in the groups' order.
        groups: the groups, in the same order; empty when not grouped.
        no_match: `hits` is empty: no entry reaches the least probability or false-match rate that was asked for, or
            there was no entry to compare with.
        modality: of the query; None: images of both modalities were pooled.
        images: how many images made the query.
        compared: how many entries it was compared with.
        prior: probability before comparing; None: there are no probabilities.
        thresholds: the least similarity asked for, of single images (pooled ones need more), by entry's modality.
        notes: for the reader, one sentence each.
    """

    hits: tuple[Hit, ...]
    groups: tuple[HitGroup, ...]
    no_match: bool
    modality: Modality | None
    images: int
    compared: int
    prior: float | None
    thresholds: dict[Modality, float]
    notes: tuple[str, ...] = ()

    @property
    def ranking(self) -> list[tuple[Hit, int]]:
        """Hits to show, best first, with the ranking similarity and the number of images."""
        sizes = [group.size for group in self.groups] or [1] * len(self.hits)
        return list(zip(self.hits, sizes, strict=True))

    @property
    def order(self) -> str:
        """Why a less probable hit stands above a more probable one; "" where none does."""
        probabilities = [hit.probability for hit, _ in self.ranking if hit.probability is not None]
        if not any(later > earlier for earlier, later in pairwise(probabilities)):
            return ""
        pooled = self.images > 1 or any(group.pooled > 1 for group in self.groups)
        pooling = ", and pooling raises similarities" if pooled else ""
        return (
            f"ranked by similarity: visible and infrared entries have their own calibrations{pooling}, so a less "
            "probable entry may stand above a more probable one"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "nobody": self.no_match,
            "hits": [hit.to_dict() for hit in self.hits],
            "groups": [group.to_dict() for group in self.groups],
            "query": {"modality": str(self.modality or "both"), "images": self.images},
            "compared": self.compared,
            "prior": self.prior,
            "thresholds": {str(modality): value for modality, value in self.thresholds.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class CalibratedScores:
    """A calibration applied to one query.

    A query of both modalities has two curves to an entry; it takes the more cautious one: the smaller
    probability, the higher threshold.

    Attributes:
        calibration: the encoder's; None: there is none.
        query: modalities of the query's images.
        prior: probability, before comparing, that an entry shows the query's person.
        images: how many the query was pooled from.
        length: of the mean of their unit embeddings.
    """

    calibration: Calibration | None
    query: Sequence[Modality]
    prior: float = 0.5
    images: int = 1
    length: float = 1.0

    def covers(self, entry: Modality) -> bool:
        """Whether a similarity to such an entry can be translated."""
        calibration = self.calibration
        return calibration is not None and all(calibration.covers(modality, entry) for modality in self.query)

    def with_probabilities(self, found: Sequence[Scored]) -> list[Scored]:
        """The same, in order, with probabilities; None where `covers` is False."""
        scored = list(found)
        for entry in filter(self.covers, Modality):
            assert self.calibration is not None
            rows, singles = self._of_single_images(found, entry)
            curves = [
                self.calibration.probability(similarity, modality, entry, prior=self.prior)
                for modality, similarity in zip(self.query, singles, strict=True)
            ]
            for row, probability in zip(rows, np.min(curves, axis=0).tolist(), strict=True):
                scored[row] = replace(scored[row], probability=probability)
        return scored

    def threshold(self, entry: Modality, fmr: float) -> float:
        """The least similarity of single images, with such an entry, which `covers` allows."""
        assert self.calibration is not None
        return max(self.calibration.threshold(modality, entry, fmr=fmr) for modality in self.query)

    def reaching(self, found: Sequence[HitGroup], thresholds: Mapping[Modality, float]) -> list[HitGroup]:
        """Those that reach the threshold of their modality, which `threshold` gave."""
        below = set[int]()
        for entry, least in thresholds.items():
            rows, singles = self._of_single_images(found, entry)
            below.update(np.array(rows, int)[np.min(singles, axis=0) < least].tolist())
        return [result for row, result in enumerate(found) if row not in below]

    def _of_single_images(
        self, found: Sequence[Hit | HitGroup], entry: Modality
    ) -> tuple[list[int], list[FloatVector]]:
        """Rows of results of one modality; by modality of the query, their similarities as those of single images.

        Ours. The unit embedding of an image is what all persons have in common, of squared length c, and a rest.
        Averaging keeps the former and shortens the rest, so all cosines grow. Here the rest gets back its length.
        """
        assert self.calibration is not None
        rows = [row for row, result in enumerate(found) if result.modality is entry]
        results = [found[row] for row in rows]
        cosines = np.array([one.similarity for one in results], dtype=np.float64)
        pooled = [(one.pooled, one.length) if isinstance(one, HitGroup) else (1, 1.0) for one in results]
        images, lengths = np.array(pooled, dtype=np.float64).reshape(-1, 2).T
        pairs = cosines * self.length * lengths  # mean cosine of all pairs of single images
        curves, singles = self.calibration.curves, list[FloatVector]()
        for modality in self.query:
            curve = self.calibration.curve(modality, entry)
            c_query = curves.get((modality, modality), curve).common
            c_entry = curves.get((entry, entry), curve).common
            left = _rest_left(np.array(self.length), np.array(self.images), c_query)
            left = np.sqrt(left * _rest_left(lengths, images, c_entry))
            singles.append(np.minimum(cosines, curve.common + (pairs - curve.common) / left))
        return rows, singles


def _rest_left(length: FloatVector, images: FloatVector, common: float) -> FloatVector:
    """The share of the rest's squared length that the mean of so many images, of this length, still has."""
    return np.maximum((length**2 - common) / (1.0 - common), 1.0 / np.maximum(images, 1))


def answer_notes(
    scores: CalibratedScores,
    candidates: Sequence[HitGroup],
    found: Sequence[HitGroup],
    asked: bool,
    group: str | None,
    where: Where | None,
    model: Path | None,
) -> list[str]:
    """The notes of an answer.

    Args:
        scores: the calibration, applied to the query.
        candidates: all hits, each alone, or tracks, best first.
        found: those that reach the thresholds, grouped.
        asked: a least probability or a false-match rate was given.
        group: "track", "pid", or None.
        where: the filter.
        model: the folder of the encoder, where it has one.
    """
    notes: list[str] = []
    if scores.calibration is None:
        notes.append(
            "no probabilities: this model is not calibrated; make a calibration with fmcnet calibrate "
            f"{model or 'RUN'} --data TABLE"
        )
    else:
        query = " and ".join(str(modality) for modality in scores.query)
        for modality in (where or Where()).modalities:
            reason = f"{query} to {modality} is not calibrated"
            if asked and not scores.covers(modality):
                notes.append(f"{modality} entries were left out: {reason}")
            elif not scores.covers(modality) and any(item.modality is modality for item in candidates):
                notes.append(f"no probability for {modality} entries: {reason}")
        if any(hit_group.pooled > 1 for hit_group in (found or candidates[:1])):
            notes.append(f"the images of each track were pooled; {APPROXIMATE}")
        if len(scores.query) > 1:
            notes.append("the query has both modalities: the more cautious of two calibrations is shown")
    if scores.images > 1:
        caveat = "" if scores.calibration is None else f"; {APPROXIMATE}"
        notes.append(f"{scores.images} images were taken as ONE person and pooled{caveat}")
    if group and found and all(hit_group.key is None for hit_group in found):
        notes.append("no entry found has what it was to be grouped by, so each is a group of its own")
    if group == "track" and (mixed := mixed_tracks(hit for hit_group in found for hit in hit_group.hits)):
        notes.append(mixed_note(mixed, "each is answered as one"))
    if asked and not found and candidates:
        best = candidates[0]
        noun = "track" if group == "track" else "entry"
        probability = "" if best.probability is None else f", probability {best.probability:.3g}"
        notes.append(
            f"no match: no {noun} reaches what was asked for; the nearest {noun} has similarity "
            f"{best.similarity:.3f}{probability}"
        )
    return notes


def query_range_notes(
    ranges: Sequence[ValueRange | None], used: Iterable[ValueRange | None]
) -> Iterator[str]:
    """A note on queries encoded with a range that no image of a gallery of these ranges has."""
    for bounds in dict.fromkeys(used):
        if ranges and bounds not in ranges:
            yield (
                f"the value range {range_text(bounds)} of the query is not that of the gallery's images "
                f"({ranges_text(ranges)}): the same person is not equally bright in both"
            )


def write_page(
    path: str | Path,
    answer: Answer,
    query: Sequence[str | Path],
    thumbnails: Mapping[str, bytes | None],
    zone: tzinfo = timezone.utc,
) -> Path:
    """Write the page atomically: one file, which loads nothing from elsewhere.

    Args:
        path: the .html file.
        answer: to show.
        query: paths of the query's images.
        thumbnails: `Gallery.thumbnail` of each hit, by id. Where it is None, one is made of the hit's source; where
            that cannot be read, a placeholder stands.
        zone: of the times shown.
    """
    modality = str(answer.modality or "visible and infrared")
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in answer.notes)
    no_match = (
        '<p class="no-match">No match: no entry reaches the probability or false-match rate asked for.</p>'
        if answer.no_match and answer.compared
        else ""
    )
    cards = "".join(
        _card(rank, hit, size, thumbnails.get(hit.id), zone)
        for rank, (hit, size) in enumerate(answer.ranking, 1)
    )
    prior = (
        ""
        if answer.prior is None
        else f'<p class="soft">Probabilities of "same person" start from a prior of {answer.prior:.3g}.</p>'
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>fmcnet search</title><style>{STYLE}</style></head><body><main>"
        f'<section class="query"><div class="images">{"".join(_frame(str(path), "query") for path in query)}</div>'
        f'<div class="words"><h1>Who is this?</h1><p>{answer.images} {modality} image{"s" * (answer.images > 1)}, '
        f"compared with {answer.compared:,} entries.</p>{prior}{notes}"
        '<p class="soft">A similarity is no proof of identity: a person has to look.</p></div></section>'
        f"{no_match}<ol>{cards}</ol></main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(
        path, lambda target: target.write_text(page, encoding="utf-8"), private_mode(path.parent)
    )


def _card(rank: int, hit: Hit, size: int, thumbnail: bytes | None, zone: tzinfo) -> str:
    probability = "" if hit.probability is None else f"{hit.probability:.1%}"
    score = hit.similarity if hit.probability is None else hit.probability
    facts = [
        f"similarity {hit.similarity:.3f}",
        str(hit.modality),
        "" if hit.camera is None else f"camera {hit.camera}",
        shown_time(hit.time, zone),
        "" if hit.pid is None else f"person {hit.pid}",
        "" if hit.track is None else f"track {hit.track}",
        "" if size == 1 else f"{size} images",
    ]
    lines = "".join(f'<p class="soft">{escape(printable(fact))}</p>' for fact in facts if fact)
    return (
        f'<li>{_frame(hit.source, f"rank {rank}", thumbnail)}<div class="facts"><b>{rank}. {probability}</b>'
        f'<div class="meter"><i style="width:{100 * min(max(score, 0.0), 1.0):.1f}%"></i></div>{lines}</div></li>'
    )


def _frame(source: str | None, name: str, thumbnail: bytes | None = None) -> str:
    """HTML of the gallery's thumbnail, else one of the source, else a placeholder."""
    if thumbnail is None and source is not None:
        with contextlib.suppress(DataError):
            thumbnail = make_thumbnail(source)
    content = "<span>image not at hand</span>"
    if thumbnail:
        data = base64.b64encode(thumbnail).decode("ascii")
        content = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
    return f'<div class="frame" title="{escape(printable(source or ""))}">{content}</div>'
