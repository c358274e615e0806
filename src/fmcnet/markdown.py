"""Tables and pages in Markdown, of which every report is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0].replace("  ", " "), "|---" * len(head) + "|", *lines[1:]])


def markdown_page(parts: Iterable[str]) -> str:
    """Headings, paragraphs and tables as a page of Markdown, with an empty line between two of them."""
    return "\n\n".join(parts) + "\n"
