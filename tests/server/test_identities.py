"""Identities over HTTP: texts and numbers by one rule, the same as by every other door."""

from __future__ import annotations

import pytest

from tests.server.service import files, running


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    with running(tmp_path_factory.mktemp("service")) as one:
        for seed, pid in enumerate(("007", 7, "Jose\u0301", "anna", "unknown", "", None)):
            reply = one.add(seed, **({} if pid is None else {"pid": pid}))
            assert reply.status_code == 201, reply.text
        yield one


def ids(reply):
    assert reply.status_code == 200, reply.text
    return {one["id"] for one in reply.json()["entries"]}


def test_entries_have_texts(serving):
    listed = serving.client.get("/v1/entries").json()["entries"]
    assert [one["pid"] for one in listed] == ["7", "7", "Jos\u00e9", "anna", None, None, None]


def test_what_is_doubtful_about_an_added_crop_is_told(tmp_path):
    with running(tmp_path) as one:
        one.add(1, pid="anna", camera="1", track="walk")
        near = "the identities 'Anna', 'anna' may be one person: they are taken as 2"
        assert one.add(2, pid="Anna").json()["notes"] == [near]
        assert one.add(3, pid="bob").json()["notes"] == []
        (camera,) = one.add(4, camera="cam1").json()["notes"]
        assert camera.startswith("the cameras '1', 'cam1' may be one")
        (nobody,) = one.add(5, pid="n.a.").json()["notes"]
        assert nobody.startswith("the identity 'n.a.' is taken as a person")
        (late,) = one.add(6, time="2099-01-01T00:00:00Z").json()["notes"]
        assert "have a time in the future, the first image 1 2099-01-01 00:00:00 UTC" in late
        (old,) = one.add(7, time="2000-01-01T00:00:00Z").json()["notes"]
        assert "have a time of over ten years ago" in old
        assert one.add(11, pid="bob", camera="gate", track="walk-7").json()["notes"] == []
        (mixed,) = one.add(12, pid="cleo", camera="gate", track="walk-7").json()["notes"]
        assert mixed.startswith(
            "tracks of several cameras or identities: walk-7 (identities bob, cleo); a search by track"
        )
        assert one.add(13, pid="cleo", camera="gate").json()["notes"] == []
        unset = one.add(8, time="1970-01-01T00:05:00Z")
        assert (unset.status_code, unset.json()["error"]["where"]) == (422, "time")
        assert "a clock that was never set" in unset.json()["error"]["what"]
        (range_,) = {*one.search(1, range="15:40").json()["notes"]} - {*one.search(1).json()["notes"]}
        assert range_ == "the range has no effect: these images have 8 bits, which stay as they are"
        one.add(9, track="-1", camera="unknown")
        listed = {entry["id"]: entry for entry in one.client.get("/v1/entries").json()["entries"]}
        assert (listed["crop-9"]["track"], listed["crop-9"]["camera"]) == (None, None)


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        (7, (0, 1)),
        ("7.0", (0, 1)),
        ("Jos\u00e9", (2,)),
        ("Jose\u0301", (2,)),
        (["anna", 7], (0, 1, 3)),
        ("ANNA", ()),
    ],
)
def test_filters_and_removals_take_texts_and_numbers(serving, asked, seeds):
    found = {f"crop-{seed}" for seed in seeds}
    assert ids(serving.client.get("/v1/entries", params={"pid": asked})) == found
    counted = serving.client.delete("/v1/entries", params={"pid": asked, "dry_run": True}).json()
    assert counted["matched"] == len(found)
    told = serving.search(3, pid=asked).json()
    assert {hit["id"] for hit in told["hits"]} == found
    near = "no entry has the identity 'ANNA': did you mean 'anna'?"
    assert (near in told["notes"]) == (asked == "ANNA")


def test_people_are_grouped_and_nobody_known_is_not(serving):
    groups = serving.search(3, group="pid").json()["groups"]
    assert sorted((str(one["key"]), len(one["matches"])) for one in groups) == [
        ("7", 2), ("Jos\u00e9", 1), ("None", 1), ("None", 1), ("None", 1), ("anna", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("pid", ["18446744073709551615", "9" * 5000, "a\u202eb", "1.2E+11", "x" * 300])
def test_what_is_no_identity_is_refused_where_it_stands(serving, pid):
    for reply, where in (
        (serving.client.get("/v1/entries", params={"pid": pid}), "query.pid.0"),
        (serving.client.delete("/v1/entries", params={"pid": pid, "expect": 1}), "query.pid.0"),
        (serving.search(3, pid=pid), "body.pid.0"),
        (serving.add(9, pid=pid), "body.pid.0"),
    ):
        assert (reply.status_code, reply.json()["error"]["where"]) == (422, where)
        assert "pid '" in reply.json()["error"]["what"]
    assert len(serving.service.gallery) == 7


@pytest.mark.parametrize("pid", ["-1", "unknown", "nan", " "])
def test_nobody_known_is_not_chosen(serving, pid):
    data = {"modality": "visible", "pid": pid}
    for reply in (
        serving.client.get("/v1/entries", params={"pid": pid}),
        serving.client.delete("/v1/entries", params={"pid": pid, "expect": 3}),
        serving.client.post("/v1/search", files=files(3), data=data),
    ):
        assert reply.status_code == 422
        assert "is nobody known" in reply.json()["error"]["what"]
    assert len(serving.service.gallery) == 7
