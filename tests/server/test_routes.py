"""Every route, by its answers."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest
from PIL import Image

from fmcnet.errors import CheckpointError
from fmcnet.retrieval import Gallery, Where
from fmcnet.server.limits import Limits
from tests.server.service import DAY, KEYS, NIGHT, bands, bearer, calibration, encoded, files, png, running

MARCH = "2026-03-01T12:00:00+00:00"


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Twelve crops: even ones by camera gate, odd ones by hall, three tracks."""
    with running(tmp_path_factory.mktemp("service"), limits=Limits(wait=0.001, top=50)) as one:
        for seed in range(12):
            reply = one.add(
                seed,
                camera="gate" if seed % 2 == 0 else "hall",
                track=f"track/{seed % 3}",
                time=f"2026-03-{seed + 1:02d}T08:00:00Z",
                pid=str(seed // 2),
                tag=["bag"],
                source=f"/crops/{seed}.png",
            )
            assert reply.status_code == 201, reply.text
        yield one


def test_a_search_gives_what_the_searcher_gives(serving):
    reply = serving.search(4, 5, modality=["infrared", "visible"], top=20, prior=0.2)
    query = [bands(4), bands(5)]
    expected = serving.service.searcher.search(query, [NIGHT, DAY], top=20, prior=0.2)
    assert reply.status_code == 200
    told, wanted = reply.json(), expected.to_dict()
    assert [hit["id"] for hit in told["hits"]] == [hit["id"] for hit in wanted["hits"]]
    for got, hit in zip(told["hits"], wanted["hits"], strict=True):
        assert got.pop("similarity") == pytest.approx(hit.pop("similarity"), abs=1e-6)
        assert got.pop("probability") == pytest.approx(hit.pop("probability"), abs=1e-5)
        assert datetime.fromisoformat(got.pop("time")) == datetime.fromisoformat(hit.pop("time"))
        assert got == hit
    for name in ("nobody", "query", "compared", "prior"):
        assert told[name] == wanted[name]
    assert told["notes"] == [note.replace("images[0]", "4.png") for note in wanted["notes"]]
    assert "with colours, given as infrared" in told["notes"][-1]


def test_the_right_one_comes_first_with_a_probability(serving):
    for seed in range(12):
        best = serving.search(seed, prior=0.5).json()["hits"][0]
        assert best["id"] == f"crop-{seed}"
        assert best["similarity"] == pytest.approx(1.0, abs=1e-5)
        assert best["probability"] == pytest.approx(1 / (1 + np.exp(-8)), abs=1e-4)


def test_filters_hold(serving):
    hits = serving.search(
        3, camera="hall", since=MARCH.replace("01T", "05T"), until=MARCH.replace("01T", "10T")
    )
    found = {hit["id"] for hit in hits.json()["hits"]}
    assert found == {"crop-5", "crop-7", "crop-9"}
    assert serving.search(3, camera=["hall", "gate"]).json()["compared"] == 12
    assert {h["pid"] for h in serving.search(3, pid=["1", "2"]).json()["hits"]} == {"1", "2"}
    assert serving.search(3, entry_modality="infrared").json()["hits"] == []
    assert serving.search(3, tag=["bag", "hat"]).json()["hits"] == []


def test_groups_and_nobody(serving):
    answer = serving.search(3, group="track", top=5).json()
    first = answer["groups"][0]
    track = [entry.id for entry, _ in serving.service.gallery.scan(Where(tracks=["track/0"]))]
    assert (first["key"], first["pooled"]) == ("track/0", len(track))
    query = serving.service.encoder.encode([bands(3)], "infrared").features[0]
    mean = np.mean([serving.service.gallery.embedding(i) for i in track], axis=0)
    assert first["similarity"] == pytest.approx(float(mean @ query / np.linalg.norm(mean)), abs=1e-5)
    assert len(answer["hits"]) == len(answer["groups"]) == 3
    nobody = serving.search(3, camera="gate", min_probability=0.999).json()
    assert nobody["nobody"] is True
    assert nobody["hits"] == []


def test_embed(serving):
    told = serving.client.post(
        "/v1/embed",
        files=[("images", ("a.png", png(1))), ("images", ("b.png", png(2)))],
        data={"modality": ["visible", "infrared"]},
    ).json()
    expected = serving.service.encoder.encode([bands(1), bands(2)], ["visible", "infrared"])
    assert told["dimension"] == 12
    assert [(one["name"], one["modality"]) for one in told["embeddings"]] == [
        ("a.png", "visible"),
        ("b.png", "infrared"),
    ]
    np.testing.assert_allclose([one["embedding"] for one in told["embeddings"]], expected.features, atol=1e-6)


def test_an_entry_and_a_track(serving):
    entry = serving.client.get("/v1/entries/crop-3").json()
    assert entry == {
        "id": "crop-3",
        "modality": "visible",
        "pid": "1",
        "camera": "hall",
        "time": "2026-03-04T08:00:00Z",
        "source": "/crops/3.png",
        "track": "track/0",
        "tags": ["bag"],
    }
    listed = serving.client.get("/v1/entries", params={"track": "track/0", "limit": 2, "offset": 1}).json()
    assert listed["total"] == 4
    assert [one["id"] for one in listed["entries"]] == ["crop-3", "crop-6"]


def test_what_is_not_there(serving):
    for path in ("/v1/entries/nobody", "/v1/images/crop-1", "/v1/nothing", "/page/other.js", "/v1/gallery/"):
        reply = serving.client.get(path, follow_redirects=False)
        assert reply.status_code == 404, path
        assert set(reply.json()["error"]) == {"status", "what", "where", "do"}
    assert serving.client.put("/v1/entries/crop-1").status_code == 405
    for address, methods in (
        ("/v1/entries/crop-1", {"GET", "HEAD", "DELETE"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ):
        assert set(serving.client.put(address).headers["Allow"].split(", ")) >= methods, address


def test_health_metrics_and_the_gallery(serving):
    assert serving.client.get("/healthz").json()["ok"] is True
    assert serving.client.get("/readyz").json() == {"ok": True, "faults": []}
    told = serving.client.get("/v1/gallery").json()
    assert (told["entries"], told["cameras"], told["dimension"]) == (12, ["gate", "hall"], 12)
    assert told["may"] == ["read", "write", "admin"]
    text = serving.client.get("/metrics").text
    assert "fmcnet_gallery_entries 12.0" in text
    assert 'fmcnet_requests_total{route="/v1/entries",status="201"} 12.0' in text


def test_ids_taken_are_refused_or_skipped_or_replaced(tmp_path):
    with running(tmp_path) as one:
        assert one.add(1, 2).json() == {
            "ids": ["crop-1", "crop-2"], "added": 2, "replaced": 0, "skipped": 0, "notes": []
        }  # fmt: skip
        assert one.add(2, 3).status_code == 409
        assert len(one.service.gallery) == 2
        assert one.add(2, 3, on_duplicate="skip").json()["skipped"] == 1
        assert one.add(2, on_duplicate="replace").json()["replaced"] == 1
        assert one.add(5, 5).status_code == 409


def test_values_of_a_skipped_entry_that_are_not_stored_are_told(tmp_path):
    given = {"camera": "gate", "time": "2026-03-01T08:00:00Z", "pid": "7", "track": "w", "tag": "hat"}
    with running(tmp_path) as one:
        one.add(1, **given)
        same = given | {"time": "2026-03-01T09:00:00+01:00", "pid": "07"}
        for values in (given, same, {}, {"camera": "unknown"}):
            assert one.add(1, 2, on_duplicate="skip", **values).json()["notes"] == [], values
        other = {"camera": ["door", "gate"], "track": "v", "modality": "ir"}
        notes = one.add(1, 3, on_duplicate="skip", **other).json()["notes"]
        (note,) = [note for note in notes if "crop-" in note and "kept" in note]
        assert note == (
            "crop-1: camera is gate in the gallery, door now; crop-1: track is w in the gallery, v now; crop-1: "
            "modality is visible in the gallery, infrared now: the stored values were kept, on_duplicate=replace "
            "stores the new ones"
        )
        assert one.service.gallery.get("crop-1").camera == "gate"


def test_a_key_that_may_only_add_reads_nothing_in_the_notes(tmp_path):
    heat = np.linspace(16, 30, 48 * 24, dtype=np.float32).reshape(48, 24)
    deep = [("images", ("x.tif", encoded(Image.fromarray(heat), "TIFF"), "image/tiff"))]
    with running(tmp_path, keys=KEYS) as one:
        one.client.headers.update(bearer("admin"))
        stored = {"camera": "bank", "pid": "Anna Schmidt", "track": "t9", "time": "2026-03-01T08:00:00Z"}
        assert one.add(1, **stored).status_code == 201
        one.service.gallery.replace_ranges([(15, 40), (7, 77)], 1)
        given = {"camera": "Bank", "pid": "anna schmidt", "track": "t9", "time": "2025-03-01T08:00:00Z"}
        for scope in ("write", "admin"):
            one.client.headers.update(bearer(scope))
            answers = [one.add(seed, 2 + seed, on_duplicate="skip", **given).json() for seed in (1, 4)]
            data = {"modality": "visible", "range": "0:99"}
            answers.append(one.client.post("/v1/entries", files=deep, data=data).json())
            said = str([answer["notes"] for answer in answers])
            secrets = [text for text in ("bank", "Anna Schmidt", "2026", "77") if text in said]
            assert secrets == ([] if scope == "write" else ["bank", "Anna Schmidt", "2026", "77"])
        one.client.headers.update(bearer("write"))
        [note] = one.add(7, 8, camera=["door", "Door"]).json()["notes"]
        assert "the cameras 'Door', 'door' may be one" in note


def test_removal_is_of_the_gallery_itself(tmp_path):
    with running(tmp_path) as one:
        one.add(1, 2)
        assert one.client.delete("/v1/entries/crop-1").json() == {"id": "crop-1", "removed": 1, "notes": []}
        assert one.client.delete("/v1/entries/crop-1").status_code == 404
        assert one.service.gallery.count(Where(ids=["crop-1"])) == 0
        assert [hit["id"] for hit in one.search(1).json()["hits"]] == ["crop-2"]


def test_times_need_a_zone_and_are_kept_in_utc(tmp_path):
    with running(tmp_path) as one:
        assert one.add(1, time="2026-03-01T08:00:00").status_code == 422
        assert one.add(1, time="2026-03-01T08:00:00+02:00").status_code == 201
        assert one.service.gallery.get("crop-1").time == datetime(2026, 3, 1, 6, tzinfo=timezone.utc)


def test_columns_are_one_for_all_or_one_each(tmp_path):
    with running(tmp_path) as one:
        assert one.add(1, 2, 3, camera=["a", "b", "c"], track="t").status_code == 201
        assert [one.service.gallery.get(f"crop-{n}").camera for n in (1, 2, 3)] == ["a", "b", "c"]
        wrong = one.add(4, 5, 6, camera=["a", "b"])
        assert (wrong.status_code, wrong.json()["error"]["where"]) == (422, "camera")


def test_a_calibration_of_other_weights_is_said_at_the_start(tmp_path, monkeypatch):
    other = replace(calibration(), model="of-other-weights")
    monkeypatch.setattr("tests.server.service.calibration", lambda: other)
    with pytest.raises(CheckpointError, match="weights"), running(tmp_path):
        pass


def test_without_a_calibration_there_are_similarities_only(tmp_path):
    with running(tmp_path, calibrated=False) as one:
        one.add(1)
        answer = one.search(1).json()
        assert answer["hits"][0]["probability"] is None
        assert "not calibrated" in answer["notes"][0]
        assert one.search(1, min_probability=0.5).status_code == 422


def test_images_only_when_asked_for(tmp_path):
    with running(tmp_path, keep=True) as one:
        one.add(1)
        reply = one.client.get("/v1/images/crop-1")
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/jpeg")
        assert reply.content.startswith(b"\xff\xd8")
        assert len(list((tmp_path / "kept").glob("*.jpg"))) == 1
        one.client.delete("/v1/entries/crop-1")
        assert one.client.get("/v1/images/crop-1").status_code == 404
        assert not list((tmp_path / "kept").glob("*.jpg"))


def test_the_description_names_every_route_and_scope(serving):
    tree = serving.client.get("/openapi.json").json()
    assert set(tree["paths"]) == {
        "/v1/embed", "/v1/search", "/v1/entries", "/v1/entries/{entry_id}", "/v1/images/{entry_id}",
        "/v1/gallery", "/v1/days", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    scopes = {(path, m): op.get("x-scope") for path, ops in tree["paths"].items() for m, op in ops.items()}
    assert scopes["/v1/entries", "post"] == "write"
    assert scopes["/v1/entries/{entry_id}", "delete"] == "admin"
    assert scopes["/healthz", "get"] is None


def test_queries_are_read_with_the_range_of_the_gallery(tmp_path):
    def sent(values):
        return [("images", ("x.tif", encoded(Image.fromarray(values), "TIFF"), "image/tiff"))]

    cold = np.linspace(12, 18, 48 * 24, dtype=np.float32).reshape(48, 24)
    Gallery(tmp_path / "people.gallery").close()
    (tmp_path / "people.gallery" / "made-with.json").write_text('{"ranges": [[10, 40]]}')  # as 0.1.0 wrote it
    with running(tmp_path) as service:
        answer = service.client.post("/v1/embed", files=sent(cold), data={"modality": "infrared"}).json()
        grey = Image.fromarray(np.rint((cold - 10) * (255 / 30)).astype(np.uint8))
        upload = [("images", ("x.png", encoded(grey), "image/png"))]
        same = service.client.post("/v1/embed", files=upload, data={"modality": "infrared"}).json()
        assert answer["embeddings"][0]["embedding"] == same["embeddings"][0]["embedding"]
        refused = service.client.post("/v1/embed", files=sent(cold + 273), data={"modality": "infrared"})
        assert refused.status_code == 422
        assert "no pixel is in the range 10:40: its values are 285 to 291" in refused.json()["error"]["what"]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A service that is asked only what it refuses."""
    with running(tmp_path_factory.mktemp("empty")) as service:
        yield service


@pytest.mark.parametrize(
    "value", ["18446744073709551615", "-9223372036854775809", "9" * 5000, "1e400", "nan"]
)
@pytest.mark.parametrize("name", ["pid", "top", "prior", "fmr", "min_probability"])
def test_numbers_out_of_range_are_refused(empty, name, value):
    answer = empty.client.post("/v1/search", files=files(1), data={"modality": "visible", name: value})
    assert answer.status_code == 422
    assert name in answer.json()["error"]["where"]


def test_a_range_that_is_sent_is_recorded_and_applied_at_once(tmp_path):
    def sent(low, high):
        values = np.linspace(low, high, 48 * 24, dtype=np.float32).reshape(48, 24)
        return [("images", ("x.tif", encoded(Image.fromarray(values), "TIFF"), "image/tiff"))]

    heats = [(16, 30), (18, 37), (20, 28)]
    with running(tmp_path) as service:
        for number, heat in enumerate(heats):
            data = {"modality": "infrared", "id": str(number), "range": "15:40"}
            assert service.client.post("/v1/entries", files=sent(*heat), data=data).status_code == 201
        with Gallery(tmp_path / "people.gallery", read_only=True) as gallery:
            assert gallery.value_ranges == ((15.0, 40.0),)
        for number, heat in enumerate(heats):
            asked = {"modality": "infrared", "top": "1"}
            [hit] = service.client.post("/v1/search", files=sent(*heat), data=asked).json()["hits"]
            assert (hit["id"], round(hit["similarity"], 3)) == (str(number), 1.0)
        with Gallery(tmp_path / "people.gallery") as other:  # as another program does
            other.replace_ranges([(15, 40), (0, 100)], len(other))
        data = {"modality": "infrared", "range": "0:100"}
        added = service.client.post("/v1/entries", files=sent(16, 30), data=data).json()
        assert any("several value ranges (15:40 and 0:100)" in note for note in added["notes"])
        for route in ("entries", "search"):
            refused = service.client.post(f"/v1/{route}", files=sent(16, 30), data={"modality": "infrared"})
            assert refused.status_code == 422, route
        unfit = service.client.post("/v1/search", files=sent(300, 310), data=asked | {"range": "1:2"})
        assert unfit.json()["error"]["do"].startswith("give the field range")
        days = service.client.get("/v1/days", params={"camera": "gat"}).json()
        assert any("no entry has the camera 'gat'" in note for note in days["notes"])
        assert "several value ranges (15:40 and 0:100)" in refused.json()["error"]["what"]
        assert refused.json()["error"]["do"] == "give the field range as LOW:HIGH"


def thermal(low, high):
    """A 16-bit upload: a gradient from `low` to `high`."""
    values = np.linspace(low, high, 24 * 48).reshape(48, 24).astype(np.uint16)
    return [("images", ("night.png", encoded(Image.fromarray(values)), "image/png"))]


def test_a_range_makes_the_same_heat_equally_bright(serving):
    def embed(low, high, **fields):
        data = {"modality": "infrared", **fields}
        return serving.client.post("/v1/embed", files=thermal(low, high), data=data)

    stretched = embed(3000, 4000).json()
    assert "1 image with values of no usual range" in stretched["notes"][0]
    assert "night.png" in stretched["notes"][0]
    told = embed(3000, 4000, range="3000:4000").json()
    assert told["notes"] == []
    as_bytes = np.linspace(0, 255, 24 * 48).reshape(48, 24)
    eight = encoded(Image.fromarray(np.rint(as_bytes).astype(np.uint8)))
    plain = serving.client.post(
        "/v1/embed", files=[("images", ("a.png", eight, "image/png"))], data={"modality": "infrared"}
    ).json()
    one, other = (reply["embeddings"][0]["embedding"] for reply in (told, plain))
    assert np.dot(one, other) > 0.999
    half = embed(3000, 4000, range="3000:5000").json()["embeddings"][0]["embedding"]
    assert half != one
    refused = embed(3000, 4000, range="warm")
    assert refused.status_code == 422
    assert refused.json()["error"]["where"] == "range"


def test_a_full_frame_is_told_by_every_route(serving):
    frame = [("images", ("frame.png", png(3, (640, 480)), "image/png"))]
    for route in ("embed", "search"):
        notes = serving.client.post(f"/v1/{route}", files=frame, data={"modality": "visible"}).json()["notes"]
        assert sum("fmcnet crop" in note and "frame.png" in note for note in notes) == 1
    added = serving.client.post("/v1/entries", files=frame, data={"modality": "visible", "id": "frame"})
    assert "fmcnet crop" in added.json()["notes"][0]
    assert serving.client.delete("/v1/entries/frame").status_code == 200


def test_days_are_counted_by_camera_within_a_bound(serving):
    def ask(**asked):
        return serving.client.get("/v1/days", params=asked)

    told = ask().json()
    assert (told["total"], told["left_out"], len(told["days"])) == (12, 0, 12)
    assert told["days"][0] == {"camera": "hall", "day": "2026-03-12", "entries": 1}
    assert told["days"][-1] == {"camera": "gate", "day": "2026-03-01", "entries": 1}
    late = ask(timezone="Pacific/Kiritimati", camera="gate", limit=2).json()  # 14 hours later
    assert late["days"] == [
        {"camera": "gate", "day": "2026-03-11", "entries": 1},
        {"camera": "gate", "day": "2026-03-09", "entries": 1},
    ]
    assert (late["total"], late["left_out"]) == (6, 4)
    west = ask(timezone="Pacific/Honolulu", track="track/0", since="2026-03-09T00:00:00Z").json()
    assert west["days"] == [{"camera": "hall", "day": "2026-03-09", "entries": 1}]


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"timezone": "Mars/Base"}, "query.timezone"),
        ({"timezone": "../UTC"}, "query.timezone"),
        ({"limit": 10_001}, "query.limit"),
        ({"cameras": "gate"}, "query"),
    ],
)
def test_days_that_cannot_be_counted_are_refused(serving, asked, where):
    reply = serving.client.get("/v1/days", params=asked)
    assert (reply.status_code, reply.json()["error"]["where"]) == (422, where)


def test_the_api_is_a_page_from_local_files_or_says_what_is_missing(serving, tmp_path, monkeypatch):
    from fmcnet.server.routes import info

    monkeypatch.setattr(info, "SWAGGER", "files_of_swagger")
    reply = serving.client.get("/docs")
    assert (reply.status_code, "fastapi-offline" in reply.text) == (404, True)
    static = tmp_path / "files_of_swagger" / "static"
    static.mkdir(parents=True)
    (static.parent / "__init__.py").touch()
    for name in info.SWAGGER_FILES:
        (static / name).write_text(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = serving.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(parts) == 4  # the icon, too
    assert not any(part.startswith(("http", "/")) for part in parts)  # this machine only, below any path
    for part in parts:
        assert serving.client.get(f"/{part}").status_code == 200
    assert "openapi.json" in serving.client.get("/page/docs.js").text
    assert serving.client.get("/docs/other.js").status_code == 404
