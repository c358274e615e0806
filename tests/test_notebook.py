"""The notebook for teaching runs from top to bottom, and what it says of its numbers is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "what_the_parts_do.ipynb"


def cells():
    """(number, source) of the cells with code."""
    tree = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (tree["nbformat"], tree["metadata"]["kernelspec"]["name"]) == (4, "python3")
    return [
        (at, "".join(cell["source"])) for at, cell in enumerate(tree["cells"]) if cell["cell_type"] == "code"
    ]


def test_it_runs_and_shows_what_its_text_says(tmp_path, monkeypatch, capsys):
    """Ten seconds: it trains. The cells run here, as in a kernel, so that no kernel must be installed."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__main__"}
    for number, source in cells():
        exec(compile(source, f"cell {number}", "exec"), space)
    printed = capsys.readouterr().out
    (one, two), (specific_one, specific_two) = space["cosines"]["shipped"]
    blind_one, blind_two = space["cosines"]["untrained"][0]
    assert one - two > 0.1 > blind_one - blind_two
    assert abs(specific_one - specific_two) < 0.1
    shipped, untrained = space["numbers"]["shipped"], space["numbers"]["untrained"]
    assert shipped["generated_rank"] < 0.8 * shipped["generated_chance"]
    assert untrained["generated_rank"] > 0.9 * untrained["generated_chance"]
    shared, whole = space["precision"]["shipped"]
    assert min(shared, whole) > 1.5 * space["precision"]["untrained"][0]
    assert (tmp_path / "what_the_parts_do" / "features.png").stat().st_size > 5000
    assert "w1 0.52, w2 0.37" in printed


def test_it_links_to_files_that_exist_and_stays_small():
    tree = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text = "".join(line for cell in tree["cells"] for line in cell["source"])
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)
    assert (NOTEBOOK.parent / "own_loss.py").is_file()
    assert NOTEBOOK.stat().st_size < 30_000
