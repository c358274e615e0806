"""Imports run in one direction; the package is quick to import; every public name exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fmcnet

SOURCE = Path(fmcnet.__file__).parent
LAYERS = [
    (
        "errors",
        "processes",
        "files",
        "types",
        "times",
        "identities",
        "names",
        "config",
        "markdown",
        "parsing",
        "plugins",
    ),
    ("distributed", "progress"),
    ("data",),
    ("synthetic",),
    ("models", "losses"),
    ("inference",),
    ("evaluation",),
    ("inference.export",),
    ("training",),
    ("retrieval", "gallery"),
    ("experiments", "doctor"),
    ("server",),
    ("cli", "__main__"),
]
"""From left to right; a module imports from its own layer and from those before it."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(parts: list[str]) -> str:
    """The layer's part that a module belongs to: a package, or a package inside one that has a layer of its own."""
    inner = ".".join(parts[:2])
    return inner if inner in LEVEL else parts[0]


def imports(path: Path) -> set[str]:
    """Parts of fmcnet that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fmcnet":
            found |= {part_of([*node.module.split(".")[1:], alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {part_of(a.name.split(".")[1:]) for a in node.names if a.name.startswith("fmcnet.")}
    return found & LEVEL.keys()


def test_imports_run_from_left_to_right():
    files = [p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py"]
    part = {p: part_of([*p.relative_to(SOURCE).with_suffix("").parts]) for p in files}
    assert set(part.values()) <= LEVEL.keys(), "a new part of the package needs a layer here"
    backwards = [
        f"{p.relative_to(SOURCE)} imports {name}"
        for p in files
        for name in imports(p)
        if LEVEL[name] > LEVEL[part[p]]
    ]
    assert not backwards


def test_the_test_sees_a_backward_import(tmp_path):
    (tmp_path / "bad.py").write_text("def f():\n    from fmcnet.training.trainer import train\n")
    assert imports(tmp_path / "bad.py") == {"training"}


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_fmcnet_does_not_import_torch():
    heavy = ("torch", "numpy", "scipy", "PIL", "matplotlib", "pydantic", "typer")
    assert fresh(f"import sys, fmcnet; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


HEAVY = (
    "torch", "numpy", "scipy", "PIL", "matplotlib", "sklearn", "yaml", "safetensors", "filelock", "faiss", "pyarrow",
    "pymilvus", "onnx", "onnxruntime", "fastapi", "uvicorn", "fmcnet.config",
)  # fmt: skip
"""Not pydantic: typer itself reads options with it."""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["gallery", "remove", "--help"]]
)
def test_help_imports_nothing_that_computes(arguments):
    code = f"""
import sys
from fmcnet.__main__ import main
sys.argv[1:] = {arguments}
try:
    main()
finally:
    print("\\n", [name for name in {HEAVY} if name in sys.modules])
"""
    assert fresh(code).splitlines()[-1].strip() == "[]"


def test_readers_and_the_generator_work_without_torch():
    code = "import sys, fmcnet.data.readers, fmcnet.synthetic; print('torch' in sys.modules)"
    assert fresh(code).strip() == "False"


def test_the_gallery_and_its_search_work_without_torch():
    code = "import sys, fmcnet.retrieval.sqlite_store, fmcnet.cli.search; print('torch' in sys.modules)"
    assert fresh(code).strip() == "False"


def test_every_public_name_exists():
    for name in fmcnet.__all__:
        assert getattr(fmcnet, name) is not None
    assert set(fmcnet.__all__) <= set(dir(fmcnet))
    assert not hasattr(fmcnet, "no_such_name")
