"""The figures are drawn from the kept results, as they are now, and each is shown somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import figures

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", figures.DRAWN)
def test_a_figure_is_of_the_results_as_they_are(name: str) -> None:
    drawn = (figures.FIGURES / f"{name}.svg").read_text()
    assert figures.stamp(figures.DRAWN[name][0]) in drawn, "run: python benchmarks/figures.py"
    assert len(drawn) < 100_000


def test_every_figure_is_shown() -> None:
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert {file.name for file in figures.FIGURES.iterdir()} == {f"{name}.svg" for name in figures.DRAWN}
    assert [name for name in figures.DRAWN if f"](figures/{name}.svg)" not in pages] == []
