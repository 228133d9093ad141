"""`ts-parity record`: what it writes, says and ends with."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.conftest import Fleet, MakeFleet, until
from ts_parity.cli import main
from ts_parity.pairs import read_pairs
from ts_parity.proxy import record_command
from ts_parity.testing import FakeModel, FakeTorchServe


async def recorded(fleet: Fleet, out: Path, *more: str, ask: bool = True) -> int:
    """The command beside a proxy that is asked all the while."""
    words = ["record", "--admin", fleet.proxy.admin_url, "--out", str(out), *more]
    command = asyncio.ensure_future(asyncio.to_thread(main, words))
    while not command.done():
        if ask:
            await fleet.post(x=(1, 2))
        await asyncio.sleep(0.005)
    return await command


async def test_pairs_are_written_until_there_are_enough(
    make_fleet: MakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    out = tmp_path / "pairs.jsonl"
    assert await recorded(fleet, out, "--share", "1", "--most", "20", "--json") == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["pairs"], told["out"], told["ended"]) == (20, str(out), "20 pairs are recorded")
    assert told["bytes"] == out.stat().st_size
    assert "personal data" in said.err
    assert "mode 0600" in said.err
    pairs = list(read_pairs(out))
    assert len(pairs) == 20
    assert {(pair.model, pair.body) for pair in pairs} == {("linear/1.0", b"[1, 2]")}
    assert {pair.answer for pair in pairs} == {(await fleet.post()).body}
    await until(lambda: fleet.proxy.driver.recording is None, "the proxy to stop sampling")


async def test_it_ends_by_size_and_by_time(
    make_fleet: MakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert await recorded(fleet, tmp_path / "a", "--share", "1", "--most-bytes", "1k") == 0
    assert 1000 <= (tmp_path / "a").stat().st_size < 1500
    await until(lambda: fleet.proxy.driver.recording is None, "the proxy to notice that it is over")
    assert await recorded(fleet, tmp_path / "b", "--share", "1", "--for", "0.3s") == 0
    assert "its time is over" in capsys.readouterr().out


async def test_nothing_recorded_is_a_failure_that_says_why(
    make_fleet: MakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert await recorded(fleet, tmp_path / "a", "--for", "0.2s", ask=False) == 1
    assert "nothing is recorded: no query was answered" in capsys.readouterr().out
    assert await recorded(fleet, tmp_path / "b", "--for", "0.3s", "--share", "0.0000001") == 1
    assert "give a larger --share" in capsys.readouterr().out


async def test_what_stands_in_the_way_is_told_before_a_file_is_made(
    make_fleet: MakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    assert await recorded(fleet, tmp_path / "a", "--model", "other", ask=False) == 3
    assert "serves no model other: there are linear/1.0" in capsys.readouterr().err
    keyed = await make_fleet(FakeTorchServe(FakeModel()), admin_token="key")
    assert await recorded(keyed, tmp_path / "a", ask=False) == 3
    assert "admin_token" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert await recorded(keyed, tmp_path / "a", "--token", "key", "--share", "1", "--most", "1") == 0
    (tmp_path / "b").write_text("mine")
    assert await recorded(fleet, tmp_path / "b", ask=False) == 2
    assert (tmp_path / "b").read_text() == "mine"


async def test_a_proxy_that_ends_leaves_what_came_before(
    make_fleet: MakeFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    out = tmp_path / "a"
    words = ["record", "--admin", fleet.proxy.admin_url, "--out", str(out), "--share", "1"]
    command = asyncio.ensure_future(asyncio.to_thread(main, words))
    await until(lambda: fleet.proxy.driver.recording is not None, "the recording to begin")
    await fleet.post()
    await fleet.proxy.close()
    assert await command == 0
    assert "the proxy has ended" in capsys.readouterr().out
    assert len(list(read_pairs(out))) == 1


def test_ctrl_c_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a proxy that breaks off without a word is told of, with the file."""
    from contextlib import nullcontext

    from tests.test_pairs import PAIRS

    def told(error: BaseException | None) -> Any:
        def pairs(url: str, said: object) -> Any:
            yield from PAIRS
            if error is not None:
                raise error

        return pairs

    monkeypatch.setattr("ts_parity.admin_client.stream", lambda *_: nullcontext())
    monkeypatch.setattr(record_command, "_told", told(KeyboardInterrupt()))
    assert main(["record", "--out", str(tmp_path / "a")]) == 0
    assert "2 pairs" in (said := capsys.readouterr().out)
    assert "it was interrupted" in said
    monkeypatch.setattr(record_command, "_told", told(None))
    assert main(["record", "--out", str(tmp_path / "b")]) == 3
    assert f"the 2 pairs before that are in {tmp_path / 'b'}" in capsys.readouterr().err
    assert list(read_pairs(tmp_path / "b")) == PAIRS
