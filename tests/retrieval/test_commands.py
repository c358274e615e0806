"""`index`, `search`, `gallery` as a user types them; the model is the colour encoder of `fakes`."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcnet.cli import console
from fmcnet.errors import GalleryError
from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval import Gallery, Searcher, indexing, searcher
from fmcnet.retrieval.sources import Rules, read_sources
from fmcnet.server.run import audit_path
from fmcnet.types import Modality
from tests.cli import run_command
from tests.retrieval.fakes import ColourBackend, curve, encoder, image

RED, PINK, GREEN, BLUE = (250, 20, 20), (240, 90, 60), (20, 250, 20), (20, 20, 250)
ALL = {(a, b): curve() for a in Modality for b in Modality}


def run(*arguments, code=0, **options):
    result = run_command(*arguments, code=None, **options)
    assert result.exit_code == code, result.output + str(result.exception)
    assert "Traceback" not in result.output
    return result


def as_json(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def wrong(*arguments):
    return " ".join(run(*arguments, code=2).output.split())


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    """`--model run`, whatever it is, is the colour encoder."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Encoder, "from_pretrained", staticmethod(lambda source, **_: encoder(tmp_path, ALL)))
    monkeypatch.setattr(searcher, "shipped_models", dict)
    monkeypatch.setattr(indexing, "PORTION", 2)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def crops(tmp_path):
    """Four images in two cameras' folders."""
    folder = tmp_path / "crops"
    names = {"gate1/1_0900": RED, "gate1/2_0910": GREEN, "gate2/1_1000": PINK, "gate2/3_1010": BLUE}
    for name, colour in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(*colour).save(folder / f"{name}.png")
    image(*RED).save(tmp_path / "night.png")
    return folder


PLAIN = ("--modality", "visible", "--model", "run")
RULES = ("--modality", "visible", "--model", "run", "--camera-from-name", "gate([0-9])")


def test_pillow_does_not_warn_of_large_images(crops, monkeypatch, recwarn):
    """From 89 megapixels; from twice as many it refuses them."""
    width, height = Image.open(next(crops.rglob("*.png"))).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)
    run("index", "people.gallery", crops, *PLAIN)
    assert not [str(w.message) for w in recwarn if "bomb" in str(w.message)]


def test_index_once_search_filter_and_forget(crops):
    made = as_json("index", "g", crops, *RULES, "--pid-from-name", "([0-9])_")
    assert (made["added"], made["already"], made["entries"]) == (4, 0, 4)
    again = as_json("index", "g", crops, *RULES)
    assert (again["added"], again["already"], again["entries"]) == (0, 4, 4)
    found = as_json("search", "g", "night.png", "--modality", "ir")  # the model is remembered
    assert [hit["pid"] for hit in found["hits"]][:2] == ["1", "1"]
    assert found["hits"][0]["source"] == str(crops / "gate1/1_0900.png")
    assert found["prior"] == pytest.approx(1 / 5)
    filtered = as_json("search", "g", "night.png", "--modality", "ir", "--camera", "2", "--group", "pid")
    assert [hit["pid"] for hit in filtered["hits"]] == ["1", "3"]
    assert as_json("gallery", "info", "g")["entries"] == 4
    assert as_json("gallery", "remove", "g", "--pid", "1", "--dry-run")["would_remove"] == 2
    assert as_json("gallery", "remove", "g", "--pid", "1", "--yes") == {"removed": 2, "entries": 2}
    assert as_json("gallery", "compact", "g")["entries"] == 2
    assert as_json("gallery", "export", "g", "out.npz", "--camera", "2")["exported"] == 1


def test_a_gallery_of_half_the_bytes_and_with_a_graph_on_request(crops):
    as_json("index", "half", crops, *RULES, "--dtype", "float16", "--index", "hnsw")
    as_json("index", "whole", crops, *RULES)
    with Gallery("half", read_only=True) as half, Gallery("whole", read_only=True) as whole:
        assert (half.settings.dtype, whole.settings.dtype) == ("float16", "float32")
        assert (half.info().index, whole.info().index) == ("hnsw", "exact")
        for entry, vector in whole.scan():
            assert np.array_equal(half.embedding(entry.id), half.embedding(entry.id).astype(np.float16))
            np.testing.assert_allclose(half.embedding(entry.id), vector, atol=1e-3)
    assert as_json("index", "half", crops, *RULES)["already"] == 4  # not said again: as it is
    assert as_json("gallery", "info", "half")["index"] == "hnsw"
    for kind in ("exact", "hnsw"):  # asked for without a new image
        as_json("index", "half", crops, *RULES, "--index", kind)
        assert as_json("gallery", "info", "half")["index"] == kind
    said = wrong("index", "half", crops, *RULES, "--dtype", "float32")
    assert "keeps float16 since its first entry" in said
    assert "--dtype float8: say" in wrong("index", "new", crops, *RULES, "--dtype", "float8")
    assert "--index flat: say" in wrong("index", "new", crops, *RULES, "--index", "flat")
    assert not Path("new").exists()


def test_tracks_are_pooled(crops):
    as_json("index", "g", crops, *RULES, "--track-from-name", "([0-9])_")
    found = as_json("search", "g", "night.png", "--modality", "ir", "--group", "track")
    assert next((one["key"], one["pooled"]) for one in found["groups"]) == ("1", 2)
    first = found["groups"][0]
    assert first["similarity"] == found["hits"][0]["similarity"] < first["matches"][0]["similarity"]
    shown = run("search", "g", "night.png", "--modality", "ir", "--group", "track", "--html", "who.html")
    assert "images" in shown.output
    assert f"{found['groups'][0]['similarity']:.4f}" in shown.output
    assert '<p class="soft">2 images</p>' in Path("who.html").read_text(encoding="utf-8")


def entries_of(gallery="g"):
    with Gallery(gallery, read_only=True) as opened:
        return {Path(entry.source).name: (entry, vector) for entry, vector in opened.scan()}


