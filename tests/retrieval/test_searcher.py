"""Answers: ranked, with probabilities by the right curve, or nobody; pooled, grouped, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest

from fmcnet.errors import CheckpointError, DataError, FmcnetError, GalleryError
from fmcnet.inference.fit_calibration import fit_calibration
from fmcnet.inference.projection import l2_normalize
from fmcnet.retrieval import Gallery, Searcher, Where
from fmcnet.retrieval.notes import filter_notes
from fmcnet.types import Embeddings, Modality
from tests.retrieval.fakes import DAY, DIGEST, NIGHT, curve, encoder, image, similarity

RED, PINK, GREEN, BLUE = (250, 20, 20), (240, 90, 60), (20, 250, 20), (20, 20, 250)
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
ALL = {(a, b): curve(0.1 * (a is b)) for a in Modality for b in Modality}


@pytest.fixture
def searcher(tmp_path):
    """Four persons by day, one of them by night too."""
    with Gallery(tmp_path / "g") as gallery:
        made = Searcher(encoder(tmp_path, ALL), gallery)
        made.add(
            [image(*c) for c in (RED, PINK, GREEN, BLUE)],
            "visible",
            ids=["red", "pink", "green", "blue"],
            pid=[1, 1, 2, 3],
            camera=["gate", "hall", "gate", "gate"],
            time=NOON,
            track=["t1", "t1", "t2", None],
        )
        made.add(image(*RED), "ir", ids=["night-red"], pid=1, camera="yard")
        yield made


def test_hits_are_ranked_with_the_probability_of_their_pair_of_modalities(searcher):
    answer = searcher.search(image(*RED), "infrared")
    assert [hit.id for hit in answer.hits][:3] == ["night-red", "red", "pink"]
    assert (answer.compared, answer.modality, answer.images, answer.no_match) == (5, NIGHT, 1, False)
    assert answer.prior == pytest.approx(1 / 6)
    colours = {"red": RED, "pink": PINK, "green": GREEN, "blue": BLUE, "night-red": RED}
    for hit in answer.hits:
        cosine = similarity(RED, colours[hit.id])
        odds = np.exp(8 * (cosine - (0.1 if hit.modality is NIGHT else 0.0))) / 5
        assert hit.similarity == pytest.approx(cosine, abs=3e-4)
        assert hit.probability == pytest.approx(odds / (1 + odds), abs=3e-4)
    assert answer.notes == (answer.order,)


def test_the_prior_can_be_given(searcher):
    low, high = (searcher.search(image(*RED), "ir", prior=p).hits[0].probability for p in (0.001, 0.5))
    assert low < high
    assert searcher.search(image(*RED), "ir", prior=0.5).prior == 0.5


def test_the_prior_of_tracks_is_that_of_so_many_tracks(tmp_path, monkeypatch):
    """A track is one result: with 1 / (entries + 1), a sure one of 40 images was called improbable."""
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, ALL), gallery)
        searcher.add([image(*RED)] * 40, "visible", track="a", camera="gate")
        searcher.add([image(*BLUE)] * 5, ["visible"] * 3 + ["ir"] * 2, track="b", camera="gate")
        searcher.add([image(*GREEN)] * 2, "visible", camera="hall")  # each a result of its own
        tracks = searcher.search(image(*RED), "ir", group="track")
        assert (len(tracks.groups), tracks.compared, tracks.prior) == (5, 47, pytest.approx(1 / 6))
        for group in (None, "pid"):
            assert searcher.search(image(*RED), "ir", group=group).prior == pytest.approx(1 / 48)
        gate = Where(cameras=["gate"], modality="visible")
        found = searcher.search(image(*RED), "ir", group="track", where=gate, min_probability=0.9)
        assert (found.compared, found.prior) == (43, pytest.approx(1 / 3))
        assert [group.key for group in found.groups] == ["a"]
        assert searcher.search(image(*RED), "ir", group="track", prior=0.5).prior == 0.5
        gallery.remove(Where(tracks=["b"]))
        assert searcher.search(image(*RED), "ir", group="track").prior == pytest.approx(1 / 4)
        monkeypatch.setattr(Gallery, "files", None)  # as of a cluster
        for prior, told in ((None, 1), (0.5, 0)):
            notes = searcher.search(image(*RED), "ir", group="track", prior=prior).notes
            assert sum("a cluster does not count its tracks" in note for note in notes) == told


def test_conditions_narrow_what_is_compared_and_the_prior(searcher):
    answer = searcher.search(image(*RED), "ir", where=Where(cameras=["gate"]))
    assert {hit.id for hit in answer.hits} == {"red", "green", "blue"}
    assert answer.compared == 3
    assert answer.prior == pytest.approx(1 / 4)


def test_searcher_and_gallery_print_on_a_line(searcher):
    gallery = searcher.gallery
    size = gallery.settings.dimension
    said = f"<Gallery {gallery.location}: {len(gallery)} entries, {size} values, float32, model "
    assert repr(gallery).startswith(said)
    assert repr(searcher) == f"<Searcher {searcher.encoder!r} in {gallery!r}>"
    gallery.close()
    assert repr(gallery) == f"<Gallery {gallery.location}: closed, or not readable>"


def test_nobody(searcher):
    answer = searcher.search(image(128, 140, 250), "ir", min_probability=0.999)
    assert answer.no_match
    assert answer.hits == ()
    assert "no match: no entry reaches" in answer.notes[-1]
    assert "similarity 0." in answer.notes[-1]
    assert not searcher.search(image(*RED), "ir", min_probability=0.9).no_match


def test_a_filter_that_nothing_passes_is_said_and_is_nobody(searcher):
    answer = searcher.search(image(*RED), "ir", where=Where(cameras=["nowhere"]))
    assert (answer.hits, answer.compared, answer.no_match) == ((), 0, True)
    assert "nothing in it passes the filter" in answer.notes[0]


def test_a_filter_by_time_where_no_entry_has_one_is_told(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        where = Where(since=datetime(2026, 3, 1, tzinfo=timezone.utc))
        assert filter_notes(gallery, where) == ()
        gallery.add(np.ones((1, 4), np.float32), modality="visible")
        assert filter_notes(gallery, where) == ("no entry has a time, so none passes a filter by time",)
        gallery.add(
            np.ones((1, 4), np.float32), modality="visible", time=datetime(2026, 2, 1, tzinfo=timezone.utc)
        )
        assert filter_notes(gallery, where) == ("1 of 2 entries have no time, and pass no filter by time",)
    with (
        Gallery(tmp_path / "g") as gallery,
        pytest.raises(GalleryError, match="must be more than no time"),
    ):
        gallery.expire("0d")


def test_entries_that_no_filter_by_time_can_find_are_counted(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        gallery.add(np.eye(3), modality="visible", time=[NOON, None, NOON])
        left_out = ("1 of 3 entries have no time, and pass no filter by time",)
        assert (
            filter_notes(gallery, Where(since=NOON)) == filter_notes(gallery, Where(until=NOON)) == left_out
        )
        (reversed_,) = filter_notes(gallery, Where(since=NOON, until=NOON))
        assert reversed_.endswith("is not before the one to search until, so no entry passes")
        gallery.update([entry.id for entry, _ in gallery.scan()], time=NOON)
        assert filter_notes(gallery, Where(since=NOON)) == ()


def test_a_modality_that_no_entry_has_is_told(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        assert filter_notes(gallery, Where(modality="ir")) == ()
        gallery.add(np.ones((1, 4), np.float32), modality="visible")
        assert filter_notes(gallery, Where(modality="ir")) == (
            "no entry is infrared, so none passes a filter by modality",
        )
        assert filter_notes(gallery, Where(modality="visible")) == ()


def test_a_false_match_rate_sets_a_threshold_for_each_modality(searcher):
    answer = searcher.search(image(*RED), "ir", fmr=0.01)
    assert answer.thresholds == {DAY: pytest.approx(0.98), NIGHT: pytest.approx(0.99)}
    assert [hit.id for hit in answer.hits] == ["night-red", "red"]
    with pytest.raises(FmcnetError, match="cannot be told"):
        searcher.search(image(*RED), "ir", fmr=1e-9)


def test_what_reaches_is_found_behind_many_of_the_other_modality(tmp_path):
    """Most similar are visible entries whose curve asks for more; the infrared one further down is right."""
    curves = {**ALL, (NIGHT, DAY): curve(2.0)}
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, curves), gallery)
        searcher.add([image(*RED)] * 30, "visible")
        searcher.add(image(*PINK), "infrared", ids=["right"])
        assert all(hit.modality is DAY for hit in searcher.search(image(*RED), "ir").hits)
        found = searcher.search(image(*RED), "ir", min_probability=0.5, prior=0.5)
        assert [hit.id for hit in found.hits] == ["right"]
        grouped = searcher.search(image(*RED), "ir", min_probability=0.5, prior=0.5, group="track")
        assert [hit.id for hit in grouped.hits] == ["right"]


def test_groups_by_track_and_person(searcher):
    answer = searcher.search(image(*RED), "ir", group="pid")
    assert next((g.key, [m.id for m in g.hits]) for g in answer.groups) == (
        "1",
        ["night-red", "red", "pink"],
    )
    assert [hit.id for hit in answer.hits] == [g.best.id for g in answer.groups]
    assert len(answer.groups) == 3
    by_track = searcher.search(image(*RED), "ir", group="track", top=2)
    assert [g.key for g in by_track.groups] == [None, "t1"]
    sure = searcher.search(image(*RED), "ir", group="pid", fmr=0.01)
    assert [(g.key, [m.id for m in g.hits]) for g in sure.groups] == [("1", ["night-red", "red"])]


def test_a_persons_probability_is_the_same_with_and_without_a_limit(tmp_path):
    """The night crop is more similar, the day crop more probable: the day crop tells who this is."""
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, {**ALL, (NIGHT, NIGHT): curve(2.0)}), gallery)
        searcher.add(image(250, 20, 20), NIGHT, ids=["night"], pid="anna")
        searcher.add(image(240, 60, 40), DAY, ids=["day"], pid="anna")
        searcher.add(image(245, 40, 30), DAY, pid="bob")  # nearer than anna's by day
        searcher.add([image(*GREEN)] * 30, DAY)
        query = {"images": image(250, 20, 20), "modality": NIGHT, "group": "pid", "prior": 0.5}
        night, day = (searcher.gallery.get(name) for name in ("night", "day"))
        anna = searcher.search(**query).groups[0]
        assert [hit.id for hit in anna.hits] == [night.id, day.id]
        assert anna.hits[0].probability < anna.hits[1].probability == anna.probability
        limit = (anna.hits[0].probability + anna.probability) / 2
        sure = searcher.search(**query, min_probability=limit)
        assert [(one.key, one.best.id) for one in sure.groups][1] == ("anna", day.id)
        assert sure.groups[1].probability == anna.probability
        few = searcher.search(**query, top=1)  # the day crop counts, however many entries are nearer
        assert few.groups[0].probability == anna.probability


def test_a_track_is_its_images_pooled_and_a_person_the_best_image(searcher):
    """One image of t3 is nearer than any of t1, all of them together are further."""
    searcher.add([image(*RED), image(*BLUE)], "visible", track="t3", ids=["near", "far"])
    answer = searcher.search(
        image(*RED), "ir", where=Where(tracks=["t1", "t2", "t3"]), group="track", prior=0.5
    )
    units = {c: (np.array(c) - 127.5) / np.linalg.norm(np.array(c) - 127.5) for c in (RED, PINK, GREEN, BLUE)}
    for one, colours in zip(answer.groups, ((RED, PINK), (RED, BLUE), (GREEN,)), strict=True):
        mean = sum(units[c] for c in colours)
        cosine = float(units[RED] @ mean / np.linalg.norm(mean))
        assert one.similarity == pytest.approx(cosine, abs=3e-4)
        left = min(1.0, np.linalg.norm(mean) / np.sqrt(len(colours)))  # of the two opposite colours of t3
        assert one.probability == pytest.approx(1 / (1 + np.exp(-8 * cosine * left)), abs=3e-4)
        assert one.pooled == one.size == len(colours)
    assert [one.key for one in answer.groups] == ["t1", "t3", "t2"]
    assert [hit.id for hit in answer.hits] == ["red", "near", "green"]
    assert next((m.id, round(m.similarity, 3), n) for m, n in answer.ranking) == (
        "red",
        round(answer.groups[0].similarity, 3),
        2,
    )
    assert any("the images of each track were pooled" in note for note in answer.notes)
    tree = json.loads(json.dumps(answer.to_dict()))["groups"][0]
    assert (tree["key"], tree["pooled"], tree["similarity"]) == ("t1", 2, answer.groups[0].similarity)
    least = (answer.groups[0].probability + answer.groups[1].probability) / 2
    sure = searcher.search(
        image(*RED), "ir", where=Where(tracks=["t1", "t3"]), group="track", prior=0.5, min_probability=least
    )
    assert [one.key for one in sure.groups] == ["t1"]
    nobody = searcher.search(
        image(*GREEN), "ir", where=Where(tracks=["t1"]), group="track", min_probability=0.9
    )
    assert nobody.no_match
    assert "the nearest track has similarity" in nobody.notes[-1]
    by_person = searcher.search(image(*RED), "ir", group="pid", where=Where(pids=[1]))
    assert [(g.similarity, g.probability, g.pooled) for g in by_person.groups] == [
        (by_person.hits[0].similarity, by_person.hits[0].probability, 0)
    ]


def test_pooled_images_of_two_persons_reach_a_false_match_rate_as_often_as_single_ones(tmp_path):
    """Pooling takes out what differs between images of one person, so that all cosines grow."""
    rng = np.random.default_rng(0)
    persons, several = 200, 6
    looks = rng.normal(size=(persons, 1, 64)) * 0.6 + 0.5 + rng.normal(size=(persons, 2 * several, 64))
    singles = l2_normalize(looks.reshape(-1, 64).astype(np.float32))
    pid, codes = np.repeat(np.arange(persons), 2 * several), np.tile([0, 1], persons * several)
    plain = Embeddings.unlabelled(singles, codes.astype(np.uint8), pid.astype(str))
    labelled = replace(plain, pid=pid, camid=np.arange(len(pid)))
    curves = fit_calibration(labelled, DIGEST).curves
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, curves), gallery)
        tracked = codes == 0
        gallery.add(singles[tracked], modality="visible", track=[f"t{p}" for p in pid[tracked]], model=DIGEST)
        persons_found = {"track": list[bool](), None: list[bool]()}
        for person in range(20):
            query = labelled.take((pid == person) & ~tracked)
            for group, right in persons_found.items():
                answer = searcher.answer(query, top=1000, group=group, fmr=0.01, exact=True)
                right += [hit.track == f"t{person}" for hit in answer.hits]
                assert all(hit.similarity >= answer.thresholds[DAY] for hit, _ in answer.ranking)
    rate = {group: (len(right) - sum(right)) / 20 / (persons - 1) for group, right in persons_found.items()}
    assert 0.002 < rate["track"] < 0.03  # by cosine alone 0.16
    assert 0.002 < rate[None] / several < 0.03
    assert sum(persons_found["track"]) == 20


def test_several_images_make_one_query_and_both_modalities_the_cautious_curve(searcher):
    answer = searcher.search([image(*RED), image(*PINK)], ["visible", "infrared"], prior=0.5)
    assert (answer.modality, answer.images) == (None, 2)
    assert answer.to_dict()["query"] == {"modality": "both", "images": 2}
    for hit in answer.hits:
        low = 8 * (hit.similarity - 0.1)  # of the two curves to either kind of entry
        assert hit.probability == pytest.approx(1 / (1 + np.exp(-low)), abs=1e-4)
    assert any("pooled" in note for note in answer.notes)
    assert any("cautious" in note for note in answer.notes)


def test_without_a_calibration_there_are_similarities_and_a_word(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path), gallery)
        searcher.add(image(*RED), "visible")
        answer = searcher.search(image(*RED), "ir")
        assert answer.hits[0].probability is None
        assert answer.prior is None
        assert "not calibrated" in answer.notes[0]
        with pytest.raises(FmcnetError, match="needs a calibration of infrared"):
            searcher.search(image(*RED), "ir", min_probability=0.5)


def test_a_direction_that_is_not_calibrated_is_said(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, {(NIGHT, DAY): curve()}), gallery)
        searcher.add([image(*RED), image(*RED)], ["visible", "infrared"], ids=["v", "i"])
        answer = searcher.search(image(*RED), "ir")
        assert {hit.id: hit.probability is None for hit in answer.hits} == {"v": False, "i": True}
        assert "no probability for infrared entries" in answer.notes[0]
        asked = searcher.search(image(*RED), "ir", min_probability=0.01)
        assert [hit.id for hit in asked.hits] == ["v"]
        assert "infrared entries were left out" in asked.notes[0]


def test_a_calibration_of_other_weights_is_refused(tmp_path):
    other = encoder(tmp_path, ALL, digest="feedfeedfeedfeed")
    mine = encoder(tmp_path)
    mine._calibration = other._calibration
    with Gallery(tmp_path / "g") as gallery, pytest.raises(CheckpointError, match="another model"):
        Searcher(mine, gallery).search(image(*RED), "ir")


def test_a_gallery_of_another_model_is_refused(searcher, tmp_path):
    with pytest.raises(GalleryError, match=f"model {DIGEST}.*index"):
        Searcher(encoder(tmp_path, digest="feedfeedfeedfeed"), searcher.gallery)
    with pytest.raises(FmcnetError, match="no digest"):
        Searcher(encoder(tmp_path, digest=""), searcher.gallery)


def test_an_empty_gallery_answers(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, ALL), gallery)
        assert searcher.search(image(*RED), "ir").hits == ()
        assert searcher.search(image(*RED), "ir", min_probability=0.5).no_match


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"min_probability": 1.5}, "min_probability=1.5"),
        ({"prior": 0.0}, "prior=0.0"),
        ({"fmr": 2.0}, "false-match rate"),
        ({"group": "camera"}, "track or pid"),
        ({"top": 0}, "top=0"),
    ],
)
def test_wrong_arguments(searcher, wrong, said):
    with pytest.raises(FmcnetError, match=said):
        searcher.search(image(*RED), "ir", **wrong)


def test_add_leaves_out_what_cannot_be_read_and_keeps_columns_in_step(searcher, tmp_path):
    for name, colour in (("a", RED), ("c", BLUE)):
        image(*colour).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    with pytest.raises(DataError, match=r"b\.png"):
        searcher.add(paths, "visible")
    before = len(searcher.gallery)
    done = searcher.add(
        paths,
        "visible",
        ids=["a", "b", "c"],
        camera=["ca", "cb", "cc"],
        tags=[["x"], [], ["z"]],
        on_error="skip",
    )
    assert (done.ids, done.added, [f.name for f in done.faults]) == (("a", "c"), 2, [str(paths[1])])
    assert len(searcher.gallery) == before + 2
    entry = searcher.gallery.get("c")
    assert (entry.camera, entry.tags, entry.source) == ("cc", ("z",), str(paths[2]))
    nothing = searcher.add([paths[1]], "visible", on_error="skip")
    assert (nothing.ids, len(nothing.faults)) == ((), 1)
    with pytest.raises(DataError, match="no such"):
        searcher.add([tmp_path / "gone.png"], "visible")


def test_answers_are_json(searcher):
    tree = json.loads(json.dumps(searcher.search(image(*RED), "ir", group="pid").to_dict()))
    first = tree["groups"][0]["matches"][1]
    assert first["id"] == "red"
    assert first["time"] == "2026-03-01T12:00:00+00:00"
    assert first["modality"] == "visible"
    assert 0 < first["probability"] < 1


def test_only_what_can_be_judged_is_counted_as_compared(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, {(NIGHT, DAY): curve()}), gallery)
        searcher.add([image(*RED), image(*BLUE)], "visible")
        searcher.add([image(*GREEN)] * 5, "infrared")
        asked = searcher.search(image(*RED), "ir", min_probability=0.01)
        assert (asked.compared, asked.prior) == (2, pytest.approx(1 / 3))
        assert searcher.search(image(*RED), "ir").compared == 7


def test_grouping_by_what_no_entry_has_is_said(tmp_path):
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, ALL), gallery)
        searcher.add([image(*RED), image(*BLUE)], "visible")
        for by in ("track", "pid"):
            assert any("a group of its own" in n for n in searcher.search(image(*RED), "ir", group=by).notes)


def test_an_order_that_mixes_calibrations_is_explained(tmp_path):
    curves = {**ALL, (NIGHT, DAY): curve(2.0)}
    with Gallery(tmp_path / "g") as gallery:
        searcher = Searcher(encoder(tmp_path, curves), gallery)
        searcher.add(image(250, 20, 20), DAY, ids=["day"])
        searcher.add(image(240, 90, 60), NIGHT, ids=["night"])
        answer = searcher.search(image(250, 20, 20), NIGHT)
        assert [hit.id for hit in answer.hits] == ["day", "night"]
        assert answer.hits[0].probability < answer.hits[1].probability
        assert answer.order.startswith("ranked by similarity: visible and infrared entries")
        assert answer.order in answer.to_dict()["notes"]  # of every door
        alone = searcher.search(image(250, 20, 20), NIGHT, where=Where(modality=DAY))
        assert alone.order == ""


def test_a_track_that_is_stored_as_a_decimal_too_is_told(tmp_path):
    with Gallery(tmp_path / "g", model="0123456789abcdef") as gallery:
        tracks = ["17", "17.0", "18.0", "007"]
        gallery.add(np.ones((4, 4), np.float32), modality="visible", track=tracks)
        assert filter_notes(gallery, Where(tracks=["17"])) == (
            "entries of the track '17.0' do not pass the filter, which may be '17', too",
        )
        assert filter_notes(gallery, Where(tracks=["17.0"])) == (
            "entries of the track '17' do not pass the filter, which may be '17.0', too",
        )
        assert filter_notes(gallery, Where(tracks=["18"])) == (
            "no entry has the track '18': did you mean '18.0'?",
        )
        assert filter_notes(gallery, Where(tracks=["7"])) == (
            "no entry has the track '7': did you mean '007'?",
        )
        assert filter_notes(gallery, Where(tracks=["17", "17.0"])) == ()
