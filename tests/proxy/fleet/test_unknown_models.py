"""Requests for models that no instance is known to serve: gone, just registered, or READY only after a prediction."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.proxy.conftest import MakeFleet, nothing_left, until
from ts_parity.config import ModelSettings
from ts_parity.proxy.fleet.torchserve import discovery
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection

PATHS = ("/predictions/linear", "/predictions/linear/1.0", "/explanations/linear", "/v1/models/linear:predict")


@pytest.mark.parametrize("path", PATHS)
async def test_a_model_whose_instances_are_all_gone_is_not_unknown(make_fleet: MakeFleet, path: str) -> None:
    """503 with Retry-After, not the 404 of an instance that never had it; and nobody is told of addresses."""
    deployed, parity = FakeTorchServe(FakeModel()), FakeTorchServe(protection())
    fleet = await make_fleet(deployed, parity)
    await deployed.stop()
    await fleet.proxy.discover()
    answer = await fleet.client.post(path, b"[1, 2]")
    assert (answer.status, answer.get("retry-after")) == (503, "1")
    assert answer.json()["type"] == "ServiceUnavailableException"
    assert "127.0.0.1" not in answer.json()["message"]
    assert parity.received == []
    assert (await fleet.client.post("/predictions/nobody", b"[1, 2]")).status == 404


async def test_a_version_whose_instances_are_gone_is_not_unknown_either(make_fleet: MakeFleet) -> None:
    old, new = FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel(version="2.0"))
    fleet = await make_fleet(old, new)
    await new.stop()
    await fleet.proxy.discover()
    assert (await fleet.post("/predictions/linear/2.0")).status == 503
    assert (await fleet.post("/predictions/linear/3.0")).status == 404
    assert (await fleet.post("/predictions/linear")).status == 200


async def test_what_was_unregistered_while_management_answers_is_forgotten(make_fleet: MakeFleet) -> None:
    instance, other = FakeTorchServe(FakeModel()), FakeTorchServe(protection())
    fleet = await make_fleet(instance, other)
    instance.models.clear()
    await fleet.proxy.discover()
    assert (await fleet.post()).status == 404
    await instance.stop()
    await fleet.proxy.discover()
    assert (await fleet.post()).status == 404


@pytest.mark.parametrize("looks", [False, True])
async def test_another_version_takes_over_and_no_client_notices(make_fleet: MakeFleet, looks: bool) -> None:
    """The new default is set and the old version unregistered beside the proxy, while predictions run and wait."""
    instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
    fleet = await make_fleet(*instances, FakeTorchServe(protection()))
    assert fleet.proxy.plan.pools["linear/1.0"].code is not None
    for instance in instances:
        instance.freeze()
    running = asyncio.ensure_future(fleet.posts(6))
    await until(lambda: all(instance.received for instance in instances), "two to run, and four to wait")
    for instance in instances:
        instance.models[0] = FakeModel(version="2.0", matrix=np.eye(2, dtype=np.float32))
    if looks:
        await fleet.proxy.discover(may_describe=False)
    for instance in instances:
        instance.thaw()
    assert {answer.status for answer in await running} == {200}
    assert (await fleet.post()).json() == [1.0, 2.0]
    assert (await fleet.post("/predictions/linear/1.0")).status == 404
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_what_all_have_lost_is_asked_of_them_once_more_at_most(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Management says that it is there, and predictions are told that it is not: so is the client, after one look."""
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    monkeypatch.setattr(instance, "_find", lambda name, version: None)
    assert (await fleet.post()).status == 404
    assert len(instance.received) <= 2 * fleet.proxy.settings.policy.max_attempts


