"""What a route does not know: form fields, parameters, bodies."""

from __future__ import annotations

import pytest

from tests.server.service import files, png, running


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    with running(tmp_path_factory.mktemp("strict")) as one:
        assert one.add(1, 2, camera="gate").status_code == 201
        yield one


def told(reply, status=422):
    assert reply.status_code == status, reply.text
    return reply.json()["error"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/entries", "/v1/embed"])
def test_unknown_form_fields_are_named_with_the_known_ones(serving, path):
    data = {"modality": "visible", "cameras": "gate", "min-probability": "0.5"}
    error = told(serving.client.post(path, files=files(3), data=data))
    assert error["what"] == "there is no form field 'cameras', 'min-probability'"
    assert error["where"] == "body"
    known = error["do"].removeprefix("use ").split(", ")
    form = serving.client.get("/openapi.json").json()["components"]["schemas"]
    name = next(one for one in form if one.startswith("Body_") and path.rpartition("/")[2] in one)
    assert set(known) == set(form[name]["properties"]) >= {"images", "modality"}
    assert form[name]["additionalProperties"] is False
    assert len(serving.service.gallery) == 2


def test_a_file_under_another_name_is_no_image(serving):
    sent = [*files(1), ("image", ("2.png", png(2), "image/png"))]
    error = told(serving.client.post("/v1/search", files=sent, data={"modality": "visible"}))
    assert "'image'" in error["what"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/entries"),
        ("DELETE", "/v1/entries"),
        ("GET", "/v1/entries/crop-1"),
        ("DELETE", "/v1/entries/crop-1"),
        ("GET", "/v1/images/crop-1"),
        ("GET", "/v1/gallery"),
    ],
)
def test_unknown_parameters_are_named(serving, method, path):
    error = told(serving.client.request(method, path, params={"cameras": "gate", "dry-run": "true"}))
    assert error["what"] == "there is no parameter 'cameras', 'dry-run'"
    assert error["where"] == "query"
    assert ("camera" in error["do"]) == (path == "/v1/entries")
    assert len(serving.service.gallery) == 2


def test_what_takes_one_value_is_given_once_and_lists_are_lists(serving):
    error = told(serving.client.get("/v1/entries", params=[("limit", "1"), ("limit", "2")]))
    assert error["what"] == "the parameter 'limit' is given 2 times"
    reply = serving.client.get("/v1/entries", params=[("camera", "gate"), ("camera", "door")])
    assert len(reply.json()["entries"]) == 2
    error = told(
        serving.client.post("/v1/search", files=files(3), data={"modality": "visible", "top": ["1", "2"]})
    )
    assert error["what"] == "the form field 'top' is given 2 times"
    several = serving.client.post(
        "/v1/search", files=files(3, 1), data={"modality": "visible", "camera": ["gate", "door"]}
    )
    assert several.status_code == 200, several.text


@pytest.mark.parametrize(
    "name",
    [
        *("min_probability", "fmr", "prior", "group", "top", "range"),
        *("entry_modality", "since", "until", "camera", "track", "tag", "pid"),
    ],
)
def test_an_empty_field_of_a_search_is_refused(serving, name):
    """FastAPI takes its default, as if there were no filter."""
    error = told(serving.client.post("/v1/search", files=files(3), data={"modality": "visible"} | {name: ""}))
    assert error["what"] == f"the form field '{name}' is empty"
    assert error["do"] == "leave it out, or give a value"


@pytest.mark.parametrize("name", ["since", "until", "camera", "track", "tag", "pid", "id", "modality"])
def test_an_empty_filter_of_a_list_or_removal_is_refused(serving, name):
    for method in ("GET", "DELETE"):
        error = told(serving.client.request(method, "/v1/entries", params={"camera": ["gate"], name: ""}))
        assert error["what"] == f"the parameter '{name}' is empty"
    assert len(serving.service.gallery) == 2


@pytest.mark.parametrize("name", ["on_duplicate", "range"])
def test_an_empty_field_of_an_addition_is_refused(serving, name):
    error = told(serving.client.post("/v1/entries", files=files(3), data={"modality": "visible", name: ""}))
    assert error["what"] == f"the form field '{name}' is empty"
    assert len(serving.service.gallery) == 2


def test_files_are_sent_as_files_and_texts_as_texts(serving):
    for part in ((None, png(3)), ("", png(3)), (None, "")):
        error = told(
            serving.client.post("/v1/search", files=[("images", part)], data={"modality": "visible"})
        )
        assert error["what"] == "the form field 'images' is no file"
        assert error["do"] == "send a file with a filename, as curl -F images=@crop.jpg does"
    sent = [*files(3), ("camera", ("camera.txt", "gate"))]
    error = told(serving.client.post("/v1/search", files=sent, data={"modality": "visible"}))
    assert error["what"] == "the form field 'camera' is a file"