def test_what_is_said_otherwise_the_second_time_is_told_and_stored_on_request(crops):
    run("index", "g", crops, *RULES, "--pid-from-name", "([0-9])_")
    before = entries_of()
    said = ("--modality", "visible", "--camera", "roof", "--track-from-name", "([0-9]_[0-9]+)")
    told = run("index", "g", crops, *said)
    assert "camera is 1 in the gallery, roof now" in " ".join(told.output.split())
    assert "the gallery stores other values for 4 images" in " ".join(told.output.split())
    assert "--existing update" in told.output
    assert entries_of().keys() == before.keys()
    assert all(entry == before[name][0] for name, (entry, _) in entries_of().items())
    listed = as_json("index", "g", crops, *said)
    assert (len(listed["differences"]), listed["updated"], listed["replaced"]) == (8, 0, 0)
    made = as_json("index", "g", crops, *said, "--existing", "update")
    assert (made["added"], made["already"], made["updated"], made["differences"]) == (0, 4, 4, [])
    for name, (entry, vector) in entries_of().items():
        assert (entry.camera, entry.track) == ("roof", Path(name).stem)
        assert entry.pid == before[name][0].pid  # what is not said stays
        assert (vector == before[name][1]).all()
    assert as_json("index", "g", crops, *said)["differences"] == []
    assert "--existing" in wrong("index", "g", crops, *said, "--existing", "maybe")


def test_another_modality_is_encoded_anew_and_keeps_the_rest(crops, monkeypatch):
    run("index", "g", crops, *RULES)
    seen = []
    real = ColourBackend.__call__
    monkeypatch.setattr(ColourBackend, "__call__", lambda s, x, m: seen.append((len(x), m)) or real(s, x, m))
    told = as_json("index", "g", crops, "--modality", "infrared")
    assert "modality is visible in the gallery, infrared now" in told["differences"][0]
    assert not seen
    made = as_json("index", "g", crops, "--modality", "infrared", "--existing", "update")
    assert (made["replaced"], made["updated"], made["entries"]) == (4, 0, 4)
    assert {str(m) for _, m in seen} == {"infrared"}
    assert {(str(e.modality), e.camera) for e, _ in entries_of().values()} == {
        ("infrared", "1"),
        ("infrared", "2"),
    }


def test_an_image_that_changed_is_encoded_anew_on_request(crops):
    run("index", "g", crops, *RULES)
    image(*BLUE).save(crops / "gate1/1_0900.png")
    kept = as_json("index", "g", crops, *RULES)
    assert (kept["changed"], kept["already"]) == ([str(crops / "gate1/1_0900.png")], 4)
    assert "1_0900.png: content is sha256 " in kept["differences"][0]
    old = entries_of()
    assert as_json("index", "g", crops, *RULES, "--existing", "update")["replaced"] == 1
    assert as_json("index", "g", crops, *RULES)["changed"] == []
    assert as_json("index", "g", crops, *RULES, "--existing", "replace")["replaced"] == 4
    new = entries_of()
    assert (new["1_0900.png"][1] == old["3_1010.png"][1]).all()
    assert as_json("search", "g", "night.png", "--modality", "ir")["hits"][0]["source"].endswith("1_1000.png")


def test_an_update_that_a_broken_file_stops_counts_all_that_it_did(crops, monkeypatch):
    monkeypatch.setattr(indexing, "PORTION", 2)
    run("index", "g", crops, *RULES)
    (crops / "gate2/1_1000.png").write_text("no image")
    said = wrong("index", "g", crops, "--modality", "visible", "--camera", "roof", "--existing", "update")
    assert "0 images were added and 3 changed before; --on-error skip" in said


def test_thumbnails_are_kept_when_asked_and_go_with_the_entry(crops):
    run("index", "plain", crops, *RULES)
    assert b"\xff\xd8\xff" not in b"".join(p.read_bytes() for p in Path("plain").iterdir())  # no JPEG
    assert as_json("gallery", "info", "plain")["pictures_kept"] == 0
    asked = ("index", "plain", crops, *RULES, "--keep-images")
    assert "thumbnail is nothing in the gallery, to be kept now" in as_json(*asked)["differences"][0]
    assert as_json(*asked, "--existing", "update")["replaced"] == 4
    run("index", "g", crops, *RULES, "--keep-images")
    assert as_json("index", "g", crops, *RULES, "--existing", "replace")["replaced"] == 4
    assert as_json("gallery", "info", "g")["pictures_kept"] == 4  # once asked for, they stay so
    with Gallery("g", read_only=True) as gallery:
        kept = {Path(e.source).name: gallery.thumbnail(e.id) for e, _ in gallery.scan()}
        assert gallery.thumbnail("nobody") is None
    shown = Image.open(io.BytesIO(kept["1_0900.png"])).getpixel((5, 5))
    assert max(abs(a - b) for a, b in zip(shown, RED, strict=True)) < 8
    for path in crops.rglob("*.png"):
        path.unlink()
    run("search", "g", "night.png", "--modality", "ir", "--html", "who.html")
    assert "image not at hand" not in Path("who.html").read_text(encoding="utf-8")
    run("gallery", "remove", "g", "--camera", "1", "--yes")
    data = b"".join(path.read_bytes() for path in Path("g").iterdir())
    for name, jpeg in kept.items():
        assert (jpeg[-40:] in data) == (name in ("1_1000.png", "3_1010.png"))


def test_python_and_the_command_line_give_the_same_answer(crops, tmp_path):
    run("index", "g", crops, *RULES)
    typed = as_json("search", "g", "night.png", "--modality", "ir", "--min-probability", "0.01", "--top", "3")
    with Gallery("g", read_only=True) as gallery:
        answer = Searcher(encoder(tmp_path, ALL), gallery).search(
            "night.png", "infrared", top=3, min_probability=0.01
        )
    assert {k: v for k, v in typed.items() if k != "gallery"} == json.loads(json.dumps(answer.to_dict()))


def test_times_select_and_expire(crops):
    Path("dated").mkdir()
    crops.rename("dated/2020-03-01")
    assert "lacks %Y and %m and %d" in wrong("index", "g", "dated", *RULES, "--time-from-name", "_%H%M")
    run("index", "g", "dated", *RULES, "--time-from-name", "%Y-%m-%d*_%H%M")
    since = ("--since", "2020-03-01T10:00:00")
    found = as_json("search", "g", "night.png", "--modality", "ir", *since)
    assert len(found["hits"]) == found["compared"] == 2
    late = as_json("search", "g", "night.png", "--modality", "ir", *since, "--timezone", "Europe/Berlin")
    assert late["compared"] == 4  # ten o'clock there is earlier
    before = Path("night.png").read_bytes()
    assert "ends in .html" in wrong("search", "g", "night.png", "--modality", "ir", "--html", "night.png")
    assert Path("night.png").read_bytes() == before
    asked = ("search", "g", "night.png", "--modality", "ir", "--html", "who.html")
    for zone, shown in (("UTC", "10:10:00 UTC"), ("Europe/Berlin", "11:10:00 CET")):
        run(*asked, "--timezone", zone)
        assert f"2020-03-01 {shown}" in Path("who.html").read_text(encoding="utf-8")
    assert as_json("gallery", "expire", "g", "--keep", "30d", "--yes", "--all") == {
        "removed": 4,
        "entries": 0,
        "without_a_time": 0,
        "before_1970": 0,
    }


