"""The status page: one HTML file that needs nothing else and asks nobody but the admin port that it came from.

The file has its own style and script, and shows what `/status` says, which it asks for again and again. Knows where the
file is, and which headers keep a browser to this. Knows nothing of what the page shows.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Final

PAGE_HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@lru_cache(maxsize=1)
def page() -> str:
    return files(__package__).joinpath("page.html").read_text("utf-8")