def test_a_plus_that_became_a_space_is_explained(serving):
    for until in ("2026-03-01T00:00:00+01:00", "2026-03-01 00:00+0100"):
        error = told(serving.client.get(f"/v1/entries?until={until}"))
        assert error["what"] == ("query.until: its offset lacks the +: in an address, write + as %2B")
    error = told(serving.client.get("/v1/entries?until=2026-03-01T00:00:00%2B01"))
    assert error["what"] == "query.until: write its offset with minutes, as +01:00"
    assert serving.client.get("/v1/entries?until=2026-03-01T00:00:00%2B01:00").status_code == 200
    for until in ("2026-03-01 12:00", "2026-03-01T12:00:00.5"):
        error = told(serving.client.get(f"/v1/entries?until={until}"))
        assert error["what"] == "query.until: its offset is missing: write Z for UTC, or +01:00, behind it"


@pytest.mark.parametrize(
    ("time", "fault"),
    [
        ("2026-11-29", "a date alone has no timezone: write its midnight, as 2026-03-01T00:00:00+01:00"),
        ("29.11.2026", "it is no time: write it as 2026-03-01T12:00:00Z"),
        ("2026-02-30T00:00Z", "it is no time: write it as 2026-03-01T12:00:00Z"),
        ("1e9", "it is no time: write it as 2026-03-01T12:00:00Z"),
    ],
)
def test_what_is_no_time_is_refused_in_plain_words(serving, time, fault):
    for name in ("since", "until"):
        form = {"modality": "visible", name: time}
        error = told(serving.client.post("/v1/search", files=files(3), data=form))
        assert error["what"] == f"body.{name}: {fault}"
        for method, path in (("GET", "/v1/entries"), ("GET", "/v1/days"), ("DELETE", "/v1/entries")):
            error = told(serving.client.request(method, path, params={name: time}))
            assert error["what"] == f"query.{name}: {fault}"
    form = {"modality": "visible", "time": [time]}
    error = told(serving.client.post("/v1/entries", files=files(3), data=form))
    assert error["what"] == f"body.time.0: {fault}"


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/", "/v1/gallery", "/v1/entries?camera=gate", "/v1/entries?bad=1", "/v1/days"],
)
def test_head_is_answered_as_get_without_the_body(serving, path):
    reply, whole = serving.client.head(path), serving.client.get(path)
    assert (reply.status_code, reply.content) == (whole.status_code, b"")
    assert reply.headers["Content-Length"] == whole.headers["Content-Length"]
    assert {"GET", "HEAD"} <= {*serving.client.put(path).headers["Allow"].split(", ")}


def test_known_parameters_belong_to_their_route(serving):
    for path in ("/v1/search", "/v1/entries", "/v1/embed"):
        reply = serving.client.post(
            path, files=files(3), data={"modality": "visible"}, params={"camera": "gate"}
        )
        assert "'camera'" in told(reply)["what"]


def test_a_body_is_a_form_and_only_where_one_is_read(serving):
    error = told(serving.client.post("/v1/search", json={"modality": "visible"}), 415)
    assert "application/json" in error["what"]
    assert "multipart/form-data" in error["do"]
    assert told(serving.client.post("/v1/search", content=b"images=1"), 415)["where"] == "header Content-Type"
    condition = {"camera": "gate", "expect": 2}
    error = told(serving.client.request("DELETE", "/v1/entries", params=condition, json={"pid": 1}))
    assert error["where"] == "body"
    assert len(serving.service.gallery) == 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_an_encoded_body_is_refused_by_its_header(serving, encoding):
    sent = {"files": files(3), "data": {"modality": "visible"}}
    error = told(serving.client.post("/v1/embed", headers={"Content-Encoding": encoding}, **sent), 415)
    assert (error["where"], error["what"]) == ("header Content-Encoding", f"the body is encoded: {encoding}")
    packed = {"Content-Encoding": encoding, "Content-Type": "multipart/form-data; boundary=B"}
    assert told(serving.client.post("/v1/embed", headers=packed, content=b"\x1f\x8b"), 415) == error
    plain = serving.client.post("/v1/embed", headers={"Content-Encoding": "Identity"}, **sent)
    assert plain.status_code == 200


