"""What README and CONTRIBUTING tell people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmcnet.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_python_blocks_run(path, tmp_path, monkeypatch, tiny_sysu):
    """With a generated tree where the page says /data/SYSU-MM01."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(path, "python"):
        block = block.replace("/data/SYSU-MM01", str(tiny_sysu))
        exec(compile(block, str(path), "exec"), {"__name__": "readme"})


def test_the_pages_may_be_followed_in_order_in_one_folder(tmp_path, monkeypatch, tiny_sysu):
    """README first: no page trips over what an earlier one left (a run, a gallery of another model...)."""
    monkeypatch.chdir(tmp_path)
    for path in DOCS:
        for block in blocks(path, "python"):
            block = block.replace("/data/SYSU-MM01", str(tiny_sysu))
            exec(compile(block, str(path), "exec"), {"__name__": "readme"})


def test_the_readme_has_python_to_run():
    assert len(blocks(ROOT / "README.md", "python")) == 1


def commands(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`((?:fmcnet|make) [^`]+)`", text)
    fenced = [line for block in blocks(path, "(?:sh|bash|text|console)") for line in block.splitlines()]
    found = [*inline, *(line.removeprefix("$ ") for line in fenced)]
    return [shlex.split(c.split("#")[0]) for c in found if re.match(r"(fmcnet|make) [a-z]", c)]


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_command_named_exists_with_its_options(path):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(path):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
            continue
        known, names = CliRunner(), words[1:]
        depth = 2 if names[0] in ("data", "report", "gallery") and len(names) > 1 else 1
        page = known.invoke(app, [*names[:depth], "--help"], prog_name="fmcnet", terminal_width=200)
        assert page.exit_code == 0, words
        for option in (w for w in names if w.startswith("--")):
            assert option in page.output, f"{path.name}: {' '.join(words)}"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_and_pictures_exist(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_every_test_named_in_the_equations_page_exists():
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"(test_[a-z0-9_]+)(?=[`*])", text)
    assert len(names) > 20
    for name in names:
        assert f"def {name}" in sources, name
