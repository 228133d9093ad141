"""Instances that die under load, on real sockets: no client notices while others can bear it."""

import asyncio
import json

import pytest

from tests.proxy.conftest import nothing_left, until
from ts_parity.testing import Canned, FakeModel, FakeTorchServe, protection
from ts_parity.wire import unpack_frame

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


@pytest.mark.parametrize("how", ["scaled to nothing", "unregistered"])
async def test_what_an_instance_had_goes_elsewhere_when_discovery_finds_it_gone(make_fleet, how):
    fleet = await make_fleet(many_places(), many_places())
    gone = fleet.instances[0]
    gone.freeze()
    asked = asyncio.ensure_future(fleet.posts(8))
    await until(lambda: len(gone.received) == 4 and nothing_left_but(fleet.proxy, 4), "four to be stuck")
    if how == "unregistered":
        gone.models.clear()
    else:
        gone.models[0].ready = False
    await fleet.proxy.discover()
    assert {answer.status for answer in await asked} == {200}


async def test_an_instance_whose_management_is_silent_is_not_gone(make_fleet):
    """Its queries are not sent a second time: it is slow to say what it hosts, and used as last seen."""
    fleet = await make_fleet(many_places(), many_places(latency_s=0.1), describe_timeout_s=0.05)
    silent = fleet.instances[1]
    asked = asyncio.ensure_future(fleet.posts(8))
    await until(lambda: len(silent.received) == 4, "it to be busy")
    silent.management_pause_s = 1.0
    await fleet.proxy.discover()
    assert {answer.status for answer in await asked} == {200}
    assert [len(instance.received) for instance in fleet.instances] == [4, 4]


def nothing_left_but(proxy, tasks):
    return proxy.driver.left_over()["tasks"] == tasks


@pytest.mark.parametrize("status", [500, 507])
async def test_a_query_that_kills_its_worker_is_sent_to_two_at_most(make_fleet, status):
    killer = Canned.error(status, "InternalServerException", "Worker died.")
    instances = [many_places() for _ in range(4)]
    for instance in instances:
        instance.models[0].script.extend([killer] * 4)
    fleet = await make_fleet(*instances, max_attempts=4)
    answer = await fleet.post()
    assert (answer.status, answer.json()["message"]) == (status, "Worker died.")
    assert sum(len(instance.received) for instance in instances) == 2


async def test_a_body_that_may_kill_goes_to_no_protection_any_more(make_fleet):
    """Its group waits for the protection's only worker meanwhile, and goes without it."""
    deployed, backup = [FakeTorchServe(FakeModel()) for _ in range(2)], FakeTorchServe(protection(code="student"))
    fleet = await make_fleet(*deployed, backup)
    backup.freeze()
    await fleet.posts(2)
    for instance in deployed:
        instance.freeze()
    asked = [asyncio.ensure_future(fleet.post(x=(n, n))) for n in (7, 8)]
    await until(lambda: all(len(instance.received) == 2 for instance in deployed), "both to have come")
    killer, other = (instance.received[-1].body for instance in deployed)
    deployed[0].models[0].script.append(Canned.worker_died())
    deployed[0].thaw()
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result().json() for each in done] == [[3.0 * n, 7.0 * n] for n in (json.loads(killer)[0],)]
    backup.thaw()
    await until(lambda: backup.operations() == ["group", "group"], "the second group to be asked for")
    slots = unpack_frame(backup.received[-1].body).slots
    assert [part.body for part in slots if part is not None] == [other]
    deployed[1].thaw()
    assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


async def test_what_must_run_once_is_not_sent_again_over_another_connection(make_fleet):
    """An instance dies with the query and is back at once. Over a connection that was kept from the query before, it
    would look as if the instance had closed it for its idleness.
    """
    fleet = await make_fleet(FakeTorchServe(FakeModel(repeatable=False)))
    (instance,) = fleet.instances
    ports = [int(url.rpartition(":")[2]) for url in (instance.inference, instance.management)]
    assert (await fleet.post()).status == 200
    instance.freeze()
    asked = asyncio.ensure_future(fleet.post())
    await until(lambda: len(instance.received) == 2, "it to have the query")
    await instance.stop()
    instance.thaw()
    await instance.start(*ports)
    assert (await asked).status == 503
    assert len(instance.received) == 2
