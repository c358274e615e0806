"""One crop, one answer: Python and command line, PyTorch and ONNX Runtime, on a trained model."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fmcnet.cli import app
from fmcnet.gallery import Gallery
from fmcnet.inference.encoder import Encoder
from fmcnet.search import Searcher
from fmcnet.search.sources import Rules, read_sources
from fmcnet.types import Modality


def typed(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="fmcnet")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def same(hits, expected, tolerance):
    """The same similarities rank by rank, and the same entries wherever two are not as good as equal."""
    ranks = [hit.similarity for hit in expected]
    assert [hit.similarity for hit in hits] == pytest.approx(ranks, abs=tolerance)
    for at, (one, other) in enumerate(zip(hits, expected, strict=True)):
        near = [hit.id for hit in expected if abs(hit.similarity - ranks[at]) <= 2 * tolerance]
        assert one.id == other.id or one.id in near or at == len(ranks) - 1


def test_every_door_gives_the_same_top_20(tmp_path, tiny_sysu, tiny_run, tiny_onnx):
    place = tmp_path / "people.gallery"
    made = typed("index", place, tiny_sysu, "--model", tiny_run, "--modality", "visible", "--json")
    assert made["added"] == made["pictures"] > 20
    query = read_sources([tiny_sysu], Rules(Modality.INFRARED)).pictures[0].path
    ask = ("search", place, query, "--modality", "infrared", "--top", "20", "--json")
    answers = [typed(*ask), typed(*ask, "--model", tiny_onnx)]
    with Gallery(place, read_only=True) as gallery:
        torch_, onnx = (
            Searcher(Encoder.from_pretrained(folder), gallery).search(query, "infrared").hits
            for folder in (tiny_run, tiny_onnx)
        )
    assert len(torch_) == 20
    same(onnx, torch_, 1e-4)
    for answer, hits in zip(answers, (torch_, onnx), strict=True):
        assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in hits]