@pytest.mark.parametrize("cut", [3, 4, 6, 9])
def test_a_form_without_its_end_is_refused(serving, cut):
    """Its last field is lost, and a filter that is lost finds too much."""
    whole = (
        b"--B\r\n"
        + b"\r\n--B\r\n".join(
            b'Content-Disposition: form-data; name="%s"%s\r\n\r\n%s' % part
            for part in (
                (b"images", b'; filename="a"', png(3)),
                (b"modality", b"", b"visible"),
                (b"camera", b"", b"gate"),
            )
        )
        + b"\r\n--B--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    reply = serving.client.post("/v1/search", content=whole, headers=headers)
    assert {hit["camera"] for hit in reply.json()["hits"]} == {"gate"}
    error = told(serving.client.post("/v1/search", content=whole[:-cut], headers=headers), 400)
    assert "does not end" in error["what"]


def form(camera, headers=b"", images=b""):
    """A form with an image and a camera, whose parts have these headers, too."""
    part = b'--B\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    parts = (b"images", b'; filename="\xe9.png"' + images, png(3)), (b"modality", b"", b"visible")
    return b"".join(part % sent for sent in (*parts, (b"camera", headers, camera))) + b"--B--\r\n"


RUSSIAN = "вход"
TYPE = b"\r\nContent-Type: text/plain"


@pytest.mark.parametrize(
    ("camera", "headers", "kind", "fault"),
    [
        (RUSSIAN.encode("cp1251"), TYPE + b"; charset=windows-1251", b"", "windows-1251, not UTF-8"),
        (RUSSIAN.encode("cp1251"), b"", b"", "not UTF-8"),
        (RUSSIAN.encode("cp1251"), b"", b"; charset=windows-1251", "windows-1251, not UTF-8"),
        (RUSSIAN.encode(), b"", b"; charset=iso-8859-1", "iso-8859-1"),
        (RUSSIAN.encode(), b"", b"; charset=us-ascii", "us-ascii"),
        (RUSSIAN.encode(), b"", b"; charset=none-such", "none-such"),
        (RUSSIAN.encode(), TYPE + b'; charset="KOI8-R"', b"", "koi8-r"),
        ("gate".encode("utf-16-le"), TYPE + b"; charset=utf-16le", b"", "utf-16le"),
        (b"0LLRhdC+0LQ=", b"\r\nContent-Transfer-Encoding: Base64", b"", "base64"),
        (b"=D0=B2", b"\r\nContent-Transfer-Encoding: quoted-printable", b"", "quoted-printable"),
        (b"\xed\xa0\x80", b"", b"", "not UTF-8"),
    ],
)  # fmt: skip
def test_texts_that_are_not_utf_8_are_refused(serving, camera, headers, kind, fault):
    """They were taken as Latin-1, or stored encoded, without a word."""
    sent = {"Content-Type": "multipart/form-data; boundary=B" + kind.decode()}
    error = told(serving.client.post("/v1/entries", content=form(camera, headers), headers=sent))
    field = "modality" if fault == "none-such" else "camera"  # it may be any
    assert (error["what"], error["where"]) == (f"the form field '{field}' is {fault}", "body")
    assert error["do"].startswith("send UTF-8 as it is")
    assert len(serving.service.gallery) == 2


@pytest.mark.parametrize(
    ("camera", "headers", "kind", "images"),
    [
        (RUSSIAN, b"", b"", b""),
        (RUSSIAN, TYPE + b"; charset=UTF-8\r\nContent-Transfer-Encoding: 8bit", b"; charset=utf-8", b""),
        (RUSSIAN, TYPE + b'; charset="utf8"\r\nContent-Transfer-Encoding: Binary', b"", b""),
        ("é", TYPE, b"", b"\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary"),
        ("gate", TYPE + b"; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit", b"", b""),
        ("gate", TYPE + b"; charset=ISO-8859-1", b"; charset=windows-1252", b""),  # as Java clients do
        ("gate", TYPE + b"; charset=latin1", b"; charset=Shift_JIS", b""),
        ("gate", TYPE + b"; charset=\r\nContent-Transfer-Encoding: quoted-printable", b"", b""),
        ("gate", b"", b"", b"\r\nContent-Type: application/octet-stream; charset=windows-1251"),
    ],
)  # fmt: skip
def test_utf_8_is_taken_however_it_is_named(serving, camera, headers, kind, images):
    sent = {"Content-Type": "multipart/form-data; boundary=B" + kind.decode()}
    body = form(camera.encode(), headers, images)
    reply = serving.client.post("/v1/search", content=body, headers=sent)
    assert reply.status_code == 200, reply.text
    hits = reply.json()["hits"]
    assert {hit["camera"] for hit in hits} == ({"gate"} if camera == "gate" else set())
    base64 = form(b"gate", images=b"\r\nContent-Transfer-Encoding: base64")
    assert told(serving.client.post("/v1/search", content=base64, headers=sent))["what"].endswith("is base64")
