"""Frozen dataclasses of a gallery: entries, hits, filters, settings; and conversions of their values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.identities import parse_identity
from fmcnet.types import FloatArray, Modality, parse_modality

if TYPE_CHECKING:
    from fmcnet.data.pixels import ValueRange
    from fmcnet.inference.image_input import Fault

OnDuplicate = Literal["refuse", "replace", "skip", "update"]
IndexChoice = Literal["auto", "exact", "hnsw"]
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Entry:
    """One stored crop, without its embedding.

    Attributes:
        id: unique in the gallery.
        modality: of the crop.
        pid: the identity (`parse_identity`); None where unknown.
        camera: None where unknown.
        source: where the crop came from (a path, a URL); None where unknown.
        track: None where unknown.
        time: when it was seen, in UTC, to the microsecond; None where unknown.
        tags: free labels, sorted, each once.
    """

    id: str
    modality: Modality
    pid: str | None = None
    camera: str | None = None
    time: datetime | None = None
    source: str | None = None
    track: str | None = None
    tags: tuple[str, ...] = ()

    def with_stored(self, stored: Entry) -> Entry:
        """The entry, with the metadata of `stored` where it has none."""
        names = ("pid", "camera", "time", "source", "track", "tags")
        return replace(self, **{name: getattr(self, name) or getattr(stored, name) for name in names})


@dataclass(frozen=True)
class Hit(Entry):
    """One result of a search: an entry and its similarity to the query.

    Attributes:
        similarity: cosine, -1 to 1.
        probability: that query and entry show one person, 0..1, by the encoder's calibration for their modalities and
            the answer's prior. None without such a calibration, and from `Gallery`, which has none.
    """

    similarity: float = field(kw_only=True)
    probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601, UTC."""
        plain = {"modality": str(self.modality), "tags": list(self.tags)}
        return asdict(self) | plain | {"time": self.time.isoformat() if self.time else None}


@dataclass(frozen=True)
class HitGroup:
    """Hits that share a track or a pid, best first.

    Attributes:
        key: the track or pid; None for a hit that has none (such a hit is a group of its own).
        similarity: what ranks the group: of the best hit, or of a track's entries pooled.
        probability: of that similarity; in an answer by pid, that of the most probable hit.
        hits: at least one. Of a person, only those that reach the thresholds.
        pooled: how many entries were pooled; 0: none were.
        length: of the mean of their unit embeddings.
    """

    key: str | None
    similarity: float
    hits: tuple[Hit, ...]
    pooled: int = 0
    probability: float | None = None
    length: float = 1.0

    @property
    def best(self) -> Hit:
        """The most similar hit."""
        return self.hits[0]

    @property
    def modality(self) -> Modality:
        """Of the best hit; for a track, of all hits."""
        return self.best.modality

    @property
    def size(self) -> int:
        """How many images the group stands for."""
        return self.pooled or len(self.hits)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "key": self.key,
            "similarity": self.similarity,
            "probability": self.probability,
            "pooled": self.pooled,
            "matches": [hit.to_dict() for hit in self.hits],
        }


@dataclass(frozen=True)
class Where:
    """A filter: entries match if they meet all conditions; None is no condition.

    Attributes:
        ids: the entry's id is one of these; an empty collection matches nothing.
        pids: the entry's identity is one of these, as `parse_identity` reads them; empty: nothing. Entries without an
            identity cannot be selected.
        cameras: the entry's camera is one of these; empty: nothing.
        tracks: the entry's track is one of these; empty: nothing.
        modality: the entry's modality, or a word for it; kept as a `Modality`.
        since: seen at or after this aware datetime; an entry without a time does not match.
        until: seen before this aware datetime; an entry without a time does not match.
        tags: the entry has all of these; none at all are no condition.

    Raises:
        GalleryError: on construction, for a datetime without a timezone, an invalid identity, a bare string where a
            collection is needed, or a value of ids, cameras, tracks or tags that is no text.
    """

    ids: Collection[str] | None = None
    pids: Collection[str | int] | None = None
    cameras: Collection[str] | None = None
    tracks: Collection[str] | None = None
    modality: Modality | str | None = None
    since: datetime | None = None
    until: datetime | None = None
    tags: Collection[str] | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "pids", "cameras", "tracks", "tags"):
            value = getattr(self, name)
            if isinstance(value, (str, bytes, int, float)):
                raise GalleryError(f"Where({name}={value!r}): give a list, as {name}=[{value!r}]")
            if value is None:
                continue
            try:
                values = frozenset(value)
            except TypeError as error:
                raise GalleryError(f"Where({name}={value!r:.80}): give a list of texts") from error
            if name == "pids":
                values = frozenset(map(as_known_pid, values))
            for item in values:
                if not isinstance(item, str):
                    raise GalleryError(f"Where({name}=...): {item!r} is no text: give texts, as '1'")
                if not item:
                    raise GalleryError(f"Where({name}=...): '' names nothing: leave it out")
            object.__setattr__(self, name, frozenset(map(str.__str__, values)))  # an enum's hashes its name
        if not self.tags:  # every entry has all of no tags
            object.__setattr__(self, "tags", None)
        if self.modality is not None:
            object.__setattr__(self, "modality", as_modality(self.modality))
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_utc(value, f"Where({name})"))

    @property
    def modalities(self) -> list[Modality]:
        """Those whose entries may match."""
        return list(Modality) if self.modality is None else [Modality(self.modality)]

    @property
    def unconditional(self) -> bool:
        """No condition is given: every entry matches."""
        return all(getattr(self, condition.name) is None for condition in fields(self))


