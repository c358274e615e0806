"""`Answer`: what a search returns, with calibrated scores and notes for the reader; and its page, which shows it.

The page is one self-contained HTML file: the query, ranked pictures, how sure; no request goes out of it.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timezone, tzinfo
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmcnet.data.images import open_rgb, to_rgb
from fmcnet.data.pixels import ValueRange
from fmcnet.errors import DataError, FmcnetError
from fmcnet.files import private_mode, write_atomically
from fmcnet.names import printable
from fmcnet.retrieval.records import Hit, HitGroup
from fmcnet.retrieval.times import shown_time
from fmcnet.types import Modality

THUMBNAIL = (192, 384)
"""Most width and height of a small picture, pixels."""
STYLE = """
:root{color-scheme:light dark;--back:#f4f5f7;--card:#fff;--text:#1c2128;--soft:#5c6672;--line:#dfe3e8;--bar:#2563eb}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--card:#1f242b;--text:#e8ebef;--soft:#9aa5b1;--line:#333b45;
--bar:#6ea0ff}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 40px}h1{font-size:1.35rem;margin:0 0 4px}
p{margin:4px 0}.soft{color:var(--soft);font-size:.87rem}
.query{display:flex;gap:16px;align-items:flex-start;margin-bottom:18px;flex-wrap:wrap}
.query .pictures{display:flex;gap:8px;flex-wrap:wrap}.query .frame{width:96px}.query div.words{flex:1 1 260px}
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
    """Who it may be.

    Attributes:
        hits: most similar first; when grouped, the best hit of each group, in the groups' order.
        groups: the groups, in the same order; empty when not grouped.
        no_match: `hits` is empty: no entry reaches the least probability or false-match rate that was asked for, or
            there was no entry to compare with.
        modality: of the query; None: images of both modalities were pooled.
        images: how many images made the query.
        compared: how many entries it was compared with.
        prior: what probabilities start from; None: there are none.
        thresholds: the least similarity asked for, by the entry's modality; empty when none was asked for.
        notes: what a person should know of this answer, sentences.
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
        """What to show, best first: hits with what ranks them, and how many pictures that is of."""
        if not self.groups:
            return [(hit, 1) for hit in self.hits]
        return [
            (replace(one.best, similarity=one.similarity, probability=one.probability), one.size)
            for one in self.groups
        ]

    @property
    def order(self) -> str:
        """Why a less probable hit stands above a more probable one; "" where none does."""
        sure = [hit.probability for hit, _ in self.ranking if hit.probability is not None]
        if not any(later > earlier for earlier, later in pairwise(sure)):
            return ""
        return (
            "ranked by similarity: visible and infrared entries have their own calibrations, so a less probable "
            "entry may stand above a more probable one"
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
            "thresholds": {str(kind): value for kind, value in self.thresholds.items()},
            "notes": list(self.notes),
        }


def write_page(
    path: str | Path,
    answer: Answer,
    query: Sequence[str | Path],
    stored: Callable[[str], bytes | None] = lambda _: None,
    zone: tzinfo = timezone.utc,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the .html file.
        answer: to show.
        query: paths of the query's pictures.
        stored: as `Gallery.picture`. Where it returns None, the picture is read from its source. A picture that
            cannot be read becomes a placeholder.
        zone: of the times shown.
    """
    kind = str(answer.modality or "visible and infrared")
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in answer.notes)
    no_match = (
        '<p class="no-match">No match: no entry reaches the probability or false-match rate asked for.</p>'
        if answer.no_match and answer.compared
        else ""
    )
    cards = "".join(
        _card(rank, hit, size, stored(hit.id), zone) for rank, (hit, size) in enumerate(answer.ranking, 1)
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
        f'<section class="query"><div class="pictures">{"".join(_frame(str(p), "query") for p in query)}</div>'
        f'<div class="words"><h1>Who is this?</h1><p>{answer.images} {kind} picture{"s" * (answer.images > 1)}, '
        f"compared with {answer.compared:,} entries.</p>{prior}{notes}"
        '<p class="soft">A similarity is no proof of identity: a person has to look.</p></div></section>'
        f"{no_match}<ol>{cards}</ol></main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, lambda at: at.write_text(page, encoding="utf-8"), private_mode(path.parent))


def _card(rank: int, hit: Hit, size: int, picture: bytes | None, zone: tzinfo) -> str:
    sure = "" if hit.probability is None else f"{hit.probability:.1%}"
    share = hit.similarity if hit.probability is None else hit.probability
    facts = [
        f"similarity {hit.similarity:.3f}",
        str(hit.modality),
        "" if hit.camera is None else f"camera {hit.camera}",
        shown_time(hit.time, zone, name=True),
        "" if hit.pid is None else f"person {hit.pid}",
        "" if hit.track is None else f"track {hit.track}",
        "" if size == 1 else f"{size} pictures",
    ]
    lines = "".join(f'<p class="soft">{escape(printable(fact))}</p>' for fact in facts if fact)
    return (
        f'<li>{_frame(hit.source, f"rank {rank}", picture)}<div class="facts"><b>{rank}. {sure}</b>'
        f'<div class="meter"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div>{lines}</div></li>'
    )


def _frame(source: str | None, name: str, picture: bytes | None = None) -> str:
    """The picture that the gallery keeps, or the one of the source, or words in its place."""
    if picture is None and source is not None:
        with contextlib.suppress(DataError):
            picture = thumbnail(source)
    inside = "<span>picture not at hand</span>"
    if picture:
        data = base64.b64encode(picture).decode("ascii")
        inside = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
    return f'<div class="frame" title="{escape(printable(source or ""))}">{inside}</div>'


def thumbnail(source: Any, value_range: ValueRange | None = None, size: tuple[int, int] = THUMBNAIL) -> bytes:
    """A JPEG of at most `size`, without metadata, of a path, a Pillow image or an (H, W, 3) uint8 array.

    Raises:
        DataError: when it cannot be read. FmcnetError: for anything else.
    """
    if isinstance(source, (str, Path)):
        image = open_rgb(source, value_range)
    elif isinstance(source, Image.Image):
        image = to_rgb(source, value_range).copy()
    elif isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3:
        image = Image.fromarray(source).convert("RGB")
    else:
        raise FmcnetError(
            f"keep_images takes paths, Pillow images and uint8 arrays, not {type(source).__name__}"
        )
    image.thumbnail(size)
    out = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(out, "JPEG", quality=85)
    return out.getvalue()
