"""The status page in a real browser, of a live proxy before an instance that freezes and one that is slow."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Chromium, Page
from tests.proxy.conftest import Fleet, MakeFleet, until
from ts_parity.engine import Policy
from ts_parity.testing import FakeModel, FakeTorchServe, protection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.long,
]
RULES: dict[str, Any] = {
    name: getattr(Policy(), name)
    for name in ("learn_speed", "copies", "extra_work", "reconstruct_after_s", "spare_places", "hedge_after_s")
}
"""The recipe that `serve` follows, where the other tests ask for single rules."""
POLLS_S = 10.0
"""A few polls, on a machine that may be busy."""


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Chromium]:
    async with Chromium(tmp_path) as started:
        yield started


class Load:
    """Queries, one after another from each of a few clients, until it is stopped."""

    def __init__(self, fleet: Fleet, clients: int = 6) -> None:
        self._fleet = fleet
        self._on = True
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(clients)]

    async def _ask(self) -> None:
        while self._on:  # a cancellation can be lost in a `wait_for` that is just done
            await self._fleet.post(x_request_id="<b onclick=alert(1)>mine</b>")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._on = False
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def served(make_fleet: MakeFleet) -> AsyncIterator[Fleet]:
    """Five instances of two places, one with a student too, under load; what is usual is known."""
    instances = [FakeTorchServe(FakeModel(latency_s=0.01, workers=2)) for _ in range(5)]
    instances.append(FakeTorchServe(protection(code="student", k=2, latency_s=0.002, workers=4)))
    fleet = await make_fleet(*instances, **RULES)
    load = Load(fleet)
    try:
        (pool,) = fleet.proxy.scheduler.pools()
        await until(lambda: len(pool.latency.ordered) >= 40, "what is usual to be known")
        yield fleet
    finally:
        for instance in instances:
            instance.thaw()
        await load.stop()


def name_of(instance: FakeTorchServe) -> str:
    return instance.inference.removeprefix("http://")


def machine(instance: FakeTorchServe) -> str:
    """JavaScript: the text of its card."""
    cards = "[...document.querySelectorAll('#machines li')]"
    return f"({cards}.map((e) => e.innerText).find((text) => text.includes('{name_of(instance)}')) || '')"


async def nothing_wrong(page: Page, fleet: Fleet) -> None:
    assert page.complaints == []
    assert {url for url in page.requests if not url.startswith((fleet.proxy.admin_url, "data:"))} == set()


async def test_a_frozen_and_a_slow_instance_show_within_a_few_polls_with_the_reason(
    make_fleet: MakeFleet, browser: Chromium
) -> None:
    async with served(make_fleet) as fleet:
        page = await browser.open(fleet.proxy.admin_url + "/")
        await page.until("document.querySelectorAll('#machines li').length === 6")
        await page.until(
            "document.querySelector('#sentence').innerText.startsWith('6 of 6 machines serve')", POLLS_S * 6
        )
        frozen, slow = fleet.instances[:2]
        frozen.freeze()
        await page.until("document.querySelector('#late').innerText.includes('still out')", POLLS_S)
        slow.models[0].latency_s = 0.12
        await page.until(f"/silent[^]*no answer to/.test({machine(frozen)})", POLLS_S)
        await page.until(f"/(ejected|suspect)[^]*times/.test({machine(slow)})", POLLS_S)
        await page.until("/[0-5] of 6 machines serve/.test(document.querySelector('#sentence').innerText)", POLLS_S)
        problems = await page.run("document.querySelector('#problems').innerText")
        assert name_of(frozen) in problems
        assert "Look whether the instance's workers are frozen" in problems
        told = await page.run("document.querySelector('#news').innerText")
        assert re.search(r"^\S+ is (silent|suspect|ejected|serving)", told), "a screen reader is told"
        assert await page.run("document.querySelectorAll('#late b[onclick]').length") == 0
        assert "<b onclick=alert(1)>mine</b>" in await page.run("document.querySelector('#late').innerText")
        frozen.thaw()
        slow.models[0].latency_s = 0.01
        await page.until(f"!/silent/.test({machine(frozen)})", POLLS_S)
        await nothing_wrong(page, fleet)


MEASURE = """(() => {
  const all = [...document.querySelectorAll("main *, header *, footer *")];
  const shown = all.filter((e) => !e.closest("em, svg, .hide"));
  const right = (e) => e.getBoundingClientRect().right, letters = (e) => parseFloat(getComputedStyle(e).fontSize);
  return {
    wide: document.documentElement.clientWidth,
    scrolls: document.documentElement.scrollWidth,
    beyond: shown.filter((e) => right(e) > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80)),
    letters: Math.min(...shown.filter((e) => e.innerText && !e.children.length).map(letters)),
    paper: getComputedStyle(document.body).backgroundColor,
  };
})()"""


async def test_it_fits_every_screen_in_the_light_and_in_the_dark(make_fleet: MakeFleet, browser: Chromium) -> None:
    async with served(make_fleet) as fleet:
        fleet.instances[0].freeze()
        page = await browser.open(fleet.proxy.admin_url + "/")
        await page.until("document.querySelector('#late li')")
        for width in (320, 400, 1600, 3840):
            for dark in (False, True):
                await page.look(width, 1000, dark)
                measured = await page.run(MEASURE)
                assert measured["beyond"] == [], width
                assert measured["scrolls"] <= measured["wide"], width
                assert measured["letters"] >= 11, width
                assert (measured["paper"] == "rgb(16, 19, 22)") is dark


async def test_it_stops_on_request_says_when_the_proxy_is_gone_and_is_used_without_a_mouse(
    make_fleet: MakeFleet, browser: Chromium
) -> None:
    async with served(make_fleet) as fleet:
        page = await browser.open(fleet.proxy.admin_url + "/")
        await page.until("document.querySelector('#machines li')")
        await page.press("Tab")
        assert await page.run("document.activeElement.className") == "skip"
        await page.press("Tab")
        assert await page.run("document.activeElement.id") == "pause"
        await page.press(" ", "Space", " ")
        await page.until("document.querySelector('#age').innerText === 'paused'", POLLS_S)
        asked = len(page.requests)
        await asyncio.sleep(2.5)
        assert len(page.requests) == asked, "paused, it asks for nothing"
        await page.press(" ", "Space", " ")
        await page.until("document.querySelector('#age').innerText === 'live'", POLLS_S)
        await nothing_wrong(page, fleet)
        await fleet.proxy._admin.close()
        await page.until(
            "document.querySelector('#stale').innerText.startsWith('No answer from the proxy since')", POLLS_S
        )
        assert await page.run("document.querySelectorAll('#machines li').length") == 6, "what was seen last stays"


@pytest.mark.skipif(find_spec("axe_core_python") is None, reason="needs axe-core-python")
async def test_axe_finds_nothing(make_fleet: MakeFleet, browser: Chromium) -> None:
    spec = find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    async with served(make_fleet) as fleet:
        fleet.instances[0].freeze()
        page = await browser.open(fleet.proxy.admin_url + "/")
        await page.until("document.querySelector('#late li') && document.querySelector('#problems li')")
        await page.run(Path(spec.origin).with_name("axe.min.js").read_text("utf-8"))
        for dark in (False, True):
            await page.look(1600, 1000, dark)
            told = (
                "axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html + n.failureSummary)]))"
            )
            assert await page.run(told) == []
