"""One crop, one answer: Python, command line and HTTP, PyTorch and ONNX Runtime, with the model that is shipped."""

from __future__ import annotations

import contextlib
import json
import re
import time

import httpx2
import pytest

from fmcnet.inference.encoder import Encoder
from fmcnet.retrieval import Gallery, Searcher
from fmcnet.retrieval.sources import Rules, read_sources
from fmcnet.types import Modality
from tests.cli import run_command
from tests.forked import Running

SHIPPED = "fmcnet-lite"
TOLERANCE = 1e-5
"""Of a similarity, between PyTorch and ONNX Runtime; doors to one of them give the same numbers."""


def typed(*arguments):
    result = run_command(*arguments, code=None)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@contextlib.contextmanager
def served(place, model):
    """The address of `fmcnet serve`, a process of its own."""
    process = Running("serve", place, "--model", model, "--port", "0", "--threads", "1")
    try:
        deadline = time.monotonic() + 300
        while not (found := re.search(r"page: (http://\S+)/", "".join(process.said))):
            assert process.poll() is None, process.said
            assert time.monotonic() < deadline, process.said
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


def asked(address, query):
    with httpx2.Client(timeout=120) as client:
        reply = client.post(
            f"{address}/v1/search",
            files=[("images", (query.name, query.read_bytes(), "image/jpeg"))],
            data={"modality": "infrared", "top": 20},
        )
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.slow
def test_every_door_gives_the_same_top_20(tmp_path, tiny_sysu, lite_onnx):
    place = tmp_path / "people.gallery"
    made = typed("index", place, tiny_sysu, "--model", SHIPPED, "--modality", "visible", "--json")
    assert made["added"] == made["pictures"] > 20
    query = read_sources([tiny_sysu], Rules(Modality.INFRARED)).images[0].path
    answers = {}
    for model in (SHIPPED, lite_onnx):
        encoder = Encoder.from_pretrained(model, device="cpu")
        with Gallery(place, read_only=True) as gallery:
            python = Searcher(encoder, gallery).search(query, "infrared", top=20).to_dict()
        command = typed(
            "search", place, query, "--modality", "infrared", "--top", 20, "--model", model, "--json"
        )
        with served(place, model) as address:
            http = asked(address, query)
        answers[encoder.backend.name] = {"python": python, "command line": command, "http": http}
    assert set(answers) == {"torch", "onnxruntime"}
    first = answers["torch"]["python"]["hits"]
    assert len({hit["id"] for hit in first}) == 20
    for runtime, doors in answers.items():
        for door, answer in doors.items():
            for key, tolerance in (("similarity", TOLERANCE), ("probability", 1e-3)):
                expected = [hit[key] for hit in first]
                assert [hit[key] for hit in answer["hits"]] == pytest.approx(expected, abs=tolerance), door
                mine = [hit[key] for hit in doors["python"]["hits"]]
                assert [hit[key] for hit in answer["hits"]] == pytest.approx(mine, abs=1e-6), door
            assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in first], (runtime, door)
