"""A failing instance is seen: in the log when it is ejected and when it is back, in status, health and metrics."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import pytest

from tests.proxy.conftest import Fleet, MakeFleet, until
from ts_parity.proxy.fleet.plan import Plan
from ts_parity.proxy.operations.merge import merge_health, merge_status
from ts_parity.proxy.operations.status import health
from ts_parity.testing import Canned, FakeModel, FakeTorchServe


class Forever(deque[Canned]):
    """A script that is never used up."""

    def popleft(self) -> Canned:
        return self[0]


FULL = Canned.error(507, "InternalServerException", "Out of resources")


async def metric(fleet: Fleet, name: str) -> dict[str, float]:
    """Instance -> value."""
    text = (await fleet.admin.get("/metrics")).body.decode()
    found = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name + "{")]
    return {series.split('endpoint="')[1].split("/")[0]: float(value) for series, value in found}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "ejected" in message or "is back" in message]


async def test_it_is_told_once_when_it_is_taken_out_and_once_when_it_is_back(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    sick, well = FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())
    fleet = await make_fleet(sick, well, out_s=0.01)
    name = sick.inference.removeprefix("http://")
    endpoint = f"{name}/linear/1.0"
    sick.models[0].script = Forever([FULL])
    while not told(caplog):
        assert (await fleet.post()).status == 200
    for _ in range(20):  # trials that fail are no news
        assert (await fleet.post()).status == 200
    assert told(caplog) == [f"{endpoint} is ejected: 507 Out of resources; it is probed regularly"]
    status = (await fleet.admin.get("/status")).json()
    assert status["problems"] == told(caplog)
    state = next(e for e in status["pools"]["linear/1.0"]["endpoints"] if e["name"] == endpoint)
    assert state["health"] in ("out", "trial")
    assert state["why_out"] == "507 Out of resources"
    assert (await fleet.admin.get("/health")).json() == {"status": "healthy"}
    other = well.inference.removeprefix("http://")
    assert await metric(fleet, "ts_parity_endpoint_out") == {name: 1, other: 0}
    assert await metric(fleet, "ts_parity_endpoint_ejections_total") == {name: 1, other: 0}
    failures = await metric(fleet, "ts_parity_endpoint_failures_total")
    assert (failures[name] >= 3, failures[other]) == (True, 0)
    sick.models[0].script = deque()
    while len(told(caplog)) == 1:
        assert (await fleet.post()).status == 200
    assert told(caplog)[1:] == [f"{endpoint} is back; it was ejected: 507 Out of resources"]
    assert (await fleet.admin.get("/status")).json()["problems"] == []
    assert await metric(fleet, "ts_parity_endpoint_out") == {name: 0, other: 0}


async def test_metrics_of_an_instance_go_with_it(make_fleet: MakeFleet) -> None:
    stays, goes = FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())
    fleet = await make_fleet(stays, goes)
    assert len(await metric(fleet, "ts_parity_endpoint_in_flight")) == 2
    goes.models.clear()
    await fleet.proxy.discover()
    assert list(await metric(fleet, "ts_parity_endpoint_in_flight")) == [stays.inference.removeprefix("http://")]


async def test_with_all_of_them_out_it_is_degraded_and_still_asked(make_fleet: MakeFleet) -> None:
    """A balancer that took it away would find the same instances elsewhere, and none could come back here."""
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances, out_s=30.0)
    for instance in instances:
        instance.models[0].script = Forever([FULL])
    while fleet.proxy.health()["status"] == "healthy":
        await fleet.post()
    sick = await fleet.admin.get("/health")
    assert (sick.status, sick.json()["status"]) == (503, "degraded")
    assert sick.json()["reason"] == "linear/1.0: all endpoints that serve it are ejected: 507 Out of resources"
    assert (await fleet.admin.get("/readyz")).status == 200
    for instance in instances:
        instance.models[0].script = deque()
    while fleet.proxy.health()["status"] != "healthy":
        await fleet.post()
    assert (await fleet.admin.get("/health")).status == 200


@pytest.mark.slow
async def test_a_slow_one_is_told_too(make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture) -> None:
    # Where answers take no time at all, what a busy machine adds decides how far apart they are.
    instances = [FakeTorchServe(FakeModel(latency_s=0.02)) for _ in range(4)]
    fleet = await make_fleet(*instances, learn_speed=True)
    state = next(iter(fleet.proxy.scheduler._fleet.endpoints.values()))
    for _ in range(40):
        await fleet.post()
    instances[0].models[0].latency_s = 0.4
    mine = re.compile(rf"{state.name} is ejected: its answers come (.*) times later than usual; .*")
    # As soon as it is doubted, it is asked again only once in some fifty queries, and what is known of it is forgotten
    # where a busy machine has slowed all of them.
    said: list[str] = []
    for _ in range(2000):
        said = [message for message in told(caplog) if message.startswith(state.name)]
        if said:
            break
        await fleet.post()
    found = mine.fullmatch(said[0]) if said else None
    assert found is not None, told(caplog)
    assert float(found[1]) > 2.0
    await until(lambda: fleet.proxy.driver.left_over()["tasks"] == 0, "everything to end")


def test_health_without_instances() -> None:
    none: dict[str, Any] = {"endpoints": {}}
    assert health(Plan(), False, none)["status"] == "unhealthy"
    assert health(Plan(), True, none)["status"] == "draining"


def test_the_best_process_speaks_for_all() -> None:
    healthy, degraded = {"status": "healthy"}, {"status": "degraded", "reason": "m/1: out"}
    ill = {"status": "unhealthy", "reason": "no instance"}
    assert merge_health([ill, degraded, healthy]) == healthy
    assert merge_health([ill, degraded]) == degraded
    assert merge_health([ill, ill]) == ill
    assert merge_health([]) == {"status": "unhealthy", "reason": "no process runs"}


def test_why_an_endpoint_is_out_is_the_first_process_that_knows() -> None:
    parts = [{"health": "in", "why_out": "", "ejections": 1}, {"health": "out", "why_out": "507", "ejections": 2}]
    assert merge_status(parts) == {"health": "out", "why_out": "507", "ejections": 3}
