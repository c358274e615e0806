"""Validation: what callers give becomes checked entries, unit vectors and changes, or a GalleryError."""

from __future__ import annotations

import logging
import secrets
import time as clock
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fmcnet.data.pixels import ValueRange
from fmcnet.errors import ConfigError, DataError, DuplicateIdError, GalleryError
from fmcnet.identities import LONGEST as LONGEST_PID
from fmcnet.identities import is_unknown, rounded_fault
from fmcnet.names import hidden_character
from fmcnet.parsing import parse_duration
from fmcnet.retrieval.records import (
    EPOCH,
    Entry,
    EntryBatch,
    GallerySettings,
    as_modality,
    as_pid,
    as_utc,
    is_nat,
)
from fmcnet.retrieval.similarity import unit_vectors
from fmcnet.times import check_clock

logger = logging.getLogger(__name__)

LONGEST = {
    "id": 256,
    "model": 256,
    "pid": LONGEST_PID,
    "camera": 256,
    "track": 256,
    "tag": 256,
    "source": 4096,
}
"""Most bytes (UTF-8) of a text."""
MOST_TAGS = 64
"""Most tags of one entry."""
LARGEST_THUMBNAIL = 2**20
"""Most bytes of a thumbnail that is kept with an entry."""


def make_batch(
    embeddings: ArrayLike,
    *,
    ids: Sequence[str] | None,
    thumbnails: Any = None,
    ranges: Sequence[ValueRange | None] = (),
    **metadata: Any,
) -> EntryBatch:
    """Entries of N embeddings.

    Args:
        embeddings: (N, D).
        ids: N texts; made up where None.
        thumbnails: as `as_thumbnails`.
        ranges: of `EntryBatch`.
        metadata: a value for each of `CHECKS`: one for all, or N of them.

    Raises:
        DuplicateIdError: when an id comes twice.
    """
    vectors = unit_vectors(embeddings, ids if isinstance(ids, (list, tuple)) else ())
    n = len(vectors)
    if isinstance(ids, str):
        raise GalleryError(f"ids must be a list of {n} texts, not one text")
    names = [new_id() for _ in range(n)] if ids is None else [as_id(v) for v in column(ids, n, "ids")]
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise DuplicateIdError(f"id '{duplicates[0]}' comes twice in this batch: ids must be unique")
    columns = {"id": names}
    for name, value in metadata.items():
        values = tag_column(value, n) if name == "tags" else column(value, n, name)
        columns[name] = [CHECKS[name](item) for item in values]
    entries = (Entry(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
    return EntryBatch(tuple(entries), vectors, as_thumbnails(thumbnails, n), tuple(dict.fromkeys(ranges)))


def as_thumbnails(value: Any, n: int) -> tuple[bytes | None, ...]:
    """N encoded images or None, or nothing at all."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or len(value) != n:
        raise GalleryError(
            f"thumbnails must be a list of {n}, the bytes of an image file or None for each embedding"
        )
    for row, data in enumerate(value):
        if data is not None and not (isinstance(data, bytes) and 0 < len(data) <= LARGEST_THUMBNAIL):
            raise GalleryError(
                f"thumbnail {row} must be bytes, 1 to {LARGEST_THUMBNAIL:,} of them: keep a small JPEG"
            )
    return tuple(value)


def column(value: Any, n: int, name: str) -> list[Any]:
    """N values of one value for all, or of N of them."""
    if value is None or isinstance(value, (str, bytes, int, float, np.generic, datetime, PurePath)):
        return [value] * n
    if isinstance(value, (set, frozenset, Mapping)):
        fault = "a dict" if isinstance(value, Mapping) else "a set, which has no order"
        raise GalleryError(f"'{name}' is {fault}: give a list of {n} values")
    values = _as_list(value, name)
    if len(values) != n:
        raise GalleryError(f"'{name}' has {len(values)} values for {n} embeddings: give one for all, or {n}")
    return values


def _as_list(value: Any, name: str) -> list[Any]:
    try:
        return list(value)
    except TypeError as error:
        raise GalleryError(f"'{name}' must be one value or a list of them, not {value!r}") from error


def tag_column(value: Any, n: int) -> list[Any]:
    """Texts are the tags of all; N collections are one a row."""
    if isinstance(value, str):
        raise GalleryError(f"tags={value!r}: give a list, as tags=[{value!r}]")
    values = [] if value is None else _as_list(value, "tags")
    if not all(isinstance(tag, str) for tag in values):
        return column(value if isinstance(value, (set, frozenset)) else values, n, "tags")
    if n == len(values) > 1:
        logger.warning("tags: each of the %d entries gets all %d tags; for one each give %d lists", n, n, n)
    return [values] * n


def text(value: object, what: str, *, stored: bool = False) -> str:
    """A non-empty text within `LONGEST`, without hidden characters.

    Args:
        value: to check.
        what: a key of `LONGEST`.
        stored: of an entry that 0.1.0 may have written, which accepted hidden characters except NUL.
    """
    if not isinstance(value, str):
        raise GalleryError(f"{what} must be a text, not {value!r}")
    value = str.__str__(value)  # numpy's str_ and an enum's text become plain ones
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise GalleryError(f"{what} {value!r} is not valid Unicode") from error
    if not value or "\0" in value:
        raise GalleryError(f"{what} {value!r} must not be empty or hold NUL")
    if size > LONGEST[what]:
        raise GalleryError(f"{what} '{value[:40]}...' has {size} bytes, more than {LONGEST[what]}")
    hidden = "" if stored else hidden_character(value)
    if hidden:
        raise GalleryError(
            f"{what} {value[:80]!r} holds U+{ord(hidden):04X}, a control character, line break or invisible "
            "character: remove it"
        )
    return value


def as_id(value: object, *, stored: bool = False) -> str:
    """A `text` that an address can name: without . or .. between slashes.

    Clients and proxies resolve /a/../b to /b before they send it, and so would ask for another entry.
    """
    entry_id = text(value, "id", stored=stored)
    if not {".", ".."}.isdisjoint(entry_id.split("/")):
        raise GalleryError(f"id {entry_id!r} has . or .. as a part: no address could name it, choose another")
    return entry_id


def optional_text(value: object, what: str) -> str | None:
    """`text`, or None; also for a camera or track that is written as unknown (`is_unknown`), as "-1" or "nan".

    A camera or track that a spreadsheet rounded, as 1.7E+10, is refused.
    """
    found = None if value is None else text(value, what)
    if not found or what not in ("camera", "track"):
        return found
    if fault := rounded_fault(found, what):
        raise GalleryError(fault)
    return None if is_unknown(found) else found


def as_tags(value: Collection[object] | None) -> tuple[str, ...]:
    """Sorted, each once."""
    if isinstance(value, str):
        raise GalleryError(f"tags must be a list of texts, not the text {value!r}")
    try:
        tags = sorted({text(tag, "tag") for tag in value or ()})
    except TypeError as error:
        raise GalleryError(f"tags must be a list of texts, not {value!r}") from error
    if len(tags) > MOST_TAGS:
        raise GalleryError(f"{len(tags)} tags on one entry; at most {MOST_TAGS}")
    return tuple(tags)


def new_id() -> str:
    """32 hexadecimal digits: milliseconds since 1970, then 80 random bits; later ones sort later."""
    return f"{clock.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def check_settings(stored: GallerySettings, dimension: int, model: str | None, location: str) -> None:
    """Refuse embeddings of another dimension or another model."""
    if model is not None and model != stored.model:
        raise GalleryError(
            f"{location} holds embeddings of model '{stored.model}', these are of '{model}': similarities between "
            "models mean nothing; use the same weights, or another gallery"
        )
    if dimension != stored.dimension:
        raise GalleryError(
            f"{location} holds embeddings of {stored.dimension} values, these have {dimension}: use the same "
            "weights, or another gallery"
        )


def check_new(there: Collection[str], ids: Sequence[str], location: str) -> None:
    """Refuse ids that exist (are `there`)."""
    if there:
        raise DuplicateIdError(
            f"{len(there)} of {len(ids)} ids are in {location} already, the first '{min(there)}': give new ids, or "
            "on_duplicate='replace' or 'skip'"
        )


def check_there(there: Collection[str], ids: Sequence[str], location: str) -> None:
    """Refuse ids that are not `there`."""
    missing = [name for name in ids if name not in there]
    if missing:
        raise GalleryError(f"{location} has no entry '{missing[0]}' ({len(missing)} ids are not there)")


def as_duration(keep: str | timedelta) -> timedelta:
    """A positive duration from e.g. "30d": a whole number and s, m (minutes), h, d or w."""
    if isinstance(keep, str):
        try:
            keep = parse_duration(keep)
        except ConfigError as error:
            raise GalleryError(f"keep={error}") from error
    if not isinstance(keep, timedelta):
        raise GalleryError(f"keep={keep!r}: give a duration, as '30d' or timedelta(days=30)")
    if keep <= timedelta(0):
        raise GalleryError("keep=0: it must be more than no time: 30d, say")
    return keep


def expires_before(keep: str | timedelta, now: datetime | None = None) -> datetime:
    """Entries seen before it, but since 1970, expire; an earlier time was read wrongly."""
    moment = datetime.now(timezone.utc) if now is None else as_utc(now, "now")
    duration = as_duration(keep)
    return moment - duration if duration < moment - EPOCH else EPOCH


def _capture_time(value: object) -> datetime:
    """An image's time in UTC; refused before 1971, when the camera's clock was never set."""
    time = as_utc(value, "time")
    try:
        return check_clock(time, f"time {time.isoformat()}")
    except DataError as error:
        raise GalleryError(str(error)) from error


KEEP: Any = ...
"""An attribute that `update` does not change."""
CHECKS: dict[str, Callable[[Any], Any]] = {
    "pid": as_pid,
    "modality": as_modality,
    "camera": lambda value: optional_text(value, "camera"),
    "time": lambda value: None if value is None or is_nat(value) else _capture_time(value),
    "source": lambda value: optional_text(str(value) if isinstance(value, PurePath) else value, "source"),
    "track": lambda value: optional_text(value, "track"),
    "tags": as_tags,
}


def make_change(**values: Any) -> dict[str, Any]:
    """The attributes of `Entry` that are not `KEEP`, by their names; at least one."""
    change = {name: CHECKS[name](value) for name, value in values.items() if value is not KEEP}
    if not change:
        raise GalleryError("nothing to update: give at least one of " + ", ".join(CHECKS))
    return change
