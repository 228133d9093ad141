"""The site that Sphinx makes of README, docs and examples as they are: `make docs`.

The repository's top is Sphinx's source folder, so that every relative link works on the site as it does on GitHub.
docs/index.md is the one list of pages: its sections become the sidebar's.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ts_parity import __version__  # noqa: E402

project = "ts_parity"
copyright = "the authors of ts_parity"
release = version = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "examples/*/README.md"]
exclude_patterns = ["build", "demo-out", ".*"]
nitpicky = True
smartquotes = False  # flags keep both their dashes
myst_heading_anchors = 4
highlight_language = "none"  # blocks that say nothing show command lines with what they print

html_theme = "furo"
html_title = "ts_parity"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fbf", "color-brand-content": "#1f5fbf"},
    "dark_css_variables": {"color-brand-primary": "#7fb0ff", "color-brand-content": "#7fb0ff"},
}

HOME = '<!doctype html><title>ts_parity</title><meta http-equiv="refresh" content="0; url=docs/index.html">\n'


def toctrees(index: str) -> str:
    """A hidden toctree for each section of the index, of the pages that it links to."""
    made = []
    for section in index.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        links = re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\)", text, re.MULTILINE)
        entries = [f"{name} <{target if target.startswith('.') else f'./{target}'}>" for name, target in links]
        made.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *entries, "```", ""]))
    return "\n".join(made)


def add_toctrees(app: Any, docname: str, source: list[str]) -> None:
    if docname == root_doc:
        source[0] += "\n" + toctrees(source[0])


def lead_home(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        (Path(app.outdir) / "index.html").write_text(HOME)


def setup(app: Any) -> None:
    app.connect("source-read", add_toctrees)
    app.connect("build-finished", lead_home)