def test_expire_leaves_times_that_were_read_wrongly_and_says_so(crops, monkeypatch):
    monkeypatch.setattr("fmcnet.retrieval.inputs.check_clock", lambda time, what: time)  # as in 0.1.0
    run("index", "g", crops, *RULES)
    with Gallery("g") as gallery:
        first, *others = [entry.id for entry, _ in gallery.scan()]
        gallery.update([first], time=datetime(1900, 1, 1, 22, 15, tzinfo=timezone.utc))
        gallery.update(others, time=datetime(2020, 1, 1, tzinfo=timezone.utc))
    assert as_json("gallery", "expire", "g", "--keep", "30d", "--yes") == {
        "removed": 3,
        "entries": 1,
        "without_a_time": 0,
        "before_1970": 1,
    }
    assert "1 entries have a time before 1970" in run("gallery", "expire", "g", "--keep", "30d").output
    assert as_json("gallery", "expire", "g", "--keep", "999999999w", "--yes")["removed"] == 0


def dated(crops):
    """Four crops in `g`: two of today, two of 2020; the command that indexes them."""
    today = Path("dated") / f"{datetime.now(timezone.utc):%Y-%m-%d}"
    today.mkdir(parents=True)
    (crops / "gate1").rename(today / "gate1")
    crops.rename("dated/2020-03-01")
    command = ("index", "g", "dated", *RULES, "--time-from-name", "%Y-%m-%d*_%H%M")
    as_json(*command)
    return command


def test_expire_counts_and_asks_and_needs_a_word_more_for_all(crops):
    dated(crops)
    expire = ("gallery", "expire", "g", "--keep")
    assert as_json(*expire, "30d", "--dry-run")["would_remove"] == 2
    assert "Remove 2 of 4 entries" in run(*expire, "30d", code=1, input="n\n").output
    assert "nobody answered: nothing was removed" in wrong(*expire, "30d")
    assert "--json cannot ask" in wrong(*expire, "30d", "--json")
    assert len(entries_of()) == 4
    assert run(*expire, "30d", input="y\n").exit_code == 0
    assert {name[:6] for name in entries_of()} == {"1_0900", "2_0910"}
    with Gallery("g") as gallery:
        gallery.update(
            [entry.id for entry, _ in gallery.scan()], time=datetime(2020, 1, 1, tzinfo=timezone.utc)
        )
    assert "all 2 entries of g" in wrong(*expire, "30d", "--yes")
    assert "Remove ALL 2 entries" in run(*expire, "30d", code=1, input="n\n").output
    assert as_json(*expire, "30d", "--dry-run")["entries"] == 2
    assert as_json(*expire, "30d", "--yes", "--all")["removed"] == 2
    assert as_json(*expire, "30d", "--yes")["removed"] == 0  # of an empty gallery nothing is all


def test_what_was_removed_or_expired_stays_away_until_told_otherwise(crops):
    command = dated(crops)
    as_json("gallery", "expire", "g", "--keep", "30d", "--yes")
    as_json("gallery", "remove", "g", "--camera", "1", "--since", "2020-01-02", "--yes", "--all")
    again = as_json(*command)
    assert (again["added"], again["entries"], len(again["removed_before"])) == (0, 0, 4)
    said = run(*command)
    assert "4 removed before: --include-removed indexes them again" in said.output
    assert b"1_0900" not in b"".join(path.read_bytes() for path in Path("g").glob("gallery.sqlite*"))
    image(7, 99, 180).save("dated/2020-03-01/gate2/9_1200.png")
    assert as_json(*command)["added"] == 1  # an image never removed
    back = as_json(*command, "--include-removed", "--keep", "30d")
    assert (back["added"], back["not_chosen"]) == (2, {"--keep 30d": 3})
    assert as_json(*command, "--include-removed")["added"] == 2
    as_json("gallery", "remove", "g", "--camera", "1", "--yes")
    with Gallery("g") as gallery:
        gone = [entry.id for entry, _ in gallery.scan()]
        assert gallery.removed(gone) == set()  # they are there again


def test_a_gallery_lists_its_entries_cameras_and_times(crops):
    dated(crops)
    info = as_json("gallery", "info", "g")
    assert (info["visible"], info["infrared"], info["cameras"]) == (4, 0, {"1": 2, "2": 2})
    assert info["first_time"] == "2020-03-01T10:00:00+00:00"
    assert info["last_time"].startswith(f"{datetime.now(timezone.utc):%Y-%m-%dT09:10}")
    assert "1 (2), 2 (2)" in run("gallery", "info", "g").output
    found = as_json("gallery", "list", "g", "--camera", "2", "--until", "2020-03-01T10:05:00")
    assert (found["matching"], len(found["entries"])) == (1, 1)
    assert found["entries"][0]["source"].endswith("1_1000.png")
    few = run("gallery", "list", "g", "--limit", "3", env={"COLUMNS": "250"}).output
    assert "4 entries; 3 shown, --limit 0 shows all" in few
    assert "1_0900.png" in few
    assert "2020-03-01 10:00:00 UTC" in few
    berlin = ("--timezone", "Europe/Berlin")
    assert "2020-03-01 11:00:00 CET" in run("gallery", "list", "g", *berlin, env={"COLUMNS": "250"}).output
    asked = ("search", "g", "night.png", "--modality", "ir", *berlin)
    assert "2020-03-01 11:00:00 CET" in run(*asked, env={"COLUMNS": "250"}).output
    assert len(as_json("gallery", "list", "g", "--limit", "0")["entries"]) == 4
    ids = run("gallery", "list", "g", "--camera", "2", "--ids").stdout.splitlines()
    assert ids == [entry.id for name, (entry, _) in entries_of().items() if entry.camera == "2"]
    one = run("gallery", "list", "g", "--ids", "--limit", "1")
    assert (len(one.stdout.splitlines()), "4 entries; 1 shown" in one.stderr) == (1, True)
    assert as_json("gallery", "remove", "g", "--id", ids[0], "--dry-run")["would_remove"] == 1
    assert (
        "no entry has the camera '7'; those that are: 1, 2"
        in run("gallery", "list", "g", "--camera", "7").output
    )


