"""Places measured: where the time per answer begins to grow, found among made-up times and at fakes that have some."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ts_parity.cli import main
from ts_parity.doctor.places import (
    LONGEST_S,
    MOST_COPIES,
    TRIES,
    MeasuredPlaces,
    NotAnswered,
    PlacesRound,
    find_places,
    in_words,
    measured_table,
)
from ts_parity.testing import Canned, FakeModel, FakeTorchServe

Take = Callable[[int], Awaitable[float]]


def instance_with(places: int, alone_s: float = 0.1, asked: list[int] | None = None) -> Take:
    """Of so many workers: what comes beyond them waits for whole answers."""

    async def take(copies: int) -> float:
        if asked is not None:
            asked.append(copies)
        return alone_s * -(-copies // places)

    return take


async def measured(take: Take, declared: int = 4, **more: Callable[[], float]) -> MeasuredPlaces:
    found = MeasuredPlaces("h:1", "m/1", declared)
    await find_places(found, take, **more)
    return found


@pytest.mark.parametrize("places", [1, 2, 3, 5, 8, 13, 63])
async def test_the_number_is_found_exactly(places: int) -> None:
    found = await measured(instance_with(places))
    assert (found.places, found.at_least, found.problem) == (places, places, "")


async def test_it_asks_twice_as_many_until_it_takes_longer_and_then_between() -> None:
    asked: list[int] = []
    await measured(instance_with(5, asked=asked))
    assert asked == [1, *(number for number in (1, 2, 4, 8, 6, 5) for _ in range(TRIES))]


async def test_a_pause_of_the_machine_in_one_try_counts_for_nothing() -> None:
    tries = iter([9.0, *[0.1, 0.1, 0.1], *[0.7, 0.1, 0.5], *[0.2, 0.2, 0.2], *[0.2, 0.9, 0.2]])

    async def take(copies: int) -> float:
        return next(tries)

    assert (await measured(take)).places == 2


async def test_work_that_shares_a_processor_has_one_place() -> None:
    async def take(copies: int) -> float:
        return 0.1 * copies

    assert (await measured(take)).places == 1


async def test_it_stops_at_its_limits() -> None:
    found = await measured(instance_with(10_000))
    assert found.places is None
    assert found.at_least == MOST_COPIES == max(each.copies for each in found.rounds)
    assert "no more are tried" in found.problem
    clock = iter([0.0, LONGEST_S + 1.0])
    found = await measured(instance_with(3), clock=lambda: next(clock))
    assert (found.places, found.at_least) == (None, 1)
    assert "60 s were not enough" in found.problem


async def test_an_error_ends_it_with_what_is_known() -> None:
    good = instance_with(10)

    async def take(copies: int) -> float:
        if copies > 2:
            raise NotAnswered(f"of {copies} at once, one was answered 503: full")
        return await good(copies)

    found = await measured(take)
    assert (found.places, found.at_least) == (None, 2)
    assert in_words(found) == (
        "h:1: m/1: at least 2 at a time; of 4 at once, one was answered 503: full; the proxy gives it 4"
    )


def test_the_table_has_each_number_in_order() -> None:
    rounds = [PlacesRound(1, 0.1), PlacesRound(4, 0.2), PlacesRound(2, 0.1)]
    table = measured_table([MeasuredPlaces("h:1", "m/1", 4, rounds, 2, 2)])
    assert [line.split() for line in table.splitlines()[:4]] == [
        ["instance", "at", "once", "slowest", "ms", "answers/s"],
        ["h:1", "1", "100.0", "10.0"],
        ["h:1", "2", "100.0", "20.0"],
        ["h:1", "4", "200.0", "20.0"],
    ]
    assert table.splitlines()[-1] == ("h:1: m/1 is answered 2 at a time before each takes longer; the proxy gives it 4")


@pytest.mark.slow
async def test_the_command_finds_what_a_fake_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It works on three at once; the proxy would give it four."""
    body = tmp_path / "body.json"
    body.write_bytes(b"[1, 2]")
    async with FakeTorchServe(FakeModel(workers=3, latency_s=0.2)) as instance:
        words = ["doctor", "--pre", "--json", "--endpoint", instance.endpoint, "--measure-places", str(body)]
        model = instance.models[0]
        handled = instance._workers[model.name, model.version] = asyncio.Semaphore(3)
        model.workers = 4
        await asyncio.to_thread(main, words)
        said = capsys.readouterr()
        assert handled is instance._workers[model.name, model.version]
        [found] = json.loads(said.out)["measured_places"]
        assert (found["places"], found["declared"], found["problem"]) == (3, 4, "")
        [check] = [each for each in json.loads(said.out)["checks"] if each["id"] == "TSP-310"]
        assert check["result"] == "warning"
        assert "answered 3 at a time before each takes longer; the proxy gives it 4" in check["findings"][0]
        assert "loading 1 instance of linear/1.0 with copies of" in said.err
        assert "4 at once" in said.err
        sent = [request for request in instance.received if request.target.startswith("/predictions/linear/1.0")]
        assert {request.body for request in sent} == {b"[1, 2]"}
        assert {request.header("content-type") for request in sent} == {"application/json"}


async def test_the_command_measures_nothing_unless_asked_and_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"[1, 2]")
    async with FakeTorchServe(FakeModel(), FakeModel("other")) as instance:
        words = ["doctor", "--pre", "--all", "--endpoint", instance.endpoint]
        await asyncio.to_thread(main, words)
        assert "places are measured only if asked for" in " ".join(capsys.readouterr().out.split())
        assert not instance.received
        for more, said in (
            ((), "--measure-model: which one?; there are linear/1.0, other/1.0"),
            (("--measure-model", "third"), "--measure-model: 'third' is not one of them"),
        ):
            assert await asyncio.to_thread(main, [*words, "--measure-places", str(body), *more]) == 2
            assert said in capsys.readouterr().err
        assert not instance.received
        instance.models[1].script.extend([Canned.no_worker("other")] * 2)
        more = ("--measure-places", str(body), "--measure-model", "other/1.0", "--measure-type", "application/json")
        await asyncio.to_thread(main, [*words, *more])
        out = capsys.readouterr().out
        assert "of 1 at once, one was answered 503" in out
        assert instance.received[-1].header("content-type") == "application/json"
