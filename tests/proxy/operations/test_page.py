"""The status page as a file: it needs nothing from elsewhere, and the admin port serves it behind its guard."""

from __future__ import annotations

import re

from tests.proxy.conftest import MakeFleet
from ts_parity.proxy.operations.page import page
from ts_parity.testing import FakeModel, FakeTorchServe

LARGEST = 60_000


async def test_the_admin_port_serves_it_and_keeps_browsers_to_it(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()), admin_token="key")
    answer = await fleet.admin.get("/")
    assert (answer.status, answer.get("content-type")) == (200, "text/html; charset=utf-8")
    assert answer.body.decode() == page()
    policy = answer.get("content-security-policy") or ""
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert (answer.get("x-frame-options"), answer.get("cache-control")) == ("DENY", "no-store")
    elsewhere = await fleet.admin.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert elsewhere.status == 403


def test_it_is_small_and_names_nothing_elsewhere() -> None:
    assert len(page().encode()) < LARGEST
    assert re.findall(r"https?://[^\"'\s]+", page()) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(link|script|img|iframe)[^>]*\s(src|href)=\"(?!data:)", page())
    assert "@import" not in page()


def test_what_is_shown_is_never_taken_for_html() -> None:
    """Request ids come from clients, names and reasons from instances."""
    script = page().partition("<script>")[2]
    assert "innerHTML =" not in script
    for way in ("insertAdjacentHTML", "outerHTML", "document.write", "eval(", "new Function"):
        assert way not in script
