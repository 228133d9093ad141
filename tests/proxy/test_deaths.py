"""Instances that die under load, on real sockets: no client notices while others can bear it."""

import asyncio

import pytest

from tests.proxy.conftest import nothing_left, until
from ts_parity.testing import Canned, FakeModel, FakeTorchServe

PLACES = 64


def many_places(**settings):
    return FakeTorchServe(FakeModel(role=None, workers=PLACES, **settings))


@pytest.mark.slow
async def test_an_instance_of_many_places_dies_and_no_client_notices(make_fleet):
    """A budget of ten retries, and 64 queries on the instance that dies."""
    fleet = await make_fleet(*(many_places(latency_s=0.2) for _ in range(3)), deadline_s=20.0)
    dying = fleet.instances[0]
    asked = asyncio.ensure_future(fleet.posts(2 * PLACES))
    await until(lambda: len(dying.received) >= PLACES // 2, "the first instance to be busy")
    await dying.stop()
    answers = await asked
    assert {answer.status for answer in answers} == {200}
    await until(lambda: nothing_left(fleet.proxy), "everything to end")


@pytest.mark.slow
async def test_a_fleet_that_is_gone_for_a_moment_costs_time_only(make_fleet):
    fleet = await make_fleet(many_places(latency_s=0.05), many_places(latency_s=0.05), deadline_s=20.0)
    ports = [[int(url.rpartition(":")[2]) for url in (i.inference, i.management)] for i in fleet.instances]
    for instance in fleet.instances:
        await instance.stop()
    asked = asyncio.ensure_future(fleet.posts(8))
    await until(lambda: fleet.proxy.scheduler.sent["moved"] >= 16, "each query to find nobody")
    for instance, (inference, management) in zip(fleet.instances, ports, strict=True):
        await instance.start(inference, management)
    assert {answer.status for answer in await asked} == {200}


async def test_whoever_takes_connections_and_closes_them_costs_nobody_an_answer(make_fleet):
    bad, good = many_places(), many_places()
    bad.models[0].script.extend([Canned(drop=True)] * 200)
    fleet = await make_fleet(bad, good)
    for _ in range(5):
        assert {answer.status for answer in await fleet.posts(12)} == {200}
