"""The JSON of the service's answers."""

from __future__ import annotations

from datetime import date, datetime
from typing import Literal

from pydantic import BaseModel, Field

ModalityName = Literal["visible", "infrared"]


class EntryBody(BaseModel):
    """One stored crop, without its embedding."""

    id: str
    modality: ModalityName
    pid: str | None = Field(None, description="The identity, where known.")
    camera: str | None = None
    time: datetime | None = Field(None, description="When it was seen, UTC.")
    source: str | None = None
    track: str | None = None
    tags: list[str] = []


class HitBody(EntryBody):
    """An answer to a search."""

    similarity: float = Field(description="Cosine, -1 to 1.")
    probability: float | None = Field(
        None, description="That query and entry show one person; null: the model is not calibrated for this."
    )


class GroupBody(BaseModel):
    """Hits of one track or person, best first."""

    key: str | None
    similarity: float = Field(description="Of a track's entries, pooled; of a person's best match.")
    probability: float | None = Field(description="Of that similarity; of a person's most probable match.")
    pooled: int = Field(description="How many entries were pooled; 0: none were.")
    matches: list[HitBody]


class QueryBody(BaseModel):
    """What was asked with."""

    modality: Literal["visible", "infrared", "both"]
    images: int


class AnswerBody(BaseModel):
    """Who it may be, most similar first."""

    nobody: bool = Field(description="Nobody reaches what was asked for, or nothing was compared.")
    hits: list[HitBody] = Field(
        description="When grouped, the best match of each group with the group's similarity and probability."
    )
    groups: list[GroupBody]
    query: QueryBody
    compared: int = Field(description="Entries compared with.")
    prior: float | None
    thresholds: dict[str, float]
    notes: list[str]


class EmbeddedBody(BaseModel):
    """One embedding."""

    name: str
    modality: ModalityName
    embedding: list[float] = Field(description="Unit length.")


class EmbeddingsBody(BaseModel):
    """Embeddings, in the order of the images."""

    model: str
    dimension: int
    embeddings: list[EmbeddedBody]
    notes: list[str]


class AddedBody(BaseModel):
    """What an add did; the counts sum to the number of images."""

    ids: list[str]
    added: int
    replaced: int
    skipped: int
    notes: list[str]


class EntriesBody(BaseModel):
    """Entries, in the order of their adding."""

    total: int
    entries: list[EntryBody]
    notes: list[str] = Field([], description="What no entry has of that which was asked for.")


class DayBody(BaseModel):
    """The entries of one camera on one day."""

    camera: str | None = Field(description="null: those without a camera.")
    day: date | None = Field(description="In the timezone asked for; null: those without a time.")
    entries: int


class DaysBody(BaseModel):
    """Counts by camera and day, the newest day first."""

    total: int = Field(description="Entries that match.")
    days: list[DayBody]
    left_out: int = Field(description="Entries of further cameras and days, beyond `limit`.")
    notes: list[str] = []


class RemovedBody(BaseModel):
    """What was removed."""

    id: str
    removed: int
    notes: list[str] = Field([], description="Kept thumbnails that could not be removed.")


class RemovedManyBody(BaseModel):
    """What was removed, or would be."""

    matched: int
    removed: int = Field(description="0 in a dry run.")
    dry_run: bool
    notes: list[str] = Field(
        [], description="What no entry has of that which was asked for; thumbnails that could not be removed."
    )


class GalleryBody(BaseModel):
    """What the page needs to know."""

    entries: int
    model: str
    dimension: int
    calibrated: bool
    pictures: bool = Field(description="Whether /v1/images has any thumbnails.")
    keeps_images: bool = Field(description="Whether thumbnails of crops that are added are kept.")
    cameras: list[str] = Field(description="Names seen so far, perhaps not all.")
    may: list[str] = Field(description="Scopes of the caller.")
    key: str | None = Field(description="Name of the caller's API key.")
    images_at_once: int
    top_at_most: int
    read_only: bool = Field(description="Nothing can be added or removed here, whatever the key.")


class StateBody(BaseModel):
    """Whether all is well."""

    ok: bool
    faults: list[str] = []
