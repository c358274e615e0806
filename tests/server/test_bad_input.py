"""Generated bad requests to a real server: no 5xx, no traceback, memory bounded, nothing lost.

$FMCNET_BAD_INPUT sets how many (300). The server's memory is its resident set by /proc; after the first quarter has
warmed it up it may grow by `ALLOWED` and no more, at any moment.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fmcnet.retrieval import Gallery
from fmcnet.server.limits import Limits
from fmcnet.server.uploads import UploadError, decode
from tests.server.bad_requests import LIMITS, png_of, request
from tests.server.process import resident_mib, started, until_it_answers
from tests.server.service import DIGEST, KEYS, SECRETS, bearer, encoded, files, png, running
from tests.server.wire import send

CASES = int(os.environ.get("FMCNET_BAD_INPUT", "300"))
ALLOWED = 48.0
"""MiB: two images of 10,000 pixels and a body of 200 kB are nothing; an unpacked bomb is at least 40 MB."""

NO_HTTP = b"Invalid HTTP request received."
"""What is no HTTP at all is refused before the service sees it."""


def test_generated_bad_input(tmp_path):
    statuses, entries = Counter(), 4
    with started(tmp_path, keys=SECRETS, **LIMITS) as (process, address):
        until_it_answers(address)
        keep = {"data": {"modality": "visible", "id": [f"keep-{n}" for n in range(4)], "camera": "gate"}}
        assert (
            send(address, "POST", "/v1/entries", files=files(*range(4)), headers=bearer("admin"), **keep)[0]
            == 201
        )
        for case in range(CASES):
            if case == CASES // 4:
                before, _ = resident_mib(process.pid, forget_peak=True)
            random = np.random.default_rng((2026, case))
            method, path, sent, locked_out = request(random)
            status, body = send(address, method, path, **sent)
            told = f"case {case}: {method} {path} -> {status} {body[:300]!r}"
            statuses[status] += 1
            assert status is None or 200 <= status < 500, told
            assert b"Traceback" not in body, told
            assert b"site-packages" not in body, told
            assert not locked_out or status == 401 or body == NO_HTTP, told
            if status is not None and status >= 400 and method != "HEAD" and body != NO_HTTP:
                error = json.loads(body)["error"]
                assert all(error[part] for part in ("what", "where", "do")), told
                assert error["status"] == status, told
            elif (method, path, status) == ("POST", "/v1/entries", 201):
                entries += json.loads(body)["added"]
            elif method == "DELETE" and status == 200:
                entries -= json.loads(body)["removed"]
        after, peak = resident_mib(process.pid)
        assert send(address, "GET", "/readyz")[0] == 200
        process.terminate()
        assert process.wait(120) == 0
        assert "Traceback" not in "".join(process.said)
    print(f"{CASES} cases: {dict(statuses)}; MiB: {before:.1f} before, {after:.1f} after, {peak:.1f} at most")
    assert {401, 404, 405, 413, 415, 422} <= statuses.keys()
    assert peak - before < ALLOWED, f"{before} MiB grew to {peak}"
    with Gallery(tmp_path / "people.gallery", model=DIGEST, create=False) as gallery:
        assert gallery.check() == []
        assert len(gallery) == entries
        assert {f"keep-{n}" for n in range(4)} <= {entry.id for entry, _ in gallery.scan()}
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside <= {"people.gallery", "audit.jsonl", "kept", "crops", "calibration.json"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    with running(tmp_path_factory.mktemp("bad"), keys=KEYS, limits=Limits(**LIMITS)) as one:
        one.client.headers.update(bearer("admin"))
        yield one


def test_a_bomb_is_refused_by_its_header(serving, monkeypatch):
    """Not one pixel of it is decoded."""
    monkeypatch.setattr("fmcnet.server.uploads.to_rgb", lambda *image: pytest.fail("decoded"))
    for data in (png_of(60_000, 60_000), png_of(101, 100)):
        with pytest.raises(UploadError, match="pixels"):
            decode(data, "b.png", serving.service.limits.pixels)
        sent = {"files": [("images", ("b.png", data))], "data": {"modality": "visible"}}
        reply = serving.client.post("/v1/embed", **sent)
        assert (reply.status_code, "pixels" in reply.json()["error"]["what"]) == (413, True)


def test_all_broken_images_are_named(serving):
    sent = [("images", (name, data)) for name, data in (("a", b""), ("b", png(1)), ("c", b"zz"))]
    error = serving.client.post("/v1/embed", files=sent, data={"modality": "visible"}).json()["error"]
    assert error["what"].startswith("2 of 3 images")
    assert "'a' is empty" in error["what"]
    assert "'c' is no image" in error["what"]


def test_an_upload_never_touches_the_disk(serving, monkeypatch):
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    large = encoded(Image.frombytes("RGB", (99, 99), np.random.default_rng(0).bytes(99 * 99 * 3)))
    assert len(large) > 25_000
    sent = {"files": [("images", ("a.png", large))], "data": {"modality": "visible"}}
    assert serving.client.post("/v1/embed", **sent).status_code == 200
    assert not rolled


def test_a_fault_of_the_service_is_told_without_its_insides(serving, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("/secret/path.py line 3")

    monkeypatch.setattr(serving.service.searcher, "answer", fail)
    reply = serving.search(1)
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.json()["error"]["do"]