@dataclass(frozen=True)
class OpenOptions:
    """How to open a gallery; the attributes are the arguments of `Gallery`, which explains them.

    Raises:
        GalleryError: on construction, for a value that no gallery takes.
    """

    read_only: bool = False
    create: bool = True
    timeout: float = 5.0
    index: IndexChoice | None = None
    hnsw_above: int | None = None
    dtype: Dtype = "float32"
    flush_rows: int = 2048

    def __post_init__(self) -> None:
        if self.index not in (None, "auto", "exact", "hnsw"):
            raise GalleryError(f"index is 'auto', 'exact' or 'hnsw', not {self.index!r}")
        if self.dtype not in ("float32", "float16"):
            raise GalleryError(f"dtype is 'float32' or 'float16', not {self.dtype!r}")
        for name, least in (("hnsw_above", 0), ("flush_rows", 1)):
            number = getattr(self, name)
            is_number = isinstance(number, Integral) and not isinstance(number, bool)
            if number is not None and not (is_number and least <= int(number) < 2**63):
                raise GalleryError(f"{name}={number!r} must be a whole number, {least} or more")
        timeout: object = self.timeout
        if not isinstance(timeout, Real) or not 0 <= float(timeout) <= LONGEST_WAIT:
            raise GalleryError(f"timeout={timeout!r} must be 0 to {LONGEST_WAIT} seconds")


@dataclass(frozen=True)
class GallerySettings:
    """What the first add fixes for good.

    Attributes:
        dimension: values in an embedding.
        model: digest of the model that made them.
        dtype: how they are kept.
    """

    dimension: int
    model: str
    dtype: Dtype


@dataclass(frozen=True)
class EntryBatch:
    """Checked entries to add.

    Attributes:
        entries: N of them.
        vectors: (N, D) float32, unit length, in the same order.
        thumbnails: N encoded images or None; or nothing at all.
        ranges: with which deep images of these were encoded; None of images that were stretched.
    """

    entries: tuple[Entry, ...]
    vectors: FloatArray
    thumbnails: tuple[bytes | None, ...] = ()
    ranges: tuple[ValueRange | None, ...] = ()


@dataclass(frozen=True)
class Added:
    """What an add did.

    Attributes:
        ids: of all N entries given, in order, those that were made up included.
        added: how many are new. With `replaced` and `skipped`, it sums to N.
        replaced: how many took the place of an entry with their id.
        skipped: how many were left out, for an entry has their id; with "update", for none has.
        faults: images that could not be read and were left out, by `Searcher.add`; they are not among the N.
    """

    ids: tuple[str, ...]
    added: int
    replaced: int = 0
    skipped: int = 0
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class GalleryInfo:
    """A gallery in numbers.

    Attributes:
        location: path or URL.
        entries: how many.
        settings: None before the first add.
        index: "exact" or "hnsw": what an unfiltered search uses now.
        unindexed: entries that no graph finds, and that are compared one by one; where there is no graph, those that
            are not in the index's files yet.
        removed: rows whose space `compact` would give back.
        bytes: on disk; 0 where the backend does not tell.
        thumbnails: how many entries have one with them.
    """

    location: str
    entries: int
    settings: GallerySettings | None
    index: str
    unindexed: int
    removed: int
    bytes: int
    thumbnails: int = 0


MADE_WITH = "made-with.json"
"""In a gallery's folder: where its model is, and earlier the ranges; no embedding and nothing of an image."""

Stored = tuple[Entry, FloatArray]
"""An entry and its (D,) float32 embedding."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EARLIEST = datetime.min.replace(tzinfo=timezone.utc)
LONGEST_WAIT = 1_000_000
"""Seconds of a timeout; SQLite counts milliseconds in 32 bits."""
NONE = np.iinfo(np.int64).min
"""Stands for an unknown time, in microseconds."""


def as_modality(value: object) -> Modality:
    """As `parse_modality`, with a GalleryError."""
    try:
        return parse_modality(value)
    except FmcnetError as error:
        raise GalleryError(str(error)) from error


def as_pid(value: object) -> str | None:
    """As `parse_identity`, with a GalleryError; None where unknown."""
    try:
        return parse_identity(value)
    except DataError as error:
        raise GalleryError(str(error)) from error


def as_known_pid(value: object) -> str:
    """`as_pid` of a filter, where unknown is an error."""
    pid = as_pid(value)
    if pid is None:
        raise GalleryError(
            f"pid {value!r} is nobody known: choose entries without an identity by other conditions"
        )
    return pid


def check_where(value: object) -> Where | None:
    """A filter, or None; GalleryError for anything else."""
    if not (value is None or isinstance(value, Where)):
        raise GalleryError(f"where={value!r}: give a Where, as Where(cameras=['gate'])")
    return value


def is_nat(value: object) -> bool:
    """Whether it is the NaT of pandas, a datetime that stands for none, and is not equal to itself."""
    return isinstance(value, datetime) and value != value


def as_utc(value: object, what: str) -> datetime:
    """The same instant in UTC; GalleryError when it is no datetime, or has no timezone."""
    if not isinstance(value, datetime) or is_nat(value):
        raise GalleryError(f"{what} must be a datetime, not {value!r}")
    if value.utcoffset() is None:
        raise GalleryError(f"{what}={value.isoformat()} has no timezone: say which, e.g. tzinfo=timezone.utc")
    try:
        return value.astimezone(timezone.utc)
    except OverflowError as error:
        raise GalleryError(f"{what}={value.isoformat()} is outside the years 1 to 9999 in UTC") from error


def to_micros(value: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (value - EPOCH) // timedelta(microseconds=1)


def from_micros(value: int) -> datetime:
    """The inverse of `to_micros`."""
    return EPOCH + timedelta(microseconds=value)
