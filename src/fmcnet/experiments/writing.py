"""Text, JSON and Markdown of reports; a file appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fmcnet.files import write_atomically


def write_text(path: Path, text: str) -> Path:
    """Write a text file, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> Path:
    """Write a JSON file."""
    return write_text(path, json.dumps(content, indent=1) + "\n")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table as lines of Markdown, with an empty line behind it."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return [lines[0].replace("|  |", "| |"), "|---" * len(head) + "|", *lines[1:], ""]
