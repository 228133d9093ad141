"""On real TorchServe: protections that were made from other weights, or of handlers that keep state or throw dice.

None of the deployed archives is wrapped, so nothing but their answers tells.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.conftest import TorchServeFactory, scale
from tests.proxy.conftest import Fleet, MakeFleet, Raw, nothing_left, until
from tests.proxy.serving.test_coded_on_torchserve import SETTINGS, given
from tests.worker.serving import make_folder, network, pack, vector
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.torchserve.wrapping import ProtectedModel, wrap_parity

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]

TRUST: dict[str, Any] = {**SETTINGS, "proved": False, "protect": "exact-only", "group_wait_s": 0.02}


def old_weights() -> dict[str, torch.Tensor]:
    """Of a model that decides the opposite."""
    return {name: -value for name, value in network().state_dict().items()}


@pytest.fixture(scope="module")
def instances(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> list[TorchServeInstance]:
    """Two with `linear` and `drops`, not wrapped; one with their protections, right and wrong. Of those that fit the
    one with the smallest k is used, unless it has no worker.
    """
    folder = tmp_path_factory.mktemp("archives")
    out = folder / "out"
    new = pack(make_folder(folder / "new" / "linear", "plain_class"), "linear")
    old = pack(make_folder(folder / "old" / "linear", "plain_class", weights=old_weights()), "linear")
    drops = pack(make_folder(folder / "drops", "dices"), "drops")
    whom = ProtectedModel("linear", "1.0", None)
    protections = [
        wrap_parity(new, out, "right", code="exact", k=2),
        wrap_parity(old, out, "stale", code="exact", k=3),
        wrap_parity(
            old,
            out,
            "pupil",
            code="student",
            k=2,
            serialized_file=folder / "old" / "linear" / "script.pt",
            protects=whom,
        ),
        wrap_parity(drops, out, "dropped", code="exact", k=4),
    ]
    return torchserve_factory.fleet([[new, drops], [new, drops], protections])


@contextmanager
def frozen(instance: TorchServeInstance, model: str) -> Iterator[None]:
    pids = instance.worker_pids(model)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def posts(fleet: Fleet, model: str, *headers: tuple[str, str]) -> list[Raw]:
    asked = [fleet.client.post(f"/predictions/{model}", vector(n), headers) for n in range(2)]
    return list(await asyncio.gather(*asked))


def told_of(fleet: Fleet, model: str) -> dict[str, Any]:
    told: dict[str, Any] = fleet.proxy.status()["pools"][f"{model}/1.0"]["trust"]
    return told


async def through_its_trial(fleet: Fleet, model: str) -> dict[str, Any]:
    """With queries until it is over; a protection's first answer, with its self-test, may take seconds."""
    ends_at = asyncio.get_running_loop().time() + 30.0
    while (told := told_of(fleet, model))["state"] == "on trial":
        assert asyncio.get_running_loop().time() < ends_at, told
        sources = {answer.get("x-ts-parity") for answer in await posts(fleet, model)}
        if told_of(fleet, model)["state"] == "on trial":  # else it may have ended between the two
            assert sources == {"deployed"}
    return told


async def test_the_right_protection_rescues_after_its_trial(
    make_fleet: MakeFleet, instances: list[TorchServeInstance]
) -> None:
    fleet = await make_fleet(given=given(instances), **TRUST)
    told = await through_its_trial(fleet, "linear")
    assert told["state"] == "in use", told
    expected = [answer.json() for answer in await posts(fleet, "linear")]
    await until(lambda: nothing_left(fleet.proxy), "what is left of the trial")
    agreed = told_of(fleet, "linear")["agreed"]
    with frozen(instances[0], "linear"):
        answers = await posts(fleet, "linear", ("x-ts-parity-exact", "1"))
    assert [answer.json() for answer in answers] == [pytest.approx(numbers, abs=1e-4) for numbers in expected]
    assert sorted(answer.get("x-ts-parity") or "" for answer in answers) == ["deployed", "reconstructed"]
    await until(lambda: told_of(fleet, "linear")["agreed"] > agreed, "the late answer to be compared")


@pytest.fixture
def without_the_right_one(instances: list[TorchServeInstance]) -> Iterator[None]:
    scale(instances[2], "right", 0)
    yield
    scale(instances[2], "right", 1)


@pytest.mark.usefixtures("without_the_right_one")
@pytest.mark.parametrize(
    ("model", "protect"),
    [("linear", "exact-only"), ("linear", "student"), ("drops", "exact-only")],
    ids=["exact of old weights", "student of old weights", "dropout"],
)
async def test_a_wrong_protection_answers_nobody(
    make_fleet: MakeFleet, instances: list[TorchServeInstance], model: str, protect: str
) -> None:
    fleet = await make_fleet(given=given(instances), **{**TRUST, "protect": protect})
    told = await through_its_trial(fleet, model)
    assert told.get("state") != "in use"
    with frozen(instances[0], model):
        for headers in ((), (("x-ts-parity-exact", "1"),)):
            answers = await posts(fleet, model, ("x-ts-parity-deadline-ms", "600"), *headers)
            assert all(answer.get("x-ts-parity") in (None, "deployed") for answer in answers)
    problems = (await fleet.admin.get("/status")).json()["problems"]
    reasons = ("differed from the deployed model's own", "in training mode")
    assert any(reason in problem for problem in problems for reason in reasons), problems
    await until(lambda: nothing_left(fleet.proxy), "the frozen query", timeout_s=10.0)


async def test_a_worker_that_is_registered_anew_puts_its_protection_on_trial(
    make_fleet: MakeFleet, instances: list[TorchServeInstance]
) -> None:
    """Its process id may be the same in a container; the time it was started is not."""
    fleet = await make_fleet(given=given(instances), **TRUST)
    assert (await through_its_trial(fleet, "linear"))["state"] == "in use"
    await fleet.proxy.discover()
    assert told_of(fleet, "linear")["state"] == "in use"
    [before] = [e.workers for e in fleet.proxy.plan.fleet.endpoints if e.name.endswith("/right/1.0")]
    assert all(worker.count("/") == 2 for worker in before), "TorchServe says when each worker was started"
    scale(instances[2], "right", 0)
    scale(instances[2], "right", 1)
    await fleet.proxy.discover()
    assert told_of(fleet, "linear")["state"] == "on trial"
