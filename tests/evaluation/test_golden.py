"""Every value of ../shared/golden: the public evaluators' figures on the same features."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmcnet.evaluation.evaluate import evaluate
from fmcnet.evaluation.protocols import sysu
from fmcnet.evaluation.score import score_file
from fmcnet.evaluation.skip_rule import SkipRule
from tests.evaluation.shared_golden import (
    CARRIED,
    PERMUTATION,
    SHARED,
    needs_shared,
    read_json,
    sysu_embeddings,
)

NAMES = {"r1": "rank1", "r5": "rank5", "r10": "rank10", "r20": "rank20", "mAP": "mAP", "mINP": "mINP"}
OFFICIAL = 1e-9
"""The official code works in float64; so do we here."""
FLOAT32_OUTPUT = 1e-6
"""AGW and DEEN return float32 CMC curves: 3e-8 at most, well within the asked 1e-6."""


def agree(found, expected, tolerance):
    for theirs, ours in NAMES.items():
        if theirs in expected:
            assert getattr(found, ours) == pytest.approx(expected[theirs], abs=tolerance), theirs


@needs_shared
@pytest.mark.parametrize("mode", ["all", "indoor"])
@pytest.mark.parametrize("shots", [1, 10])
def test_official_matlab_evaluator(mode, shots):
    expected = read_json("sysu_expected.json")["official_evaluator"][f"{mode}_search_{shots}shot"]
    found = evaluate(sysu_embeddings(), sysu(mode, shots, "official", PERMUTATION), distance="euclidean")
    assert len(found.trials) == len(expected) == 10
    for ours, theirs in zip(found.trials, expected, strict=True):
        agree(ours, theirs, OFFICIAL)
        assert ours.queries == (3803 if mode == "all" else 2208)
        assert ours.gallery == {"all": 301, "indoor": 112}[mode] * shots


@needs_shared
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_agw_evaluator(mode):
    expected = read_json("sysu_expected.json")["agw_evaluator"][f"{mode}_search_1shot"]
    protocol = sysu(mode, 1, "seeded")
    found = evaluate(sysu_embeddings(), protocol, distance="cosine")
    e = sysu_embeddings()
    for ours, theirs, (_, gallery) in zip(found.trials, expected, protocol.trials(e), strict=True):
        agree(ours, theirs, FLOAT32_OUTPUT)
        assert ours.gallery == theirs["n_gallery"]
        first = [f"{n}.jpg" for n in names(e, gallery[:5])]
        assert first == theirs["first_gallery"]


def names(e, rows):
    return [f"cam{e.camid[r]}/{e.pid[r]:04d}/{e.index[r]:04d}" for r in rows]


def digest(e, rows):
    # The text of protocols.md leaves the extension out; the digests were made with it.
    files = sorted(f"{name}.jpg" for name in names(e, rows))
    return hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]


@needs_shared
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_gallery_digests_of_every_trial(mode):
    e = sysu_embeddings()
    draws = {
        "agw": sysu(mode, 1, "seeded"),
        "off": sysu(mode, 1, "official", PERMUTATION),
        "off10": sysu(mode, 10, "official", PERMUTATION),
    }
    galleries = {name: [g for _, g in p.trials(e)] for name, p in draws.items()}
    for trial in range(10):
        expected = read_json("sysu_gallery_hashes.json")[f"{mode}/{trial}"]
        for name, drawn in galleries.items():
            assert len(drawn[trial]) == expected[f"{name}_n"]
            assert digest(e, drawn[trial]) == expected[f"{name}_sha"], (name, trial)
        shared = np.intersect1d(galleries["agw"][trial], galleries["off"][trial])
        assert len(shared) == expected["overlap"]


@pytest.mark.parametrize("protocol", ["llcm", "regdb", "sysu"])
@pytest.mark.parametrize(
    "folder", [CARRIED, pytest.param(SHARED, marks=needs_shared)], ids=["carried", "shared"]
)
def test_small_case(protocol, folder):
    expected = json.loads((folder / "small.json").read_text())[protocol]
    found = score_file(folder / "small.npz", protocol, distance="cosine")
    assert len(found.trials) == 1
    agree(found.trials[0], expected, FLOAT32_OUTPUT)


@needs_shared
def test_bounded_memory_changes_nothing():
    """Gallery in blocks of a few identities instead of one block: the same figures to the last bit."""
    protocol = sysu("indoor", 10, "official", PERMUTATION, trials=2)
    whole = evaluate(sysu_embeddings(), protocol, distance="euclidean")
    blocks = evaluate(sysu_embeddings(), protocol, distance="euclidean", chunk_bytes=300_000)
    assert whole.to_dict() == blocks.to_dict()


def test_the_test_split_has_its_96_identities():
    from scipy.io import loadmat

    ids = loadmat(CARRIED / "test_id.mat")["id"].ravel()
    assert len(ids) == 96
    if SHARED.is_dir():
        assert sorted(ids.tolist()) == np.unique(sysu_embeddings().pid).tolist()


@needs_shared
def test_the_figures_of_the_docs_page():
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "protocols.md").read_text()
    e = sysu_embeddings()
    cases = [(m, s, "official") for m in ("all", "indoor") for s in (1, 10)]
    for mode, shots, draw in [*cases, ("all", 1, "seeded"), ("indoor", 1, "seeded")]:
        found = evaluate(e, sysu(mode, shots, draw, PERMUTATION))
        mean, each = found.mean, [100 * t.rank1 for t in found.trials]
        assert (
            f"| {mode}-search, {shots} shot{'s' * (shots > 1)} | {draw} | {100 * mean['rank1']:.2f} ± "
            f"{100 * found.std['rank1']:.2f} | {100 * mean['rank10']:.2f} | {100 * mean['mAP']:.2f} | "
            f"{min(each):.2f} to {max(each):.2f} |"
        ) in page
    official = sysu("all", 1, "official", PERMUTATION)
    bare = evaluate(e, replace(official, skip=SkipRule())).mean
    page = " ".join(page.split())  # a sentence may go on in the next line
    assert f"from 10.59 to {100 * bare['rank1']:.2f} here and mAP from" in page
    assert f"13.65 to {100 * bare['mAP']:.2f}." in page
    images = evaluate(e, replace(sysu("all", 10, "official", PERMUTATION), cmc="image")).mean
    assert f"Rank-20 is {100 * images['rank20']:.2f} instead of 77.14" in page
    assert f"and {100 * evaluate(e, official, distance='euclidean').mean['rank1']:.2f})" in page
    assert " ".join(official.sentence().split()) in " ".join(page.replace("> ", "").split())


def test_the_small_figures_of_the_docs_page():
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "protocols.md").read_text()
    for cmc, title in (("image", "images (default)"), ("identity", "identities")):
        mean = score_file(CARRIED / "small.npz", "regdb", cmc=cmc).mean
        row = " | ".join(f"{100 * mean[name]:.2f}" for name in ("rank1", "rank5", "rank10", "rank20", "mAP"))
        assert f"| {title} | {row} |" in page
    page = " ".join(page.split())  # a sentence may go on in the next line
    ruled, bare = (score_file(CARRIED / "small.npz", "llcm", reading=r).mean for r in "ac")
    assert f"Rank-1 {100 * ruled['rank1']:.2f} and mAP {100 * ruled['mAP']:.2f} with it" in page
    assert f"{100 * bare['rank1']:.2f} and {100 * bare['mAP']:.2f} without" in page
