"""`Searcher`: an encoder with a gallery: images in, answers out; and which model is a gallery's."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmcnet.data.pixels import RANGE, RANGE_UNUSED, Remarks, ValueRange
from fmcnet.errors import DataError, FmcnetError, GalleryError
from fmcnet.files import private_mode, write_atomically
from fmcnet.inference.encoder import Encoder
from fmcnet.inference.image_input import Fault, ImageLike, ModalityLike, expand, make_thumbnail
from fmcnet.inference.projection import l2_normalize
from fmcnet.models.shipped import shipped_models
from fmcnet.parsing import read_json
from fmcnet.retrieval.answer import Answer, CalibratedScores, answer_notes
from fmcnet.retrieval.gallery import MAX_HITS, Gallery
from fmcnet.retrieval.inputs import column, tag_column
from fmcnet.retrieval.notes import OWN_RANGES, filter_notes, query_range_notes, ranges_text
from fmcnet.retrieval.records import MADE_WITH, Added, HitGroup, OnDuplicate, Where
from fmcnet.retrieval.similarity import group as group_hits
from fmcnet.types import Embeddings, FloatArray, Modality

Modalities = ModalityLike | Sequence[ModalityLike] | NDArray[np.uint8]
GroupBy = Literal["track", "pid"]
GalleryRange = Literal["gallery"]


class Searcher:
    """Index images and search for a person.

    Args:
        encoder: turns images into embeddings; its calibration, where it has one, says what similarities mean.
        gallery: where embeddings are kept; empty, or made by the same model.

    Raises:
        GalleryError: when the gallery holds embeddings of another model.
        FmcnetError: when the encoder has no digest.
    """

    def __init__(self, encoder: Encoder, gallery: Gallery) -> None:
        self.encoder, self.gallery = encoder, gallery
        if not encoder.digest:
            raise FmcnetError(
                "this encoder has no digest, so its embeddings cannot be distinguished from those of others: load it"
            )
        self._check()

    def __repr__(self) -> str:
        return f"<Searcher {self.encoder!r} in {self.gallery!r}>"

    def _check(self) -> None:
        settings = self.gallery.settings
        if settings is not None and settings.model != self.encoder.digest:
            raise GalleryError(
                f"{self.gallery.location} holds embeddings of model {settings.model}, but "
                f"{self.encoder.folder or 'this encoder'} is model {self.encoder.digest}: similarities between "
                "models mean nothing. Take the model it was indexed with (an int8 export is one of its own), or "
                "index into another gallery"
            )

    # ---- adding ----

    def add(
        self,
        images: ImageLike | Iterable[ImageLike],
        modality: Modalities,
        *,
        ids: Sequence[str] | None = None,
        pid: str | int | Sequence[str | int | None] | None = None,
        camera: str | Sequence[str | None] | None = None,
        time: datetime | Sequence[datetime | None] | None = None,
        track: str | Sequence[str | None] | None = None,
        source: str | Path | Sequence[str | Path | None] | None = None,
        tags: Sequence[str] | Sequence[Sequence[str]] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        on_duplicate: OnDuplicate = "refuse",
        keep_images: bool = False,
        batch_size: int = 64,
        progress: bool | None = None,
        value_range: ValueRange | GalleryRange | None = "gallery",
        remarks: Remarks | None = None,
    ) -> Added:
        """Encode images and add them; they are on disk when this returns.

        Args:
            images: as `Encoder.encode` takes them: paths, folders, Pillow images or (H, W, 3) uint8 arrays, N in all.
            modality: one for all, or one for each item of `images`.
            ids: N texts, as `Gallery.add`.
            pid: one for all, or N of them, as `Gallery.add`.
            camera: one for all, or N of them, as `Gallery.add`.
            time: one for all, or N of them, as `Gallery.add`.
            track: one for all, or N of them, as `Gallery.add`.
            source: one for all, or N of them, as `Gallery.add`. None: the absolute path of an image given by its
                path, and nothing for others.
            tags: texts for all, or N lists of texts.
            on_error: "raise": one image that cannot be read refuses all; "skip": it is left out, see `Added.faults`.
            on_duplicate: what to do with an id that is there, as `Gallery.add`.
            keep_images: keep a thumbnail of each image in the gallery, a JPEG, which goes when the entry goes;
                otherwise no image is kept.
            batch_size: images encoded at once.
            progress: show a bar; None: on a terminal only.
            value_range: of images deeper than 8 bits, as `Encoder.encode`; "gallery": as `resolve_range`. The gallery
                records it where it was used.
            remarks: collects what is doubtful about the images, as `Encoder.encode`.

        Returns:
            The ids, the counts, and the images that were left out.

        Raises:
            DataError: naming the images that cannot be read.
            GalleryError: as `Gallery.add`, or as `check_ranges` where the range is left to the gallery.
        """
        if on_error not in ("raise", "skip"):
            raise FmcnetError(f"on_error='{on_error}': say raise or skip")
        items = expand(images, modality)
        sources, modalities = [item.source for item in items], [item.modality for item in items]
        if source is None:
            source = [
                str(Path(image).absolute()) if isinstance(image, (str, Path)) else None for image in sources
            ]
        metadata = {"pid": pid, "camera": camera, "time": time, "track": track, "source": source}
        if ids is not None:
            metadata["ids"] = [ids] if isinstance(ids, str) else ids
        columns = {name: column(value, len(items), name) for name, value in metadata.items()}
        columns["tags"] = tag_column(tags, len(items))
        faults: list[Fault] = []
        noted, resolved = Remarks(), self.resolve_range(value_range)
        try:
            embeddings = self.encoder.encode(
                sources,
                modalities,
                on_error=faults.append if on_error == "skip" else "raise",
                batch_size=batch_size,
                progress=progress,
                value_range=resolved,
                remarks=noted,
            )
        except DataError:
            if len(faults) < len(items):
                raise
            return Added((), 0, faults=tuple(faults))  # none is left
        if remarks is not None:
            remarks.update(noted)
        readable = sorted(set(range(len(items))) - {fault.position for fault in faults})
        columns = {name: [values[index] for index in readable] for name, values in columns.items()}
        if keep_images:
            columns["thumbnails"] = [make_thumbnail(sources[index], resolved) for index in readable]
        used = noted.ranges(resolved)
        if value_range == "gallery":
            self.check_ranges(used)
        added = self.add_embeddings(embeddings, **columns, on_duplicate=on_duplicate, ranges=used)
        return replace(added, faults=tuple(faults))

    def add_embeddings(
        self,
        embeddings: Embeddings,
        *,
        on_duplicate: OnDuplicate = "refuse",
        **columns: Any,
    ) -> Added:
        """Add embeddings of this searcher's encoder.

        Args:
            embeddings: N of them, with their modalities.
            on_duplicate: what to do with an id that is there, as `Gallery.add`.
            columns: metadata, thumbnails and ranges, by the keywords of `Gallery.add`.

        Returns:
            The ids and the counts.

        Raises:
            GalleryError: as `Gallery.add`.
        """
        self._check()
        modalities = [Modality.from_code(int(code)) for code in embeddings.modality]
        return self.gallery.add(
            embeddings.features,
            modality=modalities,
            model=self.encoder.digest,
            on_duplicate=on_duplicate,
            **columns,
        )

    def resolve_range(self, value_range: ValueRange | GalleryRange | None = "gallery") -> ValueRange | None:
        """A value range that was given; "gallery": that of the gallery's deep images, where they have one alone."""
        if value_range != "gallery":
            return value_range
        ranges = self.gallery.value_ranges
        return ranges[0] if len(ranges) == 1 else None

    def check_ranges(
        self, used: Sequence[ValueRange | None], advice: str = RANGE
    ) -> tuple[ValueRange | None, ...]:
        """Refuse images that were stretched, for want of a range, where the gallery has several.

        Args:
            used: the images' ranges, as `Remarks.ranges` gives them.
            advice: how to give one, as `Remarks.lines`.

        Returns:
            `Gallery.value_ranges`.

        Raises:
            GalleryError: with these ranges.
        """
        ranges = self.gallery.value_ranges
        if None in used and len(ranges) > 1:
            raise GalleryError(
                f"the gallery's deep images have, or had, several value ranges ({ranges_text(ranges)}), so an image "
                f"like these needs one: {advice}. fmcnet index --existing replace --range LOW:HIGH of all images "
                f"leaves one range{OWN_RANGES}"
            )
        return ranges

    # ---- searching ----

    def search(
        self,
        images: ImageLike | Iterable[ImageLike],
        modality: Modalities,
        *,
        top: int = 20,
        where: Where | None = None,
        min_probability: float | None = None,
        fmr: float | None = None,
        prior: float | None = None,
        group: GroupBy | None = None,
        exact: bool = False,
        value_range: ValueRange | GalleryRange | None = "gallery",
    ) -> Answer:
        """Search the gallery for one person.

        Args:
            images: one or several of ONE person, in one or both modalities; several are pooled into one query.
            modality: one for all or one for each image.
            top: how many hits, 1 to 100,000.
            where: which entries to look at; None: all.
            min_probability: leave out entries less probable than this to show the same person; between 0 and 1.
            fmr: leave out entries below the calibrated threshold at this false-match rate, which is that of one
                comparison; between 0 and 1.
            prior: how probable it is, before comparing, that a given entry shows this person, between 0 and 1. None:
                1 / (n + 1) for n entries compared (grouped by track: tracks), as if each showed another person, and
                this one might be absent. For a gallery with many of each of p persons, give 1 / (p + 1).
            group: the `top` best tracks or persons instead of entries. A track is judged by its entries of one
                modality pooled (see `Gallery.search_groups`), a person by the most similar entry, with
                the probability of the most probable one.
            exact: compare with every entry, whatever the index.
            value_range: as `Encoder.encode`; "gallery": as `resolve_range`.

        Returns:
            Hits ranked by similarity, and notes for the reader.

        Raises:
            DataError: for an image that cannot be read.
            GalleryError: as `Gallery.search`, or as `check_ranges` where the range is left to the gallery.
            FmcnetError: when a probability or rate is asked for and the model is not calibrated.
        """
        remarks, resolved = Remarks(), self.resolve_range(value_range)
        query = self.encoder.encode(images, modality, progress=False, value_range=resolved, remarks=remarks)
        used = remarks.ranges(resolved)
        ranges = self.gallery.value_ranges if value_range is None else self.check_ranges(used)
        answer = self.answer(
            query,
            top=top,
            where=where,
            min_probability=min_probability,
            fmr=fmr,
            prior=prior,
            group=group,
            exact=exact,
        )
        notes = [*remarks.lines(), *query_range_notes(ranges, used)]
        if value_range not in (None, "gallery") and not remarks.ranged():
            notes.append(RANGE_UNUSED)
        return replace(answer, notes=(*answer.notes, *notes))

    def answer(
        self,
        query: Embeddings,
        *,
        top: int = 20,
        where: Where | None = None,
        min_probability: float | None = None,
        fmr: float | None = None,
        prior: float | None = None,
        group: GroupBy | None = None,
        exact: bool = False,
    ) -> Answer:
        """`search` for images that this searcher's encoder has encoded already.

        Args:
            query: embeddings of one or several images of ONE person.
            top: as `search`.
            where: as `search`.
            min_probability: as `search`.
            fmr: as `search`.
            prior: as `search`.
            group: as `search`.
            exact: as `search`.

        Returns:
            As `search`.

        Raises:
            GalleryError: as `Gallery.search`.
            FmcnetError: as `search`.
        """
        for value, name in ((min_probability, "min_probability"), (prior, "prior")):
            if value is not None and not 0.0 < value < 1.0:
                raise FmcnetError(f"{name}={value} must be between 0 and 1")
        if group not in (None, "track", "pid"):
            raise FmcnetError(f"group='{group}': hits are grouped by track or pid")
        self._check()
        where = where or Where()
        limited = min_probability is not None or fmr is not None
        modalities = [modality for modality in Modality if (query.modality == modality.code).any()]
        calibration = self.encoder.calibration if self.encoder.calibrated else None
        length = 1.0
        if len(query) > 1:
            length = min(float(np.linalg.norm(l2_normalize(query.features).mean(axis=0))), 1.0)
        scores = CalibratedScores(calibration, modalities, images=len(query), length=length)
        scopes, entries = [where], where.modalities
        thresholds: dict[Modality, float] = {}
        if limited:
            entries = self._calibrated_entries(scores, entries)
            scopes = [replace(where, modality=entry) for entry in entries]
            if fmr is not None:
                thresholds = {entry: scores.threshold(entry, fmr) for entry in entries}
        compared = sum(self.gallery.count(scope) for scope in scopes)
        results = compared
        if group == "track":
            results = sum(self.gallery.count(scope, by_track=True) for scope in scopes)
        scores = replace(scores, prior=prior if prior is not None else 1.0 / (max(results, 1) + 1))

        candidates: list[HitGroup] = []
        for scope in scopes:
            candidates += self._candidates(query.features, scores, scope, top, exact, group, every=limited)
        if group == "pid" and calibration is not None:
            candidates += self._of_each_modality(candidates, query.features, scores, where, entries, exact)
        candidates.sort(key=lambda item: (-item.similarity, item.best.id))
        groups = [
            item
            for item in scores.reaching(candidates, thresholds)
            if (item.probability or 0.0) >= (min_probability or 0.0)
        ]
        if group == "pid":  # again, without the hits below the thresholds
            persons = group_hits([item.best for item in groups], group)
            groups = [replace(person, probability=_most_probable(person)) for person in persons]
        groups = groups[:top]

        notes = [
            *filter_notes(self.gallery, where),
            *answer_notes(scores, candidates, groups, limited, group, where, self.encoder.folder),
        ]
        if group == "track" and prior is None and calibration is not None and self.gallery.files is None:
            notes.append(
                "a cluster does not count its tracks, so the prior is that of its entries: give one of tracks"
            )
        if not compared:
            reason = "the gallery is empty, or nothing in it passes the filter"
            notes.insert(0, f"there was no entry to compare with: {reason}")
        answer = Answer(
            hits=tuple(
                replace(found.best, similarity=found.similarity, probability=found.probability)
                for found in groups
            ),
            groups=tuple(groups) if group else (),
            no_match=not groups and (limited or not compared),
            modality=modalities[0] if len(modalities) == 1 else None,
            images=len(query),
            compared=compared,
            prior=scores.prior if calibration is not None else None,
            thresholds=thresholds,
            notes=tuple(notes),
        )
        return replace(answer, notes=(answer.order, *notes)) if answer.order else answer

    def _of_each_modality(
        self,
        found: Sequence[HitGroup],
        query: FloatArray,
        scores: CalibratedScores,
        where: Where,
        entries: Sequence[Modality],
        exact: bool,
    ) -> list[HitGroup]:
        """Other entries of the persons found, the nearest of each modality: the most probable one counts."""
        known = {item.best.id for item in found}
        pids = sorted({item.best.pid for item in found if item.best.pid is not None})[:MAX_HITS]
        hits: list[HitGroup] = []
        for entry in entries if pids else ():
            scope = replace(where, modality=entry, pids=pids)
            hits += self._candidates(query, scores, scope, len(pids), exact, "pid", every=False)
        return [hit for hit in hits if hit.best.id not in known]

    def _calibrated_entries(self, scores: CalibratedScores, entries: list[Modality]) -> list[Modality]:
        """Those modalities of entries whose similarities can be judged; an error if there is none."""
        covered = [entry for entry in entries if scores.covers(entry)]
        if not covered:
            query = " and ".join(str(modality) for modality in scores.query)
            raise FmcnetError(
                f"a probability or false-match rate needs a calibration of {query} queries against "
                f"{' or '.join(str(modality) for modality in entries)} entries, which this model lacks: make one "
                f"with fmcnet calibrate {self.encoder.folder or 'RUN'} --data TABLE, or ask without"
            )
        return covered

    def _candidates(
        self,
        query: FloatArray,
        scores: CalibratedScores,
        where: Where,
        top: int,
        exact: bool,
        group: GroupBy | None,
        *,
        every: bool,
    ) -> list[HitGroup]:
        """The nearest entries, each alone, or the nearest tracks, each by its entries pooled.

        `every`: all tracks that were pooled, since a less similar one of fewer images may be more probable.
        """
        model = self.encoder.digest
        if group == "track":
            tracks = self.gallery.search_groups(
                query, group, top, where, model=model, exact=exact, pooled=True, every=every
            )
            tracks = [replace(track, hits=tuple(scores.with_probabilities(track.hits))) for track in tracks]
            return scores.with_probabilities(tracks)
        if group == "pid":
            persons = self.gallery.search_groups(query, group, top, where, model=model, exact=exact)
            hits = [hit for person in persons for hit in person.hits]
        else:
            hits = self.gallery.search(query, top, where, model=model, exact=exact)
        return [
            HitGroup(None, hit.similarity, (hit,), probability=hit.probability)
            for hit in scores.with_probabilities(hits)
        ]


