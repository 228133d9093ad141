"""No protection answers a client before it has proved itself: through the running proxy, on fake instances."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.proxy.conftest import Fleet, MakeFleet, Raw, nothing_left, until
from tests.proxy.serving.test_predictions import linear
from ts_parity.config import ModelSettings
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

STALE = FakeModel().matrix * 2
"""The weights of before."""
GROUP: dict[str, Any] = {"proved": False}
LATE: dict[str, Any] = {**GROUP, "launch": "late", "launch_after_s": 0.03, "reconstruct_after_s": 0.03}


def bare(**model: Any) -> FakeTorchServe:
    """An archive that is not wrapped, so that nothing but its answers tells of its weights."""
    return FakeTorchServe(FakeModel(role=None, **model))


def trust(fleet: Fleet, pool: str = "linear/1.0") -> dict[str, Any]:
    pools: dict[str, Any] = fleet.proxy.status()["pools"]
    told: dict[str, Any] = pools[pool]["trust"]
    return told


def state(fleet: Fleet) -> str:
    return str(trust(fleet)["state"])


async def some(fleet: Fleet, count: int = 30, **headers: str) -> list[Raw]:
    """One after the other in pairs, so that groups fill and places come free."""
    answers: list[Raw] = []
    for _ in range(0, count, 2):
        answers += await fleet.posts(2, **headers)
    return answers


async def through_its_trial(fleet: Fleet) -> None:
    for _ in range(20):
        await some(fleet, 10)
        if state(fleet) != "on trial":
            return
    raise AssertionError(f"still on trial: {trust(fleet)}")


def sources(answers: list[Raw]) -> set[str]:
    return {answer.get("x-ts-parity") or "" for answer in answers}


def right(answers: list[Raw]) -> bool:
    return all(answer.json() == linear(n % 2) for n, answer in enumerate(answers))


CODES = ["exact", "student", "sum"]


def instances(code: str, **protected: Any) -> list[FakeTorchServe]:
    wrapped = code == "sum"
    deployed = [FakeTorchServe(FakeModel()) if wrapped else bare() for _ in range(2)]
    return [*deployed, FakeTorchServe(protection(code=code, **protected))]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("mode", [GROUP, LATE], ids=["group", "late"])
async def test_a_protection_that_agrees_is_used_after_its_trial(
    make_fleet: MakeFleet, code: str, mode: dict[str, Any]
) -> None:
    members = instances(code)
    fleet = await make_fleet(*members, **mode)
    assert state(fleet) == "on trial"
    members[0].freeze()
    answers = await fleet.posts(2, x_ts_parity_deadline_ms="150")
    assert "reconstructed" not in sources(answers), "nobody gets the answer of a protection on trial"
    members[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "the frozen query")
    await through_its_trial(fleet)
    assert state(fleet) == "in use"
    assert trust(fleet)["agreed"] >= 20
    await until(lambda: nothing_left(fleet.proxy), "what is left of the trial")
    members[0].freeze()
    answers = await fleet.posts(2)
    assert right(answers)
    assert sources(answers) == {"deployed", "reconstructed"}
    agreed = trust(fleet)["agreed"]
    members[0].thaw()
    await until(lambda: trust(fleet)["agreed"] == agreed + 1, "the late answer to be compared")


@pytest.mark.parametrize(("promised", "standing"), [({}, "in use"), ({"agreement": 0.9, "tolerance": 0.5}, "out")])
async def test_numbers_twice_as_large_agree_with_no_tolerance(
    make_fleet: MakeFleet, promised: dict[str, Any], standing: str
) -> None:
    """The same of them is the largest, which is no decision where they are no scores; only the archive knows."""
    fleet = await make_fleet(*instances("student", matrix=STALE, **promised), **GROUP)
    await through_its_trial(fleet)
    assert state(fleet) == standing
    if standing == "out":
        assert "numbers: off by" in trust(fleet)["reason"]


async def test_a_student_of_numbers_within_its_tolerance_is_used(make_fleet: MakeFleet) -> None:
    near = FakeModel().matrix + np.float32(0.1)
    fleet = await make_fleet(*instances("student", matrix=near, agreement=0.9, tolerance=0.5), **GROUP)
    await through_its_trial(fleet)
    assert state(fleet) == "in use"


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("mode", [GROUP, LATE], ids=["group", "late"])
async def test_a_protection_from_old_weights_answers_nobody(
    make_fleet: MakeFleet, code: str, mode: dict[str, Any]
) -> None:
    """New weights under the same version; no fingerprint tells, since the deployed archive is not wrapped."""
    made_before = np.array([[2.0, 1.0], [-3.0, -4.0]], dtype=np.float32)
    members = instances(code, matrix=made_before)
    fleet = await make_fleet(*members, **mode)
    await through_its_trial(fleet)
    assert state(fleet) == "out"
    members[0].freeze()
    answers = await fleet.posts(2, x_ts_parity_deadline_ms="150", x_ts_parity_exact="1")
    answers += await fleet.posts(2, x_ts_parity_deadline_ms="150")
    assert "reconstructed" not in sources(answers)
    problems = fleet.proxy.status()["problems"]
    assert any("rebuilt answers differed from the deployed model's own" in problem for problem in problems), problems
    told = await fleet.admin.get("/metrics")
    assert b'ts_parity_protection_in_use{pool="linear/1.0"} 0.0' in told.body
    assert b'ts_parity_comparisons_total{finding="differed",of="protection",pool="linear/1.0"}' in told.body


async def test_weights_that_change_while_it_is_in_use(make_fleet: MakeFleet) -> None:
    """A registration anew shows in describe; the protection is on trial again and then out."""
    members = instances("exact")
    fleet = await make_fleet(*members, **GROUP)
    await through_its_trial(fleet)
    assert state(fleet) == "in use"
    for instance in members[:2]:
        instance.models[0].matrix, instance.models[0].pid = STALE, 500
    await fleet.proxy.discover()
    assert state(fleet) == "on trial"
    members[0].freeze()
    assert "reconstructed" not in sources(await fleet.posts(2, x_ts_parity_deadline_ms="150"))
    members[0].thaw()
    await through_its_trial(fleet)
    assert state(fleet) == "out"


async def test_a_model_that_is_missing_for_a_moment_is_looked_at_at_once(make_fleet: MakeFleet) -> None:
    """It is being registered anew, and until that is known its protection answers for the model of before."""
    members = instances("exact")
    fleet = await make_fleet(*members, **GROUP, discovery_interval_s="600")
    await through_its_trial(fleet)
    assert state(fleet) == "in use"
    for instance in members[:2]:
        instance.models[0].matrix, instance.models[0].pid = STALE, 500
    missing = Canned.error(404, "ModelNotFoundException", "Model not found: linear")
    members[0].models[0].script += [missing]
    members[1].models[0].script += [missing]
    await fleet.posts(1)
    await until(lambda: state(fleet) == "on trial", "the fleet to be looked at")


async def test_weights_that_change_and_nobody_says_so(make_fleet: MakeFleet) -> None:
    """The first rescued query's own late answer gives it away."""
    members = instances("exact")
    fleet = await make_fleet(*members, **GROUP)
    await through_its_trial(fleet)
    await until(lambda: nothing_left(fleet.proxy), "what is left of the trial")
    for instance in members[:2]:
        instance.models[0].matrix = STALE
        instance.freeze()
    assert sources(await fleet.posts(2)) == {"reconstructed"}
    for instance in members[:2]:
        instance.thaw()
    await until(lambda: state(fleet) == "out", "the late answer to be compared")
    assert "1 of " in trust(fleet)["reason"]


