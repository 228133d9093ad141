"""Whom discovery asks what it is: once, one of several first, when idle, and in nobody's way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.proxy.conftest import MakeFleet, until
from ts_parity.proxy.fleet.reports import ArchiveDescription, InstanceReport, ModelReport
from ts_parity.proxy.fleet.torchserve import describe_cache
from ts_parity.proxy.fleet.torchserve.describe_cache import DescribeCache, DescribeFailed, DescribeResult, ModelKey
from ts_parity.testing import FakeModel, FakeTorchServe

MODEL = ModelReport("m", "1", True, ready=1, batch_size=1, pids=("1",))
WRAPPED = DescribeResult(ArchiveDescription("deployed", verdict="codable"))
BARE = DescribeResult(None)


class Fleet:
    """Instances that answer when they are told to."""

    def __init__(self, count: int, **said: DescribeResult | None) -> None:
        self.models = {f"i{n}": MODEL for n in range(count)}
        self.said = said
        """Instance -> its answer; None: the question is lost; not in it: no answer yet."""
        self.describing: list[str] = []
        self.busy: set[str] = set()
        self.open: dict[str, asyncio.Future[DescribeResult]] = {}
        self.describe_cache = DescribeCache(self._ask, lambda name: name not in self.busy)

    async def _ask(self, key: ModelKey) -> DescribeResult:
        self.describing.append(key[0])
        if key[0] not in self.said:
            self.open[key[0]] = asyncio.get_running_loop().create_future()
            return await self.open[key[0]]
        said = self.said[key[0]]
        if said is None:
            raise DescribeFailed("lost")
        return said

    async def look(self, wait_s: float = 0.01, may_describe: bool = True) -> dict[str, ModelReport]:
        reports = [InstanceReport(name, True, (model,)) for name, model in self.models.items()]
        settled = await self.describe_cache.complete(reports, wait_s, may_describe)
        return {report.name: report.models[0] for report in settled}

    def restart(self, name: str) -> None:
        self.models[name] = replace(self.models[name], pids=(*self.models[name].pids, "again"))


async def test_where_one_is_wrapped_all_are_asked_at_once() -> None:
    fleet = Fleet(3, i0=WRAPPED, i1=WRAPPED, i2=BARE)
    told = await fleet.look(wait_s=5)
    assert [told[name].described is not None for name in fleet.models] == [True, True, False]
    await fleet.look()
    assert sorted(fleet.describing) == ["i0", "i1", "i2"]


async def test_where_one_is_not_wrapped_no_other_is_asked() -> None:
    """The handlers of the user run for the question; one run is the least."""
    fleet = Fleet(3, i0=BARE)
    for _ in range(3):
        told = await fleet.look(wait_s=5)
    assert fleet.describing == ["i0"]
    assert [(m.described, m.silent) for m in told.values()] == [(None, False)] * 3


async def test_one_that_cannot_be_understood_says_nothing_of_the_others() -> None:
    fleet = Fleet(2, i0=DescribeResult(None, "its worker speaks wire version 2"), i1=WRAPPED)
    told = await fleet.look(wait_s=5)
    assert told["i0"].problem
    assert told["i1"].described is not None


async def test_nobody_is_asked_twice_while_the_question_is_unanswered() -> None:
    fleet = Fleet(1)
    for _ in range(5):
        told = await fleet.look()
    assert fleet.describing == ["i0"]
    assert (told["i0"].silent, told["i0"].describing) == (True, True)
    fleet.open["i0"].set_result(WRAPPED)
    await asyncio.sleep(0)
    assert (await fleet.look())["i0"].described is not None
    await fleet.describe_cache.close()


async def test_new_workers_are_asked_anew_and_are_meanwhile_what_the_old_ones_were() -> None:
    fleet = Fleet(1, i0=WRAPPED)
    await fleet.look(wait_s=5)
    del fleet.said["i0"]
    fleet.restart("i0")
    told = await fleet.look()
    assert fleet.describing == ["i0", "i0"]
    assert (told["i0"].described, told["i0"].silent) == (WRAPPED.described, False)
    fleet.restart("i0")  # before they have answered
    await fleet.look()
    assert fleet.describing == ["i0"] * 3
    await fleet.describe_cache.close()


async def test_a_lost_question_is_not_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(1, i0=None)
    for _ in range(3):
        await fleet.look()
    assert fleet.describing == ["i0"]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for at, count in ((29.0, 1), (31.0, 2), (89.0, 2), (93.0, 3)):
        monkeypatch.setattr(loop, "time", lambda at=at: begun + at)
        await fleet.look()
        assert len(fleet.describing) == count


async def test_one_that_is_frozen_does_not_keep_the_others_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, one is left to serve for ten seconds; of three, another is asked after two."""
    for count, window in ((2, "_IN_TURN_S"), (3, "_IN_TURN_OF_MANY_S")):
        fleet = Fleet(count, i1=WRAPPED)
        await fleet.look()
        await fleet.look()
        assert fleet.describing == ["i0"]
        monkeypatch.setattr(describe_cache, window, 0.0)
        assert (await fleet.look(wait_s=0.05))["i1"].described is not None
        monkeypatch.undo()
        await fleet.describe_cache.close()


