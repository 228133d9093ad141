"""A reload where servers of several kinds stand behind the proxy: nobody waits for ever, or is sent to another kind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.proxy.conftest import PATIENCE_S, Fleet, MakeFleet, until
from tests.proxy.fleet.backends.servers import PlainServer, inferred, triton
from tests.proxy.test_plain_servers import INFER, STUDENT, post, rest
from ts_parity.config import ModelSettings, Settings, parse_endpoint
from ts_parity.proxy.http import certificates
from ts_parity.testing import FakeModel, FakeTorchServe


async def adopt(fleet: Fleet, *instances: PlainServer | FakeTorchServe, **settings: Any) -> None:
    given = tuple(parse_endpoint(instance.endpoint) for instance in instances)
    await fleet.proxy.adopt(replace(fleet.proxy.settings, instances=given, **settings))


async def test_whoever_waits_for_a_kind_that_goes_has_an_answer(make_fleet: MakeFleet):
    theirs, service = FakeTorchServe(FakeModel()), PlainServer(rest(predict={"output": 8}), "kind=rest,places=1")
    service.held.add("/predict")
    fleet = await make_fleet(theirs, service)
    asked = [asyncio.ensure_future(post(fleet, "/predict")) for _ in range(3)]
    await until(lambda: fleet.proxy.scheduler.snapshot()["open_queries"] == 3, "all of them to be there")
    await adopt(fleet, theirs)
    service.thaw()
    answers = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
    assert {answer.status for answer in answers} <= {200, 404, 502, 503}
    assert (await fleet.post()).status == 200


async def test_models_keep_their_names_when_the_first_kind_goes(make_fleet: MakeFleet):
    theirs, oip = FakeTorchServe(FakeModel("big", "1")), PlainServer(triton("big"), "kind=open-inference,places=1")
    fleet = await make_fleet(theirs, oip)
    oip.held.add(INFER)
    asked = [asyncio.ensure_future(post(fleet)) for _ in range(3)]
    await until(lambda: fleet.proxy.scheduler.snapshot()["open_queries"] == 3, "all of them to be there")
    await adopt(fleet, oip)
    oip.thaw()
    answers = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
    assert [answer.json() for answer in answers] == [inferred("big", [0.1, 0.9])] * 3
    assert fleet.proxy.plan.pools.keys() == {"open-inference:big/1"}


async def test_a_model_that_one_kind_lost_is_not_asked_of_another(make_fleet: MakeFleet):
    """Both have a model of the name, and what one says in JSON is nothing that the other reads."""
    theirs, oip = FakeTorchServe(FakeModel("big", "1")), PlainServer(triton("big"))
    fleet = await make_fleet(theirs, oip)
    oip.answers[f"POST {INFER}"] = (404, {"error": "Request for unknown model"})
    for path in [path for path in oip.answers if "models/big" in path and "POST" not in path]:
        del oip.answers[path]
    oip.answers["POST /v2/repository/index"] = (200, [])
    answer = await post(fleet)
    assert answer.status in (404, 503)
    assert "code" not in answer.json(), "TorchServe's errors have one"
    assert [each.target for each in theirs.received if each.target.startswith("/v2")] == []


async def test_a_request_that_waits_for_discovery_across_a_reload_goes_on(make_fleet: MakeFleet):
    theirs, oip = FakeTorchServe(FakeModel()), PlainServer(triton("big"))
    fleet = await make_fleet(theirs, oip)
    oip.answers |= triton("big", "new")
    asked = [asyncio.ensure_future(post(fleet, f"/v2/models/{name}/infer")) for name in ("new", "none")]
    await adopt(fleet, theirs, oip)
    found, none = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
    assert found.json() == inferred("new", [0.1, 0.9])
    assert (none.status, none.json()) == (404, {"error": "there is nothing here"}), "what its own kind says"


async def test_another_student_has_to_prove_itself_anew(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big", "small", "other")) for _ in range(2)]
    fleet = await make_fleet(*servers, models=STUDENT, proved=False, differing=1.0)

    def trust() -> str:
        state: str = fleet.proxy.status()["pools"]["big/1"]["trust"]["state"]
        return state

    for _ in range(60):
        await post(fleet)
    assert trust() == "in use"
    await adopt(fleet, *servers, models=STUDENT)
    assert trust() == "in use", "nothing has changed"
    await adopt(fleet, *servers, models=(ModelSettings("big", student="other"),))
    assert trust() == "on trial"


async def test_another_agreement_that_is_declared_has_to_be_proved(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big", "small")) for _ in range(2)]
    fleet = await make_fleet(*servers, models=STUDENT, proved=False, differing=1.0)
    trust = fleet.proxy.scheduler._fleet.pools["big/1"].trust
    assert trust is not None
    for _ in range(60):
        await post(fleet)
    assert trust.in_use
    await adopt(fleet, *servers, models=(replace(STUDENT[0], agreement=0.75),))
    assert (trust.on_trial, trust.expected) == (True, 0.75)


async def test_other_pointers_compare_from_now_on(make_fleet: MakeFleet):
    said = {"predict": {"a": 1, "b": 1}, "student": {"a": 1, "b": 2}}
    servers = [PlainServer(rest(**said), "kind=rest,student_places=1") for _ in range(2)]
    declared = ModelSettings("/predict", student="/student", compare=("/a",))
    fleet = await make_fleet(*servers, models=(declared,), proved=False, differing=1.0)

    def told(finding: str) -> float:
        return fleet.proxy.metrics.comparisons.value("/predict", "protection", finding)

    for _ in range(2):  # it is on trial, and stays so
        await post(fleet, "/predict")
    await until(lambda: told("agreed") > 0, "both to have answered")
    assert told("differed") == 0
    await adopt(fleet, *servers, models=(replace(declared, compare=("/b",)),))
    for _ in range(2):
        await post(fleet, "/predict")
    await until(lambda: told("differed") > 0, "the other pointer to be looked at")


async def test_what_an_instance_hosted_that_is_down_is_still_known(make_fleet: MakeFleet):
    """So a client is told to come back, and is not sent to an instance that never had the model."""
    other, only = PlainServer(triton("other")), PlainServer(triton("big"))
    fleet = await make_fleet(other, only)
    await only.stop()
    await fleet.proxy.discover()
    assert (await post(fleet)).status == 503
    await adopt(fleet, other, only, drain_s=7.0)
    answer = await post(fleet)
    assert (answer.status, answer.get("retry-after")) == (503, "1")
    assert other.asked(f"POST {INFER}") == []


async def test_what_was_hosted_at_another_address_of_the_same_host_is_not_believed(make_fleet: MakeFleet):
    """They have one name; what answers with TLS there may be another service."""
    other, only = PlainServer(triton("other")), PlainServer(triton("big"))
    fleet = await make_fleet(other, only)
    await only.stop()
    await fleet.proxy.discover()
    assert (await post(fleet)).status == 503
    moved = parse_endpoint(only.endpoint.replace("http://", "https://"))
    assert moved.name == only.name
    given = (parse_endpoint(other.endpoint), moved)
    await fleet.proxy.adopt(replace(fleet.proxy.settings, instances=given))
    assert (await post(fleet)).status == 404


async def test_a_sequence_whose_instance_dies_goes_on_at_another(make_fleet: MakeFleet):
    servers = [PlainServer(triton("big")) for _ in range(3)]
    fleet = await make_fleet(*servers, discovery_interval_s=60.0)
    sequence = b'{"parameters": {"sequence_id": 7}, "inputs": []}'
    assert (await post(fleet, data=sequence)).status == 200
    (home,) = [server for server in servers if server.asked(f"POST {INFER}")]
    await home.stop()
    assert (await post(fleet, data=sequence)).status == 200
    for server in servers:
        await server.stop()
    assert (await asyncio.wait_for(post(fleet, data=sequence), PATIENCE_S)).status in (502, 503)


def test_contexts_are_made_for_new_addresses_only(monkeypatch: pytest.MonkeyPatch):
    given = tuple(parse_endpoint(f"https://127.0.0.1:{port},kind=rest") for port in (1001, 1002))
    settings = Settings(instances=given)
    made = certificates.instance_side(settings)
    fresh = []
    trusting = certificates._trusting
    monkeypatch.setattr(certificates, "_trusting", lambda one: fresh.append(one.name) or trusting(one))
    kept = {"https://127.0.0.1:1001": made["https://127.0.0.1:1001"]}
    again = certificates.instance_side(settings, kept)
    assert again.keys() == made.keys()
    assert again["https://127.0.0.1:1001"] is made["https://127.0.0.1:1001"]
    assert fresh == ["127.0.0.1:1002"]


@pytest.mark.slow
async def test_what_is_known_of_instances_that_are_gone_is_forgotten(make_fleet: MakeFleet):
    """Fifty reloads, each of which replaces an instance and every other one a kind, leave as much as two do."""
    stays = PlainServer(triton("big"))
    fleet = await make_fleet(stays)
    proxy = fleet.proxy

    async def reload(number: int) -> None:
        services = (rest(predict={"output": 8}), "kind=rest,places=1"), (triton("big"),)
        async with PlainServer(*services[number % 2]) as other:
            await adopt(fleet, stays, other)
            assert (await post(fleet)).status == 200
            assert (await post(fleet, "/predict")).status in (200, 404)
            await adopt(fleet, stays)

    def held() -> dict[str, int]:
        """How much the rooms hold whose content follows the instances."""
        service, driver, upstream, scheduler = proxy._service, proxy.driver, proxy.upstream, proxy.scheduler
        holders = {"service": service, "driver": driver, "upstream": upstream, "scheduler": scheduler}
        holders |= {"discovery": proxy._discovery, "metrics": proxy.metrics, "proxy": proxy}
        return {
            f"{name}.{key}": len(value)
            for name, holder in holders.items()
            for key in getattr(holder, "__mypyc_attrs__", None) or vars(holder)  # a compiled object has no vars
            if isinstance(value := getattr(holder, key, None), dict | list | set)
        }

    for number in range(2):
        await reload(number)
    before = held()
    for number in range(2, 50):
        await reload(number)
    assert held() == before
    assert before["service._backend_of"] == before["driver._backends"] == before["discovery.probers"] == 1


async def test_a_kind_that_is_gone_is_asked_nothing_more(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch):
    theirs, oip = FakeTorchServe(FakeModel()), PlainServer(triton("big"))
    fleet = await make_fleet(theirs, oip)
    prober = fleet.proxy._discovery.probers["torchserve"]
    closed = []
    monkeypatch.setattr(prober, "close", lambda: asyncio.sleep(0, closed.append(True)))
    await adopt(fleet, oip)
    assert closed == [True]


async def test_what_an_instance_answers_that_is_gone_meanwhile_is_passed_on(make_fleet: MakeFleet):
    """Also an error, which only its kind can read."""
    theirs, oip = FakeTorchServe(FakeModel()), PlainServer(triton("big"))
    oip.answers["GET /v2/models/big/stats"] = (503, {"error": "busy"})
    oip.held.add("/v2/models/big/stats")
    fleet = await make_fleet(theirs, oip)
    asked = asyncio.ensure_future(fleet.client.get("/v2/models/big/stats"))
    await until(lambda: oip.asked("GET /v2/models/big/stats") != [], "it to be asked")
    await adopt(fleet, theirs)
    oip.thaw()
    answer = await asyncio.wait_for(asked, PATIENCE_S)
    assert (answer.status, answer.json()) == (503, {"error": "busy"})
