"""Tables that benchmarks keep in the docs, between two marks: `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def renew(file: Path, name: str, text: str) -> None:
    """Put the text between the marks of this name."""
    before, begin, rest = file.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert begin, f"{file} has no mark {name}"
    assert end, f"{file} has no end of {name}"
    file.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")