async def test_only_who_is_idle_is_asked_unless_it_never_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(2, i0=BARE, i1=WRAPPED)
    fleet.busy = {"i0"}
    await fleet.look(wait_s=5)
    assert fleet.describing == ["i1"]
    monkeypatch.setattr(describe_cache, "_BUSY_S", 0.0)
    await fleet.look(wait_s=5)
    assert fleet.describing == ["i1", "i0"]


async def test_one_that_is_not_used_until_it_has_answered_is_asked_however_busy_its_instance_is() -> None:
    """Its model was registered anew, and what TorchServe had of the old one is never answered, so that the instance
    would look busy for as long as a task may take. Meanwhile another may go the same way.
    """
    fleet = Fleet(2, i0=WRAPPED, i1=WRAPPED)
    await fleet.look(wait_s=5)
    fleet.describing.clear()
    known = fleet.models.pop("i0")
    reports = [InstanceReport("i0", True), *(InstanceReport(name, True, (m,)) for name, m in fleet.models.items())]
    await fleet.describe_cache.complete(reports, 0.01)
    fleet.models["i0"], fleet.busy = replace(known, pids=("new",)), {"i0"}
    told = await fleet.look(wait_s=5)
    assert fleet.describing == ["i0"]
    assert told["i0"].described is not None


async def test_a_look_for_which_a_client_waits_asks_nobody() -> None:
    fleet = Fleet(1, i0=WRAPPED)
    told = await fleet.look(may_describe=False)
    assert (fleet.describing, told["i0"].silent, told["i0"].describing) == ([], True, False)


async def test_what_an_instance_has_no_more_is_forgotten() -> None:
    fleet = Fleet(2, i0=WRAPPED)
    await fleet.look()
    assert len(fleet.describe_cache._cached) == 1
    fleet.models = {"i0": replace(MODEL, model="other", ready=0), "i1": replace(MODEL, model="other", ready=0)}
    await fleet.look()
    assert (fleet.describe_cache._cached, fleet.describe_cache._pending) == ({}, {})


async def test_a_handler_that_takes_its_time_for_it_runs_once_and_delays_nobody(make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel(role=None)) for _ in range(2)]
    instances[0].freeze()
    fleet = await make_fleet(*instances, describe_timeout_s=0.05)
    answers = await asyncio.gather(*(fleet.post() for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert instances[0].received == []
    assert any("others serve meanwhile" in problem for problem in fleet.proxy.plan.problems)
    for _ in range(3):
        await fleet.proxy.discover()
    assert [instance.describes for instance in instances] == [1, 0]
    instances[0].thaw()
    await until(lambda: not fleet.proxy._discovery.probers["torchserve"]._descriptions._pending, "the answer")
    await fleet.proxy.discover()
    assert len(fleet.proxy.plan.fleet.endpoints) == 2
    assert fleet.proxy.plan.problems == ()
    assert [instance.describes for instance in instances] == [1, 0]


async def test_a_worker_that_is_busy_with_the_question_is_ready(make_fleet: MakeFleet) -> None:
    """With nobody else there, it serves."""
    instance = FakeTorchServe(FakeModel(role=None))
    instance.freeze()
    fleet = await make_fleet(instance, describe_timeout_s=0.05)
    assert fleet.proxy.plan.serving == {"linear/1.0"}
    waiting = asyncio.ensure_future(fleet.post())
    await until(lambda: len(instance.received) == 1, "the query to be sent")
    instance.thaw()
    assert (await waiting).status == 200
