"""Late launch and second copies through the running proxy, on instances that host the model and its student."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.proxy.conftest import Clock, Fleet, MakeFleet, Raw, nothing_left, until
from tests.proxy.serving.test_predictions import linear, protection
from ts_parity.engine import Action, Answer, Policy, Query, Scheduler, Send, Task, scheduler
from ts_parity.engine.policy import PLAIN
from ts_parity.testing import FakeModel, FakeTorchServe

LATE = {"launch": "late", "launch_after_s": 10.0, "reconstruct_after_s": 10.0}


def shared(count: int = 3, code: str = "student") -> list[FakeTorchServe]:
    return [FakeTorchServe(FakeModel(role=None), protection(code=code)) for _ in range(count)]


async def put_forward(fleet: Fleet, clock: Clock, asked: asyncio.Future[list[Raw]]) -> list[Raw]:
    """When all but one have their answer, that one is late."""
    await until(lambda: fleet.proxy.driver.left_over()["clients"] == 1, "all but one to be answered")
    clock.advance(10.0)
    return await asked


async def test_a_late_query_is_answered_by_the_student_on_another_instance(make_fleet: MakeFleet, clock: Clock) -> None:
    instances = shared()
    fleet = await make_fleet(*instances, **LATE)
    in_time = await fleet.posts(3)
    assert {answer.get("x-ts-parity") for answer in in_time} == {"deployed"}
    assert all("group" not in instance.operations() for instance in instances)
    instances[0].freeze()
    answers = await put_forward(fleet, clock, asyncio.ensure_future(fleet.posts(3)))
    assert [answer.json() for answer in answers] == [linear(n) for n in range(3)]
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "deployed", "reconstructed"]
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
    assert sum(instance.operations().count("group") for instance in instances) == 1


async def test_who_refuses_approximate_answers_waits_or_is_hedged(make_fleet: MakeFleet, clock: Clock) -> None:
    instances = shared()
    fleet = await make_fleet(*instances, **LATE, copies=True, extra_work=1.0, hedge_after_s=10.0)
    instances[0].freeze()
    asked = asyncio.ensure_future(fleet.posts(3, x_ts_parity_exact="1"))
    answers = await put_forward(fleet, clock, asked)
    assert [answer.json() for answer in answers] == [linear(n) for n in range(3)]
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "deployed", "hedged"]
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


class Recording:
    """Stands where the proxy's scheduler stands, and writes down every event with its time and its actions."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.events: list[tuple[str, tuple[Any, ...], list[Action]]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._scheduler, name)
        if name not in ("query_arrived", "task_done", "query_abandoned", "tick", "answer_started"):
            return method

        def recorded(*arguments: Any) -> list[Action]:
            actions: list[Action] = method(*arguments)
            self.events.append((name, arguments, actions))
            return actions

        return recorded


async def record(fleet: Fleet) -> Recording:
    recording = Recording(fleet.proxy.scheduler)
    fleet.proxy.driver.scheduler = recording  # type: ignore[assignment]
    return recording


@pytest.mark.skipif(not scheduler.__file__.endswith(".py"), reason="compiled, the driver takes no other scheduler")
async def test_a_live_run_replays_to_the_same_actions(make_fleet: MakeFleet, clock: Clock) -> None:
    """The simulator drives the same object: what the proxy's scheduler decided, a fresh one decides again."""
    instances = shared()
    fleet = await make_fleet(*instances, **LATE, copies=True, extra_work=0.5)
    recording = await record(fleet)
    await fleet.posts(5)
    instances[1].freeze()
    await put_forward(fleet, clock, asyncio.ensure_future(fleet.posts(4)))
    instances[1].thaw()
    await fleet.posts(3)
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
    live = fleet.proxy.scheduler
    fresh = Scheduler(fleet.proxy.driver._plan.fleet, live.policy)
    tasks: dict[int, Task] = {}
    queries: dict[int, Query] = {}
    assert any(name == "tick" for name, _, _ in recording.events)
    for name, arguments, actions in recording.events:
        again = getattr(fresh, name)(*[_twin(argument, tasks, queries) for argument in arguments])
        for before, after in zip(actions, again, strict=True):
            assert _described(before) == _described(after)
            if isinstance(before, Send) and isinstance(after, Send):
                tasks[before.task.id] = after.task


def _twin(argument: Any, tasks: dict[int, Task], queries: dict[int, Query]) -> Any:
    if isinstance(argument, Task):
        return tasks[argument.id]
    if isinstance(argument, Query):
        if argument.id not in queries:
            queries[argument.id] = Query(argument.id, argument.pool, argument.key, argument.deadline_at, argument.least)
        return queries[argument.id]
    return argument


def _described(action: Action) -> tuple[Any, ...]:
    if isinstance(action, Send):
        task = action.task
        return "send", task.kind, task.endpoint.name, task.query.id if task.query else None, task.slot, task.hedge
    if isinstance(action, Answer):
        return "answer", action.query.id, action.source
    return "fail", action.query.id, action.reason


@pytest.mark.parametrize("protected", [True, False])
async def test_without_a_word_on_policy_late_queries_are_helped_by_what_there_is(
    protected: bool, make_fleet: MakeFleet, clock: Clock
) -> None:
    """A student beside the model is launched for the late one; without any, a second copy is made."""
    instances = shared() if protected else [FakeTorchServe(FakeModel(role=None)) for _ in range(3)]
    recipe = {name: getattr(Policy(), name) for name in PLAIN}
    fleet = await make_fleet(*instances, **recipe, reconstruct_after_s=None, group_wait_s=None)
    in_time = await fleet.posts(3)
    assert {answer.get("x-ts-parity") for answer in in_time} == {"deployed"}
    instances[0].freeze()
    answers = await put_forward(fleet, clock, asyncio.ensure_future(fleet.posts(3)))
    rescued = "reconstructed" if protected else "hedged"
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "deployed", rescued]
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
