"""The pages of reference are made of the code, and are up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ts_parity import wire

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
assert SPEC is not None
assert SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_page_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text() == reference.PAGES[page](), "run: python docs/reference.py"


def test_every_header_of_ours_is_told_or_known_to_be_no_clients() -> None:
    named = {value for value in vars(wire).values() if isinstance(value, str) and value.startswith(wire.CONTROL_PREFIX)}
    assert named == {*reference.ASKED, *reference.TOLD, *reference.WITHIN}


def test_no_cell_of_the_pages_is_empty_that_says_what_something_is() -> None:
    for page in reference.PAGES:
        rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| `")]
        assert rows
        assert [row for row in rows if row.endswith("|  |")] == [], page