def test_several_ids_or_a_track_go_with_one_confirmation(crops):
    run("index", "g", crops, *RULES, "--track-from-name", "([0-9])_")
    one, two = (entry.id for entry, _ in list(entries_of().values())[1:3])
    assert (
        "Remove 2 of 4" in run("gallery", "remove", "g", "--id", one, "--id", two, code=1, input="n\n").output
    )
    assert "Remove 2 of 4" in run("gallery", "remove", "g", "--track", "1", input="y\n").output
    assert {name[0] for name in entries_of()} == {"2", "3"}


def test_nobody_is_said(crops):
    run("index", "g", crops, *RULES)
    image(30, 240, 240).save("stranger.png")
    asked = ("search", "g", "stranger.png", "--modality", "ir", "--fmr", "0.001")
    assert run(*asked).stdout.startswith("nobody\n")
    assert as_json(*asked)["nobody"] is True


def test_tables_for_people(crops):
    made = run("index", "g", crops, *RULES, "--pid-from-name", "([0-9])_").output
    assert "indexed before" in made
    assert re.search("identities +│ 3 \\(1, 2, 3\\)", made)  # a pattern may find other names than meant
    assert re.search("cameras +│ 2 \\(1, 2\\)", made)
    assert "tracks" not in made
    shown = run("search", "g", "night.png", "--modality", "ir", env={"COLUMNS": "250"}).output
    assert "probability" in shown
    assert "1_0900.png" in shown
    assert "entries" in run("gallery", "info", "g").output


def test_removal_asks(crops):
    run("index", "g", crops, *RULES)
    asked = run("gallery", "remove", "g", "--camera", "1", code=1, input="n\n")
    assert "Remove 2 of 4" in asked.output
    assert as_json("gallery", "info", "g")["entries"] == 4
    run("gallery", "remove", "g", "--camera", "1", input="y\n")
    assert as_json("gallery", "info", "g")["entries"] == 2


@pytest.mark.parametrize("asked", [("remove", "g", "--camera", "1"), ("expire", "g", "--keep", "30d")])
def test_what_comes_to_match_while_it_asks_stays(crops, monkeypatch, asked):
    dated(crops)
    confirm = console.confirm

    def slowly(verb, count, entries):
        confirm(verb, count, entries)
        with Gallery("g") as other:
            found = [entry for entry, _ in other.scan()]
            vector, time = other.embedding(found[0].id), datetime(2020, 1, 1, tzinfo=timezone.utc)
            other.add(
                vector, modality="visible", ids=["late"], camera="1", time=time, model=other.settings.model
            )

    monkeypatch.setattr(console, "confirm", slowly)
    assert "Remove 2 of 4" in run("gallery", *asked, input="y\n").output
    with Gallery("g") as gallery:
        assert ("late" in gallery, len(gallery)) == (True, 3)


def test_removal_of_all_needs_a_word_more_than_yes(crops):
    run("index", "g", crops, *RULES)
    remove = ("gallery", "remove", "g", "--modality", "visible")
    assert "all 4 entries of g match, and nothing was removed: --yes --all" in wrong(*remove, "--yes")
    assert "--all goes with --yes" in wrong(*remove, "--all")
    assert "Remove ALL 4 entries" in run(*remove, code=1, input="n\n").output
    assert as_json(*remove, "--dry-run")["would_remove"] == 4
    assert as_json("gallery", "remove", "g", "--modality", "ir", "--yes")["removed"] == 0
    assert as_json(*remove, "--yes", "--all") == {"removed": 4, "entries": 0}
    assert as_json(*remove, "--yes")["removed"] == 0  # of an empty gallery nothing is all


def test_the_page_holds_the_thumbnails_and_asks_nobody_for_anything(crops):
    run("index", "g", crops, *RULES, "--track-from-name", "([0-9]_[0-9]+)")
    (crops / "gate2/1_1000.png").unlink()
    (crops / "gate2/3_1010.png").write_bytes(b"broken")
    run("search", "g", "night.png", "--modality", "ir", "--html", "out/who.html")
    page = Path("out/who.html").read_text(encoding="utf-8")
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(uris) == 3  # the query and two hits
    colour = Image.open(io.BytesIO(base64.b64decode(uris[1]))).getpixel((5, 5))
    assert max(abs(a - b) for a, b in zip(colour, RED, strict=True)) < 8
    assert page.count("image not at hand") == 2
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)


