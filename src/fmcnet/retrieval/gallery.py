"""`Gallery`: storage, search and deletion of embeddings. The same class over either backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone, tzinfo
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from numpy.typing import ArrayLike

from fmcnet.errors import FmcnetError, GalleryError
from fmcnet.retrieval import inputs
from fmcnet.retrieval.entry_columns import DayCount
from fmcnet.retrieval.records import (
    EPOCH,
    Added,
    Dtype,
    Entry,
    GalleryInfo,
    GallerySettings,
    Hit,
    HitGroup,
    IndexChoice,
    OnDuplicate,
    OpenOptions,
    Stored,
    Where,
    check_where,
)
from fmcnet.retrieval.similarity import group, pool, rank_pooled, unit_vectors
from fmcnet.types import FloatArray, Modality

if TYPE_CHECKING:
    from fmcnet.data.pixels import ValueRange
    from fmcnet.retrieval.file_records import FileRecords
    from fmcnet.retrieval.milvus_store import MilvusStore
    from fmcnet.retrieval.sqlite_store import SqliteStore

    Store: TypeAlias = SqliteStore | MilvusStore

MAX_HITS = 100_000
"""Hits that a search may ask for."""
POOLED_GROUPS = 3
"""Times `top` groups, those with the nearest entries, are pooled to find the `top` best."""


class Gallery:
    """A store of embeddings of person crops: a folder, or a collection of a Milvus cluster.

    Any number of processes may read one gallery, and one at a time writes; threads may share an object.

    Args:
        location: a folder ("people.gallery"), or "milvus://host:19530/name".
        model: digest of the model whose embeddings these are; the first add fixes it for good. Given here, it need
            not be given to `add` and `search`.
        read_only: never write; the gallery must exist, and its folder need not be writable.
        create: make the gallery where there is none; otherwise that is an error.
        timeout: seconds to wait for another process that writes, 0 or more.
        index: "exact" compares with every entry; "hnsw" uses a graph, fast and nearly exact; "auto" is exact up to
            `hnsw_above` entries. None: as the gallery keeps it; "auto" for a new one.
        hnsw_above: entries, 0 or more, above which "auto" uses a graph. None: as the gallery keeps it; 100,000 for a
            new one.
        dtype: "float32", or "float16" for half the space (similarities then differ by up to about 1e-3); for a new
            gallery.
        flush_rows: new rows, 1 or more, after which the embedded index is written to disk; in a large gallery 5 % of
            those written before, at most 16,384 beside a graph. Closing writes it, too, and every add the database.

    Attributes:
        location: of the gallery, without a password.

    Raises:
        GalleryError: when the location is no gallery or cannot be used.
        GalleryDamagedError: when its database is damaged.
        GalleryReplacedError: by every method, after the folder was removed or replaced.
        MissingDependencyError: without the extra `gallery` (or `milvus`).
    """

    def __init__(
        self,
        location: str | Path,
        *,
        model: str | None = None,
        read_only: bool = False,
        create: bool = True,
        timeout: float = 5.0,
        index: IndexChoice | None = None,
        hnsw_above: int | None = None,
        dtype: Dtype = "float32",
        flush_rows: int = 2048,
    ) -> None:
        self._model = None if model is None else inputs.text(model, "model")
        options = OpenOptions(read_only, create, timeout, index, hnsw_above, dtype, flush_rows)
        self._store = open_store(location, options)
        self.location = self._store.location
        try:
            settings = self._store.settings
            if settings is not None:
                inputs.check_settings(settings, settings.dimension, self._model, self.location)
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write pending changes and close files and connections; may be called again."""
        self._store.close()

    # ---- contents ----

    @property
    def files(self) -> FileRecords | None:
        """Which files entries came from, as `fmcnet.retrieval.indexing.index` records it; a cluster records none."""
        return self._store.files

    @property
    def unique_name(self) -> str:
        """Made up with the gallery; a backup has another one. "" for a cluster."""
        return self._store.unique_name

    @property
    def settings(self) -> GallerySettings | None:
        """Dimension, model and dtype; None before the first add."""
        return self._store.settings

    def info(self) -> GalleryInfo:
        """The gallery in numbers."""
        return self._store.info()

    def __len__(self) -> int:
        return self._store.count(None)

    def __repr__(self) -> str:
        try:
            settings, entries = self.settings, len(self)
        except FmcnetError:
            return f"<Gallery {self.location}: closed, or not readable>"
        about = "no model yet"
        if settings is not None:
            about = f"{settings.dimension} values, {settings.dtype}, model {settings.model}"
        return f"<Gallery {self.location}: {entries:,} entries, {about}>"

    def __contains__(self, entry_id: str) -> bool:
        return bool(self._store.fetch([_id(entry_id)]))

    def count(self, where: Where | None = None, *, by_track: bool = False) -> int:
        """How many entries match; all without `where`.

        Args:
            where: which entries.
            by_track: those of one track and modality count once; not of a cluster, for it would read all rows.
        """
        return self._store.count(check_where(where), by_track)

    def removed(self, ids: Sequence[str]) -> set[str]:
        """The ids that were removed or expired, and not added since; none for a cluster."""
        return set() if self.files is None else self.files.removed(ids)

    def cameras(self) -> list[str]:
        """The names of the cameras that entries have, sorted."""
        return sorted(self._store.texts("camera"))

    def identities(self) -> list[str]:
        """The identities that entries have, sorted; of a cluster none, for it would read all rows."""
        return sorted(self._store.texts("pid"))

    def tracks(self) -> list[str]:
        """The tracks that entries have, sorted; of a cluster none, for it would read all rows."""
        return sorted(self._store.texts("track"))

    def tags(self) -> list[str]:
        """The tags that entries have, sorted; of a cluster none, for it would read all rows."""
        return sorted(self._store.texts("tags"))

    @property
    def value_ranges(self) -> tuple[ValueRange | None, ...]:
        """With which ranges images deeper than 8 bits were encoded, in the order of their first use.

        None is one of them where images were stretched. A range stays when its images are removed. A cluster has
        none.
        """
        return self._store.value_ranges()

    def replace_ranges(self, ranges: Sequence[ValueRange | None], entries: int) -> None:
        """Set `value_ranges` anew, if the gallery still has as many entries: all of them were encoded with these."""
        self._store.replace_ranges(ranges, entries)

    def days(self, where: Where | None = None, zone: tzinfo = timezone.utc) -> tuple[DayCount, ...]:
        """How many entries each camera has on each day, the newest day first, those without a time last.

        Args:
            where: which entries to count.
            zone: timezone of the days.
        """
        return self._store.days(check_where(where), zone)

    def times(self) -> tuple[datetime, datetime] | None:
        """When the first and the last entry were seen, in UTC; None where no entry has a time."""
        return self._store.times()

    def get(self, entry_id: str) -> Entry:
        """One entry.

        Raises:
            GalleryError: when there is no such entry.
        """
        return self._fetch_one(entry_id)[0]

    def embedding(self, entry_id: str) -> FloatArray:
        """Its embedding, (D,) float32 of unit length (float16's precision where so stored).

        Raises:
            GalleryError: when there is no such entry.
        """
        return self._fetch_one(entry_id)[1]

    def thumbnail(self, entry_id: str) -> bytes | None:
        """The thumbnail stored with an entry, as given; None without one, or without such an entry."""
        return self._store.thumbnail(_id(entry_id))

    @property
    def has_thumbnails(self) -> bool:
        """Whether any entry has a thumbnail."""
        return self._store.has_thumbnails

    def _fetch_one(self, entry_id: str) -> Stored:
        entry_id = _id(entry_id)
        found = self._store.fetch([entry_id])
        if entry_id not in found:
            raise GalleryError(f"{self.location} has no entry '{entry_id:.100}'")
        return found[entry_id]

    def scan(self, where: Where | None = None, chunk: int = 4096) -> Iterator[tuple[Entry, FloatArray]]:
        """All entries that match, in the order of their adding; those removed meanwhile are left out.

        Args:
            where: which entries.
            chunk: how many are in memory at once.

        Yields:
            An entry and its embedding, (D,) float32.
        """
        if chunk < 1:
            raise GalleryError(f"chunk={chunk!r} must be a whole number, 1 or more")
        for part in self._store.scan(check_where(where), chunk):
            yield from part

    # ---- searching ----

    def search(
        self,
        query: ArrayLike,
        top: int = 20,
        where: Where | None = None,
        *,
        model: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The most similar entries.

        Args:
            query: (D,) embedding; or (N, D), several crops of one person, in any modalities, pooled into one query.
                Any length: it is brought to unit length.
            top: how many, 1 to 100,000; of a cluster up to 16,368.
            where: which entries to look at; None: all.
            model: digest of the model that made the query, checked against the gallery's.
            exact: compare with every entry, whatever the index.

        Returns:
            At most `top` hits, most similar first; equal similarities by id.

        Raises:
            GalleryError: for a query of another dimension or model, NaN, or a zero vector.
        """
        vector = pool(query)
        top = self._check_query(vector, top, model)
        return self._store.search(vector[None], top, check_where(where), exact)[0]

    def search_each(
        self,
        queries: ArrayLike,
        top: int = 20,
        where: Where | None = None,
        *,
        model: str | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """`search` for each of several queries, in one pass.

        Args:
            queries: (Q, D), one person a row.
            top: as `search`, for each query.
            where: as `search`.
            model: as `search`.
            exact: as `search`.

        Returns:
            Q lists of hits.

        Raises:
            GalleryError: as `search`.
        """
        vectors = unit_vectors(queries, what="query")
        top = self._check_query(vectors, top, model)
        return self._store.search(vectors, top, check_where(where), exact) if len(vectors) else []

    def search_groups(
        self,
        query: ArrayLike,
        by: Literal["track", "pid"],
        top: int = 20,
        where: Where | None = None,
        *,
        model: str | None = None,
        exact: bool = False,
        pooled: bool = False,
        every: bool = False,
    ) -> list[HitGroup]:
        """As `search`, for the best tracks or persons; an entry without a track (a pid) is a group of its own.

        Args:
            query: as `search`.
            by: "track" or "pid".
            top: how many groups, 1 to 100,000.
            where: as `search`.
            model: as `search`.
            exact: as `search`.
            pooled: rank by the similarity to all entries of a group that pass `where`; otherwise by the best entry.
                Only the `3 top` groups with the nearest single entries are pooled, as several crops of a query are.
                Entries of the two modalities are two groups.
            every: with `pooled`, return all groups that were pooled.

        Returns:
            At most `top` groups, most similar first. A group holds those of its hits that were compared.

        Raises:
            GalleryError: as `search`.
        """
        vector = pool(query)
        top = self._check_query(vector, top, model)
        group_count = POOLED_GROUPS * top if pooled else top
        hit_count, matching, max_hits = 5 * group_count, self.count(where), min(MAX_HITS, self._store.most)
        while True:
            hits = self._store.search(vector[None], min(hit_count, max_hits), where, exact)[0]
            groups = group(hits, by, modalities_apart=pooled)[:group_count]
            if len(groups) >= group_count or len(hits) >= matching or hit_count >= max_hits:
                break
            hit_count *= 4
        if not pooled:
            return groups
        keys: Any = [hit_group.key for hit_group in groups if hit_group.key is not None]
        scope = where or Where()  # the groups found match it
        members = replace(scope, tracks=keys) if by == "track" else replace(scope, pids=keys)
        ranked = rank_pooled(vector, groups, self.scan(members) if keys else (), by)
        return ranked if every else ranked[:top]

    def _check_query(self, vectors: FloatArray, top: object, model: str | None) -> int:
        """`top` as Python's own number, which FAISS needs; GalleryError for a wrong one, or another model."""
        if isinstance(top, bool) or not isinstance(top, Integral) or not 1 <= int(top) <= MAX_HITS:
            raise GalleryError(f"top={top!r} must be a whole number, 1 to {MAX_HITS}")
        settings = self._store.settings
        if settings is not None:
            inputs.check_settings(settings, vectors.shape[-1], model or self._model, self.location)
        return int(top)

    # ---- changing ----

    def add(
        self,
        embeddings: ArrayLike,
        *,
        modality: Modality | str | Sequence[Modality | str],
        ids: Sequence[str] | None = None,
        pid: str | int | Sequence[str | int | None] | None = None,
        camera: str | Sequence[str | None] | None = None,
        time: datetime | Sequence[datetime | None] | None = None,
        source: str | Path | Sequence[str | Path | None] | None = None,
        track: str | Sequence[str | None] | None = None,
        tags: Sequence[str] | Sequence[Sequence[str]] | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
        ranges: Sequence[ValueRange | None] = (),
        model: str | None = None,
        on_duplicate: OnDuplicate = "refuse",
    ) -> Added:
        """Add N entries, all or none; they are on disk when this returns.

        Args:
            embeddings: (N, D) real numbers of any length; brought to unit length.
            modality: one for all, or N of them, as `parse_modality` reads them.
            ids: N texts of 1 to 256 bytes, without control characters, and without . or .. between slashes; made up
                when not given.
            pid: one for all, or N of them: texts or whole numbers, as `parse_identity` reads them.
            camera: one for all, or N of them: texts of up to 256 bytes.
            time: one for all, or N of them: when seen, aware datetimes.
            source: one for all, or N of them: where the crop came from, up to 4096 bytes.
            track: one for all, or N of them: texts of up to 256 bytes.
            tags: up to 64 texts for all, or N lists of texts.
            thumbnails: N image files as bytes, up to 1 MB each, to keep with the entries, or None for some; None:
                none is kept. They go when the entry goes, as provably as its embedding.
            ranges: value ranges with which the deep images among them were encoded; None of images that were
                stretched. See `value_ranges`.
            model: digest of the model that made the embeddings; needed unless the gallery was opened with it.
            on_duplicate: what to do with an id that is there: "refuse" the batch, "replace" the old entry (which is
                removed as by `remove`), "skip" the new one, or "update" the old one, which keeps the metadata that
                is not given. "update" skips ids that are not there.

        Returns:
            The ids, and how many entries were added, replaced and skipped.

        Raises:
            GalleryError: for embeddings of another model or dimension, NaN, infinity, zero vectors, bad metadata; or
                when the disk is full.
            DuplicateIdError: for an id that is there, or comes twice.
            GalleryBusyError: when another process writes for longer than `timeout`; or when a reader keeps the log
                busy, which may hold what was replaced: then `added` of the error is what this would return.
        """
        if on_duplicate not in get_args(OnDuplicate):
            raise GalleryError(
                f"on_duplicate is 'refuse', 'replace', 'skip' or 'update', not {on_duplicate!r}"
            )
        digest = self._model if model is None else inputs.text(model, "model")
        if digest is None:
            raise GalleryError(
                "say which model made the embeddings: add(..., model=digest) or Gallery(..., model=)"
            )
        if self._model is not None and digest != self._model:
            raise GalleryError(f"the gallery was opened for model '{self._model}', these are of '{digest}'")
        batch = inputs.make_batch(
            embeddings,
            modality=modality,
            ids=ids,
            pid=pid,
            camera=camera,
            time=time,
            source=source,
            track=track,
            tags=tags,
            thumbnails=thumbnails,
            ranges=ranges,
        )
        if not batch.entries:
            return Added((), 0)
        return self._store.add(batch, digest, on_duplicate)

    def update(
        self,
        ids: Sequence[str],
        *,
        pid: str | int | None = inputs.KEEP,
        modality: Modality | str = inputs.KEEP,
        camera: str | None = inputs.KEEP,
        time: datetime | None = inputs.KEEP,
        source: str | None = inputs.KEEP,
        track: str | None = inputs.KEEP,
        tags: Sequence[str] | None = inputs.KEEP,
    ) -> int:
        """Set metadata of entries, all or none; a value not given stays, None clears it.

        Args:
            ids: of the entries.
            pid: as `add`, one for all.
            modality: as `add`, one for all; cannot be cleared.
            camera: as `add`, one for all.
            time: as `add`, one for all.
            source: as `add`, one for all.
            track: as `add`, one for all.
            tags: as `add`, the same for all.

        Returns:
            How many entries were changed.

        Raises:
            GalleryError: for an id that is not there, or a bad value.
            GalleryBusyError: as `add`.
        """
        if isinstance(ids, str):
            raise GalleryError(f"ids={ids!r}: give a list, as [{ids!r}]")
        change = inputs.make_change(
            pid=pid, modality=modality, camera=camera, time=time, source=source, track=track, tags=tags
        )
        return self._store.update(list(dict.fromkeys(map(_id, ids))), change)

    def remove(self, where: Where, *, remember: bool = True) -> int:
        """Remove all entries that match, provably.

        When it returns, no file of an embedded gallery holds their embeddings any more. docs/concepts/gallery.md
        says which metadata stays until `compact`.

        Args:
            where: which; at least one condition.
            remember: `fmcnet index` leaves them out from now on; a cluster never remembers.

        Returns:
            How many entries were removed.

        Raises:
            GalleryError: when no condition is given.
            GalleryBusyError: as `add`; or when a reader keeps the log busy.
        """
        if check_where(where) is None or where.unconditional:
            raise GalleryError(
                "remove needs a condition; to drop a whole gallery, delete its folder or collection"
            )
        return self._store.remove(where, remember)

    def expire(self, keep: str | timedelta, *, now: datetime | None = None, dry_run: bool = False) -> int:
        """Remove entries seen longer ago than `keep`; those without a time, or before 1970, stay.

        Args:
            keep: a duration, or a whole number and s, m (minutes), h, d or w, as "30d".
            now: what `keep` is counted back from, an aware datetime; None: the present.
            dry_run: only count.

        Returns:
            How many entries were removed, or would be.

        Raises:
            GalleryError: for a bad duration.
            GalleryBusyError: as `remove`.
        """
        old = Where(since=EPOCH, until=inputs.expires_before(keep, now))
        return self._store.count(old) if dry_run else self._store.remove(old)

    def compact(self) -> None:
        """Free the space of removed entries and update the index; may take minutes for millions."""
        self._store.compact()

    def check(self) -> list[str]:
        """Verify everything.

        Returns:
            Faults of the index, which are repaired unless `read_only`.

        Raises:
            GalleryDamagedError: when the database itself is damaged.
        """
        return self._store.check()

    def export(self, path: str | Path, where: Where | None = None) -> int:
        """Write entries and embeddings to one file.

        Args:
            path: of the file, which ends in .parquet or .npz.
            where: which entries; None: all.

        Returns:
            How many entries were written.

        Raises:
            GalleryError: for another ending, a gallery never added to, or a file that cannot be written.
        """
        from fmcnet.retrieval.copy import export

        settings = self._store.settings
        if settings is None:
            raise GalleryError(f"{self.location} is empty: there is nothing to export")
        return export(Path(path), settings, self._store.scan(check_where(where), 4096))

    def backup(self, path: str | Path) -> int:
        """Copy the gallery of a folder into a new folder, also while others write.

        The copy is a gallery, too; `fmcnet.retrieval.backup.restore` puts it in the place of another one.

        Args:
            path: a folder that does not exist.

        Returns:
            How many entries the copy has.

        Raises:
            GalleryDamagedError: when the gallery is damaged.
            GalleryError: when `path` exists or cannot be written.
        """
        from fmcnet.retrieval.backup import backup

        return backup(self.location, path)


def _id(value: object) -> str:
    if not isinstance(value, str):
        raise GalleryError(f"an id is a text, not {value!r:.100}")
    return str.__str__(value)  # a text of an enum hashes its name


def open_store(location: str | Path, options: OpenOptions) -> Store:
    """The store at a location: a folder, or milvus://host:port/name. Errors as of `Gallery`."""
    if str(location).startswith("milvus://"):
        from fmcnet.retrieval.milvus_store import MilvusStore

        return MilvusStore(str(location), options)
    if "://" in str(location):
        raise GalleryError(f"{location}: a gallery is a folder, or milvus://host:port/name")
    from fmcnet.retrieval.sqlite_store import SqliteStore

    return SqliteStore(Path(location), options)
