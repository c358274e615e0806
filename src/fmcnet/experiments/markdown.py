"""Markdown tables of the reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Write a table as lines, with an empty line behind it.

    Args:
        head: titles of the columns.
        rows: cells of each row.
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return [lines[0].replace("|  |", "| |"), "|---" * len(head) + "|", *lines[1:], ""]
