"""`Store` over a Milvus cluster (2.3 or newer): one collection a gallery, the same results as the embedded one.

What differs, as a cluster is another machine's business, is in docs/concepts/gallery.md.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import Any, Literal

import numpy as np

from fmcnet.data.pixels import ValueRange
from fmcnet.errors import GalleryError
from fmcnet.retrieval import milvus_client as milvus
from fmcnet.retrieval.entry_columns import DayCount, count_days
from fmcnet.retrieval.inputs import check_new, check_settings, check_there
from fmcnet.retrieval.records import (
    NONE,
    Added,
    EntryBatch,
    GalleryInfo,
    GallerySettings,
    Hit,
    OnDuplicate,
    OpenOptions,
    Stored,
    Where,
    from_micros,
)
from fmcnet.retrieval.similarity import SPARE, ranked, ties_go_on
from fmcnet.types import FloatArray

PAGE = 4_096
"""Rows in one page of a listing."""
WIDEST = 16_384
"""Milvus gives no more rows in one answer."""


class MilvusStore(milvus.Collection):
    """A gallery in a collection; its methods are those of `Gallery`, its arguments those of `Collection`."""

    most = WIDEST - SPARE
    files = None
    unique_name = ""

    def __init__(self, location: str, options: OpenOptions) -> None:
        if options.dtype != "float32":
            raise GalleryError(f"a Milvus gallery keeps float32, not {options.dtype}")
        super().__init__(location, options)
        try:
            self._settings = self.open()
            if self._settings is None and (options.read_only or not options.create):
                raise GalleryError(f"there is no gallery at {self.location}: check the name, or add first")
            if self._settings is not None and self._wanted not in (None, "auto", self.index):
                raise GalleryError(
                    f"{self.location} was made with index '{self.index}', which stays: leave index out, or make "
                    "another gallery"
                )
        except BaseException:
            self.close()
            raise

    # ---- the collection ----

    @property
    def settings(self) -> GallerySettings | None:
        """What the first add fixed."""
        if self._settings is None:
            self._settings = self.open()
        return self._settings

    def info(self) -> GalleryInfo:
        """The collection in numbers."""
        index = "exact" if self.settings is None else self.index
        return GalleryInfo(self.location, self.count(None), self.settings, index, 0, 0, 0)

    def _portion(self) -> int:
        """Rows in one request, with their embeddings."""
        dimension = 1 if self._settings is None else self._settings.dimension
        return max(1, min(milvus.MOST_ROWS, milvus.MOST_BYTES // (4 * dimension)))

    # ---- reading ----

    def _condition(self, where: Where | None) -> str | None:
        """As `milvus_client.expression`; None also before the first add."""
        return None if self.settings is None else milvus.expression(where, numbers=self.numbers)

    def _query(self, condition: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.request("query", filter=condition, output_fields=fields, **options)
        return rows

    def search(self, queries: FloatArray, top: int, where: Where | None, exact: bool) -> list[list[Hit]]:
        """For each of (Q, D) queries its best entries; ties as in the embedded gallery."""
        condition = self._condition(where)
        if condition is None:
            return [[] for _ in queries]
        if top > self.most:
            raise GalleryError(f"top={top} is more than Milvus gives in one answer: at most {self.most}")
        if exact and self.index != "exact":
            return [self._search_exactly(query, top, where) for query in queries]
        answers: dict[int, list[Hit]] = {}
        limit, pending = top + SPARE, list(range(len(queries)))
        while pending:
            tied = []
            nearest = self._nearest([queries[index] for index in pending], limit, condition)
            for index, rows in zip(pending, nearest, strict=True):
                if len(rows) < limit and self.index == "hnsw" and len(rows) < self.count(where):
                    # the graph did not reach them all
                    answers[index] = self._search_exactly(queries[index], top, where)
                elif len(rows) == limit < WIDEST and ties_go_on([row["distance"] for row in rows], top):
                    tied.append(index)
                else:
                    found = self.fetch([row["id"] for row in rows])
                    answers[index] = ranked(queries[index], list(found.values()), top)
            limit, pending = min(4 * limit, WIDEST), tied
        return [answers[index] for index in range(len(queries))]

    def _nearest(
        self, queries: list[FloatArray], limit: int, condition: str
    ) -> Iterator[list[dict[str, Any]]]:
        """For each query the ids and similarities of its nearest rows, best first.

        With their embeddings Milvus would refuse the search where one is replaced or removed meanwhile.
        """
        params = {"ef": max(128, 2 * limit)} if self.index == "hnsw" else {}
        for batch in milvus.parts(queries, max(1, self._portion() // limit)):
            yield from self.request(
                "search",
                data=[query.tolist() for query in batch],
                filter=condition,
                limit=limit,
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": params},
            )

    def _search_exactly(self, query: FloatArray, top: int, where: Where | None) -> list[Hit]:
        """The best of all rows that match, each compared here: as slow as reading them."""
        best: list[Hit] = []
        for part in self.scan(where, self._portion()):
            best = sorted([*best, *ranked(query, part, top)], key=lambda hit: (-hit.similarity, hit.id))[:top]
        return best

    def fetch(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Entries and embeddings of those ids that are there."""
        return {row["id"]: milvus.to_stored(row) for row in self._rows(ids)}

    def _rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        if self.settings is not None:
            for part in milvus.parts(ids, self._portion()):
                rows += self._query(f"id in {milvus.texts(part)}", [*milvus.METADATA, "embedding"])
        return rows

    has_thumbnails = False

    def thumbnail(self, entry_id: str) -> bytes | None:
        """None: a cluster keeps no thumbnails."""
        return None

    def count(self, where: Where | None, by_track: bool = False) -> int:
        """How many match; tracks are not counted."""
        condition = self._condition(where)
        if condition is None:
            return 0
        return int(self._query(condition, ["count(*)"])[0]["count(*)"])

    def _matching_ids(self, where: Where | None) -> list[str]:
        """Ids, in the order of adding."""
        return [name for _, name in sorted((row["seq"], row["id"]) for row in self._list_rows(where, "seq"))]

    def _list_rows(self, where: Where | None, *fields: str) -> Iterator[dict[str, Any]]:
        """Rows that match, with their ids and these fields, in the order of ids."""
        condition = self._condition(where)
        if condition is None:
            return
        last = ""
        while True:  # in the order of ids, as pymilvus's own iterator goes on, which does not escape them
            after = f"id > {milvus.text(last)}" + (f" and {condition}" if condition else "")
            page = self._query(after, ["id", *fields], limit=PAGE)
            yield from page
            if len(page) < PAGE:
                break
            last = max((row["id"] for row in page), key=str.encode)

    def days(self, where: Where | None, zone: tzinfo) -> tuple[DayCount, ...]:
        """How many of those that match each camera has on each day."""
        numbers: dict[str, int] = {}
        cameras, times = [], []
        for row in self._list_rows(where, "camera", "time"):
            cameras.append(numbers.setdefault(row["camera"], len(numbers)) if row["camera"] else -1)
            times.append(int(NONE) if row["time"] == milvus.NO_TIME else row["time"])
        return count_days(np.array(cameras, np.int64), list(numbers), np.array(times, np.int64), zone)

    def texts(self, name: Literal["camera", "pid", "track", "tags"]) -> set[str]:
        """The cameras, by queries that exclude known ones; nothing else: that would read all rows."""
        values: set[str] = set()
        while name == "camera" and self.settings is not None:
            condition = 'camera != ""' + "".join(
                f" and camera != {milvus.text(value)}" for value in sorted(values)
            )
            page = self._query(condition, ["camera"], limit=PAGE)
            new = {str(row["camera"]) for row in page if row["camera"]} - values
            if not new:
                break
            values |= new
        return values

    def times(self) -> tuple[datetime, datetime] | None:
        """The first and the last time, by queries beyond those that are known already."""
        extremes: list[int] = []
        while self.settings is not None:
            bounds = f" and (time < {min(extremes)} or time > {max(extremes)})" if extremes else ""
            page = self._query(f"time != {milvus.NO_TIME}{bounds}", ["time"], limit=PAGE)
            if not page:
                break
            extremes = [pick([*extremes, *(int(row["time"]) for row in page)]) for pick in (min, max)]
        return (from_micros(min(extremes)), from_micros(max(extremes))) if extremes else None

    def scan(self, where: Where | None, chunk: int) -> Iterator[list[Stored]]:
        """All that match; those removed meanwhile are left out."""
        for part in milvus.parts(self._matching_ids(where), min(chunk, self._portion())):
            stored = self.fetch(part)
            yield [stored[name] for name in part if name in stored]

    # ---- writing ----

    def value_ranges(self) -> tuple[ValueRange | None, ...]:
        """None is recorded."""
        return ()

    def replace_ranges(self, ranges: Sequence[ValueRange | None], entries: int) -> None:
        """None is recorded."""

    def add(self, batch: EntryBatch, model: str, on_duplicate: OnDuplicate) -> Added:
        """All of the batch or nothing."""
        if any(batch.thumbnails):
            raise GalleryError(f"{self.location}: a cluster keeps no thumbnails; add without")
        self.check_open(write=True)
        settings = GallerySettings(batch.vectors.shape[1], model, "float32")
        if self.settings is None:
            self._settings = self.create(settings)
        check_settings(self._settings or settings, settings.dimension, model, self.location)
        ids = [entry.id for entry in batch.entries]
        existing = {row["id"]: row for row in self._rows(ids)}
        if on_duplicate == "refuse":
            check_new(existing, ids, self.location)
        replaced = 0 if on_duplicate == "skip" else len(existing)
        now = clock.time_ns()
        rows = []
        for i, (entry, vector) in enumerate(zip(batch.entries, batch.vectors, strict=True)):
            if on_duplicate == ("skip" if entry.id in existing else "update"):
                continue
            if on_duplicate == "update":
                entry = entry.with_stored(milvus.to_stored(existing[entry.id])[0])
            rows.append(milvus.to_row(entry, vector, now + i, numbers=self.numbers))
        self._write(rows, existing)
        return Added(tuple(ids), len(rows) - replaced, replaced, len(ids) - len(rows))

    def update(self, ids: Sequence[str], change: Mapping[str, Any]) -> int:
        """Set attributes of entries."""
        self.check_open(write=True)
        existing = {row["id"]: row for row in self._rows(ids)}
        check_there(existing, ids, self.location)
        rows = []
        for name in ids:
            entry, vector = milvus.to_stored(existing[name])
            changed = replace(entry, **change)
            rows.append(milvus.to_row(changed, vector, existing[name]["seq"], numbers=self.numbers))
        self._write(rows, existing)
        return len(ids)

    def _write(self, rows: list[dict[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> None:
        """Write rows, those of ids `before` in the place of the old ones; all is put back when a request fails.

        Upserts, though most rows are new: a request that was repeated on its way makes no row twice.
        """
        attempted: list[str] = []
        try:
            for part in milvus.parts(rows, self._portion()):
                attempted += [row["id"] for row in part]
                self.request("upsert", part, write=True)
        except BaseException as error:  # Ctrl-C too
            try:
                self._delete([name for name in attempted if name not in before])
                old: Any = [before[name] for name in attempted if name in before]
                old = [milvus.to_row(*milvus.to_stored(row), row["seq"], numbers=self.numbers) for row in old]
                for part in milvus.parts(old, self._portion()):
                    self.request("upsert", part, write=True)
            except GalleryError:
                raise GalleryError(
                    f"{error}; up to {len(attempted)} of {len(rows)} entries may be written, for they could not be "
                    f"taken back (the first: '{attempted[0]}'): when the server is there again, repeat with "
                    "on_duplicate='replace', or remove them"
                ) from error
            raise

    def _delete(self, ids: Sequence[str]) -> None:
        for part in milvus.parts(ids, milvus.MOST_ROWS):
            self.request("delete", filter=f"id in {milvus.texts(part)}", write=True)

    def remove(self, where: Where, remember: bool = True) -> int:
        """Remove what matches."""
        self.check_open(write=True)
        ids = self._matching_ids(where)
        self._delete(ids)
        return len(ids)

    def compact(self) -> None:
        """Ask Milvus to write its segments anew, without what was removed."""
        self.check_open(write=True)
        if self.settings is not None:
            self.request("flush")
            self.request("compact")

    def check(self) -> list[str]:
        """Milvus looks after its own files: this only asks whether it answers."""
        self.count(None)
        return []
