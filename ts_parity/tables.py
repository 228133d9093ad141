"""Tables for people: aligned columns for a terminal, and Markdown. Every command and every benchmark prints with these.

Knows cells, which are text. Knows nothing of what they say. Tables of HTML pages are in `pages`.
"""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str]


def columns(rows: Sequence[Row], numbers: bool = False) -> list[str]:
    """A line for each row, its cells as wide as the widest of their column. `numbers`: to the right, but for the first
    column.
    """
    widths = column_widths(rows)
    return ["  ".join(_cells(row, widths, numbers)).rstrip() for row in rows]


def column_widths(rows: Sequence[Row]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _cells(row: Row, widths: Sequence[int], numbers: bool) -> list[str]:
    aligned = zip(row, widths, strict=True)
    return [cell.rjust(w) if numbers and place else cell.ljust(w) for place, (cell, w) in enumerate(aligned)]


def markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
