"""What nobody has foreseen goes wrong in the proxy itself: it costs one query at most, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.proxy.conftest import Fleet, MakeFleet, nothing_left, until
from tests.proxy.serving.test_confidence import NAME, fleet_of, rebuilt_beside
from tests.proxy.serving.test_predictions import linear
from tests.proxy.serving.test_trust import GROUP, instances, right, some, trust
from ts_parity.confidence import Confidence
from ts_parity.proxy.fleet.backends.torchserve import TorchServeBackend
from ts_parity.testing import Canned, FakeModel, FakeTorchServe


def fails(*_: Any) -> Any:
    raise RuntimeError("nobody has foreseen this")


def fails_once(real: Callable[..., Any]) -> Callable[..., Any]:
    due = [fails]
    return lambda *given: (due.pop() if due else real)(*given)


async def serves_on(fleet: Fleet) -> None:
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
    assert (await fleet.post()).json() == linear(1)


@pytest.mark.parametrize("step", ["prediction", "read_prediction", "trouble"])
async def test_a_task_that_cannot_be_carried_out_gives_its_place_back(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    instance = FakeTorchServe(FakeModel(role=None, workers=1))
    if step == "trouble":  # what is looked for where an answer is streamed
        instance.models[0].script.append(Canned(chunks=(b"one", b"two")))
    fleet = await make_fleet(instance)
    monkeypatch.setattr(TorchServeBackend, step, staticmethod(fails_once(getattr(TorchServeBackend, step))))
    answer = await fleet.post()
    assert (answer.status, answer.json()["type"]) == (503, "ServiceUnavailableException")
    await serves_on(fleet)


async def test_a_request_that_cannot_be_handled_is_answered_as_torchserve_would(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel(role=None)))
    monkeypatch.setattr(TorchServeBackend, "match", fails_once(TorchServeBackend.match))
    answer = await fleet.post(x_request_id="mine")
    assert (answer.status, answer.json()["type"]) == (500, "InternalServerException")
    assert answer.get("x-request-id") == "mine"
    await serves_on(fleet)


async def test_answers_that_cannot_be_compared_prove_nothing(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchServeBackend, "meaning", lambda *_: fails)
    fleet = await make_fleet(*instances("exact"), **GROUP)
    assert right(await some(fleet, 4))
    await until(lambda: trust(fleet)["unknown"] > 0, "answers to be compared")
    assert (trust(fleet)["agreed"], trust(fleet)["differed"]) == (0, 0)
    assert "internal error of the proxy" in trust(fleet)["reason"]


async def test_a_confidence_that_cannot_be_computed_costs_no_answer(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Confidence, "of", fails)
    members = fleet_of("sum")
    seen = await rebuilt_beside(await make_fleet(*members), members)
    assert sorted(source or "" for source, _ in seen) == ["deployed", "reconstructed"]
    assert {told for _, told in seen} == {None}, NAME


async def test_where_discovery_fails_the_last_plan_stays_in_use(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel(role=None)))
    tried: list[None] = []
    monkeypatch.setattr(fleet.proxy._discovery, "refresh", lambda *_: fails(tried.append(None)))
    assert (await fleet.post("/predictions/nobody")).status == 404
    assert tried, "it might have been registered meanwhile"
    assert "discovery failed; the last plan stays in use" in caplog.text
    await serves_on(fleet)
