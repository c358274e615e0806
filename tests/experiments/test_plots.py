"""Plots: names as people write them, captions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fmcnet.config import Config
from fmcnet.data.readers.csv import read_csv
from fmcnet.experiments import features, plots
from fmcnet.experiments.rows import STUDIES
from fmcnet.experiments.runs import StudyRun
from tests.data import trees


def test_a_map_is_said_to_be_of_the_seed_that_it_shows(tmp_path, monkeypatch):
    """The first seed's run may have failed."""
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
    collected = features.Features((np.arange(8), np.arange(8)), pair, pair, pair)
    monkeypatch.setattr(features, "_features", lambda run, progress: collected)
    monkeypatch.setattr(features, "_statistics", lambda *_: {"mixing": 1.0})
    monkeypatch.setattr(features, "_draw", lambda panels, path: path)
    runs = {
        key: {1: StudyRun(key, "d", Config(), tmp_path, tmp_path, seed=1)} for key in ("md-none", "md-all")
    }
    _, [(caption, _)] = features.draw_study(STUDIES["figure4"], runs, tmp_path, progress=False)
    assert caption == "t-SNE, test identities, seed 1"


@pytest.mark.parametrize("name", ["山田 김 สม", r"$\frac$"])
def test_a_name_without_glyphs_or_with_dollars_is_drawn(tmp_path, name):
    pytest.importorskip("matplotlib")
    table = read_csv(trees.csv_folder(tmp_path))
    figure, axes = plots.new_axes(1, 1, (2, 2))
    plots._show_image(axes[0][0], (0, 0), table, 0, f"pid {name}", plots.INK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.write_png(figure, tmp_path / "a.png").is_file()