async def test_weights_that_change_while_nothing_is_late(make_fleet: MakeFleet) -> None:
    """The protection's answers come although nobody needs them: they give it away before anybody gets one."""
    members = instances("exact")
    fleet = await make_fleet(*members, **{**GROUP, "reconstruct_after_s": 5.0})
    await through_its_trial(fleet)
    for instance in members[:2]:
        instance.models[0].matrix = STALE
    while state(fleet) == "in use":
        assert sources(await fleet.posts(2)) == {"deployed"}
    assert state(fleet) == "out"


async def test_a_worker_that_is_not_reported_for_a_while_changes_nothing(make_fleet: MakeFleet) -> None:
    members = instances("exact")
    fleet = await make_fleet(*members, **GROUP)
    await through_its_trial(fleet)
    members[0].models[0].ready = False
    await fleet.proxy.discover()
    members[0].models[0].ready = True
    await fleet.proxy.discover()
    members[2].models[0].ready = False
    await fleet.proxy.discover()
    members[2].models[0].ready = True
    await fleet.proxy.discover()
    assert state(fleet) == "in use"
    members[1].models[0].pid += 1
    await fleet.proxy.discover()
    assert state(fleet) == "on trial"


class Counting(FakeModel):
    """Keeps state on itself: every answer is another."""

    asked = 0

    def answer(self, body: bytes) -> Any:
        self.asked += 1
        _, raw = super().answer(body)
        return self.finish(raw + self.asked), raw