def test_texts_in_the_page_are_escaped(tmp_path):
    image(*RED).save("night.png")
    with Gallery("g") as gallery:
        Searcher(encoder(tmp_path, ALL), gallery).add(
            image(*RED), "ir", camera="<script>x</script>", source='"><b onload=x>'
        )
    run("search", "g", "night.png", "--modality", "ir", "--model", "run", "--html", "who.html")
    page = Path("who.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b onload" not in page
    assert "&lt;script&gt;" in page


def test_hidden_characters_of_names_are_refused_and_escaped(crops):
    """A direction override or a line break in a file's name cannot forge what a terminal shows."""
    bad = crops / "gate1" / "gnp.\u202etxe\x1b[2J\n1: forged_0900.png"
    image(*RED).save(bad)
    refused = run("index", "g", crops, *RULES, code=2).output
    assert "\\u202e" in refused
    made = run("index", "g", crops, *RULES, "--on-error", "skip")
    assert "left out" in made.stderr
    for output in (refused, made.output):
        assert not {"\u202e", "\x1b"} & set(output)
        assert not any(line.startswith("1: forged") for line in output.splitlines())
    report = as_json("index", "g", crops, *RULES, "--on-error", "skip")
    assert [fault["source"] for fault in report["faults"]] == [str(bad)]
    assert "U+202E" in report["faults"][0]["reason"]
    table = "path,pid,modality,camera\n1_0900.png,1,visible,a\u200bb\n"
    (crops / "gate1" / "t.csv").write_text(table, encoding="utf-8")
    assert "U+200B" in wrong("index", "h", crops / "gate1" / "t.csv", "--model", "run")


def test_broken_images_are_named_and_left_out_or_refused(crops):
    (crops / "gate1/2_0910.png").write_bytes(b"no image")
    assert "2_0910.png" in wrong("index", "g", crops, *RULES)
    made = as_json("index", "g", crops, *RULES, "--on-error", "skip")
    assert made["entries"] == 3
    assert [fault["source"] for fault in made["faults"]] == [str(crops / "gate1/2_0910.png")]
    image(*GREEN).save(crops / "gate1/2_0910.png")
    assert as_json("index", "g", crops, *RULES)["added"] == 1


def test_mistakes_are_one_clear_message(crops):
    assert "--modality" in wrong("index", "g", crops, "--model", "run")
    assert "say which model" in wrong("index", "g", crops, "--modality", "ir")
    assert not Path("g").exists()
    assert "--on-error" in wrong("index", "g", crops, *RULES, "--on-error", "ignore")
    assert "does not match" in wrong("index", "g", crops, *RULES, "--track-from-name", "track")
    assert "there is no gallery" in wrong("search", "g", "night.png", "--modality", "ir")
    assert "unknown modality 'blue'" in wrong("search", "g", "night.png", "--modality", "blue")
    assert "2 modalities for 1" in wrong("search", "g", "night.png", "--modality=ir", "--modality=ir")
    run("index", "g", crops, *RULES)
    assert "no such" in wrong("search", "g", "gone.png", "--modality", "ir")
    assert "g is a gallery, not images: it comes first" in wrong("search", "g", "g", "--modality", "ir")
    assert "2 modalities for 1" in wrong(
        "search", "g", "night.png", "--modality", "ir", "--modality", "visible"
    )
    assert "--group camera" in wrong("search", "g", "night.png", "--modality", "ir", "--group", "camera")
    assert "no time" in wrong("search", "g", "night.png", "--modality", "ir", "--since", "noon")
    assert "which entries" in wrong("gallery", "remove", "g", "--yes")
    assert "cannot ask" in wrong("gallery", "remove", "g", "--pid", "1", "--json")
    assert "30d" in wrong("gallery", "expire", "g", "--keep", "long")
    assert "there is no gallery" in wrong("gallery", "info", "elsewhere")
    Path("run").rmdir()
    assert "does not exist any more" in wrong("search", "g", "night.png", "--modality", "ir")


class StoppedBackend(ColourBackend):
    """Stops at its third batch."""

    def __init__(self, stop):
        self.left, self.stop = 2, stop

    def __call__(self, images, modality):
        self.left -= 1
        if self.left < 0:
            self.stop()
        return super().__call__(images, modality)


def many(tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(9):
        image(250 - 20 * i, 20 * i, 60).save(tmp_path / f"many/{i}.png")
    return read_sources([tmp_path / "many"], Rules(Modality.VISIBLE))


def stopping(tmp_path, stop):
    made = encoder(tmp_path, ALL)
    made.backend = StoppedBackend(stop)
    return made


def test_ctrl_c_keeps_what_was_added_and_the_same_call_goes_on(tmp_path):
    def stop():
        raise KeyboardInterrupt

    sources = many(tmp_path)
    with Gallery("g") as gallery:
        with pytest.raises(KeyboardInterrupt, match="4 images were added"):
            indexing.index(Searcher(stopping(tmp_path, stop), gallery), sources)
        assert len(gallery) == 4
        report = indexing.index(Searcher(encoder(tmp_path, ALL), gallery), sources)
    assert (report.added, report.already, report.entries) == (5, 4, 9)


def test_kill_keeps_what_was_added_and_the_same_call_goes_on(tmp_path):
    sources = many(tmp_path)
    child = os.fork()
    if not child:
        try:
            stopped = stopping(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
            with Gallery("g") as gallery:
                indexing.index(Searcher(stopped, gallery), sources)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with Gallery("g") as gallery:
        assert len(gallery) == 4
        report = indexing.index(Searcher(encoder(tmp_path, ALL), gallery), sources)
        assert (report.added, report.already, report.entries) == (5, 4, 9)
        assert gallery.check() == []


def test_another_spelling_of_a_path_is_no_other_image(crops):
    as_json("index", "g", crops, *RULES)
    again = as_json("index", "g", crops / "gate1" / ".." / ".." / "crops", *RULES)
    assert (again["added"], again["already"], again["entries"]) == (0, 4, 4)


def test_what_is_not_there_or_never_expires_is_named(crops):
    as_json("index", "g", crops, *RULES)
    assert "there is no entry 'nope'" in run("gallery", "remove", "g", "--id", "nope", "--yes").output
    assert "4 entries have no time" in run("gallery", "expire", "g", "--keep", "999999999w").output
    assert as_json("gallery", "info", "g")["entries"] == 4


def ranges_of(folder):
    with Gallery(folder, read_only=True) as gallery:
        return gallery.value_ranges


def degrees(path, low, high):
    """A float TIFF of `low` to `high` degrees."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.linspace(low, high, 48 * 24, dtype=np.float32).reshape(48, 24)).save(path)


def test_a_range_maps_every_crop_alike_and_the_gallery_keeps_it(tmp_path):
    """Without it each image is stretched by itself and all are alike; a note says so."""
    for name, low in (("cold", 12), ("mild", 20), ("warm", 32)):
        degrees(tmp_path / "heat" / f"{name}.tif", low, low + 6)
    rules = ("--modality", "infrared", "--model", "run")
    free = as_json("index", "free", "heat", *rules)
    assert len(free["notes"]) == 1
    assert free["notes"][0].startswith("3 images with values of no usual range: each was stretched")
    assert "--range LOW:HIGH" in run("index", "again", "heat", *rules).stderr
    alike = as_json("search", "free", "heat/warm.tif", "--modality", "ir")
    assert min(hit["similarity"] for hit in alike["hits"]) > 0.999
    assert as_json("index", "g", "heat", *rules, "--range", "10:40")["notes"] == []
    found = as_json("search", "g", "heat/warm.tif", "--modality", "ir")  # the range is remembered
    assert Path(found["hits"][0]["source"]).name == "warm.tif"
    assert found["hits"][0]["similarity"] > 0.999
    assert found["hits"][-1]["similarity"] < 0.5
    degrees(tmp_path / "kelvin.tif", 288, 310)
    assert "no pixel is in the range 10:40: its values are 288 to 310" in wrong(
        "search", "g", "kelvin.tif", "--modality", "ir"
    )
    for bad in ("40:10", "15", "a:b", "nan:1"):
        assert "--range" in wrong("index", "x", "heat", *rules, "--range", bad) or bad in ("40:10", "nan:1")
    assert not (tmp_path / "x").exists()


def test_a_range_that_no_image_needs_is_noted(crops):
    (note,) = as_json("index", "g", crops, *RULES, "--range", "10:40")["notes"]
    assert note == "the range has no effect: these images have 8 bits, which stay as they are"
    assert as_json("index", "g", crops, *RULES, "--range", "10:40")["notes"] == []  # nothing was encoded
    asked = as_json("search", "g", "night.png", "--modality", "ir", "--range", "10:40")
    assert note in asked["notes"]
    assert (
        note not in as_json("search", "g", "night.png", "--modality", "visible")["notes"]
    )  # the remembered range
    degrees(crops / "deep.tif", 12, 32)
    mixed = as_json("index", "other", crops, *RULES[:4], "--range", "10:40")
    assert not any("no effect" in one for one in mixed["notes"])


def test_a_table_gives_each_camera_its_range(tmp_path):
    """The same heat in degrees Celsius and in hundredths of a kelvin is one image, each camera with its range."""
    degrees(tmp_path / "a.tif", 20, 35)
    Image.fromarray((np.asarray(Image.open(tmp_path / "a.tif")) + 273.15) * 100).save(tmp_path / "b.tif")
    lines = ["path,modality,camera,range", "a.tif,infrared,gate,15:40", "b.tif,infrared,hall,28815:31315"]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    report = as_json("index", "g", tmp_path / "people.csv", "--model", "run")
    assert (report["added"], report["notes"]) == (2, [])
    assert ranges_of("g") == ((15.0, 40.0), (28815.0, 31315.0))
    with Gallery("g", read_only=True) as gallery:
        first, second = (vector for _, vector in gallery.scan())
    assert np.dot(first, second) > 0.9999
    query = ("search", "g", tmp_path / "a.tif", "--modality", "infrared")
    assert as_json(*query, "--range", "15:40")["hits"][0]["similarity"] > 0.9999
    said = wrong(*query)  # which of the two is not told
    assert (
        "have, or had, several value ranges (15:40 and 28815:31315), so an image like these needs one" in said
    )
    assert "give --range LOW:HIGH" in said
    assert "leaves one range, but for rows of a CSV that have a range" in said
    as_json("index", "g", tmp_path / "people.csv", "--existing", "replace", "--range", "15:40")
    assert len(ranges_of("g")) == 2  # those of the table
    (tmp_path / "people.csv").write_text("path,modality,range\na.tif,infrared,warm\n")
    assert "line 2: range warm: give two numbers as LOW:HIGH" in wrong(
        "index", "n", tmp_path / "people.csv", "--model", "run"
    )


def test_the_ranges_that_images_were_encoded_with_are_recorded_and_no_others(tmp_path):
    for number, (low, high) in enumerate([(15, 19), (20, 25), (26, 31), (33, 39)]):
        degrees(tmp_path / "heat" / f"{number}.tif", low, high)
    rules = ("--modality", "infrared", "--model", "run")
    as_json("index", "g", "heat/0.tif", "heat/1.tif", *rules)
    assert ranges_of("g") == (None,)
    second = as_json("index", "g", "heat", *rules, "--range", "15:40")
    assert second["added"] == 2
    assert any(
        note.startswith("2 images were indexed before, deep ones with the value range none")
        for note in second["notes"]
    )
    assert any(
        "several value ranges (none and 15:40): unless each is right for its images' unit, the same person is not "
        "equally bright in all" in note
        for note in second["notes"]
    )
    assert "several value ranges (none and 15:40)" in wrong(
        "search", "g", "heat/0.tif", "--modality", "infrared"
    )
    as_json("index", "g", "heat", *rules, "--existing", "replace", "--range", "15:40")
    assert ranges_of("g") == ((15.0, 40.0),)

    (tmp_path / "empty.tif").write_bytes(b"")
    Image.new("L", (24, 48), 7).save(tmp_path / "grey.png")
    again = as_json("index", "g", "heat", *rules, "--range", "0:100")  # adds nothing
    assert any(
        "keep their embeddings: --existing replace encodes them anew with 0:100" in n for n in again["notes"]
    )
    wrong("index", "g", "empty.tif", *rules, "--range", "1:2")
    run("index", "g", "grey.png", *rules, "--range", "1:2")
    assert ranges_of("g") == ((15.0, 40.0),)
    for number in range(4):
        hits = as_json("search", "g", f"heat/{number}.tif", "--modality", "infrared")["hits"]
        [own] = [hit for hit in hits if hit["source"].endswith(f"{number}.tif")]
        assert own["similarity"] > 0.9999
    other = as_json("search", "g", "heat/0.tif", "--modality", "infrared", "--range", "0:60")
    assert any(
        "0:60 of the query is not that of the gallery's images (15:40)" in note for note in other["notes"]
    )


def test_python_searches_and_adds_with_the_range_of_the_gallery(tmp_path):
    degrees(tmp_path / "heat" / "0.tif", 16, 20)
    degrees(tmp_path / "heat" / "1.tif", 30, 37)
    as_json("index", "g", "heat/0.tif", "--modality", "infrared", "--model", "run", "--range", "15:40")
    with Gallery("g") as gallery:
        searcher = Searcher(encoder(tmp_path, ALL), gallery)
        searcher.add("heat/1.tif", "infrared")
        assert ranges_of("g") == ((15.0, 40.0),)
        for number in range(2):
            best = searcher.search(f"heat/{number}.tif", "infrared").hits[0]
            assert best.source.endswith(f"{number}.tif")
            assert best.similarity > 0.9999
        searcher.add("heat/1.tif", "infrared", ids=["a"], value_range=(0, 50))
        with pytest.raises(GalleryError, match="ids are in g already"):
            searcher.add("heat/1.tif", "infrared", ids=["a"], value_range=(0, 99))
        searcher.add("heat/1.tif", "infrared", ids=["a"], value_range=(0, 98), on_duplicate="skip")
        assert ranges_of("g") == ((15.0, 40.0), (0.0, 50.0))  # of what was added
        with pytest.raises(GalleryError, match=r"several value ranges \(15:40 and 0:50\)"):
            searcher.add("heat/1.tif", "infrared", ids=["b"])
        assert len(gallery) == 3


def test_what_is_no_image_is_counted_and_named(crops, tmp_path):
    (crops / "notes.txt").write_text("gate 1")
    (crops / "gate1" / "._1_0900.png").write_bytes(b"\0\5\26\7")
    (crops / "gate3").symlink_to(crops / "gate2")
    made = as_json("index", "g", crops, *RULES)
    assert (made["pictures"], made["added"], made["ignored"]["count"]) == (4, 4, 2)
    assert made["ignored"]["first"] == [str(crops / "gate3"), str(crops / "notes.txt")]
    assert "ignored 2: " in run("index", "h", crops, *RULES).stderr
    made = as_json("index", "k", *sorted((crops / "gate1").iterdir()), *RULES[:4])
    assert (made["pictures"], made["ignored"]["reasons"]) == (2, {"a hidden or resource file": 1})
    assert "a hidden or resource file" in wrong("index", "l", crops / "gate1" / "._1_0900.png", *RULES[:4])
    made = as_json("embed", "run", crops, "--modality", "visible", "--out", "e.npz")
    assert (made["images"], made["ignored"]["count"]) == (4, 2)


@pytest.mark.parametrize(
    "value", ["18446744073709551615", "-9223372036854775809", "9" * 5000, "1e400", "nan"]
)
@pytest.mark.parametrize("option", ["--top", "--prior", "--fmr", "--min-probability", "--since"])
def test_numbers_out_of_range_are_a_line(crops, option, value):
    run("index", "g", crops, *RULES)
    said = run_command("search", "g", "night.png", "--modality", "ir", option, value, code=None)
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    assert said.exit_code in (0, 2)
    for arguments in (
        ["gallery", "remove", "g", "--yes", "--pid", value],
        ["gallery", "expire", "g", "--keep", f"{value}d"],
        ["gallery", "export", "g", "x.npz", "--pid", value],
        ["index", "g", str(crops), *RULES, "--batch", value],
    ):
        said = run_command(*arguments, code=None)
        assert said.exception is None or isinstance(said.exception, SystemExit), (arguments, said.exception)


def test_a_filter_that_asks_for_what_no_entry_has_is_told(crops):
    run("index", "g", crops, "--modality", "visible", "--model", "run", "--camera-from-name", "(gate[0-9])")
    asked = ("search", "g", "night.png", "--modality", "ir")
    told = as_json(*asked, "--camera", "nowhere", "--camera", "gate1")
    assert (told["compared"], told["notes"]) == (
        2,
        ["no entry has the camera 'nowhere'; those that are: gate1, gate2"],
    )
    near = as_json(*asked, "--camera", "Gate-02")
    assert "no entry has the camera 'Gate-02': did you mean 'gate2'?" in near["notes"]
    assert as_json(*asked, "--camera", "gate1")["notes"] == []
    dry = as_json(
        "gallery", "remove", "g", "--camera", "gate3", "--track", "t", "--pid", 7, "--tag", "x", "--dry-run"
    )
    assert dry["would_remove"] == 0
    assert [note.split(":")[0] for note in dry["notes"]] == [
        "no entry has the camera 'gate3'",
        "no entry has the track 't'",
        "no entry has the tag 'x'",
        "no entry has the identity '7'",
    ]
    assert (
        "note: no entry has the camera 'gat'"
        in run("gallery", "export", "g", "e.npz", "--camera", "gat").output
    )


@pytest.mark.parametrize("other", ["cam01", "1.0"])  # a gallery of 0.1.0 may hold the second, of pandas
def test_spellings_of_one_camera_are_told_and_found_as_written(crops, other):
    assert as_json("index", "g", crops / "gate1", *PLAIN, "--camera", "1")["notes"] == []
    (note,) = as_json("index", "g", crops / "gate2", *PLAIN, "--camera", other)["notes"]
    assert re.search(f"the cameras .*'{other}'.* may be one", note)
    (note,) = as_json("search", "g", "night.png", "--modality", "ir", "--camera", "1")["notes"]
    assert f"entries of the camera '{other}' do not pass the filter" in note
    as_json("gallery", "remove", "g", "--camera", other, "--yes")
    with Gallery("g") as gallery:
        assert gallery.cameras() == ["1"]  # of what is there now


def test_what_index_leaves_out_is_counted_and_named(crops):
    Path("copy.png").symlink_to(crops / "gate1/1_0900.png")
    made = as_json(
        "index", "g", crops, "copy.png", "--modality", "visible", "--model", "run", "--layout", "images"
    )
    assert (made["pictures"], made["added"]) == (5, 4)
    assert [one["source"] for one in made["same_file"]] == [str(Path("copy.png").absolute())]
    Path("t.csv").write_text(
        "path,pid,modality,weather\ncopy.png,anna,visible,sun\nnight.png,bob,infrared,\n"
    )
    told = as_json("index", "h", "t.csv", "--model", "run", "--modality", "infrared")
    assert (told["added"], told["not_chosen"]) == (1, {"--modality infrared": 1})
    assert told["notes"][0].startswith("the column 'weather' is not read")
    said = run("index", "i", "t.csv", "--model", "run", "--modality", "infrared").output
    assert "not chosen by --modality infrared" in said
    assert "note: the column 'weather'" in said


def test_an_option_that_replaces_values_of_a_table_is_told(crops, tmp_path):
    image = sorted(crops.rglob("*.png"))[0]
    lines = ["path,modality,camera,track", f"{image},visible,gate,t1"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    told = as_json("index", "t", tmp_path / "table.csv", "--model", "run", "--camera", "hall")["notes"]
    (note,) = [note for note in told if "another camera" in note]
    assert note.startswith("an option gives 1 image another camera than the table")
    assert note.endswith("(gate in the table)")
    assert [entry.camera for entry, _ in entries_of("t").values()] == ["hall"]
    assert as_json("index", "u", tmp_path / "table.csv", "--model", "run", "--camera", "gate")["notes"] == []


def test_a_split_of_plain_images_is_refused(crops):
    assert "--split test is of a dataset" in wrong("index", "g", crops, *RULES, "--split", "test")


def test_a_filter_at_a_change_of_clocks_asks_for_the_offset(crops):
    as_json("index", "g", crops, *RULES)
    asked = ("--since", "2026-10-25T02:30:00", "--timezone", "Europe/Berlin")
    said = wrong("search", "g", next(crops.rglob("*.png")), "--modality", "visible", *asked)
    assert "--since: 2026-10-25 02:30:00 comes twice in Europe/Berlin" in said
    instants = ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"]
    assert f"where the clocks change: write {' or '.join(instants)}" in said
    for instant in instants:
        as_json("gallery", "list", "g", "--since", instant, "--timezone", "Europe/Berlin")


@pytest.mark.parametrize("there", [False, True])
def test_a_first_index_that_fails_leaves_no_gallery(crops, tmp_path, there):
    (crops / "gate1/broken.png").write_bytes((crops / "gate1/1_0900.png").read_bytes()[:60])
    if there:
        (tmp_path / "g").mkdir()
    assert "broken.png" in wrong("index", "g", crops / "gate1/broken.png", *PLAIN)
    assert (tmp_path / "g").exists() == there
    made = as_json("index", "g", crops / "gate1/broken.png", *PLAIN, "--on-error", "skip")
    assert (made["added"], len(made["faults"])) == (0, 1)
    assert (tmp_path / "g").exists() == there
    assert not list(tmp_path.glob("g/*"))
    run("index", "g", crops / "gate1/1_0900.png", *PLAIN)
    assert "broken.png" in wrong("index", "g", crops / "gate1/broken.png", *PLAIN)
    assert as_json("gallery", "info", "g")["entries"] == 1  # one that had entries stays


def test_a_gallery_that_another_has_open_stays(crops, tmp_path, monkeypatch):
    def taken(*_, **__):
        opened.append(Gallery("g"))
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(indexing, "index", taken)
    run("index", "g", crops, *RULES, code=130)
    assert (tmp_path / "g/gallery.sqlite").exists()
    opened[0].close()


def test_a_search_in_a_gallery_that_never_had_an_entry_is_refused(crops, tmp_path):
    Gallery("g").close()
    assert "g never had an entry: fmcnet index adds images" in wrong(
        "search", "g", "night.png", "--modality", "ir"
    )


def test_an_early_interrupt_says_what_it_left(crops, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fmcnet.retrieval.sources.read_sources", stop)
    said = run("index", "g", crops, *RULES, code=130)
    assert "interrupted: nothing was added; the same command starts again" in said.output
    assert not (tmp_path / "g").exists()


def test_a_row_whose_file_is_gone_is_left_out_when_told(tmp_path):
    for name, colour in (("a", RED), ("b", GREEN)):
        image(*colour).save(f"{name}.png")
    Path("t.csv").write_text("path,pid,modality\na.png,anna,visible\nb.png,bob,visible\n")
    assert as_json("index", "g", "t.csv", "--model", "run")["added"] == 2
    Path("b.png").unlink()
    assert "b.png: there is no file" in wrong("index", "g", "t.csv")
    left = as_json("index", "g", "t.csv", "--on-error", "skip")
    assert [(fault["source"], fault["reason"]) for fault in left["faults"]] == [
        (str(tmp_path / "b.png"), "there is no file")
    ]
    assert left["entries"] == 2
    pruned = as_json("index", "g", "t.csv", "--prune", "--yes")
    assert (pruned["pruned"], len(pruned["faults"]), pruned["entries"]) == (1, 1, 1)
    long = "x" * 300
    with Path("t.csv").open("a") as stream:
        stream.write(f"c.png,cleo,visible\n{long}.png,dora,visible\n")
    assert "3 of 4 images cannot be indexed" in wrong("index", "g", "t.csv")
    skipped = run("index", "g", "t.csv", "--on-error", "skip", env={"COLUMNS": "500"}).output
    for name in ("b", "c", long):
        assert f"left out {tmp_path / name}.png: there is no file" in skipped
    assert re.search(r"left out +│ 3 ", skipped)


def test_grey_images_given_as_visible_are_told(crops):
    image(90, 90, 90).save(crops / "gate1/9_0900.png")
    notes = as_json("index", "g", crops, *RULES)["notes"]
    assert [note for note in notes if "without any colour" in note] == [
        "1 image without any colour, given as visible: is it infrared? Then say so (the first is "
        f"{crops}/gate1/9_0900.png)"
    ]
    infrared = ("--modality", "infrared", "--model", "run")
    assert not any("colour" in note for note in as_json("index", "h", crops / "gate1", *infrared)["notes"])


def test_an_export_of_nothing_leaves_the_file_as_it_is(crops, tmp_path):
    run("index", "g", crops, *RULES)
    run("gallery", "export", "g", "e.npz")
    before = (tmp_path / "e.npz").read_bytes()
    assert "no entry of g matches: e.npz stays as it is" in wrong(
        "gallery", "export", "g", "e.npz", "--camera", "x"
    )
    assert (tmp_path / "e.npz").read_bytes() == before


def test_a_folder_that_may_not_be_read_does_not_lack_a_model(tmp_path, monkeypatch):
    from fmcnet.errors import FmcnetError

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(searcher, "shipped_models", dict)
    with pytest.raises(FmcnetError, match="cannot be read: Permission denied"):
        searcher.choose_model(str(tmp_path), None)


def test_the_working_folder_is_a_gallery_too(crops, tmp_path, monkeypatch):
    """Its name is "."."""
    run("index", "g", crops, *RULES)
    model, image = (Path(name).absolute() for name in ("run", "night.png"))
    run("gallery", "backup", "g", "b")
    monkeypatch.chdir("g")
    assert as_json("search", ".", image, "--modality", "ir", "--model", model)["compared"] == 4
    assert as_json("index", ".", crops, *RULES[:2], "--model", model)["already"] == 4
    assert "is the working folder" in wrong("gallery", "restore", "../b", ".", "--replace")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert as_json("index", ".", crops, *RULES[:2], "--model", model)["added"] == 4
    assert audit_path(".") == tmp_path / "empty.audit.jsonl"


def test_the_page_shows_no_file_that_has_changed_since_it_was_indexed(crops):
    """It may be of another person."""
    run("index", "g", crops, *RULES)
    image(*BLUE).save(crops / "gate1/1_0900.png")
    touched = crops / "gate2/1_1000.png"
    touched.write_bytes(touched.read_bytes())  # another state, the same content
    asked = ("search", "g", "night.png", "--modality", "ir", "--html", "who.html")
    run(*asked)
    page = Path("who.html").read_text(encoding="utf-8")
    assert page.count("the file has changed since it was indexed") == 1
    assert page.count("data:image/jpeg") == 4  # the query and three hits
    run("index", "g", crops, *RULES, "--existing", "update")
    run(*asked)
    assert Path("who.html").read_text(encoding="utf-8").count("data:image/jpeg") == 5