def _most_probable(person: HitGroup) -> float | None:
    """The highest probability of a person's hits, None where none has one."""
    return max((hit.probability for hit in person.hits if hit.probability is not None), default=None)


def open_model(
    gallery: str, source: str | Path | None, device: str = "auto", calibration: Path | None = None
) -> Encoder:
    """The encoder for a gallery: that of `choose_model`, with the arguments of `Encoder.from_pretrained`."""
    return Encoder.from_pretrained(choose_model(gallery, source), device=device, calibration=calibration)


def choose_model(gallery: str, source: str | Path | None) -> str | Path:
    """The model of a gallery: its folder or name.

    Args:
        gallery: the location of the gallery to search or to add to.
        source: a model's folder or name; None: the recorded one, or the shipped one if there is just one.

    Raises:
        FmcnetError: when there is no model to take, or it does not exist.
    """
    shipped = list(shipped_models())
    recorded = recorded_model(gallery)
    chosen = source or recorded or (shipped[0] if len(shipped) == 1 else None)
    if chosen is None:
        if "://" not in gallery and not Path(gallery).exists():
            raise FmcnetError(
                f"{gallery} does not exist: check the path; for a new one say which model to use, with --model RUN"
            )
        if "://" not in gallery and not os.access(gallery, os.R_OK | os.X_OK):
            raise FmcnetError(f"{gallery} cannot be read: Permission denied")
        raise FmcnetError(f"{gallery}: say which model to use, with --model RUN")
    if source is None and recorded and not Path(recorded).exists() and recorded not in shipped:
        raise GalleryError(
            f"{gallery} was indexed with the model at {recorded}, which does not exist any more: say where it is, "
            "with --model RUN"
        )
    return chosen


def record_model(gallery: str, model: str | Path | None) -> None:
    """Record the absolute path of a gallery's model, or a shipped one's name; a cluster records nothing."""
    folder = Path(gallery)
    if model is None or not folder.is_dir():
        return
    path, note = Path(model).expanduser(), _read_note(folder)
    changed = note | {"model": str(path.absolute()) if path.exists() else str(model)}
    if changed != note:
        text = json.dumps(changed) + "\n"
        write_atomically(
            folder / MADE_WITH, lambda target: target.write_text(text, encoding="utf-8"), private_mode(folder)
        )


def recorded_model(gallery: str) -> str:
    """The folder or name that `record_model` recorded; "" for none."""
    return str(_read_note(Path(gallery)).get("model") or "")


def _read_note(folder: Path) -> dict[str, Any]:
    """The recorded values; empty where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        note = read_json(folder / MADE_WITH)
        return note if isinstance(note, dict) else {}
    return {}
