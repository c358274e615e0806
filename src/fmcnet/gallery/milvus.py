"""`Store` over a Milvus cluster (2.3 or newer): one collection a gallery, the same results as the embedded one.

What differs, for a cluster is another machine's business: a removal is at once gone from all answers, and from the
disks when Milvus compacts and collects garbage; an add of more than `INSERT` rows is several requests, taken back
when one fails; nothing keeps two writers apart but their ids.
"""

from __future__ import annotations

import contextlib
import json
import re
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fmcnet.errors import DuplicateIdError, GalleryError
from fmcnet.gallery.expressions import NO_PID, NO_TIME, expression, text, texts
from fmcnet.gallery.inputs import LONGEST, MOST_TAGS, check_settings
from fmcnet.gallery.records import (
    Added,
    Batch,
    Dtype,
    Entry,
    GalleryInfo,
    Hit,
    IndexChoice,
    OnDuplicate,
    Settings,
    Stored,
    Where,
    from_micros,
    to_micros,
)
from fmcnet.gallery.store import NEAR, SPARE, changed, ranked
from fmcnet.optional import require
from fmcnet.types import FloatArray, Modality

INSERT = 2_000
"""Rows in one request: at 4,096 values still half of Milvus's limit of 64 MB."""
ASK = 1_000
"""Ids in one request."""
PAGE = 4_096
"""Rows in one page of a listing."""
WIDEST = 16_384
"""Milvus gives no more rows in one answer."""
EF_MOST = 4_096
METADATA = ["id", "pid", "modality", "camera", "time", "source", "track", "tags", "seq"]


