"""What a late query would have waited without help, and whether what was given is what came."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import numpy as np
import pytest

from tests.proxy.conftest import Clock, Fleet, MakeFleet, until
from ts_parity.proxy.serving.conditions import told_seconds
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

DEADLINE_S = 20.0


def fleet_of_three() -> list[FakeTorchServe]:
    """Two instances of the model, and its student on a third."""
    student = FakeTorchServe(protection(code="student", k=1))
    return [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), student]


async def rescued(
    make_fleet: MakeFleet,
    instances: list[FakeTorchServe],
    proved: bool = True,
    copies: bool = False,
    more: dict[str, Any] | None = None,
    **student: Any,
) -> Fleet:
    """One query, rescued by the student while the instance that has it is frozen. `proved`: answers are not compared.
    `copies`: a second copy of it is out, too. `more`: further settings. `student`: how it differs from what it was on
    trial.
    """
    rules = {"copies": copies, "hedge_after_s": 0.0 if copies else None, **(more or {})}
    fleet = await make_fleet(*instances, deadline_s=DEADLINE_S, differing=1.0, proved=proved, **rules)
    (pool,) = fleet.proxy.scheduler.pools()
    while not pool.protected:
        await fleet.posts(4)
    for name, value in student.items():
        setattr(instances[2].models[0], name, value)
    for instance in instances[:2]:
        instance.freeze()
    answer = await fleet.post(x_request_id="mine")
    assert answer.get("x-ts-parity") == "reconstructed"
    return fleet


async def thawed(fleet: Fleet) -> None:
    for instance in fleet.instances:
        instance.thaw()
    await until(lambda: fleet.proxy.driver.left_over()["tasks"] == 0, "all that is out")


async def metric(fleet: Fleet, start: str) -> float:
    lines = (await fleet.admin.get("/metrics")).body.decode().splitlines()
    (found,) = [line for line in lines if line.startswith(start)]
    return float(found.rpartition(" ")[2])


async def race(fleet: Fleet) -> dict[str, Any]:
    told: dict[str, Any] = (await fleet.admin.get("/status")).json()["late_queries"][0]
    return told


UNPROTECTED = 'ts_parity_unprotected_duration_seconds_{}{{pool="linear/1.0"}}'
AGREEMENT = 'ts_parity_agreement_total{{finding="{}",pool="linear/1.0",source="reconstructed"}}'


async def test_its_own_answer_comes_later_and_tells_what_it_would_have_waited(
    make_fleet: MakeFleet, clock: Clock
) -> None:
    instances = fleet_of_three()
    fleet = await rescued(make_fleet, instances)
    out = await race(fleet)
    assert (out["unprotected"], out["unprotected_s"], out["request_id"]) == ("out", None, "mine")
    assert [task["how"] for task in out["tasks"]] == ["out", "won"]
    assert await metric(fleet, UNPROTECTED.format("count")) == 0
    clock.advance(5.0)
    await thawed(fleet)
    came = await race(fleet)
    assert came["unprotected"] == "came"
    assert 5.0 <= came["unprotected_s"] < DEADLINE_S
    assert came["given_s"] < came["unprotected_s"]
    assert [task["how"] for task in came["tasks"]] == ["late", "won"]
    assert await metric(fleet, UNPROTECTED.format("count")) == 1
    assert await metric(fleet, UNPROTECTED.format("sum")) >= 5.0


async def test_what_never_comes_counts_as_its_deadline(make_fleet: MakeFleet, clock: Clock) -> None:
    fleet = await rescued(make_fleet, fleet_of_three())
    clock.advance(DEADLINE_S + 0.1)
    never = await race(fleet)
    assert never["unprotected"] == "never"
    assert never["unprotected_s"] == pytest.approx(DEADLINE_S)
    assert await metric(fleet, UNPROTECTED.format("sum")) == pytest.approx(DEADLINE_S)
    await thawed(fleet)
    assert await metric(fleet, UNPROTECTED.format("count")) == 1, "nothing counts twice"


async def test_while_it_is_out_it_counts_as_long_as_it_has_been_out(make_fleet: MakeFleet, clock: Clock) -> None:
    fleet = await rescued(make_fleet, fleet_of_three())
    seen = []
    for _ in range(2):
        clock.advance(3.0)
        seen.append((await fleet.admin.get("/status")).json()["recent"]["unprotected_s"])
    assert 3.0 / 1.13 <= seen[0] < seen[1]


async def test_what_was_given_is_compared_with_what_came(make_fleet: MakeFleet) -> None:
    fleet = await rescued(make_fleet, fleet_of_three(), proved=False)
    await thawed(fleet)
    assert (await race(fleet))["finding"] == "agreed"
    assert await metric(fleet, AGREEMENT.format("agreed")) == 1
    assert await metric(fleet, AGREEMENT.format("differed")) == 0


async def test_what_a_second_copy_brings_later_is_not_what_came(make_fleet: MakeFleet) -> None:
    fleet = await rescued(make_fleet, fleet_of_three(), proved=False, copies=True)
    assert [task["kind"] for task in (await race(fleet))["tasks"]].count("copy") == 1
    before = await metric(fleet, AGREEMENT.format("agreed"))
    await thawed(fleet)
    assert await metric(fleet, AGREEMENT.format("agreed")) == before + 1


async def test_an_answer_that_differs_is_counted_as_differing(make_fleet: MakeFleet) -> None:
    other = np.array([[9.0, 0.0], [0.0, 0.1]], dtype=np.float32)
    fleet = await rescued(make_fleet, fleet_of_three(), proved=False, matrix=other)
    await thawed(fleet)
    told = await race(fleet)
    assert told["finding"] == "differed"
    assert told["reason"]
    assert await metric(fleet, AGREEMENT.format("differed")) == 1
    assert (await fleet.admin.get("/status")).json()["recent"]["findings"] == {"differed": 1}


@pytest.mark.parametrize("failure", [Canned.worker_died(), Canned.no_worker("linear")], ids=["failed", "rejected"])
async def test_one_that_fails_after_its_query_was_answered_claims_no_more_than_until_then(
    make_fleet: MakeFleet, clock: Clock, failure: Canned
) -> None:
    """It would have been tried again at that moment."""
    instances = fleet_of_three()
    for instance in instances[:2]:
        instance.models[0].script = deque([failure])
    fleet = await rescued(make_fleet, instances)
    clock.advance(2.0)
    await thawed(fleet)
    told = await race(fleet)
    assert told["unprotected"] == "failed"
    assert 2.0 <= told["unprotected_s"] < DEADLINE_S


async def test_queries_that_nothing_helped_are_the_same_with_and_without(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()))
    await fleet.posts(10)
    given = 'ts_parity_query_duration_seconds_sum{pool="linear/1.0",source="deployed"}'
    assert await metric(fleet, UNPROTECTED.format("count")) == 10
    assert await metric(fleet, UNPROTECTED.format("sum")) == await metric(fleet, given)
    status = (await fleet.admin.get("/status")).json()
    assert status["late_queries"] == []
    assert status["recent"]["tail"]["given"] == status["recent"]["tail"]["unprotected"] != []


async def test_a_client_that_left_counts_nowhere(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.freeze()
    leaving = asyncio.ensure_future(fleet.post())
    await until(lambda: len(instance.received) == 1, "the query to be sent")
    leaving.cancel()
    abandoned = 'ts_parity_queries_total{outcome="abandoned",pool="linear/1.0",source="none"}'
    while await metric(fleet, abandoned) == 0:
        await asyncio.sleep(0.01)
    instance.thaw()
    await until(lambda: fleet.proxy.driver.left_over()["tasks"] == 0, "its answer, for nobody")
    assert await metric(fleet, UNPROTECTED.format("count")) == 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0008, "0.8 ms"), (0.0412, "41 ms"), (0.0999, "100 ms"), (0.9994, "999 ms"), (0.9999, "1 s"), (3.21, "3.2 s"),
     (240, "4 min")],
)  # fmt: skip
def test_seconds_as_a_person_says_them(seconds: float, told: str) -> None:
    assert told_seconds(seconds) == told
