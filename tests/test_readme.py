"""What README, CONTRIBUTING and the site tell people to type works."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from tests.cli import run_command

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.name.startswith("results"))
BESIDE_DATA = [
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "recipe_trials.md",
    ROOT / "src" / "fmcnet" / "experiments" / "published.md",
]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *BESIDE_DATA]
GROUPS = ("data", "report", "gallery", "keys")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_python_blocks_run_in_any_order_in_one_folder(tmp_path, monkeypatch, tiny_sysu):
    """Last page first: a page that needs an earlier one fails, as does one that what another left makes fail.

    With a generated tree where a page names /data/SYSU-MM01.
    """
    monkeypatch.chdir(tmp_path)
    for path in reversed(DOCS):
        for block in blocks(path, "python"):
            block = block.replace("/data/SYSU-MM01", str(tiny_sysu))
            exec(compile(block, str(path), "exec"), {"__name__": "__main__"})


def test_every_guide_has_something_to_run():
    assert len(blocks(ROOT / "README.md", "python")) == 1
    for page in PAGES:
        if page.parent.name == "guides":
            assert blocks(page, "python") or blocks(page, "sh"), page.name


def commands(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    inline = [" ".join(found.split()) for found in re.findall(r"`((?:fmcnet|make)\s[^`]+)`", text)]
    fenced = re.findall(r"```(?:sh|bash|text|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in fenced for line in block.splitlines()]
    found = [re.sub(r"^.*-m fmcnet ", "fmcnet ", line) for line in [*inline, *lines]]
    return [shlex.split(c.split("#")[0]) for c in found if re.match(r"(fmcnet|make) [a-z-]", c)]


@functools.cache
def help_page(*words: str) -> str:
    return run_command(*words, "--help", terminal_width=200).output


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_every_command_named_exists_with_its_options(path):
    makefile = (ROOT / "Makefile").read_text()
    for program, *words in commands(path):
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), words
            continue
        if words[0] == "--threads":
            words = words[2:]
        depth = 2 if words[0] in GROUPS and len(words) > 1 else 1
        page = help_page(*words[:depth])
        for option in (w for w in words if w.startswith("--")):
            assert option in page, f"{path.name}: {' '.join(words)}"


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_and_images_exist(path):
    text = path.read_text(encoding="utf-8")
    for target in [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        page = path.parent / file if file else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def anchors(page: Path) -> set[str]:
    """Of a page's headings, those of included files too."""
    text = re.sub(
        r"<!-- include (\S+) -->",
        lambda found: (ROOT / found[1]).read_text(encoding="utf-8"),
        page.read_text(encoding="utf-8"),
    )
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_every_test_named_on_the_methods_page_exists():
    text = (ROOT / "docs" / "concepts" / "method.md").read_text(encoding="utf-8")
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"(test_[a-z0-9_]+)(?=[`*])", text)
    assert len(names) > 18
    for test in names:
        assert f"def {test}" in sources, test


def test_every_function_named_on_the_methods_page_exists():
    from importlib import import_module

    text = (ROOT / "docs" / "concepts" / "method.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:models|losses)\.[a-z_]+(?:\.[A-Za-z_]+)?)`", text)
    for module, members in re.findall(r"^::: fmcnet\.(\S+)\n.*\n +members: \[(.*)\]", text, re.MULTILINE):
        names += [f"{module}.{member}" for member in members.split(", ")]
    names = [each for each in names if not is_setting(each)]
    assert len(names) > 12
    for each in names:
        module, _, attribute = each.rpartition(".") if each.count(".") > 1 else (each, "", "")
        assert not attribute or hasattr(import_module(f"fmcnet.{module}"), attribute), each
        import_module(f"fmcnet.{module}")


def test_every_path_and_name_in_contributing_exists_where_it_is_said_to_be():
    """A name that an item gives with files is in one of them or in an example, others anywhere in the sources."""
    whole = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text, examples = re.sub(r"```.*?```", "", whole, flags=re.DOTALL), "".join(whole.split("```")[1::2])
    sources = [path for part in ("src", "tests", "docs", "benchmarks") for path in (ROOT / part).rglob("*")]
    made = {"broken/", "tests/data/test_readers_NAME.py"}  # by a command, by the reader
    checked = 0
    for item in re.split(r"\n(?=\n|- |\d+\. |\|)", text):
        codes = {code for code in re.findall(r"`([^`\s]+)`", item) if not is_setting(code)} - made
        paths = {code for code in codes if re.fullmatch(r"[\w./*-]+(/|\.\w{2,5})", code)}
        files = []
        for code in paths:
            matches = [path for path in sources if path.match(code)]
            assert matches or (ROOT / code).exists(), code
            files += [path for path in matches if path.suffix == ".py"]
        files = files or [path for path in sources if path.suffix in (".py", ".yaml")]
        for code in codes - paths:
            if re.fullmatch(r"[A-Za-z_]+", code):
                texts = (examples, *(path.read_text(encoding="utf-8") for path in files))
                assert any(re.search(rf"\b{code}\b", one) for one in texts), code
                checked += 1
    assert checked > 20


def is_setting(text: str) -> bool:
    """Whether `losses.gan` is a setting of a configuration, not a module."""
    from fmcnet.config import Config

    section, _, setting = text.partition(".")
    return setting in getattr(type(getattr(Config(), section, None)), "model_fields", {})


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=name)
def test_every_setting_named_exists(path):
    text = path.read_text(encoding="utf-8")
    for words in re.findall(r"`([^`\n]+)`", text):
        for found in re.findall(r"(?<![\w./])(?:data|augment|model|losses|training|evaluation)\.\w+", words):
            module = f"src/fmcnet/{found.replace('.', '/')}"
            known = is_setting(found) or any((ROOT / f"{module}{end}").exists() for end in (".py", ""))
            assert known or found == "model.safetensors" or found == "model.json", found


@pytest.mark.parametrize("path", [*DOCS, *sorted((ROOT / "docs").glob("results*.md"))], ids=name)
def test_prose_has_short_lines(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert len(line) <= 100 or line.startswith("|"), f"{path.name}:{number}"


def test_the_readme_and_the_site_stay_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
    assert sum(len(page.read_text(encoding="utf-8").split()) for page in PAGES) <= 12_000


def test_pages_named_in_code_exist():
    files = [p for part in ("src", "benchmarks", "tests") for p in (ROOT / part).rglob("*.py")]
    files += (ROOT / "src").rglob("*.yaml")
    named = {page for p in files for page in re.findall(r"\bdocs/[\w/-]+\.md", p.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []
