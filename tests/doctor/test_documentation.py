"""docs/doctor.md is made of the checks, and is up to date."""

from __future__ import annotations

from pathlib import Path

from ts_parity.doctor.catalogue import CHECKS
from ts_parity.doctor.documentation import doctor_markdown

PAGE = Path(__file__).parents[2] / "docs/doctor.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == doctor_markdown(), "run: python -m ts_parity.doctor > docs/doctor.md"


def test_each_check_has_the_section_that_it_points_to() -> None:
    sections = {f"{line[4:].lower()}" for line in PAGE.read_text().splitlines() if line.startswith("### ")}
    assert {check.docs.partition("#")[2] for check in CHECKS} == sections
