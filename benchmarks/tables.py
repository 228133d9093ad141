"""Tables that benchmarks keep in the docs, between two marks: `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

from pathlib import Path


def renew(file: Path, name: str, text: str) -> None:
    """Put the text between the marks of this name."""
    before, begin, rest = file.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert begin, f"{file} has no mark {name}"
    assert end, f"{file} has no end of {name}"
    file.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")
