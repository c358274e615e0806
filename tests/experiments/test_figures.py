"""Names as people write them, in a figure."""

from __future__ import annotations

import warnings

import pytest

from fmcnet.data.readers.csv import read_csv
from fmcnet.experiments import figures
from tests.data import trees


@pytest.mark.parametrize("name", ["山田 김 สม", r"$\frac$"])
def test_a_name_without_glyphs_or_with_dollars_is_drawn(tmp_path, name):
    pytest.importorskip("matplotlib")
    table = read_csv(trees.csv_folder(tmp_path))
    figure, axes = figures.new_axes(1, 1, (2, 2))
    figures._show_image(axes[0][0], table, 0, f"pid {name}", figures.INK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures.write_png(figure, tmp_path / "a.png").is_file()