async def test_a_version_that_each_lacked_for_a_moment_is_asked_for_anew(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances are replaced in turn, and a slow query comes to each of them at its moment."""
    instances = [FakeTorchServe(FakeModel()) for _ in range(2)]
    fleet = await make_fleet(*instances)
    found = iter([None] * fleet.proxy.settings.policy.max_attempts)
    for instance in instances:
        monkeypatch.setattr(instance, "_find", lambda *_, model=instance.models[0]: next(found, model))
    assert (await fleet.post()).status == 200


async def test_gone_for_several_looks_is_still_not_unknown(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance, FakeTorchServe(protection()))
    ports = [int(url.rpartition(":")[2]) for url in (instance.inference, instance.management)]
    await instance.stop()
    for _ in range(3):
        await fleet.proxy.discover()
        assert (await fleet.post()).status == 503
    await instance.start(*ports)
    await fleet.proxy.discover()
    assert (await fleet.post()).status == 200


@pytest.mark.slow
async def test_what_has_just_been_registered_is_served_at_once(make_fleet: MakeFleet) -> None:
    """On whichever instance, by the default path, the version's, and those that are passed through."""
    instances = [FakeTorchServe(protection()) for _ in range(3)]
    fleet = await make_fleet(*instances)
    for number, path in enumerate(("/predictions/{}", "/predictions/{}/1.0", "/explanations/{}")):
        for instance in instances:
            name = f"m{number}{instances.index(instance)}"
            instance.models.append(FakeModel(name=name))
            answer = await fleet.client.post(path.format(name), b"[1, 2]")
            assert (answer.status, answer.json()) == (200, [5.0, 11.0])


async def test_what_was_loading_and_is_ready_is_served_at_once(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel(ready=False))
    fleet = await make_fleet(instance)
    instance.models[0].ready = True
    answer = await fleet.post()
    assert (answer.status, answer.get("x-ts-parity")) == (200, "deployed")


async def test_a_scaled_model_is_served_at_once(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.models[0].workers = 0
    await fleet.proxy.discover()
    assert (await fleet.post()).status == 503
    instance.models[0].workers = 1
    assert (await fleet.post()).status == 200


async def test_a_crowd_that_asks_for_nobody_costs_few_looks(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel(), FakeModel(name="other"))
    fleet = await make_fleet(instance)
    looks: list[int] = []
    look = fleet.proxy._discovery.refresh

    async def counted(may_describe: bool) -> object:
        looks.append(1)
        return await look(may_describe)

    fleet.proxy._discovery.refresh = counted
    answers = await asyncio.gather(*(fleet.post("/predictions/nobody") for _ in range(100)))
    assert {answer.status for answer in answers} == {404}
    assert len(looks) <= 3


async def test_an_instance_that_hangs_holds_up_nobody_who_asks_for_the_unknown(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ts_parity.proxy.serving.service._DISCOVERY_WAIT_S", 0.05)
    hanging, good = FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())
    fleet = await make_fleet(hanging, good, describe_timeout_s=60.0)
    hanging.managed = Canned(hold_s=60.0)
    assert (await asyncio.wait_for(fleet.post("/predictions/nobody"), 10)).status == 404


async def test_who_leaves_while_the_fleet_is_looked_at_is_not_asked_for(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    await fleet.proxy._discovering.acquire()
    _, writer = await asyncio.open_connection(fleet.client.host, fleet.client.port)
    writer.write(b"POST /predictions/nobody HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
    await until(lambda: fleet.proxy._server.in_flight == 1, "the request to come in")
    writer.close()
    await until(lambda: fleet.proxy._server.in_flight == 0, "the client to be gone")
    fleet.proxy._discovering.release()
    await fleet.proxy._discover_soon()
    assert instance.received == []


@pytest.mark.parametrize("how", ["loading", "unavailable"])
async def test_a_fleet_that_is_ready_after_its_first_prediction_only(make_fleet: MakeFleet, how: str) -> None:
    """One query at a time and instance is let through; after its answer all are."""
    instances = [FakeTorchServe(FakeModel(warms_up=how)) for _ in range(2)]
    fleet = await make_fleet(*instances)
    assert (await fleet.post()).status == 200
    await until(lambda: "linear/1.0" in fleet.proxy.plan.serving, "the model to be found READY")
    assert [answer.status for answer in await fleet.posts(4)] == [200] * 4
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_a_little_traffic_is_let_through_and_the_rest_told_to_come_again(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel(warms_up="loading", latency_s=0.3))
    fleet = await make_fleet(instance)
    answers = await fleet.posts(5)
    assert sorted(answer.status for answer in answers) == [200, 503, 503, 503, 503]
    assert len(instance.received) == 1


async def test_a_let_through_query_has_its_deadline(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel(warms_up="loading"))
    fleet = await make_fleet(instance)
    instance.freeze()
    answer = await fleet.post(x_ts_parity_deadline_ms="50")
    assert (answer.status, answer.json()["type"]) == (504, "DeadlineExceededException")
    assert fleet.proxy._service._probed == set()


async def test_a_management_api_behind_a_gateway_that_waits_for_the_first_prediction(make_fleet: MakeFleet) -> None:
    instance = FakeTorchServe(FakeModel())
    instance.managed = Canned(503, "", (), b"not ready yet")
    fleet = await make_fleet(instance)
    assert fleet.proxy.plan.up == ()
    assert (await fleet.post()).status == 200
    instance.managed = None
    await until(lambda: fleet.proxy.plan.up != (), "the instance to be found")


async def test_beside_others_a_cold_instance_is_warmed_by_a_copy(make_fleet: MakeFleet) -> None:
    """Nobody waits for it, and one copy is all it gets for a while."""
    cold = FakeTorchServe(FakeModel(warms_up="loading"))
    cold.freeze()
    fleet = await make_fleet(FakeTorchServe(FakeModel()), cold)
    assert [(await fleet.post()).status for _ in range(5)] == [200] * 5
    assert len(cold.received) == 1
    cold.thaw()
    await until(lambda: len(fleet.proxy.plan.fleet.endpoints) == 2, "the warm instance to join")


async def test_a_refused_model_is_warmed_by_no_copy(make_fleet: MakeFleet) -> None:
    """It may keep state: what it is asked twice may not be what its client wanted."""
    cold = FakeTorchServe(FakeModel(warms_up="loading"))
    fleet = await make_fleet(FakeTorchServe(FakeModel(verdict="refused")), cold)
    assert (await fleet.post()).status == 200
    assert cold.received == []


async def test_a_body_that_is_never_coded_warms_nobody(make_fleet: MakeFleet) -> None:
    """What it names may be somewhere else there, or nowhere."""
    cold = FakeTorchServe(FakeModel(warms_up="loading"))
    fleet = await make_fleet(FakeTorchServe(FakeModel(never_code={"content_types": ["text/uri-list"]})), cold)
    assert (
        await fleet.client.post("/predictions/linear", b"[1, 2]", (("Content-Type", "text/uri-list"),))
    ).status == 200
    assert cold.received == []
    assert (await fleet.post()).status == 200
    await until(lambda: len(cold.received) == 1, "an ordinary body to be copied")


async def test_what_the_operator_calls_not_repeatable_warms_nobody(make_fleet: MakeFleet) -> None:
    cold = FakeTorchServe(FakeModel(warms_up="loading", role=None))
    given = (ModelSettings("linear", repeatable=False),)
    fleet = await make_fleet(FakeTorchServe(FakeModel(role=None)), cold, models=given)
    assert (await fleet.post()).status == 200
    assert cold.received == []


async def test_instances_that_contradict_each_other_warm_nobody(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second copies have shown it; a third one would be no better."""
    monkeypatch.setattr(discovery, "_COLD_AFTER_S", 0.0)
    one, other = (FakeTorchServe(FakeModel(role=None, matrix=np.eye(2) * n)) for n in (1, 2))
    fleet = await make_fleet(one, other, proved=False, copies=True, extra_work=1.0, hedge_after_s=0.01)
    for slow in (one, other):
        slow.freeze()
        await fleet.posts(2)
        slow.thaw()
        await until(lambda: nothing_left(fleet.proxy), "both copies to end")
    assert fleet.proxy.status()["pools"]["linear/1.0"]["copies"]["reason"]
    one.models[0].warms_up = "loading"
    await fleet.proxy.discover()
    assert fleet.proxy.plan.cold == {"linear/1.0": (fleet.proxy.settings.instances[0].name,)}
    asked = len(one.received)
    assert (await fleet.post()).status == 200
    assert len(one.received) == asked


async def test_a_worker_that_was_ready_is_cold_only_after_a_while(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = FakeTorchServe(FakeModel())
    fleet = await make_fleet(instance)
    instance.models[0].warms_up = "loading"
    await fleet.proxy.discover()
    assert (await fleet.post()).status == 503
    assert instance.received == []
    monkeypatch.setattr(discovery, "_COLD_AFTER_S", 0.0)
    assert (await fleet.post()).status == 200