class MilvusStore:
    """A gallery in a collection.

    Args:
        location: "milvus://host:port/name"; `user:password@` before the host where the cluster asks for it.
        index: "exact" for Milvus's FLAT index; otherwise HNSW. timeout: seconds for a request, at least 30.
        The others as of `Gallery`.
    """

    def __init__(
        self,
        location: str,
        *,
        read_only: bool,
        create: bool,
        timeout: float,
        index: IndexChoice | None,
        dtype: Dtype,
    ) -> None:
        if dtype != "float32":
            raise GalleryError(f"a Milvus gallery keeps float32, not {dtype}")
        parts = urlsplit(location)
        self.name = parts.path.strip("/")
        try:
            port = parts.port or 19530
        except ValueError as error:
            raise GalleryError(f"{location}: {error}") from error
        if not parts.hostname or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", self.name):
            raise GalleryError(f"{location}: give milvus://host:port/name, the name of letters, digits and _")
        self.location = f"milvus://{parts.hostname}:{port}/{self.name}"
        self.read_only = read_only
        self.index = index or "hnsw"
        self.timeout = max(timeout, 30.0)
        self._settings: Settings | None = None
        milvus: Any = require("pymilvus", "milvus")
        self._types = milvus.DataType
        self._error: type[Exception] = milvus.MilvusException
        self._client: Any = None
        with self._translated():
            self._client = milvus.MilvusClient(
                uri=f"http://{parts.hostname}:{port}",
                user=parts.username or "",
                password=parts.password or "",
                timeout=self.timeout,
            )
            there = self._client.has_collection(self.name)
        if not there and (read_only or not create):
            raise GalleryError(f"there is no gallery at {self.location}: check the name, or add to it first")
        self._settings = self._read_settings()

    @contextlib.contextmanager
    def _translated(self, *, write: bool = False) -> Iterator[None]:
        """Milvus's errors in the gallery's words."""
        if self._client is None and self._settings is not None:
            raise GalleryError(f"the gallery {self.location} was closed")
        if write and self.read_only:
            raise GalleryError(
                f"{self.location} was opened read-only: open it without read_only to change it"
            )
        try:
            yield
        except self._error as error:
            text = str(getattr(error, "message", error))
            raise GalleryError(
                f"{self.location}: Milvus says: {text}; is the server there, and well?"
            ) from error

    # ---- the collection ----

    @property
    def settings(self) -> Settings | None:
        """What the first add fixed."""
        if self._settings is None:
            self._settings = self._read_settings()
        return self._settings

    def _read_settings(self) -> Settings | None:
        with self._translated():
            if not self._client.has_collection(self.name):
                return None
            about = self._client.describe_collection(self.name)["description"]
            try:
                return Settings(**json.loads(about)["fmcnet"])
            except (ValueError, KeyError, TypeError) as error:
                raise GalleryError(
                    f"{self.location} is a collection, but no gallery: name another"
                ) from error

    def _create(self, settings: Settings) -> None:
        kinds = self._types
        about = json.dumps({"fmcnet": settings.__dict__})
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=about)
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=LONGEST["id"])
        schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=settings.dimension)
        for name in ("pid", "modality", "time", "seq"):
            schema.add_field(name, kinds.INT64)
        for name in ("camera", "source", "track"):
            schema.add_field(name, kinds.VARCHAR, max_length=LONGEST[name])
        schema.add_field(
            "tags", kinds.ARRAY, element_type=kinds.VARCHAR, max_capacity=MOST_TAGS, max_length=LONGEST["tag"]
        )
        index = self._client.prepare_index_params()
        if self.index == "exact":
            index.add_index("embedding", index_type="FLAT", metric_type="IP")
        else:
            built = {"M": 32, "efConstruction": 200}
            index.add_index("embedding", index_type="HNSW", metric_type="IP", params=built)
        self._client.create_collection(
            self.name, schema=schema, index_params=index, consistency_level="Strong", timeout=self.timeout
        )
        self._settings = settings

    def info(self) -> GalleryInfo:
        """The collection in numbers."""
        settings = self.settings
        if settings is None:
            return GalleryInfo(self.location, 0, None, "exact", 0, 0, 0)
        with self._translated():
            kind = self._client.describe_index(self.name, "embedding")["index_type"]
        return GalleryInfo(
            self.location, self.count(None), settings, "exact" if kind == "FLAT" else "hnsw", 0, 0, 0
        )

    # ---- reading ----

    def _query(self, condition: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        with self._translated():
            found: list[dict[str, Any]] = self._client.query(
                self.name, filter=condition, output_fields=fields, timeout=self.timeout, **options
            )
            return found

    def search(self, queries: FloatArray, top: int, where: Where | None, exact: bool) -> list[list[Hit]]:
        """For each of (Q, D) queries its best entries; ties as in the embedded gallery."""
        condition = expression(where)
        if self.settings is None or condition is None:
            return [[] for _ in queries]
        if top > WIDEST - SPARE:
            raise GalleryError(f"top={top} is more than Milvus gives in one answer: at most {WIDEST - SPARE}")
        return [self._search(query, top, condition, exact) for query in queries]

    def _search(self, query: FloatArray, top: int, condition: str, exact: bool) -> list[Hit]:
        wide = top + SPARE
        while True:
            ef = max(128, 2 * wide, EF_MOST if exact else 0)
            with self._translated():
                rows = self._client.search(
                    self.name,
                    data=[query.tolist()],
                    filter=condition,
                    limit=wide,
                    output_fields=[*METADATA, "embedding"],
                    search_params={"metric_type": "IP", "params": {"ef": min(ef, 32_768)}},
                    timeout=self.timeout,
                )[0]
            found = [to_stored(row["entity"] | {"id": row["id"]}) for row in rows]
            tied = len(rows) == wide and rows[-1]["distance"] >= rows[top - 1]["distance"] - NEAR
            if not tied or wide == WIDEST:
                return ranked(query, found, top)
            wide = min(4 * wide, WIDEST)

    def fetch(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Entries and embeddings of those ids that are there."""
        return {row["id"]: to_stored(row) for row in self._rows(ids, [*METADATA, "embedding"])}

    def _rows(self, ids: Sequence[str], fields: list[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if self.settings is not None:
            for start in range(0, len(ids), ASK):
                found += self._query(f"id in {texts(ids[start : start + ASK])}", fields)
        return found

    def picture(self, entry_id: str) -> bytes | None:
        """None: a cluster keeps no pictures."""
        return None

    def count(self, where: Where | None) -> int:
        """How many match."""
        condition = expression(where)
        if self.settings is None or condition is None:
            return 0
        return int(self._query(condition, ["count(*)"])[0]["count(*)"])

    def _matching(self, where: Where | None) -> list[str]:
        """Ids, in the order of adding."""
        condition = expression(where)
        if self.settings is None or condition is None:
            return []
        found: list[tuple[int, str]] = []
        last = ""
        while True:  # in the order of ids, as pymilvus's own iterator goes on, which does not escape them
            after = f"id > {text(last)}" + (f" and {condition}" if condition else "")
            page = self._query(after, ["id", "seq"], limit=PAGE)
            found += [(row["seq"], row["id"]) for row in page]
            if len(page) < PAGE:
                break
            last = max((row["id"] for row in page), key=str.encode)
        return [name for _, name in sorted(found)]

    def scan(self, where: Where | None, chunk: int) -> Iterator[list[Stored]]:
        """All that match; those removed meanwhile are left out."""
        ids = self._matching(where)
        chunk = min(chunk, INSERT)
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            stored = self.fetch(part)
            yield [stored[name] for name in part if name in stored]

    # ---- writing ----

    def add(self, batch: Batch, model: str, on_duplicate: OnDuplicate) -> Added:
        """All of the batch or nothing."""
        if any(batch.pictures):
            raise GalleryError(f"{self.location}: a cluster keeps no pictures; add without")
        with self._translated(write=True):
            dimension = batch.vectors.shape[1]
            if self.settings is None:
                self._create(Settings(dimension, model, "float32"))
        check_settings(
            self.settings or Settings(dimension, model, "float32"), dimension, model, self.location
        )
        ids = [entry.id for entry in batch.entries]
        there = {row["id"] for row in self._rows(ids, ["id"])}
        if there and on_duplicate == "refuse":
            raise DuplicateIdError(
                f"{len(there)} of {len(ids)} ids are in {self.location} already, the first '{min(there)}': give new "
                "ids, or on_duplicate='replace' or 'skip'"
            )
        replaced = 0 if on_duplicate == "skip" else len(there)
        now = clock.time_ns()
        rows = [
            to_row(entry, vector, now + i)
            for i, (entry, vector) in enumerate(zip(batch.entries, batch.vectors, strict=True))
            if not (on_duplicate == "skip" and entry.id in there)
        ]
        self._write(rows, fresh=not replaced)
        return Added(tuple(ids), len(rows) - replaced, replaced, len(ids) - len(rows))

    def _write(self, rows: list[dict[str, Any]], *, fresh: bool) -> None:
        """Insert or replace rows; new ones are taken back when a request fails."""
        done: list[str] = []
        try:
            for start in range(0, len(rows), INSERT):
                part = rows[start : start + INSERT]
                done += [row["id"] for row in part]
                with self._translated(write=True):
                    if fresh:
                        self._client.insert(self.name, part, timeout=self.timeout)
                    else:
                        self._client.upsert(self.name, part, timeout=self.timeout)
        except GalleryError:
            if fresh:
                with contextlib.suppress(GalleryError):
                    self._delete(done)
            raise

    def _delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), ASK):
            with self._translated(write=True):
                self._client.delete(
                    self.name, filter=f"id in {texts(ids[start : start + ASK])}", timeout=self.timeout
                )

    def update(self, ids: Sequence[str], change: Mapping[str, Any]) -> int:
        """Set attributes of entries."""
        with self._translated(write=True):
            rows = {row["id"]: row for row in self._rows(ids, [*METADATA, "embedding"])}
        missing = [name for name in ids if name not in rows]
        if missing:
            raise GalleryError(
                f"{self.location} has no entry '{missing[0]}' ({len(missing)} ids are not there)"
            )
        new = []
        for name in ids:
            entry, vector = to_stored(rows[name])
            new.append(to_row(changed(entry, change), vector, rows[name]["seq"]))
        self._write(new, fresh=False)
        return len(new)

    def remove(self, where: Where) -> int:
        """Remove what matches."""
        with self._translated(write=True):
            ids = self._matching(where)
        self._delete(ids)
        return len(ids)

    def compact(self) -> None:
        """Ask Milvus to write its segments anew, without what was removed."""
        with self._translated(write=True):
            if self.settings is not None:
                self._client.flush(self.name, timeout=self.timeout)
                self._client.compact(self.name, timeout=self.timeout)

    def check(self) -> list[str]:
        """Milvus looks after its own files: this only asks whether it answers."""
        self.count(None)
        return []

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def to_row(entry: Entry, vector: FloatArray, seq: int) -> dict[str, Any]:
    """An entry as Milvus keeps it: no value may be missing."""
    return {
        "id": entry.id,
        "embedding": vector.tolist(),
        "pid": NO_PID if entry.pid is None else entry.pid,
        "modality": entry.modality.code,
        "time": NO_TIME if entry.time is None else to_micros(entry.time),
        "seq": seq,
        "camera": entry.camera or "",
        "source": entry.source or "",
        "track": entry.track or "",
        "tags": list(entry.tags),
    }


def to_stored(row: Mapping[str, Any]) -> Stored:
    """The inverse of `to_row`."""
    entry = Entry(
        row["id"],
        Modality.from_code(int(row["modality"])),
        None if row["pid"] == NO_PID else int(row["pid"]),
        row["camera"] or None,
        None if row["time"] == NO_TIME else from_micros(int(row["time"])),
        row["source"] or None,
        row["track"] or None,
    )
    return replace(entry, tags=tuple(row["tags"])), np.asarray(row["embedding"], np.float32)
