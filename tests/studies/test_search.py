"""The recipe search: equal effort, nothing tried twice, nothing of the test set, resumed where it was."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fmcnet.studies.plan import Settings
from fmcnet.studies.rows import Row

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "search_recipe.py"


@pytest.fixture(scope="module")
def search():
    spec = importlib.util.spec_from_file_location("search_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_recipe"] = module
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_every_choice_of_every_method_is_a_setting(search):
    for name, method in search.METHODS.items():
        for choices in method.space.values():
            for choice in choices:
                row = Row(name, name, (*method.fixed, *search.overrides({"x": choice})))
                data = Settings("generated").config(row).data
                assert data.identities * data.images == 32  # images seen stay equal


def test_proposals_are_a_function_of_the_seed_and_change_few_settings(search):
    method, best = search.METHODS["fmcnet"], {"lr": "training.lr=0.01"}
    one, two = (search.propose(method, best, 8, 3, np.random.default_rng(0)) for _ in range(2))
    assert one == two
    for picked in one:
        assert picked != best
        assert sum(picked.get(k) != best.get(k) for k in picked | best) <= 3
    first = search.propose(method, None, 4, 2, np.random.default_rng(0))
    assert first[0] == {}
    assert len({search.overrides(p) for p in first}) == 4


@pytest.mark.slow
def test_the_search_is_equal_and_goes_on(search, tmp_path, capsys):
    given = [
        "--out", str(tmp_path / "s"), "--preset", "tiny", "--config", "tiny", "--methods", "agw,fmcnet",
        "--size", "2", "--generations", "2", "--steps", "2", "--finalists", "1", "--more-seeds", "1",
        "--device", "cpu",
    ]  # fmt: skip
    search.Search(search.parser().parse_args(given)).run()
    log = [json.loads(line) for line in (tmp_path / "s" / "log.jsonl").read_text().splitlines()]
    for method in ("agw", "fmcnet"):
        mine = [r for r in log if r["method"] == method]
        assert len(mine) == 2 * 2 + 1
        assert {(r["steps"], r["images_seen"]) for r in mine} == {(2, 32)}
        assert sum(not r["settings"] and r["seed"] == 0 for r in mine) == 1
    assert "as it is" in capsys.readouterr().out
    kept = (tmp_path / "s" / "best.txt").read_text()
    for one in (tmp_path / "s" / "runs").glob("*/result.json"):
        assert json.loads(one.read_text())["split"] == "val"
    search.Search(search.parser().parse_args(given)).run()
    assert (tmp_path / "s" / "best.txt").read_text() == kept
    assert len((tmp_path / "s" / "log.jsonl").read_text().splitlines()) == len(log)
