"""A reader finds every page: all are in the index, and within two steps of the README."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, INDEX = ROOT / "README.md", ROOT / "docs/index.md"
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
PAGES = sorted((ROOT / "docs").glob("*.md"))
OPERATORS_FILES = ["grafana-dashboard.json", "alerts.yml", "prometheus.yml"]


def led_to(page: Path) -> set[Path]:
    """The files that a page links to; where it links to a folder, those in it."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    targets = {(page.parent / link.partition("#")[0]).resolve() for link in links if not link.startswith("http")}
    return targets | {file for target in targets if target.is_dir() for file in target.iterdir()}


def steps_from_the_readme(most: int) -> dict[Path, int]:
    steps, ahead = {README: 0}, {README}
    for step in range(1, most + 1):
        ahead = {file for page in ahead if page.suffix == ".md" for file in led_to(page)} - steps.keys()
        steps |= dict.fromkeys(ahead, step)
    return steps


def test_everything_is_within_two_steps_of_the_readme() -> None:
    reached = steps_from_the_readme(2)
    wanted = [*PAGES, *EXAMPLES, *(ROOT / "monitoring" / name for name in OPERATORS_FILES), ROOT / "CHANGELOG.md"]
    assert [str(page.relative_to(ROOT)) for page in wanted if page not in reached] == []


def test_the_index_lists_each_page_once() -> None:
    listed = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\)", INDEX.read_text(), re.MULTILINE)
    found = sorted((INDEX.parent / link).resolve() for link in listed)
    assert found == sorted([README, ROOT / "CHANGELOG.md", *EXAMPLES, *(page for page in PAGES if page != INDEX)])
