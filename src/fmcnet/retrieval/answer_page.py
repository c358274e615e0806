"""The page of an answer: the ranked images, in one HTML file that loads nothing."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from datetime import timezone, tzinfo
from html import escape
from pathlib import Path
from string import Template

from fmcnet.errors import DataError
from fmcnet.files import file_digest, private_mode, write_atomically
from fmcnet.inference.image_input import make_thumbnail
from fmcnet.names import printable
from fmcnet.retrieval.answer import Answer
from fmcnet.retrieval.file_records import CHANGED, FileRecord
from fmcnet.retrieval.records import Hit
from fmcnet.times import shown_time


def write_page(
    path: str | Path,
    answer: Answer,
    query: Sequence[str | Path],
    thumbnails: Mapping[str, bytes | None],
    records: Mapping[str, FileRecord],
    zone: tzinfo = timezone.utc,
) -> Path:
    """Write the page atomically: one file, which loads nothing from elsewhere.

    Args:
        path: the .html file.
        answer: to show.
        query: paths of the query's images.
        thumbnails: `Gallery.thumbnail` of each hit, by id. Where it is None, one is made of the hit's source; where
            that cannot be read, a placeholder stands.
        records: of the hits' files, by id. A source that differs from its record is not shown.
        zone: of the times shown.
    """
    notes = list(answer.notes)
    if answer.prior is not None:
        notes.insert(0, f'Probabilities of "same person" start from a prior of {answer.prior:.3g}.')
    no_match = (
        '<p class="no-match">No match: no entry reaches the probability or false-match rate asked for.</p>'
        if answer.no_match and answer.compared
        else ""
    )
    modality = str(answer.modality or "visible and infrared")
    template = Template(Path(__file__).with_name("answer.html").read_text(encoding="utf-8"))
    page = template.substitute(
        query="".join(_frame(str(image), "query") for image in query),
        summary=f"{answer.images} {modality} image{'s' * (answer.images > 1)}, compared with "
        f"{answer.compared:,} entries.",
        notes="".join(f'<p class="soft">{escape(note)}</p>' for note in notes),
        no_match=no_match,
        cards="".join(
            _card(rank, hit, size, thumbnails.get(hit.id), records.get(hit.id), zone)
            for rank, (hit, size) in enumerate(answer.ranking, 1)
        ),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(
        path, lambda target: target.write_text(page, encoding="utf-8"), private_mode(path.parent)
    )


def _card(
    rank: int, hit: Hit, size: int, thumbnail: bytes | None, record: FileRecord | None, zone: tzinfo
) -> str:
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
        f'<li>{_frame(hit.source, f"rank {rank}", thumbnail, record)}<div class="facts"><b>{rank}. {probability}</b>'
        f'<div class="meter"><i style="width:{100 * min(max(score, 0.0), 1.0):.1f}%"></i></div>{lines}</div></li>'
    )


def _frame(
    source: str | None, name: str, thumbnail: bytes | None = None, record: FileRecord | None = None
) -> str:
    """HTML of the gallery's thumbnail, else one of the source as it was indexed, else a placeholder."""
    missing = "image not at hand"
    if thumbnail is None and source is not None:
        with contextlib.suppress(DataError, OSError):
            made = make_thumbnail(source)
            # The digest is read last, so that a file that changes meanwhile is not shown.
            if record is None or record.path != source or file_digest(Path(source)) == record.digest:
                thumbnail = made
            else:
                missing = CHANGED
    content = f"<span>{missing}</span>"
    if thumbnail:
        data = base64.b64encode(thumbnail).decode("ascii")
        content = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
    return f'<div class="frame" title="{escape(printable(source or ""))}">{content}</div>'
