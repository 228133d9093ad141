"""The status page in a terminal."""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import Any

import pytest

from tests.proxy.conftest import MakeFleet, until
from tests.proxy.test_app import parse
from ts_parity.errors import Unreachable
from ts_parity.proxy import commands
from ts_parity.proxy.operations.top import screen
from ts_parity.testing import FakeModel, FakeTorchServe, protection

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


async def told(make_fleet: MakeFleet) -> dict[str, Any]:
    """The status of a proxy with one frozen instance, whose query the student has answered."""
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(protection(code="student", k=1))]
    fleet = await make_fleet(*instances, differing=1.0, deadline_s=20.0)
    await fleet.posts(5)
    instances[0].freeze()
    assert (await fleet.post()).get("x-ts-parity") == "reconstructed"
    status: dict[str, Any] = (await fleet.admin.get("/status")).json()
    status["instances"][0]["condition"] = {"state": "silent", "reason": "no answer to the task that it has"}
    return status


async def test_it_says_what_the_page_says(make_fleet: MakeFleet) -> None:
    status = await told(make_fleet)
    shown = screen(status, 140, 100, colour=False)
    assert shown.startswith(status["sentence"])
    (silent,) = [line for line in shown.splitlines() if " silent " in line]
    assert "no answer to the task that it has" in silent
    assert re.search(r"linear/1\.0 +student k=1 in use +\S+ +\S+ m?s +median \S+ m?s", shown)
    assert "rebuilt" in shown
    assert "own 127.0.0.1" in shown


@pytest.mark.parametrize("width", [20, 40, 80, 140])
@pytest.mark.parametrize("height", [5, 24, 100])
async def test_it_fits_any_window_and_colours_add_nothing(make_fleet: MakeFleet, width: int, height: int) -> None:
    status = await told(make_fleet)
    status["advice"] = [{"problem": "p" * 90, "remedy": "do this " * 20}]
    plain, coloured = (screen(status, width, height, colour) for colour in (False, True))
    assert ESCAPE.sub("", coloured) == plain
    assert "\x1b" not in plain
    assert len(plain.splitlines()) <= height
    assert max(map(len, plain.splitlines())) <= max(width, 30), "a note on a cut screen stays whole"


async def test_a_proxy_without_models_or_queries(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet()
    status = (await fleet.admin.get("/status")).json()
    assert "no queries in the last five minutes" in screen(status, 80, 24, colour=True)


async def test_top_prints_once_where_there_is_no_terminal(
    make_fleet: MakeFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    args = parse("top", "--admin", fleet.proxy.admin_url)
    assert await asyncio.to_thread(args.run, args) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 of 1 machine serves")
    assert "\x1b" not in shown


async def test_top_draws_again_in_a_terminal_until_it_is_interrupted(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    waits = 0

    def wait(seconds: float) -> None:
        nonlocal waits
        assert seconds == commands.TOP_EVERY_S
        waits += 1
        if waits == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    args = parse("top", "--admin", fleet.proxy.admin_url)
    assert await asyncio.to_thread(args.run, args) == 0
    shown = capsys.readouterr().out
    assert shown.count("\x1b[H1 of 1 machine serves") == 2
    assert not ESCAPE.search(shown), "no colours"


def test_what_is_no_proxy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts_parity.admin_client.ask", lambda url: {"version": "0.0.1"})
    args: argparse.Namespace = parse("top", "--once")
    with pytest.raises(Unreachable, match="no status of a proxy of this version"):
        args.run(args)


async def test_the_sentence_follows_the_fleet(make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances)
    assert (await fleet.admin.get("/status")).json()["sentence"].startswith("2 of 2 machines serve")
    await instances[1].stop()
    await fleet.proxy.discover()
    await until(lambda: not fleet.proxy.plan.fleet.endpoints[1:], "it to be found down")
    assert (await fleet.admin.get("/status")).json()["sentence"].startswith("1 of 2 machines serve")