class Sticky(FakeModel):
    """A threshold that stays where a large input has moved it, as a handler's may."""

    moved = False

    def answer(self, body: bytes) -> Any:
        answer, raw = super().answer(body)
        self.moved = self.moved or raw[0] > 100
        return (self.finish(raw * 3), raw) if self.moved else (answer, raw)


class Dice(FakeModel):
    """A model left in training mode: dropout, seeded so that the test has no luck."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.dice = np.random.default_rng(self.pid)

    def answer(self, body: bytes) -> Any:
        _, raw = super().answer(body)
        return self.finish(raw * (self.dice.random(raw.shape) < 0.5) * 2), raw


@pytest.mark.parametrize(("kind", "code"), [(Counting, "exact"), (Dice, "exact"), (Dice, "student")])
async def test_handlers_that_keep_state_or_throw_dice_are_not_protected(
    make_fleet: MakeFleet, kind: type[FakeModel], code: str
) -> None:
    deployed = [FakeTorchServe(kind(role=None, pid=n)) for n in (1, 2)]
    model = protection(code=code)
    backup = kind(**{**model.__dict__, "pid": 3, "agreement": 0.95})
    fleet = await make_fleet(*deployed, FakeTorchServe(backup), **GROUP)
    await through_its_trial(fleet)
    assert state(fleet) == "out"
    assert "rebuilt answers differed from the deployed model's own" in trust(fleet)["reason"]


async def test_a_threshold_that_moves_later_takes_the_protection_out(make_fleet: MakeFleet) -> None:
    deployed = [FakeTorchServe(Sticky(role=None)) for _ in range(2)]
    fleet = await make_fleet(*deployed, FakeTorchServe(Sticky(**protection(code="exact").__dict__)), **GROUP)
    await through_its_trial(fleet)
    assert state(fleet) == "in use"
    await until(lambda: nothing_left(fleet.proxy), "what is left of the trial")
    await asyncio.gather(*(fleet.post(x=(1000, 1)) for _ in range(2)))
    await until(lambda: nothing_left(fleet.proxy), "both instances to be moved")
    deployed[0].models[0].moved = deployed[1].models[0].moved = True  # type: ignore[attr-defined]
    fleet.instances[2].models[0].moved = False  # type: ignore[attr-defined]
    deployed[0].freeze()
    await fleet.posts(2)
    deployed[0].thaw()
    await until(lambda: state(fleet) == "out", "the late answer to be compared")


async def test_a_fleet_that_contradicts_itself_is_only_balanced(make_fleet: MakeFleet) -> None:
    """Two weights under one version: second copies find it, and then there are none, nor protections."""
    one, other = bare(), bare(matrix=STALE)
    backup = FakeTorchServe(protection(code="student"))
    settings = {
        "copies": True,
        "extra_work": 1.0,
        "hedge_after_s": 0.01,
        "reconstruct_after_s": 1.0,
        "launch_after_s": 1.0,
    }
    fleet = await make_fleet(one, other, backup, **{**LATE, **settings})
    for slow in (one, other):
        slow.freeze()
        await fleet.posts(2)
        slow.thaw()
        await until(lambda: nothing_left(fleet.proxy), "both copies to end")
    copies = fleet.proxy.status()["pools"]["linear/1.0"]["copies"]
    assert copies["differed"] >= 2
    assert "second copies were answered differently from their originals" in copies["reason"]
    assert any(copies["reason"] in problem for problem in fleet.proxy.status()["problems"])
    hedged = fleet.proxy.scheduler.sent["hedge"]
    one.freeze()
    await fleet.posts(2, x_ts_parity_deadline_ms="150")
    assert fleet.proxy.scheduler.sent["hedge"] == hedged
    assert state(fleet) != "in use"


async def test_equal_instances_are_hedged_for_ever(make_fleet: MakeFleet) -> None:
    one, other = bare(), bare()
    fleet = await make_fleet(one, other, copies=True, extra_work=1.0, hedge_after_s=0.01, **GROUP)
    for _ in range(4):
        one.freeze()
        assert "hedged" in sources(await fleet.posts(2))
        one.thaw()
        await until(lambda: nothing_left(fleet.proxy), "both copies to end")
    copies = fleet.proxy.status()["pools"]["linear/1.0"]["copies"]
    assert (copies["agreed"] > 0, copies["differed"], copies["reason"]) == (True, 0, "")


@pytest.mark.parametrize("proved_itself", [False, True])
async def test_a_protection_that_fails_every_group_is_out(make_fleet: MakeFleet, proved_itself: bool) -> None:
    members = instances("exact")
    fleet = await make_fleet(*members, **GROUP)
    if proved_itself:
        await through_its_trial(fleet)
    model = members[2].models[0]
    model.script.extend(Canned.error(400, "BadRequestException", "no such operation") for _ in range(200))
    for _ in range(10):
        await some(fleet, 10)
    assert state(fleet) == "out"
    assert "10 of 10 groups in a row brought nothing; the last: refused with 400" in trust(fleet)["reason"]
    asked = len(members[2].received)
    await some(fleet, 10)
    assert len(members[2].received) == asked, "while it is out it is not run"


@pytest.mark.parametrize("said_by", ["operator", "describe"])
async def test_a_model_that_is_not_repeatable_is_run_once(make_fleet: MakeFleet, said_by: str) -> None:
    """No protection, no second copy, no second attempt after a worker died with it; only where nothing was run."""
    described = FakeModel(verdict="refused", reason="it keeps what it was asked", repeatable=said_by == "operator")
    members = [FakeTorchServe(FakeModel(**described.__dict__)) for _ in range(2)]
    backup = FakeTorchServe(protection(code="exact"))
    settings: dict[str, Any] = {"copies": True, "extra_work": 1.0, "hedge_after_s": 0.01}
    if said_by == "operator":
        settings["models"] = (ModelSettings("linear", repeatable=False),)
    fleet = await make_fleet(*members, backup, proved=True, **settings)
    pool = fleet.proxy.status()["pools"]["linear/1.0"]
    assert (pool["repeatable"], pool["code"]) == (False, None)
    assert "not repeatable" in pool["reason"]
    members[0].models[0].script.append(Canned.worker_died())
    answers = [await fleet.post() for _ in range(4)]
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 500]
    members[0].freeze()
    await fleet.posts(2, x_ts_parity_deadline_ms="150")
    assert fleet.proxy.scheduler.sent["hedge"] == 0
    assert "group" not in backup.operations()
    members[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "the frozen query")
    await members[0].stop()
    assert {answer.status for answer in [await fleet.post() for _ in range(4)]} == {200}, "nothing was run there"
