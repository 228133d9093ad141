"""Instances that say no at once to whatever they get, and so are always idle: clients get their answers from others."""

import pytest

from ts_parity.config import InstanceSettings
from ts_parity.testing import Canned, FakeModel, FakeTorchServe


def instance(**settings):
    return FakeTorchServe(FakeModel(role=None), **settings)


async def ask(fleet, count, **headers):
    """One after the other, so that whoever answers at once would be asked every second time."""
    return [await fleet.post(x=(n, n), **headers) for n in range(count)]


async def test_an_instance_that_has_lost_the_model(make_fleet):
    fleet = await make_fleet(instance(), instance(), instance())
    fleet.instances[0].models.clear()
    assert {answer.status for answer in await ask(fleet, 60)} == {200}
    assert len(fleet.instances[0].received) <= 6


async def test_where_nobody_has_the_model_the_client_is_told_so(make_fleet):
    fleet = await make_fleet(instance(), instance())
    for each in fleet.instances:
        each.models.clear()
    answer = await fleet.post()
    assert (answer.status, answer.json()["type"]) == (404, "ModelNotFoundException")


def with_keys(*instances):
    settings = []
    for each in instances:
        settings.append(InstanceSettings(inference=each.inference, management=each.management, token="t"))
    return tuple(settings)


async def test_an_instance_that_refuses_the_key_it_was_configured_with(make_fleet):
    instances = [instance(token="t") for _ in range(3)]
    for each in instances:
        await each.start()
    fleet = await make_fleet(given=with_keys(*instances))
    try:
        instances[0]._token = "another"
        assert {answer.status for answer in await ask(fleet, 60)} == {200}
        assert len(instances[0].received) <= 6
        for each in instances:
            each._token = "another"
            each.received.clear()
        answer = await fleet.post(Authorization="Bearer wrong")
        assert (answer.status, answer.json()["type"]) == (400, "InvalidKeyException")
        assert sum(len(each.received) for each in instances) == 1, "a client's own key is its own affair"
    finally:
        for each in instances:
            await each.stop()


async def test_an_instance_whose_handler_fails_whatever_it_gets(make_fleet):
    fleet = await make_fleet(instance(), instance(), instance())
    fleet.instances[0].models[0].script.extend([Canned.prediction_failed()] * 500)
    answers = await ask(fleet, 300)
    assert sum(answer.status != 200 for answer in answers) <= 10
    assert {answer.status for answer in answers[100:]} == {200}
    endpoints = fleet.proxy.scheduler.snapshot()["endpoints"]
    assert [state["health"] for state in endpoints.values()].count("out") == 1


@pytest.mark.slow
async def test_an_instance_with_a_smaller_limit_of_bodies(make_fleet):
    """Every third query is large, and one of three instances answers 413."""
    fleet = await make_fleet(instance(), instance(), instance(max_request_size=30))
    large = b"[1, 2" + b" " * 40 + b"]"
    statuses = [(await fleet.post(x=large if n % 3 == 0 else (n, n))).status for n in range(400)]
    assert statuses.count(413) <= 20
    assert 413 not in statuses[250:]


async def test_bad_clients_get_their_errors_and_nobody_is_taken_out(make_fleet):
    fleet = await make_fleet(instance(), instance(), instance())
    answers = [await fleet.post(x=(1, 2, 3) if n % 4 == 0 else (1, 2)) for n in range(200)]
    assert [answer.status for answer in answers] == [503 if n % 4 == 0 else 200 for n in range(200)]
    assert {answer.get("x-ts-parity") for answer in answers} == {"deployed"}
    endpoints = fleet.proxy.scheduler.snapshot()["endpoints"]
    assert {state["health"] for state in endpoints.values()} == {"in"}
